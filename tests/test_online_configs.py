"""The configs of online experiments: the reports' own numbers, checked as the runner checks them
before anything is loaded.
"""

import pytest
import yaml

from prefkit.runs.config import load_config
from prefkit.core import project_root
from prefkit.train.methods import get_method
from prefkit.runs.fingerprints import check_stage
from prefkit.train.settings import RolloutSettings

CONFIGS = project_root() / "data/configs"


def stages(name):
    return {stage.name: stage for stage in load_config(CONFIGS / f"{name}.yaml").stages}


@pytest.mark.parametrize("name", ["l4/orpo", "l4/rloo_countdown", "l4/length_penalty"])
def test_a_config_for_a_gpu_passes_its_checks_without_a_download(name):
    for stage in stages(name).values():
        check_stage(stage)


def test_ppo_has_the_numbers_of_the_orpo_papers_table_5():
    given = stages("l4/orpo")["ppo"].parameters
    hyper, s = (
        get_method("ppo").hyperparameters(given["hyperparameters"]),
        RolloutSettings.of(given),
    )
    assert (hyper["kl_coef"], hyper["kl_horizon"], hyper["gamma"], hyper["adaptive_kl"]) == (
        0.1,
        2000,
        0.99,
        True,
    )
    assert (
        s.prompts_per_round(),
        s.batch_size,
        s.passes,
        s.gradient_accumulation,
        s.max_new_tokens,
        s.learning_rate,
        s.samples,
    ) == (64, 8, 4, 1, 512, 1e-5, 1)


def test_the_length_penalty_report_has_its_numbers():
    found = stages("l4/length_penalty")
    given = found["rloo_kl"].parameters
    assert get_method("rloo_kl").hyperparameters(given["hyperparameters"])["lam"] == 0.1
    assert [
        given[name]
        for name in (
            "learning_rate",
            "batch_size",
            "samples",
            "max_steps",
            "warmup_steps",
            "max_new_tokens",
            "split",
        )
    ] == [5e-6, 2, 4, 1000, 10, 256, "train_prefs[2000:2050]"]
    assert len(set(RolloutSettings.of(given).temperatures())) == 4  # varied
    penalised = {"lam": 1e-3, "penalty_every": 100, "per_token": False}
    assert found["sft"].parameters["hyperparameters"] == penalised
    names = ("learning_rate", "batch_size", "gradient_accumulation", "warmup_steps", "seed")
    for name in ("sft", "sft_plain"):
        assert [found[name].parameters[key] for key in names] == [1e-4, 2, 2, 10, 16]
    dpo = found["dpo"].parameters
    assert [dpo[key] for key in names[:-1]] == [5e-6, 2, 2, 10] and dpo["epochs"] == 3
    assert dpo["eval_steps"] * dpo["early_stopping_patience"] == 2500 and dpo["sample_steps"] == 500
    judged = found["evaluate"].parameters
    reported = yaml.safe_load((project_root() / "data/reported/length_penalty.yaml").read_text())
    rows = {row["stage"] for row in reported["table_1"]["rows"]}
    assert rows == set(judged["models"]) - {"instruct"} and judged["references"] == ["instruct"]
    assert judged["decodings"]["beams"] == {"beams": 4, "length_penalty": 0.9}


def test_the_orpo_paper_has_its_numbers():
    found = stages("l4/orpo")
    settings = {
        name: (found[name].parameters["learning_rate"], found[name].parameters["epochs"])
        for name in ("sft", "dpo", "orpo")
    }
    assert settings == {"sft": (1e-5, 1.0), "dpo": (5e-6, 3.0), "orpo": (8e-6, 10.0)}
    assert found["orpo"].parameters["model"] == found["sft"].parameters["model"]  # no SFT before
    assert found["dpo"].parameters["keep_best"] and found["orpo"].parameters["keep_best"]
    assert {found[name].parameters["max_length"] for name in settings} == {2048}
    judged = found["evaluate"].parameters
    assert judged["judges"]["rm_large"]["model_name_or_path"] == "stage:judge_model"
    assert found["ppo"].parameters["reward_options"]["model_name_or_path"] == "stage:reward_model"


def test_the_synthetic_data_report_has_its_numbers():
    found = stages("l4/rloo_countdown")
    lora, rloo = found["sft_lora"].parameters, found["rloo"].parameters
    assert [
        lora[name] for name in ("lora", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
    ] == [True, 16, 32, 0.1, ["q_proj", "k_proj", "v_proj", "o_proj"]]
    assert (
        lora["learning_rate"],
        lora["batch_size"] * lora["gradient_accumulation"],
        lora["max_length"],
        lora["schedule"],
        lora["warmup_ratio"],
    ) == (3e-5, 64, 512, "cosine", 0.1)
    assert (
        rloo["reward"] == "countdown_shaped"
        and rloo["learning_rate"] in (1e-5, 2e-5, 3e-5)
        and rloo["hyperparameters"]["kl_coef"] in (0.01, 0.02, 0.05)
        and rloo["samples"] in (3, 4)
    )
    assert found["evaluate"].parameters["judges"] == ["countdown_shaped"]  # section 4


def test_the_comparison_trains_on_the_learned_reward_and_gold_is_named_an_upper_bound():
    found = stages("tiny/online")
    assert all(
        found[name].parameters["reward"] == "model" and "gold" in found[name].parameters["judges"]
        for name in ("rloo", "grpo", "ppo")
    )
    assert (
        stages("lessons/over_optimisation")["gold"].parameters["reward"] == "gold"
        and "upper bound" in (CONFIGS / "lessons/over_optimisation.yaml").read_text()
    )
