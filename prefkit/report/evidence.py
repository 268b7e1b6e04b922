"""Does a method work? What committed results over seeds say of it, as a table, a picture and a
sentence: the last section of its lesson.
"""

import pandas as pd
from matplotlib.figure import Figure

from prefkit.core import DataError
from prefkit.report.figures import draw_intervals, say_interval
from prefkit.report.standings import Standings, flat, of_first_decoding, read_results
from prefkit.report.words import called, counted, joined

__all__ = ["AGAINST", "draw_evidence", "evidence", "say_evidence"]

_ENDS = {"value": "mean", "low": "low", "high": "high"}
# what models are set against: reference -> in words; the control by the results that it is of
AGAINST = {"sft": "SFT", "control": "SFT on the chosen answers"}
CONTROLS = {"seeds/online": "SFT for as many seconds more"}


def evidence(
    results: str,  # below data/results, such as seeds/offline
    *models: str,  # that are told of, the lesson's own first
) -> pd.DataFrame:  # a row for each model: win rates by gold, right answers, seeds
    """What some models are worth against SFT and against SFT on the chosen answers, over seeds;
    raises `DataError` for results or a model that there are not.
    """
    path = f"data/results/{results}.json"
    found = read_results(path, "see the head of its config")
    assert found is not None
    standings, rows = Standings(of_first_decoding(found)), []
    for model in models:
        if model not in standings.scores:
            raise DataError(f"{path}: there is no model `{model}`.", field="models")
        wins = {
            reference: standings.win(model, reference)
            for reference in AGAINST
            if (model, reference, "gold") in standings.rates
        }
        told = flat(wins | {"right": standings.score(model, "right")})
        if model != "sft" and "sft" in standings.scores:
            told["right_sft"] = standings.score("sft", "right")[0]
        control = CONTROLS.get(results, AGAINST["control"])
        about = {"seeds": len(standings.seeds), "control": control}
        name = control if model == "control" else called(model)
        rows.append({"model": name, **told, **about})
    return pd.DataFrame(rows)


def _against(row) -> list[tuple[str, str]]:
    "What a model was set against, in words."
    names = AGAINST | {"control": row["control"]}
    return [(one, name) for one, name in names.items() if pd.notna(row.get(f"{one}_mean"))]


def draw_evidence(
    table: pd.DataFrame,  # as `evidence` makes it
) -> Figure:  # the figure, its numbers in fig.data
    "A row for each model, a dot for each that it is set against."
    rows = [
        {"row": row["model"], "group": f"against {name}"}
        | {end: row[f"{reference}_{column}"] for end, column in _ENDS.items()}
        for row in table.to_dict("records")
        for reference, name in _against(row)
    ]
    return draw_intervals(
        pd.DataFrame(rows),
        title=f"{table['model'].iloc[0]} on the tiny world, by the gold reward",
        xlabel="win rate (%)",
        percent=True,
        reference=(0.5, "no difference"),
    )


def say_evidence(
    table: pd.DataFrame,  # as `evidence` makes it
) -> str:  # a sentence
    "What the first model of the table wins, and how often its answers are right, beside SFT's."
    row = table.iloc[0]

    def said(name):
        return say_interval(*(row[f"{name}_{end}"] for end in _ENDS.values()))

    wins = [f"{said(reference)} against {name}" for reference, name in _against(row)]
    beside = row.get("right_sft")
    beside = f", where SFT's are in {100 * beside:.0f} %" if pd.notna(beside) else ""
    return (
        f"Over {counted(int(row['seeds']), 'seed')} {row['model']} wins {joined(wins)}. "
        f"Its answers are right in {said('right')}{beside}."
    )
