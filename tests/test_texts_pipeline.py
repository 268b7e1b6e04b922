"""The pipeline that measures texts: the numbers of the lesson's functions on what models say."""

import math

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.core import ConfigError, project_root, read_jsonl, write_text
from prefkit.data.records import encode_records, load_records
from prefkit.runs.runner import open_run, run
from prefkit.runs.seeds import findings
from prefkit.stats.text_metrics import bleu, diversity, perplexity

MODELS = {"base": "data/tiny/base", "instruct": "data/tiny/instruct"}
FEW = {"models": MODELS, "limit": 6, "samples": 3, "max_new_tokens": 24}


def experiment(folder, **parameters):
    stages = {"said": {"pipeline": "texts", "parameters": {**FEW, **parameters}}}
    return write_text(
        folder / "texts.yaml", yaml.safe_dump({"experiment": "texts", "stages": stages})
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("texts")
    return run(experiment(home), output_root=home / "runs", progress="quiet")["said"]


def test_each_model_has_the_measures_of_its_own_answers(made):
    lines = {line["model"]: line for line in open_run(made).info["metrics"]["texts"]}
    assert list(lines) == list(MODELS)
    records = load_records("tiny-world", kind="sft", split="test", limit=6)
    for name, path in MODELS.items():
        tokenizer = AutoTokenizer.from_pretrained(project_root() / path)
        model = AutoModelForCausalLM.from_pretrained(project_root() / path)
        rows, _ = encode_records(records, tokenizer, kind="sft", max_length=512)
        own = perplexity(model, rows, tokenizer.pad_token_id)
        assert math.isclose(lines[name]["perplexity"], own.perplexity, rel_tol=1e-5)
        files = [read_jsonl(file) for file in sorted((made / "answers").glob("*.jsonl"))]
        said = [each for each in files if _is_of(lines[name], each)]
        assert len(said) == 1 and len(said[0]) == 18 == lines[name]["n"]
        groups = [[one["text"] for one in said[0] if one["number"] == n] for n in range(6)]
        found = diversity(groups)
        assert math.isclose(lines[name]["per_input"], found.per_input, rel_tol=1e-6)
        assert math.isclose(lines[name]["across_input"], found.across_input, rel_tol=1e-6)
        shown = [row["response"][0]["content"] for row in records]
        score = bleu(
            [text for group in groups for text in group], [one for one in shown for _ in "abc"]
        )
        for order, value in score.items():
            assert math.isclose(lines[name][order], value, abs_tol=1e-9)
    assert lines["instruct"]["perplexity"] != lines["base"]["perplexity"]


def _is_of(line, answers):
    mean = sum(len(one["text"]) for one in answers) / len(answers)
    return math.isclose(line["characters"], mean)


def test_over_seeds_the_table_is_kept(made):
    assert [row["model"] for row in findings({"said": made})["texts"]] == list(MODELS)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"models": {"far": {"model": "m", "base_url": "http://127.0.0.1:9/v1"}}}, "log-probs"),
        ({"models": {"base": "data/tiny/nobody"}}, "nobody"),
        ({"samples": 0}, "samples"),
        ({"dataset": "hh-rlhf2"}, "hh-rlhf"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(changes, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        run(experiment(tmp_path, **changes), output_root=tmp_path / "runs", progress="quiet")
    assert not list((tmp_path / "runs").rglob("*.jsonl"))
