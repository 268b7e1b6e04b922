"""`make reports`: pages of committed results, and what is said where there are none."""

import json
import re

import pytest

from helpers.tools import tool

reports = tool("reports")


def test_every_page_without_run_folders_is_drawn():
    folder = reports.ROOT / "nbs/reports"
    by_runs = {
        file.stem
        for file in folder.glob("*.ipynb")
        if re.search(r"^runs_dir:", reports.parameters_of(file), re.M)
    }
    assert {file.stem for file in folder.glob("*.ipynb")} - by_runs == set(reports.PAGES)


def test_the_results_are_those_that_the_notebook_names():
    for name, (parameter, _) in reports.PAGES.items():
        found = reports.results_of(name)
        assert (found is None) == (not parameter)
        if found:
            text = reports.parameters_of(reports.ROOT / f"nbs/reports/{name}.ipynb")
            assert str(found.relative_to(reports.ROOT)) in text


def test_a_page_without_results_is_left_out_and_the_command_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reports, "results_of", lambda name: reports.ROOT / "data/results/none.json")
    assert reports.draw_all(tmp_path, ("offline",)) == 0
    said = capsys.readouterr().out
    assert "data/results/none.json is missing" in said and "prefkit seeds" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_page_is_drawn_by_papermill(tmp_path):
    assert reports.draw_all(tmp_path, ("ledger",)) == 0
    assert (tmp_path / "ledger/report.html").is_file()
    notebook = json.loads((tmp_path / "ledger/report.ipynb").read_text(encoding="utf-8"))
    assert notebook["metadata"]["papermill"]["exception"] is None
