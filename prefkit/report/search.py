"""Pictures of a search for settings: where its trials lie, and which parameter matters."""

import textwrap

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from prefkit.report.figures import COLOURS, nice_name, set_title

__all__ = ["draw_importance", "draw_landscape"]


def _label(value) -> str:
    "A value that is no number, short enough for an axis of several."
    words = str(value).replace("_", "_ ")
    lines = textwrap.wrap(words, 12, break_long_words=False) or ['""']
    return "\n".join(lines).replace("_ ", "_")


def draw_landscape(
    found: dict,  # what `prefkit search` wrote
) -> Figure:  # the figure, its numbers in fig.data
    "The objective of every finished trial against each parameter; the best is marked."
    done = [one for one in found["trials"] if one["state"] == "complete"]
    names, best = list(found["space"]), found["best"]
    height = 3.2 + 0.5 * max(name.count(",") for name in names)
    size = max(4.2, 3.3 * len(names)), height
    fig, panels = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    for axes, name in zip(panels[0], names):
        values = [one["values"][name] for one in done]
        if any(isinstance(value, str) for value in values):
            values = list(map(_label, values))
            axes.margins(x=0.25)
        axes.plot(values, [one["objective"] for one in done], "o", color=COLOURS["blue"])
        here = best["values"][name]
        axes.plot(
            [_label(here) if isinstance(values[0], str) else here],
            [best["objective"]],
            "D",
            color=COLOURS["vermilion"],
            markersize=8,
            markerfacecolor="none",
        )
        axes.set_xlabel(name.replace(", ", "\n"))
        if found["space"][name].get("log"):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
    column = found["objective"]["column"]
    panels[0][0].set_ylabel(f"{nice_name(found['objective']['stage'])}: {nice_name(column)}")
    set_title(fig, f"{len(done)} trials; the best is marked")
    fig.data = pd.DataFrame(  # ty: ignore[missing-attribute]
        {"number": one["number"], **one["values"], "objective": one["objective"]} for one in done
    )
    return fig


def draw_importance(
    found: dict,  # what `prefkit search` wrote
) -> Figure:  # the figure, its numbers in fig.data
    "How much of the objective's differences each parameter explains."
    shares = found["importance"]
    fig, axes = plt.subplots(figsize=(5.4, 1.1 + 0.4 * len(shares)))
    axes.barh(list(shares), list(shares.values()), color=COLOURS["blue"])
    axes.invert_yaxis()
    axes.set_xlabel("share of what the best tenth has in common")
    axes.grid(axis="y", visible=False)
    first = next(iter(shares))
    set_title(fig, f"What matters most: {first}")
    fig.data = pd.DataFrame(  # ty: ignore[missing-attribute]
        {"parameter": shares.keys(), "importance": shares.values()}
    )
    return fig
