"""Intervals that several measures need, of a share, of a mean and of a ratio, and checks of the
columns that they are made from.
"""

import math
from collections.abc import Iterable, Mapping, Set
from numbers import Real

import numpy as np
from scipy.special import stdtrit

from prefkit.core import ConfigError, DataError, in_short

Z_95 = 1.959964  # a standard normal variable stays within this of 0 in 95 % of cases


def upper_tail(
    level: float,  # how often a two-sided interval is to hold the truth
) -> float:  # the share of the distribution below its upper bound: 0.975 for 0.95
    "Where a two-sided interval ends; raises `ConfigError` unless 0 < level < 1."
    if not 0 < level < 1:
        raise ConfigError(
            f"level: {level} is not between 0 and 1; 0.95 asks for a 95 % interval.",
            field="level",
            reason="out of range",
        )
    return (1 + level) / 2


def as_numbers(
    name: str,  # what errors call it
    values,  # numbers in an order: a list, an array, a column of a table, a tensor
) -> np.ndarray:  # (n,) float64
    """A column as numbers, None as NaN; raises `DataError` where a value is none, such as text, or
    where the values have no order. An array of numbers may have more dimensions.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64)
    words = name.replace("_", " ")
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise DataError(
            f"{words}: {type(values).__name__} is no list of numbers. Give one number for each "
            "prompt, in a list or an array.",
            field=name,
            reason="not numbers",
        )
    # arrays, columns and tensors, of whatever type, have a list of what they hold
    known = list(values.tolist() if hasattr(values, "tolist") else values)
    try:
        if any(isinstance(value, (list, tuple)) for value in known):
            return np.asarray(known, dtype=np.float64)  # its shape is the caller's to look at
    except (TypeError, ValueError, OverflowError):
        pass  # rows of unequal lengths: the first of them is named
    return np.array([_number(name, place, value) for place, value in enumerate(known)])


def _number(name, place, value) -> float:
    "One value of a column."
    try:
        if value is None:
            return math.nan
        if isinstance(value, Real) or getattr(value, "shape", None) == ():
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass  # an array of text, or a whole number that no float holds
    raise DataError(
        f"{name.replace('_', ' ')}, number {place}: {in_short(value)} is no number that can be "
        "computed with. Mend it, or leave this prompt out for all models.",
        field=name,
        reason="not numbers",
    )


def finite_column(
    name: str,  # what errors call it
    values,  # (n,) numbers
    n: int | None = None,  # how many there must be; None: any number
) -> np.ndarray:  # (n,) float64
    "A column of finite numbers, one for each prompt; raises `DataError`."
    values = as_numbers(name, values)
    if values.ndim != 1:
        raise DataError(
            f"{name} has shape {values.shape}, but must have shape (n,), one value a prompt.",
            field=name,
            reason="wrong shape",
        )
    if n is not None and len(values) != n:
        raise DataError(
            f"{name} has {len(values)} values for {n} preferences: give one for each prompt, in "
            "the same order.",
            field=name,
            reason="unequal lengths",
        )
    if (bad := ~np.isfinite(values)).any():
        raise DataError(
            f"{name} of row {bad.argmax()} is {values[bad][0]} ({bad.sum()} such rows). Judge "
            "again or leave these rows out of every column.",
            field=name,
            reason="not finite",
        )
    return values


def share_column(
    name: str,  # what errors call it
    values,  # (n,) numbers in [0, 1]
) -> np.ndarray:  # (n,) float64
    "A column of shares, one for each prompt; raises `DataError`."
    values = finite_column(name, values)
    if (bad := (values < 0) | (values > 1)).any():
        raise DataError(
            f"{name} of row {bad.argmax()} is {values[bad][0]}, not in [0, 1]. AlpacaEval's files "
            "count from 1 to 2 with 0 for a tie: take preference - 1, and 0.5 for a tie.",
            field=name,
            reason="out of range",
        )
    return values


def wilson(
    rate: float,  # observed share, in [0, 1]
    n: float,  # number of observations, above 0; need not be whole
    z: float = Z_95,  # how many standard errors; the default is for 95 %
) -> tuple[float, float]:  # low, high, both in [0, 1]
    "Wilson's score interval for a share (Wilson 1927, doi 10.1080/01621459.1927.10502953)."
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return max(0.0, (centre - spread) / whole), min(1.0, (centre + spread) / whole)


def wilson_of_mean(
    mean: float,  # of numbers in [0, 1]
    variance: float,  # of one such number, divided by n
    n: float,  # how many numbers
    z: float = Z_95,  # how many standard errors; the default is for 95 %
) -> tuple[float, float]:  # low, high, both in [0, 1]
    """Wilson's interval for a mean of numbers in [0, 1], told how many coin flips know as much: of
    the same mean and variance, with half a win and half a loss added.
    """
    smoothed = (n * mean + 0.5) / (n + 1)
    spread = (n * (variance + mean**2) + 0.5) / (n + 1) - smoothed**2
    low, high = wilson(mean, n * smoothed * (1 - smoothed) / spread, z)
    # at 0 and 1 rounding would leave the mean outside
    return float(min(low, mean)), float(max(high, mean))


def share_interval(
    hits: float,  # how many of n
    n: int,  # how many in all
) -> tuple[float, float, float]:  # share, low, high; in [0, 1]
    """Share with its 95 % interval by Wilson's score; raises `DataError` unless 0 <= hits <= n and
    n > 0.
    """
    if not 0 <= hits <= n or n < 1:
        raise DataError(
            f"{hits} hits of {n}: no share can be taken. Check the counts.",
            field="hits",
            reason="out of range",
        )
    return hits / n, *wilson(hits / n, n)


def standard_error(
    values: np.ndarray,  # (n,)
) -> float:  # of their mean; NaN for a single value
    "Standard deviation, with n - 1 below, over the root of n."
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_interval(
    values,  # (n,) numbers; NaN are left out
    level: float = 0.95,  # how often the interval is to hold the truth
) -> tuple[float, float, float]:  # mean, low, high
    """Mean with its interval by Student's t; a single value has an unbounded interval (NaN).

    Raises `DataError` if there is no value.
    """
    values = as_numbers("values", values)
    values = values[~np.isnan(values)]
    if not len(values):
        raise DataError(
            "no values to take a mean of. Were the rows of this model or kind all dropped?",
            field="values",
            reason="empty",
        )
    mean = float(values.mean())
    half = float(stdtrit(len(values) - 1, upper_tail(level))) * standard_error(values)
    return mean, mean - half, mean + half


def pooled_spread(
    groups,  # of values, such as those of one comparison in each seed
) -> float:  # NaN where no group has two values
    "Standard deviation within groups, pooled over them by their degrees of freedom."
    known = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    if not known:
        return math.nan
    free = sum(len(group) - 1 for group in known)
    return math.sqrt(sum((len(group) - 1) * group.var(ddof=1) for group in known) / free)


def smallest_detectable(
    spread: float,  # standard deviation of one value, such as a difference in one seed
    n: int,  # values, such as seeds
    power: float = 0.8,  # how often the test is to find it
    level: float = 0.95,  # of the two-sided test
) -> float:  # in the units of the spread; NaN for a single value
    """The smallest true mean that a test by Student's t on n values finds apart from 0 so often:
    (t_(1 + level) / 2 + t_power) * spread / sqrt(n) with n - 1 degrees of freedom (the minimum
    detectable effect of Bloom 1995, doi 10.1177/0193841X9501900504). Raises `ConfigError`.
    """
    if not 0.5 <= power < 1:
        raise ConfigError(
            f"power: {power} is not between 0.5 and 1; 0.8 asks for four cases in five.",
            field="power",
            reason="out of range",
        )
    if n < 2:
        return math.nan
    multiple = stdtrit(n - 1, upper_tail(level)) + stdtrit(n - 1, power)
    return float(multiple * spread / math.sqrt(n))


def ratio_interval(
    numerators,  # (n,) one number for each independent unit
    denominators,  # (n,) the same units; their sum must be above 0
) -> tuple[float, float, float]:  # sum of the numerators over sum of the denominators, low, high
    """Ratio of two sums with its 95 % interval (delta method, Student's t; Cochran 1977, chapter
    6); a single unit has no interval (NaN). Raises `DataError`.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (numerators, denominators))
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise DataError(
            "numerators and denominators must both have shape (n,) with n of at least 1, not "
            f"{a.shape} and {b.shape}.",
            field="denominators",
            reason="wrong shape",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all() and b.sum() > 0):
        raise DataError(
            "numerators and denominators must be finite, and the denominators must add up to more "
            "than 0.",
            field="denominators",
            reason="out of range",
        )
    n, ratio = len(a), a.sum() / b.sum()
    if n == 1:
        return float(ratio), math.nan, math.nan
    spread = math.sqrt(n / (n - 1) * ((a - ratio * b) ** 2).sum())
    half = stdtrit(n - 1, upper_tail(0.95)) * spread / b.sum()
    return float(ratio), float(ratio - half), float(ratio + half)
