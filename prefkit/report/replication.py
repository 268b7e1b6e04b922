"""What the page of a report says beside its figures, whichever report it is: what the report itself
says of a figure, its settings beside ours, where it contradicts itself, what became of its claims,
and curves over seeds in a grid of panels.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from prefkit.report.curves import course, mean_curve
from prefkit.report.figures import looks, mean_interval, set_legend, set_title
from prefkit.report.ledger import claim_rows, say_correction, say_counts
from prefkit.report.page import Page
from prefkit.report.panels import draw_panels
from prefkit.report.words import called, number

__all__ = [
    "draw_courses",
    "draw_grid",
    "draw_spreads",
    "examples_of_seed",
    "last_value",
    "put_claims",
    "said_of_figure",
    "seed_curve",
    "shown_estimates",
    "stated_settings",
    "slip_lines",
]


_LINES = ("-", "--", ":", "-.")  # of the curves of a panel, in their order


def said_of_figure(
    paper: dict,  # a file of data/reported
    name: str,  # of its `figures`, such as figure_6
) -> str:  # a sentence
    "What the report prints under a figure and says of it; its curves are not at hand."
    figure = paper["figures"][name]
    said = f" It says: “{_bare(figure['says'])}”." if figure.get("says") else ""
    return f"The report's {figure['source']}: “{_bare(figure['caption'])}”.{said}"


def _bare(text: str) -> str:
    "A transcribed text without its marks for formulas and notes."
    text = re.sub(r"<sup>.*?</sup>", "", text)
    text = re.sub(r"\\(?=[A-Za-z_])|\$", "", text)
    return " ".join(text.replace(" ,", ",").split()).removesuffix(".")


def stated_settings(
    paper: dict,
    ours: dict[str, Any],  # setting -> what was taken here
) -> pd.DataFrame:  # a row for each setting that the report states
    "The report's settings, where they stand, and ours."
    rows = []
    for name, stated in paper["settings"].items():
        unit = f" {stated['unit']}" if stated.get("unit") else ""
        rows.append(
            {
                "setting": name.replace("_", " "),
                "report": f"{_in_words(stated['value'])}{unit}",
                "stands in": stated["source"],
                "here": _in_words(ours.get(name)),
            }
        )
    return pd.DataFrame(rows)


def _in_words(value) -> str:
    "A setting's value as text."
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def slip_lines(paper: dict) -> list[str]:
    "Where the report contradicts itself or what it names."
    return [
        f"{slip['about'].capitalize()} ({slip['source']}): “{slip['says']}”. {slip['found']}"
        for slip in paper.get("slips", [])
    ]


def put_claims(
    page: Page,
    rows: pd.DataFrame,  # claims of the report, as `ledger_table` makes them
    title: str = "What the report claims",
):
    "The report's claims: how many hold, each with its sign, and the numbers folded behind it."
    page.section(title, say_counts(rows))
    page.table(claim_rows(rows), "Signs: ✓ holds, ✗ does not hold, ⇄ reversed, ? cannot be told.")
    page.text(say_correction(rows))
    measured = rows[rows["mean"].notna()]
    if len(measured):
        hidden = ["report", "lesson", "address", "reported", "claim"]
        page.folded("The numbers behind the verdicts", measured.drop(columns=hidden), digits=3)


def seed_curve(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each
    stage: str,
    column: str,
    series: str,  # name of the curve
    split: str = "train",
    minus: str = "",  # another column, subtracted step by step
) -> pd.DataFrame:  # as `mean_curve` gives it
    "What a stage logged, mean over seeds with its interval."
    found = []
    for one in seeds.values():
        lines = one["training"].get(stage, [])
        values = course(lines, split, column)
        found.append(values - course(lines, split, minus) if minus else values)
    return mean_curve(found, split, series)


def last_value(
    seeds: dict[str, dict],
    stage: str,
    column: str,
    split: str = "validation",
    minus: str = "",
) -> tuple[float, float, float]:  # mean, low, high
    "The last value of a column over seeds."
    values = []
    for one in seeds.values():
        lines = one["training"][stage]
        last = course(lines, split, column).iloc[-1]
        values.append(last - (course(lines, split, minus).iloc[-1] if minus else 0.0))
    return mean_interval(values)


def draw_grid(
    curves: dict[tuple[str, str], pd.DataFrame],  # (row, column) -> curves of `seed_curve`
    title: str,  # a sentence that says what to see
    ylabel: str,  # with unit
    level: float | None = None,  # a line to read against
) -> Figure:  # the figure, its numbers in fig.data
    "Curves over the steps in panels: rows share their vertical axis."
    rows, columns = (list(dict.fromkeys(key[place] for key in curves)) for place in (0, 1))
    size = (max(5.4, 1.2 + 2.5 * len(columns)), 1.3 + 1.8 * len(rows))
    options: dict[str, Any] = dict(sharex=True, sharey="row", squeeze=False, figsize=size)
    fig, axes = plt.subplots(len(rows), len(columns), **options)
    names = list(dict.fromkeys(name for table in curves.values() for name in table["series"]))
    handles = {}
    for (row, column), table in curves.items():
        ax = axes[rows.index(row), columns.index(column)]
        for line, (name, look) in zip(_LINES, looks(names).items()):
            part = table[table["series"] == name].sort_values("x")
            shape: dict[str, Any] = dict(color=look.colour, linestyle=line, label=name)
            (handles[name],) = ax.plot(part["x"], part["value"], **shape)
            if "low" in part:
                ends = part["low"].astype(float), part["high"].astype(float)
                ax.fill_between(part["x"], *ends, color=look.colour, alpha=0.2, linewidth=0)
        if level is not None:
            ax.axhline(level, color="0.6", linewidth=0.8, zorder=0)
        ax.set_title(", ".join(filter(None, (row, column))), fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    fig.supylabel(ylabel, fontsize=10)
    set_title(fig, title, int(9.5 * size[0]))
    set_legend(fig, list(handles.values()), list(handles))
    told = [table.assign(row=key[0], column=key[1]) for key, table in curves.items()]
    fig.data = pd.concat(told, ignore_index=True)  # ty: ignore[missing-attribute]
    return fig


def draw_courses(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each
    names: dict[str, str],  # stages -> their names on the page
    panels: dict[str, tuple[str, str]],  # label of the y-axis -> column, split
    title: str,  # a sentence that says what to see
) -> Figure:
    "Several columns over the steps, one above the other."
    curves = {
        label: pd.concat(
            [seed_curve(seeds, stage, column, name, split) for stage, name in names.items()],
            ignore_index=True,
        )
        for label, (column, split) in panels.items()
    }
    return draw_panels(curves, title)


def draw_spreads(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each, with `spreads`
    models: list[str],
    judge: str,
    title: str,  # a sentence that says what to see
    name: Callable[[str], str] = called,  # of a model on the page
) -> Figure:  # the figure, its numbers in fig.data
    "How a judge's scores are distributed: the share of answers up to each, mean over seeds."
    fig, ax = plt.subplots(figsize=(5.4, 3.2))
    shares, told = [5 * place for place in range(21)], []
    for line, (model, look) in zip(_LINES * 2, looks(models).items()):
        of_seeds = [_spread(one, model, judge, shares) for one in seeds.values()]
        means = [mean_interval(values) for values in zip(*of_seeds)]
        shape: dict[str, Any] = dict(
            color=look.colour, linestyle=line, label=name(model), linewidth=1.8
        )
        ax.plot([mean for mean, *_ in means], shares, **shape)
        told += [
            {"model": model, "share": share, "score": mean, "low": low, "high": high}
            for share, (mean, low, high) in zip(shares, means)
        ]
    ax.set(xlabel=f"{judge} reward (points)", ylabel="answers up to it (%)", ylim=(0, 100))
    set_title(fig, title)
    set_legend(fig, *ax.get_legend_handles_labels(), columns=2)
    fig.data = pd.DataFrame(told)  # ty: ignore[missing-attribute]
    return fig


def _spread(found, model, judge, shares):
    "A model's quantiles in one seed, in its first way of decoding."
    row = next(row for row in found["spreads"] if (row["model"], row["judge"]) == (model, judge))
    return [row[f"q{share:02d}"] for share in shares]


def shown_estimates(
    table: pd.DataFrame,  # estimates as `flat` writes them, and other columns, which stay
    names: dict[str, str],  # estimate -> its heading
    digits: int = 1,
    factor: float = 1,  # 100: shares in per cent
) -> pd.DataFrame:  # for a page
    "Each estimate in one cell: mean [low, high]; nothing where it was not measured."
    kept = [name for name in table if not any(name.startswith(f"{each}_") for each in names)]

    def cell(row, name):
        ends = [factor * row[f"{name}_{end}"] for end in ("mean", "low", "high")]
        if any(map(math.isnan, ends)):
            return None
        mean, low, high = (number(end, digits) for end in ends)
        return f"{mean} [{low}, {high}]"

    told = {head: [cell(row, name) for _, row in table.iterrows()] for name, head in names.items()}
    return table[kept].assign(**told)


def examples_of_seed(
    found: dict,  # what `prefkit seeds` found in one seed
    wanted: list[str],  # models
    name: Callable[[str], str] = called,  # of a model on the page
) -> list[tuple[str, list[tuple[str, str, str]]]]:  # as `Page.example` takes
    "Prompts with what these models answered to them, and what the judges think of it."
    told = next(iter(found.get("answers", {}).values()), [])
    judges = ("gold", "second")

    def box(model, said):
        marks = [f"{judge} {number(said[judge], 1)}" for judge in judges if judge in said]
        cut = "" if said.get("ended", True) else ", cut off"
        return name(model), said["text"], ", ".join(marks) + cut

    return [
        # of data outside the project results name the row and do not quote it
        (one.get("prompt") or one["row"], [box(model, one["answers"][model]) for model in wanted])
        for one in told
    ]
