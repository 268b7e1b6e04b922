"""What the page of one experiment says of its models' answers: who wins, who is right, by how much
rewards differ, and which answers are shown.

All of it comes from the answers themselves (`generations.jsonl`), apart from the win rates, whose
intervals are those of `win_rates.csv`. Where an experiment has several evaluations, a model's name
carries that of the evaluation.
"""

import math

import pandas as pd

from prefkit.core import derive_seed
from prefkit.report.claims import sign
from prefkit.report.figures import (
    mean_interval,
    nice_name,
    say_interval,
    say_win,
    share_interval,
)
from prefkit.report.panels import ends_of
from prefkit.report.words import judge_name, number, plain
from prefkit.stats.win_rate import win_rate

__all__ = [
    "answer_table",
    "by_origin",
    "paired_difference",
    "draw_examples",
    "examples_of",
    "pick_examples",
    "say_kinds",
    "say_right",
    "say_wins",
    "score_rows",
    "score_table",
    "score_triples",
    "shares_right",
    "stage_of",
    "win_rows",
    "win_table",
]


def told(evaluation: str, model: str, several: bool) -> str:
    "A model's name, with that of the evaluation where there are several."
    return f"{model} ({evaluation})" if several else model


def answer_table(
    evaluations: dict[str, list[dict]],  # evaluation -> the lines of its generations.jsonl
) -> pd.DataFrame:  # one row an answer
    "Answers with their scores as numbers."
    rows = []
    for name, records in evaluations.items():
        for record in records:
            gold = record["gold"] if isinstance(record["gold"], dict) else {"total": record["gold"]}
            right = gold.get("right")
            rows.append(
                {
                    **record,
                    "model": told(name, record["model"], len(evaluations) > 1),
                    "prompt": plain(record["prompt"]),
                    "heldout": record.get("heldout", record.get("held_out")),
                    "gold": gold["total"],
                    "right": math.nan if right is None else float(right),
                }
            )
    return pd.DataFrame(rows)


WIN_COLUMNS = ["model", "reference", "judge", "rate", "low", "high", "n", "evaluation"]


def win_table(
    tables: dict[str, pd.DataFrame],  # evaluation -> its win_rates.csv
    several: bool,  # whether names carry that of their evaluation
) -> pd.DataFrame:  # one row a comparison and judge
    "All win rates of an experiment."
    if not tables:
        return pd.DataFrame(columns=WIN_COLUMNS)
    named = []
    for name, table in tables.items():
        table = table.assign(evaluation=name)
        for column in ("model", "reference"):
            table[column] = [told(name, model, several) for model in table[column]]
        named.append(table)
    return pd.concat(named, ignore_index=True)


def stage_of(
    model: str,  # as it is called on the page
    runs: dict,  # stage -> run
    evaluations,  # their names
) -> str:  # empty where it comes from none
    "The stage a model comes from: by the folder it was read from, or by its name."
    for evaluation in evaluations:
        given = runs[evaluation].params.get("models") or {}
        source = str(given.get(model.split(" (")[0], ""))
        for stage in runs:
            if f"/{stage}/" in source or source == f"stage:{stage}":
                return stage
    return model if model in runs else ""


def by_origin(
    wins: pd.DataFrame,  # as `win_table` gives it
    tuned: list[str],  # models whose comparisons are wanted; all where they have none
    stages: dict[str, str],  # model -> its stage
    runs: dict,  # stage -> run
    trained: list[str],  # stages that have trained
) -> pd.DataFrame:
    """The comparisons of the tuned models: first against what each started from, then against what
    was trained, and the gold reward first.
    """
    central = wins[wins["model"].isin(tuned)]
    if central.empty:
        central = wins
    start = {}
    for model in tuned:
        stage = stages.get(model)
        source = str(runs[stage].params.get("model", "")) if stage else ""
        found = [name for name in runs if source == f"stage:{name}" or f"/{name}/" in source]
        start[model] = found[0] if found else ""

    def rank(row):
        origin = stages.get(row.reference, "")
        return origin != start.get(row.model, ""), origin not in trained, row.judge != "gold"

    ranks = [rank(row) for row in central.itertuples()]
    return central.iloc[sorted(range(len(central)), key=ranks.__getitem__)]


def say_wins(
    wins: pd.DataFrame,  # as `win_table` gives it
) -> list[str]:
    "One sentence for each comparison, with a clause for each other judge."
    sentences = []
    for _, rows in wins.groupby(["model", "reference"], sort=False):
        first, *others = rows.to_dict("records")
        ends = first["low"], first["high"]
        said = say_win(first["model"], first["reference"], first["rate"], *ends)
        said += f", by {judge_name(first['judge'])}"
        for other in others:
            same = sign(other["low"], other["high"], 0.5) == sign(*ends, 0.5)
            said += (
                f"; {judge_name(other['judge'])} gives "
                f"{say_interval(other['rate'], other['low'], other['high'])}, "
                f"{'the same' if same else 'another'} verdict"
            )
        sentences.append(said + ".")
    return sentences


def win_rows(
    wins: pd.DataFrame,  # as `win_table` gives it
) -> pd.DataFrame:
    "The same in words, for the page: rates with their intervals, alone and at equal length."
    controlled = [name for name in wins if str(name).startswith("lc_")]
    rows = wins.drop(columns=["rate", "low", "high", "evaluation", *controlled])
    for column in ("model", "reference"):
        rows[column] = rows[column].map(nice_name)
    ends = wins[["rate", "low", "high"]].to_numpy()
    rows["win rate"] = [say_interval(*each, digits=1) for each in ends]
    if "lc_low" in controlled:  # runs of before had none
        rows["at equal length"] = [_at_equal_length(row) for row in wins.to_dict("records")]
    return rows


def _at_equal_length(row):
    "A rate, its interval and its note; no rate where the fit separates."
    note = row["lc_note"] if isinstance(row["lc_note"], str) else ""
    if row["lc_rate"] is None or math.isnan(row["lc_rate"]):
        return f"none: {note}"
    if note.startswith("separated") and math.isnan(row["lc_standard_error"]):
        return f"not known; {note}"
    said = say_interval(row["lc_rate"], row["lc_low"], row["lc_high"], digits=1)
    return f"{said}; {note}" if note else said


def score_table(
    answers: pd.DataFrame,  # as `answer_table` gives it
) -> dict[str, dict]:  # model -> answers, gold, second, right, tokens, ended
    "Means of each model's answers; a score that it has not is None."
    found: dict[str, dict] = {}
    for model, part in answers.groupby("model", sort=False):
        second = part["second"].dropna() if "second" in part else []
        right = part["right"].dropna()
        found[str(model)] = {
            "answers": len(part),
            "gold": mean_interval(part["gold"]),
            "second": mean_interval(second) if len(second) else None,
            "right": share_interval(right.sum(), len(right)) if len(right) else None,
            "tokens": float(part["tokens"].mean()),
            "ended": float(part["ended"].mean()),
        }
    return found


def score_rows(
    scores: dict[str, dict],  # as `score_table` gives it
) -> pd.DataFrame:
    "The same in words, for the page."

    def said(estimate, percent):
        return estimate and say_interval(*estimate, percent=percent, digits=1 if percent else 2)

    return pd.DataFrame(
        [
            {
                "model": nice_name(model),
                "answers": row["answers"],
                "gold reward": said(row["gold"], False),
                "second judge": said(row["second"], False),
                "right": said(row["right"], True),
                "tokens": row["tokens"],
                "ended": f"{100 * row['ended']:.1f} %",
            }
            for model, row in scores.items()
        ]
    )


def score_triples(
    scores: dict[str, dict],  # as `score_table` gives it
) -> pd.DataFrame:
    "The same as numbers, for the CSV."
    rows = []
    for model, row in scores.items():
        rows.append(
            {"model": model, **{name: row[name] for name in ("answers", "tokens", "ended")}}
        )
        for name in ("gold", "second", "right"):
            columns = (name, f"{name}_low", f"{name}_high")
            rows[-1] |= ends_of(row[name] or [math.nan] * 3, columns)
    return pd.DataFrame(rows)


def paired(
    answers: pd.DataFrame,  # as `answer_table` gives it
    column: str,
    models: list[str],
) -> pd.DataFrame:  # a row a prompt, a column a model
    "A score of several models on the prompts that all of them answered."
    wide = answers.pivot_table(index="prompt_id", columns="model", values=column, aggfunc="mean")
    return wide.reindex(columns=models).dropna()


def paired_difference(
    answers: pd.DataFrame, column: str, model: str, reference: str
) -> tuple[float, float, float]:  # mean, low, high
    "Paired difference of two models over the prompts that both answered, with its 95 % interval."
    wide = paired(answers, column, [model, reference])
    return mean_interval(wide[model] - wide[reference])


def shares_right(
    groups: dict[str, pd.DataFrame],  # row -> answers that can be right or wrong
) -> pd.DataFrame:  # as `draw_intervals` takes it, with n
    "Share right of each model within groups of prompts."
    return pd.DataFrame(
        [
            {
                "row": row,
                "group": model,
                **ends_of(share_interval(own.to_numpy().sum(), len(own))),
                "n": len(own),
            }
            for row, part in groups.items()
            for model, own in part.groupby("model", sort=False)["right"]
        ]
    )


def say_right(
    shares: pd.DataFrame,  # as `shares_right` gives it
    models: list[str],
) -> str:
    "What some models reach in each row."
    said = []
    for row, part in shares.groupby("row", sort=False):
        ends = part.set_index("group")[["value", "low", "high"]]
        reached = [
            f"{nice_name(model)} {say_interval(*ends.loc[model])}"
            for model in dict.fromkeys(models)
            if model in ends.index
        ]
        said.append(f"{row}: {', '.join(reached)}")
    return "; ".join(said)


def say_kinds(
    answers: pd.DataFrame,  # those that can be right or wrong
    model: str,
    reference: str,
) -> str:  # empty where no kind has answers of both
    "In how many kinds of requests one model is right more often than another."
    signs, kinds = [], answers.groupby("kind")
    for _, part in kinds:
        wide = paired(part, "right", [model, reference])
        if len(wide):
            rate = win_rate(wide[model], wide[reference])
            signs.append(sign(rate.low, rate.high, 0.5))
    words = {1: "right more often in", -1: "less often in", 0: "no clear difference in"}
    counted = [f"{said} {signs.count(each)}" for each, said in words.items() if each in signs]
    if not signs:
        return ""
    return (
        f"{nice_name(model)} against {nice_name(reference)}, of {len(kinds)} kinds: "
        f"{', '.join(counted)}"
    )


def pick_examples(
    answers: pd.DataFrame,  # as `answer_table` gives it
    pair: tuple[str, str] | None,  # the tuned model and its reference
    experiment: str,  # the draw depends on its name only
    kinds: int = 6,  # of how many kinds a prompt is drawn
) -> list[tuple[str, str]]:  # (why it is shown, prompt_id)
    """Not by hand: the prompts on which the tuned model gains and loses most, and one of each kind,
    drawn by a seed.
    """
    picked, wide = [], paired(answers, "gold", sorted(set(answers["model"])))
    if pair and len(wide):
        gain = wide[pair[0]] - wide[pair[1]]
        most = f"largest gain of {nice_name(pair[0])} over {nice_name(pair[1])}"
        picked = [(most, gain.idxmax()), ("its largest loss", gain.idxmin())]
    free = set(wide.index) - {prompt for _, prompt in picked}
    for kind, part in list(answers.groupby("kind", sort=True))[:kinds]:
        prompts = sorted(set(part["prompt_id"]) & free, key=str)
        if prompts:
            drawn = prompts[derive_seed(experiment, kind) % len(prompts)]
            picked.append((f"drawn at random from {nice_name(str(kind))}", drawn))
    return picked


def examples_of(
    answers: pd.DataFrame,  # as `answer_table` gives it
    picked: list[tuple[str, str]],  # as `pick_examples` gives it
) -> pd.DataFrame:  # columns why, model, prompt, answer, gold, second where there is one
    "Each model's first answer to the picked prompts."
    first = answers.drop_duplicates(["prompt_id", "model"]).set_index(["prompt_id", "model"])
    columns = [name for name in ("prompt", "answer", "gold", "second") if name in first]
    return pd.DataFrame(
        [
            {"why": why, "model": model, **first.loc[(prompt, model), columns].to_dict()}
            for why, prompt in picked
            for model in dict.fromkeys(answers["model"])
            if (prompt, model) in first.index
        ]
    )


def draw_examples(
    page,  # a `Page`
    examples: pd.DataFrame,  # as `examples_of` gives it
):
    "Put the picked prompts on a page, with each model's answer and what the judges gave it."

    def marks(row):
        second = row.get("second", math.nan)
        gold = f"gold {number(row['gold'], 2)}"
        return gold if pd.isna(second) else f"{gold} · second {number(second, 2)}"

    for _, part in examples.groupby(["why", "prompt"], sort=False):
        rows = part.to_dict("records")
        boxes = [(nice_name(row["model"]), row["answer"], marks(row)) for row in rows]
        page.example(rows[0]["prompt"], boxes, rows[0]["why"])
