"""A config trains on all its rows for whole epochs; what cuts a notebook short is for running it by
hand, and says so.
"""

import json
import re

import pytest
import yaml

from prefkit.core import ANNOUNCED, announce, project_root, write_jsonl, write_text
from prefkit.runs.config import given_parameters, load_config, read_pipeline
from prefkit.runs.pipelines import check_sampling, evaluation_prompts
from prefkit.runs.runner import open_run, run
from prefkit.train.settings import (
    FULL,
    PIPELINES,
    RolloutSettings,
    TrainSettings,
    default_of,
    run_line,
)

NOTEBOOKS = sorted((project_root() / "nbs" / "pipelines").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def stage_of(tmp_path, pipeline, **given):
    text = json.dumps(
        {"experiment": "x", "stages": {"s": {"pipeline": pipeline, "parameters": given}}}
    )
    return load_config(write_text(tmp_path / "x.yaml", text)).stages[0]


@by_name
def test_a_config_starts_from_whole_data_and_whole_epochs(tmp_path, path):
    values = stage_of(tmp_path, path.stem).parameters
    assert {name: values[name] for name in FULL if name in values} == {
        name: full for name, full in FULL.items() if name in values
    }
    assert {"limit", "prompts", "documents"} & values.keys()  # every pipeline has one that cuts


@by_name
def test_by_hand_the_cell_counts_and_everything_else_is_the_same(path):
    cell, full = (read_pipeline(path, full=full).parameters for full in (False, True))
    differ = {name for name in cell if cell[name].default != full[name].default}
    assert differ and differ <= FULL.keys()
    assert all(cell[name].default is not None for name in differ)


def test_the_specification_has_no_value_that_cuts():
    for kinds in PIPELINES.values():
        for kind in kinds.values():
            defaults = {
                name: default_of(one)
                for name, one in kind.__dataclass_fields__.items()
                if name in FULL
            }
            assert defaults == {name: FULL[name] for name in defaults}


@pytest.mark.parametrize(
    "given, cut",
    [
        ({}, ["limit", "max_steps", "validation_limit"]),
        ({"limit": None}, ["max_steps", "validation_limit"]),
        ({"max_steps": 9, "epochs": 3.0}, ["limit", "validation_limit"]),
        ({"limit": None, "max_steps": None, "validation_limit": 8}, []),
    ],
)
def test_what_papermill_leaves_to_the_cell_is_said(given, cut):
    path = project_root() / "nbs" / "pipelines" / "rollout.ipynb"
    names = {name: one.default for name, one in read_pipeline(path).cell.items()} | given
    injected = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in given.items())
    found = given_parameters("rollout", {**names, "In": ["", injected], "__name__": "__main__"})
    said = repr(found).splitlines()[0]  # what the check cell shows first
    assert sorted(found.cut) == cut and said.startswith("A run by hand" if cut else "| parameter")
    assert all(f"{name} {found.values[name]}" in said for name in cut)


def pairs(folder, n):
    return write_jsonl(
        folder / "pairs.jsonl",
        [
            {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No idea at all."}
            for i in range(n)
        ],
    )


def test_epochs_3_trains_on_every_row_three_times(tmp_path, capsys):
    parameters = {
        "dataset": str(pairs(tmp_path, 90)),
        "epochs": 3,
        "validation_split": "train[:70]",
        "batch_size": 16,
    }
    stages = {"dpo": {"pipeline": "preference", "parameters": parameters}}
    config = write_text(tmp_path / "x.yaml", json.dumps({"experiment": "x", "stages": stages}))
    done = open_run(run(config, (), tmp_path / "runs", "lines")["dpo"])
    assert done.info["data"]["train"]["kept"] == 90
    assert done.info["data"]["validation"]["kept"] == 70
    assert done.info["metrics"]["steps"] == 3 * 6 and done.metrics["epoch"].max() == 3.0
    said = capsys.readouterr().out
    line = "  dpo: 90 rows, 3 epochs, 18 steps of 16 rows; writes to "
    assert f"{line}{done.path}\n" in said
    # nothing of a stage is said before it but that it runs
    assert re.match(r"dpo: runs\n(dpo \[1/1\] starting.*\n)*  dpo: 90 rows", said)
    assert not (done.path / ANNOUNCED).exists()


@pytest.mark.parametrize(
    "settings, rows, steps, line",
    [
        (TrainSettings(batch_size=8), 20, 3, "20 rows, 1 epoch, 3 steps of 8 rows"),
        (
            TrainSettings(batch_size=8, gradient_accumulation=4, epochs=2.5),
            640,
            50,
            "640 rows, 2.5 epochs, 50 steps of 32 rows",
        ),
        (
            TrainSettings(batch_size=8, epochs=3, max_steps=10),
            160,
            10,
            "160 rows, 0.5 epochs (max_steps holds; epochs: 3 does not count), 10 steps of 8 rows",
        ),
        (
            RolloutSettings(batch_size=8, minibatches=2, passes=4),
            32,
            16,
            "32 prompts, 1 epoch, 16 steps of 2 prompts",
        ),
        (TrainSettings(max_steps=1), 61_135, 1, "61,135 rows, 0.000523 epochs"),
    ],
)
def test_the_first_line(settings, rows, steps, line, tmp_path):
    said = run_line("dpo", rows, steps, settings, tmp_path / ".a.partial")
    assert said.startswith(f"dpo: {line}") and said.endswith(f"writes to {tmp_path / 'a'}")


def test_what_is_announced_reaches_the_runner(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PREFKIT_PROGRESS", str(tmp_path / "progress.json"))
    announce("one")
    announce("two")
    assert (tmp_path / ANNOUNCED).read_text() == "one\ntwo\n" == capsys.readouterr().out


def test_all_prompts_of_an_evaluation(tmp_path):
    assert len(evaluation_prompts(str(pairs(tmp_path, 7)), "train", None)) == 7
    asked = evaluation_prompts("tiny-world", "test", None)
    assert 64 < len(asked) <= 1000 and len({row["prompt_id"] for row in asked}) == len(asked)
    check_sampling(
        prompts=None, split="test", temperature=1.0, top_p=1.0, max_new_tokens=1, batch_size=1
    )


def test_no_config_of_the_project_is_cut_by_what_it_does_not_say():
    """Those that mean few rows say so: whatever they read has a limit or a number of steps of its
    own, so that the change of defaults has changed none of them.
    """
    for path in sorted((project_root() / "data" / "configs").rglob("*.yaml")):
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "stages" not in raw:
            continue  # a study
        for stage in load_config(path).stages:
            own = raw["stages"][stage.name].get("parameters") or {}
            own = own | own.get("settings", {}) | own.get("data", {})
            for name in ("limit", "prompts", "documents"):
                assert name not in stage.parameters or name in own, (path.name, stage.name, name)
