"""Invariants of the notebooks: every rule holds in every notebook, and every rule catches a
notebook made to break it.
"""

import ast
import json
import re
from pathlib import Path

import pytest
from helpers.notebooks import RULES, clean_settings, parameters_tag, tagged
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    path.relative_to(ROOT / "nbs").as_posix()
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if not any(part[0] in "._" for part in path.relative_to(ROOT).parts)
)


def read(path):
    return json.loads((ROOT / "nbs" / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_keeps_the_rule(path, rule):
    wrong = rule(path, read(path))
    assert not wrong, f"nbs/{path} ({rule.__doc__}):\n" + "\n".join(wrong)


def test_there_are_lessons_and_a_home_page():
    assert "index.ipynb" in NOTEBOOKS and sum(path.startswith("lib/") for path in NOTEBOOKS) >= 5


# Bad notebooks, one for each thing that a rule must catch.
def code(text, *outputs, tags=()):
    return {
        "cell_type": "code",
        "id": "",
        "metadata": {"tags": list(tags)} if tags else {},
        "execution_count": None,
        "outputs": list(outputs),
        "source": text,
    }


def prose(text):
    return {"cell_type": "markdown", "id": "", "metadata": {}, "source": text}


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def notebook(*cells, title="# A title\n\n> A sentence.", **metadata):
    cells = [dict(cell, id=f"id{number}") for number, cell in enumerate([prose(title), *cells])]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, **metadata},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def twice():
    made = notebook(code("1"), code("2"))
    made["cells"][2]["id"] = made["cells"][1]["id"]
    return made


PARAMETERS = code("seed: int = 0 # the seed", tags=["parameters"])
BAD = {
    ("known_directives", "a misspelt export"): notebook(code("#| exprot\nx = 1")),
    ("known_directives", "eval without its colon"): notebook(code("#| eval false\nx = 1")),
    ("known_directives", "eval with a word that is no value"): notebook(
        code("#| eval: flase\nx = 1")
    ),
    ("known_directives", "a flag that settings.ini does not know"): notebook(
        code("#| slwo\nx = 1")
    ),
    ("known_directives", "a misspelt second directive"): notebook(
        code("#| export\n#| hdie\nx = 1")
    ),
    ("known_directives", "a misspelt option of Quarto"): notebook(code("#| ehco: false\nx = 1")),
    ("known_directives", "a directive below code"): notebook(code("x = 1\n#| export\ny = 1")),
    ("known_directives", "no bar"): notebook(code("# export\nx = 1")),
    ("known_directives", "an exclamation mark for the bar"): notebook(code("#! export\nx = 1")),
    ("plain_notebook", "another kernel"): notebook(
        code("x = 1"), kernelspec={"name": "my-env", "language": "python"}
    ),
    ("plain_notebook", "no kernel"): notebook(code("x = 1"), kernelspec={}),
    ("plain_notebook", "one id twice"): twice(),
    ("has_title", "no sentence"): notebook(title="# A title"),
    ("has_title", "a pipeline with a title alone", "pipelines/x.ipynb"): notebook(
        PARAMETERS, title="# A title"
    ),
    ("has_title", "no title"): notebook(title="Some prose."),
    ("parameters_tag", "a pipeline without the tag", "pipelines/x.ipynb"): notebook(
        code("seed: int = 0")
    ),
    ("parameters_tag", "a pipeline with two", "pipelines/x.ipynb"): notebook(
        PARAMETERS, PARAMETERS
    ),
    ("parameters_tag", "a lesson with one"): notebook(PARAMETERS),
    ("no_errors", "a stored traceback"): notebook(
        code(
            "1/0",
            {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "", "traceback": []},
        )
    ),
    ("templates_are_empty", "a pipeline with an output", "pipelines/x.ipynb"): notebook(
        PARAMETERS, code("print(1)", stream("1"))
    ),
    ("templates_are_empty", "an executed run"): notebook(code("x = 1"), papermill={"duration": 1}),
    ("imports_apart", "an exported cell that imports and defines"): notebook(
        code("#| export\nimport os\ndef f(): pass")
    ),
    ("imports_apart", "a cell that imports and computes"): notebook(
        code("import os\nx = os.getpid()")
    ),
    ("no_star_import", "a star in exported code"): notebook(code("#| export\nfrom torch import *")),
    ("small_cells", "a cell of 31 lines"): notebook(
        code("\n".join(f"x{n} = {n}" for n in range(31)))
    ),
    ("small_cells", "long cells throughout"): notebook(
        *[code("\n".join(f"x{n} = {n}" for n in range(9)))] * 3
    ),
    ("small_cells", "too many cells"): notebook(*[code("1")] * 72),
    ("no_progress_bars", "as a widget leaves it"): notebook(
        code(
            "x",
            {
                "output_type": "display_data",
                "metadata": {},
                "data": {"text/plain": ["generating:   0%|          | 0/40 [00:00<?, ?it/s]"]},
            },
        )
    ),
    ("small_outputs", "a large picture"): notebook(
        code(
            "x",
            {"output_type": "display_data", "metadata": {}, "data": {"image/png": "A" * 100_001}},
        )
    ),
    ("no_machine_paths", "in the source"): notebook(code("open('/home/somebody/data.json')")),
    ("no_machine_paths", "in an output"): notebook(
        code("print(path)", stream("/tmp/tmpabc123/run.json"))
    ),
    ("no_machine_paths", "in prose"): notebook(prose("See C:\\Users\\me")),
}


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[0]}: {case[1]}")
def test_rule_catches(case):
    rule = {rule.__name__: rule for rule in RULES}[case[0]]
    assert rule(case[2] if len(case) > 2 else "lib/99_x.ipynb", BAD[case])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_lets_a_good_notebook_pass(rule):
    good = notebook(
        code("#| default_exp x"),
        code("#| export\nimport os"),
        code("#|export\ndef f():\n    import json\n    return json"),
        code("#| eval: false\nimport os\n!ls"),
        code(
            "#| echo: false\n#| slow\nf()",
            stream("https://example.org/home/x and data/runs/x, 1/work/s"),
        ),
    )
    assert rule("lib/99_x.ipynb", good) == []
    assert rule("pipelines/x.ipynb", notebook(PARAMETERS, code("x = seed"))) == []


def test_every_rule_has_a_bad_notebook():
    assert {case[0] for case in BAD} == {rule.__name__ for rule in RULES}


def test_without_its_setting_nbdev_clean_strips_the_parameters_tag():
    "Why settings.ini has allowed_cell_metadata_keys = tags: the rule would notice if it went."
    text = (
        (ROOT / "settings.ini")
        .read_text(encoding="utf-8")
        .replace("allowed_cell_metadata_keys = tags", "allowed_cell_metadata_keys =")
    )
    stripped = notebook(PARAMETERS)
    clean_nb(stripped, **clean_settings(text))
    assert tagged(stripped) == [] and parameters_tag("pipelines/x.ipynb", stripped)


def test_a_module_says_that_it_is_generated_exactly_if_a_notebook_exports_to_it():
    exports = {
        re.search(r"#\|\s*default_exp\s+(\S+)", text)
        for path in NOTEBOOKS
        for cell in read(path)["cells"]
        if cell["cell_type"] == "code"
        and (text := cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]))
    }
    exports = {found.group(1).replace(".", "/") + ".py" for found in exports if found}
    for file in (ROOT / "prefkit").rglob("*.py"):
        path, generated = (
            file.relative_to(ROOT / "prefkit").as_posix(),
            "AUTOGENERATED! DO NOT EDIT!" in file.read_text(encoding="utf-8")[:2000],
        )
        assert generated == (path in exports), f"prefkit/{path}: " + (
            "its notebook is gone"
            if generated
            else "a notebook exports to it, but it was written by hand"
        )


def test_exported_code_does_not_import_fastcore_or_nbdev():
    for file in (ROOT / "prefkit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {
                "fastcore",
                "nbdev",
                "execnb",
                "trl",
            }, f"{file.name}, line {node.lineno}"
