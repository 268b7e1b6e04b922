"""The few helpers that every other lesson stands on: where the project is, how a run is made
repeatable, how records are read so that a broken line is named, and how a long job says how far it
is.
"""

import ast, hashlib, inspect, json, math, os, random, re, tempfile, time, traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache, partial
from numbers import Integral, Real
from pathlib import Path


class PrefkitError(ValueError):
    """Something the user can mend; the message names the place and the way out. `field` is the
    parameter, column or option at fault, `reason` what is wrong with it, in a fixed phrase.
    """

    def __init__(self, message: str = "", *, field: str | None = None, reason: str | None = None):
        super().__init__(message)
        self.field, self.reason = field, reason

    def at(self, where: str) -> "PrefkitError":
        "The same error with a place in front of its message."
        return type(self)(f"{where}: {self}", field=self.field, reason=self.reason)


class DataError(PrefkitError):
    "A file, row or column that cannot be used."


class ConfigError(PrefkitError):
    "A config or parameter that cannot be used."


class NotFinite(PrefkitError):
    "A number that became NaN or infinite: with the same settings it would again."


SHARE = Path(__file__).resolve().parent / "share"  # of an installed package: what a checkout has


def project_root(
    start: str | Path | None = None,  # folder to search upwards from; the current folder if None
) -> Path:  # the folder that holds settings.ini and data/, or the current one
    """The project's top folder: `PREFKIT_ROOT`, else upwards from `start`, else where the package
    stands. A package that was installed by itself needs no project: what is made goes below the
    current folder. Raises `ConfigError` where there is neither.
    """
    if start is None and os.environ.get("PREFKIT_ROOT"):
        return Path(os.environ["PREFKIT_ROOT"]).resolve()
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents, *SHARE.parents):
        if _is_checkout(folder):
            return folder
    if SHARE.is_dir():
        return here
    raise ConfigError(
        f"no prefkit project at or above {here}. Change into the project's folder or set "
        "PREFKIT_ROOT to it."
    )


def _is_checkout(folder: Path) -> bool:
    return (folder / "settings.ini").is_file() and (folder / "data").is_dir()


def shipped(
    path: str | Path,  # from a checkout's top folder, such as nbs/pipelines
) -> Path:  # the absolute path; it need not exist
    "What the kit brings along, in a checkout or in an installed package."
    root = project_root()
    if _is_checkout(root) or not SHARE.is_dir():
        return root / path
    return (SHARE.parents[1] if Path(path).parts[:1] == ("prefkit",) else SHARE) / path


def cache_folder() -> Path:  # need not exist
    "Where things are kept that can be made anew: `PREFKIT_CACHE`, else data/cache of the project."
    return (
        Path(os.environ["PREFKIT_CACHE"])
        if os.environ.get("PREFKIT_CACHE")
        else project_root() / "data" / "cache"
    )


@contextmanager
def optional_cache(
    path: Path,  # what is going to be written
):
    "Around a write into the cache: one that fails is said, and the work goes on without it."
    try:
        yield
    except (OSError, ConfigError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        why = getattr(cause, "strerror", cause)
        announce(
            f"{path.parent.name} of the cache cannot be written to ({why}): what is kept there for "
            "other runs is made again next time. PREFKIT_CACHE names another folder for it."
        )


def resolve_path(
    path: str | Path,  # absolute, or relative to the current folder or the project's root
) -> Path:  # the absolute path; it need not exist
    """A path as a user writes it in a config: absolute, from the current folder if it exists there,
    else from the project's root, else among what an installed package brings along. It may begin
    with a variable of the environment, $NAME/...; raises `ConfigError` where that is not set.
    """
    variable = re.match(r"\$(\w+)/", str(path))
    if variable and variable[1] not in os.environ:
        raise ConfigError(
            f"{path}: the environment has no variable {variable[1]}. Set it to the folder that is "
            "meant, or write the path itself.",
            field=variable[1],
            reason="variable is not set",
        )
    path = Path(os.path.expandvars(path) if variable else path).expanduser()
    if path.is_absolute():
        return path
    places = Path.cwd() / path, project_root() / path, shipped(path)
    return next((place for place in places if there(place)), places[1])


def there(path: Path) -> bool:
    "Whether a path exists; one that no file system takes (too long, a zero byte) does not."
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def run_own(function: Callable, *arguments, **named):
    "Call code of one's own; an error that is none of ours becomes one that names file and line."
    try:
        return function(*arguments, **named)
    except PrefkitError:
        raise
    except Exception as error:
        raise own_error(error, inspect.getsourcefile(function)) from error


def own_error(
    error: Exception,
    file: str | Path | None,  # of one's own; None: not known
) -> ConfigError:
    "An error in a file of one's own, with the last of its lines that was running."
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else "?"
    code = frames[-1].line if frames else None
    return ConfigError(
        f"{file}, line {line}: {type(error).__name__}: {error}{f' (in: {code})' if code else ''}",
        field="plugins",
        reason="error in one's own code",
    )


def nearest(name: str, known: Iterable[str]) -> str:
    "`Did you mean ...?`, with the list of all names."
    known = list(known)
    close = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."


def in_short(value) -> str:
    "A value in a message, in few letters; Python does not write the longest numbers."
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}..."


def is_number(value, *, whole: bool = False) -> bool:
    "Whether a value is a finite number, or a whole one; True and False are none."
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def check_number(
    name: str,  # of the parameter
    value,  # what was given for it
    *,
    whole: bool = False,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
):
    "Raise `ConfigError` unless a value is a finite number within its bounds."
    if (
        is_number(value, whole=whole)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    ):
        return
    bounds = {"above": above, "of at least": least, "below": below, "of at most": most}
    words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
    wanted = f"a {'whole' if whole else 'finite'} number {words}".strip()
    raise ConfigError(
        f"{name} is {value!r}, but must be {wanted}.", field=name, reason="out of range"
    )


_RECORDS = [{}]  # of what is read: one for the whole process, and those of `recorded_inputs`


def input_path(
    path: str | Path,  # as for `resolve_path`
) -> Path:  # the absolute path; it need not exist
    """`resolve_path` for what is going to be read.

    Whoever reads says so here, and a run's fingerprint then holds the file.
    """
    found = resolve_path(path)
    for record in _RECORDS:
        record[str(path)] = found
    return found


@contextmanager
def recorded_inputs():  # -> {as written: path}, which fills while the block runs
    "What `input_path` is asked for meanwhile."
    record = {}
    _RECORDS.append(record)
    try:
        yield record
    finally:
        _RECORDS.pop()


def inputs_so_far() -> dict[str, Path]:  # as written -> path
    "Everything that this process has asked `input_path` for."
    return dict(_RECORDS[0])


def derive_seed(
    *parts,  # anything with a stable `str`: numbers, names, texts
) -> int:  # between 0 and 2**31 - 1
    """A seed that depends on every part and on nothing else, the same on every machine and Python
    version.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def set_seed(
    seed: int,  # any non-negative number
):
    "Seed Python, NumPy and PyTorch (all devices)."
    import numpy, torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def write_text(
    path: str | Path,  # where to; parent folders are made
    text: str,  # the whole content
) -> Path:  # the path
    "Write a text file atomically; raises `ConfigError` where the folder cannot be written to."
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}. Choose an output folder that you may write "
            "to.",
            field=str(path),
            reason="cannot be written",
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files private; these are for everyone
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise ConfigError(
            f"cannot write {path}: {error.strerror}. Make room there, or choose another output "
            "folder.",
            field=str(path),
            reason="cannot be written",
        ) from error
    return path


def sync_files(
    folder: Path,
):
    "Wait until all that a folder holds is on the disk, so that a power cut does not take it."
    for path in (*folder.rglob("*"), folder):
        if os.name == "nt" and path.is_dir():  # Windows opens no folders
            continue
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(
    path: str | Path,  # where to
    value,  # anything json can write; NaN and infinity are refused
) -> Path:  # the path
    "Write JSON atomically, keys in the order given, one indent."
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(
    path: str | Path,  # where to
    records,  # an iterable of dicts
) -> Path:  # the path
    "Write one JSON object a line, atomically and to the byte the same for the same records."
    return write_text(
        path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    )


class JsonObject(dict):
    "An object of JSON in which names stand twice; the last of each counts."

    twice: tuple[str, ...] = ()


def _object(pairs):
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    found = JsonObject(found)
    found.twice = tuple(name for name in found if names.count(name) > 1)
    return found


def _whole_number(digits):
    "A whole number, as its digits where Python refuses to read so many."
    try:
        return int(digits)
    except ValueError:
        return digits


def read_json(text: str):  # raises as `json.loads` does
    "A value of JSON; numbers of thousands of digits stay text, and names that stand twice show."
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)


def iter_jsonl(
    path: str | Path,  # a file of JSON objects, one a line; empty lines are skipped
):  # yields (line number from 1, record or None, reason or None)
    """Walk through a JSON-lines file, telling bad lines apart from good ones; raises `DataError` if
    there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. Check the path; relative paths are taken from the project's "
            "root."
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                record = read_json(
                    raw.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
                )
            except UnicodeDecodeError as error:
                yield number, None, f"not UTF-8 text (byte {error.start + 1})"
                continue
            except json.JSONDecodeError as error:
                yield number, None, f"not valid JSON ({error.msg} at column {error.colno})"
                continue
            except RecursionError:
                yield number, None, "nested too deeply to be read"
                continue
            if isinstance(record, dict):
                yield number, record, None
            else:
                yield (
                    number,
                    None,
                    f"a JSON {type(record).__name__} where an object with named columns is needed",
                )


def read_jsonl(
    path: str | Path,  # a file of JSON objects, one a line
) -> list[dict]:  # the records in order
    "All records of a JSON-lines file; raises `DataError` naming the first bad line."
    records = []
    for number, record, reason in iter_jsonl(path):
        if reason:
            raise DataError(f"{path}, line {number}: {reason}. Mend or delete that line.")
        records.append(record)
    return records


def fingerprint(
    value,  # anything json can write
) -> str:  # 16 hexadecimal digits
    """A short name for a value: equal values have equal fingerprints, whatever the order of their
    keys.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@cache  # the same modules are asked about for every stage
def bare_code(source: str) -> str:
    "Python without comments, docstrings and layout; source with notebook magics stays as it is."
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[:] = body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def imported(
    source: str,  # Python
    module: str = "",  # its dotted name, for relative imports
    package: bool = False,  # whether it is an __init__.py
) -> set[str]:  # dotted names under prefkit: modules, names in them, `.*` for all of a module
    "What a piece of code imports from `prefkit`."
    try:
        tree = ast.parse(source)
    except SyntaxError:
        tree = ast.parse(
            "\n".join(
                line for line in source.splitlines() if re.match(r"(from|import)\s+prefkit", line)
            )
        )
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {name for alias in node.names for name in (alias.name, f"{alias.name}.*")}
        if isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            up = parts[: len(parts) - node.level + package] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:  # it may be a module, of which anything may be used
                names |= {base, f"{base}.{alias.name}", f"{base}.{alias.name}.*"}
    return {name for name in names if name.split(".")[0] == "prefkit"}


NO_INFLUENCE = {  # no number comes from them
    "prefkit.cli",
    "prefkit.config",
    "prefkit.report.page",
    "prefkit.runs.config",
    "prefkit.runs.fingerprints",
    "prefkit.runs.runner",
    "prefkit.runs.stage",
}


def _file(home, name):
    "The file of a module, None where it is none."
    base = home.joinpath(*name.split(".")[1:])
    return next(
        (file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None
    )


def reached_modules(sources: list[str]) -> dict[str, Path]:  # dotted name -> file
    """The modules of `prefkit` that code cells reach through imports, directly or not. A face (a
    package's `__init__`, or a module of imports alone) leads to what is taken from it, no further.
    """
    home, found, todo = Path(__file__).parent, {}, set().union(*map(imported, sources))
    seen = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        file = _file(home, name)
        if file is None:  # a name in a module, or in a face
            owner, _, leaf = name.rpartition(".")
            face = _file(home, owner) if owner else None
            origins = _handed_on(face, owner) if face else {}
            todo |= set(origins.values() if leaf == "*" else [origins.get(leaf, owner)]) - seen
        elif name not in NO_INFLUENCE:
            found[name] = file
            text, package = file.read_text(encoding="utf-8"), file.name == "__init__.py"
            parents = {name.rpartition(".")[0]} - {""}  # importing a.b runs a too
            further = set() if _handed_on(file, name) else imported(text, name, package)
            todo |= (parents | further) - seen
    return found


def _handed_on(file: Path, module: str) -> dict[str, str]:
    "`_names_of_face` of a module's file."
    text = file.read_text(encoding="utf-8")
    return _names_of_face(text, module, file.name == "__init__.py")


@cache
def _names_of_face(text: str, module: str, package: bool) -> dict[str, str]:
    "Name -> where it is from, of a module that holds nothing but imports; {}: it holds more."
    tree = ast.parse(bare_code(text))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    rest = [node for node in tree.body if not isinstance(node, (ast.ImportFrom, ast.Pass))]
    if any(
        ast.unparse(node.targets[0]) != "__all__" for node in rest if isinstance(node, ast.Assign)
    ):
        return {}
    if not imports or not all(isinstance(node, ast.Assign) for node in rest):
        return {}
    found = {}
    for node in imports:
        parts = module.split(".")
        up = parts[: len(parts) - node.level + package] if node.level else []
        base = ".".join([*up, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            found[alias.asname or alias.name] = (
                inner if _file(Path(__file__).parent, inner) else base
            )
    return found


def code_behind(
    *functions: Callable,  # partial ones count as what they complete
) -> str:  # 16 hexadecimal digits
    """Fingerprint of all code of `prefkit` that some functions reach, through the imports of the
    modules they stand in.
    """
    sources = []
    for function in functions:
        while isinstance(function, partial):
            function = function.func
        module = function.__module__
        if module.partition(".")[0] == "prefkit":
            sources.append(f"import {module}")
        else:  # somebody's own: what it does itself, and what its file imports from here
            sources.append(inspect.getsource(inspect.getmodule(function) or function))
    files = {
        name: bare_code(file.read_text(encoding="utf-8"))
        for name, file in reached_modules(sources).items()
    }
    return fingerprint([[bare_code(source) for source in sources], files])


def fingerprint_files(
    path: str | Path,  # a file or a folder
    pattern: str = "*",  # in a folder: which files count, searched through all levels
) -> str:  # 16 hexadecimal digits
    """Fingerprint of a file's bytes, or of all files of a folder with their names; raises
    `DataError` if there is nothing.
    """
    path, digest = Path(path), hashlib.sha256()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    for file in [path] if path.is_file() else sorted(path.rglob(pattern)):
        if not file.is_file():
            continue
        digest.update(b"" if file == path else str(file.relative_to(path)).encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


ANNOUNCED = "said.txt"  # beside the file that `PREFKIT_PROGRESS` names


def announce(
    text: str,  # a line
):
    "Say something that stays: in the output, and on the screen of the runner, where there is one."
    print(text, flush=True)
    if file := os.environ.get("PREFKIT_PROGRESS"):
        with Path(file).with_name(ANNOUNCED).open("a", encoding="utf-8") as said:
            said.write(text + "\n")


class Progress:
    """A progress bar: on screen, or as a small file for the runner where `PREFKIT_PROGRESS` names
    one.
    """

    def __init__(
        self,
        total: int,  # number of steps
        label: str,  # what is being done, a word or two
        initial: int = 0,  # steps already done, after a resume
    ):
        self.total, self.label, self.done = total, label, initial
        self.file, self.bar, self._written = os.environ.get("PREFKIT_PROGRESS"), None, 0.0
        if not self.file:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, desc=label, initial=initial, leave=False)
        self._write(force=True)

    def _write(self, note="", force=False):
        if not self.file or (not force and time.monotonic() < self._written + 0.2):
            return
        self._written = time.monotonic()
        write_text(
            self.file,
            json.dumps({"label": self.label, "done": self.done, "total": self.total, "note": note}),
        )

    def update(
        self,
        steps: int = 1,  # how many steps were done since the last call
        note: str = "",  # a few words to stand behind the bar
    ):
        "Say that `steps` more steps are done."
        self.done += steps
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(steps)
        self._write(note, force=self.done >= self.total)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.close()
