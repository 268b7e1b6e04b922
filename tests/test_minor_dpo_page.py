"""The page on the MinorDPO report: figures under the report's numbers, texts that follow from what
the seeds have found.
"""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.invented import invented
from helpers.pages import check_page, draw_report, sections_of, words_of
from prefkit.core import ConfigError, project_root, write_json
from prefkit.report.minor_dpo import end_table, pair_runs, right_table, say_right_answers
from prefkit.report.replication import said_of_figure, seed_curve, stated_settings, slip_lines
from prefkit.report.standings import Standings, of_first_decoding
from prefkit.runs.config import load_config

CONFIG = project_root() / "data/configs/ledger/minor_dpo.yaml"
STAGES = {stage.name: stage.parameters for stage in load_config(CONFIG).stages}
RUNS = pair_runs(STAGES)
PAPER = yaml.safe_load((project_root() / "data/reported/minor_dpo.yaml").read_text())
SLOPES = {"dpo": (-3.0, -9.0), "minor_dpo": (1.0, -1.0), "dpop": (0.2, -0.5)}  # chosen, rejected


def found_of(right):
    "Results in which each method gives so many right answers; `right`: method -> share."
    shares = {"sft": 0.6} | {run.stage: right[run.method] for run in RUNS}
    courses = {}
    for run in RUNS:
        chosen, rejected = (slope * (1 + run.rate * 1e3) for slope in SLOPES[run.method])
        courses[run.stage] = {"logratio_chosen": (0, chosen), "logratio_rejected": (0, rejected)}
    return invented(shares, courses=courses)


EVEN = {"dpo": 0.4, "minor_dpo": 0.55, "dpop": 0.6}


def test_runs_are_told_apart_by_what_the_report_varies():
    assert len(RUNS) == 18 and len({(run.method, run.rate, run.beta) for run in RUNS}) == 18
    assert [run.beta for run in RUNS[:3]] == [0.02, 0.04, 0.2] and RUNS[0].method == "dpo"
    with pytest.raises(ConfigError, match="no stage with a beta"):
        pair_runs({"sft": {"pipeline": "sft"}})


def test_a_curve_is_the_mean_of_what_was_logged_and_the_margin_a_difference():
    seeds = found_of(EVEN)["seeds"]
    margin = seed_curve(seeds, RUNS[0].stage, "logratio_chosen", "m", minus="logratio_rejected")
    sides = [
        seed_curve(seeds, RUNS[0].stage, f"logratio_{side}", "s", split="validation")
        for side in ("chosen", "rejected")
    ]
    last = [side["value"].iloc[-1] for side in sides]
    ends = end_table(seeds, RUNS).iloc[0]
    np.testing.assert_allclose([ends["chosen"], ends["rejected"]], last)
    np.testing.assert_allclose(ends["margin"], last[0] - last[1])
    assert margin["value"].iloc[0] >= 0 and ends["margin_low"] < ends["margin"]
    of_seed = [one["training"][RUNS[0].stage][-1]["logratio_chosen"] for one in seeds.values()]
    np.testing.assert_allclose(ends["chosen"], np.mean(of_seed))


def test_right_answers_are_counted_setting_by_setting():
    table = right_table(Standings(of_first_decoding(found_of(EVEN))), RUNS)
    assert len(table) == 18 and (table["right_low"] <= table["right"]).all()
    assert "MinorDPO gives more right answers than DPO in 6 of 6" in say_right_answers(
        table, "minor_dpo", "dpo"
    )
    assert "in 0 of 6" in say_right_answers(table, "dpo", "dpop")


def test_what_the_report_says_is_quoted_with_its_place():
    assert "figure 6, section 4" in said_of_figure(PAPER, "figure_6")
    assert PAPER["figures"]["figure_6"]["says"] in said_of_figure(PAPER, "figure_6")
    bare = "“DPO rewards comparison with beta, learning_rate=1e - 6”"
    assert bare in said_of_figure(PAPER, "figure_2")
    table = stated_settings(PAPER, {"beta": [0.02, 0.2], "steps": 100}).set_index("setting")
    assert table.loc["beta", "here"] == "0.02, 0.2" and table.loc["model", "here"] == "–"
    assert table.loc["learning rate", "report"] == "1e-06, 1e-05 the two of all figures"
    assert table.loc["steps", "report"].startswith("3000 ") and len(table) == len(PAPER["settings"])
    assert len(slip_lines(PAPER)) == len(PAPER["slips"])


@pytest.mark.parametrize("right", [EVEN, {"dpo": 0.6, "minor_dpo": 0.5, "dpop": 0.3}])
def test_the_page_follows_what_was_found(right, tmp_path):
    file = write_json(tmp_path / "found.json", found_of(right))
    draw_report("minor_dpo", results=str(file), output_dir=str(tmp_path / "page"))
    page = tmp_path / "page"
    figures = ["figure_6", "figure_1", "log_ratios_dpo", "log_ratios_minor_dpo", "log_ratios_dpop"]
    check_page(page, figures)
    words, count = words_of(page), 6 if right["minor_dpo"] > right["dpo"] else 0
    assert f"MinorDPO gives more right answers than DPO in {count} of 6 settings" in words
    assert "chosen answers of held-out pairs end above the reference in 6 of 6 settings" in words
    assert "figures 2 and 3" in " ".join(sections_of(page)) and "Question 5?" in words
    assert "dpo_002_high says it." in words and "cut off" in words
    saved = pd.read_csv(page / "tables/right.csv")
    for method, share in right.items():
        assert abs(saved[saved["method"] == method]["right"].mean() - share) < 0.02
    for slip in PAPER["slips"]:
        assert " ".join(slip["found"].split()) in words
    assert json.loads(file.read_text())["command"] in words
