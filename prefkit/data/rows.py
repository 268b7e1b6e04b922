"""A row as token ids: a prompt, its answers by name, which of their tokens are learned, and what is
carried along. What a model reads of data, and what a method learns from, is a list of these.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefkit.core import DataError

# what stands beside a prompt and its answers, in the order of a row's columns
BEFORE_ANSWERS, AFTER_ANSWERS = ("prompt", "record"), ("label", "group", "reward")


@dataclass(slots=True, eq=False)
class Row(Mapping):
    """An encoded row. As a mapping it has the columns of a plain one: prompt_ids, <answer>_ids,
    <answer>_learned, ref_<answer>_logps, label ...; `|` gives it more of them.
    """

    prompt_ids: list[int]  # (prompt tokens,) generation prompt included
    # name, such as chosen, rejected, response -> (answer tokens,) ids, end of turn included
    answers: dict[str, list[int]] = field(default_factory=dict)
    # name -> (answer tokens,) False: the token is read and not learned; no entry: all are learned
    learned: dict[str, list[bool]] = field(default_factory=dict)
    # sums over an answer's learned tokens by the losses' names: ref_chosen_logps, behaviour_logps
    logps: dict[str, float] = field(default_factory=dict)
    label: bool | None = None  # is the answer desirable?
    reward: float | None = None  # of the answer
    group: int | None = None  # number of the prompt, where several rows have the same
    prompt: list[dict] | None = None  # messages, where answers are going to be sampled
    record: dict | None = None  # what else the data say of the row, for rewards and judges
    others: dict[str, Any] = field(default_factory=dict)  # columns that nobody here reads

    @classmethod
    def of(cls, columns: Mapping) -> "Row":
        "A plain row as a `Row`; raises `DataError` where a column is not what its name says."
        if isinstance(columns, cls):
            return columns
        if not isinstance(columns, Mapping):
            raise _wrong("row", f"is of type {type(columns).__name__}", "an encoded row")
        return cls([]) | columns

    def learned_of(self, answer: str) -> list[bool]:  # (answer tokens,)
        "Which tokens of an answer are learned."
        if answer in self.learned:
            return list(self.learned[answer])
        return [True] * len(self.answers[answer])

    def columns(self) -> dict[str, Any]:
        "The row as a plain one."

        def carried(names):
            values = {name: getattr(self, name) for name in names}
            return {name: value for name, value in values.items() if value is not None}

        return {
            "prompt_ids": self.prompt_ids,
            **{f"{answer}_learned": marks for answer, marks in self.learned.items()},
            **carried(BEFORE_ANSWERS),
            **{f"{answer}_ids": ids for answer, ids in self.answers.items()},
            **carried(AFTER_ANSWERS),
            **self.logps,
            **self.others,
        }

    def __or__(self, columns: Mapping) -> "Row":
        "The same row with further columns, or with others in their place."
        parts = {name: dict(getattr(self, name)) for name in _PARTS}
        row = replace(self, **parts)
        for name, value in columns.items():
            if value is not None:  # as the rows of a table say that there is nothing
                row._take(name, value)
        return row

    def _take(self, name: str, value):
        part, _, kind = str(name).rpartition("_")
        if name == "prompt_ids":
            self.prompt_ids = _ids(name, value)
        elif kind == "ids":
            self.answers[part] = _ids(name, value)
        elif kind == "learned":
            self.learned[part] = _marks(name, value)
        elif kind == "logps":
            self.logps[name] = _number(name, value)
        elif name == "reward":
            self.reward = _number(name, value)
        elif name in BEFORE_ANSWERS + AFTER_ANSWERS:
            setattr(self, name, value)
        else:
            self.others[name] = value

    def __getitem__(self, name: str):
        return self.columns()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns())

    def __len__(self) -> int:
        return len(self.columns())


_PARTS = ("answers", "learned", "logps", "others")


def as_rows(
    rows: Iterable[Mapping] | None,  # plain rows, or `Row`s, which are taken as they are
    name: str = "rows",  # what to call them
) -> list[Row]:
    "All of them as `Row`s; raises `DataError`."
    found = []
    for number, row in enumerate(rows or []):
        try:
            found.append(Row.of(row))
        except DataError as error:
            text = f"{name}, row {number}: {error}"
            raise DataError(text, field=error.field, reason=error.reason) from error
    return found


def _wrong(column, found, wanted):
    "What to raise where a column is not what its name says."
    text = (
        f"{column} {found}, where {wanted} is needed, as prefkit.data.records.encode_records gives"
    )
    return DataError(f"{text} it.", field=column, reason="of a wrong type")


def _ids(column, value) -> list[int]:
    "Token ids; a list of them stays the same list."
    if type(value) is list and all(type(token) is int for token in value):
        return value
    try:
        return [operator.index(token) for token in value]
    except TypeError as error:
        raise _wrong(column, f"is {value!r:.60}", "a list of token ids") from error


def _marks(column, value) -> list[bool]:
    "A truth value for each token."
    if not isinstance(value, (list, tuple)) or any(mark not in (True, False) for mark in value):
        raise _wrong(column, f"is {value!r:.60}", "a list of true and false")
    return list(map(bool, value))


def _number(column, value) -> float:
    "A number; an int stays one."
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise _wrong(column, f"is {value!r:.60}", "a number")
    return value
