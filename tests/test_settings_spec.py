"""The one specification of settings: what it refuses, and that everything else follows it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from math import inf, nan

import pytest

from prefkit.core import ConfigError, project_root
from prefkit.train.settings import (
    PIPELINES,
    DataSettings,
    RewardModelData,
    RolloutSettings,
    Settings,
    SftData,
    TrainSettings,
    default_of,
    setting,
)

SPECIFICATIONS = sorted({one for of in PIPELINES.values() for one in of.values()}, key=str)
LINES = [(one, line) for one in SPECIFICATIONS for line in fields(one)]


def refused(specification, **changes):
    with pytest.raises(ConfigError) as error:
        specification(**changes)
    return error.value


@pytest.mark.parametrize(
    "specification, line",
    LINES,
    ids=lambda each: getattr(each, "__name__", getattr(each, "name", "")),
)
def test_every_setting_says_what_it_does_and_refuses_what_it_cannot_be(specification, line):
    about, name = line.metadata, line.name
    assert about["words"] and "|" not in about["words"]
    wrong = {
        "low": about["low"] is not None and about["low"] - 1,
        "high": about["high"] is not None and about["high"] + 1,
        "above": about["above"],
        "below": about["below"],
    }
    for limit, value in wrong.items():
        if about[limit] is not None:
            error = refused(specification, **{name: value})
            assert (error.field, error.reason) == (name, "out of range")
    if about["choices"]:
        assert default_of(line) in about["choices"]
        error = refused(specification, **{name: "nothing of the kind"})
        assert (error.field, error.reason) == (name, "no such choice")
    error = refused(specification, **{name: object()})
    assert (error.field, error.reason) == (name, "wrong type")


def test_every_pipeline_has_one_place_for_each_name():
    for specifications in PIPELINES.values():
        names = [line.name for one in specifications.values() for line in fields(one)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "specification, changes, says",
    [
        (
            TrainSettings,
            {"batch_size": 2.5},
            "batch_size: 2.5 is float; int is needed.",
        ),
        (
            TrainSettings,
            {"learning_rate": "1e-5"},
            "learning_rate: '1e-5' is str; float is needed. YAML reads 1e-5 as text: write 1.0e-5.",
        ),
        (TrainSettings, {"max_steps": "2"}, "max_steps: '2' is str; int | None is needed."),
        (SftData, {"sample_prompts": 3}, "sample_prompts: 3 is int; list[str] is needed."),
        (TrainSettings, {"epochs": -1.0}, "epochs: -1.0 is not between 0 and 1000000."),
        (TrainSettings, {"lora_rank": 0}, "lora_rank: 0 is not at least 1."),
        (
            TrainSettings,
            {"adam_beta2": 1.0},
            "adam_beta2: 1.0 is not at least 0 and below 1. Write 0.999, for example.",
        ),
        (
            RolloutSettings,
            {"top_p": 0.0},
            "top_p: 0.0 is not above 0 and at most 1. Write 1 to keep every token.",
        ),
        (
            TrainSettings,
            {"schedule": "cosin"},
            "schedule: 'cosin' is none of constant, linear, cosine, step_decay.",
        ),
        (
            TrainSettings,
            {"warmup_ratio": 0.1, "warmup_steps": 5},
            "warmup_ratio and warmup_steps are both set. Set one.",
        ),
        (
            TrainSettings,
            {"epochs": 0},
            "epochs: 0 would train nothing. Set epochs or max_steps.",
        ),
        (
            RolloutSettings,
            {"temperature": 0},
            "temperature: at 0 all samples of a prompt are the same answer, of which nothing can "
            "be learned. Write 1.0.",
        ),
    ],
)
def test_each_message_names_the_setting_and_the_way_out(specification, changes, says):
    assert str(refused(specification, **changes)) == says


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "max_grad_norm", "epochs"])
def test_numbers_are_finite(name, value):
    assert refused(TrainSettings, **{name: value}).field == name


@pytest.mark.parametrize("name, value", [("lora", 1), ("batch_size", True), ("seed", 2**32)])
def test_a_truth_value_is_no_number_and_a_seed_fits_every_generator(name, value):
    assert refused(TrainSettings, **{name: value}).field == name


def test_whole_numbers_stand_for_floats_and_lists_are_nobody_elses():
    assert type(TrainSettings(epochs=2).epochs) is float
    one, other = SftData(), SftData()
    one.sample_prompts.append("why?")
    assert other.sample_prompts == []


def test_temperatures_that_go_down_are_refused():
    error = refused(RolloutSettings, temperature=1.0, temperature_high=0.5)
    assert (error.field, error.reason) == ("temperature_high", "out of range")


def test_settings_are_found_among_other_names():
    names = {"learning_rate": 1e-3, "samples": 2, "method": "grpo", "seed": 5}
    assert TrainSettings.of(names) == TrainSettings(learning_rate=1e-3, seed=5)
    assert RolloutSettings.of(names) == RolloutSettings(learning_rate=1e-3, seed=5, samples=2)


def test_parts_of_the_data():
    def place(part):
        return part.dataset, part.split, part.limit

    data = SftData(validation_dataset="other", probe_dataset="pairs", probe_limit=8)
    assert place(data.part("train")) == ("tiny-world", "train", None)
    assert place(data.part("validation")) == ("other", "validation", None)
    assert place(data.part("probe")) == ("pairs", "validation", 8)
    assert (
        data.part("test") is None and DataSettings(validation_split="").part("validation") is None
    )
    assert SftData().part("probe") is None
    data = RewardModelData(validation_dataset="other")
    assert place(data.part("test")) == ("other", "test", None)
    assert RewardModelData(test_split="").part("test") is None


def test_a_part_of_the_data_has_all_settings_and_its_own_columns_and_revision():
    data = SftData(
        dataset="one",
        columns={"prompt": "question"},
        dataset_revision="v1",
        max_length=99,
        probe_dataset="two",
        probe_columns={},
        probe_revision="v2",
    )
    same, probe = data.part("validation"), data.part("probe")
    assert (same.columns, same.dataset_revision) == ({"prompt": "question"}, "v1")
    assert (probe.columns, probe.dataset_revision, probe.max_length) == ({}, "v2", 99)
    other = replace(data, validation_dataset="three").part("validation")
    # another data set has other revisions; its columns are those of the first, unless said
    assert (other.columns, other.dataset_revision) == ({"prompt": "question"}, "")


def test_a_function_is_given_the_settings_that_its_signature_names():
    def reads(max_length, columns, kind, *, split="test"):
        return max_length, columns, kind, split

    given = SftData(max_length=7, split="dev").given_to(reads)
    assert given == {"max_length": 7, "columns": {}, "split": "dev"}


def test_a_specification_of_ones_own_is_checked_like_ours():
    @dataclass
    class Mine(Settings):
        share: float = setting(0.5, "of the rows", low=0, high=1)
        free: int = 3  # without limits

    assert Mine(share=1, free=-7).share == 1.0
    assert refused(Mine, share=2).field == "share" and refused(Mine, free="3").field == "free"


PROBE = """
import json, sys
from prefkit.runs.config import load_config
from prefkit.runs.fingerprints import check_stage
for stage in load_config(sys.argv[1]).stages:
    check_stage(stage)
    print(stage.name, stage.parameters["brand_new"], stage.parameters["batch_size"])
"""


def test_a_setting_added_in_one_file_is_accepted_by_every_training_pipeline(tmp_path):
    "In a copy of the package: one line more in train/settings.py, and nothing else."
    root = project_root()
    shutil.copytree(root / "prefkit", tmp_path / "prefkit")
    file = tmp_path / "prefkit" / "train" / "settings.py"
    added = '    brand_new: int = setting(3, "that nobody reads", low=0)\n'
    before = "    schedule: str = setting("
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1
    file.write_text(text.replace(before, added + before), encoding="utf-8")
    ways = {
        "flat": {"brand_new": 7},
        "nested": {"settings": {"brand_new": 7}},
        "default": {},
    }
    stages = {
        f"{pipeline}-{way}": {"pipeline": pipeline, "parameters": given}
        for pipeline in PIPELINES
        for way, given in ways.items()
    }
    config = tmp_path / "added.yaml"
    config.write_text(json.dumps({"experiment": "added", "stages": stages}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(config)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PREFKIT_ROOT": str(root)},
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(\S+) (\d+) ", done.stdout, re.M))
    wanted = {"flat": "7", "nested": "7", "default": "3"}
    assert found == {name: wanted[name.rpartition("-")[2]] for name in stages}
