"""Configs: types are read from a notebook's cell, and everything is held against them.

tests/test_runs.py has the mistakes that people make in a config, one by one.
"""

import nbformat
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from prefkit.runs.config import (
    Stage,
    apply_setting,
    check_parameters,
    code_cells,
    comments,
    find_pipeline,
    fits,
    upstream_first,
    load_config,
    number_hint,
    read_parameters,
    read_yaml,
    texts,
    write_pipeline,
)
from prefkit.core import ConfigError, write_text

from helpers.toys import PARAMETERS, write_toy

# ---- why the checking is ours to do


def test_papermill_injects_a_name_that_nobody_knows(tmp_path):
    "It logs a line and goes on; the notebook then runs with its default."
    path = write_pipeline(tmp_path / "naive.ipynb", "learning_rate = 1e-4", "learning_rate")
    book = load_notebook_node(str(path))
    made = parameterize_notebook(book, {"learningrate": 0.5})
    sources = [cell.source for cell in made.cells]
    assert "learningrate = 0.5" in sources[1] and sources[0] == "learning_rate = 1e-4"


def test_yaml_reads_a_number_without_a_dot_as_text():
    assert yaml.safe_load("{a: 1e-5, b: 1.0e-5}") == {"a": "1e-5", "b": 1e-5}


# ---- reading a notebook's parameters


def test_a_comment_is_what_stands_behind_the_code_and_not_in_a_text():
    assert comments('x = "# no" # it\'s one') == {1: "it's one"}


def test_parameters_are_read_with_type_default_and_comment(tmp_path):
    path = write_pipeline(tmp_path / "train.ipynb", PARAMETERS)
    known = read_parameters(path)
    assert list(known) == [line.split(":")[0] for line in PARAMETERS.splitlines()]
    rate = known["learning_rate"]
    assert (rate.type, rate.default, rate.comment) == ("float", 0.1, "step size")
    assert known["extra"].default == {}


def test_a_parameter_without_annotation_has_the_type_of_its_value(tmp_path):
    known = read_parameters(write_pipeline(tmp_path / "a.ipynb", "steps = 3\nrate = -0.5"))
    assert known["steps"].type == "int"
    assert (known["rate"].type, known["rate"].default) == ("float", -0.5)


def test_parameters_are_read_without_being_run(tmp_path):
    path = write_pipeline(tmp_path / "a.ipynb", "steps: int = 3", "raise SystemExit")
    assert read_parameters(path)["steps"].default == 3


def test_cells_are_told_apart_by_their_tags(tmp_path):
    path = write_pipeline(tmp_path / "a.ipynb", "x: int = 1", "x + 1", "x + 2", check="assert x")
    nbformat.validate(nbformat.read(path, as_version=4))
    assert code_cells(path, "parameters") == ["x: int = 1"]
    assert code_cells(path, "check") == ["assert x"]
    assert code_cells(path) == ["x + 1", "x + 2"]


def test_a_file_that_is_no_notebook_is_said(tmp_path):
    with pytest.raises(ConfigError, match="not a notebook"):
        read_parameters(write_text(tmp_path / "a.ipynb", "x: int = 1"))


# ---- does a value fit its type?


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        ("float | None", [1e-5, 1, None], ["1e-5", True, float("nan"), float("inf")]),
        ("int", [0, -3], [True, 1.0, "1", None]),
        ("bool", [True, False], [0, 1, "true"]),
        ("str", ["", "x"], [1, None, ["x"]]),
        ("list[int]", [[], [1, 2]], [[1, "2"], [True], 1, (1, 2)]),
        ("list[list[float]]", [[[0.5], []]], [[0.5], [["0.5"]]]),
        ("str | list[str]", ["x", ["x", "y"]], [["x", 1], 1]),
        ("dict[str, float]", [{}, {"beta": 0.1}], [{"beta": "0.1"}, {1: 0.1}, []]),
        ("list", [[1, "x"]], [{}]),
        ("dict", [{"x": 1}], [[1]]),
    ],
)
def test_values_fit_their_types_and_no_others(kind, good, bad):
    assert [fits(value, kind) for value in good] == [True] * len(good)
    assert [fits(value, kind) for value in bad] == [False] * len(bad)


@pytest.mark.parametrize("kind", ["Path", "tuple[int]", "list[Path]", "3"])
def test_a_type_that_no_parameter_can_have_is_said(kind):
    with pytest.raises(ConfigError, match="is no type that a parameter can have"):
        fits([1], kind)


@pytest.mark.parametrize("text", ["1e-5", "2.5e3", "1E6", "-3e4", "+1e5", "5.e3", ".5e3", "7e+2"])
def test_what_the_hint_advises_is_read_as_that_number(text):
    assert isinstance(yaml.safe_load(text), str)
    advised = number_hint(text).split()[-1].rstrip(".")
    assert yaml.safe_load(advised) == float(text)


@pytest.mark.parametrize("value", ["tiny-world", "1e-5x", "e5", "12", "", None, 1e-5])
def test_what_does_not_look_like_a_number_has_no_hint(value):
    assert number_hint(value) == ""


def test_a_number_as_text_is_found_however_deep_it_stands(tmp_path):
    known = read_parameters(write_pipeline(tmp_path / "train.ipynb", PARAMETERS))
    assert list(texts({"a": ["x", {"b": "y"}], "c": 1})) == ["x", "y"]
    with pytest.raises(ConfigError, match=r"`extra` holds a number as text.*write 1\.0e-5"):
        check_parameters({"extra": {"betas": [0.1, "1e-5"]}}, known, "")
    values = check_parameters({"extra": {"name": "tiny"}}, known, "")
    assert values["extra"] == {"name": "tiny"}


# ---- reading the file


@pytest.mark.parametrize(
    "text, match",
    [
        ("seed: 0\nseed: 1", "my.yaml, line 1: `seed` stands twice"),
        ("stages:\n  sft:\n    x: 1\n    x: 2", "my.yaml, line 3: `x` stands twice"),
        ("seed: 0\nstages: [1, 2", r"my.yaml, line 2: not valid YAML"),
    ],
    ids=["at the top", "deep inside", "broken"],
)
def test_a_mistake_in_yaml_is_named_with_its_line(text, match):
    with pytest.raises(ConfigError, match=match):
        read_yaml(text, "my.yaml")


def test_one_setting_changes_one_value_and_makes_the_way_to_it():
    raw = {"seed": 0, "stages": {"dpo": {"pipeline": "preference"}}}
    for setting in ("seed=1", "dpo.hyperparameters.beta=0.5", "dpo.steps=3"):
        apply_setting(raw, setting)
    parameters = {"hyperparameters": {"beta": 0.5}, "steps": 3}
    stages = {"dpo": {"pipeline": "preference", "parameters": parameters}}
    assert raw == {"seed": 1, "stages": stages}


@pytest.mark.parametrize(
    "setting, match",
    [("seed", "write KEY=VALUE"), ("dpo.steps=[1", "not valid YAML"), ("dop.steps=1", "dpo.PARAM")],
)
def test_a_setting_that_cannot_be_put_in_is_refused(setting, match):
    with pytest.raises(ConfigError, match=match):
        apply_setting({"stages": {"dpo": {"pipeline": "preference"}}}, setting)


# ---- the graph of stages


def graph(tmp_path, **needs):
    return {name: Stage(name, tmp_path, {}, upstream) for name, upstream in needs.items()}


def test_stages_come_after_what_they_need_and_else_as_written(tmp_path):
    stages = graph(tmp_path, evaluate=("sft", "dpo"), other=(), dpo=("sft",), sft=())
    assert [stage.name for stage in upstream_first(stages)] == ["sft", "dpo", "evaluate", "other"]


def test_a_circle_is_shown_as_one(tmp_path):
    stages = graph(tmp_path, evaluate=("dpo",), dpo=("sft",), sft=("dpo",))
    with pytest.raises(ConfigError, match=r"circle: dpo -> sft -> dpo\.$"):
        upstream_first(stages)


def test_a_config_is_sorted_filled_in_and_changed_by_settings(tmp_path):
    stages = load_config(write_toy(tmp_path), ["second.steps=30"]).stages
    assert [(stage.name, stage.needs) for stage in stages] == [
        ("first", ()),
        ("second", ("first",)),
    ]
    assert [stage.parameters["steps"] for stage in stages] == [20, 30]
    assert stages[0].parameters["learning_rate"] == 0.1  # the notebook's default
    assert stages[1].parameters["start"] == "stage:first"  # as written


def test_a_pipeline_is_found_by_name_beside_the_config_or_from_the_root(root, tmp_path):
    home = root / "nbs" / "pipelines"
    assert find_pipeline("sft", tmp_path) == home / "sft.ipynb"
    assert find_pipeline("nbs/pipelines/sft.ipynb", tmp_path) == home / "sft.ipynb"
    mine = write_pipeline(tmp_path / "sft.ipynb", "x: int = 1")
    assert find_pipeline("sft.ipynb", tmp_path) == mine.resolve()
    with pytest.raises(ConfigError, match="Did you mean `sft`?"):
        find_pipeline("sftt", tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {there}']",
        "!!python/object/new:os.system ['touch {there}']",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_config_runs_no_code(value, tmp_path):
    there = tmp_path / "there"
    text = f"experiment: x\nstages:\n  a: {{pipeline: sft}}\nreport: {value.format(there=there)}\n"
    with pytest.raises(ConfigError, match="YAML"):
        load_config(write_text(tmp_path / "x.yaml", text))
    assert not there.exists()
