"""A stage: one writer at a time, a bar that is seen from outside, a result that says where it ran.

Kernels are started in tests/test_runs.py: there stages fail, are killed, and are run twice at once.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from prefkit.report.standings import of_world
from prefkit.runs import stage
from prefkit.runs.config import write_pipeline
from prefkit.core import ConfigError, project_root, write_json, write_text
from prefkit.runs.stage import (
    Display,
    StageLock,
    Watch,
    clock,
    finish,
    imported_modules,
    only_imports,
    output_folder,
    progress_line,
    seconds_to_start,
)

# ---- one writer at a time


def refused(path):
    "Whether a lock is refused at once."
    try:
        StageLock(path, wait=0).__enter__()
    except ConfigError:
        return True
    return False


def test_a_lock_names_its_holder_and_is_free_afterwards(tmp_path):
    with StageLock(tmp_path / "a.lock"):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            StageLock(tmp_path / "a.lock", wait=0).__enter__()
    assert not refused(tmp_path / "a.lock")


def test_a_lock_outlives_its_holder_for_as_long_as_a_child_that_inherited_it(tmp_path):
    "The holder dies by SIGKILL; its child holds what it was given until it is told to end."
    parent = f"""
import os, signal, subprocess
from prefkit.runs.stage import StageLock
wait = ["sh", "-c", "while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"]
with StageLock("{tmp_path}/b.lock") as lock:
    subprocess.Popen(wait, pass_fds=(lock.handle,))
    os.kill(os.getpid(), signal.SIGKILL)"""
    try:
        done = subprocess.run([sys.executable, "-c", parent], cwd=project_root())
        assert done.returncode == -signal.SIGKILL
        assert refused(tmp_path / "b.lock")
    finally:
        (tmp_path / "go").write_text("")
    with StageLock(tmp_path / "b.lock"):
        pass


def test_what_a_stage_starts_in_the_background_does_not_hold_its_lock(tmp_path):
    "The kernel makes the lock uninheritable: a server left running would keep the stage closed."
    servers = []
    try:
        for inheritable in (True, False):
            with StageLock(tmp_path / f"{inheritable}.lock") as lock:
                os.set_inheritable(lock.handle, inheritable)
                servers.append(subprocess.Popen(["sleep", "30"], close_fds=False))
        assert refused(tmp_path / "True.lock")
        assert not refused(tmp_path / "False.lock")
    finally:
        for server in servers:
            server.kill()
            server.wait()


# ---- saying how far it is


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (5, "0:05"), (59.6, "1:00"), (62, "1:02"), (7384, "2:03:04")]
)
def test_a_duration_is_shown_as_a_clock_shows_it(seconds, text):
    assert clock(seconds) == text


def test_the_time_left_is_reckoned_from_what_was_done_since_we_looked():
    "250 steps in 50 seconds: the 350 that are left take 70."
    state = {"label": "training", "done": 350, "total": 700, "note": "loss 0.61"}
    line = progress_line("sft [2/4]", state, first=100, seconds=50)
    assert line == "sft [2/4] training 350/700, 1:10 left, loss 0.61"
    assert "left" not in progress_line("sft [2/4]", state, first=350, seconds=50)
    unknown = {"label": "starting", "done": 0, "total": 0, "note": ""}
    assert progress_line("sft [2/4]", unknown, first=0, seconds=50) == "sft [2/4] starting"


def test_a_watch_draws_what_the_stage_says_and_adds_its_time_to_earlier_ones(tmp_path, capsys):
    write_json(tmp_path / "stage.json", {"seconds": 60.0, "attempts": 2})
    with Watch(tmp_path, "sft [2/4]", Display("lines", every=0.2)) as watch:
        for done in (10, 20):
            state = {"label": "training", "done": done, "total": 700, "note": ""}
            write_json(tmp_path / "progress.json", state)
            time.sleep(0.6)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"sft \[2/4\] training 20/700, .* left", lines[-1])
    stored = json.loads((tmp_path / "stage.json").read_text())
    assert 61 <= stored["seconds"] <= round(watch.seconds(), 1) < 75
    assert stored["attempts"] == 2


def test_a_quiet_watch_says_nothing(tmp_path, capsys):
    write_json(tmp_path / "stage.json", {"seconds": 0.0})
    write_json(tmp_path / "progress.json", {"label": "x", "done": 1, "total": 2, "note": ""})
    display = Display("quiet", every=0.0)
    with Watch(tmp_path, "sft", display):
        time.sleep(0.4)
    display.say("done")
    assert capsys.readouterr() == ("", "")


# ---- what it costs to begin


@pytest.mark.parametrize(
    "source, only",
    [
        ("import os\nfrom math import pi", True),
        ("import os # needed", True),
        ("import os\nos.getcwd()", False),
        ("%pip list", False),
    ],
)
def test_a_cell_that_only_imports_is_known(source, only):
    assert only_imports(source) == only


def test_the_start_ends_with_the_first_cell_that_does_something(tmp_path):
    def at(second, **more):
        return {"papermill": {"start_time": f"2026-01-01T00:00:{second:02}"}, **more}

    cells = [
        ("steps = 3", at(2, tags=["parameters"])),
        ("steps = 4", at(3, tags=["injected-parameters"])),
        ("assert steps", at(4, tags=["check"])),
        ("import os", at(5)),
        ("os.getcwd()", at(9)),
        ("print(1)", at(30)),
    ]
    book = {
        "metadata": at(1),
        "cells": [
            {"cell_type": "code", "source": [source], "metadata": metadata}
            for source, metadata in cells
        ],
    }
    assert seconds_to_start(write_json(tmp_path / "book.json", book)) == 8


def test_the_modules_of_a_notebook_are_those_its_cells_import_at_their_top(tmp_path):
    cells = (
        "import json, os",
        "def f():\n    import wave",
        "%magic\nimport math",
        "from os import sep",
    )
    book = write_pipeline(tmp_path / "a.ipynb", "x: int = 1", *cells)
    assert imported_modules(book) == ["json", "os"]


# ---- what a stage says at its end


def test_a_result_says_what_came_out_and_where_it_ran(tmp_path):
    folder = output_folder(str(tmp_path / "sft"), "sft")
    result = finish(folder, metrics={"loss": 0.61}, data={"rows": 3})
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["metrics"] == {"loss": 0.61} and result["data"] == {"rows": 3}
    assert result["peak_memory_mb"] > 10 and result["threads"] >= 1
    assert {"python", "torch", "transformers", "papermill"} <= result["versions"].keys()


def test_by_hand_a_pipeline_writes_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    folder = output_folder("", "sft")
    assert folder.is_dir() and folder.parent == tmp_path / "cache" / "by-hand"
    assert folder.name.startswith("sft-")


def test_an_output_folder_that_cannot_be_made_is_an_error_of_the_config(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output_dir .*Choose a folder"):
        output_folder(str(tmp_path / "file" / "below"), "sft")


def test_a_package_that_is_not_there_is_named_without_a_version(monkeypatch):
    monkeypatch.setattr(stage, "PACKAGES", ("torch", "no-such-package"))
    found = stage.versions()
    assert found["torch"] and found["no-such-package"] is None


def test_results_say_with_which_pairs_of_the_tiny_world_they_were_made():
    before = {"versions": {"torch": "2"}}
    assert of_world({"versions": stage.versions()}) == "best of four"
    assert of_world(before) == "two answers of one answerer (before 2026-11-29)"


@pytest.mark.parametrize("said, tries", [("zmq.error: Address already in use", 4), ("No", 1)])
def test_a_kernel_whose_port_was_taken_is_started_again(said, tries, tmp_path, monkeypatch):
    import papermill

    began = []

    def starts(*_, **__):
        began.append(said)
        write_text(tmp_path / "kernel.log", said)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", starts)
    notebook = write_pipeline(tmp_path / "a.ipynb", "x: int = 1")
    with pytest.raises(RuntimeError, match="Kernel died"):
        stage.in_kernel(notebook, tmp_path / "run.ipynb", {}, "stage a", 0, {})
    assert len(began) == tries
