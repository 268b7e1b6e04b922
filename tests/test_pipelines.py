"""The training pipelines, through the runner: a few steps of each, killed and resumed, and faulty
input refused before training.
"""

import ast
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs import weights, without_times
from prefkit.runs.fingerprints import check_stage
from prefkit.runs.config import code_cells, load_config, read_parameters, read_pipeline
from prefkit.core import (
    ConfigError,
    DataError,
    PrefkitError,
    project_root,
    write_jsonl,
    write_text,
)
from prefkit.runs.search import load_search
from prefkit.runs.studies import load_study
from prefkit.train.settings import PIPELINES as SPECIFIED
from prefkit.runs.runner import open_run, run

ROOT = project_root()
PIPELINES = sorted((ROOT / "nbs" / "pipelines").glob("*.ipynb"))
STEPS = "limit: 96, max_steps: 8, batch_size: 8, save_steps: 2, eval_steps: 4, validation_limit: 16"
CONFIG = f"""experiment: smoke
seed: 1
stages:
  sft:
    pipeline: sft
    parameters:
      {{{STEPS}, data: {{probe_dataset: tiny-world, probe_limit: 8}},
       sample_prompts: ["What does the robin eat?"]}}
  dpo:
    pipeline: preference
    parameters: {{method: dpo, model: "stage:sft", {STEPS}}}
"""
CONTROL = """  control:
    pipeline: sft
    parameters: {model: "stage:sft", answers: chosen, max_steps: 2, lora: true}
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "Three small stages that nobody kills."
    folder = tmp_path_factory.mktemp("pipelines")
    return run(write_text(folder / "smoke.yaml", CONFIG + CONTROL), (), folder, "quiet")


def test_sft_and_dpo_leave_whole_run_folders(undisturbed):
    sft, dpo = open_run(undisturbed["sft"]), open_run(undisturbed["dpo"])
    for folder, figure in ((sft.path, "probe"), (dpo.path, "chosen_rejected")):
        for name in (
            "run.ipynb",
            "params.yaml",
            "run.json",
            "metrics.jsonl",
            "loss.png",
            f"{figure}.png",
            "checkpoint/tokenizer.json",
        ):
            assert (folder / name).exists(), name
    data = sft.info["data"]["train"]
    assert data["read"] == 96 and data["kept"] + data["dropped_rows"] == 96
    assert (
        sft.info["metrics"]["steps"] == 8
        and {"loss", "logps_chosen", "logps_rejected"} <= sft.info["metrics"]["validation"].keys()
    )
    assert sft.samples[-1]["step"] == 8 and {
        "logratio_chosen",
        "reward_margin",
        "grad_norm",
    } <= set(dpo.metrics)
    first = dpo.metrics[dpo.metrics["split"] == "validation"].iloc[0]
    assert first["step"] == 0 and abs(first["loss"] - 0.6931472) < 1e-4  # policy = reference
    assert dpo.info["model"]["hyperparameters"]["beta"] == 0.1 and dpo.info["seed"] == 1


def test_sft_on_the_chosen_answers_of_pairs_and_with_lora(undisturbed):
    control = open_run(undisturbed["control"])
    assert control.info["data"]["answers"] == "chosen" and control.info["metrics"]["steps"] == 2
    assert (control.path / "adapter").is_dir() and weights(control.path) != weights(
        undisturbed["sft"]
    )


@pytest.mark.slow
def test_a_pipeline_killed_at_three_random_points_ends_in_the_same_metrics_and_weights(
    undisturbed, tmp_path
):
    config, home = write_text(tmp_path / "smoke.yaml", CONFIG), tmp_path / "smoke"
    chance = random.Random(int(os.environ.get("PREFKIT_KILL_SEED", "0")))
    words = [
        sys.executable,
        "-m",
        "prefkit.cli",
        "run",
        str(config),
        "--output-root",
        str(tmp_path),
    ]
    for stage, lines in (("sft", 2), ("dpo", 1), ("dpo", 4)):
        metrics = home / f".{stage}.partial" / "metrics.jsonl"
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while (
            process.poll() is None
            and not (metrics.exists() and metrics.read_text().count("\n") >= lines)
            and time.monotonic() < until
        ):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
    resumed = run(config, (), tmp_path, "quiet")
    for stage in ("sft", "dpo"):
        assert without_times(resumed[stage]) == without_times(undisturbed[stage])
        assert weights(resumed[stage]) == weights(undisturbed[stage])
        assert (resumed[stage] / "samples.jsonl").exists() == (
            undisturbed[stage] / "samples.jsonl"
        ).exists()


def pair(chosen="yes, it is", rejected="no", role="user"):
    return {
        "chosen": [{"role": role, "content": "is it?"}, {"role": "assistant", "content": chosen}],
        "rejected": [
            {"role": role, "content": "is it?"},
            {"role": "assistant", "content": rejected},
        ],
    }


GOOD = [pair(f"yes, number {i}") for i in range(20)]
FAULTY = {
    "missing file": (None, {}, "does not exist"),
    "wrong column": ([{"question": "is it?", "answer": "yes"}], {}, "the columns question, answer"),
    "empty answer": ([*GOOD, pair("")], {"on_bad_rows": "error"}, "row 21 of faulty.jsonl"),
    "chosen equal to rejected": (
        [*GOOD, pair("no")],
        {"on_bad_rows": "error"},
        "row 21 of faulty.jsonl: chosen and rejected",
    ),
    "messages that are no list": (
        [*GOOD, {"chosen": 3, "rejected": 4}],
        {"on_bad_rows": "error"},
        "row 21 of faulty.jsonl",
    ),
    "a role that does not exist": (
        [*GOOD, pair(role="wizard")],
        {"on_bad_rows": "error"},
        "wizard",
    ),
    "too many bad rows": ([*GOOD, *[pair("no")] * 5], {}, "20% of the rows are bad"),
    "broken JSON": (
        "".join(json.dumps(row) + "\n" for row in GOOD) + '{"chosen": \n',
        {"on_bad_rows": "error"},
        "line 21",
    ),
    "a method that does not exist": (
        GOOD,
        {"method": "dpoo"},
        "no method 'dpoo'. Did you mean `dpo`?",
    ),
    "a hyper-parameter that does not exist": (
        GOOD,
        {"hyperparameters": {"betta": 0.1}},
        "Did you mean `beta`?",
    ),
    "a hyper-parameter that is a number": (GOOD, {"hyperparameters": {1: 2}}, "hyper-parameter 1"),
    "no model": (GOOD, {"model": ""}, "names no model"),
    "a model that is nowhere": (GOOD, {"model": "nomodel"}, "nomodel is no folder"),
    "a folder that is no model": (GOOD, {"model": "nbs"}, "nbs has no config.json"),
    "lengths that leave nothing": (GOOD, {"max_length": 0}, "max_length"),
    "a data set that is not registered": (None, {"dataset": "tiny-wrold"}, "tiny-world"),
    "a split that does not exist": (GOOD, {"validation_split": "test"}, "no 'test'"),
}


def faulty_config(folder, content, parameters):
    "A config whose second stage has these rows and parameters."
    file = folder / "faulty.jsonl"
    if isinstance(content, str):
        write_text(file, content)
    elif content is not None:
        write_jsonl(file, content)
    given = {
        "method": "dpo",
        "dataset": str(file),
        "validation_split": "",
        "limit": None,
        **parameters,
    }
    stages = {
        "sft": {"pipeline": "sft"},
        "preference": {"pipeline": "preference", "parameters": given},
    }
    # JSON is YAML
    return write_text(
        folder / "faulty.yaml", json.dumps({"experiment": "faulty", "stages": stages})
    )


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_input_is_a_clear_error_before_anything_runs(fault, tmp_path):
    content, parameters, says = FAULTY[fault]
    config = faulty_config(tmp_path, content, parameters)
    with pytest.raises((ConfigError, DataError)) as error:
        run(config, (), tmp_path / "runs", "quiet")
    assert "stage preference" in str(error.value) and says in str(error.value)
    # not even the stage before it was started
    assert not list((tmp_path / "runs").glob("faulty/.*.partial"))


@pytest.mark.parametrize(
    "parameters, field, reason",
    [
        ({"learningrate": 1e-4}, "learningrate", "unknown"),
        ({"learning_rate": "1e-5"}, "learning_rate", "wrong type"),
        ({"learning_rate": -1.0}, "learning_rate", "out of range"),
        ({"schedule": "cosin"}, "schedule", "no such choice"),
        ({"adam_beta2": 1.0}, "adam_beta2", "out of range"),
        ({"settings": {"seed": -1}}, "seed", "out of range"),
        ({"keep_best": True}, "validation_split", "missing"),
        ({"early_stopping_patience": 2}, "validation_split", "missing"),
        ({"method": "sft"}, "method", "of another pipeline"),
        ({"method": "reward_model"}, "method", "of another pipeline"),
        ({"limit": 0}, "limit", "out of range"),
        ({"on_bad_rows": "drp"}, "on_bad_rows", "no such choice"),
        ({"split": "test"}, "split", "no such split"),
        ({"validation_split": "test"}, "validation_split", "no such split"),
    ],
)
def test_a_faulty_parameter_is_refused_by_name(parameters, field, reason, tmp_path):
    config = faulty_config(tmp_path, GOOD, parameters)
    with pytest.raises(ConfigError, match="stage preference") as error:
        check_stage(load_config(config).stages[1])
    assert (error.value.field, error.value.reason) == (field, reason)


@pytest.mark.parametrize(
    "given, field",
    [
        ({"prompts": 0}, "prompts"),
        ({"batch_size": 0}, "batch_size"),
        ({"split": "tst"}, "split"),
        ({"judges": {}}, "judges"),
        ({"judges": {"second": 3}}, "judges.second"),
        ({"references": ["other"]}, "references"),
        ({"decodings": {"hot": "hottest"}}, "decodings.hot"),
        ({"start": "bse"}, "start"),
        ({"start": "base", "start_prompts": 1}, "start_prompts"),
        (
            {"models": {"a": {"model": "m", "base_url": "http://127.0.0.1:1/v1"}}, "start": "a"},
            "start",
        ),
    ],
)
def test_faulty_parameters_of_evaluate_are_refused_by_name(given, field, tmp_path):
    assert evaluate_stage(tmp_path, given).field == field


@pytest.mark.parametrize(
    "given, says",
    [
        ({"models": {"a": 5}}, "models, a: 5"),
        ({"models": {"a": "nope"}}, "nope is no folder"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"decodings": {"hot": {"temperature": -1.0}}}, "decodings, hot: temperature"),
        (
            {"decodings": {"hot": {"beams": 4, "temperature": 1.0}}},
            "decodings, hot: beams 4 with temperature",
        ),
        ({"token_limits": [0]}, "max_new_tokens is 0"),
    ],
)
def test_faulty_settings_of_evaluate_say_which(given, says, tmp_path):
    assert says in str(evaluate_stage(tmp_path, given))


def evaluate_stage(folder, given):
    "The error of running a config with this one stage."
    stages = {"evaluate": {"pipeline": "evaluate", "parameters": given}}
    config = write_text(
        folder / "faulty.yaml", json.dumps({"experiment": "faulty", "stages": stages})
    )
    with pytest.raises(ConfigError) as error:
        check_stage(load_config(config).stages[0])
    return error.value


def test_three_label_constructions_see_three_sets_of_tokens():
    from prefkit.runs.pipelines import label_tokens

    rows = [
        {"prompt_ids": [1, 2, 3], "response_ids": [4, 5, 9]},
        {"prompt_ids": [1], "response_ids": [6, 7]},
        {"prompt_ids": [1], "response_ids": [9]},
    ]
    seen = lambda labels: [
        (row["prompt_ids"], row["response_ids"]) for row in label_tokens(rows, labels, end=9)
    ]
    assert seen("response") == [([1, 2, 3], [4, 5, 9]), ([1], [6, 7]), ([1], [9])]
    # a cut answer has no end to lose, and an end alone leaves nothing
    assert seen("response_without_end") == [([1, 2, 3], [4, 5]), ([1], [6, 7])]
    assert seen("conversation") == [([1], [2, 3, 4, 5, 9]), ([1], [6, 7]), ([1], [9])]
    assert rows[0]["response_ids"] == [4, 5, 9]  # the rows given are left alone
    with pytest.raises(ConfigError) as error:
        label_tokens(rows, "all", end=9)
    assert (error.value.field, error.value.reason) == ("labels", "no such choice")


@pytest.mark.parametrize(
    "broken, says",
    [
        ("config.json", "broken config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_a_model_folder_that_lacks_a_part_is_refused_without_loading_it(broken, says, tmp_path):
    from prefkit.model.loading import check_model

    for file in (ROOT / "data" / "tiny" / "base").iterdir():
        if file.name != broken:
            (tmp_path / file.name).symlink_to(file)
    if broken == "config.json":
        write_text(tmp_path / broken, "{")
    with pytest.raises(ConfigError, match=says):
        check_model(str(tmp_path))
    check_model("stage:sft")
    check_model("data/tiny/base")


def test_weights_cut_short_are_a_clear_error(tmp_path):
    from prefkit.model.loading import load_model

    for file in (ROOT / "data" / "tiny" / "base").iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None]
        )
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_an_output_folder_that_cannot_be_written_to_is_refused(tmp_path):
    blocked = write_text(tmp_path / "file", "") / "runs"
    config = write_text(tmp_path / "smoke.yaml", CONFIG)
    with pytest.raises(ConfigError, match="that you may write to"):
        run(config, (), blocked, "quiet")


@pytest.mark.slow
def test_real_pairs_train_by_naming_the_file_and_every_row_is_accounted_for(tmp_path):
    if not os.environ.get("PREFKIT_REAL_DATA"):
        pytest.skip("PREFKIT_REAL_DATA names no folder of real samples")
    file = Path(os.environ["PREFKIT_REAL_DATA"]) / "pairs" / "dpo_en_demo.jsonl"
    config = write_text(
        tmp_path / "real.yaml",
        json.dumps(
            {
                "experiment": "real",
                "stages": {
                    "dpo": {
                        "pipeline": "preference",
                        "parameters": {
                            "dataset": str(file),
                            "split": "train[:80]",
                            "validation_split": "train[80:100]",
                            "limit": None,
                            "max_steps": 2,
                            "batch_size": 2,
                            "max_prompt_length": 256,
                        },
                    }
                },
            }
        ),
    )
    data = open_run(run(config, (), tmp_path, "quiet")["dpo"]).info["data"]["train"]
    assert data["read"] == 80 == data["kept"] + data["dropped_rows"] and data["shortened"] > 0
    assert all(entry["rows"] and entry["examples"] for entry in data["dropped"].values())


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_pipeline_keeps_the_conventions(path):
    parameters = read_parameters(path)
    assert {"seed", "output_dir"} <= parameters.keys() and parameters["output_dir"].default == ""
    cell = code_cells(path, "parameters")[0]
    assert all(isinstance(node, ast.AnnAssign) for node in ast.parse(cell).body), (
        "every parameter has a type"
    )
    assert not [name for name, parameter in parameters.items() if not parameter.comment], (
        "every parameter has a comment"
    )
    assert len(parameters) <= 27, "a cell lists what people turn; the rest stands in settings.py"
    first = code_cells(path, "check")[0]
    assert f'given_parameters("{path.stem}", globals())' in first
    assert any("finish(" in source for source in code_cells(path))
    assert not any(cell.get("outputs") for cell in json.loads(path.read_text())["cells"]), (
        "pipelines store no outputs"
    )


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_no_cell_gives_the_name_of_a_parameter_to_something_else(path):
    "Else a cell that is run again by hand would take that for what a person wrote."
    known = read_pipeline(path)
    names = {*known.parameters, *known.specifications}
    for source in (source for tag in ("check", None, "draw") for source in code_cells(path, tag)):
        tree = ast.parse(source)
        local = [
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.Lambda | ast.comprehension)
            for inner in ast.walk(node)
        ]
        bound = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in local
        }
        assert not bound & names, source


# -- papermill, without our runner


def papermill(path, folder, *words):
    """A pipeline started as papermill's users start it: exit code, what was said, code cells of the
    executed notebook.
    """
    output = folder / f"{path.stem}.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), str(output), "--no-progress-bar"]
    ended = subprocess.run(
        [*command, "-k", "python3", "-p", "output_dir", str(folder / path.stem), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        timeout=300,
    )
    cells = json.loads(output.read_text())["cells"]
    return ended.returncode, ended.stdout, [cell for cell in cells if cell["cell_type"] == "code"]


def one_now(paths, name="preference"):
    "All of them as parameters, but one marked as slow: each starts two processes."
    marks = {path: () if path.stem == name else pytest.mark.slow for path in paths}
    return [pytest.param(path, marks=mark, id=path.stem) for path, mark in marks.items()]


@pytest.mark.parametrize("path", one_now(PIPELINES))
def test_papermill_with_an_unknown_name_fails_before_anything_is_loaded(path, tmp_path):
    code, said, cells = papermill(path, tmp_path, "-p", "sed", "3")
    assert code != 0 and "ConfigError" in said and "Did you mean `seed`?" in said
    ran = [cell["metadata"]["tags"] for cell in cells if cell["execution_count"]]
    told = [tags[-1] for tags in ran if tags]  # the cell for Colab has none
    assert told == ["parameters", "injected-parameters", "check"]
    assert not (tmp_path / path.stem).exists()


TRAINING = [path for path in PIPELINES if path.stem in SPECIFIED]
TURNED = {"learning_rate": "8e-06", "lora_rank": "4", "warmup_steps": "1", "eval_steps": "1"}


@pytest.mark.parametrize("path", one_now(TRAINING))
def test_papermill_turns_a_setting_flat_and_in_its_dict(path, tmp_path):
    words = ["-p", "learning_rate", "8e-6", "-p", "max_steps", "1", "-p", "lora_rank", "4"]
    words += ["-y", "settings: {warmup_steps: 1, eval_steps: 1}"]
    small = ("documents", "20") if path.stem == "pretrain" else ("limit", "8")
    code, said, cells = papermill(path, tmp_path, *words, "-p", *small)
    assert code == 0, said
    result = json.loads((tmp_path / path.stem / "result.json").read_text())
    assert result["metrics"]["steps"] == 1
    table = next(
        "".join(cell["outputs"][0]["data"]["text/markdown"])
        for cell in cells
        if "check" in cell["metadata"]["tags"]
    )
    names = TURNED.keys() - read_parameters(path).keys() | {"learning_rate"}
    for name in names:
        assert f"| **{name}** | **`{TURNED[name]}`** |" in table


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "data" / "configs").rglob("*.yaml")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_config_fits_its_pipelines(path):
    text = path.read_text(encoding="utf-8")
    kinds = {"\nstudy: ": load_study, "\nsearch: ": load_search}
    load = next((kinds[key] for key in kinds if key in text), load_config)
    try:
        load(path)
    except PrefkitError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize("kind", ["sft", "pairs", "binary", "prompts"])
def test_rows_are_encoded_once_and_anything_that_matters_encodes_them_anew(
    kind, tmp_path, monkeypatch
):
    import prefkit.runs.pipelines as pipelines
    from prefkit.data.records import encode_records, load_records
    from prefkit.runs.pipelines import encode_once
    from transformers import AutoTokenizer

    tokenizer, records = (
        AutoTokenizer.from_pretrained(ROOT / "data/tiny/base"),
        load_records("tiny-world", kind=kind, limit=60),
    )
    settings, before, calls = (
        dict(kind=kind, max_length=256),
        os.environ.get("TOKENIZERS_PARALLELISM"),
        [],
    )
    monkeypatch.setattr(
        pipelines,
        "encode_records",
        lambda *given, **more: (
            calls.append(os.environ["TOKENIZERS_PARALLELISM"]) or encode_records(*given, **more)
        ),
    )
    once, again = (encode_once(records, tokenizer, tmp_path, **settings) for _ in range(2))
    assert once == again == encode_records(records, tokenizer, **settings) and len(once[0]) == 60
    assert calls == ["true"] and os.environ.get("TOKENIZERS_PARALLELISM") == before
    encode_once(records, tokenizer, tmp_path, **{**settings, "max_length": 255})  # another setting
    records.rows[0] = {**records.rows[1], "row": records.rows[0]["row"]}  # another row
    encode_once(records, tokenizer, tmp_path, **settings)
    tokenizer.chat_template = "{# another #}" + tokenizer.chat_template
    encode_once(records, tokenizer, tmp_path, **settings)
    assert len(calls) == 4 and len(list(tmp_path.glob("*"))) == 4


@pytest.mark.parametrize(
    "of_rows, kept",
    [
        (({"a": 1}, {"b": 1}), True),
        (({"a": {}}, {"a": [1, "x"]}), True),
        (({"a": 10**30}, {"a": None}), True),
        (({"a": float("nan")}, {"a": 1.0}), False),
    ],
    ids=["other columns", "other types", "large numbers", "NaN"],
)
def test_rows_that_would_not_come_back_as_they_were_are_not_kept(tmp_path, of_rows, kept):
    from prefkit.data.records import Records, RowReport
    from prefkit.runs.pipelines import encode_once
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny/base")
    rows = [
        {"prompt": [{"role": "user", "content": "Who is there?"}], "record": record}
        for record in of_rows
    ]
    found = [
        encode_once(Records(rows, RowReport("two", read=2)), tokenizer, tmp_path, kind="prompts")[0]
        for _ in range(2)
    ]
    assert str(found[0]) == str(found[1])  # NaN equals nothing
    assert str([row["record"] for row in found[1]]) == str(list(of_rows))
    assert bool(list(tmp_path.glob("*"))) == kept
