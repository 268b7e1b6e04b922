"""Curves of what training logged: of one run, and of several seeds together."""

import pandas as pd

from prefkit.report.figures import mean_interval, moving_average

__all__ = ["SIDES", "course", "curve", "ends_of_curve", "mean_curve"]

SIDES = ("chosen", "rejected")  # of a pair, as columns of the log end


def course(
    lines: list[dict],  # of metrics.jsonl
    split: str,  # "train" or "validation"
    column: str,
) -> pd.Series:  # step -> value, ascending; the last line where a step was logged twice
    "What was logged in one column; empty where nothing was."
    logged = {
        line["step"]: line[column]
        for line in lines
        if line["split"] == split and pd.notna(line.get(column))
    }
    return pd.Series(logged, dtype=float).sort_index()


def window(points: int) -> int:
    "How many neighbouring values of a training curve are averaged: a sixth, an odd number."
    return max(5, points // 12 * 2 + 1)


def curve(
    values: pd.Series,  # as `course` gives it
    split: str,
    series: str,  # name of the curve
) -> pd.DataFrame:  # columns x, value, series, and low, high in training; empty if there is none
    """One run's curve: training as the mean of a sliding window with its 95 % interval, validation
    as it is, since it is always on the same rows.
    """
    if values.empty:
        return pd.DataFrame(columns=["x", "value", "series"])
    if split == "train":
        made = moving_average(values.index.tolist(), values, window=window(len(values)))
    else:
        made = pd.DataFrame({"x": values.index, "value": values.to_numpy()})
    return made.assign(series=series)


def mean_curve(
    found: list[pd.Series],  # of each seed, as `course` gives them
    split: str,
    series: str,  # name of the curve
) -> pd.DataFrame:  # columns x, value, low, high, series
    """The mean over seeds with its 95 % interval at each step that all of them have; in training of
    each seed's sliding mean.
    """
    if any(values.empty for values in found):
        return pd.DataFrame(columns=["x", "value", "series"])
    width = window(len(found[0])) if split == "train" else 1
    smooth = [values.rolling(width, center=True, min_periods=1).mean() for values in found]
    table = pd.concat(smooth, axis=1).dropna()
    rows = [(step, *mean_interval(row)) for step, row in zip(table.index, table.to_numpy())]
    return pd.DataFrame(rows, columns=["x", "value", "low", "high"]).assign(series=series)


def ends_of_curve(
    curves: pd.DataFrame,  # columns x, value, series
    series: str,
) -> tuple[float, float]:
    "First and last value of one curve."
    values = curves.loc[curves["series"] == series].sort_values("x")["value"]
    return float(values.iloc[0]), float(values.iloc[-1])
