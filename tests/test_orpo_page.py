"""The page on the ORPO paper: ORPO head to head, log-probs, likeness, as found by the seeds."""

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.invented import invented
from helpers.pages import check_page, draw_report, sections_of, words_of
from prefkit.core import project_root, write_json
from prefkit.report.orpo import (
    duel_table,
    likeness_table,
    rounds_table,
    say_ahead,
    say_duel,
)
from prefkit.report.replication import draw_spreads
from prefkit.report.standings import Standings, of_first_decoding

PAPER = yaml.safe_load((project_root() / "data/reported/orpo.yaml").read_text())
SHARES = {"sft": 0.6, "sft_chosen": 0.55, "dpo": 0.7, "orpo_01": 0.58, "orpo_05": 0.6}
SHARES |= {"orpo_1": 0.65, "ratio_1": 0.6, "orpo_after": 0.66}
TRAINED = ("sft_chosen", "orpo_01", "orpo_05", "orpo_1", "ratio_1", "orpo_after", "dpo")


def found_of(shares=SHARES, rises=1.5):
    ends = {"logps_chosen": (-8.0, -6.0), "logps_rejected": (-9.0, -9.5)}
    courses = {stage: ends | {"log_odds_ratio": (0.2, rises)} for stage in TRAINED}
    likeness = {"dpo": (0.80, 0.60), "orpo_1": (0.89, 0.52), "orpo_after": (0.85, 0.55)}
    references = ("sft", "sft_chosen", "dpo")
    return invented(shares, references, courses=courses, likeness=likeness)


def standings_of(shares=SHARES):
    return Standings(of_first_decoding(found_of(shares)))


def online_of():
    shares = {"sft": 0.6, "ppo": 0.62, "orpo": 0.7}
    return invented(shares, ("sft", "ppo"), judges=("gold", "second", "small", "large"))


def small_of():
    shares = {"sft_chosen": 0.55, "dpo": 0.6, "ppo": 0.58, "orpo_1": 0.65}
    made = invented(shares, ("sft_chosen", "dpo", "ppo"), judges=("gold", "large"), seeds=(5, 6, 7))
    for one in made["seeds"].values():
        rounds = [row | {"decoding": f"round_{n}"} for row in one["win_rates"] for n in (1, 2, 3)]
        one["win_rates"] = [
            row | {"rate": row["rate"] + 0.01 * int(row["decoding"][-1])} for row in rounds
        ]
    return made


def test_rounds_are_averaged_within_a_seed_and_their_spread_is_told():
    table = rounds_table(small_of(), "orpo_1", {"dpo": "DPO"}).set_index("judge")
    assert table.loc["gold", "win rate"] == pytest.approx(0.5 + 0.05 + 0.02, abs=0.02)
    assert table["sd of rounds"].tolist() == pytest.approx([0.01, 0.01])
    assert table["rounds"].tolist() == [3, 3] and table["seeds"].tolist() == [3, 3]


def test_a_duel_is_over_seeds_with_the_range_that_is_reported():
    others = {"sft_chosen": "SFT", "dpo": "DPO"}
    table = duel_table(standings_of(), "orpo_1", others, {"dpo": [41.7, 70.9, 50.5]})
    gold = table[table["judge"] == "gold"].set_index("against")
    assert abs(gold.loc["SFT", "win rate"] - 0.6) < 0.02 and gold.loc["DPO", "win rate"] < 0.5
    assert gold.loc["DPO", "reported (%)"] == "41.7 to 70.9"
    assert pd.isna(gold.loc["SFT", "reported (%)"])
    assert say_ahead(table) == "ORPO wins against 1 of 2, by the gold reward"
    assert (table["low"] < table["win rate"]).all() and set(table["seeds"]) == {5}
    assert "against SFT" in say_duel(table) and "46 %" in say_duel(table)


def test_likeness_and_spreads_are_means_over_seeds():
    found = found_of()
    table = likeness_table(found, {"dpo": "DPO", "orpo_1": "ORPO"}).set_index("model")
    values = [row["per_input"] for one in found["seeds"].values() for row in one["texts"]]
    np.testing.assert_allclose(table.loc["DPO", "per_input_mean"], np.mean(values[::3]))
    fig = draw_spreads(found["seeds"], ["dpo", "orpo_1"], "gold", "How rewards are distributed")
    median = fig.data.query("model == 'dpo' and share == 50")["score"].item()
    own = [row["q50"] for one in found["seeds"].values() for row in one["spreads"]]
    of_dpo = [value for value, row in zip(own, _rows(found)) if row == ("dpo", "gold")]
    np.testing.assert_allclose(median, np.mean(of_dpo))
    assert set(fig.data["share"]) == set(range(0, 101, 5))


def _rows(found):
    return [(r["model"], r["judge"]) for one in found["seeds"].values() for r in one["spreads"]]


@pytest.mark.parametrize("better, ppo", [(True, True), (False, False)])
def test_the_page_follows_what_was_found(better, ppo, tmp_path):
    shares = SHARES | {"orpo_1": 0.65 if better else 0.45}
    file = write_json(tmp_path / "found.json", found_of(shares, 1.5 if better else -1.0))
    online, small = tmp_path / "online.json", tmp_path / "small.json"
    if ppo:
        write_json(online, online_of())
        write_json(small, small_of())
    page = tmp_path / "page"
    draw_report(
        "orpo", results=str(file), online=str(online), small=str(small), output_dir=str(page)
    )
    figures = ["tables_2_and_3", "figure_3", "figure_5", "figure_7", "figure_8", "figure_9"]
    check_page(page, figures + ["figure_11"] * ppo)
    words = words_of(page)
    table = duel_table(standings_of(shares), "orpo_1", {"sft_chosen": "SFT on chosen answers"}, {})
    assert say_duel(table).split(", by")[0].removeprefix("ORPO wins ") in words
    assert ("A second size is missing" in words) != ppo
    assert ("SFT and PPO" in words) and ("PPO is missing" in words) != ppo
    assert f"from 0.20 to {'1.' if better else '-'}" in words
    assert "figure 3" in " ".join(sections_of(page)).lower() and "orpo_1 says it." in words
    assert "0.8909" in words and "table 4" in words
    saved = pd.read_csv(page / "tables/duels.csv")
    assert (saved.query("against == 'SFT on chosen answers'")["win rate"] > 0.5).all() == better
    for slip in PAPER["slips"]:
        assert " ".join(slip["says"].split()) in words
