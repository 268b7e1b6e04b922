"""An experiment seen once and over seeds: the same questions, answered with intervals over prompts
or over seeds.
"""

import json
import math
from abc import ABC, abstractmethod

import numpy as np
import pandas as pd
from scipy.stats import quantile_test

from prefkit.core import resolve_path
from prefkit.report.claims import exact_p, rank_correlation
from prefkit.report.curves import course, curve, mean_curve
from prefkit.report.figures import mean_interval, say_interval
from prefkit.report.standings import clipped
from prefkit.stats.intervals import pooled_spread, smallest_detectable
from prefkit.stats.win_rate import outcomes, paired_bootstrap, win_rate_difference

__all__ = ["OneRun", "OverSeeds", "View", "answer_scores", "several_seeds"]

KEY = ("model", "reference", "judge", "decoding")
ENDS = ("", "_low", "_high")  # of an estimate's columns


def several_seeds(
    path: str,  # a committed file, as a user writes it
    command: str,  # that makes it
) -> tuple[dict | None, str]:  # the results or None, and why there are none
    "Results over seeds, where there are several."
    file = resolve_path(path)
    if not file.is_file():
        return None, f"{path} is not there. Make it: {command}."
    found = json.loads(file.read_text(encoding="utf-8"))
    if len(found["seeds"]) > 1:
        return found, ""
    return None, f"{path} holds one seed, and one seed has no spread. Make it: {command}."


def answer_scores(
    records: list[dict],  # of generations.jsonl, of all ways of decoding
) -> dict[tuple, np.ndarray]:  # (decoding, model, judge) -> (n,) scores, by prompt
    "The judges' scores of each model's answers."
    scores = {}
    for record in records:
        for judge, score in (("gold", record["gold"]["total"]), ("second", record["second"])):
            key = record["decoding"], record["model"], judge
            scores.setdefault(key, []).append(score)
    return {key: np.array(values) for key, values in scores.items()}


class View(ABC):
    "What an experiment found, as one run or over seeds; a subclass says what intervals are over."

    tag = ""  # ends the names of its files
    several = False
    name: str  # "seed 0", within a sentence
    start: str  # the same at the start of one
    scope: str  # "in this run"
    spread: str  # what intervals are over
    over: str  # the same as a sentence, for a caption
    band: str  # what the bands of curves are

    def __init__(
        self,
        found: list[dict],  # what `prefkit seeds` finds in each seed
        main: str,  # the decoding that is meant where none is named
        n_prompts: int,
    ):
        self.found, self.main, self.n_prompts = found, main, n_prompts
        self.rates = [
            {tuple(row[name] for name in KEY): row for row in one["win_rates"]} for one in found
        ]

    @abstractmethod
    def win(
        self, model: str, reference: str, judge: str = "gold", decoding: str | None = None
    ) -> tuple[float, float, float]:
        "Win rate with its interval."

    @abstractmethod
    def gap(
        self, model: str, other: str, reference: str, judge: str, decoding: str | None
    ) -> tuple[float, float, float]:
        "Win rate of one model less that of another, against one reference."

    @abstractmethod
    def order(
        self, theirs: dict[str, float], reference: str, judge: str, decoding: str | None
    ) -> tuple[float, float, float]:
        "Rank correlation with its interval."

    @abstractmethod
    def speed(self, stage: str, factor: int = 1) -> tuple[float, float, float] | None:
        "A stage's pace, times a factor; None where it has no log."

    @abstractmethod
    def curve(self, stage: str, split: str, column: str, series: str) -> pd.DataFrame:
        "A tidy curve; empty where nothing was logged."

    @abstractmethod
    def say_changes(self, changes: list[float], digits: int) -> str:
        "What is said of changes behind their ends."

    @abstractmethod
    def say_share(self, shares: list[float]) -> str:
        "A share in words."

    @abstractmethod
    def scores_of(self, row: dict, column: str) -> tuple[float, float, float]:
        "A mean score with its interval."

    @property
    def has_curves(self) -> bool:
        "Whether the course of training was kept in every seed."
        return all(one.get("training") for one in self.found)

    def has(self, model: str, reference: str) -> bool:
        "Whether two models were set against each other in every seed."
        return all((model, reference, "gold", self.main) in one for one in self.rates)

    def distances(self) -> dict[str, tuple[float, float, float]]:  # model -> nats an answer
        "How far each model has moved from the start, where that was measured."
        found = [
            # none of a model that has other tokens than the start
            {row["model"]: row for row in one.get("distances", []) if row["kl"] is not None}
            for one in self.found
        ]
        models = [name for name in found[0] if all(name in rows for rows in found)]
        if self.several:
            return {name: mean_interval([rows[name]["kl"] for rows in found]) for name in models}
        return {name: tuple(found[0][name][f"kl{end}"] for end in ENDS) for name in models}

    def rows(self, model: str, reference: str, judge: str, decoding: str | None) -> list[dict]:
        "A win rate in each seed."
        return [one[model, reference, judge, decoding or self.main] for one in self.rates]

    def difference(
        self,
        names: tuple[str, ...],  # a comparison of a `Claim`
        judge: str = "gold",
        decoding: str | None = None,
    ) -> tuple[float, float, float]:
        "A comparison as a difference from no difference, with its interval."
        if len(names) == 3:
            return self.gap(*names, judge, decoding)
        value, low, high = self.win(*names, judge, decoding)
        return value - 0.5, low - 0.5, high - 0.5

    def in_seeds(
        self, names: tuple[str, ...], judge: str = "gold", decoding: str | None = None
    ) -> list[float]:
        "A comparison in each seed, as a difference from no difference."
        *models, reference = names
        rates = [self.rows(model, reference, judge, decoding) for model in models]
        if len(rates) == 1:
            return [row["rate"] - 0.5 for row in rates[0]]
        return [one["rate"] - two["rate"] for one, two in zip(*rates)]

    def detectable(
        self,
        comparisons: list[tuple[str, ...]],  # of one kind: their spread between seeds is pooled
        judge: str = "gold",
        decoding: str | None = None,
    ) -> float:  # NaN with one seed
        "The smallest difference that so many seeds tell from none in four cases of five."
        spread = pooled_spread([self.in_seeds(names, judge, decoding) for names in comparisons])
        return smallest_detectable(spread, len(self.found))

    def agreement(
        self,
        theirs: dict[str, float],  # model -> what somebody else found
        reference: str,
        judge: str = "gold",
        decoding: str | None = None,
    ) -> tuple[float, float, float, int, float]:  # value, low, high, models, exact p
        "Rank correlation of the win rates with somebody else's."
        value, low, high = self.order(theirs, reference, judge, decoding)
        ours = [self.win(model, reference, judge, decoding)[0] for model in theirs]
        p = exact_p(list(theirs.values()), ours)
        return value, max(-1.0, low), min(1.0, high), len(theirs), p

    def wall(self, stage: str) -> list[float]:
        "Wall seconds of a stage in each seed."
        return [one["wall_seconds"][stage] for one in self.found]

    def courses(self, stage: str, split: str, column: str) -> list[pd.Series]:
        "What a stage logged, in each seed."
        logs = [one.get("training", {}).get(stage, []) for one in self.found]
        return [course(lines, split, column) for lines in logs]

    def changes(self, stage: str, column: str) -> list[float]:
        "By how much a validation column changed from start to end, in each seed."
        found = self.courses(stage, "validation", column)
        return [float(values.iloc[-1] - values.iloc[0]) for values in found]

    def paces(self, stage: str) -> list[list[float]]:
        "Optimiser steps a second, window by window of the log, in each seed."
        return [pace(one.get("training", {}).get(stage, [])) for one in self.found]


def pace(
    lines: list[dict],  # of metrics.jsonl
) -> list[float]:  # optimiser steps a second, sampling included
    "How fast training was, window by window."
    speeds, last = [], 0
    logged = [line for line in lines if line["split"] == "train"]
    for line in sorted(logged, key=lambda line: line["step"]):
        if line["step"] > last:
            seconds = line["seconds"] + line.get("seconds_sampling", 0.0)
            speeds.append((line["step"] - last) / seconds)
        last = line["step"]
    return speeds


class OneRun(View):
    "One seed: intervals are over its prompts."

    scope = "in this run"

    def __init__(
        self,
        found: dict,  # what `prefkit seeds` finds in the run folders
        main: str,  # the decoding that is meant where none is named
        scores: dict[tuple, np.ndarray],  # as `answer_scores` gives them
        seed: int,
    ):
        super().__init__([found], main, len(next(iter(scores.values()))))
        self.scores = scores
        self.name, self.start = f"seed {seed}", f"Seed {seed}"
        self.spread = f"over {self.n_prompts} prompts"
        self.over = f"Seed {seed}, {self.n_prompts} held-out prompts; 95 % intervals over prompts."
        self.band = (
            "Band of the training loss: 95 % interval within a sliding window; validation is "
            "always on the same rows."
        )

    def win(self, model, reference, judge="gold", decoding=None) -> tuple[float, float, float]:
        "Win rate with its interval."
        (row,) = self.rows(model, reference, judge, decoding)
        return row["rate"], row["low"], row["high"]

    def gap(self, model, other, reference, judge="gold", decoding=None):
        "Win rate of one model less that of another, against one reference, paired by prompt."
        decoding = decoding or self.main
        found = win_rate_difference(
            *(self.scores[decoding, name, judge] for name in (model, other, reference))
        )
        return found.value, found.low, found.high

    def order(self, theirs, reference, judge, decoding):
        "Rank correlation with its interval from resampled prompts."
        decoding = decoding or self.main
        against = self.scores[decoding, reference, judge]
        won = [outcomes(self.scores[decoding, model, judge], against) for model in theirs]

        def correlation(*columns):
            return rank_correlation(list(theirs.values()), [each.mean() for each in columns])

        found = paired_bootstrap(correlation, *won, repetitions=1000, method="percentile")
        return found.value, found.low, found.high

    def speed(self, stage: str, factor: int = 1) -> tuple[float, float, float] | None:
        "The median of a stage's pace with that of its order statistics; None where it has no log."
        speeds = factor * np.array(self.paces(stage)[0])
        if not len(speeds):
            return None
        median = float(np.median(speeds))
        interval = quantile_test(speeds, q=median, p=0.5).confidence_interval(0.95)
        return median, float(interval.low), float(interval.high)

    def curve(self, stage: str, split: str, column: str, series: str) -> pd.DataFrame:
        "A tidy curve; empty where nothing was logged."
        return curve(self.courses(stage, split, column)[0], split, series)

    def say_changes(self, changes: list[float], digits: int) -> str:
        "Nothing: one run's change is said with its ends."
        return ""

    def say_share(self, shares: list[float]) -> str:
        "A share without an interval."
        return f"{100 * shares[0]:.0f} %"

    def scores_of(self, row: dict, column: str) -> tuple[float, float, float]:
        "A mean score with its interval over prompts, where there is one."
        return row[column], row.get(f"{column}_low", math.nan), row.get(f"{column}_high", math.nan)


class OverSeeds(View):
    "Several seeds: intervals are over seeds, by Student's t."

    tag, several = "_seeds", True

    def __init__(
        self,
        found: list[dict],  # what `prefkit seeds` found in each seed
        main: str,  # the decoding that is meant where none is named
        n_prompts: int,
    ):
        super().__init__(found, main, n_prompts)
        self.name = self.start = f"{len(found)} seeds"
        self.scope = self.spread = f"over {len(found)} seeds"
        self.over = (
            f"Mean over {len(found)} seeds, {n_prompts} held-out prompts each; 95 % intervals over "
            "seeds (Student's t)."
        )
        self.band = f"Mean over {len(found)} seeds; bands: 95 % intervals over seeds (Student's t)."

    def win(self, model, reference, judge="gold", decoding=None) -> tuple[float, float, float]:
        "Win rate with its interval, kept within [0, 1]."
        rows = self.rows(model, reference, judge, decoding)
        return clipped(*mean_interval([row["rate"] for row in rows]))

    def gap(self, model, other, reference, judge="gold", decoding=None):
        "Win rate of one model less that of another, against one reference, paired by seed."
        return mean_interval(self.in_seeds((model, other, reference), judge, decoding))

    def order(self, theirs, reference, judge, decoding):
        "The mean of the seeds' rank correlations."
        rates = [self.rows(model, reference, judge, decoding) for model in theirs]
        ours = [[row["rate"] for row in rows] for rows in zip(*rates)]
        return mean_interval([rank_correlation(list(theirs.values()), each) for each in ours])

    def speed(self, stage: str, factor: int = 1) -> tuple[float, float, float] | None:
        "The mean of the seeds' median paces; None where one has no log."
        paces = self.paces(stage)
        if not all(paces):
            return None
        return mean_interval([np.median(factor * np.array(speeds)) for speeds in paces])

    def curve(self, stage: str, split: str, column: str, series: str) -> pd.DataFrame:
        "A tidy curve with its band; empty where nothing was logged."
        return mean_curve(self.courses(stage, split, column), split, series)

    def say_changes(self, changes: list[float], digits: int) -> str:
        "The mean of the seeds' changes."
        return f" (change {say_interval(*mean_interval(changes), False, digits)})"

    def say_share(self, shares: list[float]) -> str:
        "A mean share."
        return say_interval(*mean_interval(shares))

    def scores_of(self, row: dict, column: str) -> tuple[float, float, float]:
        "A mean score over seeds."
        return tuple(row[column][end] for end in ("mean", "low", "high"))
