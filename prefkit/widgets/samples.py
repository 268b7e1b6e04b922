"""Answers beside each other, with what each judge gave them: filtered, sorted, paged through."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from prefkit.core import DataError, read_jsonl, resolve_path
from prefkit.judging.judges import JUDGES
from prefkit.report.figures import nice_name
from prefkit.report.words import counted, number, plain
from prefkit.stats.win_rate import win_rate
from prefkit.widgets.pieces import LINE_HEIGHT, escaped, note
from prefkit.widgets.view import Choice, Control, Explorer, Slider, Words

__all__ = ["JudgedAnswers", "draw_samples", "evaluation_of", "explore_samples", "read_evaluation"]

PER_PAGE = 4  # prompts
ALONE, ALL = "no other model", "all kinds"
SORTS = {  # name -> the column it goes by, whether the highest comes first
    "as asked": ("", False),
    "left wins by most": ("difference", True),
    "right wins by most": ("difference", False),
    "best left answer": ("left", True),
    "worst left answer": ("left", False),
}
WAY = ("decoding", "token_limit")  # in which one model may have answered several times
EVALUATION_WHERE = (
    "Name the folder of a stage that ran the pipeline `evaluate` (data/runs/EXPERIMENT/STAGE), or "
    "run its experiment: prefkit run CONFIG."
)


@dataclass(frozen=True)
class JudgedAnswers:
    "Answers of several models to the same prompts, with their scores."

    answers: pd.DataFrame = field(repr=False)  # prompt_id, prompt, model, kind, way, answer, judges
    judges: tuple[str, ...]  # whose scores are columns

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(map(str, dict.fromkeys(self.answers["model"])))

    @property
    def kinds(self) -> tuple[str, ...]:  # of requests; () where nothing says
        return tuple(sorted({str(kind) for kind in self.answers["kind"]} - {""}))

    @property
    def ways(self) -> tuple[str, ...]:  # of answering: decoding and limit of tokens
        return tuple(dict.fromkeys(self.answers["way"]))

    def of(self, model: str, way: str) -> pd.DataFrame:  # a row a prompt
        "The answers of one model in one way, by prompt_id; one that came again is numbered."
        own = self.answers[(self.answers["model"] == model) & (self.answers["way"] == way)]
        return own.set_index(["prompt_id", own.groupby("prompt_id").cumcount()])


def evaluation_of(
    records: Sequence[dict],  # prompt (text or messages), answer, model, and what judges gave it
    judges: Sequence[str] = (),  # whose scores they hold; none: the judges that have a name here
    place: str = "record",  # what a record is called in messages
) -> JudgedAnswers:
    "Records as the browser takes them; raises `DataError` for one that is no answer."
    rows = []
    for count, record in enumerate(records, 1):
        missing = [name for name in ("prompt", "answer", "model") if name not in record]
        if missing:
            raise DataError(
                f"{place} {count}: no {' and no '.join(missing)}. A record holds prompt, answer "
                "and model, and a score by each judge.",
                field=missing[0],
                reason="no answer",
            )
        prompt = plain(record["prompt"])
        about = {"prompt_id": str(record.get("prompt_id", prompt)), "prompt": prompt}
        about["way"] = way_of(record)
        about |= {"kind": str(record.get("kind") or ""), "model": str(record["model"])}
        rows.append({**about, "answer": str(record["answer"]), **_scores(record, judges)})
    if not rows:
        raise DataError(
            f"{place}s: there are none. {EVALUATION_WHERE}", field="records", reason="empty"
        )
    columns = ["prompt_id", "prompt", "model", "kind", "way", "answer"]
    answers = pd.DataFrame(rows)
    return JudgedAnswers(answers, tuple(name for name in answers if name not in columns))


def way_of(
    record: dict,  # an answer
) -> str:  # such as "greedy, 64"; "" where all were made alike
    "In which way an answer was made, where an evaluation has several."
    return ", ".join(str(record[name]) for name in WAY if record.get(name) is not None)


def _scores(record: dict, judges: Sequence[str]) -> dict[str, float]:
    "What each judge gave an answer; gold's is the total of its parts."
    found = {}
    for name in judges or JUDGES:
        score = record.get(name)
        score = score.get("total") if isinstance(score, dict) else score
        if isinstance(score, int | float) and not isinstance(score, bool):
            found[name] = float(score)
    return found


def read_evaluation(
    folder: str | Path,  # of a stage that ran the pipeline `evaluate`
) -> JudgedAnswers:
    "The answers of an evaluation stage; raises `DataError` naming the file that is at fault."
    path = resolve_path(folder)
    file, params = path / "generations.jsonl", path / "params.yaml"
    if not file.is_file():
        what = "no generations.jsonl in it" if path.is_dir() else "no such folder"
        raise DataError(
            f"{path}: {what}. {EVALUATION_WHERE}", field=str(folder), reason="no evaluation"
        )
    named: tuple[str, ...] = ()
    if params.is_file():
        try:
            named = tuple(yaml.safe_load(params.read_text(encoding="utf-8"))["judges"])
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{params}: it does not name the judges, so that nobody knows whose the scores "
                "are. Run the experiment again, or delete the file to see the judges of the kit.",
                field="params.yaml",
                reason="damaged",
            ) from error
    records = read_jsonl(file)
    if not records:
        raise DataError(f"{file}: it is empty. {EVALUATION_WHERE}", field=file.name, reason="empty")
    return evaluation_of(records, named, f"{file}, record")


def paired_answers(
    evaluation: JudgedAnswers,
    left: str,  # a model
    right: str,  # another, or `ALONE`
    way: str,
    judge: str,  # one of the judges; "" where there is none
) -> pd.DataFrame:  # prompt, kind, answer_left, left, and answer_right, right, difference
    "Prompts that both models answered, with their scores by one judge."
    ours = evaluation.of(left, way)
    rows = ours[["prompt", "kind"]].assign(answer_left=ours["answer"])
    rows["left"] = ours[judge] if judge else float("nan")
    if right != ALONE:
        theirs = evaluation.of(right, way)
        rows = rows.loc[rows.index.intersection(theirs.index, sort=False)]
        rows["answer_right"] = theirs["answer"]
        rows["right"] = theirs[judge] if judge else float("nan")
        rows["difference"] = rows["left"] - rows["right"]
    return rows


def filtered_answers(
    rows: pd.DataFrame,  # as `paired_answers` gives them
    kind: str,  # of requests, or `ALL`
    find: str,  # a text that prompt or answers hold, in any case; "": all
    sort: str,  # one of `SORTS`
) -> pd.DataFrame:
    "Filtered and sorted."
    if kind != ALL:
        rows = rows[rows["kind"] == kind]
    if find.strip():
        texts = rows[[name for name in rows if name.startswith(("prompt", "answer"))]]
        held = texts.apply(lambda column: column.str.contains(find.strip(), False, regex=False))
        rows = rows[held.any(axis=1)]
    column, descending = SORTS[sort]
    if column in rows:  # a difference only where there are two models
        rows = rows.sort_values(column, ascending=not descending, kind="stable")
    return rows


def pages_of(rows: pd.DataFrame) -> int:
    "How many pages the rows take; one where there is none."
    return max(1, -(-len(rows) // PER_PAGE))


def draw_samples(
    evaluation: JudgedAnswers,
    left: str,  # a model
    right: str,  # another, or `ALONE`
    *,
    judge: str = "",  # by whose scores prompts are sorted
    sort: str = "as asked",  # one of `SORTS`
    kind: str = ALL,  # of requests
    way: str = "",  # of answering
    find: str = "",  # a text that prompt or answers hold
    page: int = 1,
) -> str:  # HTML
    "One page of prompts with the answers of one or two models and the score of every judge."
    rows = filtered_answers(paired_answers(evaluation, left, right, way, judge), kind, find, sort)
    if rows.empty:
        return note("No prompt like that. Choose another kind, or another text to find.")
    first = (page - 1) * PER_PAGE
    models = [left] if right == ALONE else [left, right]
    tables = {model: evaluation.of(model, way) for model in models}
    shown = rows.iloc[first : first + PER_PAGE]
    cards = "".join(_card(row, key, tables, evaluation.judges) for key, row in shown.iterrows())
    last = first + len(shown)
    head = f"Prompts {first + 1} to {last} of {len(rows)}. {_say_rate(rows, left, right, judge)}"
    return f'<div style="max-width:60em;{LINE_HEIGHT}">{note(head)}{cards}</div>'


def _say_rate(rows: pd.DataFrame, left: str, right: str, judge: str) -> str:
    "Who wins among the rows that are shown, by the judge they are sorted by."
    if right == ALONE or not judge or rows[["left", "right"]].isna().any(axis=None):
        return ""
    rate = win_rate(rows["left"], rows["right"])
    ends = f"{100 * rate.rate:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    found = counted(rate.n, "prompt")
    said = f"By {judge}, {left} wins {ends} against {right} on {found} ({rate.ties} ties)."
    return f"{said} ▲: the higher score."


def _card(row: pd.Series, key, tables: dict[str, pd.DataFrame], judges: Sequence[str]) -> str:
    "One prompt with its answers."
    scores = {model: [table.loc[key, judge] for judge in judges] for model, table in tables.items()}
    best = [max(column) for column in zip(*scores.values(), strict=True)]
    cells = []
    for model, table in tables.items():
        others = [values for name, values in scores.items() if name != model]
        marks = []
        for place, judge in enumerate(judges):
            value = scores[model][place]
            ahead = bool(others) and value == best[place] > others[0][place]
            told = "none" if pd.isna(value) else number(value, 2)
            marks.append(
                f"<b>{escaped(judge)} {told} ▲</b>" if ahead else f"{escaped(judge)} {told}"
            )
        answer = escaped(table.loc[key, "answer"], lines=True) or "<i>(empty)</i>"
        cells.append(
            '<div style="flex:1 1 240px;min-width:0;border-left:3px solid #767676;'
            f'padding:0 .6em;overflow-wrap:anywhere"><small>{escaped(nice_name(model))}</small>'
            f"<div>{answer}</div><small>{' · '.join(marks)}</small></div>"
        )
    kind = f" <small>({escaped(row['kind'])})</small>" if row["kind"] else ""
    return (
        '<div style="margin:.7em 0;padding-bottom:.6em;border-bottom:1px solid #D9D9D9">'
        f'<p style="margin:0 0 .4em"><strong>{escaped(row["prompt"], lines=True)}</strong>{kind}'
        '</p><div style="display:flex;flex-wrap:wrap;gap:.6em 1em">'
        f"{''.join(cells)}</div></div>"
    )


def explore_samples(
    evaluation: str | Path | JudgedAnswers,  # the folder of an evaluation stage, or what was read
) -> Explorer:
    "Page through answers; raises `DataError` for a folder that holds no evaluation."
    found = evaluation if isinstance(evaluation, JudgedAnswers) else read_evaluation(evaluation)
    models, judges = found.models, found.judges or ("",)
    rights = (*models, ALONE)
    kinds = (ALL, *found.kinds)
    controls: dict[str, Control] = {
        "left": Choice(models, models[-1], frames=(models[-1],)),
        "right": Choice(rights, rights[0], frames=(rights[0],)),
        "judge": Choice(judges, judges[0], "sorted by judge", judges[:2]),
        "sort": Choice(tuple(SORTS), "as asked"),
        "page": Slider(1, pages_of(found.of(models[-1], found.ways[0])), 1, 1, frames=(1, 2, 3)),
        "kind": Choice(kinds, ALL, frames=(ALL,)),
        "way": Choice(found.ways, found.ways[0], "decoding", found.ways[:1]),
        "find": Words("", label="find a text"),
    }
    used = {name: one for name, one in controls.items() if not _is_idle(one)}
    start: dict[str, Any] = {name: one.value for name, one in controls.items()}

    def draw(**state) -> str:
        return draw_samples(found, **{**start, **state})

    def bounds(state) -> dict[str, int]:
        whole = {**start, **state}
        pair = paired_answers(found, *(whole[name] for name in ("left", "right", "way", "judge")))
        rows = filtered_answers(pair, whole["kind"], whole["find"], whole["sort"])
        return {"page": pages_of(rows)} if "page" in used else {}

    return Explorer(draw, "Answers and their scores", used, bounds)


def _is_idle(control: Control) -> bool:
    "Whether a control has nothing to choose from."
    if isinstance(control, Slider):
        return control.low == control.high
    return isinstance(control, Choice) and len(control.options) < 2
