"""Fingerprints: what makes a stage another one. tests/test_runs.py goes through a whole config."""

import pytest
from prefkit.core import NO_INFLUENCE, bare_code, imported, reached_modules, write_text
from prefkit.runs.config import load_config, write_pipeline
from prefkit.runs.fingerprints import code_fingerprint, difference, fingerprints

from helpers.toys import PARAMETERS, write_toy

# ---- code without its comments


def test_comments_docstrings_and_layout_are_no_code():
    one = 'def double(x):\n    "Twice as much."\n    return 2*x # nothing else'
    assert bare_code(one) == bare_code("def double(x): return (2 * x)")
    assert bare_code(one) != bare_code("def double(x): return 3 * x")


def test_a_text_that_is_a_value_is_code():
    assert bare_code('x = "one"') != bare_code('x = "two"')
    assert bare_code('def f():\n    "Only said."') == bare_code("def f(): pass")


def test_a_cell_with_a_magic_is_compared_letter_for_letter():
    assert bare_code("%matplotlib inline\nx = 1 # one") == "%matplotlib inline\nx = 1 # one"


# ---- which modules does a notebook reach?


CORE = {"prefkit.core", "prefkit.core.x", "prefkit.core.x.*"}
WHOLE = {"prefkit", "prefkit.core", "prefkit.core.*"}


@pytest.mark.parametrize(
    "source, module, package, found",
    [
        ("from ..core import x", "prefkit.runs.runner", False, CORE),
        ("from ..core import x", "prefkit.losses", True, CORE),
        ("from ..core import x", "prefkit.losses.sft", False, CORE),
        ("from .. import core", "prefkit.runs.runner", False, WHOLE),
        ("import prefkit.core as c", "", False, {"prefkit.core", "prefkit.core.*"}),
        ("import torch\nfrom json import loads", "", False, set()),
        ("def f():\n    from prefkit import core", "", False, WHOLE),
        ("%magic\nfrom prefkit.core import x", "", False, CORE),
    ],
)
def test_imports_are_followed_by_their_full_names(source, module, package, found):
    assert imported(source, module, package) == found


def test_a_face_leads_to_what_is_taken_from_it_and_no_further():
    reached = reached_modules(["from prefkit.losses import dpo_loss"])
    assert "prefkit.losses.dpo" in reached and "prefkit.losses.kto" not in reached
    assert "prefkit.losses.kto" in reached_modules(["import prefkit.losses"])


def test_modules_are_reached_through_other_modules_and_the_runner_is_none_of_them():
    source = "from prefkit.losses.dpo import dpo_loss\nfrom prefkit.runs.runner import finish"
    reached = reached_modules([source])
    assert {"prefkit", "prefkit.losses", "prefkit.losses.dpo"} <= reached.keys()
    assert "prefkit.losses.checks" in reached  # by way of the loss
    assert not NO_INFLUENCE & reached.keys()
    assert all(file.is_file() for file in reached.values())


def test_a_default_is_no_code_and_neither_is_a_check_or_a_drawing(tmp_path):
    def code(name, parameters, *cells, check=""):
        return code_fingerprint(write_pipeline(tmp_path / name, parameters, *cells, check=check))

    one = code("a.ipynb", "steps: int = 1", "steps")
    assert code("b.ipynb", "steps: int = 2", "steps") == one
    assert code("c.ipynb", "steps: int = 1", "steps # said", check="assert steps") == one
    assert code("d.ipynb", "steps: int = 1", "steps + 1") != one
    assert code("e.ipynb", "steps: int = 1", "import prefkit.core", "steps") != one


# ---- files that parameters name


# ---- all four together


@pytest.fixture
def changed(tmp_path):
    "A function that says which parts of each stage have changed since the beginning."
    rows = write_text(tmp_path / "rows.jsonl", "{}\n")
    config, settings = write_toy(tmp_path), [f"first.dataset={rows}"]
    before = fingerprints(load_config(config, settings))

    def parts():
        after = fingerprints(load_config(config, settings))
        return {name: difference(before[name], after[name]) for name in after}

    return parts


def test_each_change_is_named_by_its_part_and_goes_downstream(tmp_path, changed):
    assert changed() == {"first": "", "second": ""}
    write_text(tmp_path / "rows.jsonl", "{}\n{}\n")
    row = {"first": "inputs", "second": "upstream"}
    assert changed() == row
    write_pipeline(tmp_path / "train.ipynb", PARAMETERS, "import prefkit.core # as before")
    assert changed() == row
    write_pipeline(tmp_path / "train.ipynb", PARAMETERS, "import prefkit.core, time")
    assert changed() == {"first": "code and inputs", "second": "code and upstream"}


def test_a_default_counts_where_no_config_overrides_it(tmp_path, changed):
    "`first` sets its number of steps, `second` takes the notebook's."
    other = PARAMETERS.replace("steps: int = 40", "steps: int = 41")
    write_pipeline(tmp_path / "train.ipynb", other, "import prefkit.core")
    assert changed() == {"first": "", "second": "parameters"}


def test_a_fingerprint_is_one_name_for_its_parts(tmp_path):
    prints = fingerprints(load_config(write_toy(tmp_path)))
    assert set(prints["second"]) == {"stage", "parameters", "code", "inputs", "upstream"}
    assert prints["second"]["upstream"] == {"first": prints["first"]["stage"]}
    assert prints == fingerprints(load_config(tmp_path / "toy.yaml"))
