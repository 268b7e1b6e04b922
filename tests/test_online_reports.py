"""The reports on methods that learn from their own samples and on Countdown, on results whose
numbers are invented by a seed, only to test the drawing.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefkit.runs.config import load_config
from prefkit.core import DataError, project_root, write_json, write_text
from prefkit.report.figures import mean_interval
from prefkit.report.puzzles import Puzzles, Walk
from prefkit.runs.runner import find_report
from prefkit.runs.seeds import over_seeds
from helpers.pages import check_page as whole, draw_report, page_of, words_of as words

ROOT = project_root()
ABOUT = {
    "date": "2026-01-01",
    "config": "0",
    "git": {"revision": "0" * 40, "dirty": False},
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "device": "cpu",
    "threads": 1,
}
GOLD = {
    "base": 2.0,
    "sft": 3.4,
    "control": 3.5,
    "rloo": 4.4,
    "grpo": 4.2,
    "ppo": 3.4,
    "rloo_gold": 5.4,
}
# what online.yaml compares; the page draws an upper bound where there is one
PLAIN = {name: value for name, value in GOLD.items() if name != "rloo_gold"}
RIGHT = {"base": 0.02, "sft": 0.30, "control": 0.31, "rloo": 0.45, "grpo": 0.29}
LORA = {"sft": 0.30, "sft_lora": 0.20}


def stages(config):
    return {
        stage.name: stage.parameters for stage in load_config(ROOT / "data/configs" / config).stages
    }


def results(name, found):
    return {
        "command": (
            f"prefkit seeds data/configs/tiny/{name}.yaml --seeds {','.join(map(str, found))}"
        ),
        **ABOUT,
        "over_seeds": over_seeds(found),
        "seeds": {str(seed): one for seed, one in found.items()},
    }


def walk(rng, end, kl, steps=100, **parts):
    "Validations of a run: the reward rises to `end`, KL to `kl`, other columns to what is given."
    shares = [step / steps for step in range(0, steps + 1, steps // 4)]
    return [
        {
            "step": int(steps * share),
            "epoch": share,
            "reward": 1 + (end - 1) * share + rng.normal(0, 0.02),
            "kl_k1": kl * share,
            "kl_k3": kl * share,
            "entropy": 0.5,
            "length": 14.0,
            "cut_off": 0.0,
            **{
                column: first + (last - first) * share + rng.normal(0, 0.005)
                for column, (first, last) in parts.items()
            },
        }
        for share in shares
    ]


def online(gold=GOLD, seeds=3, second=1.0):
    "What `prefkit seeds` writes for online.yaml; `second`: how far the second judge agrees."
    rng, found, models = np.random.default_rng(0), {}, list(gold)
    for seed in range(seeds):
        mean = {name: value + rng.normal(0, 0.03) for name, value in gold.items()}
        scores = [
            {
                "model": name,
                "n": 1000,
                "gold": value,
                "gold_low": value - 0.14,
                "gold_high": value + 0.14,
                "right": value / 8,
                "right_low": value / 8 - 0.03,
                "right_high": value / 8 + 0.03,
                "second": 3 + second * (value - 3.4) / 2,
                "tokens": 12 + value,
                "ended": 0.99,
            }
            for name, value in mean.items()
        ]
        rate = lambda model, reference, scale: float(
            np.clip(0.5 + scale * (mean[model] - mean[reference]) / 4, 0, 1)
        )
        wins = [
            {
                "model": model,
                "reference": reference,
                "judge": judge,
                "rate": (value := rate(model, reference, scale)),
                "low": value - 0.03,
                "high": value + 0.03,
                "n": 1000,
                "wins": 1,
                "ties": 0,
            }
            for place, model in enumerate(models)
            for reference in ("sft", "control")
            if models.index(reference) < place
            for judge, scale in (("gold", 1.0), ("second", second))
        ]
        curves = {
            name: walk(
                rng,
                2.0 if name != "rloo_gold" else 5.0,
                4.0,
                reward_second=(3, 3.4),
                **({"reward_gold": (3.4, mean[name])} if name != "rloo_gold" else {}),
            )
            for name in ("rloo", "grpo", "ppo", "rloo_gold")
            if name in mean
        }
        curves["reward_model"] = [{"step": 10, "loss": 0.6, "reward_accuracy": 0.7}]
        examples = {
            name: [
                {
                    "prompt": f"what is {number} and <b> ?",
                    "answer": f"{name} says {number}",
                    "tokens": 5,
                    "ended": number > 0,
                    "reward": -1.25,
                }
                for number in range(8)
            ]
            for name in ("rloo", "grpo", "ppo", "rloo_gold")
            if name in mean
        }
        found[seed] = {
            "scores": scores,
            "win_rates": wins,
            "curves": curves,
            "examples": examples,
            "wall_seconds": {
                "control": 200.0,
                "rloo": 190.0 + seed,
                "grpo": 195.0,
                "ppo": 250.0,
                "rloo_gold": 180.0,
                "evaluate": 60.0,
            },
        }
    return results("online", found)


def countdown(right=RIGHT, seeds=3, n=500, curves=("rloo", "grpo"), **columns):
    "What `prefkit seeds` writes for countdown.yaml or its comparison with LoRA."
    rng, found, models = np.random.default_rng(1), {}, list(right)
    for seed in range(seeds):
        greedy = {name: np.clip(value + rng.normal(0, 0.01), 0, 1) for name, value in right.items()}
        scores = [
            {
                "model": name,
                "n": n,
                "right": value,
                "right_low": value - 0.04,
                "right_high": value + 0.04,
                "tokens": 18.0,
                "ended": 0.98,
                "sampled": value * 0.8,
                "sampled_low": value * 0.8 - 0.03,
                "sampled_high": value * 0.8 + 0.03,
                "any": min(1.0, value * 1.5),
                "entropy": 0.4,
            }
            for name, value in greedy.items()
        ]
        differences = [
            {
                "model": model,
                "reference": reference,
                "n": n,
                **{
                    f"{kind}_difference{end}": scale * (greedy[model] - greedy[reference]) + shift
                    for kind, scale in (("right", 1.0), ("sampled", 0.8))
                    for end, shift in (("", 0), ("_low", -0.05), ("_high", 0.05))
                },
            }
            for place, model in enumerate(models)
            for reference in models[:place]
        ]
        found[seed] = {
            "scores": scores,
            "differences": differences,
            "curves": {
                name: walk(
                    rng,
                    right[name],
                    2.0,
                    **(columns or {"part_correct": (0.24, 0.8 * right[name])}),
                )
                for name in curves
            },
            "wall_seconds": {"control": 100.0, "rloo": 240.0, "grpo": 230.0, "evaluate": 40.0},
        }
    return results("countdown", found)


def with_bound(folder):
    "online.yaml, and RLOO on the gold reward with it."
    text = (ROOT / "data/configs/tiny/online.yaml").read_text(encoding="utf-8")
    return write_text(
        folder / "online.yaml",
        text.replace(
            "\n  evaluate:\n",
            (
                "\n  rloo_gold:\n    pipeline: rollout\n    parameters: {<<: *online, reward: "
                "gold, reward_options: {}, judges: [second]}\n  evaluate:\n"
            ),
        ),
    )


def given(folder, report, parts):
    return {
        **{
            name: str(write_json(folder / f"{name}.json", value))
            if value
            else str(folder / "none.json")
            for name, value in parts.items()
        },
        "config": str(
            with_bound(folder)
            if "rloo_gold" in str(parts)
            else ROOT / f"data/configs/tiny/{report}.yaml"
        ),
        "output_dir": str(folder / "report"),
    }


def draw(folder: Path, report: str, **parts) -> Path:
    "Draw a report on results given as dicts."
    draw_report(report, **given(folder, report, parts))
    return folder / "report"


def said(values, factor=100, digits=1):
    "A mean with its interval as pages write it."
    mean, low, high = (f"{factor * value:.{digits}f}" for value in mean_interval(values))
    return f"{mean}{' %' if factor == 100 else ''} [{low}, {high}]".replace("-", "−")


# Methods that learn from their own samples.


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("online"), "online", results=online())


def test_the_online_page_has_every_part(page):
    whole(
        page,
        [
            "gold",
            "gold_difference_sft",
            "gold_difference_control",
            "win_rates_sft",
            "win_rates_control",
            "share_right",
            "length",
            "reward_against_kl",
        ],
    )
    for part in (
        "What came out",
        "Gold reward, seed by seed",
        "Who wins",
        "The way there",
        "All numbers",
        "Made with",
        "prefkit seeds data/configs/tiny/online.yaml --seeds 0,1,2",
        "2026-01-01",
        "0" * 12,
        "3 seeds, 1000 held-out prompts",
        "The first 4 validation prompts",
        "what is 3 and <b> ?",
        "ppo says 3",
        "reward −1.25, 5 tokens, cut off",
    ):
        assert part in words(page), part
    assert {path.stem for path in (page / "tables").glob("*.csv")} == {"models", "seeds", "curves"}


def gaps(found, model, reference):
    return [
        a - b
        for one in found["seeds"].values()
        for a, b in [
            [
                next(row["gold"] for row in one["scores"] if row["model"] == name)
                for name in (model, reference)
            ]
        ]
    ]


def test_who_is_above_in_every_seed_is_computed_from_the_seeds(page):
    found, text = online(), words(page)
    for reference in ("sft", "control"):
        always = [
            model
            for model in ("rloo", "grpo", "ppo", "rloo_gold")
            if min(gaps(found, model, reference)) > 0
        ]
        line = re.search(
            (
                f"Higher gold reward than {'SFT' if reference == 'sft' else reference} in every "
                "one of 3 seeds: (.*?)\\.(?= [A-Z])"
            ),
            text,
        )[1]
        assert (
            ("PPO" in line) == ("ppo" in always)
            and "RLOO (" in line
            and "GRPO (" in line
            and "RLOO on gold (bound) (" in line
        )
        assert ", ".join(f"{value:+.2f}" for value in gaps(found, "rloo", reference)) in line
    table = pd.read_csv(page / "tables" / "models.csv").set_index("model")
    assert table.loc[
        "grpo", ["gold_less_sft_mean", "gold_less_sft_low", "gold_less_sft_high"]
    ].tolist() == pytest.approx(mean_interval(gaps(found, "grpo", "sft")))
    assert said(gaps(found, "ppo", "control"), 1, 2) in text and table["bound"].tolist() == [
        False
    ] * 6 + [True]


def test_win_rates_and_the_second_judge_are_told(page, tmp_path):
    found, text = online(), words(page)
    rate = lambda model, reference, judge: next(
        row["rate"]
        for row in found["over_seeds"]["win_rates"]
        if (row["model"], row["reference"], row["judge"]) == (model, reference, judge)
    )
    rloo, ppo = rate("rloo", "sft", "gold"), rate("ppo", "sft", "gold")
    assert rloo["low"] > 0.5 and ppo["low"] < 0.5 < ppo["high"]
    assert (
        f"RLOO beats SFT, {100 * rloo['mean']:.1f} % [{100 * rloo['low']:.1f}, "
        f"{100 * rloo['high']:.1f}]"
    ) in text and "PPO cannot be told apart from SFT" in text
    assert (
        "2 of 3 methods beat SFT by the gold reward: RLOO and GRPO." in text
        and "Against SFT the second judge comes to the same verdict on each of 3 methods." in text
    )
    other = words(draw(tmp_path, "online", results=online(second=-1.0)))
    assert (
        "Against SFT the second judge comes to another verdict on 2 of 3 methods: RLOO and GRPO."
        in other
        and re.search(r"the second judge: [\d.]+ % \[[\d., ]+\], by which it loses to it", other)
    )


def test_the_bound_is_no_method_and_what_is_reached_of_it_is_said(page):
    found = online()
    shares = [
        f"{100 * own / above:.0f} %"
        for own, above in zip(gaps(found, "rloo", "sft"), gaps(found, "rloo_gold", "sft"))
    ]
    assert (
        "RLOO on gold (bound) is trained on the reward that judges, which no real project has"
        in words(page)
    )
    assert (
        f"RLOO, the best that learned from a reward model, has {shares[0]}, {shares[1]} and "
        f"{shares[2]} of it in the same seeds"
    ) in words(page)


def test_curves_hold_the_gold_reward_of_every_method(page):
    curves = pd.read_csv(page / "figures" / "reward_against_kl.csv")
    assert (
        set(curves["model"]) == {"rloo", "grpo", "ppo", "rloo_gold"}
        and curves.groupby(["model", "seed"]).size().eq(5).all()
        and curves["gold"].notna().all()
    )
    bound = curves[curves["model"] == "rloo_gold"]
    assert (
        bound["gold"] == bound["reward"]
    ).all() and "RLOO: the reward that it trains on rises by" in words(page)


def test_no_effect_is_called_no_effect(tmp_path):
    found = online({name: 3.4 if name != "base" else 2.0 for name in GOLD})
    text = words(draw(tmp_path, "online", results=found))
    assert (
        "cannot be told apart from SFT" in text
        and "0 of 3 methods beat SFT by the gold reward." in text
        and "does not say that they are the same" in text
    )
    assert ("Even so its gold reward is not above SFT in every seed" in text) == (
        min(gaps(found, "rloo_gold", "sft")) <= 0
    )


def test_one_seed_has_intervals_over_prompts_alone(tmp_path):
    found = online(PLAIN, seeds=1)
    # and a file without curves is drawn, too
    for one in found["seeds"].values():
        one |= {"curves": {}, "examples": {}}
    output = draw(tmp_path, "online", results=found)
    text, rate = (
        words(output),
        next(
            row["rate"]["mean"]
            for row in found["over_seeds"]["win_rates"]
            if (row["model"], row["reference"], row["judge"]) == ("rloo", "sft", "gold")
        ),
    )
    assert (
        "not what another seed would" in text
        and "nan" not in text.lower().replace("finance", "")
        and "(bound)" not in text
        and "How the settings were found" in text
        and f"{100 * rate:.1f} % [{100 * rate - 3:.1f}, {100 * rate + 3:.1f}]" in text
    )
    assert (
        not (output / "figures" / "reward_against_kl.png").exists()
        and (output / "figures" / "gold.png").exists()
    )


# Countdown.


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    return draw(
        tmp_path_factory.mktemp("countdown"),
        "countdown",
        results=countdown(),
        lora=countdown(LORA, curves=()),
    )


def test_the_countdown_page_has_every_part(puzzles):
    kinds = [
        f"{name}_{kind}"
        for name in ("accuracy", "differences", "lora_accuracy", "lora_differences")
        for kind in ("greedy", "sampled")
    ]
    whole(puzzles, [*kinds, "validation", "wall_time"])
    for part in (
        "What came out",
        "Accuracy",
        "Differences, puzzle by puzzle",
        "On the way",
        "LoRA beside all weights",
        "Made with",
        "prefkit seeds data/configs/tiny/countdown.yaml",
        "500 held-out puzzles",
        "over 3 seeds",
    ):
        assert part in words(puzzles), part


def test_accuracies_carry_both_kinds_of_interval(puzzles):
    found, table = (
        countdown(),
        pd.read_csv(puzzles / "tables" / "accuracy.csv").set_index(["model", "answers", "of"]),
    )
    values = [
        row["right"]
        for one in found["seeds"].values()
        for row in one["scores"]
        if row["model"] == "rloo"
    ]
    assert table.loc[
        ("rloo", "greedy", "over seeds"), ["value", "low", "high"]
    ].tolist() == pytest.approx(mean_interval(values))
    assert table.loc[
        ("rloo", "greedy", "seed 1"), ["value", "low", "high"]
    ].tolist() == pytest.approx([values[1], values[1] - 0.04, values[1] + 0.04])
    assert (
        said(values) in words(puzzles)
        and (table["low"] >= -0.05).all()
        and (table.xs("over seeds", level="of")["low"] >= 0).all()
    )


def test_every_difference_is_said_to_be_apart_from_zero_or_not(puzzles):
    found, table = countdown(), pd.read_csv(puzzles / "tables" / "differences.csv")
    # pairs with SFT and the control, kinds of answers, three seeds and over them
    assert len(table) == 5 * 2 * 4
    for row in table[table["of"] != "over seeds"].itertuples():
        wanted = (
            "above zero" if row.low > 0 else "below zero" if row.high < 0 else "not apart from zero"
        )
        truth = next(
            each
            for each in found["seeds"][row.of[-1]]["differences"]
            if (each["model"], each["reference"]) == (row.model, row.reference)
        )
        assert row.verdict == wanted and row.difference == pytest.approx(
            truth[f"{'right' if row.answers == 'greedy' else 'sampled'}_difference"]
        )
    text = words(puzzles)
    assert (
        "RLOO less SFT, greedy answers: apart from zero in 3 of 3 seeds" in text
        and "GRPO less control, greedy answers: apart from zero in 0 of 3 seeds" in text
    )
    assert (
        "Greedy answers, by each seed's own interval: RLOO is above SFT in every seed; control and "
        "GRPO cannot be told apart from SFT in at least one seed."
    ) in text


def test_lora_stands_beside_what_the_report_states(puzzles):
    text = words(puzzles)
    assert "0.18 or nearly 96/1000" in text and "That is a slip: 96/1000 is 0.096" in text
    assert (
        "In the report SFT with LoRA is 6 points above SFT of all weights, and here it is below it"
        in text
        and "SFT (LoRA) less SFT, greedy answers: apart from zero in 3 of 3 seeds" in text
    )
    lora = stages("lessons/countdown_lora.yaml")
    assert (
        "SFT (LoRA), rank 16, alpha 32, dropout 0.1, on q_proj, k_proj, v_proj and o_proj, starts "
        f"from the base model and takes learning rate {lora['sft_lora']['learning_rate']:g}, where "
        f"SFT takes {stages('tiny/countdown.yaml')['sft']['learning_rate']:g}."
    ) in text and "and RLOO 0.12" in text
    assert set(
        map(
            tuple,
            pd.read_csv(puzzles / "tables" / "lora_differences.csv")[
                ["model", "reference"]
            ].to_numpy(),
        )
    ) == {("sft_lora", "sft")}
    report = page_of(puzzles)
    row = re.search(
        r"<tr><td[^>]*>SFT \(LoRA\)</td>.*?</tr>",
        report[report.index("on a leaderboard, which gives") :],
    )[0]
    assert ">18 %<" in row


def test_a_missing_lora_comparison_names_its_command_and_one_seed_is_enough(tmp_path):
    found = countdown(seeds=1, reward_countdown=(0.2, 0.4))
    output = draw(tmp_path, "countdown", results=found, lora=None)
    text = words(output)
    assert (
        "has not been made yet" in text
        and "prefkit seeds data/configs/lessons/countdown_lora.yaml" in text
        and "That is a slip" in text
    )
    assert (
        "not what another seed would" in text
        and not (output / "figures" / "lora_accuracy_greedy.png").exists()
        and "over seeds" not in text
    )
    drawn = pd.read_csv(output / "figures" / "validation.csv")
    assert (
        drawn["value"].between(0.1, 0.5).all()
        and "RLOO: the share of validation puzzles solved by sampled answers, in percent, rises by"
        in text
        and "RLOO less control, greedy answers: " in text
        and "(seed 0, above" not in text
    )


def puzzle_results(*differences):
    "Two models in as many seeds as there are differences, each (value, low, high)."
    seeds = {}
    for seed, ends in enumerate(differences):
        names = ("right_difference", "right_difference_low", "right_difference_high")
        score = {"right": 0.3, "right_low": 0.2, "right_high": 0.4, "n": 9}
        seeds[str(seed)] = {
            "scores": [{"model": name, **score} for name in ("sft", "rloo")],
            "differences": [{"model": "rloo", "reference": "sft", **dict(zip(names, ends))}],
        }
    return {"over_seeds": {"scores": seeds["0"]["scores"]}, "seeds": seeds}


@pytest.mark.parametrize(
    "differences, signs, words",
    [
        ([(0.2, 0.1, 0.3), (0.1, 0.01, 0.2)], [1, 1], "RLOO is above SFT in every seed"),
        ([(0.2, 0.1, 0.3), (0.1, 0.0, 0.2)], [1, 0], "RLOO cannot be told apart from SFT in at"),
        ([(-0.2, -0.3, -0.1)], [-1], "RLOO is below SFT in the one seed"),
        ([(0.2, 0.1, 0.3), (-0.2, -0.3, -0.1)], [1, -1], "RLOO cannot be told apart from SFT in"),
    ],
)
def test_a_model_is_above_where_every_seed_says_so(differences, signs, words):
    found = Puzzles(puzzle_results(*differences))
    assert found.signs("rloo", "sft", "right") == signs
    assert words in found.say_better("sft", "right", ["rloo"])
    apart = f"apart from zero in {sum(map(bool, signs))} of {len(signs)} seeds"
    assert (apart in found.say_pair("rloo", "sft", "right")) == (len(signs) > 1)


def test_a_walk_shows_verdicts_where_they_were_logged_and_rewards_where_not():
    line = {"step": 1, "reward": 0.5, "reward_countdown": 0.2}
    walk = lambda *lines: Walk({"0": {"curves": {"rloo": list(lines)}}})
    both, some = walk(line, line | {"step": 2, "part_correct": 0.1}), walk(line, {**line})
    assert both.column == some.column == "reward_countdown" and both.ends("rloo") == (20.0, 20.0)
    bare = walk({"step": 1, "reward": 0.5}, {"step": 3, "reward": 1.0})
    assert bare.label == "mean reward (points)" and bare.ends("rloo") == (0.5, 1.0)
    assert bare.say("rloo").endswith("rises by 0.50, from 0.50 to 1.00, in 3 steps.")
    assert walk({"step": 10, "loss": 0.6}).models == []


@pytest.mark.parametrize("report", ["online", "countdown"])
def test_the_runner_finds_the_report_and_missing_results_name_their_command(report, tmp_path):
    config = load_config(
        write_text(
            tmp_path / "toy.yaml",
            (
                f"experiment: toy\nstages:\n  sft: {{pipeline: sft, parameters: {{model: "
                f"data/tiny/base, dataset: tiny-world}}}}\nreport: {report}\n"
            ),
        )
    )
    notebook, parameters = find_report(config, tmp_path, "x")  # no run is needed
    assert notebook == ROOT / f"nbs/reports/{report}.ipynb" and parameters["output_dir"] == str(
        tmp_path / ".report.partial"
    )
    command = f"prefkit seeds data/configs/tiny/{report}.yaml --seeds 0,1,2"
    with pytest.raises(DataError, match=f"no such results. Make them: {command}"):
        draw_report(report, **{**parameters, "results": str(tmp_path / "none.json")})


def test_the_reports_models_are_those_of_their_configs():
    for config, models in (("online", PLAIN), ("countdown", RIGHT)):
        assert (
            list(stages(f"tiny/{config}.yaml")["evaluate"]["models"]) == list(models)
            and load_config(ROOT / f"data/configs/tiny/{config}.yaml").report == config
        )
    assert list(stages("lessons/countdown_lora.yaml")["evaluate"]["models"]) == list(LORA)
