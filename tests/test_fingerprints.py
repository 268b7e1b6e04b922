"""Fingerprints: what makes a stage another one. tests/test_runs.py goes through a whole config."""

import pytest
from prefkit.runs.config import load_config, write_pipeline
from prefkit.core import DataError, write_text
from prefkit.runs.fingerprints import (
    NO_INFLUENCE,
    bare_code,
    code_fingerprint,
    difference,
    fingerprints,
    imported,
    must_be_here,
    named_paths,
    reached_modules,
)

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


@pytest.mark.parametrize(
    "source, module, package, found",
    [
        ("from .core import x", "prefkit.runs.runner", False, {"prefkit.core", "prefkit.core.x"}),
        ("from ..core import x", "prefkit.losses", True, {"prefkit.core", "prefkit.core.x"}),
        ("from ..core import x", "prefkit.losses.sft", False, {"prefkit.core", "prefkit.core.x"}),
        ("from . import core", "prefkit.runs.runner", False, {"prefkit", "prefkit.core"}),
        ("import prefkit.core as c", "", False, {"prefkit.core"}),
        ("import torch\nfrom json import loads", "", False, set()),
        ("def f():\n    from prefkit import core", "", False, {"prefkit", "prefkit.core"}),
        ("%magic\nfrom prefkit.core import x", "", False, {"prefkit.core", "prefkit.core.x"}),
    ],
)
def test_imports_are_followed_by_their_full_names(source, module, package, found):
    assert imported(source, module, package) == found


def test_modules_are_reached_through_other_modules_and_the_runner_is_none_of_them():
    source = "from prefkit.losses.dpo import dpo_loss\nfrom prefkit.runs.runner import finish"
    reached = reached_modules([source])
    assert {"prefkit", "prefkit.losses", "prefkit.losses.dpo"} <= reached.keys()
    assert "prefkit.model.logps" in reached  # by way of the loss
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


@pytest.mark.parametrize(
    "text, local",
    [
        ("prefs.jsonl", True),
        ("data/tiny", True),
        ("./mine", True),
        ("~/mine", True),
        ("some/deep/folder", True),
        ("Qwen/Qwen2.5-0.5B", False),
        ("tiny-world", False),
    ],
)
def test_a_name_with_one_slash_may_be_on_the_hub_and_others_may_not(text, local):
    assert bool(must_be_here(text)) == local


def test_only_parameters_that_are_read_name_files():
    nothing = {"model": "Qwen/Qwen2.5-0.5B", "note": "a/b/c", "dataset": "", "judges": ["gold"]}
    assert named_paths(nothing) == {}
    models = {"models": {"base": "settings.ini", "sft": "stage:sft"}}
    assert list(named_paths(models)) == ["models: settings.ini"]
    assert list(named_paths({"eval_dataset": "data/tiny"})) == ["eval_dataset: data/tiny"]
    assert named_paths({"model": "https://example.org/a/b/c.json"}) == {}


def test_a_file_that_can_only_be_here_and_is_not_is_said_at_once():
    with pytest.raises(DataError, match="`dataset`: data/tiny/prefs.jsonl does not exist"):
        named_paths({"dataset": "data/tiny/prefs.jsonl"})


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
