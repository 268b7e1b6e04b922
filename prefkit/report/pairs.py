"""What the page on a real model says of held-out pairs: how far training has moved the chosen and
the rejected answers apart, and what the models answer themselves.

Within a seed an interval is over pairs; over seeds it is Student's t of the seeds' means.
"""

import pandas as pd
from matplotlib.figure import Figure

from prefkit.report.claims import sign
from prefkit.report.figures import draw_intervals, say_interval
from prefkit.report.panels import interval_table
from prefkit.report.puzzles import OVER, SIGNS, Puzzles
from prefkit.report.standings import clipped
from prefkit.report.words import called, counted, joined

__all__ = ["MEASURES", "Pairs", "draw_measure", "rows_words"]

# column -> what it is, whether it is a share, where nothing was learned
MEASURES = {
    "margin": ("held-out margin to the base model (nats)", False, (0.0, "no difference")),
    "accuracy": ("held-out pairs with a margin above 0 (%)", True, (0.5, "chance")),
}


class Pairs(Puzzles):
    "Models on the same held-out pairs, over one seed or several; the first is the reference."

    def __init__(
        self,
        results: dict,  # as `prefkit seeds` writes it, of an experiment with evaluate_pairs
    ):
        seeds = {seed: {"differences": [], **one} for seed, one in results["seeds"].items()}
        super().__init__({**results, "seeds": seeds})
        self.results, self.trained = results, self.models[1:]

    def name(self, model: str) -> str:
        "A model's name, and that it was run once where it was."
        return called(model) if self.several else f"{called(model)}, one seed"

    def measure(self, model: str, column: str) -> dict[str, tuple]:
        "A number by seed, and over seeds if there are several: label -> (value, low, high)."
        found = self.estimates("scores", column, model=model)
        if MEASURES[column][1] and OVER in found:
            found[OVER] = clipped(*found[OVER])
        return found

    def say(self, model: str) -> str:
        """Margin and accuracy, and in how many seeds the margin is apart from zero by that seed's
        own interval: one over seeds does not say what other pairs would change.
        """
        found = {column: self.measure(model, column) for column in MEASURES}
        margin, accuracy = (list(each.values())[-1] for each in found.values())
        signs = [
            sign(low, high) for label, (_, low, high) in found["margin"].items() if label != OVER
        ]
        where = SIGNS[signs[0]]
        if self.several:
            sides = {"above": signs.count(1), "below": signs.count(-1)}
            said = [f"{side} zero in {n}" for side, n in sides.items() if n]
            where = f"{joined(said or ['apart from zero in none'])} of {len(signs)} seeds"
        over = f"over {counted(len(signs), 'seed')}" if self.several else "over pairs"
        return (
            f"{self.name(model)}: held-out margin {say_interval(*margin, percent=False, digits=1)} "
            f"nats, accuracy {say_interval(*accuracy)} (intervals {over}); the margin is {where}"
            f"{' by their own intervals over pairs' if self.several else ''}."
        )

    def examples(
        self,
        prompts: dict[str, str],  # name of a row -> how its prompt begins, where the data are here
    ) -> list[tuple[str, list[tuple[str, str, str]]]]:  # as `Page.example` takes
        "Prompts, or their rows, with what every model answered, in the first seed."
        (told,) = next(iter(self.seeds.values()))["answers"].values()
        return [
            (
                one.get("prompt") or prompts.get(one["row"], one["row"]),
                [
                    (
                        called(model),
                        said["text"],
                        f"{said['tokens']} tokens{'' if said['ended'] else ', cut off'}",
                    )
                    for model, said in one["answers"].items()
                ],
            )
            for one in told
        ]

    def table_of_pairs(self) -> pd.DataFrame:
        "All numbers by seed and over seeds."
        rows = []
        for model in self.trained:
            for column in MEASURES:
                for label, (value, low, high) in self.measure(model, column).items():
                    row = {"model": model, "what": column, "of": label, "value": value}
                    rows.append(row | {"low": low, "high": high, "pairs": self.n})
        return pd.DataFrame(rows)


def draw_measure(
    groups: list[Pairs],  # experiments on the same pairs
    column: str,  # of `MEASURES`
) -> tuple[Figure, str]:  # the figure and its caption
    "One number of every trained model, by seed and over seeds."
    label, share, level = MEASURES[column]
    rows, best = {}, {}
    for group in groups:
        for model in group.trained:
            rows[group.name(model)] = group.measure(model, column)
            best[called(model)] = list(rows[group.name(model)].values())[-1]
    digits, ranked = 0 if share else 1, sorted(best, key=lambda model: best[model][0])
    each = {
        model: f"{model} {say_interval(*best[model], percent=share, digits=digits).split(' [')[0]}"
        for model in best
    }
    ends = list(dict.fromkeys((each[ranked[-1]], each[ranked[0]])))
    said = ", ".join(each.values())
    fig = draw_intervals(
        interval_table(rows),
        title=f"{column}: {' down to '.join(ends)}",
        xlabel=label,
        percent=share,
        reference=level,
    )
    return fig, f"{label}: {said}. {groups[0].n} held-out pairs; intervals are 95 %."


def rows_words(results: dict) -> list[str]:  # one for each data set, as the run's account has it
    "What became of the rows that were trained on."
    told = {}
    for one in results["seeds"].values():
        for stage, parts in one.get("rows", {}).items():
            for part, text in parts.items():
                if part in ("train", "validation"):
                    told.setdefault(f"{part}: {' '.join(text.split())}", []).append(stage)
    return [f"Rows to {text}" if text.startswith("train") else text for text in told]
