"""What the page of one experiment says of its stages: how training went, what was read, with which
settings, where it ran.

A run is what `prefkit.runs.runner.open_run` gives: `info`, `params`, `metrics`, `samples`.
"""

import json
import math

import pandas as pd
from matplotlib.figure import Figure

from prefkit.report.curves import SIDES, course, curve, ends_of_curve
from prefkit.report.figures import draw_curves, nice_name, say_change, say_interval
from prefkit.report.words import number, plain, weights_words

__all__ = [
    "draw_loss",
    "draw_pairs",
    "has_logged",
    "held_out_pairs",
    "machine_table",
    "overview",
    "rows_read",
    "sampled_answers",
    "say_lost",
    "say_ratios",
    "settings_table",
]

LOGGED_SPLITS = ("train", "validation")
# what is shown of the answers of pairs: how its columns begin, what it is, a level to compare with
PAIRS = {
    "logps": ("logps", "log-probability", None),
    "logratios": ("logratio", "log-ratio", (0.0, "reference")),
}


def has_logged(run, column: str) -> bool:
    "Whether a run has logged numbers in this column."
    return column in run.metrics and bool(run.metrics[column].notna().any())


def logged(run, split, column):
    "A logged column by step."
    return course(run.metrics.to_dict("records"), split, column)


def draw_loss(
    name: str,  # of a stage
    run,
    is_preference: bool,  # its loss is one of pairs, not of tokens
) -> tuple[Figure, str]:  # the figure and its caption
    "Loss of a stage in training and validation, with a title that says what became of it."
    curves = {split: curve(logged(run, split, "loss"), split, split) for split in LOGGED_SPLITS}
    split, shown = [(split, table) for split, table in curves.items() if len(table)][-1]
    first, last = ends_of_curve(shown, split)
    best = shown.loc[shown["value"].idxmin()]
    moved = f"{split} loss {say_change(first, last, digits=3)}"
    after = f"; at the end it is {last - best['value']:.3f} higher."
    if best["x"] == shown["x"].max():
        after = ", the last one."
    chance = (math.log(2), "ln 2: no preference learnt")
    fig = draw_curves(
        pd.concat([table for table in curves.values() if len(table)], ignore_index=True),
        title=f"{nice_name(name)}: {moved}",
        xlabel="optimiser step",
        ylabel="loss (nats)" if is_preference else "loss (nats a token)",
        reference=chance if run.params.get("method") == "dpo" else None,
    )
    return fig, (
        f"{nice_name(name)}: the {moved}. Its lowest value, {best['value']:.3f}, is at step "
        f"{best['x']:.0f}{after} Band: 95 % interval of the training loss within a sliding window."
    )


def pair_curves(
    run,
    what: str,  # "logps" or "logratios"
) -> tuple[str, pd.DataFrame]:  # the split, and curves chosen and rejected; ("", empty) for none
    "On the validation rows where there are at least two points, else in training."
    column, *_ = PAIRS[what]
    for split in reversed(LOGGED_SPLITS):
        curves = [curve(logged(run, split, f"{column}_{side}"), split, side) for side in SIDES]
        if all(len(each) > 1 for each in curves):
            return split, pd.concat(curves, ignore_index=True)
    return "", pd.DataFrame()


def draw_pairs(
    name: str,  # of a stage
    run,
    what: str,  # "logps" or "logratios"
) -> tuple[Figure, str] | None:  # the figure and its caption; None where it was not logged
    "Chosen against rejected of one stage, with a computed title."
    split, table = pair_curves(run, what)
    if table.empty:
        return None
    _, called, level = PAIRS[what]
    ends = {side: ends_of_curve(table, side) for side in SIDES}
    (first_chosen, chosen), (first_rejected, rejected) = ends.values()
    if what == "logratios":  # both began at 0, the reference
        seen = f"chosen ends at {number(chosen)} nats, rejected at {number(rejected)}"
        note = (
            f" The chosen answers{', too,' if max(chosen, rejected) < 0 else ''} have become "
            f"{'less' if chosen < 0 else 'more'} likely than under the reference."
        )
    else:
        change = say_change(first_chosen - first_rejected, chosen - rejected, "nats")
        seen, note = f"the gap between chosen and rejected {change}", ""
    fig = draw_curves(
        table,
        title=f"{nice_name(name)}: {seen}",
        xlabel="optimiser step",
        ylabel=f"{called} (nats)",
        reference=level,
    )
    where = "on the training pairs, mean of a sliding window with its 95 % interval"
    if split == "validation":
        where = "on the same validation pairs throughout"
    moved = "; ".join(f"{side} {say_change(*each)}" for side, each in ends.items())
    return fig, f"{nice_name(name)}, mean {called} of an answer {where}: {moved} (nats).{note}"


def say_ratios(
    name: str,  # of a stage
    run,
) -> str:  # empty where they were not logged
    "Where the log-ratios of one stage end."
    _, table = pair_curves(run, "logratios")
    if table.empty:
        return ""
    chosen, rejected = (number(ends_of_curve(table, side)[1]) for side in SIDES)
    return (
        f"At the end of {nice_name(name)} the mean log-ratio to the reference is {chosen} nats for "
        f"chosen answers and {rejected} for rejected ones."
    )


def overview(
    runs: dict,  # stage -> run, those that have trained
) -> pd.DataFrame:
    "Last logged values of each training stage; a column that none has is left out."

    def last(run, split, column):
        values = logged(run, split, column)
        return values.iloc[-1] if len(values) else math.nan

    rows = []
    for name, run in runs.items():
        speed = run.metrics.get("tokens_per_second")
        rows.append(
            {
                "stage": nice_name(name),
                "method": nice_name(run.params.get("method", "sft")),
                "steps": int(run.metrics["step"].max()),
                "training loss": last(run, "train", "loss"),
                "validation loss": last(run, "validation", "loss"),
                "reward accuracy": last(run, "validation", "reward_accuracy"),
                "reward margin": last(run, "validation", "reward_margin"),
                "gradient norm": last(run, "train", "grad_norm"),
                "tokens a second": math.nan if speed is None else float(speed.median()),
            }
        )
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def reports(value, place: str = ""):  # yields (place, report)
    "Every row report (a dict that counts rows read and kept) within a run's data, with its place."
    if isinstance(value, dict) and {"read", "kept"} <= set(value):
        yield place, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from reports(inner, f"{place} {name}".strip())


def rows_read(
    runs: dict,  # stage -> run
) -> pd.DataFrame:  # a row for each data set that a stage read
    "How many rows each stage read and kept, and why it dropped the others."
    rows = []
    for name, run in runs.items():
        for place, found in reports(run.info.get("data") or {}):
            dropped = found.get("dropped") or {}  # reason -> {rows, examples, asked}
            why = [
                f"{entry['rows']} × {reason}{' (as asked)' if entry.get('asked') else ''}"
                for reason, entry in dropped.items()
            ]
            rows.append(
                {
                    "stage": nice_name(name),
                    "data": f"{place}: {found['source']}" if found.get("source") else place,
                    "read": found["read"],
                    "kept": found["kept"],
                    "shortened": found.get("shortened", 0),
                    "dropped": found["read"] - found["kept"],
                    "why": "; ".join(why),
                }
            )
    return pd.DataFrame(rows)


def say_lost(
    rows: pd.DataFrame,  # as `rows_read` gives it
) -> str:  # empty where nothing was read
    "Where the most rows were lost."
    if not len(rows):
        return ""
    most = rows.loc[(rows["dropped"] / rows["read"].clip(lower=1)).idxmax()]
    if not most["dropped"]:
        return "No row was dropped."
    return (
        f"Most rows were lost in {most['stage']}, {most['data']}: {most['dropped']} of "
        f"{most['read']}; all are listed below."
    )


HELD_OUT = {  # column of an evaluation on pairs -> what it is called, whether it is a share
    "likelier": ("chosen likelier per token (%)", True),
    "accuracy": ("margin above 0 (%)", True),
    "margin": ("margin (nats)", False),
    "logratio_chosen": ("log-ratio, chosen (nats)", False),
    "logratio_rejected": ("log-ratio, rejected (nats)", False),
}


def held_out_pairs(
    runs: dict,  # stage -> run
) -> pd.DataFrame:  # a row a model; empty where no stage looked at pairs
    "What models make of pairs that they have not learned from, with 95 % intervals over pairs."
    found = [
        row
        for run in runs.values()
        for row in run.info.get("metrics", {}).get("scores", [])
        if "likelier" in row
    ]

    def said(row, column, share):
        ends = [row[column + end] for end in ("", "_low", "_high")]
        if None in ends:
            return ""  # of the model that the others are compared with
        return say_interval(*ends, percent=share, digits=0 if share else 1)

    return pd.DataFrame(
        {"model": nice_name(row["model"]), "pairs": row["n"]}
        | {name: said(row, column, share) for column, (name, share) in HELD_OUT.items()}
        for row in found
    )


def settings_table(
    runs: dict,  # stage -> run
) -> pd.DataFrame:  # columns stage, parameter, value
    "All parameters of all stages, as text."
    rows = []
    for name, run in runs.items():
        for parameter, value in run.params.items():
            nested = isinstance(value, (dict, list))
            text = json.dumps(value, ensure_ascii=False) if nested else str(value)
            rows.append({"stage": name, "parameter": parameter, "value": text})
    return pd.DataFrame(rows)


def machine_table(
    runs: dict,  # stage -> run
) -> pd.DataFrame:  # a row a stage; a column that none has is left out
    "Where each stage ran."
    rows = []
    for name, run in runs.items():
        git = run.info.get("git") or {}
        rows.append(
            {
                "stage": nice_name(name),
                "device": run.info.get("device"),
                "threads": run.info.get("threads"),
                "seed": run.info.get("seed"),
                "attempts": run.info.get("attempts"),
                "peak memory (MB)": run.info.get("peak_memory_mb"),
                "revision": str(git.get("revision") or "none")[:10],
                "uncommitted changes": git.get("dirty"),
                "weights": weights_words(run.info) or None,
            }
        )
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def sampled_answers(
    run,
    prompts: int = 3,  # how many of the prompts
) -> pd.DataFrame:  # columns prompt, step, answer
    "Answers to the first few prompts that were sampled at each validation."
    columns = ["prompt", "step", "answer"]
    rows = [
        (plain(sample["prompt"]), sample["step"], sample["answer"])
        for sample in run.samples
        if set(columns) <= set(sample)
    ]
    shown = list(dict.fromkeys(prompt for prompt, *_ in rows))[:prompts]
    kept = sorted(
        (row for row in rows if row[0] in shown), key=lambda row: (shown.index(row[0]), row[1])
    )
    return pd.DataFrame(kept, columns=columns)
