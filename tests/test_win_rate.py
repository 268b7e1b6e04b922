"""Win rates and what is built on them: counts, intervals and their coverage where the truth is
known, the A/A test, power, seeds, refusals.

Coverage is counted over 2,000 simulated experiments: the count's own standard error is half a
point, so [93, 97] % is four of them.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from prefkit.runs import seeds
from prefkit.core import ConfigError, DataError
from prefkit.stats.intervals import mean_interval, pooled_spread, smallest_detectable, wilson
from prefkit.stats.win_rate import (
    Estimate,
    hierarchical_interval,
    outcomes,
    over_seeds_interval,
    paired_bootstrap,
    preference_rate,
    prompts_needed,
    score_difference,
    win_rate,
    win_rate_difference,
)

DRAWS = 2000
# true win rate, share of ties
TIES = [
    (0.5, 0.0),
    (0.5, 0.2),
    (0.5, 0.5),
    (0.7, 0.0),
    (0.7, 0.2),
    (0.7, 0.5),
    (0.9, 0.0),
    (0.9, 0.1),
    (0.05, 0.0),
    (0.05, 0.05),
]
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def from_counts(wins, ties, losses, **more):
    return win_rate(
        [1] * wins + [0] * ties + [0] * losses, [0] * (wins + ties) + [1] * losses, **more
    )


def holds(found, truth):
    return found.low <= truth <= found.high


def covers(found, truth):
    return np.mean([holds(one, truth) for one in found])


def good(share):
    return 0.93 <= share <= 0.97


def trinomial(n, rate, ties):
    "Every (wins, ties, losses) of n prompts with its probability."
    counts = np.array(
        [
            (wins, n - wins - losses, losses)
            for wins in range(n + 1)
            for losses in range(n + 1 - wins)
        ]
    )
    chance = scipy.stats.multinomial.pmf(counts, n, [rate - ties / 2, ties, 1 - rate - ties / 2])
    return counts[chance > 1e-9], chance[chance > 1e-9]


# The win rate


def test_counts_and_rate_with_ties_as_half():
    found = win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 4.0, 2.0])
    assert (found.wins, found.ties, found.n, found.rate) == (2, 1, 4, 0.625)
    assert outcomes([3.0, 1.0, 2.0, math.inf], [1.0, 1.0, 4.0, math.inf]).tolist() == [
        1,
        0.5,
        0,
        0.5,
    ]


def test_results_are_plain_numbers_that_json_can_hold():
    table = np.arange(6.0).reshape(2, 3) ** 2
    for found in (
        win_rate(map(int, [3, 1, 2]), iter([1, 1, 4])),
        preference_rate([0.2, 1, 0]),
        score_difference([1, 2, 4], [1, 1, 1]),
        win_rate_difference([1, 2], [2, 2], [1, 3]),
        over_seeds_interval([1, 2]),
        hierarchical_interval(table),
        paired_bootstrap(np.mean, [1.0, 2.0, 5.0]),
    ):
        again = json.loads(json.dumps(found.to_dict()))
        assert again == found.to_dict() and all(
            type(value) in (int, float) for value in found.to_dict().values()
        )
        assert str(found).count(".") >= 3 and f"n = {found.n}" in str(found)


def test_wilson_agrees_with_scipy():
    for wins, n in ((0, 10), (3, 10), (57, 100), (100, 100)):
        oracle = scipy.stats.binomtest(wins, n).proportion_ci(method="wilson")
        assert wilson(wins / n, n) == pytest.approx((oracle.low, oracle.high), abs=1e-6)
        assert wilson(wins / n, n, scipy.stats.norm.ppf(0.995)) == pytest.approx(
            tuple(scipy.stats.binomtest(wins, n).proportion_ci(0.99, "wilson")), abs=1e-9
        )


def test_levels_nest_and_99_is_wider_by_the_ratio_of_quantiles():
    inner, outer = from_counts(400, 200, 400), from_counts(400, 200, 400, level=0.99)
    assert (outer.high - outer.low) / (inner.high - inner.low) == pytest.approx(
        scipy.stats.norm.ppf(0.995) / scipy.stats.norm.ppf(0.975), rel=0.01
    )


@pytest.mark.parametrize("rate, ties", TIES)
def test_win_rate_covers_the_truth_in_2000_draws(rate, ties):
    counts = np.random.default_rng(0).multinomial(
        200, [rate - ties / 2, ties, 1 - rate - ties / 2], size=DRAWS
    )
    assert good(covers([from_counts(*row) for row in counts], rate))


@pytest.mark.parametrize("rate, ties", TIES)
def test_win_rate_covers_the_truth_by_exact_enumeration(rate, ties):
    counts, chance = trinomial(100, rate, ties)
    held = [holds(from_counts(*row), rate) for row in counts]
    assert good(chance @ held)


def test_wilson_with_ties_as_half_is_too_wide_by_exact_enumeration():
    found = {}
    for ties in (0.0, 0.2, 0.5):
        counts, chance = trinomial(100, 0.5, ties)
        bounds = np.array([wilson((wins + tied / 2) / 100, 100) for wins, tied, _ in counts])
        found[ties] = chance @ ((bounds[:, 0] <= 0.5) & (0.5 <= bounds[:, 1]))
    assert found[0.0] < 0.96 and 0.965 < found[0.2] < 0.98 and found[0.5] > 0.99


def tango(wins, losses, n, z=1.959964):
    """Score interval of a difference of paired proportions (Tango 1998, Statistics in Medicine
    17:891), as a win rate: an independent way to the same thing.
    """

    def statistic(difference):
        b, c = 2 * n, (2 * n - wins + losses) * difference - wins - losses
        share = (math.sqrt(c * c + 4 * b * losses * difference * (1 - difference)) - c) / (2 * b)
        return (wins - losses - n * difference) / math.sqrt(
            n * (2 * share + difference * (1 - difference))
        )

    middle = (wins - losses) / n
    return [
        (1 + brentq(lambda difference: statistic(difference) - target, *ends)) / 2
        for target, ends in ((z, (-1 + 1e-9, middle)), (-z, (middle, 1 - 1e-9)))
    ]


@pytest.mark.parametrize(
    "wins, ties, losses",
    [(60, 0, 40), (500, 200, 300), (300, 400, 300), (880, 40, 80), (45, 10, 945), (150, 700, 150)],
)
def test_agrees_with_tangos_score_interval(wins, ties, losses):
    n, found = wins + ties + losses, from_counts(wins, ties, losses)
    assert [found.low, found.high] == pytest.approx(
        tango(wins, losses, n), abs=0.05 * (found.high - found.low) if ties else 1e-6
    )


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_interval_holds_the_rate_and_is_symmetric(wins, ties, losses):
    if wins + ties + losses == 0:
        return
    found, swapped = from_counts(wins, ties, losses), from_counts(losses, ties, wins)
    assert (
        0 <= found.low <= found.rate + 1e-12
        and found.rate - 1e-12 <= found.high <= 1
        and found.low < found.high
    )
    assert math.isclose(found.low, 1 - swapped.high, abs_tol=1e-9)


def test_ties_make_the_interval_narrower_than_wilson_with_half_wins():
    found, (low, high) = from_counts(300, 400, 300), wilson(0.5, 1000)
    assert 0.75 < (found.high - found.low) / (high - low) < 0.8  # sqrt(1 - 0.4) = 0.775


# Soft preferences


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=100))
def test_hard_preferences_are_the_win_rate(won):
    found, oracle = (
        preference_rate(won),
        from_counts(won.count(1.0), won.count(0.5), won.count(0.0)),
    )
    assert (found.rate, found.low, found.high, found.n) == (
        oracle.rate,
        oracle.low,
        oracle.high,
        oracle.n,
    )


@given(SHARES)
def test_soft_interval_holds_the_rate_and_is_symmetric(shares):
    found, other = preference_rate(shares), preference_rate([1 - share for share in shares])
    assert 0 <= found.low <= found.rate + 1e-12 and found.rate - 1e-12 <= found.high <= 1
    assert found.low == pytest.approx(1 - other.high, abs=1e-9) and math.isnan(
        found.standard_error
    ) == (len(shares) == 1)


@pytest.mark.parametrize(
    "a, b, n",
    [
        (0.03, 0.57, 200),
        (0.06, 0.54, 100),
        (0.54, 0.06, 100),
        (0.5, 0.5, 50),
        (5, 2, 50),
        (0.2, 0.8, 100),
    ],
)
def test_soft_preferences_cover_the_truth_with_skew(a, b, n):
    drawn = np.random.default_rng(1).beta(a, b, size=(DRAWS, n))
    assert good(covers(map(preference_rate, drawn), a / (a + b)))


REAL = (
    Path(os.environ["PREFKIT_REAL_DATA"]) / "alpaca_eval"
    if os.environ.get("PREFKIT_REAL_DATA")
    else None
)
needs_real = pytest.mark.skipif(
    REAL is None, reason="PREFKIT_REAL_DATA is not set: AlpacaEval's files are not there"
)


def real_preferences(name):  # 1 = baseline, 2 = model; 0 or 1.5 = tie
    return pd.read_csv(REAL / "models" / f"{name}.csv")["preference"].replace(0, 1.5) - 1


@needs_real
def test_win_rate_and_standard_error_of_alpaca_eval_are_the_published():
    published = pd.read_csv(REAL / "published.csv").set_index("model")
    assert len(published) == 8
    for name, line in published.iterrows():
        found = preference_rate(real_preferences(name))
        assert (100 * found.rate, 100 * found.standard_error) == pytest.approx(
            (line["win_rate"], line["standard_error"]), abs=1e-6
        ) and found.n == line["n_rows"]


@needs_real
@pytest.mark.parametrize("name", ["alpaca-7b", "claude-2", "NullModel"])
def test_real_preferences_drawn_anew_cover_their_mean(name):
    shares = real_preferences(name).to_numpy()
    drawn = np.random.default_rng(3).choice(shares, size=(DRAWS, 200))
    assert good(covers(map(preference_rate, drawn), shares.mean()))


# Two models on the same prompts


def correlated_scores(rng, draws, n, ties, ahead=0.0):
    """Scores of a model, another and a reference: prompts have their difficulty, scores are rounded
    so that the wanted share of prompts ties.
    """
    hard, own = rng.normal(size=(draws, n)), rng.normal(size=(3, draws, n))
    step = {0.0: 1e-9, 0.2: 0.7, 0.5: 1.95}[ties]
    return [
        np.round((hard + own[place] + lift) / step) for place, lift in enumerate((ahead, 0.0, 0.0))
    ]


@pytest.mark.parametrize("ties", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("ahead", [0.0, 1.5])
def test_win_rate_difference_covers_the_truth_at_0_20_and_50_percent_ties(ties, ahead):
    model, other, reference = correlated_scores(np.random.default_rng(5), 100, 8000, ties, ahead)
    truth = np.mean(
        outcomes(model.ravel(), reference.ravel()) - outcomes(other.ravel(), reference.ravel())
    )
    assert abs(np.mean(other == reference) - ties) < 0.04
    drawn = correlated_scores(np.random.default_rng(6), DRAWS, 100, ties, ahead)
    assert good(covers(map(win_rate_difference, *drawn), truth))


def test_win_rate_difference_is_the_difference_of_win_rates_and_swaps_its_sign():
    model, other, reference = np.random.default_rng(2).integers(0, 4, size=(3, 90))
    found, swapped = (
        win_rate_difference(model, other, reference),
        win_rate_difference(other, model, reference),
    )
    assert found.value == pytest.approx(
        win_rate(model, reference).rate - win_rate(other, reference).rate
    )
    assert (found.value, found.low, found.high) == pytest.approx(
        (-swapped.value, -swapped.high, -swapped.low)
    )
    difference = outcomes(model, reference) - outcomes(other, reference)
    assert found.standard_error == pytest.approx(scipy.stats.sem(difference)) and (
        found.high - found.low
    ) / found.standard_error == pytest.approx(2 * 1.96, rel=0.05)


def test_win_rate_difference_of_all_ties_stays_open_and_inside():
    nothing = win_rate_difference([1.0] * 50, [1.0] * 50, [1.0] * 50)
    assert (
        nothing.value == 0
        and nothing.low == pytest.approx(-nothing.high)
        and 0.01 < nothing.high < 0.06
    )
    most = win_rate_difference([2.0] * 50, [0.0] * 50, [1.0] * 50)  # always wins against never wins
    assert most.value == 1 and most.high == 1 and 0.8 < most.low < 1
    rare = [
        holds(win_rate_difference(row, np.zeros(50), np.zeros(50)), 0.0)
        for row in np.random.default_rng(0).choice(
            [-1, 0, 1], p=[0.01, 0.98, 0.01], size=(DRAWS, 50)
        )
    ]
    assert np.mean(rare) >= 0.93  # most of these samples show no difference at all


SKEWED = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0, 30),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0, 30),
    "minus exponential": (lambda rng, size: -rng.exponential(size=size), -1.0, 50),
    "chi-square, one degree": (lambda rng, size: rng.chisquare(1, size), 1.0, 50),
    "log-normal": (lambda rng, size: rng.lognormal(0, 1, size), math.exp(0.5), 500),
    "nine of ten the same": (
        lambda rng, size: (rng.random(size) < 0.1) * rng.choice([-1.0, 3.0], size),
        0.1,
        150,
    ),
    "right or wrong": (
        lambda rng, size: rng.choice([-4.5, 0.0, 0.8, 4.5], size, p=[0.1, 0.5, 0.2, 0.2]),
        0.61,
        50,
    ),
}


@pytest.mark.parametrize("name", SKEWED)
def test_score_difference_covers_the_truth_with_skew(name):
    draw, truth, n = SKEWED[name]
    rng = np.random.default_rng(4)
    other = np.round(rng.normal(size=(DRAWS, n)), 3)
    assert good(covers(map(score_difference, draw(rng, (DRAWS, n)) + other, other), truth))


def test_students_interval_would_not_cover_skewed_scores():
    drawn = np.random.default_rng(4).exponential(size=(DRAWS, 30))
    low, high = scipy.stats.t.interval(
        0.95, 29, loc=drawn.mean(1), scale=scipy.stats.sem(drawn, axis=1)
    )
    assert np.mean((low <= 1) & (1 <= high)) < 0.935
    hall = np.array(
        [
            (found.low, found.high)
            for found in (score_difference(row, np.zeros(30)) for row in drawn)
        ]
    )
    # both tails alike
    assert (
        np.mean(high < 1) > 1.5 * np.mean(hall[:, 1] < 1)
        and abs(np.mean(hall[:, 1] < 1) - np.mean(hall[:, 0] > 1)) < 0.025
    )


def test_score_difference_without_skewness_is_students_interval():
    half = np.random.default_rng(0).normal(size=20)
    difference = np.concatenate([1 + half, 1 - half])
    found, oracle = (
        score_difference(difference, np.zeros(40)),
        scipy.stats.ttest_1samp(difference, 0).confidence_interval(0.95),
    )
    assert (found.low, found.high) == pytest.approx(
        tuple(oracle), abs=1e-9
    ) and found.standard_error == pytest.approx(scipy.stats.sem(difference))


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_score_difference_inverts_halls_transformation(level):
    difference = np.random.default_rng(1).exponential(size=40)
    found, n = score_difference(difference, np.zeros(40), level=level), 40
    skewness = scipy.stats.skew(difference)

    # Hall 1992: the statistic whose distribution is Student's up to the next order
    def hall(truth):
        s = (difference.mean() - truth) / difference.std(ddof=1)
        return math.sqrt(n) * (
            s + skewness * s**2 / 3 + skewness**2 * s**3 / 27 + skewness / (6 * n)
        )

    quantile = scipy.stats.t.ppf((1 + level) / 2, n - 1)
    assert (hall(found.low), hall(found.high)) == pytest.approx((quantile, -quantile), rel=1e-9)


def test_score_difference_of_constant_and_single_differences():
    scores = np.random.default_rng(0).integers(0, 8, size=60) / 2
    for gap in (0.0, 0.5, -2.0):
        found = score_difference(scores + gap, scores)
        assert (found.value, found.low, found.high, found.standard_error) == (gap, gap, gap, 0)
    one = score_difference([3.0], [1.0])
    assert (
        one.value == 2
        and math.isnan(one.low)
        and math.isnan(one.high)
        and math.isnan(one.standard_error)
    )
    nearly = score_difference(np.full(50, 0.1) + 0.2, np.full(50, 0.3))  # equal but for rounding
    assert abs(nearly.low) < 1e-12 and abs(nearly.high) < 1e-12


@given(
    st.lists(st.integers(-20, 20), min_size=3, max_size=40), st.floats(0.1, 10), st.floats(-5, 5)
)
def test_score_difference_moves_and_stretches_with_the_scores(differences, factor, shift):
    zeros, values = np.zeros(len(differences)), np.array(differences, dtype=float)
    found, moved, turned = (
        score_difference(values, zeros),
        score_difference(factor * values + shift, zeros),
        score_difference(zeros, values),
    )
    assert found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high
    assert (moved.low, moved.high) == pytest.approx(
        (factor * found.low + shift, factor * found.high + shift), rel=1e-6, abs=1e-6
    )
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), rel=1e-6, abs=1e-6)


# The paired bootstrap


def mean_gap(a, b, axis=-1):
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)


def test_bootstrap_is_seeded_and_paired():
    a, noise = np.random.default_rng(0).normal(size=(2, 80))
    found = paired_bootstrap(mean_gap, a + 1, a, repetitions=500)
    # unpaired it would be some 0.6 wide
    assert found.value == pytest.approx(1) and found.high - found.low < 1e-9
    first, again, other = (
        paired_bootstrap(mean_gap, a + noise, a, repetitions=500, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again and first != other and first.low == pytest.approx(other.low, abs=0.1)


def test_percentiles_against_every_resample_of_four_prompts():
    values = np.array([0.0, 1.0, 3.0, 10.0])
    every = np.array(np.meshgrid(*[values] * 4)).reshape(4, -1).mean(0)  # all 4^4
    found = paired_bootstrap(np.mean, values, repetitions=20000, method="percentile", level=0.8)
    # a step of the distribution
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.1, 0.9])), abs=0.26)
    assert found.standard_error == pytest.approx(every.std(), rel=0.03) and found.n == 4


def test_bca_by_efrons_formula():
    values = np.random.default_rng(5).exponential(size=40)
    found = paired_bootstrap(np.mean, values, repetitions=4000, seed=7)
    # other resamples, the same law
    drawn = np.random.default_rng(11).choice(values, size=(40000, 40)).mean(1)
    bias = scipy.stats.norm.ppf(np.mean(drawn < values.mean()))
    # of a mean the jackknife gives this (Efron 1987)
    acceleration = scipy.stats.skew(values) / (6 * math.sqrt(40))
    z = bias + np.array([-1.96, 1.96])
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(drawn, scipy.stats.norm.cdf(bias + z / (1 - acceleration * z)))),
        abs=0.05 * (found.high - found.low),
    )
    percentile = paired_bootstrap(np.mean, values, repetitions=4000, seed=7, method="percentile")
    # moved towards the long tail
    assert found.low > percentile.low and found.high > percentile.high


def test_bootstrap_takes_statistics_with_and_without_axis():
    a, b = np.random.default_rng(0).normal(3, 1, size=(2, 50))
    plain = lambda a, b: np.median(a) / np.median(b)
    fast = lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis)
    slow, quick = (
        paired_bootstrap(plain, a, b, repetitions=300, method="percentile"),
        paired_bootstrap(
            lambda a, b, axis=-1: fast(a, b, axis), a, b, repetitions=300, method="percentile"
        ),
    )
    assert slow == quick


@pytest.mark.parametrize("method, draws", [("BCa", DRAWS), ("percentile", 500)])
def test_bootstrap_covers_a_paired_difference_with_ties_and_skew(method, draws):
    rng = np.random.default_rng(8)
    gaps = rng.choice([-1.0, 0.0, 0.0, 3.0], size=(draws, 60))  # half ties
    other = rng.normal(size=(draws, 60))
    assert good(
        covers(
            [
                paired_bootstrap(mean_gap, b + gap, b, repetitions=250, method=method)
                for gap, b in zip(gaps, other)
            ],
            0.5,
        )
    )


def test_bootstrap_of_a_constant_is_a_point():
    found = paired_bootstrap(mean_gap, [2.0] * 30, [1.5] * 30, repetitions=200)
    assert (found.value, found.low, found.high, found.standard_error) == (0.5, 0.5, 0.5, 0)


# The A/A test


@pytest.fixture(scope="module")
def world():
    """Gold rewards (prompts, answers): of each prompt of the tiny world 12 answers of one and the
    same writer.
    """
    import random
    from prefkit.data.world import World, answer, gold_reward, prompts

    rng = random.Random(0)
    return np.array(
        [
            [gold_reward(request.text, answer(World(), request, rng)).total for _ in range(12)]
            for request in prompts("validation")[:150]
        ]
    )


def sampled(world, rng, *shape):  # fresh answers to (..., n) prompts, and the prompts
    asked = rng.integers(0, len(world), size=shape)
    return lambda: world[asked, rng.integers(0, 12, size=shape)]


@pytest.mark.parametrize(
    "what", ["win_rate", "preference_rate", "win_rate_difference", "score_difference"]
)
def test_a_model_against_itself_is_rejected_at_the_nominal_rate(world, what):
    new = sampled(world, np.random.default_rng(1), DRAWS, 150)
    if what == "win_rate":
        found, even = [win_rate(*pair) for pair in zip(new(), new())], 0.5
    if what == "preference_rate":
        found, even = [preference_rate(1 / (1 + np.exp(b - a))) for a, b in zip(new(), new())], 0.5
    if what == "win_rate_difference":
        found, even = [win_rate_difference(*three) for three in zip(new(), new(), new())], 0.0
    if what == "score_difference":
        found, even = [score_difference(*pair) for pair in zip(new(), new())], 0.0
    assert 0.03 <= 1 - covers(found, even) <= 0.07
    # wins and losses alike
    assert (
        0.01 <= np.mean([one.low > even for one in found]) <= 0.04
        and 0.01 <= np.mean([one.high < even for one in found]) <= 0.04
    )


@pytest.mark.parametrize("count", [3, 5])
def test_a_method_against_itself_over_seeds_is_rejected_at_the_nominal_rate(world, count):
    new = sampled(world, np.random.default_rng(2), DRAWS, count, 60)
    difference = new() - new()
    assert 0.03 <= 1 - covers([over_seeds_interval(one.mean(1)) for one in difference], 0.0) <= 0.07
    assert 0.03 <= 1 - covers(map(hierarchical_interval, difference), 0.0) <= 0.07


# Seeds


def test_over_seeds_is_students_interval_and_the_one_place_for_it():
    values = [0.51, 0.58, 0.62]
    oracle = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    found = over_seeds_interval(values)
    assert (
        (found.low, found.high) == pytest.approx(oracle)
        and found.n == 3
        and found.standard_error == pytest.approx(scipy.stats.sem(values))
    )
    assert mean_interval([*values, math.nan]) == (found.value, found.low, found.high)
    assert seeds.mean_over_seeds(values) == {
        "mean": found.value,
        "low": found.low,
        "high": found.high,
        "seeds": 3,
    }
    alone = over_seeds_interval([0.6])
    assert alone.value == 0.6 and math.isnan(alone.low) and math.isnan(alone.high)
    assert over_seeds_interval([0.5, 0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 0.0, 3)


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("ties", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("rate, spread", [(0.5, 0.05), (0.72, 0.02), (0.72, 0.0)])
def test_few_seeds_cover_the_truth(count, ties, rate, spread):
    rng = np.random.default_rng(count)
    chance = rng.normal(rate, spread, size=(DRAWS, count))
    wins = (
        rng.binomial(400, np.clip(chance - ties / 2, 0, 1))
        + rng.binomial(400, ties, size=chance.shape) / 2
    )
    assert good(covers(map(over_seeds_interval, wins / 400), rate))


def bootstrap_over_seeds(table, rng, resamples=400):
    """Cluster bootstrap of (draws, seeds, prompts): seeds drawn with replacement, then prompts
    within each; percentiles.
    """
    draws, count, n = table.shape
    wins = table.sum(2)
    chosen = np.take_along_axis(
        wins[None].repeat(resamples, 0),
        rng.integers(0, count, size=(resamples, draws, count)),
        axis=2,
    )
    return np.quantile(rng.binomial(n, chosen / n).mean(2) / n, [0.025, 0.975], axis=0)


def test_a_cluster_bootstrap_over_three_seeds_covers_only_about_77_percent():
    rng = np.random.default_rng(0)
    table = rng.random((DRAWS, 3, 500)) < rng.normal(0.6, 0.08, size=(DRAWS, 3, 1))
    low, high = bootstrap_over_seeds(table, rng)
    assert 0.74 <= np.mean((low <= 0.6) & (0.6 <= high)) <= 0.80
    lowest, highest = table.mean(2).min(1), table.mean(2).max(1)
    # 1 - 2 (1/2)^3: all three on one side
    assert abs(np.mean((lowest <= 0.6) & (0.6 <= highest)) - 0.75) < 0.03
    assert good(covers(map(over_seeds_interval, table.mean(2)), 0.6))


# standard deviation of seeds, prompts, rest
COMPONENTS = [
    (0.0, 1.0, 1.0),
    (0.0, 0.0, 1.0),
    (0.05, 1.0, 1.0),
    (0.1, 0.3, 1.0),
    (0.3, 1.0, 1.0),
    (1.0, 1.0, 1.0),
    (0.1, 1.0, 0.2),
]


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("parts", COMPONENTS)
def test_hierarchical_interval_covers_the_truth_whichever_part_rules(count, parts):
    rng = np.random.default_rng(10)
    of_seeds, of_prompts, rest = (
        rng.normal(0, deviation, size=shape) if deviation else 0.0
        for deviation, shape in zip(parts, ((DRAWS, count, 1), (DRAWS, 1, 80), (DRAWS, count, 80)))
    )
    assert good(covers(map(hierarchical_interval, of_seeds + of_prompts + rest), 0.0))


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("ties", [0.0, 0.2, 0.5])
def test_hierarchical_interval_covers_win_rates_where_t_over_seeds_does_not(count, ties):
    rng = np.random.default_rng(4)
    decided = rng.random((DRAWS, count, 100)) >= ties
    chance = (
        0.7
        + rng.choice([-0.29, 0.29], size=(DRAWS, 1, 100))
        + np.clip(rng.normal(0, 0.01, size=(DRAWS, count, 1)), -0.01, 0.01)
    )
    table = np.where(decided, rng.random(decided.shape) < chance, 0.5)
    truth = 0.5 + 0.2 * (1 - ties)
    assert good(covers(map(hierarchical_interval, table), truth))
    assert covers([over_seeds_interval(one.mean(1)) for one in table], truth) < 0.93


# in the first seeds rule, in the second the prompts, in the third hardly anything
@pytest.mark.parametrize("of_seeds, of_prompts", [(1.0, 1.0), (0.2, 1.5), (0.0, 0.5)])
def test_hierarchical_interval_is_the_two_way_analysis_of_variance(of_seeds, of_prompts):
    draw = np.random.default_rng(0).normal
    table = draw(size=(4, 30)) + of_seeds * draw(size=(4, 1)) + of_prompts * draw(size=(1, 30))
    # dummy variables; residuals of nested least squares
    rows, columns = np.repeat(np.eye(4), 30, axis=0), np.tile(np.eye(30), (4, 1))

    def left(design):
        return (
            (table.ravel() - design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]) ** 2
        ).sum()

    rest = left(np.hstack([rows, columns]))
    seeds_square, prompts_square = (left(columns) - rest) / 3, (left(rows) - rest) / 29
    more = max(prompts_square - rest / 87, 0)
    freedom = (seeds_square + more) ** 2 / (seeds_square**2 / 3 + more**2 / 29)
    half, alone = (
        scipy.stats.t.ppf(0.975, freedom) * math.sqrt((seeds_square + more) / 120),
        over_seeds_interval(table.mean(1)),
    )
    found = hierarchical_interval(table)
    assert found.standard_error == pytest.approx(
        math.sqrt((seeds_square + more) / 120)
    ) and found.value == pytest.approx(table.mean())
    assert (found.high - found.low) / 2 == pytest.approx(max(half, (alone.high - alone.low) / 2))
    if of_prompts == 1.5:
        assert half > (alone.high - alone.low) / 2


@given(st.integers(2, 5), st.integers(2, 8), st.integers(0, 10**6))
def test_hierarchical_interval_is_never_narrower_than_over_seeds(count, n, seed):
    table = np.random.default_rng(seed).choice([0, 0.5, 1], size=(count, n))
    wide, narrow = hierarchical_interval(table), over_seeds_interval(table.mean(1))
    assert (
        wide.value == pytest.approx(narrow.value)
        and wide.high - wide.low >= narrow.high - narrow.low - 1e-9
        and wide.n == count
    )


def test_hierarchical_interval_of_equal_values_is_a_point():
    assert hierarchical_interval(np.full((3, 20), 0.5)) == Estimate(0.5, 0.5, 0.5, 0.0, 3)


# How many prompts


@pytest.mark.parametrize(
    "gap, ties, power",
    [
        (0.05, 0.0, 0.8),
        (0.05, 0.2, 0.8),
        (0.05, 0.5, 0.8),
        (0.1, 0.2, 0.9),
        (-0.1, 0.5, 0.8),
        (0.2, 0.2, 0.8),
    ],
)
def test_prompts_needed_give_the_power_that_was_asked_for(gap, ties, power):
    n, rate = prompts_needed(gap, ties=ties, power=power), 0.5 + gap
    counts = np.random.default_rng(1).multinomial(
        n, [rate - ties / 2, ties, 1 - rate - ties / 2], size=DRAWS
    )
    seen = np.mean([not holds(from_counts(*row), 0.5) for row in counts])
    assert abs(seen - power) < 0.035


def test_prompts_needed_for_a_paired_difference():
    rng = np.random.default_rng(0)
    # mean 0.075
    difference = lambda size: rng.choice(
        [-1.0, -0.5, 0.0, 0.5, 1.0], p=[0.05, 0.1, 0.6, 0.15, 0.1], size=size
    )
    n = prompts_needed(0.075, deviation=math.sqrt(0.05 + 0.025 + 0.0375 + 0.1 - 0.075**2))
    drawn = difference((DRAWS, n))
    assert abs(np.mean([score_difference(row, np.zeros(n)).low > 0 for row in drawn]) - 0.8) < 0.035
    # the other model always ties, the model wins 3 and loses 1 in ten: differences of 1/2, 0 and
    # -1/2, variance 0.09
    n = prompts_needed(0.1, deviation=0.3)
    seen = [
        win_rate_difference(row, np.zeros(n), np.zeros(n)).low > 0
        for row in rng.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=(DRAWS, n))
    ]
    assert abs(np.mean(seen) - 0.8) < 0.035


def test_prompts_needed_by_hand():
    assert (
        prompts_needed(0.1)
        == math.ceil(((1.959964 * 0.5 + 0.841621 * math.sqrt(0.24)) / 0.1) ** 2)
        == 194
    )
    assert prompts_needed(0.02) / prompts_needed(0.04) == pytest.approx(
        4, rel=0.01
    ) and prompts_needed(0.02, ties=0.5) / prompts_needed(0.02) == pytest.approx(0.5, rel=0.01)
    assert prompts_needed(0.5) < prompts_needed(0.4) and prompts_needed(
        0.1, power=0.9
    ) > prompts_needed(0.1) < prompts_needed(0.1, level=0.99)
    assert (
        prompts_needed(0.3, deviation=1.0)
        == math.ceil(((1.959964 + 0.841621) / 0.3) ** 2)
        == prompts_needed(-0.3, deviation=1.0)
    )


# Best of many, and refusals


def test_bonferroni_levels_keep_the_chance_of_any_false_alarm():
    # 20 models that are no better
    wins = np.random.default_rng(2).multinomial(300, [0.4, 0.2, 0.4], size=(250, 20))
    some = lambda level: np.mean(
        [
            any(not holds(from_counts(*row, level=level), 0.5) for row in experiment)
            for experiment in wins
        ]
    )
    assert 0.55 < some(0.95) < 0.75 and some(1 - 0.05 / 20) < 0.08  # 1 - 0.95^20 = 0.64


def test_the_face_has_both_win_rates():
    from prefkit import win_rate as face
    from prefkit.stats import length_control

    assert face.win_rate is win_rate
    assert face.length_controlled_win_rate is length_control.length_controlled_win_rate


def test_refuses_unequal_lengths_nothing_and_nan():
    with pytest.raises(DataError, match="2 model scores against 1"):
        win_rate([1, 2], [1])
    with pytest.raises(DataError, match="at least one"):
        win_rate([], [])
    with pytest.raises(DataError, match="prompt 1 is NaN"):
        win_rate([1.0, float("nan")], [0.0, 0.0])
    with pytest.raises(
        DataError, match="2 model scores against 2 other scores against 1 reference scores"
    ):
        win_rate_difference([1, 2], [1, 2], [1])
    with pytest.raises(DataError, match="prompt 0 is NaN"):
        win_rate_difference([1, 2], [1, 2], [math.nan, 1])
    with pytest.raises(DataError, match="prompt 1 is infinite"):
        score_difference([1, math.inf], [0, 0])
    with pytest.raises(DataError, match="one number for each"):
        win_rate([[1, 2], [3, 4]], [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="prompt 2 is 1.5.*AlpacaEval"):
        preference_rate([0, 1, 1.5])
    with pytest.raises(DataError, match="at least one"):
        preference_rate([])
    with pytest.raises(DataError, match="at least one"):
        over_seeds_interval([])
    with pytest.raises(DataError, match="NaN"):
        over_seeds_interval([1.0, math.nan])
    with pytest.raises(DataError, match=r"\(1, 3\).*at least two"):
        hierarchical_interval([[1, 2, 3]])
    with pytest.raises(DataError, match="seed 1 on prompt 0"):
        hierarchical_interval([[1, 2], [math.nan, 3]])


def test_refuses_settings_that_make_no_sense():
    for level in (0, 1, 95):
        for call in (
            lambda: from_counts(5, 1, 2, level=level),
            lambda: over_seeds_interval([1, 2], level=level),
            lambda: prompts_needed(0.1, level=level),
            lambda: paired_bootstrap(np.mean, [1, 2], level=level),
        ):
            with pytest.raises(ConfigError, match=f"level: {level} "):
                call()
    with pytest.raises(ConfigError, match="method: 'bca'"):
        paired_bootstrap(np.mean, [1, 2], method="bca")
    for repetitions in (10, 200.5, True):
        with pytest.raises(ConfigError, match="repetitions"):
            paired_bootstrap(np.mean, [1, 2], repetitions=repetitions)
    with pytest.raises(DataError, match="3 numbers in column 0 against 2 numbers in column 1"):
        paired_bootstrap(mean_gap, [1, 2, 3], [1, 2])
    with pytest.raises(DataError, match="one prompt"):
        paired_bootstrap(np.mean, [1])
    with (
        pytest.raises(DataError, match="not finite in"),
        np.errstate(divide="ignore", invalid="ignore"),
    ):
        paired_bootstrap(lambda a, axis=-1: 1 / a.sum(axis=axis), [0.0, 0.0, 1.0])
    for wrong in (
        {"difference": 0.0},
        {"difference": math.nan},
        {"difference": 0.6},
        {"difference": 0.3, "ties": 0.5},
        {"difference": 0.1, "ties": -0.1},
    ):
        with pytest.raises(ConfigError, match="difference"):
            prompts_needed(**wrong)
    with pytest.raises(ConfigError, match="power"):
        prompts_needed(0.1, power=1.0)
    with pytest.raises(ConfigError, match="deviation"):
        prompts_needed(0.1, deviation=0.0)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.5])
def test_an_interval_holds_its_own_rate_to_the_last_bit(share):
    for n in range(1, 400):
        found = preference_rate([share] * n)
        assert 0 <= found.low <= found.rate <= found.high <= 1, n


# ---- what could have been told


@pytest.mark.parametrize("n", [3, 5, 8, 30])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_smallest_detectable_effect_is_found_about_so_often(n, power):
    "By the noncentral t, which the sum of two quantiles only comes near."
    effect = smallest_detectable(2.0, n, power)
    shift, critical = effect / (2.0 / math.sqrt(n)), scipy.stats.t.ppf(0.975, n - 1)
    found = scipy.stats.nct.sf(critical, n - 1, shift)
    assert found == pytest.approx(power, abs=0.06)


def test_a_spread_is_pooled_by_degrees_of_freedom_and_needs_two_values():
    groups = [[0.1, 0.3], [0.5, 0.4, 0.9], [7.0]]
    expected = (1 * np.var(groups[0], ddof=1) + 2 * np.var(groups[1], ddof=1)) / 3
    assert pooled_spread(groups) == pytest.approx(math.sqrt(expected))
    assert math.isnan(pooled_spread([[1.0], []])) and math.isnan(smallest_detectable(1.0, 1))
    with pytest.raises(ConfigError, match="power") as error:
        smallest_detectable(1.0, 5, power=1.0)
    assert (error.value.field, error.value.reason) == ("power", "out of range")
