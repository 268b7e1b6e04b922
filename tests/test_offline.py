"""The comparison of the offline methods: its configs, and its report on results whose numbers are
invented by a seed, only to test the drawing.
"""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefkit.report.offline import Grid, say_helped, say_judges, say_missed, say_reference
from prefkit.report.standings import Standings
from prefkit.runs.config import load_config, read_parameters
from prefkit.core import ConfigError, DataError, project_root, write_json, write_text
from prefkit.runs.fingerprints import check_stage
from prefkit.runs.runner import find_report, open_run, run
from prefkit.runs.seeds import over_seeds
from prefkit.runs.search import load_search
from prefkit.runs.studies import load_study
from helpers.pages import Reader, draw_report, words_of as words

ROOT = project_root()
REPORT = ROOT / "nbs" / "reports" / "offline.ipynb"
CONFIGS = ROOT / "data" / "configs"
METHODS = (
    "dpo",
    "ipo",
    "dpop",
    "minor_dpo",
    "xpo",
    "simpo",
    "orpo",
    "probability_ratio",
    "kto",
    "topr",
)


def stages(name):
    return {stage.name: stage for stage in load_config(CONFIGS / name).stages}


def is_study(path):
    return "\nstudy:" in "\n" + path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What some experiments take from the runs of another: a reward model, and a language model for
    every other checkpoint.
    """
    from transformers import AutoTokenizer
    from prefkit.judging.reward_model import scalar_head

    folder, base = tmp_path_factory.mktemp("reward_model"), ROOT / "data/tiny/base"
    (
        scalar_head(str(base)).save_pretrained(folder),
        AutoTokenizer.from_pretrained(base).save_pretrained(folder),
    )
    return {
        r"data/runs/\S+/reward_model\w*/checkpoint": str(folder),
        r"data/runs/\S+?/checkpoint": str(base),
        "data/models/smollm2": str(base),
    }


@pytest.mark.parametrize(
    "path", sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
)
def test_every_config_loads_and_passes_the_checks_of_its_pipelines(path, tmp_path, stand_ins):
    if path.startswith("searches/"):
        assert load_search(CONFIGS / path).space
    elif is_study(CONFIGS / path):
        assert load_study(CONFIGS / path).runs
    else:
        text = (CONFIGS / path).read_text(encoding="utf-8")
        if "$PREFKIT_REAL_DATA" in text and "PREFKIT_REAL_DATA" not in os.environ:
            pytest.skip("PREFKIT_REAL_DATA names no folder of real samples")
        for pattern, there in stand_ins.items():
            text = re.sub(pattern, there, text)
        if path.startswith("colab/"):  # for a GPU: a CPU refuses fp16 by name
            text = text.replace("precision: fp16", "precision: float32")
        for stage in load_config(write_text(tmp_path / "config.yaml", text)).stages:
            # those name a file that the user gives
            if not path.startswith("smoke/"):
                check_stage(stage)


def family(method):
    return method.removesuffix("_per_token")


def test_the_grid_gives_every_method_and_the_control_as_many_tries():
    grid = load_study(CONFIGS / "tiny/offline_grid.yaml")
    tries = Counter(family(run.method) for run in grid.runs)
    assert set(tries) == {"sft", *METHODS} and len(set(tries.values())) == 1
    assert min(tries.values()) >= 5 and grid.output == ROOT / "data/results/grids/offline.json"
    assert (
        len(
            {
                (
                    run.settings["max_steps"],
                    run.data["limit"],
                    run.data["answers"],
                    run.settings["schedule"],
                )
                for run in grid.runs
            }
        )
        == 1
        and grid.evaluate["prompts"] == 400
    )
    # answers a step
    assert {
        run.settings["batch_size"] * (1 if family(run.method) in ("kto", "topr") else 2)
        for run in grid.runs
        if run.method != "sft"
    } == {64}


def test_what_reports_state_is_in_the_grid_and_every_value_in_the_middle_has_one_on_each_side():
    runs = load_study(CONFIGS / "tiny/offline_grid.yaml").runs
    for method, name, value in (("dpo", "beta", 0.5), ("orpo", "lam", 0.1), ("dpop", "lam", 50.0)):
        assert value in [run.hyperparameters[name] for run in runs if run.method == method]
    for method in ("sft", *METHODS):
        mine = [run for run in runs if family(run.method) == method]
        assert len({run.settings["learning_rate"] for run in mine}) >= 3, method


def test_the_comparison_has_every_method_from_the_sft_of_the_first_path():
    found, first, grid = (
        stages("tiny/offline.yaml"),
        stages("tiny/first_path.yaml"),
        load_study(CONFIGS / "tiny/offline_grid.yaml").runs,
    )
    assert found["sft"].parameters == first["sft"].parameters
    used = {
        stage.parameters.get("method"): stage.parameters
        for stage in found.values()
        if stage.pipeline.stem == "preference"
    }
    assert set(map(family, used)) == set(METHODS)
    assert {
        name: stage.parameters["model"]
        for name, stage in found.items()
        if "model" in stage.parameters and stage.parameters["model"] != "stage:sft"
    } == {"sft": "data/tiny/base", "orpo_v1_2": "data/tiny/base"}
    assert (
        found["control"].parameters["answers"] == "chosen"
        and found["orpo_v1_2"].parameters["max_steps"] > grid[0].settings["max_steps"]
    )
    tuned = [
        stage.parameters
        for name, stage in found.items()
        if name not in ("sft", "evaluate", "orpo_v1_2")
    ]
    assert all(
        (each["max_steps"], each["limit"], each["schedule"], each["warmup_ratio"])
        == (grid[0].settings["max_steps"], grid[0].data["limit"], "linear", 0.1)
        for each in tuned
    )
    evaluate = found["evaluate"].parameters
    assert (
        set(evaluate["models"]) == {"base", *found} - {"evaluate"}
        and evaluate["references"] == list(evaluate["models"])[:3] == ["base", "sft", "control"]
        and evaluate["prompts"] >= 1000
    )
    assert all(
        set(parameters["hyperparameters"])
        <= set().union(
            *(run.hyperparameters for run in grid if family(run.method) == family(method))
        )
        for method, parameters in used.items()
    )


@pytest.mark.parametrize("path", ["tiny/offline.yaml", "l4/comparison.yaml"])
def test_the_reports_three_orpo_runs_differ_in_start_and_loss_alone(path):
    found = stages(path)
    one, two, three = (found[f"orpo_v1_{number}"].parameters for number in (1, 2, 3))
    start = "sft" if "sft" in found else "sft_v2_6"
    assert one["model"] == three["model"] == f"stage:{start}"
    assert two["model"] == found[start].parameters["model"]
    assert three["hyperparameters"]["nll_weight"] == 0.0 and "nll_weight" not in {
        **one["hyperparameters"],
        **two["hyperparameters"],
    }
    if path.startswith("l4"):
        assert {
            name for name in one if len({str(each[name]) for each in (one, two, three)}) > 1
        } == {"model", "hyperparameters"}
        assert (
            one["learning_rate"],
            one["hyperparameters"]["lam"],
            one["max_length"],
            one["gradient_accumulation"],
            one["dataset"],
        ) == (8e-6, 0.1, 512, 8, "ultrafeedback_binarized")


def test_the_evaluation_compares_with_the_references_named_before_a_model(tmp_path):
    config = write_text(
        tmp_path / "toy.yaml",
        """experiment: toy
stages:
  evaluate:
    pipeline: evaluate
    parameters:
      models: {a: data/tiny/base, b: data/tiny/base, c: data/tiny/base, d: data/tiny/instruct}
      references: [b]
      prompts: 6
      max_new_tokens: 4
      start: b
      start_prompts: 4
      spreads: true
""",
    )
    info = open_run(run(config, (), tmp_path, "quiet")["evaluate"]).info
    wins = info["metrics"]["win_rates"]
    assert {(row["model"], row["reference"]) for row in wins} == {("c", "b"), ("d", "b")}
    assert len(info["metrics"]["scores"]) == 4
    # one model, one seed: the same answers
    same = [row for row in wins if row["model"] == "c"]
    assert all(row["rate"] == 0.5 and row["ties"] == 6 for row in same)
    far = {row["model"]: row for row in info["metrics"]["distances"]}
    assert far.keys() == {"a", "c", "d"} and {row["start"] for row in far.values()} == {"b"}
    assert abs(far["c"]["kl"]) < 1e-4 and far["d"]["kl"] > 0.1 and far["d"]["n"] == 4
    spread = {(row["model"], row["judge"]): row for row in info["metrics"]["spreads"]}
    assert len(spread) == 8 and spread["a", "gold"]["q50"] == spread["c", "gold"]["q50"]
    for row in spread.values():
        ends = [row[f"q{5 * place:02d}"] for place in range(21)]
        assert ends == sorted(ends)
    told = info["metrics"]["answers"]
    assert len({one["prompt"] for one in told}) == len({one["row"] for one in told}) == 6
    for one in told:
        assert list(one["answers"]) == list("abcd") and one["answers"]["a"] == one["answers"]["c"]
        assert set(one["answers"]["d"]) == {"text", "tokens", "ended", "gold", "second"}
    with pytest.raises(ConfigError, match="references: 'e' is none of the models a, b, c"):
        run(config, ["evaluate.references=[e]"], tmp_path, "quiet")


# The report.


def invented(rates, seeds=3, sd=0.01):
    "What `prefkit seeds` writes, for models with these gold win rates against SFT."
    rng, found = np.random.default_rng(0), {}
    models = ["base", "sft", "control", *rates]
    for seed in range(seeds):
        strength = {"base": 0.3, "sft": 0.5, "control": 0.51, **rates} | {}
        strength = {name: value + rng.normal(0, sd) for name, value in strength.items()}
        rows = [
            {
                "model": model,
                "reference": reference,
                "judge": judge,
                "rate": float(np.clip(0.5 + scale * (strength[model] - strength[reference]), 0, 1)),
                "low": 0.4,
                "high": 0.6,
                "n": 1000,
                "wins": 1,
                "ties": 0,
            }
            for place, model in enumerate(models)
            for reference in models[: min(place, 3)]
            for judge, scale in (("gold", 1.0), ("second", -1.0))
        ]
        scores = [
            {
                "model": name,
                "gold": 3 * value,
                "right": float(np.clip(value, 0, 1)),
                "second": 3.0,
                "tokens": 15 + 10 * value,
            }
            for name, value in strength.items()
        ]
        found[seed] = {"win_rates": rows, "scores": scores, "wall_seconds": {}}
    about = {
        "git": {"revision": "0" * 40, "dirty": False},
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "device": "cpu",
        "threads": 2,
    }
    return {
        "command": "prefkit seeds data/configs/tiny/offline.yaml --seeds 0,1,2",
        "date": "2026-01-01",
        "config": "0",
        **about,
        "over_seeds": over_seeds(found),
        "seeds": {str(seed): value for seed, value in found.items()},
    }


def invented_grid(fails="dpo learning_rate=0.0002"):
    "What `prefkit study` writes."
    study, rng, runs = load_study(CONFIGS / "tiny/offline_grid.yaml"), np.random.default_rng(1), []
    for each in study.runs:
        rate, bad = float(rng.uniform(0.45, 0.65)), each.name == fails
        judged = {
            "n": 400,
            "gold": 2.0,
            "right": 0.7,
            "second": 3.0,
            "tokens": 17.0,
            "repetition": 0.01,
            **{
                name: {"rate": rate, "low": rate - 0.04, "high": rate + 0.04}
                for name in ("win_rate", "second_win_rate")
            },
        }
        runs.append(
            {
                "name": each.name,
                "method": each.method,
                "hyperparameters": each.hyperparameters,
                "settings": {**each.settings, **each.data},
                "lines": [],
                "evaluation": None if bad else judged,
                "examples": [],
                **({"error": "step 7: the loss is nan"} if bad else {}),
            }
        )
    return {
        "study": study.name,
        "command": "prefkit study data/configs/tiny/offline_grid.yaml",
        "date": "2026-01-01",
        "git": {"revision": None, "dirty": None},
        "versions": {"python": "3.11"},
        "device": "cpu",
        "seed": 0,
        "evaluate": study.evaluate,
        "runs": runs,
    }


RATES = {
    name: 0.5 for name in stages("tiny/offline.yaml") if name not in ("sft", "control", "evaluate")
} | {"kto": 0.8, "dpo": 0.7, "ipo": 0.62, "topr": 0.3}


def draw(folder: Path, results: dict, grid: dict | None) -> Path:
    write_json(folder / "results.json", results)
    if grid:
        write_json(folder / "grid.json", grid)
    given = {name: str(folder / f"{name}.json") for name in ("results", "grid")}
    draw_report("offline", output_dir=str(folder / "report"), **given)
    return folder / "report"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("offline"), invented(RATES), invented_grid())


def test_the_page_has_every_part_and_loads_nothing(drawn):
    page, text = Reader((drawn / "report.html").read_text(encoding="utf-8")), words(drawn)
    assert page.open == [] and all(
        source.startswith("data:image/png;base64,") for source in page.loaded
    )
    assert (
        {path.stem for path in (drawn / "figures").glob("*.png")}
        == {"win_rates_sft", "win_rates_control", "share_right", "length"}
        == {path.stem for path in (drawn / "figures").glob("*.csv")}
    )
    for part in (
        "What came out",
        "Methods that did not help",
        "Who wins",
        "Right answers and length",
        "How the settings were found",
        "Seed by seed",
        "Made with",
        "prefkit seeds",
        "prefkit study",
        "MinorDPO",
        "ORPO V1.2",
        "ORPO V1.2 starts from the base model",
    ):
        assert part in text, part


def test_methods_that_win_and_that_do_not_are_named(drawn):
    text, results = words(drawn), invented(RATES)
    rates = {
        row["model"]: row["rate"]
        for row in results["over_seeds"]["win_rates"]
        if row["reference"] == "sft" and row["judge"] == "gold"
    }
    won = {model for model in RATES if rates[model]["low"] > 0.5}
    assert {"kto", "dpo", "ipo"} <= won and "topr" not in won and rates["topr"]["high"] < 0.5
    kto = rates["kto"]
    assert (
        f"KTO {100 * kto['mean']:.1f} % [{100 * kto['low']:.1f}, {100 * kto['high']:.1f}]" in text
        and f"{len(RATES) - len(won)} of {len(RATES)} methods did not help against SFT" in text
    )
    assert re.search(
        r"TOPR: it loses to SFT, [\d.]+ % \[[\d.]+, [\d.]+\]; it loses to control", text
    ) and not re.search(r"(?<!\w)KTO: it", text)
    table = pd.read_csv(drawn / "tables" / "methods.csv").set_index("model")
    assert table.loc["kto", "win_sft_gold_mean"] == pytest.approx(kto["mean"])


def test_another_verdict_of_the_second_judge_is_said(drawn):
    # it was given the opposite taste
    assert re.search(
        (
            r"Against SFT the second judge comes to another verdict on \d+ of 12 methods: .*KTO "
            r"\([\d.]+ % \["
        ),
        words(drawn),
    )


def test_the_grid_is_shown_and_a_setting_that_is_not_its_best_is_said(drawn):
    grid, table = invented_grid(), pd.read_csv(drawn / "tables" / "grid.csv")
    assert (
        len(table) == len(grid["runs"])
        and (table["best"] == "best").sum() == 11
        and "failed: step 7: the loss is nan" in words(drawn)
    )
    best = max(
        (run for run in grid["runs"] if run["method"] == "kto"),
        key=lambda run: run["evaluation"]["win_rate"]["rate"],
    )
    used = stages("tiny/offline.yaml")["kto"].parameters
    differs = (
        used["learning_rate"] != best["settings"]["learning_rate"]
        or used["hyperparameters"].items() - best["hyperparameters"].items() != set()
    )
    assert ("KTO was compared with" in words(drawn)) == differs


def test_no_effect_is_called_no_effect_and_the_grid_may_be_missing(tmp_path):
    results = invented(dict.fromkeys(RATES, 0.505), sd=0.02)
    not_won = sum(
        row["rate"]["low"] <= 0.5
        for row in results["over_seeds"]["win_rates"]
        if row["model"] in RATES and (row["reference"], row["judge"]) == ("sft", "gold")
    )
    text = words(draw(tmp_path, results, None))
    assert (
        not_won >= 10
        and "cannot be told apart from" in text
        and f"{not_won} of 12 methods did not help against SFT" in text
        and "How the settings were found" not in text
    )


def test_one_seed_has_the_interval_over_its_prompts(tmp_path):
    results = invented(RATES, seeds=1)
    for row in results["seeds"]["0"]["win_rates"]:
        row |= {"low": row["rate"] - 0.03, "high": row["rate"] + 0.03}
    text, rate = (
        words(draw(tmp_path, results, None)),
        next(
            row["rate"]["mean"]
            for row in results["over_seeds"]["win_rates"]
            if (row["model"], row["reference"], row["judge"]) == ("kto", "sft", "gold")
        ),
    )
    assert (
        "not what another seed would" in text
        and "nan" not in text
        and f"KTO {100 * rate:.1f} % [{100 * rate - 3:.1f}, {100 * rate + 3:.1f}]" in text
    )


def test_the_same_results_give_the_same_page(drawn, tmp_path):
    again = draw(tmp_path, invented(RATES), invented_grid())
    assert (again / "report.html").read_bytes() == (drawn / "report.html").read_bytes()


def test_results_that_are_missing_name_the_command(tmp_path):
    with pytest.raises(DataError, match="prefkit seeds data/configs/tiny/offline.yaml") as error:
        draw_report("offline", results=str(tmp_path / "none.json"), output_dir=str(tmp_path))
    assert (error.value.field, error.value.reason) == ("results", "missing")


def standings_of(seeds, **rates):
    "Standings of models with the same (rate, low, high) against SFT in every seed."
    models = ["base", "sft", "control", *rates]
    scores = [{"model": name, "gold": 1.0, "right": 0.5, "tokens": 9.0} for name in models]
    ends = lambda rate: dict(zip(("rate", "low", "high"), rate))
    wins = [
        {"model": name, "reference": reference, "judge": judge, "n": 10, **ends(rate)}
        for name, rate in rates.items()
        for reference in ("sft", "control")
        for judge in ("gold", "second")
    ]
    found = {seed: {"scores": scores, "win_rates": wins, "wall_seconds": {}} for seed in seeds}
    over = over_seeds(found)
    for row in over["win_rates"] if len(found) > 1 else ():
        row["rate"] |= dict(zip(("mean", "low", "high"), rates[row["model"]]))
    return Standings({"over_seeds": over, "seeds": found})


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_method_wins_only_where_its_interval_leaves_one_half(seeds):
    found = standings_of(seeds, a=(0.6, 0.51, 0.7), b=(0.6, 0.5, 0.7), c=(0.4, 0.3, 0.49))
    assert [found.verdict(name, "sft") for name in "abc"] == [1, 0, -1]
    assert found.methods == ["a", "b", "c"] and found.compared == ["sft", "control"]
    assert found.candidates("sft") == ["control", "a", "b", "c"]
    assert found.candidates("control") == ["a", "b", "c"]
    assert say_reference(found, "sft") == [
        "Of 3 methods 1 wins against SFT, by the gold reward: a 60.0 % [51.0, 70.0].",
        "Of 3 methods 1 loses to SFT, by the gold reward: c 40.0 % [30.0, 49.0].",
        "Of 3 methods 1 cannot be told apart from SFT, by the gold reward: b 60.0 % [50.0, 70.0].",
    ]
    assert say_missed(found, "a") == "" and say_missed(found, "b").startswith("b: it cannot be")
    assert say_helped(found, "sft").startswith("2 of 3 methods did not help against SFT")
    assert say_judges(found, "sft").endswith("the same verdict on every method.")


def test_intervals_over_seeds_stay_within_their_bounds():
    found = standings_of((0, 1), a=(0.99, 0.9, 1.2), b=(0.01, -0.2, 0.1))
    assert found.win("a", "sft") == (0.99, 0.9, 1.0) and found.win("b", "sft") == (0.01, 0.0, 0.1)


def test_one_seed_has_intervals_only_where_they_were_taken():
    found = standings_of((0,), a=(0.6, 0.5, 0.7))
    assert found.alone and np.isnan(found.score("a", "right")[1])
    found.first["scores"][3] |= {"right_low": 0.4, "right_high": 0.6}
    assert Standings(found.results).score("a", "right", 100) == (50.0, 40.0, 60.0)


def test_the_grid_tells_what_varies_and_what_is_no_default():
    def run(rate, method="kto", **hyperparameters):
        judged = {"win_rate": {"rate": rate, "low": 0, "high": 1}} if rate else None
        settings = {"learning_rate": 1e-4 if rate else 2e-4}
        return dict(
            method=method, hyperparameters=hyperparameters, settings=settings, evaluation=judged
        )

    tries = [run(0.5, beta=0.1), run(0.6, "kto_per_token", beta=0.1), run(None, beta=0.3)]
    grid = Grid(tries, lambda method: {"beta": 0.1, "learning_rate": 1e-4})
    assert grid.best == {"kto": tries[1]} and grid.varied == {
        "kto": {"method", "learning_rate", "beta"}
    }
    assert grid.say(grid.setting(tries[1])) == "per token, learning_rate 0.0001, beta 0.1"
    used = {"method": "kto_per_token", "learning_rate": 1e-4, "hyperparameters": {"beta": 0.1}}
    assert grid.departures({"kto": used}, {}) == []
    assert grid.edges() == [
        "KTO: learning_rate 0.0001, the smallest that was tried.",
        "KTO: beta 0.1, the smallest that was tried.",
    ]
    assert grid.departures({"kto": used | {"learning_rate": 3e-4}}, {}) == [
        "KTO was compared with per token, learning_rate 0.0003, beta 0.1, and the grid's best has "
        "per token, learning_rate 0.0001, beta 0.1."
    ]


def test_a_report_of_results_needs_no_run(tmp_path):
    config = load_config(CONFIGS / "tiny/offline.yaml")
    notebook, parameters = find_report(config, tmp_path, "x")
    assert (
        notebook == REPORT
        and parameters["output_dir"] == str(tmp_path / ".report.partial")
        and "runs_dir" not in read_parameters(notebook)
    )
    with pytest.raises(ConfigError, match="not finished yet"):
        find_report(load_config(CONFIGS / "tiny/first_path.yaml"), tmp_path, "x")
