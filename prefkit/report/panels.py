"""Figures of several panels, and of single seeds beside their mean."""

import math

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefkit.report.figures import COLOURS, draw_intervals, looks, set_legend, set_title

__all__ = [
    "draw_bars",
    "draw_panels",
    "draw_seed_lines",
    "draw_seeds",
    "ends_of",
    "interval_table",
    "seed_looks",
]


def interval_table(
    rows: dict,  # label -> (value, low, high), or label -> {group: (value, low, high)}
) -> pd.DataFrame:  # as `draw_intervals` takes it
    "Estimates with their intervals as a tidy table."
    made = []
    for row, found in rows.items():
        if isinstance(found, dict):
            made += [{"row": row, "group": group, **ends_of(each)} for group, each in found.items()]
        else:
            made.append({"row": row, **ends_of(found)})
    return pd.DataFrame(made)


def ends_of(
    estimate,  # value, low, high
    names: tuple[str, str, str] = ("value", "low", "high"),
) -> dict[str, float]:
    "An estimate as columns of a table."
    return dict(zip(names, estimate))


def draw_panels(
    panels: dict[str, pd.DataFrame],  # label of the y-axis -> curves as `draw_curves` takes them
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    "Curves in panels, one above the other, on one axis of steps."
    names = list(dict.fromkeys(name for table in panels.values() for name in table["series"]))
    size = (5.4, 1.1 + 1.75 * len(panels))
    fig, axes = plt.subplots(len(panels), 1, sharex=True, squeeze=False, figsize=size)
    handles = {}
    for ax, (label, table) in zip(axes[:, 0], panels.items()):
        for name, look in looks(names).items():
            part = table[table["series"] == name].sort_values("x")
            if len(part):
                handles[name] = _draw_curve(ax, part, name, look)
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1, 0].set_xlabel("optimiser step")
    set_title(fig, title)
    if len(handles) > 1:
        set_legend(fig, list(handles.values()), list(handles))
    labelled = [table.assign(panel=label) for label, table in panels.items()]
    fig.data = pd.concat(labelled, ignore_index=True)  # ty: ignore[missing-attribute]  its numbers
    return fig


def _draw_curve(ax, part, name, look):
    "One curve, with its band where it has one; gives the line."
    marker = look.marker if len(part) <= 25 else ""
    (line,) = ax.plot(
        part["x"],
        part["value"],
        color=look.colour,
        linestyle=look.line,
        marker=marker,
        label=name,
    )
    if {"low", "high"} <= set(part):
        low, high = part["low"].astype(float), part["high"].astype(float)
        ax.fill_between(part["x"], low, high, color=look.colour, alpha=0.2, linewidth=0)
    return line


def draw_bars(
    data: pd.DataFrame,  # columns row, unit, value, low, high; NaN where there is no interval
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    "Bars in one panel for each unit, with intervals where there are any."
    groups = list(data.groupby("unit", sort=False))
    size = (5.4, 0.9 + 0.34 * len(data) + 0.52 * len(groups))
    heights = [len(part) + 0.4 for _, part in groups]
    fig, axes = plt.subplots(len(groups), 1, squeeze=False, figsize=size, height_ratios=heights)
    styles = looks(unit for unit, _ in groups).values()
    for ax, (unit, part), look in zip(axes[:, 0], groups, styles):
        places = range(len(part))
        ax.barh(
            places,
            part["value"],
            color=look.colour + "77",
            edgecolor=look.colour,
            hatch=look.hatch,
            height=0.6,
        )
        ax.hlines(places, part["low"], part["high"], color=COLOURS["black"], linewidth=2.2)
        ends = part["high"].fillna(part["value"])
        for place, value, end in zip(places, part["value"], ends):
            ax.text(max(end, 0), place, f"  {value:.3g}", va="center")
        ax.set_yticks(places, part["row"])
        ax.set_ylim(len(part) - 0.5, -0.5)
        ax.set_xlabel(unit)
        ax.margins(x=0.18)
        ax.grid(axis="y", visible=False)
        ax.axvline(0, color="#555555", linewidth=0.8)
    set_title(fig, title)
    fig.data = data  # ty: ignore[missing-attribute]  its numbers
    return fig


def draw_seed_lines(
    ax,  # where to
    data: pd.DataFrame,  # a column seed, and x and y
    x: str,  # column
    y: str,  # column
    marks: dict,  # seed -> look
    factor: float = 1,  # y is drawn in another unit
):
    "One line a seed, one mark a validation."
    for seed, look in marks.items():
        part = data[data["seed"] == seed].sort_values("step")
        ax.plot(
            part[x],
            factor * part[y],
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            linewidth=1.6,
            label=f"seed {seed}",
        )


def draw_seeds(
    rows: dict[str, tuple],  # label -> ((mean, low, high), {seed: its own value})
    *,
    title: str,  # a sentence that says what to see
    xlabel: str,  # with unit
    reference: tuple[float, str] | None = None,  # where "no difference" is, and what to call it
) -> Figure:  # the figure, its numbers in fig.data
    "A mean with its interval for each row, and above it every seed's own value, hollow."
    own = {label: values for label, (_, values) in rows.items()}
    table = interval_table({label: {"mean": ends} for label, (ends, _) in rows.items()})
    fig = draw_intervals(table, title=title, xlabel=xlabel, reference=reference)
    (ax,) = fig.axes
    fig.set_size_inches(5.4, 1.5 + 0.46 * len(rows))
    marks = seed_looks(next(iter(own.values())))
    for place, (seed, look) in enumerate(marks.items()):
        above = 0.18 + 0.34 * place / max(1, len(marks) - 1) * min(1, (len(marks) - 1) / 2)
        ax.plot(
            [values[seed] for values in own.values()],
            [row - above for row in range(len(own))],
            linestyle="none",
            marker=look.marker,
            markerfacecolor="white",
            markeredgecolor=look.colour,
            label=f"seed {seed}",
        )
    ax.set_ylim(len(rows) - 0.6, -0.75)
    for legend in list(fig.legends):
        legend.remove()
    named = dict(zip(*reversed(ax.get_legend_handles_labels())))
    level = {reference[1]} if reference else set()
    seeds = [name for name in named if name.startswith("seed ")]
    order = [*seeds, *(name for name in ("mean", *level) if name in named)]
    set_legend(fig, [named[name] for name in order], order, columns=3)
    if len(marks) > 1:
        alone = {
            label: {f"seed {seed}": (value, math.nan, math.nan) for seed, value in values.items()}
            for label, values in own.items()
        }
        numbers = [fig.data, interval_table(alone)]  # ty: ignore[missing-attribute]
        fig.data = pd.concat(numbers, ignore_index=True)  # ty: ignore[missing-attribute]
    return fig


def seed_looks(
    seeds,  # their names
    beside: tuple[str, ...] = ("mean",),  # what is drawn with them and comes first
) -> dict:  # seed -> look
    "A look for each seed."
    found = looks([*beside, *(f"seed {seed}" for seed in seeds)])
    return {seed: found[f"seed {seed}"] for seed in seeds}
