"""What pages say of numbers: verdicts at their borders, orders of models, words."""

import itertools
import math

import pytest
from hypothesis import given, strategies as st
from scipy.stats import spearmanr

from prefkit.core import write_text
from prefkit.report.claims import VERDICTS, Claim, exact_p, rank_correlation, sign, verdict
from prefkit.report.words import (
    called,
    config_words,
    counted,
    joined,
    judge_name,
    number,
    plain,
    say_estimate,
    signed,
)

HOLDS, FAILS, UNTOLD = VERDICTS[1], VERDICTS[-1], VERDICTS[0]


@pytest.mark.parametrize(
    "low, high, level, wanted",
    [
        (0.1, 0.2, 0.0, 1),
        (-0.2, -0.1, 0.0, -1),
        (0.0, 0.2, 0.0, 0),  # an interval that touches no difference is not apart from it
        (-0.2, 0.0, 0.0, 0),
        (0.3, 0.3, 0.0, 1),  # all seeds have one value
        (0.51, 0.6, 0.5, 1),
        (0.5, 0.6, 0.5, 0),
        (0.4, 0.49, 0.5, -1),
        (math.nan, math.nan, 0.0, 0),  # one seed has no interval
    ],
)
def test_a_sign_needs_the_whole_interval(low, high, level, wanted):
    assert sign(low, high, level) == wanted


@pytest.mark.parametrize(
    "intervals, side, wanted",
    [
        ([(0.1, 0.2), (0.3, 0.4)], 1, HOLDS),
        ([(0.1, 0.2), (0.0, 0.4)], 1, UNTOLD),  # one touches no difference
        ([(0.1, 0.2), (-0.4, -0.3)], 1, FAILS),  # one lies on the other side
        ([(-0.1, 0.2), (-0.4, -0.3)], 1, FAILS),
        ([(-0.2, -0.1)], -1, HOLDS),
        ([(0.1, 0.2)], -1, FAILS),
        ([(math.nan, math.nan)], 1, UNTOLD),
    ],
)
def test_a_claim_holds_where_every_interval_does(intervals, side, wanted):
    assert verdict([(low, low, high) for low, high in intervals], side) == wanted


def test_the_comparison_that_decides_stands_worst_for_the_claim():
    found = {("a", "x"): (0.3, 0.2, 0.4), ("b", "x"): (0.1, 0.05, 0.15), ("c", "x"): (1, 0, 2)}
    claim = Claim("a and b are better", "here", 1, (("a", "x"), ("b", "x")))
    assert claim.judge(found.get) == (HOLDS, ("b", "x"))
    assert Claim("all", "here", 1, tuple(found)).judge(found.get) == (UNTOLD, ("c", "x"))
    # below: all are against it, and the one that is farthest decides
    assert Claim("worse", "here", -1, tuple(found)).judge(found.get) == (FAILS, ("a", "x"))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=6))
def test_rank_correlation_is_spearmans_and_zero_without_an_order(pairs):
    theirs, ours = zip(*pairs)
    if len(set(theirs)) == 1 or len(set(ours)) == 1:
        assert rank_correlation(theirs, ours) == 0.0
    else:
        assert rank_correlation(theirs, ours) == pytest.approx(spearmanr(theirs, ours).statistic)


def test_exact_p_counts_every_order():
    theirs, ours = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]
    orders = [spearmanr(order, ours).statistic for order in itertools.permutations(theirs)]
    assert exact_p(theirs, ours) == pytest.approx(2 * sum(each > 0.999 for each in orders) / 24)
    assert exact_p([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 1.0


def test_words_of_numbers_and_lists():
    assert [joined([]), joined(["a"]), joined(["a", "b"])] == ["none", "a", "a and b"]
    assert joined(["a", "b", "c"]) == "a, b and c"
    assert (counted(1, "seed"), counted(0, "seed"), counted(3, "run")) == (
        "1 seed",
        "0 seeds",
        "3 runs",
    )
    assert (number(-0.25, 1), number(2, 0), signed(-0.5), signed(0.5)) == (
        "−0.2",
        "2",
        "−0.50",
        "+0.50",
    )
    assert signed(-0.0) == "+0.00"
    assert say_estimate((0.712, 0.68, 0.741), percent=True, digits=0) == "71 % [68, 74]"
    assert say_estimate((-0.5, math.nan, math.nan)) == "−0.50"
    assert say_estimate((0.5, math.nan, math.nan), percent=True, digits=1) == "50.0 %"


def test_names_of_models_judges_and_prompts():
    assert [called(name) for name in ("base", "orpo_v1_2", "sft_lora", "control", "dpo")] == [
        "base model",
        "ORPO V1.2",
        "SFT (LoRA)",
        "control",
        "DPO",
    ]
    assert judge_name("gold") == "the gold reward" and judge_name("x") == "the x judge"
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "why ?"},
        {"role": "assistant", "content": "so"},
    ]
    assert plain("why ?") == "why ?" and plain(turns) == "why ?\nso"


def test_the_head_of_a_config_is_told_without_its_commands(tmp_path):
    text = "# How it was\n# found.\n#    prefkit run x\n# And why.\nexperiment: x\n# not this\n"
    assert config_words(write_text(tmp_path / "x.yaml", text)) == "How it was found. And why."
