"""The page on XPO, IPO and synthetic pairs: the ladder, win rates by number of pairs, Countdown."""

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.invented import invented
from helpers.pages import check_page, draw_report, words_of
from prefkit.core import project_root, write_json
from prefkit.report.standings import of_first_decoding
from prefkit.report.xpo_ipo import (
    LOG_2,
    draw_ladder,
    draw_scaling,
    ladder_table,
    say_ladder,
    say_scaling,
    scaling_table,
    reported_scores,
    trial_table,
)

PAPER = yaml.safe_load((project_root() / "data/reported/xpo_ipo.yaml").read_text())
RUNGS = {"dpo_flat": "a small rate", "dpo": "a large rate"}
SHARES = {"sft": 0.6, "dpo_own": 0.6, "dpo_flat": 0.6, "dpo_rate": 0.64, "dpo": 0.68}
SHARES |= {"dpo_aligned": 0.7, "xpo": 0.67, "ipo": 0.66, "dpo_few": 0.62, "dpo_more": 0.7}
SHARES |= {"dpo_many": 0.72, "aligned_flat": 0.6, "xpo_01_flat": 0.6, "xpo_001_flat": 0.6}
SHARES["ipo_flat"] = 0.6


def course(loss, **more):
    return {"loss": loss, "reward_accuracy": (0.5, 0.6), "grad_norm": (3.0, 2.0)} | {
        "logratio_chosen": (0.0, -2.0),
        "logratio_rejected": (0.0, -3.0),
        **more,
    }


def found_of(falls=0.2, shares=SHARES):
    flat_loss, falling = (LOG_2, LOG_2 - 0.001), (LOG_2, LOG_2 - falls)
    flat = ("dpo_own", "dpo_flat", "aligned_flat")
    courses = {name: course(flat_loss) for name in flat}
    courses |= {name: course(falling) for name in ("dpo_rate", "dpo", "dpo_aligned")}
    courses |= {name: course(flat_loss, bonus=(-4.0, -5.0)) for name in ("xpo_01_flat",)}
    courses |= {"xpo_001_flat": course(flat_loss, bonus=(-0.4, -0.5))}
    courses |= {"ipo_flat": course((2500.0, 2490.0)), "sft": {"loss": (2.0, 0.8)}}
    return invented(shares, ("sft",), courses=courses)


def test_the_ladder_says_which_rungs_leave_log_2():
    table = ladder_table(found_of()["seeds"], RUNGS)
    assert table["loss_mean"].iloc[0] == pytest.approx(LOG_2, abs=0.02)
    said = say_ladder(table)
    assert said.endswith("of log 2 with a small rate; it falls with a large rate")
    flat = ladder_table(found_of(falls=0.0)["seeds"], RUNGS)
    assert say_ladder(flat) == "DPO's loss leaves log 2 on no rung"
    fig = draw_ladder(table, said)
    assert fig.data["row"].tolist() == list(RUNGS.values())
    np.testing.assert_allclose(fig.data["value"], table["loss_mean"])


def test_the_scaling_has_the_one_seed_hollow_and_in_its_place():
    found = of_first_decoding(found_of())
    once = of_first_decoding(invented({"sft": 0.6, "dpo_all": 0.75}, seeds=(5,)))
    pairs = {"dpo_few": 2400, "dpo_many": 19200}
    table = scaling_table(found, pairs, (once, "dpo_all", 61000))
    assert table["pairs"].tolist() == [2400, 19200, 61000]
    assert table["seeds"].tolist() == [5, 5, 1]
    assert table["gold_mean"].iloc[-1] == pytest.approx(0.65, abs=0.02)
    assert say_scaling(table).startswith("From 2,400 to 61,000 pairs")
    fig = draw_scaling(table, say_scaling(table))
    hollow = [line for ax in fig.axes for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert {tuple(line.get_xdata()) for line in hollow} == {(61000,)}
    assert scaling_table(found, pairs)["pairs"].tolist() == [2400, 19200]


def test_scores_stand_beside_ours_where_there_is_one():
    table = reported_scores(PAPER, {"dpo": ("a win rate", (0.6, 0.55, 0.65))}).set_index("model")
    row = table[table["pairs"] == "20,000"].iloc[0]
    assert (row["reported"], row["here"]) == ("0.0975", "60 % [55, 65]")
    assert table["here"].notna().sum() == 1 and len(table) == len(PAPER["scores"])


def search_of(kind, names):
    trials = [
        {"number": n, "state": "complete", "values": dict.fromkeys(names, n), "objective": n / 10}
        for n in range(3)
    ]
    trials.append({"number": 3, "state": "failed", "values": {}, "objective": None})
    objective = {"stage": kind, "column": "right", "direction": "maximize"}
    return {"command": f"prefkit search {kind}", "objective": objective, "trials": trials} | {
        "edges": {names[0]: "high"} if kind == "sft" else {}
    }


def test_trials_stand_the_best_first_without_those_that_failed():
    table = trial_table(search_of("sft", ["sft.learning_rate"]))
    assert table["learning rate"].tolist() == [2, 1, 0] and table["right"].iloc[0] == 0.2


def others(folder):
    "The other experiments and the searches, as files."
    pairs = {"loss": (LOG_2, 0.5)}
    shares = {"sft": 0.6, "dpo_own": 0.66, "dpo_synthetic": 0.7, "sft_synthetic": 0.64}
    courses = {name: pairs for name in ("dpo_own", "dpo_synthetic", "sft_synthetic")}
    files = {"synthetic": invented(shares, courses=courses)}
    files["all_pairs"] = invented({"sft": 0.6, "dpo_all": 0.75}, seeds=(5,))
    solvers = {"sft": 0.5, "sft_lora": 0.1, "rloo_shaped": 0.55, "rloo_exact": 0.6, "dpo": 0.58}
    courses = {name: {"loss": (2.0, 0.3)} for name in ("sft", "sft_lora")}
    files["countdown"] = invented(solvers, courses=courses)
    shapes = dict.fromkeys(("response", "conversation", "no_end", "no_system", "zephyr"), 0.5)
    files["chat"] = invented(shapes | {"zephyr": 0.6}, ("response",))
    for kind, names in (("sft", ["a.rate"]), ("lora", ["b.rate"]), ("rloo", ["c.rate", "c.k"])):
        write_json(folder / f"countdown_{kind}.json", search_of(kind, names))
    made = {name: str(write_json(folder / f"{name}.json", one)) for name, one in files.items()}
    return made | {"searches": str(folder)}


@pytest.mark.parametrize("whole", [True, False])
def test_the_page_follows_what_was_found(whole, tmp_path):
    file = write_json(tmp_path / "found.json", found_of(0.2 if whole else 0.0))
    given = others(tmp_path) if whole else {"searches": str(tmp_path)}
    if not whole:
        gone = ("synthetic", "all_pairs", "countdown", "chat")
        given |= {name: str(tmp_path / f"no_{name}.json") for name in gone}
    page = tmp_path / "page"
    draw_report("xpo_ipo", results=str(file), output_dir=str(page), **given)
    figures = ["ladder", "scaling", *(f"figure_{number}" for number in range(1, 7))]
    figures += ["figure_7", "synthetic", "figure_8", "solved", "chat"] if whole else []
    check_page(page, figures)
    words = words_of(page)
    assert ("leaves log 2 on no rung" in words) != whole
    assert ("Not on this page" in words) != whole
    assert ("Most answers are right where marks of turns" in words) == whole
    assert ("On an edge of the space: a.rate" in words) == whole
    assert ("The best is on no edge" in words) == whole
    assert "0.0975" in words and "dpo_many says it." in words
    scores = pd.read_csv(page / "tables/scores.csv")
    assert scores["here"].notna().sum() == (8 if whole else 4)
    for slip in PAPER["slips"]:
        assert " ".join(slip["says"].split()) in words
