"""GSM8K as data set, reward and judge, and the config of the report that is scored on it."""

import json

import datasets
import pytest
import yaml

from helpers.pages import run_cells
from helpers.records import metamath
from prefkit.core import ConfigError, DataError, project_root, read_jsonl
from prefkit.data.records import GSM8K_PROMPT, load_records
from prefkit.judging.rewards import reward_source
from prefkit.runs.config import load_config
from prefkit.runs.fingerprints import check_stage

ROWS = [
    {"question": f"What is {i} + 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
    for i in range(6)
]


@pytest.fixture
def hub(monkeypatch):
    "The Hub's rows of a test, by name, part and split."
    sets = {("openai/gsm8k", "main", split): ROWS for split in ("train", "test")}
    load = lambda path, name=None, *, split: datasets.Dataset.from_list(sets[path, name, split])
    monkeypatch.setattr(datasets, "load_dataset", load)
    return sets


def test_problems_and_solutions_are_prompts_and_answers(hub):
    row = load_records("gsm8k", kind="sft")[0]
    assert row["prompt"][-1] == {"role": "user", "content": "What is 0 + 1?"}
    assert row["response"][0]["content"].endswith("#### 1")
    prompt = load_records("gsm8k", kind="prompts", split="test")[5]
    assert prompt["record"]["answer"].endswith("#### 6") and "question" not in prompt["record"]


def test_the_reports_prompt_stands_before_each_question(hub):
    rows = load_records("gsm8k_minor_dpo", kind="prompts", split="test")
    assert "each question behind a text of its own" in rows.report.source
    asked = [row["prompt"][-1]["content"] for row in rows]
    assert asked == [f"{GSM8K_PROMPT} {row['question']}" for row in ROWS]
    hub["openai/gsm8k", "main", "test"] = [{"question": None, "answer": "#### 1"}, *ROWS, *ROWS]
    assert load_records("gsm8k_minor_dpo", kind="prompts", split="test").report.kept == 12


@pytest.mark.parametrize(
    "text, reward",
    [
        ("2 + 1 = 3\n#### 3", 1.0),
        ("So the answer is: 3.", 1.0),
        ("<think>Is it 4?</think>The answer is 3.", 1.0),
        ("<think>It is 3.</think>The answer is 4.", 0.0),
        ("3 is not it. The answer is 4", 0.0),
        ("I do not know.", 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_is_right_whose_number_is_the_solutions(hub, text, reward):
    row = load_records("gsm8k", kind="prompts")[2]
    (found,) = reward_source("gsm8k")([row], [{"text": text, "tokens": 9, "ended": True}])
    assert found["reward"] == reward


@pytest.mark.parametrize("record, error", [({}, ConfigError), ({"answer": "none"}, DataError)])
def test_rows_without_a_number_to_reach_are_refused(record, error):
    with pytest.raises(error, match="answer"):
        reward_source("gsm8k").check(record)


CONFIG = "data/configs/l4/minor_dpo.yaml"


def test_the_config_has_the_reports_settings():
    told = yaml.safe_load((project_root() / "data/reported/minor_dpo.yaml").read_text())
    value = lambda name: told["settings"][name]["value"]
    *runs, judged = load_config(project_root() / CONFIG).stages
    seen = set()
    for given in (stage.parameters for stage in runs):
        assert given["batch_size"] * given["gradient_accumulation"] == value("batch_size")
        for name in ("epochs", "schedule", "warmup_ratio"):
            assert given[name] == value(name)
        hyper = given["hyperparameters"]
        assert hyper.get("lam") == (value("dpop_lambda") if given["method"] == "dpop" else None)
        seen.add((given["method"], given["learning_rate"], hyper["beta"]))
    assert len(seen) == len(runs) == 18 and {rate for _, rate, _ in seen} == set(
        value("learning_rate")
    )
    betas = {beta for *_, beta in seen}
    assert [min(betas), max(betas)] == value("beta")
    assert set(value("degenerates")["beta"]) < betas
    assert judged.parameters["dataset"] == "gsm8k_minor_dpo"


def test_two_steps_of_a_run_of_each_method_and_the_score(hub, tmp_path):
    for split in ("train", "eval"):
        hub["abacusai/MetaMath_DPO_FewShot", None, split] = metamath(128)
    *runs, judged = load_config(project_root() / CONFIG).stages
    firsts = {stage.parameters["method"]: stage for stage in runs}
    few = {"max_steps": 2, "eval_steps": None, "logging_steps": 1, "validation_limit": 4}
    few |= {"model": str(project_root() / "data/tiny/base"), "gradient_accumulation": 1}
    folders = {}
    for method, stage in firsts.items():
        check_stage(stage)
        folders[method] = tmp_path / method
        run_cells(stage.pipeline, {**stage.parameters, **few, "output_dir": str(folders[method])})
        lines = read_jsonl(folders[method] / "metrics.jsonl")
        assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]
    given = judged.parameters | {"prompts": 4, "max_new_tokens": 8, "references": ["dpo"]}
    given["models"] = {name: str(folder / "checkpoint") for name, folder in folders.items()}
    run_cells(judged.pipeline, {**given, "output_dir": str(tmp_path / "evaluate")})
    scores = json.loads((tmp_path / "evaluate/result.json").read_text())["metrics"]
    assert {(row["judge"], row["reference"]) for row in scores["win_rates"]} == {("gsm8k", "dpo")}
