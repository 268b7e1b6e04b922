"""The pipelines of online methods through the runner: every method by its name, killed and resumed,
and faulty input refused before anything runs.
"""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from helpers.runs import weights, without_times
from prefkit.core import ConfigError, DataError, project_root, read_jsonl, write_jsonl, write_text
from prefkit.data.countdown import shaped_reward
from prefkit.train.methods import methods
from prefkit.runs.runner import open_run, run
from prefkit.train.saves import find_checkpoints

ROOT = project_root()
STAGES = {
    "rl": {
        "pipeline": "rollout",
        "parameters": {
            "method": "grpo",
            "reward": "gold",
            "judges": ["second"],
            "limit": 32,
            "validation_limit": 8,
            "batch_size": 2,
            "samples": 3,
            "minibatches": 2,
            "passes": 2,
            "max_steps": 8,
            "max_new_tokens": 16,
            "save_steps": 1,
            "eval_steps": 4,
            "learning_rate": 1e-3,
        },
    }
}
JUDGED = {
    **STAGES,
    "puzzles": {
        "pipeline": "rollout",
        "parameters": {
            "method": "ppo",
            "reward": "countdown_shaped",
            "dataset": "countdown-tiny",
            "limit": 16,
            "validation_limit": 4,
            "batch_size": 4,
            "samples": 2,
            "max_steps": 2,
            "max_new_tokens": 12,
            "lora": True,
        },
    },
    "accuracy": {
        "pipeline": "evaluate_countdown",
        "parameters": {
            "models": {"base": "data/tiny/base", "ppo": "stage:puzzles"},
            "prompts": 12,
            "samples": 2,
            "max_new_tokens": 12,
            "judges": ["countdown_shaped"],
        },
    },
    "frontier": {
        "pipeline": "frontier",
        "parameters": {
            "models": {"base": "data/tiny/base", "rl": "stage:rl"},
            "prompts": 12,
            "samples": 4,
            "max_new_tokens": 16,
        },
    },
}


def written(folder, stages, name="online"):
    return write_text(
        folder / f"{name}.yaml", json.dumps({"experiment": name, "seed": 1, "stages": stages})
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "Four stages that nobody kills."
    folder = tmp_path_factory.mktemp("online")
    return run(written(folder, JUDGED), (), folder, "quiet")


def test_a_rollout_leaves_a_whole_run_folder(undisturbed):
    one = open_run(undisturbed["rl"])
    for name in (
        "run.ipynb",
        "metrics.jsonl",
        "samples.jsonl",
        "reward.png",
        "judges.png",
        "kl.png",
        "length.png",
        "shares.png",
        "entropy.png",
        "reward.csv",
        "checkpoint/tokenizer.json",
    ):
        assert (one.path / name).exists(), name
    assert (
        one.info["metrics"]["steps"] == 8
        and one.info["model"]["method"] == "grpo"
        and one.info["model"]["reward"] == "gold"
        and one.info["seed"] == 1
    )
    assert [line["step"] for line in one.info["metrics"]["curve"]] == [0, 4, 8] and {
        "reward",
        "reward_second",
        "kl_k1",
    } <= set(one.info["metrics"]["curve"][0])
    assert (
        one.info["metrics"]["seconds"].keys() == {"seconds_sampling", "seconds_learning"}
        and one.samples[-1]["reward"] is not None
    )


def test_puzzles_are_judged_by_the_verifier_and_models_compared_puzzle_by_puzzle(undisturbed):
    found = open_run(undisturbed["accuracy"]).info["metrics"]
    rows = read_jsonl(undisturbed["accuracy"] / "generations.jsonl")
    assert (
        len(rows) == 2 * 12 * 3
        and {row["reason"] for row in rows} - {"correct"}
        and [row["model"] for row in found["scores"]] == ["base", "ppo"]
    )
    (difference,) = found["differences"]
    assert (difference["model"], difference["reference"]) == ("ppo", "base") and difference[
        "sampled_difference_low"
    ] <= difference["sampled_difference"] <= difference["sampled_difference_high"]
    of = lambda name: (
        sum(row["correct"] for row in rows if row["model"] == name and not row["greedy"]) / 24
    )
    assert difference["sampled_difference"] == pytest.approx(of("ppo") - of("base"))
    assert (undisturbed["puzzles"] / "adapter").is_dir()


def test_win_rates_on_puzzles_are_taken_by_the_shaped_reward(undisturbed):
    found = open_run(undisturbed["accuracy"]).info["metrics"]
    earned = {}
    for row in read_jsonl(undisturbed["accuracy"] / "generations.jsonl"):
        total = shaped_reward(row["answer"], row["nums"], row["target"]).total
        assert row["reward_countdown_shaped"] == pytest.approx(total)
        earned.setdefault((row["model"], row["greedy"], row["puzzle"]), []).append(total)
    greedy, sampled = found["win_rates"]
    for line, way in ((greedy, True), (sampled, False)):
        shares = []
        for puzzle in range(12):
            ours, theirs = (earned[model, way, puzzle] for model in ("ppo", "base"))
            won = [(a > b) + (a == b) / 2 for a in ours for b in theirs]
            shares.append(sum(won) / len(won))
        assert line["rate"] == pytest.approx(sum(shares) / 12)
        assert line["n"] == 12 and line["low"] < line["rate"] < line["high"]
    names = ("model", "reference", "judge", "decoding")
    who = ["ppo", "base", "countdown_shaped"]
    assert [[line[name] for name in names] for line in found["win_rates"]] == [
        [*who, "greedy"],
        [*who, "sampled"],
    ]
    higher = sum(earned["ppo", True, n] > earned["base", True, n] for n in range(12))
    assert (greedy["wins"], sampled["wins"]) == (higher, None) and type(greedy["wins"]) is int
    ppo = found["scores"][1]
    mean = sum(earned["ppo", True, n][0] for n in range(12)) / 12
    assert ppo["reward_countdown_shaped"] == pytest.approx(mean)


def test_the_frontier_has_models_and_best_of_n(undisturbed):
    found = open_run(undisturbed["frontier"]).info["metrics"]
    base, rl = found["scores"]
    assert (
        abs(base["kl"]) < 1e-3
        and base["kl_low"] <= base["kl"] <= base["kl_high"]
        and abs(rl["kl"]) > 1e-3
    )
    assert [row["n"] for row in found["best_of_n"]] == [1, 2, 4]
    assert found["best_of_n"][0]["kl"] == 0
    golds = [row["gold"] for row in found["best_of_n"]]
    assert golds == sorted(golds) and all(
        row["kl"] <= row["kl_formula"] + 1e-9 for row in found["best_of_n"]
    )


@pytest.mark.slow
def test_killed_at_random_points_it_ends_in_the_same_metrics_samples_and_weights(
    undisturbed, tmp_path
):
    config, home = written(tmp_path, STAGES), tmp_path / "online"
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
    for step in (1, 5):  # in the middle of the first round and of the second
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while (
            process.poll() is None
            and max(find_checkpoints(home / ".rl.partial" / "checkpoints"), default=0) < step
            and time.monotonic() < until
        ):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.wait()
    resumed = run(config, (), tmp_path, "quiet")["rl"]
    assert without_times(resumed) == without_times(undisturbed["rl"]) and weights(
        resumed
    ) == weights(undisturbed["rl"])
    assert (resumed / "samples.jsonl").read_bytes() == (
        undisturbed["rl"] / "samples.jsonl"
    ).read_bytes()


FAULTY = {
    "a method that does not exist": ({"method": "rlo"}, "Did you mean `rloo`?"),
    "an offline method": ({"method": "dpo"}, "learns from rows that are there"),
    "a reward that does not exist": ({"reward": "golden"}, "Did you mean `gold`?"),
    "a judge that does not exist": ({"judges": ["golden"]}, "Did you mean `gold`?"),
    "an option that the reward does not have": (
        {"reward_options": {"scal": 2.0}},
        "Did you mean `scale`?",
    ),
    "a reward model that is nowhere": (
        {"reward": "model", "reward_options": {"model_name_or_path": "nowhere"}},
        "nowhere is no folder",
    ),
    "a reward model without a head": (
        {"reward": "model", "reward_options": {"model_name_or_path": "data/tiny/base"}},
        "without a head",
    ),
    "gold for puzzles": ({"dataset": "countdown-tiny"}, "judges the tiny world only"),
    "the verifier without puzzles": ({"reward": "countdown"}, "nums"),
    "one sample for RLOO": ({"samples": 1}, "at least 2"),
    "three samples for XPO": ({"method": "online_xpo", "samples": 3}, "samples: 2"),
    "temperature 0": ({"temperature": 0.0}, "temperature"),
    "a hyper-parameter that does not exist": (
        {"hyperparameters": {"betta": 0.1}},
        "Known: kl_coef, ranks, clip",
    ),
    "a negative clip": ({"method": "grpo", "hyperparameters": {"clip": -0.1}}, "clip"),
    "best of no validation": ({"keep_best": True, "validation_split": ""}, "validation_split"),
    "a model that is nowhere": ({"model": "nomodel"}, "nomodel is no folder"),
    "a split that does not exist": ({"split": "trian"}, "no split 'trian'"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_parameters_are_refused_before_anything_runs(fault, tmp_path):
    parameters, says = FAULTY[fault]
    config = written(
        tmp_path,
        {"sft": {"pipeline": "sft"}, "rl": {"pipeline": "rollout", "parameters": parameters}},
        "faulty",
    )
    with pytest.raises((ConfigError, DataError)) as error:
        run(config, (), tmp_path / "runs", "quiet")
    assert "stage rl" in str(error.value) and says in str(error.value), str(error.value)
    assert not list((tmp_path / "runs").glob("faulty/.*.partial"))


@pytest.mark.parametrize(
    "pipeline, parameters, says",
    [
        ("evaluate_countdown", {"models": {}}, "at least one"),
        ("evaluate_countdown", {"dataset": "tiny-world"}, "nums"),
        ("evaluate_countdown", {"references": ["x"]}, "none of the models"),
        ("evaluate_countdown", {"judges": ["countdown_shape"]}, "countdown_shaped"),
        ("evaluate_countdown", {"judges": ["gold"]}, "judges the tiny world only"),
        ("frontier", {"best_of": [1, 64]}, "samples"),
        ("frontier", {"reference": "nowhere"}, "nowhere is no folder"),
        ("frontier", {"chosen_by": {"rm": "nowhere"}}, "nowhere is no folder"),
    ],
)
def test_faulty_parameters_of_the_judging_pipelines_are_refused(
    pipeline, parameters, says, tmp_path
):
    config = written(
        tmp_path, {"judge": {"pipeline": pipeline, "parameters": parameters}}, "faulty"
    )
    with pytest.raises((ConfigError, DataError), match=says):
        run(config, (), tmp_path / "runs", "quiet")


def test_an_online_method_asked_of_the_offline_pipeline_is_sent_to_its_own(tmp_path):
    for method in methods(online=True):
        config = written(
            tmp_path, {"p": {"pipeline": "preference", "parameters": {"method": method}}}, "wrong"
        )
        with pytest.raises(ConfigError, match="pipeline rollout"):
            run(config, (), tmp_path / "runs", "quiet")


def test_prompts_come_from_any_file_that_has_some(tmp_path):
    write_jsonl(tmp_path / "mine.jsonl", [{"prompt": f"What is {i} plus 1?"} for i in range(12)])
    stages = {
        "rl": {
            "pipeline": "rollout",
            "parameters": {
                "dataset": str(tmp_path / "mine.jsonl"),
                "reward": "text",
                "limit": None,
                "validation_split": "",
                "max_steps": 1,
                "batch_size": 2,
                "max_new_tokens": 8,
            },
        }
    }
    info = open_run(run(written(tmp_path, stages), (), tmp_path, "quiet")["rl"]).info
    assert info["data"]["train"]["kept"] == 12 and info["metrics"]["validation"] == {}
