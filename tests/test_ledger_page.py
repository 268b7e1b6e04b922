"""The ledger's page: what stands on it is what the seeds have found, and changes with them."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from helpers.pages import check_page, draw_report, words_of
from prefkit.core import DataError, project_root
from prefkit.report.figures import check_figure, use_style
from prefkit.report.ledger import (
    CLAIM_LOOKS,
    claim_rows,
    count_table,
    draw_counts,
    draw_forest,
    say_correction,
    say_counts,
)
from prefkit.report.page import Link, Page
from prefkit.runs import ledger
from prefkit.runs.ledger import SITE, ledger_table, lesson_of, open_ledger, verdicts
from prefkit.stats.verdicts import judge_claim

CLAIMS = open_ledger()


def made_up(claims, seed=0):
    "Verdicts on five numbers a claim, drawn by chance."
    rng = np.random.default_rng(seed)
    found = {}
    for claim in claims:
        if claim.measures:
            values = rng.normal(rng.normal(0, 4) * claim.effect, claim.effect, 5)
            found[claim.id] = judge_claim(values, claim.says, claim.effect)
    return found


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        use_style()
        yield


FOUND = made_up(CLAIMS)
TABLE = ledger_table(CLAIMS, FOUND)


def test_every_claim_has_a_row_with_what_is_said_of_it():
    assert list(TABLE["id"]) == [claim.id for claim in CLAIMS] and set(TABLE["said"]) <= set(
        CLAIM_LOOKS
    )
    measured = TABLE[TABLE["mean"].notna()].set_index("id")
    assert set(measured.index) == set(FOUND)
    for name, verdict in FOUND.items():
        row = measured.loc[name]
        assert (row["mean"], row["alone"], row["n"]) == (verdict.mean, verdict.said, 5)
        assert row["said"] in (verdict.said, "cannot be told")
    assert (measured["said"] != measured["alone"]).any()  # all together tell less than each alone
    exact = TABLE[TABLE["id"].isin([claim.id for claim in CLAIMS if claim.exact])]
    assert len(exact) and set(exact["said"]) <= {"holds", "does not hold", "reversed"}
    bare = ledger_table(CLAIMS, dict.fromkeys(FOUND))
    assert (bare["said"] == "not run yet").sum() == len(FOUND)


def test_each_claim_leads_to_the_page_of_its_lesson():
    for claim, address in zip(CLAIMS, TABLE["address"]):
        lesson = lesson_of(claim).relative_to(project_root() / "nbs")
        assert address == f"{SITE}/{lesson.as_posix().removesuffix('.ipynb')}.html"


def test_counts_add_up_and_a_sentence_says_them():
    counts = count_table(TABLE).set_index("report")
    assert counts["claims"].sum() == 2 * len(CLAIMS) == 2 * counts.loc["all", "claims"]
    assert (counts.drop(columns="claims").sum(axis=1) == counts["claims"]).all()
    few = TABLE[TABLE["said"].isin(["holds", "reversed"])].groupby("said").head(1)
    assert "1 holds and 1 reversed" in say_counts(few)
    assert f"{(TABLE['said'] == 'holds').sum()} hold" in say_counts(TABLE)


def test_what_does_not_stand_together_is_counted():
    measured = TABLE[TABLE["alone"] != ""]
    changed = (measured["alone"] != measured["said"]).sum()
    assert f"{len(measured)} measured claims, {changed} had" in say_correction(TABLE)
    assert say_correction(ledger_table(CLAIMS, {})) == ""


def one(name, said, says, mean, effect=0.05, half=0.02):
    numbers = {"mean": mean, "low": mean - half, "high": mean + half, "effect": effect, "n": 5}
    return {"id": name, "claim": f"claim {name}", "said": said, "says": says, **numbers}


def test_the_claimed_side_is_on_the_right_and_the_surest_stand_above():
    rows = [
        one("a", "cannot be told", "above", 0.01),
        one("b", "holds", "above", 0.05),
        one("c", "holds", "below", -0.2),
        one("d", "reversed", "below", 0.1),
        one("e", "holds", "above", 900.0, effect=100.0, half=1500.0),
        {**one("f", "not run yet", "above", 0.0), "mean": math.nan},
    ]
    fig = draw_forest(pd.DataFrame(rows), "Where five claims lie")
    assert list(fig.data["id"]) == ["e", "c", "b", "d", "a"]
    assert list(fig.data["value"].round(6)) == [9.0, 4.0, 1.0, -2.0, 0.2]
    assert (fig.data["from"] <= fig.data["value"]).all()
    assert (fig.data["to"] >= fig.data["value"]).all() and not check_figure(fig)
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert labels == [f"claim {name}" for name in "ecbda"]
    with pytest.raises(DataError, match="nothing to draw"):
        draw_forest(pd.DataFrame(rows[-1:]), "None of them")


def test_the_bars_can_be_told_apart_without_colour():
    assert not check_figure(draw_counts(TABLE, "What became of the claims"))


def test_a_table_leads_to_lessons_and_escapes_what_it_shows():
    page = Page("A page")
    page.table(claim_rows(TABLE.head(1)))
    page.table(pd.DataFrame({"a": [Link("<b>", 'x"y'), Link("none", "")]}))
    text = page.html()
    assert f'<a href="{TABLE["address"][0]}">{TABLE["lesson"][0]}</a>' in text
    assert '<a href="x&quot;y">&lt;b&gt;</a>' in text and ">none<" in text


@pytest.mark.parametrize("seed", [None, 1])
def test_the_page_says_what_was_found_and_what_has_not_been_run(seed, tmp_path, monkeypatch):
    if seed is not None:
        monkeypatch.setattr(ledger, "verdicts", lambda claims: made_up(claims, seed))
    found = ledger.verdicts(CLAIMS)
    table = ledger_table(CLAIMS, found)
    draw_report("ledger", output_dir=str(tmp_path))
    reports = dict.fromkeys(table[table["mean"].notna()]["report"])
    check_page(tmp_path, ["counts", *(f"forest_{name}" for name in reports)])
    words = words_of(tmp_path)
    assert say_counts(table) in words and (say_correction(table) or say_counts(table)) in words
    for claim in CLAIMS:
        assert claim.claim in words
        if claim.untestable:
            assert claim.untestable in words
    lacking = (table["said"] == "not run yet").sum()
    assert ("prefkit ledger --run" in words) and (f"{lacking} claims of" in words) == bool(lacking)
    saved = pd.read_csv(tmp_path / "tables/ledger.csv")
    assert list(saved["said"]) == list(table["said"])
    np.testing.assert_allclose(saved["mean"], table["mean"])


def test_the_verdicts_of_the_page_are_the_ledgers():
    assert set(verdicts(CLAIMS)) == set(FOUND)
