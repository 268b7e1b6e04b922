"""Verdicts on claims from one number per seed: a test, its reverse, equivalence, and many claims at
once. Written by hand, not exported from a notebook.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from prefkit.core import ConfigError, DataError, check_number
from prefkit.stats.intervals import mean_interval, smallest_detectable, standard_error

CLAIMED = ("above", "below", "same", "at most")
HOLDS, REVERSED, FAILS, OPEN = _SAID = ("holds", "reversed", "does not hold", "cannot be told")


@dataclass(frozen=True)
class ClaimVerdict:
    "What seeds say of a claim, and by which test."

    said: str  # "holds", "reversed", "does not hold" or "cannot be told"
    mean: float  # of the difference from no difference
    low: float  # its 95 % interval by Student's t
    high: float
    p: float  # of the test that stands behind what is said
    detectable: float  # the smallest true mean that so many seeds find four times in five
    n: int  # seeds


def judge_claim(
    values: Sequence[float],  # (seeds,) the difference from what is compared with, one a seed
    says: str,  # one of `CLAIMED`: above or below 0, no different from it, or no more than it
    effect: float,  # the smallest difference that would matter, above 0, in the values' units
) -> ClaimVerdict:
    """Above or below: the claim holds where the 95 % interval lies on its side of 0, is reversed
    where it lies on the other, does not hold where the interval ends short of `effect`: what there
    may be does not matter. Same: two one-sided tests at 5 % (Schuirmann 1987) against `effect`; it
    does not hold where the interval excludes 0 and the two tests have not been passed. At most: it
    holds where the interval ends short of `effect` above 0, and does not hold where it lies above
    0 and does not end there. All else cannot be told. Raises `ConfigError`, and `DataError` for
    fewer than two seeds or NaN.
    """
    if says not in CLAIMED:
        raise ConfigError(
            f"says: {says!r} is none of {', '.join(CLAIMED)}.", field="says", reason="unknown"
        )
    check_number("effect", effect, above=0)
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2 or np.isnan(numbers).any():
        raise DataError(
            f"values: a verdict needs one number for each of two or more seeds, not {values}.",
            field="values",
            reason="too few, or no number",
        )
    mean, low, high = mean_interval(numbers)
    side = -1 if says == "below" else 1
    of_zero, of_effect = _p_values(numbers, side, effect)
    if says == "same":
        equal = max(_less(numbers, effect), _more(numbers, -effect))
        said = HOLDS if equal < 0.05 else FAILS if of_zero < 0.05 else OPEN
        p = equal if said != FAILS else of_zero
    elif says == "at most":
        more = of_zero < 0.05 and mean > 0
        said = HOLDS if of_effect < 0.025 else FAILS if more else OPEN
        p = of_zero if said == FAILS else min(1.0, 2 * of_effect)
    elif of_zero < 0.05:
        said, p = (HOLDS if side * mean > 0 else REVERSED), of_zero
    elif of_effect < 0.025:
        said, p = FAILS, 2 * of_effect
    else:
        said, p = OPEN, of_zero
    spread = float(numbers.std(ddof=1))
    return ClaimVerdict(
        said, mean, low, high, p, smallest_detectable(spread, len(numbers)), len(numbers)
    )


def _p_values(numbers, side, effect):
    "Two-sided against 0; one-sided against the effect, small where the mean lies short of it."
    two_sided = 2 * min(_less(numbers, 0.0), _more(numbers, 0.0))
    return min(1.0, two_sided), _less(side * numbers, effect)


def _less(numbers, level):
    "One-sided p that the true mean is less than a level."
    return _student(numbers.mean() - level, numbers)


def _more(numbers, level):
    "One-sided p that it is more."
    return _student(level - numbers.mean(), numbers)


def _student(distance, numbers):
    "The distribution function of Student's t at a distance in standard errors."
    error = standard_error(numbers)
    if error == 0:  # seeds that agree to the last digit
        return 0.5 if distance == 0 else float(distance > 0)
    return float(stdtr(len(numbers) - 1, distance / error))


def judge_together(
    verdicts: Sequence[ClaimVerdict],  # of the comparisons that a claim makes
) -> ClaimVerdict:  # of all of them: the numbers are those of the comparison that decides
    """A claim of several comparisons holds where each does (intersection and union: the largest p),
    does not hold where one fails or is reversed (the smallest p, times how many there are), and
    cannot be told otherwise.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    against = [one for one in verdicts if one.said in (REVERSED, FAILS)]
    if against:
        worst = min(against, key=lambda one: one.p)
        return _of(worst, FAILS, min(1.0, worst.p * len(verdicts)))
    weakest = max(verdicts, key=lambda one: one.p)
    return _of(weakest, HOLDS if all(one.said == HOLDS for one in verdicts) else OPEN, weakest.p)


def _of(verdict, said, p):
    return ClaimVerdict(
        said, verdict.mean, verdict.low, verdict.high, p, verdict.detectable, verdict.n
    )


def benjamini_yekutieli(
    p_values: Sequence[float],  # (n,) of tests that may depend on each other
    rate: float = 0.05,  # of false ones among those that are kept, at most, on average
) -> list[bool]:  # (n,) which stand
    """The false discovery rate under any dependence (Benjamini and Yekutieli 2001, Annals of
    Statistics 29:1165, theorem 1.3). Raises `DataError` for what is no probability.
    """
    numbers = np.asarray(p_values, dtype=np.float64)
    if not len(numbers):
        return []
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise DataError("p_values: each is between 0 and 1.", field="p_values", reason="no p")
    n = len(numbers)
    harmonic = sum(1 / k for k in range(1, n + 1))
    ordered = np.sort(numbers)
    passed = np.flatnonzero(ordered <= rate * np.arange(1, n + 1) / (n * harmonic))
    last = ordered[passed[-1]] if len(passed) else -math.inf
    return [bool(one <= last) for one in numbers]


def seeds_needed(
    spread: float,  # standard deviation over seeds of what a claim compares
    effect: float,  # the smallest difference that would matter
    most: int = 1000,
) -> int | None:  # seeds; None: more than `most`
    "How many seeds it takes until `effect` is found four times in five."
    for n in range(2, most + 1):
        multiple = stdtrit(n - 1, 0.975) + stdtrit(n - 1, 0.8)
        if multiple * spread / math.sqrt(n) <= effect:
            return n
    return None
