"""The points of the lessons on methods: for each, the cell that earns it is there and is one of
its kind; what a lesson lacks is named.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
POINTS = yaml.safe_load((ROOT / "tests/lesson_points.yaml").read_text(encoding="utf-8"))
KINDS = {  # point -> what its cell says
    "when": r"\*\*When to use it\.\*\*",
    "derivation": r"\$",
    "by_hand": r"\*\*By hand",
    "gradient": r"[Gg]radient|autograd",
    "oracle": r"oracle|SciPy",
    "picture": None,  # an image
    "failure": r"[Ff]ail|no error, a falling loss",
    "exercises": r"^## Exercises$",
    "evidence": r"^## Does it work\?$",
    "next": r"^## (Recap, and on|What to take along)$",
}
PLACES = [*(ROOT / "nbs/lib/losses").glob("*.ipynb"), ROOT / "nbs/lib/stats/35_best_of_n.ipynb"]
LESSONS = sorted(f"{path.parent.name}/{path.stem}" for path in PLACES)


def cells_of(lesson):
    notebook = json.loads((ROOT / f"nbs/lib/{lesson}.ipynb").read_text(encoding="utf-8"))
    return {cell["id"]: cell for cell in notebook["cells"]}


@pytest.mark.parametrize("lesson", LESSONS)
def test_each_point_has_its_cell_or_its_reason(lesson):
    earned, lacking = POINTS["lessons"][lesson], POINTS["lacks"].get(lesson, {})
    assert sorted([*earned, *lacking]) == sorted(KINDS)
    cells = cells_of(lesson)
    for point, cell in earned.items():
        text, kind = "".join(cells[cell]["source"]), KINDS[point]
        if kind is None:
            assert any("image/png" in one.get("data", {}) for one in cells[cell]["outputs"]), point
        else:
            assert re.search(kind, text, re.M), (point, text[:200])


def test_at_least_95_points_of_a_hundred_are_earned():
    earned = sum(map(len, POINTS["lessons"].values()))
    assert earned >= 0.95 * len(KINDS) * len(LESSONS)


def test_no_lesson_is_listed_that_is_not_there():
    assert sorted(POINTS["lessons"]) == LESSONS
    assert set(POINTS["lacks"]) <= set(LESSONS)


@pytest.mark.parametrize("lesson", POINTS["lacks"])
def test_what_a_lesson_is_said_to_lack_is_not_there(lesson):
    text = "\n".join("".join(cell["source"]) for cell in cells_of(lesson).values())
    for point in POINTS["lacks"][lesson]:
        if point == "evidence":
            assert not re.search(KINDS[point], text, re.M)
