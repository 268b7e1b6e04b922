"""The page on the length penalty: table 1, SFT with and without it, DPO and RLOO on the way."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.invented import invented
from helpers.pages import check_page, draw_report, sections_of, words_of
from prefkit.core import project_root, write_json
from prefkit.report.length_penalty import (
    draw_table_1,
    peak_of,
    say_order,
    say_peak,
    benchmark_table,
)
from prefkit.report.standings import Standings, of_first_decoding

PAPER = yaml.safe_load((project_root() / "data/reported/length_penalty.yaml").read_text())
SHARES = {"base": 0.3, "instruct": 0.6, "sft_plain": 0.5, "sft_100": 0.5, "sft_10": 0.52}
SHARES |= {"sft": 0.55, "dpo": 0.7, "rloo_kl": 0.66, "rloo_ranks": 0.64}
MODELS = [name for name in SHARES if name != "instruct"]


def found_of(shares=SHARES, gold=(4.0, 4.5), bleu=20.0):
    imitated = {"nll": (3.0, 1.0), "loss": (3.0, 1.0), "length": (20.0, 14.0)}
    courses = {name: imitated for name in ("sft_plain", "sft_100", "sft_10", "sft")}
    courses["dpo"] = {"loss": (0.7, 0.5), "kl_k1": (0.0, 4.0)}
    online = {"reward": (0.0, 1.0), "reward_gold": gold, "kl_k1": (0.0, 2.0), "loss": (0.1, 0.2)}
    courses |= {"rloo_kl": online, "rloo_ranks": online}
    told = dict(
        bleu_1=40.0, bleu_2=30.0, bleu_4=bleu, perplexity=4.0, tokens=15.0, boilerplate=0.25
    )
    references = ("base", "instruct", "sft")
    return invented(shares, references, courses=courses, measures=dict.fromkeys(MODELS, told))


def table_of(**changes):
    found = found_of(**changes)
    names = {name: name for name in MODELS}
    return benchmark_table(found, Standings(of_first_decoding(found)), names, PAPER["table_1"])


def test_the_table_has_ours_beside_the_reports():
    table = table_of().set_index("model")
    assert abs(table.loc["dpo", "win_gold_mean"] - 0.6) < 0.02
    assert table.loc["dpo", "win_reported"] == 0.593 and table.loc["dpo", "bleu_4_reported"] == 19.7
    assert abs(table.loc["sft", "bleu_4_mean"] - 20) < 0.1
    assert np.isnan(table.loc["rloo_ranks", "win_reported"])  # ours alone
    assert (table["win_gold_low"] < table["win_gold_mean"]).all()
    assert say_order(table_of()).startswith("Best first by the gold reward: dpo 60 %")


def test_the_reports_numbers_have_no_interval_in_the_picture():
    fig = draw_table_1(table_of(), "Who wins against the instruct model", "tiny-instruct")
    reported = fig.data[fig.data["group"] == "the report"]
    assert len(reported) == 5 and (reported["low"] == reported["high"]).all()
    assert set(fig.data["group"]) == {"gold", "second", "the report"}


@pytest.mark.parametrize(
    "course, step, said",
    [
        ([4.0, 4.8, 4.4, 4.2], 10, "highest at step 10 of 30 and comes down from there: 0.60"),
        ([4.0, 4.2, 4.4, 4.8], 30, "highest at the end, at step 30"),
    ],
)
def test_the_peak_is_that_of_the_mean_over_seeds(course, step, said):
    seeds = {}
    for seed in range(3):
        lines = [
            {"step": 10 * place, "split": "validation", "reward_gold": value + 0.01 * seed}
            for place, value in enumerate(course)
        ]
        seeds[str(seed)] = {"training": {"rloo_kl": lines}}
    found, (fall, low, high) = peak_of(seeds, "rloo_kl", "reward_gold")
    assert found == step and fall == pytest.approx(max(course) - course[-1]) and low <= fall <= high
    assert said in say_peak(seeds, "rloo_kl", "reward_gold", "it")


def test_a_fall_within_chance_is_not_told():
    falls = {"0": -0.5, "1": 0.9, "2": 0.2}
    seeds = {
        seed: {
            "training": {
                "rloo_kl": [
                    {"step": step, "split": "validation", "reward_gold": value}
                    for step, value in ((0, 1.0), (10, 5.0), (20, 5.0 - fall))
                ]
            }
        }
        for seed, fall in falls.items()
    }
    assert "whether it comes down cannot be told" in say_peak(seeds, "rloo_kl", "reward_gold", "it")


@pytest.mark.parametrize("better", [True, False])
def test_the_page_follows_what_was_found(better, tmp_path):
    shares = SHARES | {"dpo": 0.7 if better else 0.5}
    found = found_of(
        shares, gold=(4.0, 4.5) if better else (4.5, 4.0), bleu=20.0 if better else 9.0
    )
    file, page = write_json(tmp_path / "found.json", found), tmp_path / "page"
    draw_report("length_penalty", results=str(file), output_dir=str(page))
    check_page(page, ["table_1", "figure_3", "lengths", "figure_4", "figure_5"])
    words = words_of(page)
    first = words.split("reward:")[1][:40]
    assert ("DPO" in first) == better
    assert ("highest at the end" in words) == better
    assert ("highest at step 0 of 100 and comes down" in words) != better
    assert ("20.0 [" in words) == better and ("9.0 [" in words) != better
    assert "61.1" in words and "penalty every 10 steps" in words and "dpo says it." in words
    saved = pd.read_csv(page / "tables/table_1.csv").set_index("model")
    assert (saved.loc["DPO", "win_gold_low"] > 0.5) == better
    assert "figure 5" in " ".join(sections_of(page)).lower()
    for slip in PAPER["slips"]:
        assert " ".join(slip["says"].split()) in words


def test_a_rate_that_was_evaluated_the_other_way_round_is_turned():
    found = SimpleNamespace(rates={("instruct", "base", "gold"): (0.75, 0.7, 0.875)})
    assert Standings.win(found, "base", "instruct") == pytest.approx((0.25, 0.125, 0.3))
    assert Standings.win(found, "instruct", "base") == (0.75, 0.7, 0.875)
