"""Where rows come from: JSON-lines, JSON and Parquet files, `datasets` folders, the Hugging Face Hub.

Each source is read as rows `(number from 1, record or None, reason why there is no record or None)`. The lesson
`nbs/lib/02_data.ipynb` uses it through `prefkit.data.load_records`. Written by hand, not exported from a notebook.
"""
import json, re
from collections.abc import Iterator
from pathlib import Path

from prefkit.core import ConfigError, DataError, iter_jsonl, resolve_path

SUFFIXES = (".jsonl", ".json", ".parquet")


class SplitError(ConfigError):
    "A split that is written wrongly or that the source does not have."


def parse_split(
    split: str, # a name, with a slice if wanted: train, train[200:400]
) -> tuple[str, int, int | None]: # name, first row, row after the last (None: to the end)
    "Name and slice of a split; raises `SplitError`."
    match = re.fullmatch(r"([\w.-]+)(?:\[(\d*):(\d*)\])?", split) if isinstance(split, str) else None
    if not match: raise SplitError(f"split is {split!r}, but must be a name, with a slice of whole numbers if wanted: train[200:400].")
    name, start, stop = match.groups()
    return name, int(start or 0), int(stop) if stop else None


def _only_train(split, label):
    if split != "train":
        raise SplitError(f"{label} has one split, train, and no {split!r}. Name another file, or take slices such as train[:200] and train[200:].")


def _unreadable(path, error):
    what = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{path}: cannot be read ({what}). Check that the file is whole and is what its ending says.")


def _read_json(path):
    "Rows of a .json file that is a list; None where it holds one object a line."
    text = path.read_bytes().decode("utf-8-sig").strip()
    if not text.startswith("["):
        try: _, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError): return None # a broken first line; it is named when the lines are read
        if "\n" in text[:end]:
            raise DataError(f"{path}: begins with a JSON object over several lines, which is not a list of rows. "
                            "Write a list, [{...}, {...}], or each row as one object on a line of its own.")
        return None
    return [(number, record, None) if isinstance(record, dict) else
            (number, None, f"a JSON {type(record).__name__} where an object with named columns is needed")
            for number, record in enumerate(json.loads(text), 1)]


def _read_parquet(path):
    "Rows of a Parquet file, batch by batch; a broken page shows only when its batch is read."
    import pyarrow.parquet
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for number, record in enumerate(batch.to_pylist(), number + 1): yield number, record, None
    except (OSError, ValueError, pyarrow.ArrowException) as error: raise _unreadable(path, error) from error


def _read_file(path, split, label):
    _only_train(split, label)
    try:
        if path.suffix == ".parquet": return _read_parquet(path)
        rows = _read_json(path) if path.suffix == ".json" else None
        return iter_jsonl(path) if rows is None else rows
    except DataError: raise # it is a ValueError, and says what is wrong
    except (OSError, ValueError, RecursionError) as error: # ValueError: broken JSON, text that is not UTF-8
        raise _unreadable(path, error) from error


def _read_folder(path, split, label):
    import datasets # on demand: it takes seconds to import
    try: data = datasets.load_from_disk(str(path))
    except Exception as error: # the library's errors have no common class
        raise DataError(f"{path}: not a folder written by datasets' save_to_disk ({type(error).__name__}). "
                        "Give such a folder, or a .jsonl, .json or .parquet file.") from error
    if not hasattr(data, "keys"): _only_train(split, label)
    elif split not in data: raise SplitError(f"{label} has no split {split!r}; it has {', '.join(sorted(data))}.")
    return ((number, record, None) for number, record in enumerate(data[split] if hasattr(data, "keys") else data, 1))


def read_hub(
    hub: str, # owner/name
    split: str, # a split's name on the Hub
    config: str | None = None, # the Hub's name for a part of the data set
) -> Iterator[tuple]: # rows
    "Rows of a data set on the Hub, which is downloaded once and then read from the cache; raises `DataError`."
    import datasets
    try: data = datasets.load_dataset(hub, *([config] if config else []), split=split)
    except Exception as error: # the library's errors have no common class
        what = (str(error) or "no message").splitlines()[0]
        raise DataError(f"{hub}: cannot be loaded, neither as a local path nor from the Hub ({type(error).__name__}: {what}). "
                        f"Check the name, the split ({split}) and the network, or give a local file or folder.") from error
    return ((number, record, None) for number, record in enumerate(data, 1))


def is_hub_name(
    name: str | Path, # as a user gives it
) -> bool: # whether it stands for a data set on the Hub
    "Whether a name is owner/name and neither something on this machine nor meant as a path."
    text = str(name)
    return text.count("/") == 1 and Path(text).suffix not in SUFFIXES and not text.startswith((".", "/", "~")) and not resolve_path(text).exists()


def read_source(
    name: str | Path, # a file, a datasets folder, or owner/name on the Hub
    split: str, # a split's name
    known: list[str], # names of registered data sets, for the message
) -> tuple[str, Iterator[tuple]]: # a short label for messages, and rows
    "Rows of a source that is no registered data set; raises `DataError` or `ConfigError`."
    from difflib import get_close_matches
    if not str(name).strip(): raise ConfigError(f"the name of the data set is empty. Give one of {', '.join(known)}, a file or a folder.")
    path, label = resolve_path(name), Path(name).name
    if path.is_dir(): return label, _read_folder(path, split, label)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: files {'of type ' + path.suffix if path.suffix else 'without ending'} are not read. Give {', '.join(SUFFIXES)}.")
        return label, _read_file(path, split, label)
    if Path(name).suffix in SUFFIXES or str(name).startswith((".", "/", "~")):
        raise DataError(f"{path}: no such file or folder. Check the path; relative paths are taken from the project's root.")
    if is_hub_name(name): return str(name), read_hub(str(name), split)
    near = get_close_matches(str(name), known, 1)
    raise ConfigError(f"there is no data set {str(name)!r}{f'; did you mean {near[0]}?' if near else '.'} Give one of {', '.join(known)}, "
                      "a name owner/name on the Hub, a datasets folder, or a .jsonl, .json or .parquet file.")
