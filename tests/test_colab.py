"The notebooks for Colab, run as they stand, on the tiny model."

import json
import re
import sys
from pathlib import Path

import papermill
import pytest
from helpers.tools import tool

from prefkit.runs.plan import plan

ROOT = Path(__file__).resolve().parents[1]
COLAB = sorted((ROOT / "nbs/colab").glob("[!._]*.ipynb"))
SMALL = ["sft.limit=96", "sft.validation_limit=8", "dpo.limit=64", "dpo.validation_limit=8"]
GIVEN = {
    "sft_to_dpo": {
        "config": "data/configs/tiny/demo.yaml",
        "settings": [*SMALL, "evaluate.prompts=8"],
    },
    "comparison_l4": {
        "config": "data/configs/tiny/demo.yaml",
        "settings": [*SMALL, "evaluate.prompts=8"],
        "only": ["dpo"],
    },
    "your_own_data": {},
}


def test_every_notebook_that_is_opened_by_itself_installs_what_it_needs(capsys):
    colab = tool("colab")
    assert colab.main(check=True) == 0, capsys.readouterr().out
    names = {path.relative_to(ROOT / "nbs").as_posix() for path in colab.notebooks()}
    assert {"index.ipynb", "lib/losses/21_dpo.ipynb", "pipelines/sft.ipynb"} <= names
    assert "google.colab" in colab.cell_source() and "transformers==" in colab.cell_source()
    notebook = {"cells": [{"cell_type": "markdown", "source": ["# T"]}]}
    once = colab.with_cell(notebook, "#| eval: false\n" + colab.MARK)
    assert len(once["cells"]) == 2 and colab.with_cell(once, colab.MARK + "x") is once
    assert once["cells"][1]["source"] == [colab.MARK + "x"]  # an old one is replaced


@pytest.mark.parametrize("there", ["nothing", "the clone, after a restart", "within the clone"])
def test_the_cell_ends_in_the_clone_wherever_it_begins(there, tmp_path, monkeypatch):
    asked = []

    def run(words, check):
        asked.append(words)
        if "clone" in words:
            (tmp_path / "prefkit").mkdir()
            (tmp_path / "prefkit/settings.ini").touch()

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    if there != "nothing":
        run(["clone"], True)
        asked.clear()
    monkeypatch.chdir(tmp_path / "prefkit" if there == "within the clone" else tmp_path)
    exec(tool("colab").cell_source(), {})
    assert Path.cwd() == tmp_path / "prefkit"
    expected = {"nothing": ["git", sys.executable], "within the clone": []}
    assert [words[0] for words in asked] == expected.get(there, [sys.executable])


def test_every_one_is_run():
    assert {path.stem for path in COLAB} == set(GIVEN)


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_it_runs_from_top_to_bottom_and_a_second_time_skips_what_is_done(name, tmp_path):
    given = {**GIVEN[name], "runs": str(tmp_path / "drive"), "devices": ["this", "T4"]}

    def run(out):
        path, out = str(ROOT / f"nbs/colab/{name}.ipynb"), str(tmp_path / out)
        return papermill.execute_notebook(path, out, given, progress_bar=False, cwd=str(tmp_path))

    made = run("first.ipynb")  # the folder it runs in is not the checkout
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("drive/*/*/run.json")}
    assert {path.parent.name for path in done} >= {"sft", "dpo"}
    printed = "".join(
        output.get("text", "") for cell in made.cells for output in cell.get("outputs", ())
    )
    assert re.search(r"^dpo +T4 ", printed, re.M), "the plan"
    if name == "sft_to_dpo":
        run("second.ipynb")
        assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.mark.slow
def test_their_figures_are_those_of_the_plan():
    "Each says what is planned; the numbers come from the configs that they run."

    def head(name):
        cells = json.loads((ROOT / f"nbs/colab/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        return "".join(cells[0]["source"])

    def planned(config, device):
        found, _ = plan(ROOT / config, devices=(device,))
        most, seconds = (max(one.total for one in found), sum(map(seconds_of, found)))
        assert all(one.fits for one in found)
        return most / 2**30, found[0].room / 2**30, seconds

    def seconds_of(one):
        return one.steps * one.step_seconds

    most, room, seconds = planned("data/configs/colab/sft_to_dpo.yaml", "T4")
    assert f"{most:.1f} GiB of a T4's {room:.1f} GiB" in head("sft_to_dpo")
    assert f"{seconds / 60:.0f} minutes of training" in head("sft_to_dpo")
    most, room, seconds = planned("data/configs/l4/comparison.yaml", "L4")
    said = f"at most {most:.1f} of an L4's {room:.1f} GiB, and some {seconds / 3600:.0f} hours"
    assert said in head("comparison_l4"), said
