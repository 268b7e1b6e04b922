"""Several seeds: each is run, what they found is gathered, and the interval knows how few they
are.
"""

import json

import pytest

from prefkit.runs import seeds
from prefkit.core import ConfigError, project_root, write_text
from prefkit.runs.config import write_pipeline


def found(rate, right):
    return {
        "win_rates": [
            {"model": "dpo", "reference": "sft", "judge": "gold", "rate": rate, "n": 1000}
        ],
        "scores": [
            {"model": "dpo", "gold": 4.0 + rate, "right": right, "second": 3.0, "tokens": 12.0}
        ],
        "wall_seconds": {"dpo": 1.0},
    }


def test_mean_over_seeds_agrees_with_scipy():
    from scipy import stats

    values = [0.61, 0.58, 0.66]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    made = seeds.mean_over_seeds(values)
    assert (made["low"], made["high"], made["seeds"]) == (
        pytest.approx(low),
        pytest.approx(high),
        3,
    )
    assert seeds.mean_over_seeds([0.5]) == {"mean": 0.5, "low": None, "high": None, "seeds": 1}


def test_over_seeds_gathers_every_comparison():
    made = seeds.over_seeds({0: found(0.6, 0.8), 1: found(0.7, 0.9)})
    (comparison,), (score,) = made["win_rates"], made["scores"]
    assert (comparison["model"], comparison["reference"], comparison["judge"]) == (
        "dpo",
        "sft",
        "gold",
    )
    assert comparison["rate"]["mean"] == pytest.approx(0.65) and score["right"][
        "mean"
    ] == pytest.approx(0.85)


def test_what_could_have_been_told_is_pooled_over_models():
    "By hand: two models, two seeds each, so one degree of freedom for the test and two for s."
    rates = {"dpo": (0.60, 0.70), "kto": (0.50, 0.52)}
    rows = [
        [
            {"model": model, "reference": "sft", "judge": "gold", "rate": values[seed], "n": 9}
            for model, values in rates.items()
        ]
        for seed in (0, 1)
    ]
    made = seeds.over_seeds({seed: {"win_rates": rows[seed]} for seed in (0, 1)})["win_rates"]
    spread = ((0.1**2 / 2 + 0.02**2 / 2) / 2) ** 0.5
    expected = (12.7062047 + 1.3763819) * spread / 2**0.5  # quantiles of Student's t, one degree
    assert [row["rate"]["detectable"] for row in made] == pytest.approx([expected] * 2)
    none = {"model": "base", "reference": "sft", "judge": "gold", "rate": None}
    whole = seeds.over_seeds({0: {"win_rates": [none, *rows[0]]}})["win_rates"]
    assert [row["model"] for row in whole] == ["base", "dpo", "kto"]  # a row without numbers stays
    alone = seeds.over_seeds({0: {"win_rates": rows[0]}})["win_rates"]
    assert [row["rate"]["detectable"] for row in alone] == [None, None]


def test_each_seed_is_an_experiment_of_its_own_and_the_file_says_how_it_was_made(
    tmp_path, monkeypatch
):
    asked = []

    class One:
        def __init__(self, folder):
            self.info = {
                "metrics": found(0.6 + folder / 100, 0.8),
                "wall_seconds": 2.0,
                "versions": {"torch": "x"},
            }

    def carry_out(experiments, progress, jobs):
        asked.extend(experiments)
        return [{"evaluate": number} for number in range(1, len(experiments) + 1)]

    monkeypatch.setattr(seeds, "load_config", lambda config, settings: settings)
    monkeypatch.setattr(seeds, "open_experiment", lambda settings, output_root: settings)
    monkeypatch.setattr(seeds, "carry_out", carry_out)
    monkeypatch.setattr(seeds, "open_run", One)
    config = tmp_path / "mine.yaml"
    config.write_text("experiment: mine\n")
    made = json.loads(seeds.run_seeds(config, [0, 3], tmp_path / "out.json").read_text())
    assert asked == [("seed=0", "experiment=mine-seed0"), ("seed=3", "experiment=mine-seed3")]
    assert (
        set(made["seeds"]) == {"0", "3"}
        and "--seeds 0,3" in made["command"]
        and made["versions"] == {"torch": "x"}
    )
    assert made["over_seeds"]["win_rates"][0]["rate"]["mean"] == pytest.approx(0.615)


def test_jobs_fill_across_seeds_and_another_seed_runs_alone(tmp_path, capsys, monkeypatch):
    "Each stage waits for the one of the other seed: one after the other they would wait in vain."
    write_pipeline(
        tmp_path / "meet.ipynb",
        'others: list[int] = []\nseed: int = 0\noutput_dir: str = ""',
        "import os, time\nfrom pathlib import Path\nfrom prefkit.runs.stage import finish",
        "place = Path(os.environ['MEETING'])\n"
        "(place / str(seed)).touch()\n"
        "until = time.monotonic() + 60\n"
        "while not all((place / str(other)).exists() for other in others):\n"
        "    assert time.monotonic() < until, 'nobody came'\n"
        "    time.sleep(0.05)",
        "rate = {'model': 'dpo', 'reference': 'sft', 'judge': 'gold', 'rate': 0.5 + seed / 10}\n"
        "finish(output_dir, metrics={'win_rates': [rate]})",
    )
    monkeypatch.setenv("MEETING", str(tmp_path))
    stages = {"meet": {"pipeline": "meet.ipynb", "parameters": {"others": [0, 1]}}}
    config = write_text(tmp_path / "toy.yaml", json.dumps({"experiment": "toy", "stages": stages}))

    def rates(*numbers):
        output = tmp_path / "out.json"
        seeds.run_seeds(config, list(numbers), output, (), tmp_path / "runs", "lines", 2)
        made = json.loads(output.read_text())["seeds"]
        return {seed: one["win_rates"][0]["rate"] for seed, one in made.items()}

    assert rates(0, 1) == {"0": 0.5, "1": 0.6}
    said = capsys.readouterr().out
    assert "toy-seed0/meet: runs" in said and "toy-seed1/meet: done in" in said
    assert rates(0, 1, 2) == {"0": 0.5, "1": 0.6, "2": 0.7}
    said = capsys.readouterr().out
    assert "toy-seed0/meet: already done" in said and "toy-seed2/meet: done in" in said
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"toy-seed{number}" for number in range(3)
    ]


def toy(tmp_path, text="0.5"):
    "A config whose one stage says at once what its rate is."
    write_pipeline(
        tmp_path / "say.ipynb",
        'start: float = 0.0\nseed: int = 0\noutput_dir: str = ""',
        "from prefkit.runs.stage import finish",
        "rate = {'model': 'dpo', 'reference': 'sft', 'judge': 'gold', 'rate': start + seed / 10}\n"
        "finish(output_dir, metrics={'win_rates': [rate]})",
    )
    stages = {"say": {"pipeline": "say.ipynb", "parameters": {"start": float(text)}}}
    return write_text(tmp_path / "toy.yaml", json.dumps({"experiment": "toy", "stages": stages}))


def test_what_others_have_added_meanwhile_is_kept(tmp_path, monkeypatch):
    config, output = toy(tmp_path), tmp_path / "out.json"
    others = seeds.run_seeds(config, [3], tmp_path / "other.json", (), tmp_path / "it", "quiet")
    carry_out = seeds.carry_out

    def while_another_writes(*given):
        found = carry_out(*given)
        output.write_text(others.read_text())
        return found

    monkeypatch.setattr(seeds, "carry_out", while_another_writes)
    seeds.run_seeds(config, [0], output, (), tmp_path / "here", "quiet", add=True)
    found = json.loads(output.read_text())
    assert list(found["seeds"]) == ["0", "3"] and "--seeds 0,3" in found["command"]
    assert found["seeds"]["3"] == json.loads(others.read_text())["seeds"]["3"]


def test_seeds_are_added_to_those_that_a_file_holds_wherever_they_were_run(tmp_path):
    config, output = toy(tmp_path), tmp_path / "out.json"
    seeds.run_seeds(config, [0], output, (), tmp_path / "here", "quiet")
    first = json.loads(output.read_text())
    seeds.run_seeds(config, [1, 0], output, (), tmp_path / "there", "quiet", add=True)
    both = json.loads(output.read_text())
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["toy-seed1"]
    assert both["seeds"]["0"] == first["seeds"]["0"] and list(both["seeds"]) == ["0", "1"]
    assert both["seeds"]["1"]["made"]["versions"] == both["versions"]
    assert "--seeds 0,1" in both["command"] and "--add" not in both["command"]
    [line] = both["over_seeds"]["win_rates"]
    assert line["rate"]["mean"] == pytest.approx(0.55) and line["rate"]["seeds"] == 2
    seeds.run_seeds(config, [1], output, (), tmp_path / "no", "quiet", add=True)  # nothing is left
    assert json.loads(output.read_text()) == both and not (tmp_path / "no").exists()


def test_seeds_of_another_config_or_file_are_not_added_to(tmp_path):
    output = tmp_path / "out.json"
    seeds.run_seeds(toy(tmp_path), [0], output, (), tmp_path / "runs", "quiet")
    held = output.read_text()
    for text, settings in (("0.7", ()), ("0.5", ("say.start=0.6",))):
        config = toy(tmp_path, text)
        with pytest.raises(ConfigError, match="another config") as caught:
            seeds.run_seeds(config, [1], output, settings, tmp_path / "runs", "quiet", add=True)
        assert (caught.value.field, caught.value.reason) == ("add", "another config")
    assert output.read_text() == held
    for broken in ("{", "[]", '{"seeds": {}}'):
        output.write_text(broken)
        with pytest.raises(ConfigError, match="no seeds can be added") as caught:
            seeds.run_seeds(toy(tmp_path), [1], output, (), tmp_path / "runs", "quiet", add=True)
        assert caught.value.reason == "no results of seeds" and output.read_text() == broken


def test_refuses_no_seeds_and_the_same_seed_twice(tmp_path):
    for wrong in ([], [1, 1]):
        with pytest.raises(ConfigError, match="different whole numbers"):
            seeds.run_seeds(tmp_path / "x.yaml", wrong)


def test_tables_of_other_evaluations_and_curves_are_gathered():
    one = lambda x: {
        "differences": [
            {
                "stage": "e",
                "model": "rloo",
                "reference": "sft",
                "n": 9,
                "right_difference": x,
                "right_difference_low": 0.0,
            }
        ],
        "scores": [{"stage": "e", "model": "rloo", "right": x}],
    }
    made = seeds.over_seeds({0: one(0.1), 1: one(0.3)})
    assert made["differences"][0]["right_difference"]["mean"] == pytest.approx(0.2) and set(
        made["differences"][0]
    ) == {"model", "reference", "right_difference"}
    assert "win_rates" not in made


def test_missing_results_name_the_command_that_makes_them():
    with pytest.raises(
        ConfigError, match="data/results/nothing.json is not there. Make it: prefkit seeds x.yaml"
    ):
        seeds.open_results("nothing.json", "prefkit seeds x.yaml")


def test_rows_of_several_ways_of_decoding_stay_apart():
    one = lambda x: {
        "scores": [
            {"model": "dpo", "decoding": "greedy", "token_limit": 64, "gold": x},
            {"model": "dpo", "decoding": "sampled", "token_limit": 64, "gold": -x},
        ]
    }
    greedy, sampled = seeds.over_seeds({0: one(1.0), 1: one(2.0)})["scores"]
    assert (greedy["decoding"], greedy["token_limit"], greedy["gold"]["mean"]) == (
        "greedy",
        64,
        1.5,
    ) and sampled["gold"]["mean"] == -1.5


def test_a_config_of_the_project_is_named_without_the_place_of_the_checkout():
    there = project_root() / "data/configs/tiny/online.yaml"
    for name in (there, "data/configs/tiny/online.yaml"):
        made = seeds._command(name, {"5": {}, "6": {}}, (), True)
        assert made == "prefkit seeds data/configs/tiny/online.yaml --seeds 5,6 --lines"
