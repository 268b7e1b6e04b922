"""Where a setting may stand in a config and on papermill's command line, and what is refused."""

import json

import pytest

from prefkit.core import ConfigError, project_root, write_text
from prefkit.runs.config import (
    apply_setting,
    given_parameters,
    load_config,
    put,
    read_parameters,
    read_pipeline,
    read_yaml,
    specified,
    write_pipeline,
)
from prefkit.train.settings import PIPELINES

PIPELINE_FOLDER = project_root() / "nbs" / "pipelines"


def parameters_of(tmp_path, pipeline, given, *settings, seed=0):
    stages = {"only": {"pipeline": pipeline, "parameters": given}}
    text = json.dumps({"experiment": "x", "seed": seed, "stages": stages})
    (stage,) = load_config(write_text(tmp_path / "x.yaml", text), settings).stages
    return stage.parameters


def refused(*arguments, **options):
    with pytest.raises(ConfigError) as error:
        parameters_of(*arguments, **options)
    return error.value


# -- Where a setting may stand


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_setting_stands_flat_or_in_its_dict_and_the_others_keep_their_defaults(
    tmp_path, pipeline
):
    default = parameters_of(tmp_path, pipeline, {})
    flat = parameters_of(tmp_path, pipeline, {"lora_rank": 4, "learning_rate": 1.0e-3})
    nested = parameters_of(
        tmp_path, pipeline, {"settings": {"lora_rank": 4, "learning_rate": 1e-3}}
    )
    assert flat == nested == {**default, "lora_rank": 4, "learning_rate": 1e-3}
    assert not {"settings", "data"} & default.keys()


DEFAULTS = {  # where they are not those of the specification
    "pretrain": {
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "logging_steps": 5,
        "save_steps": 200,
    },
    "sft": {"learning_rate": 5e-4, "batch_size": 16, "logging_steps": 1},
    "preference": {"batch_size": 16, "logging_steps": 1},
    "reward_model": {"batch_size": 16, "logging_steps": 1},
    "rollout": {
        "schedule": "constant",
        "batch_size": 8,
        "max_new_tokens": 48,
        "logging_steps": 1,
    },
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_defaults_of_a_pipeline(tmp_path, pipeline):
    values = parameters_of(tmp_path, pipeline, {})
    own = {}
    for specification in PIPELINES[pipeline].values():
        for name, parameter in specified(specification).items():
            if values[name] != parameter.default:
                own[name] = values[name]
    assert own == DEFAULTS[pipeline]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_cell_of_parameters_and_the_specification_agree(pipeline):
    cell = read_parameters(PIPELINE_FOLDER / f"{pipeline}.ipynb")
    assert PIPELINES[pipeline].keys() == {"settings", "data"} & cell.keys()
    for place, specification in PIPELINES[pipeline].items():
        known = specified(specification)
        assert cell[place].type == "dict" and cell[place].default.keys() <= known.keys()
        assert not cell[place].default.keys() & cell.keys()
        for name in cell.keys() & known.keys():
            assert cell[name].type == known[name].type, name


def test_values_are_numbers_of_the_right_kind_and_the_experiments_seed_is_the_default(tmp_path):
    given = {"settings": {"epochs": 2, "seed": 7}, "data": {"validation_split": ""}}
    values = parameters_of(tmp_path, "preference", given, seed=3)
    assert type(values["epochs"]) is float and values["seed"] == 7
    assert values["validation_split"] == ""
    assert parameters_of(tmp_path, "preference", {}, seed=3)["seed"] == 3


@pytest.mark.parametrize(
    "given, field, reason",
    [
        ({"learningrate": 1.0}, "learningrate", "unknown"),
        ({"warmup": 3}, "warmup", "unknown"),
        ({"settings": {"warmup": 3}}, "settings.warmup", "unknown"),
        ({"data": {"learning_rate": 1.0}}, "data.learning_rate", "unknown"),
        ({"epochs": 1.0, "settings": {"epochs": 2.0}}, "epochs", "given twice"),
        ({"data_seed": 1, "data": {"data_seed": 1}}, "data_seed", "given twice"),
        ({"settings": 3}, "settings", "wrong type"),
        ({"settings": {"lora": 1}}, "lora", "wrong type"),
        ({"learning_rate": "1e-5"}, "learning_rate", "wrong type"),
        ({"settings": {"learning_rate": "1e-5"}}, "learning_rate", "wrong type"),
        ({"hyperparameters": {"beta": "1e-1"}}, "hyperparameters", "number as text"),
        ({"sample_prompts": [3]}, "sample_prompts", "wrong type"),
        ({"output_dir": "x"}, "output_dir", "not yours to give"),
        ({"samples": 4}, "samples", "unknown"),  # of rollout
    ],
)
def test_what_a_stage_cannot_be_given(tmp_path, given, field, reason):
    error = refused(tmp_path, "preference", given)
    assert (error.field, error.reason) == (field, reason)


@pytest.mark.parametrize(
    "given, says",
    [
        (
            {"settings": {"warmup_step": 3}},
            "stage only: there is no parameter `settings.warmup_step`. Did you mean "
            "`warmup_steps`? Known: learning_rate,",
        ),
        (
            {"warmup_step": 3},
            "stage only: there is no parameter `warmup_step`. Did you mean `warmup_steps`? Known: "
            "method,",
        ),
        (
            {"setting": {}},
            "stage only: there is no parameter `setting`. Did you mean `settings`? Known: method,",
        ),
        (
            {"epochs": 1.0, "settings": {"epochs": 2.0}},
            "stage only: `epochs` is given twice, as `epochs` and as `settings.epochs`. Keep one.",
        ),
        (
            {"settings": 3},
            "stage only: `settings` must be settings with values, and 3 is int.",
        ),
        (
            {"settings": {"learning_rate": "1e-5"}},
            'stage only: `learning_rate` must be float, and "1e-5" is str. YAML reads 1e-5 as '
            "text: write 1.0e-5.",
        ),
    ],
)
def test_each_message_names_the_places_and_the_way_out(tmp_path, given, says):
    assert str(refused(tmp_path, "preference", given)).startswith(says)


# -- --set


@pytest.mark.parametrize(
    "given", [{}, {"warmup_steps": 3}, {"settings": {"warmup_steps": 3, "epochs": 2.0}}]
)
def test_set_finds_a_setting_where_the_config_has_it(tmp_path, given):
    before = parameters_of(tmp_path, "preference", given)
    after = parameters_of(tmp_path, "preference", given, "only.warmup_steps=9")
    assert after == {**before, "warmup_steps": 9}


def test_set_reaches_into_dicts(tmp_path):
    given = {"hyperparameters": {"beta": 0.3, "label_smoothing": 0.1}}
    values = parameters_of(
        tmp_path,
        "preference",
        given,
        "only.hyperparameters.beta=0.9",
        "only.settings.lora_rank=2",
    )
    assert values["hyperparameters"] == {"beta": 0.9, "label_smoothing": 0.1}
    assert values["lora_rank"] == 2


ANCHORS = """experiment: x
stages:
  one: &one {pipeline: preference, parameters: &given {hyperparameters: &beta {beta: 0.3}}}
  merged: {pipeline: preference, parameters: {<<: *given, epochs: 2.0}}
  shared: {pipeline: preference, parameters: {hyperparameters: *beta}}
  same: *one
"""


@pytest.mark.parametrize("name", ["one", "merged", "shared", "same"])
def test_set_changes_one_stage_even_where_yaml_has_one_value_for_several(tmp_path, name):
    config = write_text(tmp_path / "x.yaml", ANCHORS)
    for setting in ("hyperparameters.beta=0.9", "settings.lora_rank=2", "limit=5"):
        before = {stage.name: stage.parameters for stage in load_config(config).stages}
        stages = load_config(config, [f"{name}.{setting}"]).stages
        changed = {stage.name for stage in stages if stage.parameters != before[stage.name]}
        assert changed == {name}, setting


@pytest.mark.parametrize("name", ["tiny/token_limits", "tiny/online", "lessons/degrade"])
def test_set_changes_one_stage_of_the_configs_that_have_anchors(name):
    path = project_root() / "data" / "configs" / f"{name}.yaml"
    before = {stage.name: stage.parameters for stage in load_config(path).stages}
    for stage, parameters in before.items():
        if not parameters.get("hyperparameters"):
            continue
        key = next(iter(parameters["hyperparameters"]))
        after = load_config(path, [f"{stage}.hyperparameters.{key}=0.123"]).stages
        assert {one.name for one in after if one.parameters != before[one.name]} == {stage}


def test_put_leaves_what_it_was_given():
    inner = {"beta": 0.3}
    values = {"one": inner, "other": inner}
    assert put(values, ("one", "beta"), 1) == {"one": {"beta": 1}, "other": {"beta": 0.3}}
    assert put(values, ("one", "beta", "x"), 1)["one"] == {"beta": {"x": 1}}
    assert values == {"one": {"beta": 0.3}, "other": {"beta": 0.3}}


@pytest.mark.parametrize(
    "setting, field, reason",
    [
        ("only", None, "no value"),
        ("nowhere.epochs=2", "nowhere.epochs", "unknown"),
        ("epochs=2", "epochs", "unknown"),
        ("none.epochs=2", "none", "missing"),
    ],
)
def test_a_set_that_leads_nowhere(setting, field, reason):
    config = read_yaml("{stages: {only: {pipeline: sft}, none: sft}}", "here")
    with pytest.raises(ConfigError) as error:
        apply_setting(config, setting)
    assert (error.value.field, error.value.reason) == (field, reason)


# -- A notebook that papermill runs


def started(pipeline, injected="", **changes):
    "The globals of a notebook whose parameters have run; `injected` is papermill's cell."
    cell = read_parameters(PIPELINE_FOLDER / f"{pipeline}.ipynb")
    names = {name: parameter.default for name, parameter in cell.items()} | changes
    sources = ["", "x = 1\n"]
    if injected:
        sources.append("# Parameters\n" + injected)
        exec(injected, names)
        names.pop("__builtins__")
    return {
        **names,
        "In": sources,
        "Out": {},
        "get_ipython": len,
        "_": 3,
        "later": [1],
        "json": json,
    }


def test_a_notebook_as_it_stands_has_its_defaults():
    given = given_parameters("preference", started("preference"))
    pipeline = read_pipeline(PIPELINE_FOLDER / "preference.ipynb")
    assert given.values == {name: one.default for name, one in pipeline.parameters.items()}
    assert given.settings.batch_size == 16 and given.data.validation_limit == 32
    assert "**" not in repr(given) and repr(given) == given._repr_markdown_()


def test_what_papermill_sets_is_found_flat_and_in_the_dicts():
    injected = 'learning_rate = 8e-06\nwarmup_steps = 2\nsettings = {"lora_rank": 4}\ndata_seed = 1'
    given = given_parameters("preference", started("preference", injected))
    assert (given.settings.learning_rate, given.settings.warmup_steps) == (8e-6, 2)
    assert (given.settings.lora_rank, given.settings.logging_steps) == (4, 1)
    assert given.data.data_seed == 1 and given.values["lora_rank"] == 4
    assert "| **lora_rank** | **`4`** | `16` | rank of the adapters |" in repr(given)
    assert repr(given).count("\n| **") == 4


def test_what_a_person_changes_in_the_cell_counts():
    changed = started("preference", learning_rate=1e-3, settings={"warmup_steps": 2})
    changed["lora_rank"] = 4  # a line that was added
    given = given_parameters("preference", changed)
    settings = given.settings
    assert (settings.learning_rate, settings.warmup_steps, settings.lora_rank) == (1e-3, 2, 4)


@pytest.mark.parametrize(
    "injected, field, reason",
    [
        ('metod = "orpo"', "metod", "unknown"),
        ('settings = {"metod": "orpo"}', "settings.metod", "unknown"),
        ('learning_rate = "1e-5"', "learning_rate", "wrong type"),
        ("learning_rate = -1.0", "learning_rate", "out of range"),
        ("epochs = 2\nsettings = {'epochs': 3}", "epochs", "given twice"),
        ("epochs = 1.0\nsettings = {'epochs': 3}", "epochs", "given twice"),  # 1.0: the default
        ("later = 1", "later", "unknown"),
    ],
)
def test_what_papermill_cannot_set(injected, field, reason):
    with pytest.raises(ConfigError) as error:
        given_parameters("preference", started("preference", injected))
    assert (error.value.field, error.value.reason) == (field, reason)


def test_without_ipython_every_plain_value_is_a_parameter(tmp_path):
    values = parameters_of(tmp_path, "rollout", {"samples": 2})
    names = {"__name__": "check", **values, "json": json, "started": started}
    assert given_parameters("rollout", names).values == values
    with pytest.raises(ConfigError, match="there is no parameter `other`"):
        given_parameters("rollout", {**names, "other": 1})


# -- The cell of parameters


def test_words_stand_behind_a_parameter_or_above_it(tmp_path):
    cell = """one: int = 1  # the first
# long words, which go on
# in a second line
two: dict = {
    "a": 1,
}
three: str = "#"

# alone, of nothing

four: bool = True  # the last"""
    known = read_parameters(write_pipeline(tmp_path / "x.ipynb", cell))
    assert [one.comment for one in known.values()] == [
        "the first",
        "long words, which go on in a second line",
        "",
        "the last",
    ]
    assert known["two"].default == {"a": 1} and known["four"].type == "bool"


def test_a_notebook_of_ones_own_may_have_parameters_of_these_names(tmp_path):
    write_pipeline(tmp_path / "own.ipynb", 'data: str = "here"\noutput_dir: str = ""')
    values = parameters_of(tmp_path, "own.ipynb", {"data": "there"})
    assert values == {"data": "there", "output_dir": ""}
    write_pipeline(tmp_path / "sft.ipynb", 'data: str = "here"\noutput_dir: str = ""')
    assert parameters_of(tmp_path, "./sft.ipynb", {"data": "there"}) == values
