"""Exercises: in a lesson stands a stub that says what is wrong, in its notebook of solutions one
way to write it, which `make test` runs behind the lesson.
"""

import json
import linecache
import re
from pathlib import Path

import pytest

from prefkit.core import ConfigError
from prefkit.course import run_lesson, tried

NBS = Path(__file__).parents[1] / "nbs"
LESSONS = sorted([*(NBS / "lib").glob("*/*.ipynb"), *(NBS / "tutorials").glob("*.ipynb")])
STUB = re.compile(r"def (\w+)\([^)]*\)(?: -> \w+)?:\n    raise NotImplementedError\n")


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def solutions_of(lesson: Path) -> Path:
    return NBS / "solutions" / f"{lesson.stem}_solutions.ipynb"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_stubs_with_checks_and_no_solution(lesson):
    code = code_of(lesson)
    stubs = [cell for cell in code if STUB.search(cell)]
    assert len(stubs) >= 3
    text, solved = "\n".join(code), "\n".join(code_of(solutions_of(lesson)))
    for cell in stubs:
        names = STUB.findall(cell)
        assert f"tried(check_{names[0]}, {', '.join(names)});" in cell
        assert f"def check_{names[0]}(" in text
        assert f"check_{names[0]}({', '.join(names)})" in solved and f"def {names[0]}(" in solved
        assert not re.search(rf"^check_{names[0]}\(", text, re.M)  # Run All passes unsolved
    assert "<summary>Solution" not in lesson.read_text(encoding="utf-8")
    depth = "../../" if lesson.parent.parent.name == "lib" else "../"
    link = f"[Solutions]({depth}solutions/{lesson.stem}_solutions.ipynb)"
    assert link in lesson.read_text(encoding="utf-8")


def test_every_notebook_of_solutions_runs_its_lesson():
    found = sorted((NBS / "solutions").glob("*.ipynb"))
    assert found == sorted(map(solutions_of, LESSONS))
    for path in found:
        first, lesson = code_of(path)[0], path.stem.removesuffix("_solutions")
        assert re.search(rf'run_lesson\("\w+/{lesson}"\)', first), path


CHECK = """
def check_twice(twice):
    assert twice(2) == 4
    assert twice("a") == "aa", "a text, too, is doubled"
"""


def check_twice():
    "The check, compiled as a notebook's cell is: pytest does not rewrite it."
    names = {}
    linecache.cache["<toy>"] = (len(CHECK), None, CHECK.splitlines(keepends=True), "<toy>")
    exec(compile(CHECK, "<toy>", "exec"), names)
    return names["check_twice"]


def stub(x):
    raise NotImplementedError


def within_a_plugin(x):
    try:
        stub(x)
    except NotImplementedError as error:
        raise ConfigError("reward mine: line 2") from error


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda x: 2 * x, "twice: right."),
        (stub, "twice: still to be written."),
        (within_a_plugin, "twice: still to be written."),
        (lambda x: x, "twice: not yet. This does not hold: assert twice(2) == 4"),
        (lambda x: 4, 'twice: not yet. a text, too, is doubled: assert twice("a")'),
        (lambda: 4, "twice: not yet. TypeError: "),
        (lambda x: 1 / 0, "twice: not yet. ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_is_said_and_the_notebook_runs_on(answer, said, capsys):
    assert tried(check_twice(), answer) == said.endswith("right.")
    assert said in capsys.readouterr().out


def test_a_lesson_is_run_by_name_without_its_cleanup(tmp_path, monkeypatch, capsys):
    cells = [
        ("code", "x = 1\n\n\ndef check_f(f):\n    assert f() == x", []),
        ("markdown", "not code", []),
        ("code", "from prefkit.course import tried\ntried(check_f, lambda: 2)", []),
        ("code", "#| slow\nx = 3", []),
        ("code", "#| eval: false\nx = 4", []),
        ("code", "del x", ["cleanup"]),
    ]
    cells = [{"cell_type": k, "source": [s], "metadata": {"tags": t}} for k, s, t in cells]
    path = tmp_path / "nbs/lib/toys/one.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cells": cells}))
    (tmp_path / "nbs/tutorials").mkdir()
    monkeypatch.setattr("prefkit.course.exercises.project_root", lambda: tmp_path)
    assert run_lesson("toys/one")["x"] == 1
    assert "f: not yet. This does not hold: assert f() == x" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no lesson 'toys/on'. Did you mean `toys/one`"):
        run_lesson("toys/on")
