"""Best of n: against enumeration of every draw in exact fractions, subsets, Monte Carlo, and what
must hold for any rewards.
"""

import itertools, math
from collections import Counter
from fractions import Fraction

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from prefkit.stats.best_of_n import (
    best_of_n,
    best_of_n_kl,
    best_of_n_kl_exact,
    best_of_n_kl_from_samples,
    best_of_n_metric,
    best_weights,
)
from prefkit.core import DataError

F = Fraction
WORLDS = [
    ([F(1, 6), F(1, 3), F(1, 2)], [3, 1, 2]),
    ([F(1, 10), F(2, 5), F(3, 10), F(1, 5)], [1, 0, 1, 2]),
    ([F(1, 4), F(3, 4)], [5, 5]),
    ([F(1, 20), F(3, 20), F(1, 5), F(3, 5)], [2, 2, -1, -1]),
]


def enumerated(probabilities, rewards, n):
    """The distribution of best-of-n over answers, by all n-tuples of answers in fractions; ties
    share.
    """
    best = [F(0)] * len(rewards)
    for draw in itertools.product(range(len(rewards)), repeat=n):
        chance, top = math.prod(probabilities[i] for i in draw), max(rewards[i] for i in draw)
        tied = [i for i in draw if rewards[i] == top]
        for i in tied:
            best[i] += chance / len(tied)
    assert sum(best) == 1
    return best


@pytest.mark.parametrize("probabilities, rewards", WORLDS)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_exact_kl_equals_enumeration_of_all_tuples(probabilities, rewards, n):
    best = enumerated(probabilities, rewards, n)
    wanted = sum(float(q) * math.log(q / p) for p, q in zip(probabilities, best))
    assert math.isclose(
        best_of_n_kl_exact([float(p) for p in probabilities], rewards, n),
        wanted,
        rel_tol=1e-10,
        abs_tol=1e-14,
    )


def subsets(rewards, other, n):
    "Mean over all subsets of n samples of the other score of the best, ties shared, in fractions."
    total, count = F(0), 0
    for chosen in itertools.combinations(range(len(rewards)), n):
        top = max(rewards[i] for i in chosen)
        tied = [F(other[i]) for i in chosen if rewards[i] == top]
        total, count = total + sum(tied) / len(tied), count + 1
    return float(total / count)


def test_estimates_equal_the_mean_over_all_subsets():
    "Which is what makes them unbiased: each subset of n of the m samples is itself a draw of n."
    rng = np.random.default_rng(0)
    for _ in range(60):
        m = int(rng.integers(1, 9))
        rewards, other = rng.integers(0, 5, m).tolist(), rng.normal(size=m).tolist()
        for n in range(1, m + 1):
            assert math.isclose(
                best_of_n_metric([rewards], [other], n)[0],
                subsets(rewards, other, n),
                rel_tol=1e-10,
                abs_tol=1e-12,
            )
            assert math.isclose(
                best_of_n([rewards], n)[0],
                subsets(rewards, rewards, n),
                rel_tol=1e-10,
                abs_tol=1e-12,
            )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_estimates_are_unbiased_over_all_tuples_of_samples(n):
    """All 4^4 rows of m = 4 samples, weighed by their chance: the mean estimate is the true value,
    to rounding.
    """
    probabilities, rewards = WORLDS[1]
    other = [F(7), F(-2), F(1), F(3)]
    best = enumerated(probabilities, rewards, n)
    rows = list(itertools.product(range(4), repeat=4))
    chance = np.array([float(math.prod(probabilities[i] for i in row)) for row in rows])
    sampled, judged = (
        [[float(values[i]) for i in row] for row in rows] for values in (rewards, other)
    )
    assert math.isclose(
        chance @ best_of_n(sampled, n), sum(q * r for q, r in zip(best, rewards)), rel_tol=1e-12
    )
    assert math.isclose(
        chance @ best_of_n_metric(sampled, judged, n),
        sum(q * r for q, r in zip(best, other)),
        rel_tol=1e-12,
    )


def test_weights_are_ratios_of_binomials_also_for_many_samples():
    for m, n in [(1, 1), (7, 3), (40, 40), (200, 64), (5000, 1000)]:
        wanted = (
            [math.comb(i - 1, n - 1) / math.comb(m, n) for i in range(1, m + 1)]
            if m < 300
            else None
        )
        ours = best_weights(m, n)
        assert math.isclose(ours.sum(), 1, rel_tol=1e-10)
        if wanted:
            np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=0)


def test_pass_at_k_is_the_special_case_of_rewards_0_and_1():
    for m, c, k in [(10, 3, 4), (20, 0, 5), (20, 20, 5), (12, 9, 4)]:
        wanted = 1 - math.comb(m - c, k) / math.comb(m, k)  # Chen et al. 2021, Eq. 1
        assert math.isclose(
            best_of_n([[1.0] * c + [0.0] * (m - c)], k)[0], wanted, rel_tol=1e-12, abs_tol=1e-14
        )


def test_monte_carlo_of_gaussian_maxima():
    """E max of 2 standard normals is 1/sqrt(pi), of 3 it is 1.5/sqrt(pi); a proxy with correlation
    rho chooses rho times that.
    """
    rng = np.random.default_rng(1)
    gold = rng.normal(size=(4000, 8))
    proxy = 0.6 * gold + 0.8 * rng.normal(size=gold.shape)
    for n, wanted in ((2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))):
        for estimates, truth in (
            (best_of_n(gold, n), wanted),
            (best_of_n_metric(proxy, gold, n), 0.6 * wanted),
        ):
            assert abs(estimates.mean() - truth) < 4 * estimates.std(ddof=1) / math.sqrt(
                len(estimates)
            )


def test_monte_carlo_of_the_exact_kl():
    """Best-of-n drawn 200,000 times from a discrete reference: the log-ratio's mean is the KL
    within 4 standard errors.
    """
    rng = np.random.default_rng(2)
    p, rewards, n = rng.dirichlet(np.ones(12)), rng.integers(0, 6, 12).astype(float), 4
    draws = rng.choice(12, p=p, size=(200_000, n))
    # samples are exchangeable, so the first of the tied is a lot drawn
    best = draws[np.arange(len(draws)), rewards[draws].argmax(1)]
    level = np.array([p[rewards == r].sum() for r in rewards])
    cdf = np.array([p[rewards <= r].sum() for r in rewards])
    log_ratio = np.log((cdf**n - (cdf - level) ** n) / level)[best]
    assert abs(
        log_ratio.mean() - best_of_n_kl_exact(p, rewards, n)
    ) < 4 * log_ratio.std() / math.sqrt(len(draws))
    share = np.bincount(best, minlength=12) / len(draws)
    exact = p * (cdf**n - (cdf - level) ** n) / level
    assert (np.abs(share - exact) < 4.5 * np.sqrt(exact * (1 - exact) / len(draws)) + 1e-12).all()


worlds = st.integers(1, 12).flatmap(
    lambda a: st.tuples(
        st.lists(st.floats(1e-6, 1), min_size=a, max_size=a),
        st.lists(st.integers(-3, 3), min_size=a, max_size=a),
    )
)


@settings(max_examples=200, deadline=None)
@given(worlds, st.integers(1, 2000))
def test_exact_kl_lies_between_0_and_the_formula_and_grows_with_n(world, n):
    p, rewards = np.array(world[0]) / sum(world[0]), world[1]
    kl, more = best_of_n_kl_exact(p, rewards, n), best_of_n_kl_exact(p, rewards, n + 1)
    assert 0 <= kl <= best_of_n_kl(n) + 1e-12 and kl <= more + 1e-12
    top = p[np.array(rewards) == max(rewards)].sum()
    assert more <= -math.log(top) + 1e-9  # all that can be had: always the best level
    assert best_of_n_kl_exact(p, rewards, 1) < 1e-12


def test_exact_kl_meets_the_formula_on_many_fine_levels_and_the_limit_for_many_samples():
    p, rewards = np.full(200_000, 1 / 200_000), np.arange(200_000)
    for n in (2, 16, 128):
        assert 0 < best_of_n_kl(n) - best_of_n_kl_exact(p, rewards, n) < n / 200_000
    assert math.isclose(
        best_of_n_kl_exact([0.9, 0.1 - 1e-9, 1e-9], [0, 1, 2], 10**12),
        9 * math.log(10),
        rel_tol=1e-9,
    )
    # never sampled, never chosen
    assert best_of_n_kl_exact([0.5, 0.5, 0.0], [0, 1, 9], 3) == best_of_n_kl_exact(
        [0.5, 0.5], [0, 1], 3
    )


def test_the_formula():
    assert best_of_n_kl(1) == 0 and math.isclose(best_of_n_kl(2), math.log(2) - 0.5)
    # density n u^(n-1) of the winner's quantile against 1
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    for n in (2, 4, 9):
        assert math.isclose(
            np.mean(n * u ** (n - 1) * np.log(n * u ** (n - 1))), best_of_n_kl(n), rel_tol=1e-8
        )


def test_from_samples_is_the_exact_kl_of_the_empirical_distribution():
    rng = np.random.default_rng(3)
    rewards = rng.integers(0, 4, (20, 15)).astype(float)
    for n in (1, 2, 8, 100):
        wanted = []
        for row in rewards:
            counts = Counter(row.tolist())
            wanted.append(best_of_n_kl_exact([c / 15 for c in counts.values()], list(counts), n))
        np.testing.assert_allclose(
            best_of_n_kl_from_samples(rewards, n), wanted, rtol=1e-10, atol=1e-14
        )
    few = rng.normal(size=(5, 8))
    # the bias is that large
    assert (best_of_n_kl_from_samples(few, 10**6) <= math.log(8) + 1e-9).all() and best_of_n_kl(
        10**6
    ) > 12


def test_from_samples_comes_right_with_many_samples():
    p, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 1.0, 2.0, 3.0])
    sampled = np.random.default_rng(4).choice(rewards, p=p, size=(40, 40_000))
    estimates, truth = best_of_n_kl_from_samples(sampled, 4), best_of_n_kl_exact(p, rewards, 4)
    assert abs(estimates.mean() - truth) < 4 * estimates.std(ddof=1) / math.sqrt(40) + 1e-4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_estimates_grow_from_the_mean_to_the_maximum(row):
    values = [best_of_n([row], n)[0] for n in range(1, len(row) + 1)]
    scale = max(1, max(map(abs, row)))
    assert (
        abs(values[0] - np.mean(row)) < 1e-9 * scale and abs(values[-1] - max(row)) < 1e-9 * scale
    )
    assert (np.diff(values) > -1e-9 * scale).all()
    np.testing.assert_allclose(
        best_of_n_metric([row], [row], 2), [values[1]], rtol=0, atol=1e-9 * scale
    )


def test_the_order_of_the_samples_does_not_matter_and_neither_does_a_monotone_proxy():
    rng = np.random.default_rng(5)
    rewards, other = rng.integers(0, 4, (6, 12)).astype(float), rng.normal(size=(6, 12))
    order = rng.permutation(12)
    np.testing.assert_allclose(
        best_of_n_metric(rewards[:, order], other[:, order], 5),
        best_of_n_metric(rewards, other, 5),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        best_of_n_metric(np.exp(rewards) - 7, other, 5),
        best_of_n_metric(rewards, other, 5),
        rtol=1e-12,
    )
    # a judge that sees no difference
    np.testing.assert_allclose(
        best_of_n_metric(np.zeros((6, 12)), other, 5), other.mean(1), rtol=1e-12
    )


@pytest.mark.parametrize("n", [0, -1, 2.0, "2", None, True, 9])
def test_a_wrong_n_is_refused(n):
    rewards = np.zeros((2, 8))
    for function in (
        lambda: best_of_n(rewards, n),
        lambda: best_of_n_metric(rewards, rewards, n),
        lambda: best_weights(8, n),
    ):
        with pytest.raises(DataError, match="n: "):
            function()
    if n == 9:
        return  # more than there are samples: fine for a KL
    for function in (
        lambda: best_of_n_kl(n),
        lambda: best_of_n_kl_exact([1.0], [0.0], n),
        lambda: best_of_n_kl_from_samples(rewards, n),
    ):
        with pytest.raises(DataError, match="n: "):
            function()


def test_wrong_arrays_are_refused_by_name():
    good, bad = np.zeros((2, 3)), np.array([[0.0, 1, 2], [0, np.nan, 1]])
    for function in (
        lambda x: best_of_n(x, 2),
        lambda x: best_of_n_metric(x, good, 2),
        lambda x: best_of_n_kl_from_samples(x, 2),
    ):
        for wrong in (np.zeros(3), bad, np.where(np.isnan(bad), np.inf, bad)):
            with pytest.raises(DataError, match="rewards"):
                function(wrong)
    with pytest.raises(DataError, match="prompt 1"):
        best_of_n(bad, 2)
    for wrong in (bad, np.zeros((2, 4)), np.zeros((3, 3))):
        with pytest.raises(DataError, match="other"):
            best_of_n_metric(good, wrong, 2)
    for p, r, name in (
        ([0.5, 0.6], [0, 1], "probabilities"),
        ([1.5, -0.5], [0, 1], "probabilities"),
        ([0.5, 0.5], [0], "rewards"),
        ([0.5, 0.5], [0, np.nan], "rewards"),
        ([np.nan, 1.0], [0, 1], "probabilities"),
    ):
        with pytest.raises(DataError, match=name):
            best_of_n_kl_exact(p, r, 2)
