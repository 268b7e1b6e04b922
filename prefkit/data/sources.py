"""Where rows come from: JSON-lines, JSON and Parquet files, `datasets` folders, the Hugging Face
Hub, and what is generated here.

Each source is read as rows `(number from 1, record or None, reason why there is no record or
None)`. The lesson `nbs/lib/data/02_records.ipynb` uses it through
`prefkit.data.records.load_records`. Written by hand, not exported from a notebook.
"""

import json, re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prefkit.data.chat import bad_row
from prefkit.core import ConfigError, DataError, iter_jsonl, input_path
from prefkit.data.countdown import (
    countdown_records,
    prompt_text,
    read_prompt,
    split_of,
    tiny_problems,
)

SUFFIXES = (".jsonl", ".json", ".parquet")


class SplitError(ConfigError):
    "A split that is written wrongly or that the source does not have."


def parse_split(
    split: str,  # a name, with a slice if wanted: train, train[200:400]
) -> tuple[str, int, int | None]:  # name, first row, row after the last (None: to the end)
    "Name and slice of a split; raises `SplitError`."
    match = (
        re.fullmatch(r"([\w.-]+)(?:\[(\d*):(\d*)\])?", split) if isinstance(split, str) else None
    )
    if not match:
        raise SplitError(
            f"split is {split!r}, but must be a name, with a slice of whole numbers if wanted: "
            "train[200:400]."
        )
    name, start, stop = match.groups()
    return name, int(start or 0), int(stop) if stop else None


def _only_train(split, label):
    if split != "train":
        raise SplitError(
            f"{label} has one split, train, and no {split!r}. Name another file, or take slices "
            "such as train[:200] and train[200:]."
        )


def _unreadable(path, error):
    what = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(
        f"{path}: cannot be read ({what}). Check that the file is whole and is what its ending "
        "says."
    )


def _read_json(path):
    "Rows of a .json file that is a list; None where it holds one object a line."
    text = path.read_bytes().decode("utf-8-sig").strip()
    if not text.startswith("["):
        try:
            _, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            # a broken first line; it is named when the lines are read
            return None
        if "\n" in text[:end]:
            raise DataError(
                f"{path}: begins with a JSON object over several lines, which is not a list of "
                "rows. "
                "Write a list, [{...}, {...}], or each row as one object on a line of its own."
            )
        return None
    return [
        (number, record, None)
        if isinstance(record, dict)
        else (
            number,
            None,
            f"a JSON {type(record).__name__} where an object with named columns is needed",
        )
        for number, record in enumerate(json.loads(text), 1)
    ]


def _read_parquet(path):
    "Rows of a Parquet file, batch by batch; a broken page shows only when its batch is read."
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for number, record in enumerate(batch.to_pylist(), number + 1):
                    yield number, record, None
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _read_file(path, split, label):
    _only_train(split, label)
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        rows = _read_json(path) if path.suffix == ".json" else None
        return iter_jsonl(path) if rows is None else rows
    except DataError:
        raise  # it is a ValueError, and says what is wrong
    except (OSError, ValueError, RecursionError) as error:
        # ValueError: broken JSON, text that is not UTF-8
        raise _unreadable(path, error) from error


def _read_folder(path, split, label):
    import datasets  # on demand: it takes seconds to import

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # the library's errors have no common class
        raise DataError(
            f"{path}: not a folder written by datasets' save_to_disk ({type(error).__name__}). "
            "Give such a folder, or a .jsonl, .json or .parquet file."
        ) from error
    if not hasattr(data, "keys"):
        _only_train(split, label)
    elif split not in data:
        raise SplitError(f"{label} has no split {split!r}; it has {', '.join(sorted(data))}.")
    return (
        (number, record, None)
        for number, record in enumerate(data[split] if hasattr(data, "keys") else data, 1)
    )


def read_hub(
    hub: str,  # owner/name
    split: str,  # a split's name on the Hub
    config: str | None = None,  # the Hub's name for a part of the data set
) -> Iterator[tuple]:  # rows
    """Rows of a data set on the Hub, which is downloaded once and then read from the cache; raises
    `DataError`.
    """
    import datasets

    try:
        data = datasets.load_dataset(hub, *([config] if config else []), split=split)
    except Exception as error:  # the library's errors have no common class
        what = (str(error) or "no message").splitlines()[0]
        raise DataError(
            f"{hub}: cannot be loaded, neither as a local path nor from the Hub "
            f"({type(error).__name__}: {what}). Check the name, the split ({split}) and the "
            "network, or give a local file or folder."
        ) from error
    return ((number, record, None) for number, record in enumerate(data, 1))


def is_hub_name(
    name: str | Path,  # as a user gives it
) -> bool:  # whether it stands for a data set on the Hub
    "Whether a name is owner/name and neither something on this machine nor meant as a path."
    text = str(name)
    return (
        text.count("/") == 1
        and Path(text).suffix not in SUFFIXES
        and not text.startswith((".", "/", "~"))
        and not input_path(text).exists()
    )


def read_source(
    name: str | Path,  # a file, a datasets folder, or owner/name on the Hub
    split: str,  # a split's name
    known: list[str],  # names of registered data sets, for the message
) -> tuple[str, Iterator[tuple]]:  # a short label for messages, and rows
    "Rows of a source that is no registered data set; raises `DataError` or `ConfigError`."
    from difflib import get_close_matches

    if not str(name).strip():
        raise ConfigError(
            f"the name of the data set is empty. Give one of {', '.join(known)}, a file or a "
            "folder."
        )
    path, label = input_path(name), Path(name).name
    if path.is_dir():
        return label, _read_folder(path, split, label)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: files {'of type ' + path.suffix if path.suffix else 'without ending'} "
                f"are not read. Give {', '.join(SUFFIXES)}."
            )
        return label, _read_file(path, split, label)
    if Path(name).suffix in SUFFIXES or str(name).startswith((".", "/", "~")):
        raise DataError(
            f"{path} does not exist: no such file or folder. Check the path; relative paths are "
            "taken from the project's root."
        )
    if is_hub_name(name):
        return str(name), read_hub(str(name), split)
    near = get_close_matches(str(name), known, 1)
    raise ConfigError(
        f"there is no data set {str(name)!r}{f'; did you mean {near[0]}?' if near else '.'} Give "
        f"one of {', '.join(known)}, a name owner/name on the Hub, a datasets folder, or "
        "a .jsonl, .json or .parquet file."
    )


def generate(
    # of what is generated here: tiny-world, tiny-world-verbose, countdown, countdown-tiny,
    # countdown-tiny-worked, countdown-tiny-noisy
    name: str,
    kind: str,  # as `load_records` takes it
    split: str,  # train, validation or test
    n: int | None,  # rows; None: 1,000, or all of a split that has fewer
    seed: int,  # which draw
) -> list[dict]:  # records
    "Records of a data set that is made, not read; raises `DataError` where there are fewer."
    if name in ("tiny-world", "tiny-world-verbose"):
        from prefkit.data.world import SFT_STYLES, VERBOSE_STYLES, tiny_records

        return tiny_records(
            kind,
            split,
            1000 if n is None else n,
            seed=seed,
            styles=SFT_STYLES if name == "tiny-world" else VERBOSE_STYLES,
        )
    size = "public" if name == "countdown" else "tiny"
    if n is None:
        n = 1000 if size == "public" or split == "train" else min(1000, len(tiny_problems(split)))
    return countdown_records(
        kind,
        split,
        n,
        seed,
        size,
        styles=("worked",) if name.endswith("worked") else None,
        right=0.6 if name.endswith("noisy") else 1.0,
    )


def part_of(
    record: dict | None,  # a puzzle with nums and target
) -> str:  # train, validation or test
    "The split of a puzzle from a source that has one split for all."
    try:
        return split_of(record["nums"], record["target"])
    except (KeyError, TypeError, ValueError):
        # a bad row, which is named where it is read
        return "train"


def puzzle_columns(
    columns: dict,  # of one row, without those that are None
) -> dict:  # with a prompt, where they are those of a Countdown set
    """The two layouts of Countdown sets with a prompt column: a query in a base model's frame, or
    nums and target alone; raises `DataError`.
    """
    if {"prompt", "messages", "conversations"} & set(columns):
        return columns
    if isinstance(columns.get("query"), str):
        # as TinyZero asks a base model
        question, framed, begun = columns["query"].partition("User:")[2].partition("\nAssistant:")
        question, begun = (
            (question.strip(), begun.removeprefix(" ")) if framed else (columns["query"], "")
        )
        made = {"prompt": question, **{name: columns[name] for name in columns if name != "query"}}
        # what the query puts into the model's mouth is a part of the answer
        if isinstance(columns.get("completion"), str):
            made["completion"] = (
                begun + "\n" * (begun[-1:].isalnum() or begun[-1:] == ".") + columns["completion"]
            )
        with suppress(DataError):
            made |= {
                name: value
                for name, value in zip(("nums", "target"), read_prompt(question))
                if name not in columns
            }
        return made
    if not {"nums", "target"} <= set(columns):
        return columns
    whole = (
        isinstance(columns["nums"], (list, tuple))
        and columns["nums"]
        and all(type(n) is int for n in (*columns["nums"], columns["target"]))
    )
    if not whole:
        raise bad_row(
            "nums or target are no whole numbers",
            f"nums is {columns['nums']!r}, target {columns['target']!r}",
            "Give a list of whole numbers, and one.",
        )
    return {"prompt": prompt_text(columns["nums"], columns["target"]), **columns}
