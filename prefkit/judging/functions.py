"""Functions of one's own as rewards: what a plug-in's author writes in ten lines. Not from a
notebook.

Two forms are taken. `(prompts, answers, **columns) -> list[float]`: texts, of prompts the last user
turn. `(prompts, completions, **columns) -> list[float]`, as TRL's `reward_funcs` have it: lists of
messages.
"""

import inspect
from collections.abc import Callable
from importlib import import_module

from prefkit.core import ConfigError, DataError, input_path, run_own

ANSWER_FORMS = ("answers", "completions")


def of_columns(function) -> bool:
    "Whether a function takes prompts and answers by these names."
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "prompts" in names and any(form in names for form in ANSWER_FORMS)


def by_columns(
    function: Callable,  # of one of the two forms
) -> tuple[Callable, Callable]:  # a maker and its check, as `register_reward` takes them
    """Parameters without a default are columns of the data, those with one are options, `**columns`
    is all other columns of plain values. What the function raises names its file and line.
    """
    given = inspect.signature(function).parameters
    kinds = {name: each.kind for name, each in given.items()}
    named = [name for name in given if name not in ("prompts", *ANSWER_FORMS)]
    rest = [name for name in named if kinds[name] is inspect.Parameter.VAR_KEYWORD]
    options = [given[name] for name in named if given[name].default is not inspect.Parameter.empty]
    needed = [name for name in named if given[name] not in options and name not in rest]
    form = next(form for form in ANSWER_FORMS if form in given)

    def maker(**chosen):
        def rates(rows, answers):
            columns = _columns(
                rows, needed, bool(rest), {*chosen, *named, "prompts", *ANSWER_FORMS}
            )
            return run_own(function, **_said(rows, answers, form), **columns, **chosen)

        return rates

    def check(record, **chosen):
        lacking = [] if record is None else [name for name in needed if name not in record]
        if lacking:
            raise DataError(
                f"the data have no column {', '.join(lacking)}, which the function takes. Their "
                f"columns: {', '.join(record)}.",
                field=lacking[0],
                reason="missing column",
            )

    maker.__signature__ = inspect.Signature(  # ty: ignore[missing-attribute]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options]
    )
    return maker, check


def _said(rows, answers, form):
    "Prompts and answers in one of the two forms."
    messages = [row["prompt"] for row in rows]
    if form == "completions":
        told = [[{"role": "assistant", "content": one["text"]}] for one in answers]
        return {"prompts": messages, "completions": told}
    asked = [
        next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
        for turns in messages
    ]
    return {"prompts": asked, "answers": [one["text"] for one in answers]}


def _columns(rows, needed, all_others, taken):
    "Columns of the data as lists, one value a row; of those not asked for by name None is a gap."
    records = [row.get("record") or {} for row in rows]
    for name in needed:
        for row, record in zip(rows, records):
            if name not in record:
                place = row.get("row", "a row")
                raise DataError(
                    f"{place} has no column {name}.", field=name, reason="missing column"
                )
    others = dict.fromkeys(name for record in records for name in record if name not in taken)
    names = [*needed, *(others if all_others else ())]
    return {name: [record.get(name) for record in records] for name in names}


def by_dotted_name(
    name: str,  # module.function, as Python imports it
) -> Callable:
    "A function by its dotted name; its file is an input of the run. Raises `ConfigError`."
    module, _, function = name.rpartition(".")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{name}: {error}. A dotted name is module.function, of a module that Python can "
            "import here.",
            field="reward",
            reason="cannot be imported",
        ) from error
    if file := inspect.getsourcefile(inspect.unwrap(found)):
        input_path(file)
    return found
