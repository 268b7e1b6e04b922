"""What a stage reads is in its fingerprint, wherever its parameters name it; what computes a
reference is in that one's key.
"""

import json
import shutil

import pytest

import prefkit.model.kernels
from prefkit.runs.config import load_config, write_pipeline
from prefkit.core import (
    code_behind,
    input_path,
    project_root,
    reached_modules,
    recorded_inputs,
    write_text,
)
from prefkit.runs.fingerprints import fingerprints
from prefkit.runs.runner import run

PAIR = {"prompt": "hi", "chosen": "hello", "rejected": "no"}


@pytest.fixture
def reward_folder(tmp_path):
    "A local reward model: the shipped model with another head's name in its config."
    folder = tmp_path / "judge"
    shutil.copytree(project_root() / "data/tiny/base", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["Qwen2ForSequenceClassification"],
        "num_labels": 1,
        "id2label": {"0": "reward"},
    }
    write_text(folder / "config.json", json.dumps(config))
    return folder


def change(folder):
    "Another bias in a model's file: one byte."
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def inputs_before_and_after(config, file_change):
    before = next(iter(fingerprints(load_config(config)).values()))
    file_change()
    after = next(iter(fingerprints(load_config(config)).values()))
    same = {part for part in before if before[part] == after[part]}
    assert {"parameters", "code", "upstream"} <= same
    return before["inputs"], after["inputs"]


def stage(tmp_path, pipeline, **parameters):
    text = json.dumps(
        {"experiment": "x", "stages": {"only": {"pipeline": pipeline, "parameters": parameters}}}
    )
    return write_text(tmp_path / "x.yaml", text)


def test_a_reward_model_inside_the_options_is_an_input(tmp_path, reward_folder):
    options = {"model_name_or_path": str(reward_folder)}
    config = stage(tmp_path, "rollout", reward="model", reward_options=options)
    before, after = inputs_before_and_after(config, lambda: change(reward_folder))
    assert before != after


def test_a_judge_under_a_name_of_ones_own_is_an_input(tmp_path, reward_folder):
    judges = {"gold": {}, "mine": {"kind": "model", "model_name_or_path": str(reward_folder)}}
    config = stage(tmp_path, "evaluate", judges=judges)
    before, after = inputs_before_and_after(config, lambda: change(reward_folder))
    assert before != after


def test_votes_in_a_list_are_inputs(tmp_path):
    rows = [{"prompt_id": "1", "model_a": "base", "model_b": "other", "winner": "model_a"}]
    votes = [write_text(tmp_path / f"{name}.jsonl", json.dumps(rows[0]) + "\n") for name in "ab"]
    config = stage(
        tmp_path,
        "evaluate",
        judges={"gold": {}, "people": {"kind": "person", "votes": [*map(str, votes)]}},
    )
    changed = json.dumps({**rows[0], "winner": "model_b"}) + "\n"
    before, after = inputs_before_and_after(config, lambda: write_text(votes[1], changed))
    assert {name for name in before if before[name] != after[name]} == {str(votes[1])}


def test_the_base_model_of_an_adapter_is_an_input(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(project_root() / "data/tiny/base", base)
    shutil.copytree(base, adapter)
    (adapter / "config.json").unlink()
    write_text(adapter / "adapter_config.json", json.dumps({"base_model_name_or_path": str(base)}))
    config = stage(tmp_path, "preference", model=str(adapter))
    before, after = inputs_before_and_after(config, lambda: change(base))
    assert {name for name in before if before[name] != after[name]} == {str(base)}


@pytest.mark.parametrize("split", ["train", "validation", "probe"])
def test_every_data_set_is_an_input(tmp_path, split):
    file = write_text(
        tmp_path / f"{split}.jsonl", "".join(json.dumps(PAIR) + "\n" for _ in range(4))
    )
    names = {"train": "dataset", "validation": "validation_dataset", "probe": "probe_dataset"}
    given = {
        names[split]: str(file),
        **({"answers": "chosen", "validation_split": ""} if split == "train" else {}),
    }
    given |= {"answers": "chosen", "validation_split": "train"} if split == "validation" else {}
    given |= {"probe_split": "train"} if split == "probe" else {}
    config = stage(tmp_path, "sft", **given)
    more = "".join(json.dumps(PAIR) + "\n" for _ in range(5))
    before, after = inputs_before_and_after(config, lambda: write_text(file, more))
    assert before != after


def test_a_name_without_a_folder_in_front_is_an_input_where_its_reader_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project_root() / "data/tiny/base", tmp_path / "mymodel")
    config = stage(tmp_path, "sft", model="mymodel")
    before, after = inputs_before_and_after(config, lambda: change(tmp_path / "mymodel"))
    assert before["mymodel"] != after["mymodel"]


READER = """from pathlib import Path
from prefkit.core import input_path, write_json
from prefkit.runs import finish
text = input_path(hidden[0]["name"] + ".md").read_text()
write_json(Path(output_dir) / "checkpoint" / "value.json", text)
finish(output_dir, metrics={"length": len(text)})"""


def test_what_a_notebook_reads_without_checking_it_runs_the_stage_again(tmp_path, capsys):
    "The name is put together in the notebook, so that nothing in the parameters tells of the file."
    write_pipeline(
        tmp_path / "read.ipynb", 'hidden: list = [{"name": ""}]\noutput_dir: str = ""', READER
    )
    note = write_text(tmp_path / "note.md", "one")
    config = stage(tmp_path, "read.ipynb", hidden=[{"name": str(note.with_suffix(""))}])
    said = []
    for text in ("one", "one", "two", "two"):
        write_text(note, text)
        run(config, (), tmp_path / "runs", "lines")
        said.append(capsys.readouterr().out)
    assert "already done" in said[1] and "already done" in said[3]
    assert "what it read changed" in said[2]


def test_a_record_holds_what_is_asked_for_meanwhile():
    with recorded_inputs() as outer:
        input_path("a")
        with recorded_inputs() as inner:
            input_path("b")
    input_path("c")
    assert list(outer) == ["a", "b"] and list(inner) == ["b"]


def test_the_code_of_a_reference_is_all_that_computes_it(tmp_path, monkeypatch):
    from prefkit.model.batches import reference_logps

    reached = reached_modules([f"import {reference_logps.__module__}"])
    assert prefkit.model.kernels.__name__ in reached
    before = code_behind(reference_logps)
    for name, file in reached.items():
        changed = write_text(
            tmp_path / "changed.py", file.read_text(encoding="utf-8") + "\nADDED = 1\n"
        )
        monkeypatch.setattr(
            "prefkit.core.reached_modules",
            lambda sources, new=changed, name=name: {**reached, name: new},
        )
        assert code_behind(reference_logps) != before, name
        monkeypatch.undo()
    assert code_behind(reference_logps) == before


def test_the_code_of_ones_own_answers_counts_too():
    def one(model, rows):
        return [[1] for row in rows]

    assert code_behind(one) != code_behind()
