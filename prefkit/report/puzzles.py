"""What the page on Countdown says: the share of puzzles that models solve, and whose share is apart
from whose.

Within a seed an interval is over puzzles, and says what other puzzles would change; over seeds it
is Student's t of the seeds' means, and says what another training run would change.
"""

import math

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefkit.report.claims import sign
from prefkit.report.figures import (
    draw_intervals,
    mean_interval,
    say_change,
    say_interval,
    say_seconds,
    sentence,
    set_legend,
    set_title,
)
from prefkit.report.panels import draw_seed_lines, ends_of, interval_table, seed_looks
from prefkit.report.standings import clipped, stage_seconds
from prefkit.report.words import called, counted, joined, number, say_estimate

__all__ = [
    "DECODINGS",
    "SIGNS",
    "Puzzles",
    "Walk",
    "points",
    "say_longer",
    "say_settings",
]

DECODINGS = {
    "right": "greedy",
    "sampled": "sampled",
}  # column of the scores -> how answers were drawn
SIGNS = {1: "above zero", -1: "below zero", 0: "not apart from zero"}
OVER = "over seeds"  # the label of an estimate that speaks for all seeds


def points(value: float, low: float, high: float) -> str:  # "12.0 [8.1, 15.9]"
    "A difference of shares, in percentage points."
    return say_interval(100 * value, 100 * low, 100 * high, percent=False, digits=1)


class Puzzles:
    "Models on the same puzzles, over one seed or several."

    def __init__(
        self,
        results: dict,  # as `prefkit seeds` writes it
    ):
        self.seeds = results["seeds"]  # seed -> its tables
        self.models = [row["model"] for row in results["over_seeds"]["scores"]]
        self.columns = list(results["over_seeds"]["scores"][0])
        self.kinds = [kind for kind in DECODINGS if kind in self.columns]
        first = next(iter(self.seeds.values()))
        self.n = first["scores"][0]["n"]
        self.known = {(row["model"], row["reference"]) for row in first["differences"]}
        self.several = len(self.seeds) > 1

    @property
    def says(self) -> str:
        "What the intervals of a figure are."
        within = (
            f"{self.n} held-out puzzles, the same for all models; intervals are 95 %, within a "
            "seed over puzzles"
        )
        if not self.several:
            return f"{within}. One seed."
        return f"{within}, over {len(self.seeds)} seeds by Student's t."

    def row(self, seed: str, table: str, **names) -> dict:
        "The row of a seed's table that has these names."
        rows = self.seeds[seed][table]
        return next(row for row in rows if all(row[key] == name for key, name in names.items()))

    def estimates(self, table: str, column: str, **names) -> dict[str, tuple]:
        "A number by seed, and over seeds if there are several: label -> (value, low, high)."
        rows = {seed: self.row(seed, table, **names) for seed in self.seeds}
        found = {
            f"seed {seed}": (row[column], row[f"{column}_low"], row[f"{column}_high"])
            for seed, row in rows.items()
        }
        if self.several:
            found[OVER] = mean_interval([row[column] for row in rows.values()])
        return found

    def accuracy(self, model: str, kind: str) -> dict[str, tuple]:
        "Share of puzzles solved: label -> (value, low, high)."
        found = self.estimates("scores", kind, model=model)
        return found | ({OVER: clipped(*found[OVER])} if self.several else {})

    def best(self, model: str, kind: str) -> tuple[float, float, float]:
        "The estimate that speaks for all seeds."
        return list(self.accuracy(model, kind).values())[-1]

    def difference(self, model: str, reference: str, kind: str) -> dict[str, tuple]:
        "Difference in accuracy, puzzle by puzzle within a seed: label -> (value, low, high)."
        column = f"{kind}_difference"
        return self.estimates("differences", column, model=model, reference=reference)

    def signs(self, model: str, reference: str, kind: str) -> list[int]:
        "On which side of zero each seed's own difference lies."
        found = self.difference(model, reference, kind)
        return [sign(low, high) for label, (_, low, high) in found.items() if label != OVER]

    def say_pair(self, model: str, reference: str, kind: str) -> str:
        "Each seed's difference with its interval, and what they say together."
        found = self.difference(model, reference, kind)
        what = f"{called(model)} less {called(reference)}, {DECODINGS[kind]} answers"
        said = {label: SIGNS[sign(low, high)] for label, (_, low, high) in found.items()}
        if not self.several:
            ((label, ends),) = found.items()
            return f"{what}: {points(*ends)} points, {said[label]}."
        each = ", ".join(
            f"{points(*ends)} ({label}, {said[label]})"
            for label, ends in found.items()
            if label != OVER
        )
        signs = self.signs(model, reference, kind)
        return (
            f"{what}: apart from zero in {sum(map(bool, signs))} of {counted(len(signs), 'seed')}; "
            f"in points {each}. Over seeds: {points(*found[OVER])} points, {said[OVER]}."
        )

    def say_better(self, reference: str, kind: str, models: list[str]) -> str:
        "Which models are above a reference in every seed by its own interval, and which are not."
        name = called(reference)
        every = "in every seed" if self.several else "in the one seed"
        groups = {"above": [], "below": [], "": []}
        for model in models:
            signs = self.signs(model, reference, kind)
            side = "above" if min(signs) == 1 else "below" if max(signs) == -1 else ""
            groups[side].append(called(model))
        said = [
            f"{joined(names)} {'is' if len(names) == 1 else 'are'} {side} {name} {every}"
            for side, names in groups.items()
            if side and names
        ]
        if groups[""]:
            some = "in at least one seed" if self.several else every
            said.append(f"{joined(groups[''])} cannot be told apart from {name} {some}")
        return (
            f"{sentence(DECODINGS[kind])} answers, by each seed's own interval: {'; '.join(said)}."
        )

    def say_most(self, kind: str, models: list[str]) -> str:
        "Means of some models, the highest first, broken between models only."
        said = []
        for model in sorted(models, key=lambda each: -self.best(each, kind)[0]):
            share = number(100 * self.best(model, kind)[0])
            said.append(f"{called(model)}\u00a0{share}\u00a0%")
        return ", ".join(said)

    def draw_accuracy(
        self, kind: str, models: list[str]
    ) -> tuple[Figure, str]:  # the figure and its caption
        "Every model's accuracy, by seed and over seeds."
        most = self.say_most(kind, [model for model in models if model != "base"])
        fig = draw_intervals(
            interval_table({called(model): self.accuracy(model, kind) for model in models}),
            title=f"{DECODINGS[kind]}: {most}",
            xlabel=f"puzzles solved, {DECODINGS[kind]} answers (%)",
            percent=True,
        )
        return fig, f"Accuracy of {DECODINGS[kind]} answers: {most}. {self.says}"

    def draw_differences(
        self,
        kind: str,
        pairs: list[tuple[str, str]],  # (model, reference)
        alone: str,  # title where there is but one pair
    ) -> tuple[Figure, str]:  # the figure and its caption
        "Differences of some pairs, by seed and over seeds."
        rows = {
            f"{called(model)} − {called(reference)}": {
                label: [100 * end for end in ends]
                for label, ends in self.difference(model, reference, kind).items()
            }
            for model, reference in pairs
        }
        apart = sum(abs(sum(self.signs(*pair, kind))) == len(self.seeds) for pair in pairs)
        where = " in every seed" if self.several else ""
        title = f"{apart} of {len(pairs)} differences apart from zero{where}"
        fig = draw_intervals(
            interval_table(rows),
            title=f"{DECODINGS[kind]}: {title if len(pairs) > 1 else alone}",
            xlabel=f"difference, {DECODINGS[kind]} answers (points)",
            reference=(0, "no difference"),
        )
        return fig, (
            f"Difference in accuracy of {DECODINGS[kind]} answers, puzzle by puzzle. {self.says}"
        )

    def mean(self, model: str, column: str) -> tuple[float, float, float]:
        "A score over seeds: mean, low, high; NaN where a seed has none."
        rows = [self.row(seed, "scores", model=model) for seed in self.seeds]
        return mean_interval([row.get(column, math.nan) for row in rows])

    def table(
        self,
        reported: dict[str, float] | None = None,  # model -> accuracy, beside ours
    ) -> pd.DataFrame:
        "All that is known of each model."
        times = stage_seconds(self.seeds)
        seconds = dict(zip(times.get("stage", []), times.get("seconds", [])))
        digits = {"any": 1, "tokens": 1, "ended": 1, "entropy": 2}
        rows = []
        for model in self.models:
            row = {"model": called(model)}
            for kind in self.kinds:
                row[DECODINGS[kind]] = say_estimate(self.best(model, kind), True, 1)
            if reported is not None:
                known = reported.get(model)
                row["in the report"] = None if known is None else f"{100 * known:.0f} %"
            for column in digits:
                if column in self.columns:
                    share = column in ("any", "ended")
                    row[column] = say_estimate(self.mean(model, column), share, digits[column])
            row["training"] = say_seconds(seconds[model]) if model in seconds else None
            rows.append(row | {"puzzles": str(self.n), "seeds": str(len(self.seeds))})
        return pd.DataFrame(rows)

    def accuracies(self) -> pd.DataFrame:
        "Accuracies by seed and over seeds as numbers."
        rows = []
        for model in self.models:
            for kind in self.kinds:
                for label, ends in self.accuracy(model, kind).items():
                    row = {"model": model, "answers": DECODINGS[kind], "of": label, **ends_of(ends)}
                    rows.append(row | {"puzzles": self.n})
        return pd.DataFrame(rows)

    def differences(
        self,
        pairs: list[tuple[str, str]],  # (model, reference)
    ) -> pd.DataFrame:
        "Differences by seed and over seeds as numbers, each with its verdict."
        rows = []
        for model, reference in pairs:
            for kind in self.kinds:
                for label, ends in self.difference(model, reference, kind).items():
                    row: dict[str, object] = {"model": model, "reference": reference}
                    row |= {"answers": DECODINGS[kind], "of": label}
                    row |= ends_of(ends, ("difference", "low", "high"))
                    rows.append(row | {"verdict": SIGNS[sign(*ends[1:])]})
        return pd.DataFrame(rows)


class Walk:
    """What the online runs logged at each validation: the share of puzzles that a sampled answer
    solves; the mean reward where a run learned from another one and no verdict was logged.
    """

    def __init__(
        self,
        seeds: dict,  # seed -> what `prefkit seeds` found for it
    ):
        self.seeds = list(seeds)
        lines = [
            (model, seed, line)
            for seed, one in seeds.items()
            for model, curve in one.get("curves", {}).items()
            for line in curve
            if "reward" in line
        ]
        self.column = "reward"
        for name in ("reward_countdown", "part_correct"):
            if lines and all(name in line for *_, line in lines):
                self.column = name
        rows = [(model, seed, line["step"], line[self.column]) for model, seed, line in lines]
        self.table = pd.DataFrame(rows, columns=["model", "seed", "step", "value"])
        self.models = list(dict.fromkeys(self.table["model"]))
        self.share = self.column != "reward"
        self.factor, self.digits = (100, 1) if self.share else (1, 2)
        self.label = "puzzles solved (%)" if self.share else "mean reward (points)"

    def ends(self, model: str) -> tuple[float, float]:
        "Mean over seeds at the first and at the last validation, in the unit of the picture."
        part = self.table[self.table["model"] == model].sort_values("step")
        values = part.groupby("seed")["value"]
        return self.factor * values.first().mean(), self.factor * values.last().mean()

    def say(self, model: str) -> str:
        "What became of a run."
        step = self.table.loc[self.table["model"] == model, "step"].max()
        over = f" (mean of {len(self.seeds)} seeds)" if len(self.seeds) > 1 else ""
        what = (
            "the share of validation puzzles solved by sampled answers, in percent,"
            if self.share
            else "the mean reward of answers to the validation puzzles"
        )
        change = say_change(*self.ends(model), digits=self.digits)
        return f"{called(model)}: {what} {change}, in {step} steps{over}."

    def draw(self) -> Figure:  # the figure, its numbers in fig.data
        "A panel a method, a line a seed."
        size = (5.4, 3.3)
        fig, axes = plt.subplots(1, len(self.models), sharey=True, squeeze=False, figsize=size)
        marks, moved = seed_looks(self.seeds, beside=()), []
        for ax, model in zip(axes[0], self.models):
            part = self.table[self.table["model"] == model]
            draw_seed_lines(ax, part, "step", "value", marks, self.factor)
            ax.set_title(called(model), fontsize=10.5, fontweight="normal", loc="left")
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.set_xlabel("step")
            first, last = (number(end, self.digits) for end in self.ends(model))
            moved.append(f"{called(model)} {first} to {last}{' %' if self.share else ''}")
        fig.supylabel(self.label, fontsize=10.5)
        set_title(fig, "Validation, start to end: " + ",\n".join(moved), width=None)
        if len(marks) > 1:
            set_legend(fig, *axes[0, 0].get_legend_handles_labels(), columns=3)
        fig.data = self.table  # ty: ignore[missing-attribute]  its numbers
        return fig


def say_longer(
    results: dict,  # of the control that takes longer, as `prefkit seeds` writes it
    methods: dict[str, list[float]],  # method -> its wall seconds in each seed
) -> list[str]:
    "The methods against a control that takes longer than they, seed by seed."
    (one,) = results["seeds"].values()
    took = [seconds for name, seconds in one["wall_seconds"].items() if name.startswith("control")]
    theirs = [seconds for own in methods.values() for seconds in own]
    lines = [
        f"SFT continued for {min(took):.0f} to {max(took):.0f} seconds; the methods took "
        f"{min(theirs):.0f} to {max(theirs):.0f}."
    ]
    for model in methods:
        rows = [row for row in one["differences"] if row["model"] == model]
        seeds = ", ".join(row["stage"].rpartition("_")[2] for row in rows)
        for kind in ("sampled", "right"):
            ends = [f"{kind}_difference{end}" for end in ("", "_low", "_high")]
            each = ", ".join(points(*(row[name] for name in ends)) for row in rows)
            above = sum(row[f"{kind}_difference_low"] > 0 for row in rows)
            lines.append(
                f"{called(model)} less the longer control, {DECODINGS[kind]} answers: {each} "
                f"points in seeds {seeds}; apart from zero in {above} of {len(rows)}."
            )
    return lines


def say_settings(
    name: str,  # of a run with LoRA
    twin: str,  # of the same of all weights
    stages: dict[str, dict],  # stage -> parameters
    start: str,  # the model that the run begins with
) -> str:
    "How a run with LoRA and its twin differ."
    one, two = stages[name], stages[twin]
    return (
        f"{called(name)}, rank {one['lora_rank']}, alpha {one['lora_alpha']}, dropout "
        f"{one['lora_dropout']:g}, on {joined(one['lora_targets'])}, starts from {start} and takes "
        f"learning rate {one['learning_rate']:g}, where {called(twin)} takes "
        f"{two['learning_rate']:g}."
    )
