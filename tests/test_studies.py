"""Studies: configs are checked before anything runs, runs are skipped, killed, gone on with, and
one that fails is a finding.
"""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.kills import alive
from prefkit.runs import studies
from prefkit.core import ConfigError, project_root, read_jsonl, write_text
from prefkit.runs.config import write_pipeline
from prefkit.runs.runner import folder_state, run, to_do
from prefkit.stats.win_rate import win_rate

ROOT = project_root()
CONFIG = """study: toy
start: {model: data/tiny/base}
common: {limit: 48, max_steps: 6, batch_size: 8, learning_rate: 5.0e-4, logging_steps: 2,
         save_steps: 1}
runs:
  - {method: dpo, hyperparameters: {beta: [0.1, 1.0e+38]}, validation_limit: 8, eval_steps: 3,
     dataset_options: {truth: 1.0}}
  - {method: sft, name: imitation, answers: demonstrations, probe: true, eval_steps: 3}
evaluate: {prompts: 12, max_new_tokens: 24, examples: 2}
keep: [loss, logratio_chosen, logps_rejected]
"""
GOOD, BROKEN, SFT = "dpo beta=0.1", "dpo beta=1e+38", "imitation"


def written(folder, text=CONFIG, **changes):
    "A config of a study in a folder, with some of its keys changed."
    return write_text(
        folder / "toy.yaml",
        yaml.safe_dump({**yaml.safe_load(text), **changes}, sort_keys=False) if changes else text,
    )


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"stdy": 1}, "Did you mean `study`?"),
        ({"seed": "1e3"}, "`seed` must be int"),
        ({"seed": -1}, "from 0 up"),
        ({"runs": []}, "`runs` is empty"),
        ({"study": "../up"}, "cannot name a file"),
        ({"runs": [{"metod": "dpo"}]}, "run 1: `metod` is not known here. Did you mean `method`?"),
        ({"runs": [{"learning_rate": 1e-4}]}, "run 1: `method` is missing"),
        ({"runs": [{"method": "dppo"}]}, "Did you mean `dpo`?"),
        ({"runs": [{"method": "dpo", "hyperparameters": {"beat": 0.1}}]}, "Did you mean `beta`?"),
        (
            {"runs": [{"method": "dpo", "hyperparameters": {"beta": [0.1, -1]}}]},
            r"run 1 (dpo beta=-1): dpo: beta",
        ),
        ({"runs": [{"method": "dpo", "hyperparameters": {"beta": ["1e-1"]}}]}, "write 1.0e-1"),
        ({"runs": [{"method": "dpo", "learning_rate": "1e-4"}]}, "write 1.0e-4"),
        ({"runs": [{"method": "dpo", "learning_rate": 2.0}]}, "learning_rate: 2.0 is not between"),
        ({"runs": [{"method": "dpo", "schedule": "linar"}]}, "is none of constant"),
        ({"runs": [{"method": "dpo", "max_steps": 2.5}]}, "`max_steps` must be int | None"),
        (
            {"runs": [{"method": "dpo", "learning_rate": []}]},
            "the list of `learning_rate` is empty",
        ),
        ({"runs": [{"method": "dpo", "keep_best": True}]}, "go by the validation loss"),
        ({"runs": [{"method": "dpo"}, {"method": "dpo"}]}, "Tell them apart with `name`"),
        (
            {"runs": [{"method": "dpo", "answers": "chosen"}]},
            "`answers` is for methods of kind sft",
        ),
        (
            {"runs": [{"method": "sft", "answers": "best"}]},
            "answers: 'best' is none of chosen, demonstrations",
        ),
        ({"runs": [{"method": "dpo", "limit": 0}]}, "limit: 0 is not at least 1"),
        ({"runs": [{"method": "dpo", "hyperparameters": 3}]}, "keys with values are needed"),
        (
            {
                "runs": [
                    {
                        "method": "dpo",
                        "start": {"config": "data/configs/tiny/first_path.yaml", "stage": "stf"},
                    }
                ]
            },
            (
                "run 1 (dpo), start: data/configs/tiny/first_path.yaml has no stage `stf`. Did you "
                "mean `sft`?"
            ),
        ),
        ({"start": {"config": "data/configs/tiny/first_path.yaml"}}, "start: `stage` is missing"),
        ({"start": {"config": "nowhere.yaml", "stage": "sft"}}, "start, config:"),
        ({"start": {"model": "data/nowhere/x"}}, "is no folder"),
        ({"start": {"model": "data/tiny/base", "stage": "sft"}}, "`model` stands alone"),
        ({"common": {"limits": 3}}, "common: `limits` is not known here. Did you mean `limit`?"),
        (
            {"evaluate": {"prompt": 3}},
            "evaluate: `prompt` is not known here. Did you mean `prompts`?",
        ),
        ({"evaluate": {"split": "tset"}}, "evaluate: split: 'tset' is none of"),
        ({"evaluate": {"temperature": -1.0}}, "temperature"),
        ({"evaluate": {"prompts": 5000}}, "the validation split has"),
        ({"evaluate": {"examples": -1}}, "evaluate: examples: -1 is not at least 0"),
        (
            {"runs": [{"method": "kto", "dataset_options": {"turth": 1}}]},
            "run 1 (kto): dataset_options: there is no 'turth'. Did you mean `truth`?",
        ),
        (
            {"runs": [{"method": "dpo", "dataset_options": {"manner": 2.0}}]},
            "run 1 (dpo): dataset_options: manner is 2.0",
        ),
        (
            {
                "runs": [
                    {
                        "method": "sft",
                        "answers": "demonstrations",
                        "dataset_options": {"truth": 1.0},
                    }
                ]
            },
            "rows of kind sft have none",
        ),
        ({"keep": "loss"}, "`keep` must be list"),
        ({"keep": ["step"]}, "need not name step"),
    ],
)
def test_a_mistake_in_a_config_is_refused_before_anything_runs(tmp_path, changes, says):
    with pytest.raises(ConfigError) as error:
        studies.run_study(
            written(tmp_path, **changes),
            output=tmp_path / "out.json",
            output_root=tmp_path / "runs",
            progress="quiet",
        )
    assert says in str(error.value) and str(tmp_path / "toy.yaml") in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_run_a_missing_config_and_no_workers_are_refused(tmp_path):
    config = written(tmp_path)
    with pytest.raises(ConfigError, match="there is no run `imitatio`. Did you mean `imitation`?"):
        studies.run_study(config, only=("imitatio",), output_root=tmp_path, progress="quiet")
    with pytest.raises(ConfigError, match="at least 1"):
        studies.run_study(config, workers=0, output_root=tmp_path, progress="quiet")
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        studies.load_study(tmp_path / "nowhere.yaml")


def test_lists_multiply_out_and_runs_are_named_after_what_varies(tmp_path):
    runs = [
        {
            "method": "dpo",
            "learning_rate": [1e-4, 5e-5],
            "hyperparameters": {"beta": [0.1, 0.5], "label_smoothing": 0.1},
        },
        {"method": "sft", "lora": True, "lora_targets": ["q_proj", "v_proj"]},
        {
            "method": "dpo",
            "name": "base",
            "start": {"model": "data/tiny/base"},
            "batch_size": [4, 8],
            "seed": 3,
        },
    ]
    made = studies.load_study(written(tmp_path, runs=runs, seed=2)).runs
    assert [one.name for one in made] == [
        "dpo learning_rate=0.0001 beta=0.1",
        "dpo learning_rate=0.0001 beta=0.5",
        "dpo learning_rate=5e-05 beta=0.1",
        "dpo learning_rate=5e-05 beta=0.5",
        "sft",
        "base batch_size=4",
        "base batch_size=8",
    ]
    assert (
        made[3].settings["learning_rate"] == 5e-5
        and made[3].hyperparameters == {"beta": 0.5, "label_smoothing": 0.1}
        and made[0].settings["max_steps"] == 6
    )
    assert (
        made[4].settings["lora_targets"] == ["q_proj", "v_proj"]
        and made[6].settings | {"batch_size": 8, "seed": 3} == made[6].settings
    )
    assert len({one.folder for one in made}) == 7 and all(
        "/" not in one.folder and " " not in one.folder for one in made
    )


def test_share_of_loops_counts_answers_that_say_three_words_three_times():
    assert studies.share_of_loops(
        ["a b c a b c a b c", "a b c a b c a b", "", "no no no no no", "yes, it is"]
    ) == pytest.approx(2 / 5)
    assert math.isnan(studies.share_of_loops([]))


def test_numbers_are_rounded_and_what_is_not_finite_is_none():
    assert studies.rounded(
        {"a": [0.123456789, 123456.789, float("nan")], "b": 7, "c": "x", "d": True}
    ) == {"a": [0.12346, 123460.0, None], "b": 7, "c": "x", "d": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A study whose command was killed while its first run trained, and then given again."
    folder = tmp_path_factory.mktemp("study")
    config, home, output = written(folder), folder / "runs" / "studies" / "toy", folder / "toy.json"
    words = [
        sys.executable,
        "-m",
        "prefkit.cli",
        "study",
        str(config),
        "--output",
        str(output),
        "--output-root",
        str(folder / "runs"),
    ]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while (
        not list(home.glob(".dpo_beta=0.1.partial/checkpoints/checkpoint-*"))
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.01)
    children = (
        [
            int(line)
            for children in Path(f"/proc/{process.pid}/task").glob("*/children")
            for line in children.read_text().split()
        ]
        if Path("/proc").exists()
        else []
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return {
        "folder": folder,
        "config": config,
        "home": home,
        "output": output,
        "children": children,
        "said": said.stdout,
    }


@pytest.mark.slow
def test_its_processes_end_with_a_killed_study(finished):
    assert finished["children"] and not any(map(alive, finished["children"]))


@pytest.mark.slow
def test_the_json_holds_settings_lines_and_judgements_of_every_run(finished):
    study = studies.open_study(finished["output"])
    runs = {one["name"]: one for one in study["runs"]}
    assert (
        list(runs) == [GOOD, BROKEN, SFT]
        and study["complete"] is True
        and study["command"].startswith("prefkit study ")
    )
    assert (
        study["git"].keys() == {"revision", "dirty"}
        and study["versions"]["torch"]
        and study["device"]
        and study["threads"] >= 1
        and study["seconds"] > 0
        and study["date"]
    )
    good = runs[GOOD]
    assert (
        good["method"] == "dpo"
        and good["hyperparameters"] == {"beta": 0.1, "label_smoothing": 0.0}
        and good["settings"]["learning_rate"] == 5e-4
        and good["start"] == {"model": "data/tiny/base"}
    )
    assert [line["step"] for line in good["lines"] if line["split"] == "train"] == [
        2,
        3,
        4,
        6,
    ] and [line["step"] for line in good["lines"] if line["split"] == "validation"] == [0, 3, 6]
    assert all(
        line.keys() == {"step", "split", "loss", "logratio_chosen", "logps_rejected"}
        for line in good["lines"]
    )
    assert (
        good["lines"][0]["loss"] == 0.69315
        and len(good["examples"]) == 2
        and good["examples"][0].keys() == {"prompt", "answer"}
    )
    probed = [line for line in runs[SFT]["lines"] if line["split"] == "validation"]
    assert [line["step"] for line in probed] == [0, 3, 6] and all(
        "logps_rejected" in line for line in probed
    )


@pytest.mark.slow
def test_a_run_is_judged_against_the_start_on_the_same_prompts(finished):
    study, home = studies.open_study(finished["output"]), finished["home"]
    ours, start = (
        read_jsonl(home / "dpo_beta=0.1@answers" / "answers.jsonl"),
        read_jsonl(home / "_start" / "answers.jsonl"),
    )
    assert [row["prompt"] for row in ours] == [row["prompt"] for row in start] and len(ours) == 12
    evaluation, gold = study["runs"][0]["evaluation"], lambda row: row["gold"]["total"]
    expected = win_rate(map(gold, ours), map(gold, start))
    assert evaluation["win_rate"] == studies.rounded(
        {"rate": expected.rate, "low": expected.low, "high": expected.high}
    )
    assert (
        evaluation["n"] == 12
        and evaluation["gold"] == pytest.approx(sum(map(gold, ours)) / 12, rel=1e-4)
        and evaluation["tokens"] == pytest.approx(sum(row["tokens"] for row in ours) / 12, rel=1e-4)
    )
    right = [gold(row) for row in start if row["gold"]["right"]]
    assert study["start_evaluation"]["gold_where_right"] == (
        pytest.approx(sum(right) / len(right), rel=1e-4) if right else None
    )
    assert (
        study["start_evaluation"]["gold"] == pytest.approx(sum(map(gold, start)) / 12, rel=1e-4)
        and "win_rate" not in study["start_evaluation"]
    )


@pytest.mark.slow
def test_a_run_that_collapses_is_recorded_and_the_others_go_on(finished):
    broken = {one["name"]: one for one in studies.open_study(finished["output"])["runs"]}[BROKEN]
    assert (
        re.match(r"step \d+: the loss is .* no finite numbers", broken["error"])
        and broken["evaluation"] is None
        and broken["lines"][0]["step"] == 0
    )
    assert f"{BROKEN}: failed" in finished["said"] and f"{GOOD}: gold win rate" in finished["said"]


def asked(finished, monkeypatch, config=None, **options):
    "The stages that a study would run."
    stages = []

    def would_run(experiments, progress, jobs, attend):
        for one in experiments:
            stages.extend(stage.name for stage in to_do(one.config, one.home, one.prints)[0])

    monkeypatch.setattr(studies, "carry_out", would_run)
    studies.run_study(
        config or finished["config"],
        output=finished["folder"] / "again.json",
        output_root=finished["folder"] / "runs",
        progress="quiet",
        **options,
    )
    return stages


@pytest.mark.slow
def test_what_is_done_is_not_run_again_and_what_has_changed_is(finished, monkeypatch, tmp_path):
    assert asked(finished, monkeypatch) == []
    again = json.loads((finished["folder"] / "again.json").read_text())
    assert again["complete"] and again["runs"] == studies.open_study(finished["output"])["runs"]
    runs = yaml.safe_load(CONFIG)["runs"]
    faster = written(tmp_path, runs=[runs[0], {**runs[1], "learning_rate": 1e-3}])
    assert (
        asked(finished, monkeypatch, faster) == ["imitation", "imitation@answers"]
        and asked(finished, monkeypatch, faster, only=("dpo",)) == []
    )
    # other prompts: who has learnt need not learn again, and who has collapsed is not asked
    assert asked(finished, monkeypatch, written(tmp_path, evaluate={"prompts": 13})) == [
        "_start",
        "dpo_beta=0.1@answers",
        "imitation@answers",
    ]
    assert (
        asked(
            finished,
            monkeypatch,
            written(
                tmp_path,
                keep=["loss"],
                evaluate={**yaml.safe_load(CONFIG)["evaluate"], "examples": 1},
            ),
        )
        == []
    )


@pytest.mark.slow
def test_what_did_not_run_here_is_kept_from_the_json_that_there_is(finished, monkeypatch, tmp_path):
    output = write_text(tmp_path / "toy.json", finished["output"].read_text())
    monkeypatch.setattr(studies, "carry_out", lambda *_: None)
    made = json.loads(
        studies.run_study(
            finished["config"],
            only=(SFT,),
            output=output,
            output_root=tmp_path / "elsewhere",
            progress="quiet",
        ).read_text()
    )
    # the collapse has to show itself again
    assert [one["name"] for one in made["runs"]] == [GOOD, SFT] and made["complete"] is False


@pytest.mark.slow
def test_a_process_that_dies_is_recorded_and_run_again_next_time(finished, monkeypatch, tmp_path):
    dies = "print('out of luck'); import os; os._exit(7)"

    def notebook(path, parameters, *cells):
        return write_pipeline(path, parameters, dies)

    monkeypatch.setattr(studies, "write_pipeline", notebook)
    config = written(
        tmp_path,
        yaml.safe_dump(
            {key: value for key, value in yaml.safe_load(CONFIG).items() if key != "evaluate"}
        ),
    )
    for _ in range(2):
        made = json.loads(
            studies.run_study(
                config, output=tmp_path / "toy.json", output_root=tmp_path, progress="quiet"
            ).read_text()
        )
        errors = [one["error"] for one in made["runs"]]
        assert len(errors) == 3 and not made["complete"]
        assert all("its process was ended from outside" in error for error in errors)
        assert str(tmp_path) not in str(errors)
    attempts = [
        folder_state(tmp_path / "studies" / "toy" / f".{name}.partial")["attempts"]
        for name in ("dpo_beta=0.1", "dpo_beta=1e+38", "imitation")
    ]
    assert attempts == [2, 2, 2]


def test_the_start_is_the_checkpoint_of_a_stage_which_is_run_if_need_be(monkeypatch, tmp_path):
    calls = []

    def made(config, settings, output_root, progress, only):
        calls.append((config, only))
        (tmp_path / "sft" / "checkpoint").mkdir(parents=True, exist_ok=True)
        return {"sft": tmp_path / "sft"}

    monkeypatch.setattr(studies, "run", made)
    stages = []

    def carry_out(experiments, progress, jobs, attend):
        stages.extend(experiments[0].config.stages)

    monkeypatch.setattr(studies, "carry_out", carry_out)
    start = {"config": "data/configs/tiny/first_path.yaml", "stage": "sft"}
    studies.run_study(
        written(tmp_path, start=start, runs=[{"method": "dpo"}]),
        output=tmp_path / "x.json",
        output_root=tmp_path,
        progress="quiet",
    )
    assert calls == [("data/configs/tiny/first_path.yaml", ("sft",))] and [
        stage.parameters["model"] for stage in stages
    ] == [str(tmp_path / "sft" / "checkpoint")] * 2 + ["stage:dpo"]


@pytest.mark.slow
def test_lines_are_one_table_and_a_study_that_is_missing_says_how_to_make_it(finished):
    lines = studies.study_lines(studies.open_study(finished["output"]))
    assert list(lines)[:7] == [
        "name",
        "method",
        "learning_rate",
        "beta",
        "label_smoothing",
        "step",
        "split",
    ] and {"loss", "logps_rejected"} <= set(lines)
    assert (
        set(lines["name"]) == {GOOD, BROKEN, SFT}
        and (lines.loc[lines["name"] == GOOD, "beta"] == 0.1).all()
        and lines.loc[lines["name"] == SFT, "beta"].isna().all()
    )
    with pytest.raises(ConfigError, match="prefkit study data/configs/lessons/nowhere.yaml"):
        studies.open_study("nowhere")


def test_the_runner_runs_a_stage_and_what_it_needs_and_no_more(tmp_path):
    write_pipeline(
        tmp_path / "toy.ipynb",
        "start: str = ''\noutput_dir: str = ''",
        (
            "from pathlib import Path\nfrom prefkit.runs.runner import finish\n(Path(output_dir) / "
            "'checkpoint').mkdir()\nfinish(output_dir, metrics={});"
        ),
    )
    config = write_text(
        tmp_path / "toy.yaml",
        (
            "experiment: toy\nstages:\n  a: {pipeline: toy.ipynb}\n  b: {pipeline: toy.ipynb, "
            'parameters: {start: "stage:a"}}\n  c: {pipeline: toy.ipynb, parameters: {start: '
            '"stage:b"}}\n  d: {pipeline: toy.ipynb}\n'
        ),
    )
    assert list(run(config, (), tmp_path, "quiet", only=("b",))) == ["a", "b"] and sorted(
        path.parent.name for path in (tmp_path / "toy").glob("*/run.json")
    ) == ["a", "b"]
    with pytest.raises(ConfigError, match="there is no stage `bb`. Did you mean `b`?"):
        run(config, (), tmp_path, "quiet", only=("bb",))
