"""Where rows come from: JSON-lines, JSON, Parquet, CSV and TSV files, `datasets` folders, the
Hugging Face Hub, and what is generated here.

Each source is read as `Line`s. The lesson `nbs/lib/data/02_records.ipynb` uses it through
`prefkit.data.records.load_records`. Written by hand, not exported from a notebook.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

from prefkit.core import (
    ConfigError,
    DataError,
    check_number,
    input_path,
    iter_jsonl,
    nearest,
    read_json,
    run_own,
)
from prefkit.data.chat import bad_row
from prefkit.data.foreign import Unread
from prefkit.data.countdown import (
    countdown_records,
    prompt_text,
    read_prompt,
    split_of,
    tiny_problems,
)
from prefkit.data.world import TASKS, VERBOSE_STYLES, pool, prompts, tiny_records

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
FILES = ", ".join(SUFFIXES)


class Line(NamedTuple):
    "A row as its source has it."

    number: int  # from 1
    record: dict | None  # None: it could not be read
    fault: str | None = None  # why
    twice: tuple[str, ...] = ()  # columns that stand twice in it; the last counts


def numbered(records: Iterable[dict]) -> Iterator[Line]:
    "Records as lines."
    return starmap(Line, enumerate(records, 1))


class SplitError(ConfigError):
    "A split that is written wrongly or that the source does not have."


def no_split(
    source: str,  # its name
    split: str,  # as a user names it
    splits: Iterable[str],  # those that there are
) -> SplitError:
    "The error about a split that a source does not have."
    return SplitError(
        f"{source} has no split {split!r}; it has {', '.join(splits)}.",
        field="split",
        reason="unknown split",
    )


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
            "train[200:400].",
            field="split",
            reason="neither a name nor a slice",
        )
    name, start, stop = match.groups()
    return name, int(start or 0), int(stop) if stop else None


def _only_train(split, label):
    if split != "train":
        raise SplitError(
            f"{label} has one split, train, and no {split!r}. Name another file, or take slices "
            "such as train[:200] and train[200:].",
            field="split",
            reason="unknown split",
        )


def _unreadable(path, error):
    what = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(
        f"{path}: cannot be read ({what}). Check that the file is whole and is what its ending "
        "says.",
        field="name",
        reason="cannot be read",
    )


def _read_json(path):
    "Lines of a .json file that is a list; None where it holds one object a line."
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
                "Write a list, [{...}, {...}], or each row as one object on a line of its own.",
                field="name",
                reason="neither a list nor an object a line",
            )
        return None
    return [_checked(line) for line in numbered(read_json(text))]


def _checked_line(number, record, fault):
    return Line(number, record, fault, getattr(record, "twice", ()))


def _checked(line):
    "A line whose record is one."
    if isinstance(line.record, dict):
        return _checked_line(*line[:3])
    found = f"a JSON {type(line.record).__name__} where an object with named columns is needed"
    return Line(line.number, None, found)


def _read_parquet(path):
    "Records of a Parquet file, batch by batch; a broken page shows only when its batch is read."
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                names = batch.schema.names
                for cells in zip(*(_cells(column) for column in batch.columns)):
                    yield dict(zip(names, cells))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _cells(column):
    "The values of an Arrow column, each for itself where one of them is none for Python."
    import pyarrow

    problems = (ValueError, OverflowError, pyarrow.ArrowException)
    try:
        return column.to_pylist()
    except problems:
        return [_cell(column, number, problems) for number in range(len(column))]


def _cell(column, number, problems):
    try:
        return column[number].as_py()
    except problems as error:
        return Unread((str(error) or type(error).__name__).splitlines()[0])


def _read_csv(path):
    """Lines of a .csv or .tsv file, each with the number of the line on which it begins; a column
    that is not filled is None.
    """
    csv.field_size_limit(sys.maxsize)
    # what is no UTF-8 is named when its row is read
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else _delimiter(file)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names = _header(reader, path)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Line(number, None, f"not valid CSV ({error})")
                continue
            if cells:
                yield _line_of(number, names, cells)


def _delimiter(file):
    "What parts the columns' names: the first of comma, semicolon and tab that parts them at all."
    header = file.readline()
    file.seek(0)
    parts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in ",;\t"}
    return max(parts, key=lambda mark: parts[mark])


def _header(reader, path):
    "The columns' names; raises `DataError`."
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise _unreadable(path, f"line 1: {error}") from error
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or any(not name.isprintable() for name in names):
        what = f"the column {twice[0]} stands twice" if twice else "it is no UTF-8 text"
        raise DataError(
            f"{path}: line 1 names the columns, and {what}. Mend that line.",
            field="name",
            reason="faulty header",
        )
    return [name.strip() or f"column {place}" for place, name in enumerate(names, 1)]


def _line_of(number, names, cells):
    "One row of a table."
    if len(cells) != len(names):
        found = f"of {len(cells)} cells, and line 1 names {len(names)} columns"
        return Line(number, None, found)
    if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
        return Line(number, None, "not UTF-8 text")
    return Line(number, {name: cell or None for name, cell in zip(names, cells)})


def _read_file(path, split, label):
    _only_train(split, label)
    try:
        if path.suffix == ".parquet":
            return numbered(_read_parquet(path))
        if path.suffix in (".csv", ".tsv"):
            return _read_csv(path)
        lines = _read_json(path) if path.suffix == ".json" else None
        if lines is None:
            return (_checked_line(*found) for found in iter_jsonl(path))
        return iter(lines)
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
            f"Give such a folder, or a file: {FILES}.",
            field="name",
            reason="not a datasets folder",
        ) from error
    if not isinstance(data, dict):
        _only_train(split, label)
        return numbered(_as_stored(data))
    if split not in data:
        raise no_split(label, split, sorted(data))
    return numbered(_as_stored(data[split]))


def _as_stored(data):
    "Pictures and sound as they are stored: nobody here looks at them."
    for name, kind in data.features.items():
        if getattr(kind, "decode", False):
            data = data.cast_column(name, type(kind)(decode=False))
    return data


def check_revision(
    name: str | Path,  # a data set that is not on the Hub
    revision: str,
):
    "Raise `ConfigError` where a revision is asked of what has none."
    if revision:
        raise ConfigError(
            f"dataset_revision {revision!r} is only for the Hub; {name} is not read from there. "
            "Leave it out.",
            field="dataset_revision",
            reason="only for the Hub",
        )


def read_hub(
    hub: str,  # owner/name
    split: str,  # a split's name on the Hub
    config: str | None = None,  # the Hub's name for a part of the data set
    revision: str = "",  # a branch, tag or commit; "": the newest
    # owner/name@revision, with the commit that was read where it is known; and lines
) -> tuple[str, Iterator[Line]]:
    """A data set on the Hub, which is downloaded once and then read from the cache; raises
    `DataError`.
    """
    import datasets

    try:
        options: dict[str, Any] = {"split": split} | ({"revision": revision} if revision else {})
        data = datasets.load_dataset(hub, *([config] if config else []), **options)
    except Exception as error:  # the library's errors have no common class
        what = (str(error) or "no message").splitlines()[0]
        raise DataError(
            f"{hub}: cannot be loaded, neither as a local path nor from the Hub "
            f"({type(error).__name__}: {what}). Check the name, the split ({split}), the revision "
            f"({revision or 'the newest'}) and the network, or give a local file or folder.",
            field="name",
            reason="cannot be loaded",
        ) from error
    commit = _commit_of(data)
    named = [revision] if revision else []
    named += [commit] if commit and commit != revision else []
    return "@".join([hub, ", commit ".join(named)] if named else [hub]), numbered(_as_stored(data))


def _commit_of(data) -> str:  # "" where it is not known
    "The commit that a data set was downloaded at: it stands in the addresses of its files."
    found = re.search(r"@([0-9a-f]{40})/", " ".join(data.info.download_checksums or {}))
    return found[1] if found else ""


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


def is_made_by_a_stage(name: str | Path) -> bool:
    "Whether a name is stage:NAME: the rows are in the run folder of a stage that may not be done."
    return str(name).startswith("stage:")


def read_source(
    name: str | Path,  # a file, a datasets folder, or owner/name on the Hub
    split: str,  # a split's name
    known: list[str],  # names of registered data sets, for the message
    revision: str = "",  # of what is on the Hub
) -> tuple[str, Iterator[Line]]:  # a short label for messages, and lines
    "Lines of a source that is no registered data set; raises `DataError` or `ConfigError`."
    if not str(name).strip():
        raise ConfigError(
            f"the name of the data set is empty. Give one of {', '.join(known)}, a file or a "
            "folder.",
            field="name",
            reason="empty",
        )
    if is_hub_name(name):
        return read_hub(str(name), split, revision=revision)
    check_revision(name, revision)
    path, label = input_path(name), Path(name).name
    if path.name == "checkpoint":  # of a stage
        label = f"{path.parent.name}/{label}"
    if path.is_dir():
        return label, _read_folder(path, split, label)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            what = f"of type {path.suffix}" if path.suffix else "without ending"
            raise DataError(
                f"{path}: files {what} are not read. Give {FILES}.",
                field="name",
                reason="unknown type of file",
            )
        return label, _read_file(path, split, label)
    if Path(name).suffix in SUFFIXES or str(name).startswith((".", "/", "~")):
        raise DataError(
            f"{path} does not exist: no such file or folder. Check the path; relative paths are "
            "taken from the project's root.",
            field="name",
            reason="no such file or folder",
        )
    raise ConfigError(
        f"there is no data set {str(name)!r}.{nearest(str(name), known)} Or give a name owner/name "
        f"on the Hub, a datasets folder, or a file: {FILES}.",
        field="name",
        reason="unknown data set",
    )


OPTIONS = ("truth", "manner", "temperature")  # of tiny-world's pairs


def check_options(name: str | Path, kind: str, options: dict):
    "Raise `ConfigError` for options that rows of this kind of a data set do not have."
    if not options:
        return
    if str(name) != "tiny-world" or kind not in ("pairs", "binary"):
        who = (
            f"rows of kind {kind} have" if str(name) == "tiny-world" else f"the data set {name} has"
        )
        raise ConfigError(
            f"dataset_options are for the pairs of tiny-world; {who} none. Leave them out.",
            field="dataset_options",
            reason="no options here",
        )
    for option in options:
        if option not in OPTIONS:
            raise ConfigError(
                f"dataset_options: there is no {option!r}.{nearest(str(option), OPTIONS)}",
                field="dataset_options",
                reason="no such option",
            )
    try:
        pool(**{name: value for name, value in options.items() if name != "temperature"})
        check_number("temperature", options.get("temperature", 0), least=0)
    except ConfigError as error:
        raise error.at("dataset_options") from error


def options_text(options: dict) -> str:
    "Options as they stand behind a data set's name and split in accounts."
    return "".join(f", {name} {value:g}" for name, value in options.items())


# what is asked of the tiny world, and how demonstrations answer
WORLDS: dict[str, dict] = {
    "tiny-world": {},
    "tiny-world-verbose": {"styles": VERBOSE_STYLES},
    "tiny-world-long": {"kinds": ("count", "story", "sort", "two_step")},
}


def requests_in(world: str, split: str) -> int:
    "How many different prompts a split of the tiny world has."
    kinds = WORLDS[world].get("kinds", tuple(TASKS))
    return sum(each.kind in kinds for each in prompts(split))


MAKERS: dict[str, Callable] = {}  # of data sets of one's own: (kind, split, n, seed) -> rows


def make_records(
    # of what is generated here: one of `WORLDS`, countdown, countdown-tiny, countdown-tiny-worked,
    # countdown-tiny-noisy
    name: str,
    kind: str,  # as `load_records` takes it
    split: str,  # train, validation or test
    n: int | None,  # rows; None: 1,000, or all of a split that has fewer
    seed: int,  # which draw
    options: dict,  # of the data set, checked
) -> list[dict]:  # records
    "Records of a data set that is made, not read; raises `DataError` where there are fewer."
    if name in MAKERS:
        rows = run_own(MAKERS[name], kind=kind, split=split, n=n, seed=seed)
        return list(rows)[:n]
    if name in WORLDS:
        n = 1000 if n is None else n
        return tiny_records(kind, split, n, seed, **WORLDS[name], **options)
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
        return split_of(record["nums"], record["target"])  # ty: ignore[not-subscriptable]
    except (KeyError, TypeError, ValueError):
        # a bad row, which is named where it is read
        return "train"


PUZZLE = {"nums", "target"}


def _of_text(value):
    "Whole numbers that a table without types has as text."
    if isinstance(value, str) and re.fullmatch(r"[\s\d,\[\]-]+", value):
        with suppress(ValueError):
            return json.loads(value)
    return value


def puzzle_columns(
    columns: dict,  # of one row, without those that are None
) -> dict:  # with a prompt, where they are those of a Countdown set
    """The two layouts of Countdown sets with a prompt column: a query in a base model's frame, or
    nums and target alone; raises `DataError`.
    """
    columns = {**columns, **{name: _of_text(columns[name]) for name in PUZZLE & set(columns)}}
    if {"prompt", "messages", "conversations"} & set(columns):
        return columns
    if isinstance(columns.get("query"), str):
        return _from_query(columns)
    if not {"nums", "target"} <= set(columns):
        return columns
    nums, target = columns["nums"], columns["target"]
    listed = isinstance(nums, (list, tuple)) and nums
    if not listed or not all(type(n) is int for n in (*nums, target)):
        raise bad_row(
            "nums or target are no whole numbers",
            f"nums is {nums!r}, target {target!r}",
            "Give a list of whole numbers, and one.",
            "nums",
        )
    return {"prompt": prompt_text(nums, target), **columns}


def _from_query(columns):
    "The columns of a puzzle as TinyZero asks a base model."
    question, framed, begun = columns["query"].partition("User:")[2].partition("\nAssistant:")
    if framed:
        question, begun = question.strip(), begun.removeprefix(" ")
    else:
        question, begun = columns["query"], ""
    made = {"prompt": question, **columns}
    del made["query"]
    # what the query puts into the model's mouth is a part of the answer
    if isinstance(columns.get("completion"), str):
        line_break = "\n" if begun[-1:].isalnum() or begun[-1:] == "." else ""
        made["completion"] = begun + line_break + columns["completion"]
    with suppress(DataError):
        nums, target = read_prompt(question)
        made.setdefault("nums", nums)
        made.setdefault("target", target)
    return made
