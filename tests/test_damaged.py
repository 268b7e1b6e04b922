"""A run is killed, and a file of what it left is deleted, cut in half or changed by one byte: the
run that goes on ends in the weights and the lines of one that nobody disturbed, or names the file.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import prefkit.train.loop as loop
from helpers.runs import timeless
from prefkit.core import PrefkitError, read_jsonl
from prefkit.train.loop import train_model
from prefkit.train.settings import TrainSettings


class Killed(BaseException):
    "Stands for SIGKILL: nothing in the kit catches it."


class Tokens:
    "All that training asks of a tokenizer."

    pad_token_id = eos_token_id = 0

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.txt").write_text("stub")


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=40, **sizes, **heads))


def pairs(number, seed=0):
    draw = random.Random(seed)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    ids = lambda: [draw.randrange(1, 40) for _ in range(draw.randint(2, 8))] + [0]
    return [{name: ids() for name in names} for _ in range(number)]


def fit(folder, **changes):
    "DPO of seven steps, with dropout: its end depends on weights, averages, order and noise."
    given = {"learning_rate": 3e-3, "batch_size": 4, "epochs": 1.0, "device": "cpu"}
    given |= {"logging_steps": 2, "eval_steps": 2, "save_steps": 2, "show_samples": 0}
    given |= {"lora": True, "lora_rank": 2, "lora_dropout": 0.3}
    settings = TrainSettings(**{**given, **changes})
    return train_model(model(), Tokens(), "dpo", pairs(28), pairs(4, 1), folder, settings)


def killed(folder, monkeypatch, step=5, **changes):
    "A run that is killed in its step 5, behind the checkpoints of 2 and 4."
    rate = loop.learning_rate_at

    def deadly(number, *given):
        if number == step:
            raise Killed
        return rate(number, *given)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "learning_rate_at", deadly)
        fit(folder, **changes)
    return folder


def delete(file):
    file.unlink()


def halve(file):
    text = file.read_bytes()
    file.write_bytes(text[: len(text) // 2])


def flip(file):
    text = bytearray(file.read_bytes() or b"x")  # an empty file gets a byte
    text[len(text) // 2] ^= 1
    file.write_bytes(bytes(text))


DAMAGES = (delete, halve, flip)


@dataclass
class End:
    "What counts of a run's end."

    weights: bytes
    lines: list

    @classmethod
    def of(cls, folder):
        whole = (folder / "checkpoint/model.safetensors").read_bytes()
        return cls(whole, timeless(read_jsonl(folder / "metrics.jsonl")))


def outcomes(left, wanted, tmp_path, older=True, **changes):
    "Each file that a run has left, with each damage, and what became of it."
    files = [file.relative_to(left) for file in sorted(left.rglob("*")) if file.is_file()]
    if not older:
        files = [file for file in files if "checkpoint-2" not in file.parts]
    for file in files:
        for damage in DAMAGES:
            folder = tmp_path / "again"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(left, folder)
            damage(folder / file)
            try:
                fit(folder, **changes)
                end = "equal" if End.of(folder) == wanted else "OTHER WEIGHTS OR LINES"
            except PrefkitError as error:
                end = "refused" if file.name in str(error) else f"names no file: {error}"
            except Exception as error:
                end = f"raw {type(error).__name__}: {error}"
            yield f"{file} {damage.__name__}", end


def wrong(found):
    return {case: end for case, end in found.items() if end not in ("equal", "refused")}


@pytest.mark.slow
def test_every_file_of_a_killed_run_may_be_damaged(tmp_path, monkeypatch, capsys):
    given = {"lora": False, "dropout": 0.2}
    fit(tmp_path / "whole", **given)
    wanted = End.of(tmp_path / "whole")
    left = killed(tmp_path / "killed", monkeypatch, **given)
    found = dict(outcomes(left, wanted, tmp_path, older=False, **given))
    assert len(found) >= 3 * 9 and wrong(found) == {}
    assert "optimizer.pt is damaged" in capsys.readouterr().out


MORE = {
    "adapters": {},
    "the best is kept": {"keep_best": True, "keep_checkpoints": True},
    "sums of several batches": {"lora": False, "gradient_accumulation": 2, "max_steps": 7},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_every_file_of_other_killed_runs_may_be_damaged(name, tmp_path, monkeypatch):
    fit(tmp_path / "whole", **MORE[name])
    wanted = End.of(tmp_path / "whole")
    left = killed(tmp_path / "killed", monkeypatch, **MORE[name])
    assert wrong(dict(outcomes(left, wanted, tmp_path, **MORE[name]))) == {}


@pytest.mark.slow
def test_every_file_of_a_run_that_had_trained_to_its_end_may_be_damaged(tmp_path):
    "The stage was killed while it evaluated: what it trained is there, and is read again."
    fit(tmp_path / "whole")
    wanted = End.of(tmp_path / "whole")
    assert wrong(dict(outcomes(tmp_path / "whole", wanted, tmp_path))) == {}


def test_checkpoints_of_nobody_knows_whose_run_are_not_taken(tmp_path, monkeypatch):
    "training.json is gone and the settings are others: nothing of the old run counts."
    fit(tmp_path / "whole", learning_rate=1e-3)
    left = killed(tmp_path / "killed", monkeypatch)
    (left / "training.json").unlink()
    fit(left, learning_rate=1e-3)
    assert End.of(left) == End.of(tmp_path / "whole")
