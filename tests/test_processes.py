"""Several processes on one machine train as one does, killed and resumed too."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.processes import together, train
from helpers.runs import without_times
from prefkit.core import project_root, read_jsonl, write_text
from prefkit.runs.config import write_pipeline
from prefkit.runs.runner import open_run, run
from prefkit.runs.stage import StageError
from prefkit.train.saves import find_checkpoints

# sums in another order are rounded otherwise; log-ratios are differences of numbers of order 100
near = partial(pytest.approx, rel=1e-5, abs=1e-5)
SAVED = {"save_steps": 2, "keep_checkpoints": True}


def same_run(found: Path, wanted: Path, within: float = 1e-5):
    "Two runs wrote the same lines, the same answers and the same weights, these within a distance."
    lines, expected = without_times(found), without_times(wanted)
    assert [line.pop("split") for line in lines] == [line.pop("split") for line in expected]
    for line, other in zip(lines, expected):
        # nothing but rounding
        assert max(line.pop("logps_gap", 0), other.pop("logps_gap", 0)) < 1e-4
        if line["step"] <= 1:  # the model is its reference: rounding decides what ties are not
            assert line.pop("reward_accuracy", 0.5) == pytest.approx(0.5, abs=0.3)
            other.pop("reward_accuracy", None)
        assert line == near(other)
    assert read_jsonl(found / "samples.jsonl") == read_jsonl(wanted / "samples.jsonl")
    weights, others = (
        load_file(folder / "checkpoint/model.safetensors") for folder in (found, wanted)
    )
    assert weights.keys() == others.keys()
    far = max((weights[name] - others[name]).abs().max().item() for name in weights)
    assert far < within


CASES = {
    "dpo": {"method": "dpo"},
    "kto": {"method": "kto"},
    # Adam divides even a gradient that is mere rounding by its size, and what a model then samples
    # may be another token: at a small rate it is not
    "rloo": {"method": "rloo", "learning_rate": 1e-5},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "The runs of CASES by two processes; one more that is killed, and goes on in the next start."
    home = tmp_path_factory.mktemp("two")
    cases = [{**case, "folder": str(home / name)} for name, case in CASES.items()]
    killed = {"method": "dpo", "folder": str(home / "killed"), **SAVED}
    codes, said = together([*cases, {**killed, "kill_at": 3}], home / "cases.json")
    assert codes == [-9, -9], said
    assert list(find_checkpoints(home / "killed/checkpoints")) == [2]
    broken = {"method": "dpo", "folder": str(home / "broken"), "break_at": 1}
    begin = time.monotonic()
    codes, said = together([killed, broken], home / "resumed.json")
    seconds = time.monotonic() - begin
    return home, codes, said, seconds


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(runs, tmp_path, name):
    train(folder=tmp_path / name, **CASES[name])
    same_run(runs[0] / name, tmp_path / name)


def test_killed_and_resumed_they_train_as_one(runs, tmp_path):
    train(folder=tmp_path / "whole", method="dpo")
    same_run(runs[0] / "killed", tmp_path / "whole")
    training = read_jsonl(runs[0] / "killed/metrics.jsonl")
    assert len({(line["step"], line["split"]) for line in training}) == len(training)


def test_only_the_main_process_writes(runs):
    names = sorted(path.name for path in (runs[0] / "dpo").iterdir())
    expected = ["checkpoint", "metrics.jsonl", "reference.json", "samples.jsonl", "training.json"]
    assert names == expected


def test_an_error_in_one_process_ends_the_other(runs):
    home, codes, said, seconds = runs
    assert codes[0] and codes[1] == 1
    assert "the disk is full" in said[1] and seconds < 120
    assert not (home / "broken/checkpoint").exists()


# ---- from a config

CONFIG = """experiment: pair
stages:
  dpo:
    pipeline: preference
    parameters: {limit: 24, max_steps: 2, batch_size: 8, validation_limit: 8, sample_prompts: [],
                 learning_rate: 1.0e-4, device: cpu}
"""


@pytest.mark.slow
def test_a_config_with_two_processes_leaves_the_folder_of_one(tmp_path):
    config = write_text(tmp_path / "pair.yaml", CONFIG)
    one = run(config, ["experiment=one"], tmp_path, "quiet")["dpo"]
    two = run(config, ["experiment=two", "dpo.processes=2"], tmp_path, "quiet")["dpo"]
    same_run(two, one)
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in one.iterdir()
    )
    assert open_run(two).params.pop("processes") == 2


def test_an_error_in_one_kernel_ends_the_others_and_is_the_one_that_is_told(tmp_path):
    parameters = 'processes: int = 2 # kernels\noutput_dir: str = "" # given by the runner'
    failing = """import os, time
rank = int(os.environ["RANK"])
if rank == 1: raise ValueError("no space left")
time.sleep(100)"""
    write_pipeline(tmp_path / "fails.ipynb", parameters, failing)
    config = write_text(
        tmp_path / "fails.yaml", "experiment: fails\nstages: {only: {pipeline: fails.ipynb}}\n"
    )
    begin = time.monotonic()
    with pytest.raises(StageError, match="stage only: ValueError: no space left"):
        run(config, (), tmp_path, "quiet")
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_a_launcher_sets_the_processes_of_stages_that_train(tmp_path):
    config = write_text(tmp_path / "pair.yaml", CONFIG)
    # for GPUs `accelerate launch` starts this; on a CPU it starts one process, whatever it is told
    words = "torch.distributed.run --nproc_per_node 2 -m prefkit run"
    done = subprocess.run(
        [sys.executable, "-m", *words.split(), config, "--output-root", tmp_path],
        capture_output=True,
        text=True,
        cwd=project_root(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in 2 processes") == 1
    assert open_run(tmp_path / "pair/dpo").params["processes"] == 2


SLOW = {
    "sft": {"method": "sft"},
    "lora": {"method": "dpo", "lora": True, "lora_rank": 4},
    "ppo": {"method": "ppo", "minibatches": 2, "gradient_accumulation": 1},
    "grpo": {"method": "grpo"},
    "online_xpo": {"method": "online_xpo"},
}


@pytest.fixture(scope="module")
def slow_runs(tmp_path_factory):
    "The runs of SLOW by two processes, and one that three carry out, killed."
    home = tmp_path_factory.mktemp("slow")
    cases = [{**case, "folder": str(home / name)} for name, case in SLOW.items()]
    codes, said = together(cases, home / "cases.json")
    assert codes == [0, 0], said
    killed = {"method": "kto", "folder": str(home / "killed"), "kill_at": 3, **SAVED}
    codes, said = together([killed], home / "killed.json", 3)
    assert codes == [-9] * 3, said
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_two_processes_train_as_one_in_every_other_way(slow_runs, tmp_path, name):
    train(folder=tmp_path / name, **SLOW[name])
    same_run(slow_runs / name, tmp_path / name)


@pytest.mark.slow
def test_what_three_processes_began_one_ends(slow_runs, tmp_path):
    train(folder=tmp_path / "whole", method="kto")
    train(folder=slow_runs / "killed", method="kto", **SAVED)
    same_run(slow_runs / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_what_one_process_began_three_end(slow_runs, tmp_path):
    train(folder=tmp_path / "whole", **CASES["rloo"])
    begun = {**CASES["rloo"], "folder": str(tmp_path / "begun"), **SAVED}
    assert together([{**begun, "kill_at": 3}], tmp_path / "1.json", 1)[0] == [-9]
    codes, said = together([begun], tmp_path / "3.json", 3)
    assert codes == [0] * 3, said
    same_run(tmp_path / "begun", tmp_path / "whole")
