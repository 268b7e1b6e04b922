"""What people say of answers: votes read from a file, and the blinded ballot that is written for
them.

A votes file (CSV or JSON lines) has prompt_id, model_a, model_b and winner: the winner's name,
`model_a`, `model_b` or `tie` (the layout of Chatbot Arena's published votes). A ballot shows pairs
in random order, each with its two answers in random places and without names; which is whose lies
in a key file beside it. Written by hand, not exported from a notebook.
"""

import csv, io, json, random
from dataclasses import dataclass
from pathlib import Path

from prefkit.judging.records import models_of, pair_ids, same_answer, text_of, without_thoughts
from prefkit.core import (
    ConfigError,
    DataError,
    fingerprint,
    input_path,
    iter_jsonl,
    resolve_path,
    write_json,
    write_jsonl,
    write_text,
)


@dataclass(frozen=True)
class Vote:
    "One vote of a person."

    row: int  # in the file; the header of a CSV is row 1
    prompt_id: str
    model_a: str
    model_b: str
    preference: float  # 1: model_a, 0: model_b, 0.5: tie
    reason: str | None = None
    person: str | None = None


VOTE = ("prompt_id", "model_a", "model_b", "winner")  # columns of a votes file
BALLOT = ("number", "prompt", "answer_1", "answer_2", "winner", "reason")


def _wrong(place, what, reason, field=None):
    "An error about a row or a file of votes."
    return DataError(f"{place}: {what}", field=field, reason=reason)


def _rows(path):
    "(row number, dict) of a CSV or JSON-lines file; raises `DataError` naming file and row."
    if path.suffix == ".csv":
        yield from _csv_rows(path)
        return
    if path.suffix != ".jsonl":
        raise _wrong(path, "votes are read from a .csv or a .jsonl file.", "another kind of file")
    for row, record, why in iter_jsonl(path):
        if why:
            raise _wrong(f"{path}, row {row}", f"{why}. Mend or delete that row.", "broken row")
        yield row, record


def _csv_text(path):
    if not path.is_file():
        raise _wrong(path, "no such file. Check the path.", "no file")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = 1 + raw[: error.start].count(b"\n")
        raise _wrong(
            f"{path}, row {row}", "not UTF-8 text. Save the table as CSV UTF-8.", "not UTF-8"
        ) from error


def _csv_rows(path):
    text = _csv_text(path)
    top = text.partition("\n")[0]
    # some spreadsheets write semicolons
    delimiter = ";" if top.count(";") > top.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    row, header = 0, []
    try:
        for row, cells in enumerate(reader, 1):
            if row == 1:
                header = [cell.strip() for cell in cells]
                _check_columns(header, f"{path}, row 1")
            elif len(cells) not in (0, len(header)):
                raise _wrong(
                    f"{path}, row {row}",
                    f"{len(cells)} columns where the header has {len(header)}. Put texts that "
                    "hold commas into quotes.",
                    "number of columns",
                )
            elif any(cell.strip() for cell in cells):
                yield row, dict(zip(header, cells))
    except csv.Error as error:
        place = f"{path}, row {row + 1}"
        raise _wrong(place, f"{error}. Save the table as CSV again.", "broken row") from error
    if not row:
        raise _wrong(
            path,
            "the file is empty. A table of votes begins with the names of its columns.",
            "empty",
        )


def _check_columns(names, place):
    "Raise `DataError` for a column that is missing or there twice."
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise _wrong(place, f"two columns are called {twice[0]}.", "twice", twice[0])
    needed = ("number", "winner") if "answer_1" in names else VOTE
    if lack := [name for name in needed if name not in names]:
        raise _wrong(
            place,
            f"no {' and no '.join(lack)}. A vote has prompt_id, model_a, model_b and winner; a "
            "ballot number and winner.",
            "missing column",
            lack[0],
        )


def _outcome(record, place):
    "The preference in a row of a votes file, None where nobody has voted yet; raises `DataError`."
    a, b, winner, prompt = (
        str(record[name]).strip() for name in ("model_a", "model_b", "winner", "prompt_id")
    )
    if not prompt:
        raise _wrong(place, "prompt_id is empty.", "empty", "prompt_id")
    if not a or not b or a == b:
        raise _wrong(
            place,
            f"model_a {a!r} and model_b {b!r} must be two different names.",
            "no two names",
            "model_a",
        )
    if {a, b} & {"tie", "tie (bothbad)"} or a == "model_b" or b == "model_a":
        raise _wrong(
            place,
            f"a model cannot be called {a!r} against {b!r}, since that means something else under "
            "winner.",
            "ambiguous name",
            "model_a",
        )
    known = {
        "": None,
        "tie": 0.5,
        "tie (bothbad)": 0.5,
        "model_a": 1.0,
        "model_b": 0.0,
        a: 1.0,
        b: 0.0,
    }
    if winner not in known:
        raise _wrong(
            place,
            f"winner {winner!r} is neither {a}, {b}, model_a, model_b nor tie.",
            "unknown winner",
            "winner",
        )
    return known[winner]


def _voted(record, place):
    "A ballot's row as one of a votes file, by its key's entry; raises `DataError`."
    entry, said = record.pop("key"), str(record["winner"]).strip()
    if said not in ("", "1", "2", "tie"):
        raise _wrong(place, f"winner {said!r} is neither 1, 2 nor tie.", "unknown winner", "winner")
    models = {"1": entry["first"], "2": entry["second"]}
    return {
        **record,
        "prompt_id": entry["prompt_id"],
        "model_a": entry["first"],
        "model_b": entry["second"],
        "winner": models.get(said, said),
    }


def _ballot_key(path, key):
    "What is behind the numbers of a ballot."
    place = input_path(key or path.with_name(f"{path.stem}.key.json"))
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return {
            number: {name: str(entry[name]) for name in ("prompt_id", "first", "second")}
            for number, entry in found.items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is a ballot, but its key {place} cannot be read. Name the key that was "
            "written with it.",
            field="key",
            reason="cannot be read",
        ) from error


def _person(record, path, is_ballot):
    "Who voted: what the row says, or the name of the ballot's file."
    said = str(record.get("person") or "").strip()
    return said or (path.stem if is_ballot else None)


def read_votes(
    # .csv or .jsonl: prompt_id, model_a, model_b, winner, or a ballot that was filled in; reason
    # and person if there
    path: str | Path,
    # of a ballot; beside it, under the name that `write_ballot` gave it, if None
    key: str | Path | None = None,
) -> list[Vote]:  # rows without a winner are not voted on yet and left out
    "What people said; raises `DataError` naming file and row."
    path, votes, secret, seen = input_path(path), [], None, {}
    for row, record in _rows(path):
        place, is_ballot = f"{path}, row {row}", "answer_1" in record
        _check_columns([name for name, value in record.items() if value is not None], place)
        if is_ballot:
            secret = _ballot_key(path, key) if secret is None else secret
            number = str(record["number"]).strip()
            if number not in secret:
                what = (
                    f"number {number!r} is not in the ballot's key. Is it that of another ballot?"
                )
                raise _wrong(place, what, "another ballot", "number")
            record = _voted({**record, "key": secret[number]}, place)
        preference = _outcome(record, place)
        if preference is None:
            continue
        name, a, b = (str(record[part]).strip() for part in VOTE[:3])
        person = _person(record, path, is_ballot)
        if person is not None:
            before = seen.setdefault((person, name, *sorted((a, b))), row)
            if before != row:
                raise _wrong(
                    place,
                    f"{person} has voted on this pair before, in row {before}. Delete one of the "
                    "two.",
                    "twice",
                    "person",
                )
        reason = str(record.get("reason") or "").strip() or None
        votes.append(Vote(row, name, a, b, preference, reason, person))
    return votes


def _cell(text):
    "A text that a spreadsheet does not take for a formula (OWASP, CSV injection)."
    return "'" + text if text[:1] in "=+-@\t\r" and text else text


def write_ballot(
    path: str | Path,  # the .csv or .jsonl file to write; never one that is there
    records_a: list[dict],  # of one model, with `model`
    records_b: list[dict],  # of the other, the same prompts in the same order
    *,
    seed: int = 0,  # of the order of rows and places
) -> Path:  # of the key, which whoever votes should not see
    """A ballot for a person: pairs in random order, answers in random places, no names.

    Raises `ConfigError` where it would overwrite one, `DataError` for records.
    """
    path = resolve_path(path)
    secret = path.with_name(f"{path.stem}.key.json")
    if path.suffix not in (".csv", ".jsonl"):
        raise ConfigError(
            f"path: {path.name} must end in .csv or .jsonl.", field="path", reason="no such kind"
        )
    if there := [each for each in (path, secret) if each.exists()]:
        raise ConfigError(
            f"path: {there[0]} is there already, perhaps with votes in it. Choose another name.",
            field="path",
            reason="there already",
        )
    records_a, records_b = without_thoughts(records_a), without_thoughts(records_b)
    pairs = [
        (name, *models_of(a, b), a, b)
        for name, a, b in zip(pair_ids(records_a, records_b), records_a, records_b)
        if not same_answer(a, b)
    ]
    rng, rows, key = random.Random(seed), [], {}
    rng.shuffle(pairs)
    content = [[name, a["answer"], b["answer"]] for name, _, _, a, b in pairs]
    batch = f"b{fingerprint([seed, content])[:6]}"
    for position, (name, model_a, model_b, a, b) in enumerate(pairs, 1):
        (first, shown), (second, beside) = rng.sample([(model_a, a), (model_b, b)], 2)
        number = f"{batch}-{position}"
        cells = (number, text_of(a["prompt"]), shown["answer"], beside["answer"], "", "")
        rows.append(dict(zip(BALLOT, cells)))
        key[number] = {"prompt_id": name, "first": first, "second": second}
    write_json(secret, key)
    _write_rows(path, rows)
    return secret


def _write_rows(path, rows):
    if path.suffix == ".jsonl":
        return write_jsonl(path, rows)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(BALLOT)
    table.writerows([_cell(value) for value in row.values()] for row in rows)
    # the mark tells spreadsheets that it is UTF-8
    return write_text(path, "\ufeff" + text.getvalue())
