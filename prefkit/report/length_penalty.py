"""What the page on the length penalty draws that no other page has: its table 1 beside the report's
numbers, SFT with the penalty, DPO and RLOO during training.
"""

import math

import pandas as pd
from matplotlib.figure import Figure

from prefkit.report.figures import draw_intervals, mean_interval, say_interval
from prefkit.report.replication import draw_grid, seed_curve
from prefkit.report.standings import Standings, flat
from prefkit.report.words import joined, number

__all__ = [
    "TEXTS",
    "draw_imitation",
    "draw_table_1",
    "peak_of",
    "say_order",
    "say_peak",
    "text_numbers",
    "benchmark_table",
]

TEXTS = ("bleu_1", "bleu_2", "bleu_4", "perplexity", "tokens", "boilerplate")  # of `texts`


def text_numbers(
    found: dict,  # what `prefkit seeds` wrote
    model: str,
) -> dict[str, tuple[float, float, float]]:  # measure -> mean, low, high; {} where not measured
    "What the pipeline `texts` found of a model, over seeds."
    row = next((one for one in found["over_seeds"]["texts"] if one["model"] == model), {})
    ends = ("mean", "low", "high")
    return {name: tuple(row[name][end] for end in ends) for name in TEXTS if row.get(name)}


def benchmark_table(
    found: dict,  # what `prefkit seeds` wrote
    standings: Standings,
    names: dict[str, str],  # model -> its name on the page
    paper: dict,  # table_1 of the report
    reference: str = "instruct",
) -> pd.DataFrame:  # a row for each model
    "Win rates, BLEU and perplexity of every model, with what the report has in the same place."
    reported = {row["stage"]: row for row in paper["rows"]}
    rows = []
    for model, name in names.items():
        told = reported.get(model, {})
        wins = {judge: standings.win(model, reference, judge) for judge in ("gold", "second")}
        measured = text_numbers(found, model)
        rows.append(
            {
                "model": name,
                **flat({f"win_{judge}": ends for judge, ends in wins.items()}),
                "win_reported": told.get("win_rate", math.nan) / 100,
                **flat(measured),
                "bleu_4_reported": told.get("bleu_4", math.nan),
                "perplexity_reported": told.get("perplexity", math.nan),
            }
        )
    return pd.DataFrame(rows)


def draw_table_1(
    table: pd.DataFrame,  # as `benchmark_table` makes it
    title: str,  # a sentence that says what to see
    reference: str,  # its name on the page
) -> Figure:  # the figure, its numbers in fig.data
    "Win rates by both judges with their intervals, and the report's, which has none."
    rows = []
    for row in table.to_dict("records"):
        for judge in ("gold", "second"):
            ends = {end: row[f"win_{judge}_{end}"] for end in ("low", "high")}
            value = row[f"win_{judge}_mean"]
            rows.append({"row": row["model"], "group": judge, "value": value, **ends})
        if not math.isnan(said := row["win_reported"]):
            ends = {"value": said, "low": said, "high": said}
            rows.append({"row": row["model"], "group": "the report", **ends})
    return draw_intervals(
        pd.DataFrame(rows),
        title=title,
        xlabel=f"win rate against {reference} (%)",
        percent=True,
        reference=(0.5, "no difference"),
    )


def say_order(
    table: pd.DataFrame,  # as `benchmark_table` makes it
    judge: str = "gold",
) -> str:  # a sentence
    "Which model wins how often, the best first."
    ranked = table.sort_values(f"win_{judge}_mean", ascending=False).to_dict("records")

    def said(row):
        ends = (row[f"win_{judge}_{end}"] for end in ("mean", "low", "high"))
        return f"{row['model']} {say_interval(*ends)}"

    return f"Best first by the {judge} reward: {joined([said(row) for row in ranked])}."


def draw_imitation(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each
    names: dict[str, str],  # stages of SFT -> their names on the page
    column: str,  # nll, or length
    title: str,  # a sentence that says what to see
    ylabel: str,  # with unit
) -> Figure:
    """A column over the steps, in training and in validation where that has it, a curve for each
    stage.
    """
    splits = {"train": "training", "validation": "validation"}
    curves = {
        ("", panel): pd.concat(
            [seed_curve(seeds, stage, column, name, split) for stage, name in names.items()],
            ignore_index=True,
        )
        for split, panel in splits.items()
    }
    told = {place: curve for place, curve in curves.items() if not curve.empty}
    return draw_grid(told, title, ylabel)


def peak_of(
    seeds: dict[str, dict],
    stage: str,
    column: str,  # of its validations
) -> tuple[float, tuple[float, float, float]]:
    "The step of the highest mean over seeds, and by how much each seed's last value is below it."
    curve = seed_curve(seeds, stage, column, stage, "validation").set_index("x")["value"]
    step = float(curve.idxmax())
    told = [_values(one, stage, column) for one in seeds.values()]
    return step, mean_interval([values[step] - values[max(values)] for values in told])


def _values(found, stage, column):
    "Step -> value of one seed's validations."
    lines = found["training"][stage]
    return {
        line["step"]: line[column]
        for line in lines
        if line["split"] == "validation" and column in line
    }


def say_peak(
    seeds: dict[str, dict],
    stage: str,
    column: str,
    what: str,  # the column in words
) -> str:  # a sentence
    "Where a column is highest, and whether it comes down from there."
    step, (mean, low, high) = peak_of(seeds, stage, column)
    last = max(_values(next(iter(seeds.values())), stage, column))
    if step == last:
        return f"{what} is highest at the end, at step {last:g}"
    fall = f"{number(mean, 2)} [{number(low, 2)}, {number(high, 2)}]"
    told = "and comes down from there" if low > 0 else "and whether it comes down cannot be told"
    return f"{what} is highest at step {step:g} of {last:g} {told}: {fall} points to the end"
