"""Grading a class: each student's answers are run behind the lesson itself, whatever else their
notebook has become, in a process of its own and within a time.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd

from prefkit.core import ConfigError
from prefkit.course.exercises import run_lesson, tried
from prefkit.course.make import STUB, exercises_of, solved_lessons

__all__ = ["grade", "grade_class"]


def _answers(notebook: Path, names: dict[str, str]) -> dict[str, str]:  # exercise -> code
    """The cells that answer exercises: by nbgrader's name of a cell, else the last that defines the
    function. Raises `ValueError` where there is no notebook.
    """
    found = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source, about = "".join(cell.get("source", [])), cell.get("metadata", {})
        if cell.get("cell_type") != "code":
            continue
        marked = about.get("nbgrader", {}).get("grade_id", "")
        for exercise, function in names.items():
            if marked == exercise or (not marked and f"def {function}(" in source):
                found[exercise] = source
    return found


def grade(
    notebook: str | Path,  # a student's
    lesson: str,  # such as losses/21_dpo
) -> list[dict]:  # exercise, points, said
    "One point for each exercise whose check passes, and what was said of it; runs student's code."
    path = solved_lessons()[lesson]
    exercises = exercises_of(path)
    first = {name: one.names.split(",")[0] for name, one in exercises.items()}
    told, answers = [], _answers(Path(notebook), first)
    with redirect_stdout(StringIO()):
        names = run_lesson(lesson)
    for name, one in exercises.items():
        code, said = answers.get(name, one.stub), StringIO()
        with redirect_stdout(said):
            try:
                own = dict(names)
                exec(compile(code, f"<{name}>", "exec"), own)
                given = [own[each.strip()] for each in one.names.split(",")]
                right = tried(names[f"check_{name}"], *given)  # the lesson's, not the student's
            except Exception as error:  # of any kind: it is a student's code that runs
                print(f"{name}: not yet. {type(error).__name__}: {error}")
                right = False
        blank = bool(STUB.search(code + "\n"))
        last = said.getvalue().strip().splitlines()[-1:]
        told.append(
            {"exercise": name, "points": int(right), "blank": blank, "said": " ".join(last)}
        )
    return told


def grade_class(
    folder: str | Path,  # submitted/<student>/<lesson>/<lesson>.ipynb, as nbgrader has it
    seconds: float = 300.0,  # a notebook may take
    jobs: int = 2,  # notebooks at a time
) -> pd.DataFrame:  # a row for each exercise of each notebook; also written to grades.csv
    """Points of a class; a notebook that cannot be graded has none, and the reason. Raises
    `ConfigError` where nothing was handed in.
    """
    folder = Path(folder)
    lessons = {path.stem: name for name, path in solved_lessons().items()}
    found = sorted((folder / "submitted").glob("*/*/*.ipynb"))
    asked = [(path, lessons[path.stem]) for path in found if path.stem in lessons]
    if not asked:
        raise ConfigError(
            f"{folder / 'submitted'}: nothing was handed in. Put notebooks at "
            "submitted/<student>/<lesson>/<lesson>.ipynb.",
            field="folder",
            reason="nothing there",
        )
    with ThreadPoolExecutor(jobs) as pool:
        graded = list(pool.map(lambda one: _in_a_process(*one, seconds), asked))
    rows = []
    for (path, lesson), told in zip(asked, graded):
        student = path.relative_to(folder / "submitted").parts[0]
        rows += [{"student": student, "lesson": lesson, **one} for one in told]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "grades.csv", index=False)
    return table


def _in_a_process(path: Path, lesson: str, seconds: float) -> list[dict]:
    "What `grade` says, from a process that may be ended; no points and the reason where it fails."
    command = [sys.executable, "-m", "prefkit.course.grading", str(path), lesson]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        why = (made.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        if made.returncode == 0:
            return json.loads(made.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        why = f"it took longer than {seconds:g} s"
    blank = {"points": 0, "blank": False, "said": f"not graded: {why[:200]}"}
    return [{"exercise": name, **blank} for name in exercises_of(solved_lessons()[lesson])]


if __name__ == "__main__":
    print(json.dumps(grade(*sys.argv[1:3])))
