"""What the page on "Minor DPO reject penalty" draws that no other page has: its runs by method,
learning rate and beta, the coefficient of its figure 1, and right answers by setting.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from prefkit.core import ConfigError
from prefkit.report.figures import COLOURS, looks, set_legend, set_title
from prefkit.report.replication import draw_grid, last_value, seed_curve
from prefkit.report.standings import Standings
from prefkit.report.words import called

__all__ = [
    "PairRun",
    "draw_coefficient",
    "draw_log_ratios",
    "draw_right",
    "end_table",
    "pair_runs",
    "right_table",
    "say_right_answers",
]


@dataclass(frozen=True)
class PairRun:
    "A stage as the report tells its runs apart."

    stage: str
    method: str
    rate: float  # learning rate
    beta: float


def pair_runs(
    stages: dict[str, dict],  # stage -> its parameters
) -> list[PairRun]:  # sorted by method as they come, learning rate, beta
    "The stages of a config that train on pairs; raises `ConfigError` where there is none."
    runs = [
        PairRun(name, given["method"], given["learning_rate"], given["hyperparameters"]["beta"])
        for name, given in stages.items()
        if "beta" in given.get("hyperparameters", {})
    ]
    if not runs:
        raise ConfigError("the config has no stage with a beta.", field="stages")
    methods = list(dict.fromkeys(run.method for run in runs))
    return sorted(runs, key=lambda run: (methods.index(run.method), run.rate, run.beta))


def draw_coefficient(
    betas: list[float],
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    "The weight of a pair in DPO's gradient, beta times sigmoid of -beta margin (figure 1)."
    margins, lines = np.linspace(-40, 100, 141), ("-", "--", "-.", ":")
    colours = ("blue", "orange", "green", "black")
    fig, ax = plt.subplots(figsize=(5.4, 2.8))
    told = []
    for beta, line, colour in zip(sorted(betas, reverse=True), lines, colours):
        weight = beta / (1 + np.exp(beta * margins))
        ax.plot(margins, weight, linestyle=line, color=COLOURS[colour], label=f"beta {beta:g}")
        told.append(pd.DataFrame({"beta": beta, "margin": margins, "weight": weight}))
    ax.set(xlabel="margin (nats)", ylabel="weight f (per nat)")
    set_title(fig, title)
    set_legend(fig, *ax.get_legend_handles_labels())
    fig.data = pd.concat(told, ignore_index=True)  # ty: ignore[missing-attribute]
    return fig


def draw_log_ratios(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each
    runs: list[PairRun],  # of one method
    title: str,  # a sentence that says what to see
) -> Figure:
    "Log-ratios of held-out pairs, and their margin, by learning rate and beta."
    columns = {"chosen": "", "rejected": "", "margin": "logratio_rejected"}
    curves = {}
    for run in runs:
        parts = [
            seed_curve(
                seeds,
                run.stage,
                f"logratio_{'chosen' if name == 'margin' else name}",
                name,
                "validation",
                minus,
            )
            for name, minus in columns.items()
        ]
        row, column = f"rate {run.rate:.0e}", f"beta {run.beta:g}"
        curves[row, column] = pd.concat(parts, ignore_index=True)
    return draw_grid(curves, title, "log-ratio (nats)", level=0.0)


def end_table(
    seeds: dict[str, dict],
    runs: list[PairRun],
) -> pd.DataFrame:  # mean, low and high of each
    "Log-ratios of held-out pairs after the last step, by setting."
    rows = []
    for run in runs:
        row = {"method": called(run.method), "rate": run.rate, "beta": run.beta}
        for name in ("chosen", "rejected"):
            ends = last_value(seeds, run.stage, f"logratio_{name}")
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends))
        ends = last_value(seeds, run.stage, "logratio_chosen", minus="logratio_rejected")
        rows.append(row | dict(zip(("margin", "margin_low", "margin_high"), ends)))
    return pd.DataFrame(rows)


def right_table(
    standings: Standings,
    runs: list[PairRun],
) -> pd.DataFrame:  # shares with their intervals over seeds
    "Share of right answers and of answers that end, by setting."
    rows = []
    for run in runs:
        row = {"method": run.method, "rate": run.rate, "beta": run.beta}
        for name in ("right", "ended"):
            ends = standings.score(run.stage, name)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends))
        rows.append(row)
    return pd.DataFrame(rows)


def draw_right(
    table: pd.DataFrame,  # as `right_table` makes it
    start: float,  # share of the model that all began with
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    "Right answers against beta, a panel for each learning rate (figure 6)."
    rates = sorted(table["rate"].unique())
    fig, axes = plt.subplots(1, len(rates), sharey=True, squeeze=False, figsize=(7.4, 3.1))
    methods = list(dict.fromkeys(table["method"]))
    for ax, rate in zip(axes[0], rates):
        for step, (method, look) in enumerate(looks(methods).items()):
            part = table[(table["rate"] == rate) & (table["method"] == method)].sort_values("beta")
            x = np.arange(len(part)) + 0.08 * (step - (len(methods) - 1) / 2)
            value, low, high = (part[f"right{end}"] * 100 for end in ("", "_low", "_high"))
            shape: dict[str, Any] = dict(
                color=look.colour, linestyle=look.line, marker=look.marker or "o"
            )
            error = np.maximum(0, [value - low, high - value])
            ax.errorbar(x, value, yerr=error, capsize=2.5, label=called(method), **shape)
        ax.axhline(100 * start, color="0.4", linestyle=(0, (1, 1.5)), label="SFT")
        ax.set_xticks(range(part["beta"].nunique()), [f"{one:g}" for one in sorted(part["beta"])])
        ax.set(xlabel="beta", title=f"learning rate {rate:.0e}")
    fig.supylabel("right answers (%)", fontsize=10)
    set_title(fig, title, 70)
    set_legend(fig, *axes[0, 0].get_legend_handles_labels())
    fig.data = table  # ty: ignore[missing-attribute]
    return fig


def say_right_answers(
    table: pd.DataFrame,  # as `right_table` makes it
    method: str,
    other: str,
) -> str:  # a sentence
    "In how many settings a method gives more right answers than another, by the means."
    sides = [
        table[table["method"] == name].set_index(["rate", "beta"])["right"]
        for name in (method, other)
    ]
    ahead = int((sides[0] > sides[1]).sum())
    return (
        f"{called(method)} gives more right answers than {called(other)} in {ahead} of "
        f"{len(sides[0])} settings, by the means over seeds."
    )
