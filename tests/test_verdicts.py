"""Verdicts on claims from one number per seed, against scipy and by drawing seeds."""

import numpy as np
import pytest
from scipy import stats

from prefkit.core import ConfigError, DataError
from prefkit.stats.intervals import smallest_detectable
from prefkit.stats.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    REVERSED,
    benjamini_yekutieli,
    judge_claim,
    judge_together,
    seeds_needed,
)


@pytest.mark.parametrize(
    "values, says, said",
    [
        ([0.10, 0.12, 0.11, 0.09, 0.10], "above", HOLDS),
        ([0.10, 0.12, 0.11, 0.09, 0.10], "below", REVERSED),
        ([-0.10, -0.12, -0.11, -0.09, -0.1], "below", HOLDS),
        ([-0.10, -0.12, -0.11, -0.09, -0.1], "above", REVERSED),
        ([0.001, -0.002, 0.0, 0.002, 0.001], "above", FAILS),  # what there may be does not matter
        ([0.2, -0.2, 0.1, -0.1, 0.05], "above", OPEN),
        ([0.001, -0.002, 0.0, 0.002, 0.001], "same", HOLDS),
        ([0.02, 0.021, 0.019, 0.02, 0.02], "same", HOLDS),  # a difference, and too small to matter
        ([0.10, 0.12, 0.11, 0.09, 0.10], "same", FAILS),
        ([0.2, -0.2, 0.1, -0.1, 0.05], "same", OPEN),
        ([-0.3, -0.2, -0.25, -0.3, -0.2], "at most", HOLDS),
        ([0.01, 0.012, 0.011, 0.01, 0.01], "at most", HOLDS),
        ([0.10, 0.12, 0.11, 0.09, 0.10], "at most", FAILS),
        ([0.2, -0.2, 0.1, -0.1, 0.05], "at most", OPEN),
        ([0.1, 0.1, 0.1], "above", HOLDS),  # seeds that agree to the last digit
        ([0.0, 0.0, 0.0], "same", HOLDS),
    ],
)
def test_what_is_said(values, says, said):
    assert judge_claim(values, says, 0.05).said == said


def test_p_values_are_those_of_students_t():
    values = [0.02, 0.05, -0.01, 0.06, 0.03]
    found = judge_claim(values, "above", 0.05)
    ours = stats.ttest_1samp(values, 0.0)
    assert found.p == pytest.approx(ours.pvalue)
    low, high = ours.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    lower = stats.ttest_1samp(values, -0.1, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, 0.1, alternative="less").pvalue
    assert judge_claim(values, "same", 0.1).p == pytest.approx(max(lower, upper))
    assert found.detectable == pytest.approx(smallest_detectable(np.std(values, ddof=1), 5))


def test_a_method_against_itself_differs_in_one_case_of_twenty():
    rng = np.random.default_rng(0)
    said = [judge_claim(rng.normal(0, 0.02, 5), "above", 0.05).said for _ in range(4000)]
    told = sum(one in (HOLDS, REVERSED) for one in said) / len(said)
    assert abs(told - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5


def test_an_effect_of_the_detectable_size_is_found_four_times_in_five():
    rng = np.random.default_rng(1)
    size = smallest_detectable(0.02, 5)
    found = [judge_claim(rng.normal(size, 0.02, 5), "above", 0.05).said for _ in range(2000)]
    assert abs(found.count(HOLDS) / 2000 - 0.8) < 0.04
    needed = seeds_needed(0.02, 0.05)
    assert smallest_detectable(0.02, needed) <= 0.05 < smallest_detectable(0.02, needed - 1)


def test_a_claim_of_several_comparisons_holds_where_each_does():
    good = judge_claim([0.10, 0.12, 0.11], "above", 0.05)
    better = judge_claim([0.30, 0.31, 0.305], "above", 0.05)
    nothing = judge_claim([0.2, -0.2, 0.1], "above", 0.05)
    bad = judge_claim([-0.10, -0.12, -0.11], "above", 0.05)
    both = judge_together([good, better])
    assert both.said == HOLDS and both.p == good.p > better.p
    assert judge_together([good, nothing]).said == OPEN
    worst = judge_together([good, nothing, bad])
    assert worst.said == FAILS and worst.p == pytest.approx(3 * bad.p) and worst.mean == bad.mean
    assert judge_together([bad]).said == REVERSED


@pytest.mark.parametrize("seed", range(5))
def test_benjamini_and_yekutieli_equal_scipys(seed):
    rng = np.random.default_rng(seed)
    p = np.concatenate([rng.uniform(0, 1, 60), rng.uniform(0, 1e-3, 20)])
    adjusted = stats.false_discovery_control(p, method="by")
    assert benjamini_yekutieli(p, 0.05) == [bool(one <= 0.05) for one in adjusted]
    assert benjamini_yekutieli([]) == []


@pytest.mark.parametrize("values", [[0.1], [], [0.1, float("nan")]])
def test_too_few_seeds_or_no_number_is_refused(values):
    with pytest.raises(DataError, match="two or more seeds"):
        judge_claim(values, "above", 0.05)


def test_a_side_or_an_effect_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="says"):
        judge_claim([0.1, 0.2], "more", 0.05)
    with pytest.raises(ConfigError, match="effect"):
        judge_claim([0.1, 0.2], "above", 0.0)
    with pytest.raises(DataError, match="between 0 and 1"):
        benjamini_yekutieli([0.1, 1.2])
