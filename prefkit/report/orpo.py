"""What the page on the ORPO paper draws that no other page has: ORPO head to head with what it is
compared with, log-probs during training, likeness of answers.
"""

from statistics import fmean, stdev

import pandas as pd
from matplotlib.figure import Figure

from prefkit.report.figures import draw_intervals, mean_interval, say_interval
from prefkit.report.panels import interval_table
from prefkit.report.replication import draw_grid, seed_curve
from prefkit.report.standings import Standings, clipped, flat
from prefkit.report.words import joined

__all__ = [
    "duel_table",
    "draw_duels",
    "draw_log_probs",
    "likeness_table",
    "rounds_table",
    "say_ahead",
    "say_duel",
]


def duel_table(
    standings: Standings,
    model: str,
    others: dict[str, str],  # reference -> its name on the page
    paper: dict[str, list[float]],  # reference -> the reported win rates, per cent
    judges: tuple[str, ...] = ("gold", "second"),
) -> pd.DataFrame:  # a row for each reference and judge
    "How often a model wins against each of some others, over seeds, with what is reported."
    rows = []
    for reference, name in others.items():
        reported = paper.get(reference, [])
        for judge in judges:
            ends = standings.win(model, reference, judge)
            rows.append(
                {
                    "against": name,
                    "judge": judge,
                    **dict(zip(("win rate", "low", "high"), ends)),
                    "reported (%)": f"{min(reported):g} to {max(reported):g}" if reported else None,
                    "seeds": len(standings.seeds),
                }
            )
    return pd.DataFrame(rows)


def say_duel(
    table: pd.DataFrame,  # as `duel_table` makes it
    judge: str = "gold",
) -> str:  # a sentence
    "The win rates by one judge."
    said = []
    for row in table[table["judge"] == judge].to_dict("records"):
        rate = say_interval(row["win rate"], row["low"], row["high"], digits=0)
        said.append(f"{rate} against {row['against']}")
    return f"ORPO wins {joined(said)}, by the {judge} reward."


def say_ahead(
    table: pd.DataFrame,  # as `duel_table` makes it
    judge: str = "gold",
) -> str:  # a title
    "Against how many it wins beyond chance."
    rows = table[table["judge"] == judge]
    ahead = int((rows["low"] > 0.5).sum())
    return f"ORPO wins against {ahead} of {len(rows)}, by the {judge} reward"


def draw_duels(
    table: pd.DataFrame,  # as `duel_table` makes it
    title: str,  # a sentence that says what to see
) -> Figure:
    "A row for each that ORPO is set against, a dot for each judge."
    rows: dict[str, dict] = {}
    for row in table.to_dict("records"):
        ends = row["win rate"], row["low"], row["high"]
        rows.setdefault(f"against {row['against']}", {})[row["judge"]] = ends
    return draw_intervals(
        interval_table(rows),
        title=title,
        xlabel="win rate of ORPO (%)",
        percent=True,
        reference=(0.5, "no difference"),
    )


def draw_log_probs(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each
    stages: dict[str, str],  # stage -> name of its panel
    title: str,  # a sentence that says what to see
) -> Figure:
    "Log-probs of chosen and rejected answers of held-out pairs over the steps, a panel a stage."
    curves = {
        ("", name): pd.concat(
            [
                seed_curve(seeds, stage, f"logps_{side}", side, "validation")
                for side in ("chosen", "rejected")
            ],
            ignore_index=True,
        )
        for stage, name in stages.items()
    }
    return draw_grid(curves, title, "log-prob of an answer (nats)")


def likeness_table(
    found: dict,  # what `prefkit seeds` wrote
    models: dict[str, str],  # model -> its name on the page
) -> pd.DataFrame:  # mean, low and high of both
    "How alike answers to one prompt are, and answers to different prompts (table 4)."
    told = {row["model"]: row for row in found["over_seeds"]["texts"]}
    columns = ("per_input", "across_input")
    return pd.DataFrame(
        [
            {"model": name, **flat({column: _ends(told[model][column]) for column in columns})}
            for model, name in models.items()
        ]
    )


def rounds_table(
    found: dict,  # what `prefkit seeds` wrote, whose decodings are rounds of the same settings
    model: str,
    others: dict[str, str],  # reference -> its name on the page
    judges: tuple[str, ...] = ("large", "gold"),
) -> pd.DataFrame:  # a row for each reference and judge
    "Win rates over seeds, each the mean of its rounds, and the rounds' standard deviation."
    rows = []
    for reference, name in others.items():
        for judge in judges:
            rates = [
                [
                    row["rate"]
                    for row in one["win_rates"]
                    if (row["model"], row["reference"], row["judge"]) == (model, reference, judge)
                ]
                for one in found["seeds"].values()
            ]
            mean, low, high = clipped(*mean_interval([fmean(each) for each in rates]))
            rows.append(
                {
                    "against": name,
                    "judge": judge,
                    "win rate": mean,
                    "low": low,
                    "high": high,
                    "sd of rounds": fmean([stdev(each) for each in rates]),
                    "rounds": len(rates[0]),
                    "seeds": len(rates),
                }
            )
    return pd.DataFrame(rows)


def _ends(estimate):
    "Mean, low and high of an estimate as the file has it."
    return tuple(estimate[end] for end in ("mean", "low", "high"))
