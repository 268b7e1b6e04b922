"""A course for a class: notebooks for teacher and students, and their points."""

import json
import re
import time

import nbformat
import pytest

from prefkit.core import ConfigError
from prefkit.course import exercises_of, grade, grade_class, make_course, solved_lessons

LESSON = [
    ("markdown", "# A toy\n\n> Of two exercises."),
    ("code", "from prefkit.course import tried\nlimit = 10"),
    ("markdown", "**1. Twice.** Write `twice(x)`."),
    ("code", "def check_twice(twice):\n    assert twice(2) == 4 and twice(limit) == 20"),
    ("code", "def twice(x):\n    raise NotImplementedError\n\n\ntried(check_twice, twice);"),
    ("markdown", "**2. Both.** Write `low(x)` and `high(x)`."),
    (
        "code",
        "def check_low(low, high):\n    assert low(3) == 2, 'low is one less'\n"
        "    assert high(3) == 4\n\n\ndef low(x):\n    raise NotImplementedError\n\n\n"
        "def high(x):\n    raise NotImplementedError\n\n\ntried(check_low, low, high);",
    ),
    ("markdown", "## Recap"),
]
SOLUTIONS = [
    ("markdown", "# Solutions: A toy"),
    ("code", 'from prefkit.course import run_lesson\n\nglobals().update(run_lesson("toys/one"))'),
    ("markdown", "**1. Twice.** Write `twice(x)`."),
    ("code", "#| code-fold: true\ndef twice(x):\n    return 2 * x\n\n\ncheck_twice(twice)"),
    ("markdown", "Twice is two times."),
    ("markdown", "**2. Both.** Write `low(x)` and `high(x)`."),
    (
        "code",
        "#| code-fold: true\ndef low(x):\n    return x - 1\n\n\ndef high(x):\n"
        "    return x + 1\n\n\ncheck_low(low, high)",
    ),
]


def notebook(cells):
    made = nbformat.v4.new_notebook()
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    made.cells = [new[kind](source) for kind, source in cells]
    return made


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, cells in (("lib/toys/one", LESSON), ("solutions/one_solutions", SOLUTIONS)):
        path = tmp_path / f"nbs/{name}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(notebook(cells), path)
    (tmp_path / "nbs/tutorials").mkdir()
    monkeypatch.setenv("PREFKIT_ROOT", str(tmp_path))
    return tmp_path


def sources(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


def test_a_class_gets_solutions_for_the_teacher_and_stubs_for_students(project):
    assert make_course(project / "class") == {"toys/one": 2}
    teacher, student = (
        project / f"class/{version}/one/one.ipynb" for version in ("source", "release")
    )
    for path in (teacher, student):
        made = nbformat.read(path, 4)
        nbformat.validate(made)
        marked = [cell.metadata.nbgrader for cell in made.cells if "nbgrader" in cell.metadata]
        assert [one.grade_id for one in marked] == [
            "twice",
            "twice_points",
            "low_check",
            "low",
            "low_points",
        ]
        assert [one.grade for one in marked] == [False, True, False, False, True]
        assert [one.locked for one in marked] == [False, True, True, False, True]
        assert [one.get("points") for one in marked if one.grade] == [1, 1]
    given, solved = "\n".join(sources(student)), "\n".join(sources(teacher))
    assert "return 2 * x" not in given and given.count("raise NotImplementedError") == 3
    assert "### BEGIN SOLUTION\ndef twice(x):\n    return 2 * x\n### END SOLUTION" in solved
    assert "Twice is two times." in solved and "NotImplementedError" not in solved
    assert "assert tried(check_low, low, high)" in given
    assert 'course_id = "prefkit"' in (project / "class/nbgrader_config.py").read_text()


def test_a_lesson_that_there_is_not_is_named(project):
    with pytest.raises(ConfigError, match="there is no 'toys/on'. Did you mean `toys/one`"):
        make_course(project / "class", ["toys/on"])
    (project / "nbs/solutions/one_solutions.ipynb").unlink()
    with pytest.raises(ConfigError, match="clone it, and call this there"):
        solved_lessons()


def handed_in(project, student, changes=(), drop=()):
    "A student's notebook: the release with answers in place of stubs."
    made = nbformat.read(project / "class/release/one/one.ipynb", 4)
    answers = dict(changes)
    made.cells = [
        cell for cell in made.cells if cell.metadata.get("nbgrader", {}).get("grade_id") not in drop
    ]
    for cell in made.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        cell.source = answers.get(name, cell.source)
    path = project / f"class/submitted/{student}/one/one.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(made, path)


RIGHT = {
    "twice": "def twice(x):\n    return x + x",
    "low": "def low(x):\n    return x - 1\n\n\ndef high(x):\n    return x + 1",
}


def test_a_class_is_graded_by_the_lessons_own_checks(project):
    make_course(project / "class")
    handed_in(project, "ada", RIGHT)
    handed_in(project, "bob", RIGHT | {"low": "def low(x):\n    return x\n\n\nhigh = low"})
    handed_in(project, "cleo")  # nothing done
    # checks and points taken out, and a way round them
    cheat = "def check_twice(twice):\n    pass\n\n\ndef twice(x):\n    return 0"
    handed_in(project, "dan", {"twice": cheat}, drop=("twice_points", "low_check", "low"))
    handed_in(project, "eve", RIGHT | {"twice": "def twice(x):\n    return 2 * y"})
    table = grade_class(project / "class", jobs=1)
    points = table.groupby("student")["points"].sum().to_dict()
    assert points == {"ada": 2, "bob": 1, "cleo": 0, "dan": 0, "eve": 1}
    said = table.set_index(["student", "exercise"])["said"]
    assert "low is one less" in said["bob", "low"]
    assert said["cleo", "twice"] == "twice: still to be written."
    assert "NameError" in said["eve", "twice"]
    blank = table[table["blank"]].groupby("student").size().to_dict()
    assert blank == {"cleo": 2, "dan": 1}
    assert (project / "class/grades.csv").read_text().count("\n") == 11


@pytest.mark.slow
def test_what_does_not_end_or_is_no_notebook_has_no_points_and_a_reason(project):
    make_course(project / "class")
    handed_in(project, "loop", RIGHT | {"twice": "while True:\n    pass"})
    broken = project / "class/submitted/torn/one/one.ipynb"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    begun = time.monotonic()
    table = grade_class(project / "class", seconds=20).set_index(["student", "exercise"])
    assert time.monotonic() - begun < 60 and table["points"].sum() == 0
    assert "not graded: it took longer than 20 s" in table.loc[("loop", "low"), "said"]
    assert "not graded: json" in table.loc[("torn", "low"), "said"]
    with pytest.raises(ConfigError, match="nothing was handed in"):
        grade_class(project / "elsewhere")


def test_a_real_lesson_is_solved_by_its_solutions_and_not_by_its_stubs(tmp_path):
    lesson = "losses/23_dpop"
    assert make_course(tmp_path, [lesson]) == {lesson: 3}
    solved = grade(tmp_path / "source/23_dpop/23_dpop.ipynb", lesson)
    assert [row["points"] for row in solved] == [1, 1, 1], solved
    empty = grade(tmp_path / "release/23_dpop/23_dpop.ipynb", lesson)
    assert [(row["points"], row["blank"]) for row in empty] == [(0, True)] * 3
    for version in ("source", "release"):
        notebook = tmp_path / version / "23_dpop/23_dpop.ipynb"
        (image,) = re.findall(r"\]\((\S+\.svg)\)", notebook.read_text(encoding="utf-8"))
        assert (notebook.parent / image).resolve().is_file()


def test_every_lesson_with_solutions_can_be_made_a_class_of():
    for path in solved_lessons().values():
        for name, one in exercises_of(path).items():
            assert f"def {one.names.split(',')[0]}(" in one.solution, (path, name)
            assert "raise NotImplementedError" not in one.solution
