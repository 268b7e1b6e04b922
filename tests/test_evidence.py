"""Whether a method works, as its lesson says it: from committed results, whatever they are."""

import json
import re

import pandas as pd
import pytest

from helpers.invented import invented
from prefkit.core import DataError, project_root, write_json
from prefkit.report.evidence import draw_evidence, evidence, say_evidence
from prefkit.report.figures import check_figure, use_style

SHARES = {"sft": 0.6, "control": 0.66, "dpo": 0.7, "ipo": 0.55}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr("prefkit.report.standings.resolve_path", lambda path: tmp_path / str(path))
    for name in ("seeds/toy", "seeds/online"):
        write_json(tmp_path / f"data/results/{name}.json", invented(SHARES, ("sft", "control")))


def test_it_is_the_win_rates_over_seeds(made):
    table = evidence("seeds/toy", "dpo", "ipo").set_index("model")
    assert table.loc["DPO", "sft_mean"] == pytest.approx(0.6, abs=0.02)
    assert table.loc["IPO", "control_mean"] == pytest.approx(0.39, abs=0.02)
    assert (table["seeds"] == 5).all() and (table["sft_low"] < table["sft_high"]).all()
    said = say_evidence(evidence("seeds/toy", "ipo", "dpo"))
    assert re.match(
        r"Over 5 seeds IPO wins 4\d % \[.*\] against SFT and 39 % .* on the chosen answers\. Its ",
        said,
    )
    assert re.search(r"right in \d+ % \[.*\], where SFT's are in \d+ %\.$", said)


def test_a_control_is_called_what_it_is_and_is_not_set_against_itself(made):
    assert "SFT for as many seconds more" in say_evidence(evidence("seeds/online", "dpo"))
    table = evidence("seeds/toy", "control")
    assert pd.isna(table.iloc[0].get("control_mean"))
    assert say_evidence(table).startswith("Over 5 seeds SFT on the chosen answers wins 56 %")


def test_the_picture_has_a_dot_for_each_and_keeps_the_rules(made):
    use_style()
    table = evidence("seeds/toy", "dpo", "control")
    fig = draw_evidence(table)
    assert check_figure(fig) == [] and len(fig.data) == 3
    assert fig.data["value"].tolist()[0] == table["sft_mean"].iloc[0]


def test_what_is_not_there_is_named(made):
    with pytest.raises(DataError, match="there is no model `kto`"):
        evidence("seeds/toy", "kto")
    with pytest.raises(DataError, match="seeds/none.json: no such results"):
        evidence("seeds/none", "kto")


LESSONS = sorted((project_root() / "nbs/lib").glob("*/*.ipynb"))
TOLD = [path for path in LESSONS if "## Does it work?" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("lesson", TOLD, ids=lambda path: path.stem)
def test_what_a_lesson_shows_is_what_the_results_say_now(lesson):
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    told = [place for place, text in enumerate(sources) if text.startswith("table = evidence(")]
    if not told:  # a picture of its own, from results over seeds as well
        assert re.search(r'read_results\("data/results/\w+/\w+\.json"\)', "\n".join(sources))
        return
    table = eval(sources[told[0]].split(" = ", 1)[1].split("\n")[0])
    shown = "".join("".join(one.get("text", "")) for one in cells[told[0]]["outputs"])
    assert shown.strip() == say_evidence(table)


def test_most_lessons_on_methods_show_it():
    assert len(TOLD) >= 14
