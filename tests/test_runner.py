"""The runner's bookkeeping: what stands in an experiment's folder after a kill, and what is to do.

Nothing is executed here; tests/test_runs.py runs toys from end to end.
"""

import os
import shutil
import subprocess

import pytest
from prefkit.runs.config import load_config
from prefkit.core import ConfigError, write_json, write_text
from prefkit.runs.fingerprints import fingerprints
from prefkit.runs.runner import (
    folder_state,
    git_state,
    is_done,
    located,
    open_run,
    prepare,
    promote,
    selected,
    settle,
    times_text,
    to_do,
)

from helpers.kills import instants
from helpers.toys import CONFIG, write_run, write_toy

# ---- a run folder is whole or not there


def names(home):
    return sorted(os.listdir(home))


def test_whatever_instant_a_promotion_is_killed_in_the_next_start_ends_it(tmp_path):
    "An old run `a` is to be replaced by a new one; settle leaves the new one and nothing else."

    def start(instant):
        home = tmp_path / str(instant)
        write_run(home / "a", {"stage": "1"})
        write_run(home / ".a.partial", {"stage": "2"})
        return home

    seen = []
    for home in instants(start, lambda home: promote(home, "a")):
        seen.append(names(home))
        settle(home, "a")
        assert names(home) == ["a"] and is_done(home / "a", "2")
    between_the_renames = [".a.old", ".a.partial"]
    assert [".a.partial", "a"] in seen and between_the_renames in seen and [".a.old", "a"] in seen
    assert seen[-1] == ["a"]


def test_a_settlement_that_is_killed_too_is_ended_by_the_next(tmp_path):
    def start(instant):
        home = tmp_path / f"{stage}-{instant}"
        shutil.copytree(killed, home)
        return home

    def begin(instant):
        home = tmp_path / "begin" / str(instant)
        write_run(home / "a", {"stage": "1"})
        write_run(home / ".a.partial", {"stage": "2"})
        return home

    places = list(instants(begin, lambda home: promote(home, "a")))
    for stage, killed in enumerate(places):
        for home in instants(start, lambda home: settle(home, "a")):
            settle(home, "a")
            assert names(home) == ["a"] and is_done(home / "a", "2")


def test_at_every_instant_one_whole_run_is_somewhere(tmp_path):
    "Neither the old nor the new numbers are ever only half there."

    def start(instant):
        home = tmp_path / str(instant)
        write_run(home / "a", {"stage": "1"}, "old")
        write_run(home / ".a.partial", {"stage": "2"}, "new")
        return home

    for home in instants(start, lambda home: promote(home, "a")):
        there = [path for path in (home / "a", home / ".a.partial") if path.exists()]
        values = [(path / "checkpoint" / "value.json").read_text() for path in there]
        assert values in (["old", "new"], ["new"])
        assert all(is_done(path) for path in there)


def test_a_run_that_was_put_away_is_taken_back_where_nothing_came_of_the_new_one(tmp_path):
    write_run(tmp_path / ".a.old", {"stage": "1"})
    settle(tmp_path, "a")
    assert names(tmp_path) == ["a"] and is_done(tmp_path / "a", "1")


def test_a_half_finished_run_is_left_alone(tmp_path):
    write_run(tmp_path / "a", {"stage": "1"})
    write_json(tmp_path / ".a.partial" / "stage.json", {"status": "running", "fingerprints": {}})
    settle(tmp_path, "a")
    assert names(tmp_path) == [".a.partial", "a"] and is_done(tmp_path / "a", "1")


def test_a_folder_is_done_when_its_run_json_says_so_and_has_the_fingerprint(tmp_path):
    assert not is_done(tmp_path) and folder_state(tmp_path) == {}
    write_text(tmp_path / "run.json", '{"status": "do')
    assert not is_done(tmp_path)
    write_run(tmp_path, {"stage": "1"})
    assert is_done(tmp_path) and is_done(tmp_path, "1") and not is_done(tmp_path, "2")


# ---- new, gone on with, or set aside

ONE, TWO = {"stage": "1", "parameters": "x"}, {"stage": "2", "parameters": "y"}


def test_of_two_half_finished_runs_one_waits_until_it_is_wanted(tmp_path):
    found = [prepare(tmp_path, "a", prints) for prints in (ONE, ONE, TWO, ONE)]
    assert found[0] == "runs"
    assert "attempt 2" in found[1]
    assert "set aside (parameters changed)" in found[2]
    assert "attempt 3" in found[3]
    assert names(tmp_path) == [".a.aside-2", ".a.partial"]
    assert folder_state(tmp_path / ".a.partial")["attempts"] == 3


def test_only_one_half_finished_run_is_kept_aside(tmp_path):
    for prints in (ONE, TWO, {"stage": "3", "parameters": "z"}):
        prepare(tmp_path, "a", prints)
    assert names(tmp_path) == [".a.aside-2", ".a.partial"]


def test_what_an_earlier_attempt_said_does_not_count_for_the_next(tmp_path):
    prepare(tmp_path, "a", ONE)
    for name in ("result.json", "progress.json", "trail.json"):
        write_json(tmp_path / ".a.partial" / name, {})
    prepare(tmp_path, "a", ONE)
    assert names(tmp_path / ".a.partial") == ["stage.json", "trail.json"]


def test_a_finished_run_that_is_out_of_date_says_why_it_runs_again(tmp_path):
    write_run(tmp_path / "a", ONE)
    assert prepare(tmp_path, "a", TWO) == "runs again (parameters changed)"
    assert is_done(tmp_path / "a", "1")  # kept until the new one is whole


def test_a_change_upstream_and_back_sets_a_half_done_stage_aside_and_takes_it_back(tmp_path):
    "Steps of `first` go from 20 to 21 and back while `second` is half done."
    config = write_toy(tmp_path)

    def found(steps):
        prints = fingerprints(load_config(config, [f"first.steps={steps}"]))
        return prepare(tmp_path, "second", prints["second"])

    assert found(20) == "runs"
    assert "set aside (upstream changed)" in found(21)
    assert "attempt 2" in found(20)


# ---- what is to do


@pytest.fixture
def finished(tmp_path):
    "A toy experiment, its folder with both stages finished, and their fingerprints."
    config = load_config(write_toy(tmp_path))
    prints = fingerprints(config)
    for name in prints:
        write_run(tmp_path / "toy" / name, prints[name])
    return config, tmp_path / "toy", prints


def stages_to_do(finished):
    return [stage.name for stage in to_do(*finished)[0]]


def test_what_is_done_is_not_to_do_even_without_a_checkpoint_that_nobody_reads(finished):
    assert to_do(*finished) == ([], set())
    shutil.rmtree(finished[1] / "first" / "checkpoint")
    assert to_do(*finished) == ([], set())


def test_a_checkpoint_that_is_gone_is_made_again_when_somebody_reads_it(finished):
    _, home, _ = finished
    shutil.rmtree(home / "second")
    assert stages_to_do(finished) == ["second"]
    shutil.rmtree(home / "first" / "checkpoint")
    assert stages_to_do(finished) == ["first", "second"]
    assert to_do(*finished)[1] == {"first"}


def test_a_changed_stage_is_to_do_with_all_that_read_it(finished):
    config, home, _ = finished
    changed = load_config(home.parent / "toy.yaml", ["first.steps=21"])
    assert stages_to_do((changed, home, fingerprints(changed))) == ["first", "second"]


def test_a_part_of_an_experiment_comes_with_what_it_needs(tmp_path):
    other = "  third:  {pipeline: train.ipynb}\n"
    config = load_config(write_toy(tmp_path, CONFIG + other))

    def kept(*only):
        return [stage.name for stage in selected(config, only).stages]

    assert kept() == ["first", "second", "third"]
    assert kept("first") == ["first"]
    assert kept("second") == ["first", "second"]
    assert kept("third", "first") == ["first", "third"]
    with pytest.raises(ConfigError, match="no stage `secnd`.*Did you mean `second`?"):
        selected(config, ("secnd",))


# ---- what a stage is given and leaves


def test_a_stages_name_becomes_the_path_of_its_checkpoint_however_deep_it_stands(tmp_path):
    given = {"sft": "stage:sft", "models": [{"base": "stage:dpo"}, "tiny"], "steps": [3], "x": None}
    assert located(given, tmp_path) == {
        "sft": str(tmp_path / "sft" / "checkpoint"),
        "models": [{"base": str(tmp_path / "dpo" / "checkpoint")}, "tiny"],
        "steps": [3],
        "x": None,
    }


def test_the_revision_is_the_one_that_git_names(root):
    if not (root / ".git").exists():
        pytest.skip("not a checkout of git")
    command = ["git", "-C", root, "rev-parse", "HEAD"]
    named = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert git_state()["revision"] == named
    assert isinstance(git_state()["dirty"], bool)


def test_without_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_ROOT", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == {"revision": None, "dirty": None}


def test_a_run_is_opened_with_its_parameters_lines_and_samples(tmp_path):
    write_run(tmp_path / "sft", ONE)
    write_text(tmp_path / "sft" / "params.yaml", "steps: 20\nstart: stage:first\n")
    write_text(tmp_path / "sft" / "metrics.jsonl", '{"step": 1, "loss": 0.5}\n')
    found = open_run(tmp_path / "sft")
    assert found.params == {"steps": 20, "start": "stage:first"}
    assert found.metrics["loss"].tolist() == [0.5] and found.samples == []
    with pytest.raises(ConfigError, match="no finished run. Run its experiment first"):
        open_run(tmp_path / "third")


def test_the_times_of_all_stages_add_up_and_stand_beside_what_passed():
    infos = {
        "sft": {"wall_seconds": 61.0, "start_seconds": 7.25},
        "dpo": {"wall_seconds": 95.0, "start_seconds": 6.5},
    }
    lines = [line.split() for line in times_text(infos, 101).splitlines()]
    assert [line[:2] for line in lines] == [
        ["sft", "1:01"],
        ["dpo", "1:35"],
        ["together", "2:36"],
        ["passed", "in"],
    ]
    assert lines[2][2] == "13.8" and lines[3][2] == "1:41"


def test_a_run_json_that_is_there_and_cannot_be_read_is_no_unfinished_run(tmp_path):
    (tmp_path / "run.json").mkdir()  # as good as a file that we may not read
    with pytest.raises(ConfigError, match="run.json: Is a directory. Make it readable"):
        is_done(tmp_path)
