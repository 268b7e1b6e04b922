"""How far a model has moved from its start, by its own samples, at every validation of the methods
that do not sample: `kl_samples`.
"""

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.encoded import BASE, encoded_rows
from prefkit.core import ConfigError, derive_seed
from prefkit.train.loop import train_model
from prefkit.train.rollout import log_ratios
from prefkit.train.settings import RolloutSettings, TrainSettings

ROWS = encoded_rows(8, "pairs")
FEW = {
    "max_steps": 6,
    "eval_steps": 3,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "schedule": "constant",
}


def trained(folder, rows=ROWS, method="dpo", **settings):
    model = AutoModelForCausalLM.from_pretrained(BASE)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    settings = TrainSettings(**{**FEW, "sample_tokens": 12, "kl_samples": 5, **settings})
    return train_model(model, tokenizer, method, rows, rows, folder, settings), tokenizer


def distances(result):
    return {line["step"]: line["kl_k1"] for line in result.metrics if line["split"] == "validation"}


@pytest.mark.parametrize("lora", [False, True])
def test_it_is_the_mean_log_ratio_of_the_models_own_answers(lora, tmp_path):
    result, tokenizer = trained(tmp_path, lora=lora)
    found = distances(result)
    assert list(found) == [0, 3, 6] and abs(found[0]) < 1e-4 and found[6] > 0.05
    start = AutoModelForCausalLM.from_pretrained(BASE)
    prompts = [row["prompt_ids"] for row in ROWS[:5]]
    options = dict(max_new_tokens=12, seed=derive_seed(0, "kl"), batch_size=4)
    groups = log_ratios(result.model, start, tokenizer, prompts, **options)
    own = [ratio for [(_, ratio)] in groups]
    assert math.isclose(found[6], sum(own) / 5, rel_tol=1e-3, abs_tol=1e-4)


def test_the_training_is_what_it_is_without(tmp_path):
    measured, _ = trained(tmp_path / "with")
    plain, _ = trained(tmp_path / "without", kl_samples=0)
    for one, other in zip(measured.model.parameters(), plain.model.parameters()):
        assert torch.equal(one, other)
    assert "kl_k1" not in plain.metrics[-1]
    left = [
        {k: v for k, v in line.items() if k != "kl_k1"} for line in copy.deepcopy(measured.metrics)
    ]
    keep = ("step", "split", "loss", "grad_norm")
    for line, other in zip(left, plain.metrics, strict=True):
        assert {k: line.get(k) for k in keep} == {k: other.get(k) for k in keep}


def test_sft_has_it_too(tmp_path):
    rows = encoded_rows(8, "sft")
    result, _ = trained(tmp_path, rows, "sft")
    assert distances(result)[6] > 0.01


def test_where_there_is_nothing_to_answer_it_is_refused(tmp_path):
    model, tokenizer = (
        kind.from_pretrained(BASE) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    settings = TrainSettings(**FEW, kl_samples=4)
    with pytest.raises(ConfigError, match="kl_samples: .* validation_rows"):
        train_model(model, tokenizer, "dpo", ROWS, None, tmp_path, settings)
    settings = TrainSettings(**FEW, kl_samples=9)
    with pytest.raises(ConfigError, match="kl_samples: 9 .* there are 8"):
        train_model(model, tokenizer, "dpo", ROWS, ROWS, tmp_path, settings)
    with pytest.raises(ConfigError, match="kl_samples"):
        RolloutSettings(kl_samples=4)
