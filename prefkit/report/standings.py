"""Models compared over seeds: what a committed file of `prefkit seeds` says of their win rates and
scores.
"""

import json
import math

import pandas as pd
from matplotlib.figure import Figure

from prefkit.core import DataError, resolve_path
from prefkit.report.claims import sign
from prefkit.report.figures import draw_intervals, mean_interval, nice_name
from prefkit.report.panels import ends_of, interval_table
from prefkit.report.words import called, number, weights_words

__all__ = [
    "SCORES",
    "TRIPLE",
    "Standings",
    "clipped",
    "draw_win_rates",
    "flat",
    "made_by",
    "of_world",
    "of_decoding",
    "of_first_decoding",
    "read_results",
    "say_scores",
    "stage_seconds",
]

REFERENCES = ("sft", "control")  # what methods are compared with on a page, where it was run
SCORES = ("gold", "second", "right", "tokens", "ended")  # columns of a table of scores
TRIPLE = ("mean", "low", "high")


def read_results(
    path: str,  # a committed file, as a user writes it
    command: str = "",  # that makes it; empty: the page can do without
) -> dict | None:
    "A committed result; where it is missing None, or `DataError` with the command that makes it."
    file = resolve_path(path)
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    if not command:
        return None
    text = f"{path}: no such results. Make them: {command}"
    raise DataError(text, field="results", reason="missing")


def made_by(
    results: dict,  # what `prefkit seeds` or `prefkit study` wrote
    packages: tuple[str, ...] = ("python", "torch", "transformers"),  # whose versions are told
    **more,  # columns between the device and the versions
) -> dict:  # one row of a table
    """When, by which revision and on which machine results were made; seeds that were added later
    have their own dates and revisions.
    """
    versions, told = results["versions"], weights_words(results)
    pieces = [one["made"] for one in results.get("seeds", {}).values() if "made" in one]
    pieces = pieces or [results]
    revisions = [(piece["git"]["revision"] or "")[:12] for piece in pieces]
    return {
        "date": ", ".join(dict.fromkeys(piece["date"] for piece in pieces)),
        "revision": ", ".join(dict.fromkeys(revisions)),
        "changed files": any(piece["git"]["dirty"] for piece in pieces),
        "device": results.get("device"),
        **({"weights": told} if told else {}),
        **more,
        **{name: versions[name] for name in packages if name in versions},
    }


def of_world(
    results: dict,  # what `prefkit seeds` or `prefkit study` wrote
) -> str:
    "Which pairs of the tiny world results were made with."
    version = results["versions"].get("tiny world", "1")
    told = {"1": "two answers of one answerer (before 2026-11-29)", "2": "best of four"}
    return told.get(version, version)


def clipped(
    value: float,
    low: float,
    high: float,  # a share's interval over seeds, which may leave [0, 1]
) -> tuple[float, float, float]:
    "The same, kept within [0, 1]."
    return value, max(0.0, low), min(1.0, high)


class Standings:
    """How models stand to their references, by win rate and by score.

    Intervals are over seeds, by Student's t; with one seed they are over its prompts, where there
    are some.
    """

    def __init__(
        self,
        results: dict,  # as `prefkit seeds` writes it; one decoding
        bounds: tuple[str, ...] = (),  # models trained on the reward that judges: no methods
    ):
        self.results, self.bounds = results, list(bounds)
        self.seeds = results["seeds"]  # seed -> its tables
        self.first = next(iter(self.seeds.values()))
        self.n_prompts = self.first["win_rates"][0]["n"]
        self.rates = self._win_rates()
        self.scores = self._scores()
        references = list(dict.fromkeys(reference for _, reference, _ in self.rates))
        known = [name for name in REFERENCES if name in references]
        self.compared = known or references[-1:]
        beside = {"base", *references, *self.bounds}
        self.methods = [model for model in self.scores if model not in beside]

    def _win_rates(self):
        "(model, reference, judge) -> mean, low, high."
        tables = self.first if self.alone else self.results["over_seeds"]
        found = {}
        for row in tables["win_rates"]:
            if self.alone:
                ends = row["rate"], row["low"], row["high"]
            else:
                ends = (row["rate"][end] for end in TRIPLE)
            found[row["model"], row["reference"], row["judge"]] = clipped(*ends)
        return found

    def _scores(self):
        "Model -> column -> mean, low, high."
        if not self.alone:
            rows = self.results["over_seeds"]["scores"]
            return {
                row["model"]: {
                    name: tuple(value[end] for end in TRIPLE)
                    for name, value in row.items()
                    if isinstance(value, dict)
                }
                for row in rows
            }
        return {
            row["model"]: {
                name: (value, row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan))
                for name, value in row.items()
            }
            for row in self.first["scores"]
        }

    @property
    def alone(self) -> bool:
        "Whether there is one seed, and nothing is known of others."
        return len(self.seeds) == 1

    @property
    def over(self) -> str:
        "What the intervals are over, for captions."
        if self.alone:
            return (
                f"One seed, {self.n_prompts} held-out prompts; intervals, where there are some, "
                "are over prompts."
            )
        return (
            f"Mean over {len(self.seeds)} seeds, {self.n_prompts} held-out prompts each, with the "
            "95 % interval over seeds (Student's t)."
        )

    def called(self, model: str) -> str:
        "A model's name on the page."
        if model in self.bounds:
            return f"{nice_name(model.removesuffix('_gold'))} on gold (bound)"
        return called(model)

    def candidates(self, reference: str) -> list[str]:
        "All models that are held against a reference."
        place = self.compared.index(reference)
        return [
            model for model in self.scores if model not in ("base", *self.compared[: place + 1])
        ]

    def win(self, model: str, reference: str, judge: str = "gold") -> tuple[float, float, float]:
        "Win rate of a model: mean, low, high; the interval kept within [0, 1]."
        turned = self.rates.get((reference, model, judge))
        if turned is None or (model, reference, judge) in self.rates:
            return self.rates[model, reference, judge]
        mean, low, high = turned  # evaluated the other way round
        return 1 - mean, 1 - high, 1 - low

    def verdict(self, model: str, reference: str, judge: str = "gold") -> int:
        "1: wins, -1: loses, 0: cannot be told."
        _, low, high = self.win(model, reference, judge)
        return sign(low, high, 0.5)

    def ranked(self, models: list[str], reference: str) -> list[str]:
        "The same models, the best first by the gold reward."
        return sorted(models, key=lambda model: -self.win(model, reference)[0])

    def score(self, model: str, column: str, factor: float = 1) -> tuple[float, float, float]:
        "A score: mean, low, high; NaN ends where there is no interval."
        return tuple(factor * end for end in self.scores[model][column])

    def own(self, model: str, column: str, factor: float = 1) -> dict[str, float]:
        "Every seed's own value of a score."
        return {
            seed: factor * row[column]
            for seed, one in self.seeds.items()
            for row in one["scores"]
            if row["model"] == model
        }

    def columns(self, model: str, *columns: str) -> dict[str, tuple]:
        "Several scores of a model."
        return {name: self.score(model, name) for name in columns}

    def gaps(self, model: str, reference: str) -> dict[str, float]:
        "Every seed's own difference in gold reward."
        other = self.own(reference, "gold")
        return {seed: value - other[seed] for seed, value in self.own(model, "gold").items()}

    def gap(self, model: str, reference: str) -> tuple[float, float, float]:
        "The difference over seeds: mean, low, high; NaN ends where there is but one seed."
        return mean_interval(list(self.gaps(model, reference).values()))

    def wins(
        self,
        model: str,
    ) -> dict[str, tuple]:  # win_<reference>_<judge> -> mean, low, high
        "A model's win rates against the references of the page."
        return {
            f"win_{reference}_{judge}": self.win(model, reference, judge)
            for reference in self.compared
            if model in self.candidates(reference)
            for judge in ("gold", "second")
        }

    def by_seed(
        self,
        gold: bool = False,  # with each seed's difference in gold reward
    ) -> pd.DataFrame:
        "Every seed's win rates against the references of the page."
        rows = []
        for seed, one in self.seeds.items():
            for row in one["win_rates"]:
                model, reference = row["model"], row["reference"]
                if reference not in self.compared:
                    continue
                rows.append(
                    {
                        "seed": seed,
                        "model": self.called(model),
                        "reference": self.called(reference),
                        "judge": row["judge"],
                        "win rate": row["rate"],
                        "low": row["low"],
                        "high": row["high"],
                    }
                )
                if gold:
                    rows[-1]["gold difference"] = self.gaps(model, reference)[seed]
        return pd.DataFrame(rows)

    def answers(self) -> dict[str, list[tuple]]:  # prompt -> as `Page.example` takes them
        "What the methods of the first seed answered at their last validation, with their marks."
        said = self.first.get("examples", {})
        answered = [model for model in (*self.methods, *self.bounds) if said.get(model)]
        found = {}
        for model in answered:
            for line in said[model]:
                marks = f"reward {number(line['reward'], 2)}, {line['tokens']} tokens"
                marks += "" if line["ended"] else ", cut off"
                box = (self.called(model), line["answer"], marks)
                found.setdefault(line["prompt"], []).append(box)
        return found


def flat(
    estimates: dict,  # name -> mean, low, high
) -> dict[str, float]:  # name_mean, name_low, name_high -> number
    "Estimates as columns of a CSV."
    return {
        f"{name}_{end}": value
        for name, estimate in estimates.items()
        for end, value in ends_of(estimate, TRIPLE).items()
    }


def of_first_decoding(
    results: dict,  # as `prefkit seeds` writes it
) -> dict:  # of the same form
    "The results of the way of decoding that an evaluation names first."
    rows = next(iter(results["seeds"].values()))["scores"]
    return of_decoding(results, rows[0].get("decoding"))


def of_decoding(
    results: dict,  # as `prefkit seeds` writes it
    decoding: str | None,  # None: rows that name none
) -> dict:  # of the same form
    "The results of one way of decoding."

    def kept(tables):
        return {
            name: [row for row in rows if row.get("decoding") == decoding]
            if name in ("scores", "win_rates", "differences")
            else rows
            for name, rows in tables.items()
        }

    return {
        **results,
        "over_seeds": kept(results["over_seeds"]),
        "seeds": {seed: kept(one) for seed, one in results["seeds"].items()},
    }


def say_scores(
    standings: Standings,
    models: list[str],
    column: str,
    unit: str = "",  # " %"
    digits: int = 1,
    factor: float = 1,  # 100 for percent
) -> str:  # "RLOO 55.0 %, SFT 42.4 %"
    "Means of a score."
    said = []
    for model in models:
        mean, _, _ = standings.score(model, column, factor)
        said.append(f"{standings.called(model)} {number(mean, digits)}{unit}")
    return ", ".join(said)


def draw_win_rates(
    standings: Standings,
    reference: str,
    models: list[str],  # the best first
    title: str,
) -> Figure:
    "Win rates against a reference by both judges."
    rows = {
        standings.called(model): {
            judge: standings.win(model, reference, judge) for judge in ("gold", "second")
        }
        for model in models
    }
    return draw_intervals(
        interval_table(rows),
        title=title,
        xlabel=f"win rate against {standings.called(reference)} (%), ties counted half",
        percent=True,
        reference=(0.5, "no difference"),
    )


def stage_seconds(
    seeds: dict,  # seed -> what `prefkit seeds` found for it
) -> pd.DataFrame:  # columns stage, seconds: the mean, and a column for each seed
    "Wall seconds of each stage; a seed that has not run it is left out of its mean."
    names = dict.fromkeys(stage for one in seeds.values() for stage in one["wall_seconds"])
    rows = []
    for stage in names:
        own = {
            f"seed {seed}": one["wall_seconds"][stage]
            for seed, one in seeds.items()
            if stage in one["wall_seconds"]
        }
        rows.append({"stage": stage, "seconds": sum(own.values()) / len(own), **own})
    return pd.DataFrame(rows)
