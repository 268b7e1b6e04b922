"""The ledger's page: how many claims of each report hold, a forest plot of each report, and its
claims one by one, from the table that `prefkit.runs.ledger.ledger_table` makes.

Differences of all measures stand on one axis in units of the smallest difference that would matter,
turned so that the claim's own side is on the right.
"""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from prefkit.core import DataError
from prefkit.report.figures import COLOURS, set_legend, set_title
from prefkit.report.page import Link
from prefkit.report.words import counted, joined

__all__ = [
    "CLAIM_LOOKS",
    "claim_rows",
    "count_table",
    "draw_counts",
    "draw_forest",
    "say_counts",
    "say_correction",
]

# what is said of a claim -> its sign, the colour and marker of its dot, the hatching of its bar
CLAIM_LOOKS = {
    "holds": ("✓", COLOURS["green"], "o", ""),
    "does not hold": ("✗", COLOURS["orange"], "s", "///"),
    "reversed": ("⇄", COLOURS["vermilion"], "D", "xxx"),
    "cannot be told": ("?", COLOURS["grey"], "^", "..."),
    "not testable here": ("–", COLOURS["light"], "", "|||"),
    "not run yet": ("…", "#eeeeee", "", "---"),
}
WIDEST = 8.0  # multiples of what would matter; an interval that reaches further ends in an arrow


def count_table(
    table: pd.DataFrame,  # a row for each claim: report, said
) -> pd.DataFrame:  # a row for each report and one for all, a column for each thing said
    "How many claims of each report stand how."
    counts = pd.crosstab(table["report"], table["said"]).reindex(
        columns=list(CLAIM_LOOKS), fill_value=0
    )
    counts = counts.loc[:, counts.sum() > 0]
    counts.insert(0, "claims", counts.sum(axis=1))
    return pd.concat([counts, counts.sum().to_frame("all").T]).rename_axis("report").reset_index()


def draw_counts(
    table: pd.DataFrame,  # as `count_table` takes it
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    "A bar for each report, parted by what is said of its claims."
    counts = count_table(table).iloc[:-1]
    fig, ax = plt.subplots(figsize=(7.2, 1.3 + 0.42 * len(counts)))
    begin = np.zeros(len(counts))
    for said in [name for name in CLAIM_LOOKS if name in counts]:
        _, colour, _, hatch = CLAIM_LOOKS[said]
        width = counts[said].to_numpy(float)
        look: dict[str, Any] = dict(color=colour, hatch=hatch, edgecolor="white", label=said)
        ax.barh(counts["report"], width, left=begin, **look)
        on_bar = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
        for y, (left, n) in enumerate(zip(begin, width)):
            if n:
                middle: dict[str, Any] = dict(ha="center", va="center", fontsize=9, bbox=on_bar)
                ax.text(left + n / 2, y, f"{n:.0f}", **middle)
        begin += width
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="claims", xlim=(0, begin.max()))
    set_title(fig, title, 70)
    set_legend(fig, *ax.get_legend_handles_labels())
    fig.data = counts  # ty: ignore[missing-attribute]
    return fig


def draw_forest(
    rows: pd.DataFrame,  # claims of one report: claim, says, said, mean, low, high, effect
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    """A dot with its interval for each claim that was measured, sorted by what is said of it and by
    how far it lies. Raises `DataError` where nothing was measured.
    """
    rows = rows[rows["mean"].notna()].copy()
    if rows.empty:
        raise DataError(f"nothing to draw for '{title}'.")
    side = np.where(rows["says"] == "below", -1.0, 1.0)
    ends = rows[["mean", "low", "high"]].mul(side / rows["effect"], axis=0)
    rows["value"] = ends["mean"]
    rows["from"], rows["to"] = ends[["low", "high"]].min(axis=1), ends[["low", "high"]].max(axis=1)
    rows["place"] = [list(CLAIM_LOOKS).index(said) for said in rows["said"]]
    rows = rows.sort_values(["place", "value"], ascending=[True, False], ignore_index=True)
    labels = ["\n".join(textwrap.wrap(text, 58)) for text in rows["claim"]]
    widest = min(WIDEST, 1.05 * float(rows[["from", "to"]].abs().to_numpy().max()))
    lines = np.array([len(label.split("\n")) + 0.6 for label in labels])
    heights = lines.cumsum() - lines / 2  # the middle of each label
    fig, ax = plt.subplots(figsize=(8.2, 1.6 + 0.17 * lines.sum()))
    for said, part in rows.groupby("said", sort=False):
        _, colour, marker, _ = CLAIM_LOOKS[said]
        y = heights[part.index]
        value, low, high = (part[name].clip(-widest, widest) for name in ("value", "from", "to"))
        error = np.maximum(0, [value - low, high - value])
        dots: dict[str, Any] = dict(
            fmt=marker, color=colour, capsize=2, linewidth=1.5, markersize=5
        )
        ax.errorbar(value, y, xerr=error, label=said, **dots)
        for column, arrow, end in (("to", ">", 1), ("from", "<", -1)):
            beyond = (end * part[column] > widest).to_numpy()
            if beyond.any():
                place = np.full(int(beyond.sum()), end * widest)
                ax.plot(place, y[beyond], arrow, color=colour, markersize=6)
    ax.axvspan(-1, 1, color="#eeeeee", zorder=0, label="too small to matter")
    ax.axvline(0, color="#555555", linewidth=1.2, zorder=0.5)
    ax.set_yticks(heights, labels, fontsize=8)
    ax.set(ylim=(lines.sum() + 0.4, -0.4), xlim=(-widest * 1.05, widest * 1.05))
    ax.set_xlabel("difference over the smallest that would matter\n(right: as claimed)")
    ax.grid(axis="y", visible=False)
    set_title(fig, title, 70)
    set_legend(fig, *ax.get_legend_handles_labels())
    columns = ["id", "said", "value", "from", "to", "mean", "low", "high", "effect", "n"]
    fig.data = rows[columns]  # ty: ignore[missing-attribute]
    return fig


def claim_rows(
    rows: pd.DataFrame,  # claims of one report
) -> pd.DataFrame:  # for the page
    "A sign, the claim, what is reported, what is said here, and the lesson that explains it."
    return pd.DataFrame(
        {
            "": [CLAIM_LOOKS[said][0] for said in rows["said"]],
            "claim": rows["claim"],
            "reported": rows["reported"],
            "here": rows["said"],
            "explained in": [Link(*both) for both in zip(rows["lesson"], rows["address"])],
        }
    )


def say_counts(
    table: pd.DataFrame,  # as `count_table` takes it
) -> str:  # a sentence
    "How many claims hold, of those that could be decided."
    counts = table["said"].value_counts()
    decided = len(table) - counts.get("not testable here", 0)
    many = {"holds": "hold", "does not hold": "do not hold", "reversed": "are reversed"}
    parts = [
        f"{counts[said]} {said if counts[said] == 1 else many.get(said, said)}"
        for said in CLAIM_LOOKS
        if counts.get(said)
    ]
    reports = counted(table["report"].nunique(), "report")
    return (
        f"{counted(len(table), 'claim')} of {reports}, {decided} of them testable here: "
        f"{joined(parts)}."
    )


def say_correction(
    table: pd.DataFrame,  # with what each claim's own test says under `alone`
) -> str:  # a sentence; "" where nothing was measured
    "What changes when all claims are looked at together."
    measured = table[table["alone"] != ""]
    if measured.empty:
        return ""
    changed = int((measured["alone"] != measured["said"]).sum())
    return (
        f"Of {counted(len(measured), 'measured claim')}, {changed} had a verdict by itself that "
        "does not stand when the false discovery rate over all of them is held at 5 % (Benjamini "
        "and Yekutieli 2001)."
    )
