"""A course for a class: the lessons as nbgrader's instructor and student versions, its metadata
written from the exercises, since cleaning strips it from the sources.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from prefkit.core import ConfigError, nearest, project_root, write_text

__all__ = ["Exercise", "exercises_of", "make_course", "solved_lessons"]

STUB = re.compile(r"^def (\w+)\([^)]*\)(?: -> [^:]+)?:\n    raise NotImplementedError\n", re.M)
TRY = re.compile(r"^tried\(check_(\w+), ([\w, ]+)\);$", re.M)
IMAGE = re.compile(r"\]\((?:\.\./)+images/")  # in Markdown
CONFIG = """c = get_config()
c.CourseDirectory.course_id = "prefkit"
"""


def solved_lessons() -> dict[str, Path]:  # folder and stem, such as losses/21_dpo -> its notebook
    "The lessons and tutorials with a notebook of solutions; raises `ConfigError` where none is."
    nbs = project_root() / "nbs"
    found = {}
    for path in sorted([*(nbs / "lib").glob("*/*.ipynb"), *(nbs / "tutorials").glob("*.ipynb")]):
        if _solutions_of(path).is_file():
            found[path.relative_to(nbs).with_suffix("").as_posix().removeprefix("lib/")] = path
    if not found:
        raise ConfigError(
            f"{nbs}: no lessons with solutions stand here. A course is made in a checkout of the "
            "project: clone it, and call this there.",
            field="lessons",
            reason="missing",
        )
    return found


def _solutions_of(lesson: Path) -> Path:
    nbs = project_root() / "nbs"
    return nbs / "solutions" / f"{lesson.stem}_solutions.ipynb"


def _cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


class Exercise:
    "An exercise of a lesson: its stub, its check, and one way to solve it."

    def __init__(self, name: str, names: str, stub: str, solution: str, why: str):
        self.name, self.names = name, names  # of the check; of the functions that it takes
        self.stub, self.solution, self.why = stub, solution, why

    @property
    def call(self) -> str:  # raises where the answer is wrong, once it is said what is
        return f"assert tried(check_{self.name}, {self.names})"


def exercises_of(lesson: Path) -> dict[str, Exercise]:  # name -> exercise, in their order
    "What a lesson's stubs and its notebook of solutions say."
    solved, found = _cells(_solutions_of(lesson)), {}
    for cell in _cells(lesson):
        source = "".join(cell["source"])
        asked, stub = TRY.search(source), STUB.search(source)
        if not asked or not stub:
            continue
        name, names = asked.groups()
        call = f"check_{name}({names})"
        of_code = [one["cell_type"] == "code" and call in "".join(one["source"]) for one in solved]
        place = of_code.index(True)
        solution = "".join(solved[place]["source"]).replace("#| code-fold: true\n", "")
        after = solved[place + 1] if place + 1 < len(solved) else {"cell_type": "", "source": []}
        why = "".join(after["source"]) if after["cell_type"] == "markdown" else ""
        why = "" if why.startswith("**") else why  # the next exercise
        empty = source[stub.start() : asked.start()].rstrip()
        found[name] = Exercise(name, names, empty, solution.replace(call, "").strip(), why)
    return found


def make_course(
    out: str | Path,  # a folder, made if missing: source/ and release/ as nbgrader has them
    lessons: Iterable[str] = (),  # such as losses/21_dpo; (): all
) -> dict[str, int]:  # lesson -> its exercises
    """Write source/<lesson>/<lesson>.ipynb with solutions for the teacher and release/... with
    stubs for students; raises `ConfigError` for a lesson that there is not.
    """
    known, out = solved_lessons(), Path(out)
    for name in lessons:
        if name not in known:
            close = nearest(name, known)
            raise ConfigError(f"lesson: there is no {name!r}.{close}", field="lessons")
    made = {}
    for name in list(lessons) or list(known):
        path = known[name]
        exercises = exercises_of(path)
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for version, solved in (("source", True), ("release", False)):
            cells = [
                each for cell in notebook["cells"] for each in _for_class(cell, exercises, solved)
            ]
            text = json.dumps(notebook | {"cells": cells}, ensure_ascii=False, indent=1)
            write_text(out / version / path.stem / f"{path.stem}.ipynb", text + "\n")
        made[name] = len(exercises)
    write_text(out / "nbgrader_config.py", CONFIG)
    for image in sorted((project_root() / "nbs/images").glob("*.svg")):
        write_text(out / "images" / image.name, image.read_text(encoding="utf-8"))
    return made


def _for_class(cell: dict, exercises: dict[str, Exercise], solved: bool) -> list[dict]:
    "A cell of a lesson as it stands in a class: an exercise becomes an answer and its test."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [cell | {"source": IMAGE.sub("](../../images/", source).splitlines(keepends=True)}]
    asked, stub = TRY.search(source), STUB.search(source)
    if not asked or not stub or asked[1] not in exercises:
        return [cell]
    one = exercises[asked[1]]
    begins, ends = "### BEGIN SOLUTION\n", "\n### END SOLUTION"
    answer = f"{begins}{one.solution}{ends}" if solved else one.stub
    before = source[: stub.start()].rstrip()  # a check in the same cell
    cells = [_code(before, f"{one.name}_check")] if before else []
    cells += [
        _code(answer, one.name, solution=True),
        _code(one.call, f"{one.name}_points", grade=True, points=1),
    ]
    if solved and one.why:
        text = {"cell_type": "markdown", "id": f"why-{one.name}"[:60], "metadata": {}}
        cells.append(text | {"source": one.why.splitlines(keepends=True)})
    return cells


def _code(source: str, name: str, **of_grader) -> dict:
    "A code cell with nbgrader's metadata; locked but for an answer."
    about = {"schema_version": 3, "grade_id": name, "task": False, "grade": False}
    about |= {"solution": False, **of_grader}
    about["locked"] = not about["solution"]
    return {
        "cell_type": "code",
        "id": name.replace("_", "-")[:60],
        "metadata": {"nbgrader": about},
        "execution_count": None,
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }
