"""Win rates: counts, the tie-aware interval, its coverage, and refusals."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.core import DataError
from prefkit.win_rate import wilson, win_rate


def from_counts(wins, ties, losses):
    return win_rate([1] * wins + [0] * ties + [0] * losses, [0] * (wins + ties) + [1] * losses)


def test_counts_and_rate_with_ties_as_half():
    found = win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 4.0, 2.0])
    assert (found.wins, found.ties, found.n, found.rate) == (2, 1, 4, 0.625)


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest
    for wins, n in ((0, 10), (3, 10), (57, 100), (100, 100)):
        oracle = binomtest(wins, n).proportion_ci(method="wilson")
        assert wilson(wins / n, n) == pytest.approx((oracle.low, oracle.high), abs=1e-6)


@pytest.mark.parametrize("rate, ties", [(0.5, 0.0), (0.5, 0.2), (0.6, 0.4), (0.8, 0.2)])
def test_interval_covers_the_truth_in_95_of_100_samples(rate, ties):
    rng, n, repetitions = np.random.default_rng(0), 200, 4000
    counts = rng.multinomial(n, [rate - ties / 2, ties, 1 - rate - ties / 2], size=repetitions)
    covered = sum(found.low <= rate <= found.high for found in (from_counts(*row) for row in counts)) / repetitions
    assert 0.935 <= covered <= 0.965


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_interval_holds_the_rate_and_is_symmetric(wins, ties, losses):
    if wins + ties + losses == 0: return
    found, swapped = from_counts(wins, ties, losses), from_counts(losses, ties, wins)
    assert 0 <= found.low <= found.rate + 1e-12 and found.rate - 1e-12 <= found.high <= 1
    assert math.isclose(found.low, 1 - swapped.high, abs_tol=1e-9)


def test_ties_make_the_interval_narrower_than_wilson_with_half_wins():
    found, (low, high) = from_counts(300, 400, 300), wilson(0.5, 1000)
    assert 0.75 < (found.high - found.low) / (high - low) < 0.8 # sqrt(1 - 0.4) = 0.775


def test_refuses_unequal_lengths_nothing_and_nan():
    with pytest.raises(DataError, match="2 model scores against 1"): win_rate([1, 2], [1])
    with pytest.raises(DataError, match="at least one"): win_rate([], [])
    with pytest.raises(DataError, match="prompt 1 is NaN"): win_rate([1.0, float("nan")], [0.0, 0.0])
