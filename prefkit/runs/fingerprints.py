"""A stage that is finished need not run again, unless something that can change its result has
changed. This lesson says what can.
"""

import re
from pathlib import Path

from prefkit.runs.config import UPSTREAM, Config, Stage, code_cells, texts
from prefkit.runs.plugins import files_of, packages
from prefkit.core import (
    DataError,
    PrefkitError,
    bare_code,
    fingerprint,
    fingerprint_files,
    input_path,
    reached_modules,
    recorded_inputs,
    resolve_path,
    there,
)


def code_fingerprint(pipeline: Path) -> str:
    "Fingerprint of a notebook's cells and of the modules that they reach."
    cells = code_cells(pipeline)
    files = {
        name: bare_code(file.read_text(encoding="utf-8"))
        for name, file in reached_modules(cells).items()
    }
    return fingerprint([list(map(bare_code, cells)), files])


DATA_FILES = (".jsonl", ".json", ".parquet", ".csv")
PLACES = "Relative paths are taken from the current folder or else the project's root."


def looks_like_a_path(text: str) -> bool:
    """Whether a string has a folder in front or the ending of a file of data; an address and a
    stage's name have not.
    """
    if (
        "://" in text
        or UPSTREAM.fullmatch(text)
        or len(text) > 1000
        or "\n" in text
        or "\0" in text
        or "{{" in text
        or "{%" in text
    ):
        return False
    return "/" in text or Path(text).suffix in DATA_FILES


def check_stage(
    stage: Stage,
) -> dict[str, Path]:  # what the stage reads: name as written -> local path
    """Run a stage's cells tagged `check` in this process; what they look at through `input_path` is
    what it reads. So is whatever in its parameters looks like a path and is there: a notebook of
    one's own may check nothing.
    """
    with recorded_inputs() as inputs:
        _carry_out(stage, "check")
        for text in filter(looks_like_a_path, texts(stage.parameters)):
            if there(resolve_path(text)):
                input_path(text)
            elif Path(text).suffix in DATA_FILES and not re.search(r"\s", text):
                raise DataError(f"stage {stage.name}: {text} does not exist. {PLACES}")
    return {name: path for name, path in inputs.items() if not UPSTREAM.fullmatch(name)}


def reach_stage(stage: Stage):
    """Run a stage's cells tagged `reach` in this process: whoever it is going to ask is asked once
    whether there is an answer. Raises `ConfigError`.
    """
    _carry_out(stage, "reach")


def _carry_out(stage: Stage, tag: str):
    "Run the cells with a tag; stage:NAME stands in the parameters as written."
    names = {"__name__": tag, **stage.parameters}
    try:
        for source in code_cells(stage.pipeline, tag):
            exec(compile(source, f"{stage.pipeline.name}, {tag}", "exec"), names)
    except PrefkitError as error:
        raise error.at(f"stage {stage.name}") from None


def fingerprints(
    config: Config,
) -> dict[str, dict]:  # stage -> {stage, parameters, code, inputs, upstream}
    """What makes each stage what it is; `stage` sums up the others.

    Raises what the stages' checks raise.
    """
    found, code, seen = {}, {}, {}
    own = {f"plugin {path.name}": path for path in files_of(config.plugins)}
    offered = {f"package {name}": version for name, version in packages().items()}
    for stage in config.stages:  # upstream stages come first
        if stage.pipeline not in code:
            code[stage.pipeline] = code_fingerprint(stage.pipeline)
        inputs = check_stage(stage) | own
        for path in set(inputs.values()) - seen.keys():
            seen[path] = fingerprint_files(path) if path.exists() else None
        parts = {
            "parameters": fingerprint(stage.parameters),
            "code": code[stage.pipeline],
            "inputs": {name: seen[path] for name, path in sorted(inputs.items())} | offered,
            "upstream": {name: found[name]["stage"] for name in stage.needs},
        }
        found[stage.name] = {"stage": fingerprint(parts), **parts}
    return found


def other_inputs(
    prints: dict,  # of a stage, from before it ran
    read: dict[str, str],  # what it read, as written -> path
    home: Path,  # of its experiment: upstream stages lie there, and have fingerprints of their own
) -> dict[str, str]:  # path -> fingerprint
    "Inputs that a stage's check had not looked at, as they are after the stage has run."
    inside = home.resolve()
    paths = [Path(path) for name, path in read.items() if name not in prints["inputs"]]
    outside = [
        path for path in paths if not path.resolve().is_relative_to(inside) and path.exists()
    ]
    return {str(path): fingerprint_files(path) for path in outside}


def still_as_read(
    prints: dict,  # of a finished stage
) -> bool:
    "Whether what a stage read besides its declared inputs is what it was."
    read = {Path(path): was for path, was in prints.get("read", {}).items()}
    return all(path.exists() and fingerprint_files(path) == was for path, was in read.items())


def difference(old: dict, new: dict) -> str:  # such as "code and inputs"
    "Which parts of two fingerprints of a stage differ."
    return " and ".join(part for part in new if part != "stage" and old.get(part) != new[part])
