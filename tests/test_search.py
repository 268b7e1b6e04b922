"""A search for settings: configs, trials in processes, killed and gone on with, several workers,
given up, and never judged by test data.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock, Timeout

from prefkit.core import ConfigError, shipped, write_text
from prefkit.report.search import draw_importance, draw_landscape
from prefkit.runs import search as module
from prefkit.runs.config import load_config, write_pipeline
from prefkit.runs.pipelines import LABELS, check_questions
from prefkit.runs.search import Range, edges, load_search, run_search

optuna = pytest.importorskip("optuna")

TRAIN = """\
rate: float = 1.0e-3
hyperparameters: dict = {}
start: str = ""
seed: int = 0
seconds: float = 0.0
output_dir: str = ""
"""
TRAINS = """
import json, time
from pathlib import Path
from prefkit.runs.stage import finish

folder = Path(output_dir)
(folder / "checkpoint").mkdir(exist_ok=True)
with open(folder.parent.parent / "began.txt", "a") as file:
    file.write(f"{folder.parent.name}\\n")
worth = 1 - abs(rate - 0.02) * 20 - abs(hyperparameters.get("beta", 0.2) - 0.2)
with open(folder / "metrics.jsonl", "w") as file:
    for step in (1, 2, 3):
        file.write(json.dumps({"step": step, "split": "validation", "loss": -worth * step}) + "\\n")
        file.flush()
        time.sleep(seconds / 3)
if rate > 0.09:
    raise ValueError("the loss is no number")
finish(folder, metrics={"scores": [{"model": "mine", "judge": "gold", "rate": worth}]})
"""


def experiment(folder, **parameters):
    "A config of two stages: one that all trials share, one that is searched."
    write_pipeline(folder / "train.ipynb", TRAIN, TRAINS)
    train = {"pipeline": "train.ipynb", "parameters": {"start": "stage:base", **parameters}}
    stages = {"base": {"pipeline": "train.ipynb", "parameters": {"rate": 0.05}}, "train": train}
    for stage in stages.values():
        stage["pipeline"] = str(folder / stage["pipeline"])
    write_text(folder / "own.yaml", yaml.safe_dump({"experiment": "own", "stages": stages}))


def config_of(folder, **changes):
    made = {
        "search": "few",
        "config": "own.yaml",
        "space": {
            "train.rate": {"low": 0.001, "high": 0.08, "log": True},
            "train.hyperparameters.beta": {"choices": [0.1, 0.2, 0.4]},
        },
        "trials": 4,
        "objective": {
            "stage": "train",
            "table": "scores",
            "where": {"judge": "gold"},
            "column": "rate",
            "direction": "maximize",
        },
        "output": str(folder / "found.json"),
        **changes,
    }
    return write_text(folder / "few.yaml", yaml.safe_dump(made))


def begun(folder):
    return (folder / "runs/searches/few/began.txt").read_text().split()


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


# ---- the config


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"space": {"train.rat": {"low": 1, "high": 2}}}, "rat"),
        ({"space": {"train.rate": {"low": 2, "high": 1}}}, "high"),
        ({"space": {"train.rate": {"low": 0, "high": 1, "log": True}}}, "low"),
        ({"space": {"train.rate": {"choices": [1.0]}}}, "two or more"),
        ({"space": {"train.rate": {"choices": ["fast", "slow"]}}}, "rate"),
        ({"sampler": "best"}, "sampler"),
        ({"sampler": "grid"}, "choices for every"),
        ({"trials": 0}, "trials"),
        (
            {"objective": {"stage": "tran", "column": "rate", "direction": "maximize"}},
            "Did you mean `train`",
        ),
        (
            {"objective": {"stage": "base", "column": "loss", "direction": "minimize"}},
            "nothing that is searched",
        ),
        ({"objective": {"stage": "train", "column": "loss"}}, "direction"),
        ({"trails": 3}, "trails"),
    ],
)
def test_what_is_wrong_with_a_config_is_said_before_anything_runs(changes, said, tmp_path):
    experiment(tmp_path)
    with pytest.raises(ConfigError, match=said):
        load_search(config_of(tmp_path, **changes))
    assert not (tmp_path / "runs").exists()


def test_what_a_stage_would_refuse_is_refused_before_any_trial(tmp_path):
    raw = yaml.safe_load(shipped("data/configs/searches/dpo_tiny.yaml").read_text())
    raw["config"] = str(shipped("data/configs/tiny/demo.yaml"))
    raw["set"]["evaluate.models"] = {"dpo": "stage:dpo", "sft": "stage:sft"}
    with pytest.raises(ConfigError, match="sft stands after every other model"):
        load_search(write_text(tmp_path / "a.yaml", yaml.safe_dump(raw)))


def test_settings_keep_their_order(tmp_path):
    "Of two models the first is the reference."
    found = load_search(shipped("data/configs/searches/dpo_tiny.yaml"))
    assert "evaluate.models={sft: 'stage:sft', dpo: 'stage:dpo'}" in found.settings


def test_one_value_goes_to_several_places(tmp_path):
    "A system prompt belongs to all stages: `A.x, B.x` is one line of the space."
    experiment(tmp_path)
    both = "base.rate, train.rate"
    space = {both: {"choices": [0.02, 0.03]}, "train.hyperparameters.beta": {"choices": [0.1, 0.2]}}
    path = config_of(tmp_path, space=space, sampler="grid")
    search = load_search(path)
    trials = module.Trials(search, tmp_path / "runs")
    assert search.many == 4 and trials.own == {"base", "train"} and not trials.shared
    made = yaml.safe_load(
        trials.write({both: 0.03, "train.hyperparameters.beta": 0.2}, {}).read_text()
    )
    assert [made["stages"][name]["parameters"]["rate"] for name in ("base", "train")] == [0.03] * 2
    with pytest.raises(ConfigError, match="rat"):
        load_search(config_of(tmp_path, space={"base.rate, train.rat": {"choices": [0.1, 0.2]}}))


def test_nothing_is_chosen_on_test_data():
    found = load_search(shipped("data/configs/searches/dpo_tiny.yaml"))
    assert "evaluate.split=validation" in found.settings
    raw = yaml.safe_load(shipped("data/configs/searches/dpo_tiny.yaml").read_text())
    raw["config"] = str(shipped("data/configs/tiny/demo.yaml"))
    raw["set"].pop("evaluate.split")
    text = yaml.safe_dump(raw)
    path = write_text(shipped("data/configs/searches").parent / "smoke" / ".test_search.yaml", text)
    try:
        with pytest.raises(ConfigError, match="chosen by test data"):
            load_search(path)
    finally:
        path.unlink()


def test_validation_lines_are_not_those_of_test_data_either(tmp_path):
    raw = yaml.safe_load(shipped("data/configs/searches/dpo_tiny.yaml").read_text())
    raw["config"] = str(shipped("data/configs/tiny/demo.yaml"))
    raw["objective"] = {"stage": "dpo", "column": "loss", "direction": "minimize"}
    load_search(write_text(tmp_path / "a.yaml", yaml.safe_dump(raw)))
    raw["set"]["dpo.validation_split"] = "test"
    with pytest.raises(ConfigError, match="dpo.validation_split: validation"):
        load_search(write_text(tmp_path / "b.yaml", yaml.safe_dump(raw)))


def test_the_presets_are_the_reports_searches():
    dpo, orpo = (
        load_search(shipped(f"data/configs/searches/{name}_report.yaml"))
        for name in ("dpo", "orpo")
    )
    assert (dpo.trials, orpo.trials) == (25, 20)
    rate, beta = dpo.space.values()
    assert (rate.ends, rate.log, beta.ends) == ((1e-6, 5e-5), True, (0.1, 0.5))
    rate, lam = orpo.space.values()
    assert (rate.ends, lam.ends) == ((1e-6, 5e-5), (0.03, 0.3))


def test_the_second_reports_grids_are_presets_and_ten_of_its_fifty_four_are_drawn():
    one = {
        name: load_search(shipped(f"data/configs/searches/{name}_second_report.yaml"))
        for name in ("dpo", "xpo", "ipo", "rloo")
    }
    whole = {name: (search.many, len(search.grid())) for name, search in one.items()}
    assert whole == {"dpo": (16, 16), "xpo": (16, 16), "ipo": (8, 8), "rloo": (10, 54)}
    rates = (1e-7, 2e-7, 5e-7, 1e-6)
    assert all(
        one[name].space[f"{stage}.learning_rate"].choices == rates
        for name, stage in (("dpo", "dpo_5k"), ("xpo", "xpo_01"), ("ipo", "ipo"))
    )
    assert [r.choices for n, r in one["xpo"].space.items() if "rate" not in n] == [
        (0.05, 0.1),
        (0.01, 0.1),
    ]
    drawn = one["rloo"].grid()[:10]
    assert len({json.dumps(values) for values in drawn}) == 10
    # a draw by the seed, not the first ten of the product; each value of each is among them
    assert all(
        {values[name] for values in drawn} == set(range_.choices)
        for name, range_ in one["rloo"].space.items()
    )


@pytest.mark.parametrize("name", ["second_report", "tiny"])
def test_system_prompt_template_and_mask_are_swept(name):
    "All 27 settings; one system prompt for all rows of a trial, none of which is left without."
    search = load_search(shipped(f"data/configs/searches/prompts_{name}.yaml"))
    assert search.many == len(search.grid()) == 27
    places, template, labels = search.space
    assert (template, labels) == ("sft.chat_template", "sft.labels")
    raw = yaml.safe_load(search.config.read_text(encoding="utf-8"))
    reads = module._above(load_config(search.config, search.settings), search.objective.stage)
    assert {place.split(".")[0] for place in module._places(places)} == reads
    assert reads <= set(raw["stages"]) and search.space[places].choices[0] == ""
    for text in search.space[places].choices:
        for shape in search.space[template].choices:
            check_questions("data/tiny/base", shape, ["What is 1 plus 2?"], text)
    assert set(search.space[labels].choices) == set(LABELS)


def test_a_value_at_an_end_is_told(tmp_path):
    range_ = Range(low=1e-6, high=1e-4, log=True)
    assert [range_.at_edge(v) for v in (1e-6, 1.05e-6, 1e-5, 9.9e-5)] == [
        "lower",
        "lower",
        "",
        "upper",
    ]
    choices = Range(choices=(0.1, 0.2, 0.4))
    assert [choices.at_edge(v) for v in choices.choices] == ["lower", "", "upper"]
    assert Range(choices=("linear", "cosine")).at_edge("linear") == ""
    experiment(tmp_path)
    search = load_search(config_of(tmp_path))
    best = {"values": {"train.rate": 0.08, "train.hyperparameters.beta": 0.2}}
    assert edges(search, best, []) == {"train.rate": "upper"}
    beta = {"train.hyperparameters.beta": 0.2}
    done = [{"values": {"train.rate": 0.01 * n, **beta}} for n in range(1, 6)]
    assert edges(search, done[-1], done) == {"train.rate": "upper"}
    assert edges(search, done[0], done) == {"train.rate": "lower"}
    assert edges(search, done[2], done) == edges(search, done[3], done[:4]) == {}
    assert edges(search, None, done) == {}


# ---- the search


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    experiment(folder)
    run_search(config_of(folder), output_root=folder / "runs")
    return folder, read_json(folder / "found.json")


def test_trials_are_experiments_and_the_best_is_the_best(found):
    folder, made = found
    assert made["complete"] and [one["state"] for one in made["trials"]] == ["complete"] * 4
    for one in made["trials"]:
        rate, beta = (one["values"][f"train.{name}"] for name in ("rate", "hyperparameters.beta"))
        assert one["objective"] == pytest.approx(1 - abs(rate - 0.02) * 20 - abs(beta - 0.2))
    assert made["best"]["objective"] == max(one["objective"] for one in made["trials"])
    assert begun(folder).count("shared") == 1 and len(begun(folder)) == 5
    configs = list((folder / "runs/searches/few/trials").glob("*.yaml"))
    assert len(configs) == 4 and "checkpoint" in configs[0].read_text()
    assert (folder / "runs/searches/few/landscape.png").is_file()


def test_what_is_done_is_not_done_again_and_more_may_be_asked_for(found):
    folder, made = found
    run_search(folder / "few.yaml", output_root=folder / "runs")
    assert len(begun(folder)) == 5
    again = read_json(folder / "found.json")
    assert again["trials"] == made["trials"]


def test_another_space_needs_another_name(found):
    folder, _ = found
    other = config_of(folder, space={"train.rate": {"low": 0.002, "high": 0.08}})
    with pytest.raises(ConfigError, match="another space"):
        run_search(other, output_root=folder / "runs")
    config_of(folder)


def test_choices_that_are_texts_stand_under_their_points():
    space = {"sft.system_prompt, dpo.system_prompt": ["", "You are a coding assistant"]}
    space["sft.labels"] = ["response", "response_without_end"]
    trials = [
        {"state": "complete", "number": n, "objective": n / 4, "values": dict(zip(space, values))}
        for n, values in enumerate(itertools.product(*space.values()))
    ]
    about = {"stage": "evaluate", "column": "gold"}
    spaces = {name: {"choices": choices} for name, choices in space.items()}
    found = {"space": spaces, "trials": trials, "best": trials[-1], "objective": about}
    left, right = draw_landscape(found).axes
    assert left.get_xlabel() == "sft.system_prompt\ndpo.system_prompt"
    told = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in (left, right)]
    assert told[0] == ['""', "You are a\ncoding\nassistant"]
    assert told[1] == ["response", "response_\nwithout_end"]
    marked = [list(axes.lines[1].get_xdata()) for axes in (left, right)]
    assert marked == [[one[-1]] for one in told]


def test_pictures_of_a_search():
    trials = [
        {
            "state": "complete",
            "values": {"a.rate": 10.0**-n, "a.kind": "xy"[n % 2]},
            "objective": n / 9,
            "number": n,
        }
        for n in range(9)
    ]
    told = {
        "trials": trials,
        "best": trials[-1],
        "space": {
            "a.rate": {"low": 1e-9, "high": 1, "log": True},
            "a.kind": {"choices": ["x", "y"]},
        },
        "objective": {"stage": "a", "column": "rate"},
        "importance": {"a.rate": 0.9, "a.kind": 0.1},
    }
    fig = draw_landscape(told)
    assert [axes.get_xscale() for axes in fig.axes] == ["log", "linear"] and len(fig.data) == 9
    assert "a.rate" in draw_importance(told).get_suptitle()


@pytest.mark.slow
def test_killed_and_gone_on_with_no_trial_is_lost_or_doubled(tmp_path):
    experiment(tmp_path, seconds=3.0)
    config = config_of(tmp_path, trials=3)
    words = [sys.executable, "-m", "prefkit", "search", str(config)]
    words += ["--output-root", str(tmp_path / "runs")]
    killed = subprocess.Popen(words, start_new_session=True)
    until = time.monotonic() + 120
    while len(begun(tmp_path) if (tmp_path / "runs/searches/few/began.txt").exists() else []) < 3:
        assert time.monotonic() < until
        time.sleep(0.2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    subprocess.run(words, check=True)
    made = read_json(tmp_path / "found.json")
    assert [one["state"] for one in made["trials"]] == ["complete"] * 3
    assert [one["number"] for one in made["trials"]] == [0, 1, 2]
    values = [json.dumps(one["values"]) for one in made["trials"]]
    assert len(set(values)) == 3 and len(set(begun(tmp_path))) == 4


@pytest.mark.slow
def test_two_workers_share_a_search(tmp_path):
    experiment(tmp_path, seconds=2.0)
    run_search(config_of(tmp_path, trials=5), workers=2, output_root=tmp_path / "runs")
    made = read_json(tmp_path / "found.json")
    assert [one["state"] for one in made["trials"]] == ["complete"] * 5
    assert len(begun(tmp_path)) == 6 and begun(tmp_path).count("shared") == 1


@pytest.fixture
def postgres(tmp_path_factory):
    "The address of a PostgreSQL of our own, on a socket in a folder of its own."
    pytest.importorskip("psycopg")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (programs and str(programs[-1] / "initdb"))
    if not found:
        pytest.skip("no PostgreSQL is installed")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path has to be short
    as_user = {}
    if os.geteuid() == 0:  # it does not run as root
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    tool = lambda name, *words: subprocess.run(
        [str(Path(found).with_name(name)), *words], check=True, stdout=subprocess.DEVNULL, **as_user
    )
    tool("initdb", "-D", str(folder / "data"), "-U", "prefkit", "-A", "trust")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    log = str(folder / "log")
    tool("pg_ctl", "-D", str(folder / "data"), "-l", log, "-w", "-o", options, "start")
    try:
        yield f"postgresql+psycopg://prefkit@/postgres?host={folder}"
    finally:
        tool("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_two_machines_share_a_search_by_postgresql(tmp_path, postgres):
    "Two workers that have no folder in common: no combination of a grid is tried twice."
    space = {"train.rate": {"choices": [0.01, 0.02, 0.03]}}
    space["train.hyperparameters.beta"] = {"choices": [0.1, 0.2]}
    workers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        experiment(tmp_path / name, seconds=2.0)
        config = config_of(tmp_path / name, storage=postgres, sampler="grid", space=space, trials=6)
        words = [sys.executable, "-m", "prefkit", "search", str(config)]
        words += ["--output-root", str(tmp_path / name / "runs")]
        workers.append(subprocess.Popen(words))
    assert [one.wait(timeout=300) for one in workers] == [0, 0]
    # the one that ended last knows all
    made = max(
        (read_json(tmp_path / name / "found.json") for name in ("one", "two")),
        key=lambda found: found["complete"],
    )
    assert [one["state"] for one in made["trials"]] == ["complete"] * 6
    assert len({json.dumps(one["values"], sort_keys=True) for one in made["trials"]}) == 6
    each = [set(begun(tmp_path / name)) - {"shared"} for name in ("one", "two")]
    assert all(each) and not each[0] & each[1] and len(each[0] | each[1]) == 6


def tables_are_made_behind(taken, address, file, monkeypatch):
    "`taken`: whether another worker finds the lock held; asked while Optuna makes its tables."
    seen, storage = [], optuna.storages.RDBStorage
    watched = lambda address: seen.append(taken()) or storage(address)
    monkeypatch.setattr(optuna.storages, "RDBStorage", watched)
    module._database(address, file)
    return seen == [True] and not taken()


def test_one_worker_at_a_time_makes_the_tables(tmp_path, monkeypatch):
    file = tmp_path / ".ask.lock"

    def taken():
        try:
            with FileLock(str(file), timeout=0):
                return False
        except Timeout:
            return True

    address = f"sqlite:///{tmp_path / 'search.db'}"
    assert tables_are_made_behind(taken, address, file, monkeypatch)


@pytest.mark.slow
def test_one_worker_of_all_machines_makes_the_tables(tmp_path, postgres, monkeypatch):
    "Two of them at once, and PostgreSQL refuses one: a search of two machines died of it."
    import sqlalchemy

    ask = sqlalchemy.text("SELECT pg_try_advisory_lock(:number)")

    def taken():
        with sqlalchemy.create_engine(postgres).connect() as connection:
            held = not connection.execute(ask, {"number": module._AdvisoryLock.NUMBER}).scalar()
            connection.invalidate()  # lets go of it
        return held

    assert tables_are_made_behind(taken, postgres, tmp_path / "none", monkeypatch)
    assert not (tmp_path / "none").exists()


def test_a_database_that_is_not_there_is_named_and_its_password_is_not(tmp_path):
    experiment(tmp_path)
    address = "postgresql+psycopg://me:s3cr3t-of-mine@127.0.0.1:9/none"
    with pytest.raises(ConfigError, match="storage: the database cannot be used") as told:
        run_search(config_of(tmp_path, storage=address), output_root=tmp_path / "runs")
    assert "s3cr3t" not in str(told.value)
    with pytest.raises(ConfigError, match="storage"):
        run_search(config_of(tmp_path, storage="nonsense"), output_root=tmp_path / "runs")


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_others_are_given_up(tmp_path):
    experiment(tmp_path, seconds=4.0)
    space = {"train.rate": {"choices": [0.095, 0.02, 0.021, 0.022, 0.019, 0.018, 0.06, 0.07]}}
    config = config_of(tmp_path, space=space, sampler="grid", trials=8, prune="loss")
    run_search(config, output_root=tmp_path / "runs")
    made = {
        one["values"]["train.rate"]: one for one in read_json(tmp_path / "found.json")["trials"]
    }
    assert made[0.095]["state"] in ("fail", "pruned")
    if made[0.095]["state"] == "fail":
        assert "the loss is no number" in made[0.095]["error"]
    assert len(made) == 8 and made[0.02]["state"] == "complete"
