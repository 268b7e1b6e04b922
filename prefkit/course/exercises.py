"""Exercises of the lessons. A stub stands under its check and is tried as it is: what is wrong is
said, and the notebook runs on.
"""

import json
import linecache
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pandas as pd
from IPython.display import display

from prefkit.core import ConfigError, nearest, project_root
from prefkit.course.fresh import LEDGER, SAYS, VARIES, run_cell, stale_places, stored_texts

__all__ = ["run_lesson", "tried"]


def tried(
    check: FunctionType,  # takes the answer and raises where it is wrong; called check_<its name>
    *answer: Callable,  # to the exercise: a function, or several
) -> bool:  # whether it is right
    "Say whether an answer passes its check, or what is wrong with it."
    name = check.__name__.removeprefix("check_")
    try:
        check(*answer)
    except Exception as error:  # of any kind: it is a student's code that runs
        cause: BaseException = error
        while cause.__cause__:  # the library names the place of an error in a plug-in
            cause = cause.__cause__
        unwritten = isinstance(cause, NotImplementedError)
        wrong = "still to be written." if unwritten else f"not yet. {_what_is_wrong(error, check)}"
        print(f"{name}: {wrong}")
        return False
    print(f"{name}: right.")
    return True


def _what_is_wrong(error: Exception, check: FunctionType) -> str:
    "The message of an error, and the line of the check that raised it."
    code = check.__code__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == code.co_filename and frame.lineno is not None
    ]
    lines = [linecache.getline(frame.filename, frame.lineno or 0).strip() for frame in frames]
    kind, message = type(error).__name__, str(error).strip()
    said = f"{kind}: {message}" if message else kind
    if isinstance(error, AssertionError):
        said = message or "This does not hold"
    return f"{said}: {lines[-1]}" if lines and lines[-1] else said


def run_lesson(
    name: str,  # its folder and stem below nbs/lib, such as losses/21_dpo, or tutorials/<stem>
    *,
    compare: bool | None = None,  # outputs with those stored; None: under nbdev_test alone
) -> dict:  # what it defines
    """Run the cells of a lesson from top to bottom, but for those that put its folders away (tag
    `cleanup`) and those that nbdev leaves out as well (`#| slow` and the like); raises
    `ConfigError` where there is no such lesson, `AssertionError` where outputs that the lesson
    stores are no longer those of its cells, and whatever a cell raises.
    """
    compare = "IN_TEST" in os.environ if compare is None else compare  # nbdev_test sets it
    path = _lesson_path(name)
    names: dict = {"__name__": path.stem, "display": display}  # a kernel has it
    stale: list[str] = []
    if compare:
        pd.reset_option("^display")  # a worker of nbdev_test runs lesson after lesson
        pd.set_option("display.max_columns", 20)  # as in a kernel; a terminal has its width
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
        if cell["cell_type"] == "code" and "cleanup" not in tags and not _LEFT_OUT.search(source):
            place = f"<{name}, cell {number}>"
            # so that a check can name the line at which it failed
            linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
            if not compare:
                exec(compile(source, place, "exec"), names)
                continue
            stored, fresh = stored_texts(cell["outputs"]), run_cell(source, place, names)
            if {LEDGER, SAYS} & set(tags) and len(stored) == len(fresh):
                continue
            found = stale_places(stored, fresh, numbers=VARIES not in tags)
            stale += [f"cell {number}: {one}" for one in found]
    if stale:
        text = "\n".join(stale)
        raise AssertionError(f"{name} stores outputs that its cells no longer give:\n{text}")
    return names


_LEFT_OUT = re.compile(r"^#\| *(?:slow|gpu|network|eval: *false)\s*$", re.M)


def _lesson_path(name: str) -> Path:
    nbs = project_root() / "nbs"
    home = nbs if name.startswith("tutorials/") else nbs / "lib"
    path = home / f"{name}.ipynb"
    if not path.is_file():
        found = [*(nbs / "lib").glob("*/*.ipynb"), *(nbs / "tutorials").glob("*.ipynb")]
        known = [file.relative_to(nbs).with_suffix("").as_posix() for file in found]
        known = [one.removeprefix("lib/") for one in known]
        raise ConfigError(
            f"there is no lesson {name!r}.{nearest(name, known)}", field="name", reason="unknown"
        )
    return path
