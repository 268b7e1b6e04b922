"""The runner: configs are checked before anything runs, stages are skipped, killed, resumed and
never half there.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.kills import alive
from prefkit.runs.config import (
    Stage,
    check_parameters,
    load_config,
    read_parameters,
    write_pipeline,
)
from prefkit.core import ConfigError, DataError, project_root, write_text
from prefkit.core import bare_code, reached_modules
from prefkit.runs.fingerprints import fingerprints
from prefkit.runs.runner import folder_state, work_through, is_done, open_run, prepare, report, run
from prefkit.runs.stage import Display, StageError, StageLock

PARAMETERS = """steps: int = 30 # how many
pace: float = 0.1 # step size
extra: dict = {} # anything
dataset: str = "" # a file
start: str = "" # a folder with a value to start from
seed: int = 0 # of the noise
output_dir: str = "" # given by the runner"""
SETUP = """import json, os, random, time
from pathlib import Path
from prefkit.core import DataError, Progress, write_json, write_text
from prefkit.runs import finish
place, noise = Path(output_dir) / "trail.json", random.Random(seed)
write_text(Path(output_dir) / "pid", str(os.getpid()))
value = json.loads((Path(start) / "value.json").read_text()) if start else 0.0
trail = json.loads(place.read_text()) if place.exists() else []"""
WALK = """with Progress(steps, "walking", initial=len(trail)) as bar:
    for step in range(steps):
        push = noise.gauss(0, 1)
        if step < len(trail): continue
        trail.append((trail[-1] if trail else value) + pace * push)
        write_json(place, trail)
        write_text(Path(output_dir) / "metrics.jsonl",
              "".join(json.dumps({"step": i, "value": v}) + "\\n" for i, v in enumerate(trail)))
        time.sleep(0.02); bar.update()"""
FINISH = """write_json(Path(output_dir) / "checkpoint" / "value.json", trail[-1])
finish(output_dir, metrics={"value": trail[-1]}, data={"rows": steps})"""
CHECK = """from prefkit.core import ConfigError
if not 0 < pace < 1: raise ConfigError(f"pace must be between 0 and 1, not {pace}.")"""
CONFIG = """experiment: toy
seed: 3
stages:
  second: {pipeline: walk.ipynb, parameters: {start: "stage:first"}}
  first:  {pipeline: walk.ipynb, parameters: {steps: 10}}
"""


@pytest.fixture
def toy(tmp_path):
    "A config of two stages in a folder of its own."
    write_pipeline(tmp_path / "walk.ipynb", PARAMETERS, SETUP, WALK, FINISH, check=CHECK)
    return write_text(tmp_path / "toy.yaml", CONFIG)


def command(config, root, *settings):
    words = [sys.executable, "-m", "prefkit.cli", "run", config, "--output-root", root]
    return [*map(str, words), *(word for setting in settings for word in ("--set", setting))]


def start(*arguments):
    return subprocess.Popen(
        command(*arguments),
        cwd=project_root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trail(folder):
    return json.loads((folder / "trail.json").read_text())


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "setting, says",
    [
        ("first.step=3", "Did you mean `steps`?"),
        ("first.steps=many", "must be int"),
        ("first.steps=true", "must be int"),
        ("first.steps=2.5", "must be int"),
        ("first.pace=1e-5", "write 1.0e-5"),
        ("first.pace=.nan", "must be float"),
        ("first.extra.beta=1e-1", "write 1.0e-1"),
        ("first.output_dir=x", "only the runner gives"),
        ("frist.steps=3", "nothing is called"),
        ("second.start=stage:frist", "Did you mean `first`?"),
        ("first.start=stage:second", "in a circle"),
        ("seed=-1", "whole number from 0"),
        ("seed=one", "whole number from 0"),
        ("experiment=../up", "cannot name a run folder"),
        ("steps=3", "nothing is called"),
        ("second.pace=1.5", "pace must be between"),
        ("first.pace=.inf", "must be float, and finite"),
        ("experiment=", "cannot name a run folder"),
        ("report=nowhere", "there is no report"),
    ],
)
def test_a_mistake_in_a_config_is_refused_before_anything_runs(toy, tmp_path, setting, says):
    with pytest.raises(ConfigError, match="(?s)" + says.replace("?", r"\?")):
        run(toy, [setting], tmp_path / "runs", "quiet")
    assert not list((tmp_path / "runs").glob("*/*")) if (tmp_path / "runs").exists() else True


@pytest.mark.parametrize(
    "text, says",
    [
        ("experiment: a\nexperiment: b\nstages: {}", "line 1: `experiment` stands twice"),
        ("experiment: [a", "not valid YAML"),
        ("stages: {}", "`experiment` is missing"),
        ("experiment: a\nstage: {}", "Did you mean `stages`?"),
        ("experiment: a\nstages: {x: {pipeline: nowhere}}", "there is no pipeline `nowhere`"),
        ("experiment: a\nstages: {x: {pipeline: nowhere.ipynb}}", "no such notebook"),
        ("experiment: a\nstages: {x: 3}", "keys with values"),
        ("experiment: a\nstages: [x]", "keys with values"),
        ("", "Write experiment and stages"),
        ("experiment: a\nstages: {}", "`stages` is empty"),
        ("experiment: a\nstages: {1: {pipeline: sft}}", "not text"),
    ],
)
def test_a_config_that_cannot_be_read_says_where_and_why(tmp_path, text, says):
    with pytest.raises(ConfigError) as error:
        load_config(write_text(tmp_path / "bad.yaml", text))
    assert says in str(error.value)


def test_another_encoding_a_stage_without_pipeline_and_an_empty_output_folder_are_refused(
    toy, tmp_path
):
    (tmp_path / "latin.yaml").write_bytes("experiment: gr\u00fcn".encode("latin-1"))
    with pytest.raises(ConfigError, match="Save it as UTF-8"):
        load_config(tmp_path / "latin.yaml")
    for entry in ("null", "sft"):
        with pytest.raises(ConfigError, match="the stage `x` has no pipeline"):
            load_config(
                write_text(tmp_path / "x.yaml", f"experiment: a\nstages: {{x: {entry}}}"),
                ["x.steps=1"],
            )
    with pytest.raises(ConfigError, match="output folder's name is empty"):
        run(toy, (), "", "quiet")


def test_a_missing_config_and_a_missing_dataset_are_named(toy, tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(DataError, match="stage first.*prefs.jsonl does not exist"):
        run(toy, ["first.dataset=prefs.jsonl"], tmp_path / "runs", "quiet")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_runs(toy, tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(ConfigError, match="Choose an output folder"):
        run(toy, (), tmp_path / "file", "quiet")


def test_a_pipeline_needs_exactly_one_cell_of_typed_parameters(tmp_path):
    for cells in (0, 2):
        book = json.loads(write_pipeline(tmp_path / "a.ipynb", "x: int = 1").read_text())
        book["cells"] *= cells
        write_text(tmp_path / "a.ipynb", json.dumps(book))
        with pytest.raises(ConfigError, match=f"{cells} cells are tagged"):
            read_parameters(tmp_path / "a.ipynb")
    for line in ("x = 2 * y", "import os", "x: int", "x.y = 1"):
        with pytest.raises(ConfigError, match="is no parameter"):
            read_parameters(write_pipeline(tmp_path / "b.ipynb", line))


def test_values_are_filled_in_and_a_whole_number_may_stand_for_a_float(toy, tmp_path):
    known = read_parameters(tmp_path / "walk.ipynb")
    values = check_parameters({"pace": 1}, known, "")
    assert values["pace"] == 1.0 and type(values["pace"]) is float and values["steps"] == 30
    stages = {stage.name: stage for stage in load_config(toy).stages}
    assert list(stages) == ["first", "second"] and stages["first"].parameters["seed"] == 3
    assert load_config(toy, ["first.seed=5"]).stages[0].parameters["seed"] == 5


def test_every_kind_of_change_changes_the_right_fingerprints(toy, tmp_path):
    rows = write_text(tmp_path / "rows.jsonl", "{}\n")
    settings = [f"first.dataset={rows}"]
    before = fingerprints(load_config(toy, settings))

    def changed(settings=settings):
        after = fingerprints(load_config(toy, settings))
        return {
            name: [
                part
                for part in after[name]
                if part != "stage" and after[name][part] != before[name][part]
            ]
            for name in after
        }

    assert changed() == {"first": [], "second": []}
    assert changed([*settings, "second.steps=31"]) == {"first": [], "second": ["parameters"]}
    assert changed([*settings, "seed=4"]) == {
        "first": ["parameters"],
        "second": ["parameters", "upstream"],
    }
    write_text(rows, "{}\n{}\n")
    assert changed() == {"first": ["inputs"], "second": ["upstream"]}
    write_text(rows, "{}\n")
    write_pipeline(
        tmp_path / "walk.ipynb", PARAMETERS, SETUP + " # only said", WALK, FINISH, check=CHECK
    )
    assert changed() == {"first": [], "second": []}
    write_pipeline(
        tmp_path / "walk.ipynb",
        PARAMETERS,
        SETUP,
        WALK.replace("pace *", "2 * pace *"),
        FINISH,
        check=CHECK,
    )
    assert changed() == {"first": ["code"], "second": ["code", "upstream"]}


def test_the_code_fingerprint_follows_imports_inside_functions():
    reached = reached_modules(["from prefkit.data.records import load_records"])
    # data imports the world inside a function
    assert {
        "prefkit.data.records",
        "prefkit.data.world",
        "prefkit.data.chat",
        "prefkit.core",
    } <= reached.keys()
    assert bare_code("x = 1 # one") == "x = 1"


def test_stages_run_in_order_are_skipped_when_done_and_run_again_when_changed(
    toy, tmp_path, capsys
):
    folders = run(toy, (), tmp_path / "runs", "lines")
    first, second = (open_run(folders[name]) for name in ("first", "second"))
    assert (
        second.info["status"] == "done"
        and second.info["needs"] == ["first"]
        and second.info["seed"] == 3
    )
    assert second.info["metrics"] == {"value": trail(folders["second"])[-1]} and second.info[
        "data"
    ] == {"rows": 30}
    assert second.params["start"] == "stage:first" and len(second.metrics) == 30
    assert {
        "wall_seconds",
        "peak_memory_mb",
        "git",
        "versions",
        "device",
        "fingerprints",
    } <= second.info.keys()
    assert (
        str(folders["second"]) in (folders["second"] / "run.ipynb").read_text()
        and ".partial" not in (folders["second"] / "run.ipynb").read_text()
    )
    assert sorted(path.name for path in folders["second"].iterdir()) == [
        "checkpoint",
        "metrics.jsonl",
        "params.yaml",
        "pid",
        "run.ipynb",
        "run.json",
        "trail.json",
    ]
    capsys.readouterr()

    run(toy, (), tmp_path / "runs", "lines")
    assert capsys.readouterr().out == "first: already done\nsecond: already done\n"

    shutil.rmtree(folders["first"] / "checkpoint")  # nobody needs it
    run(toy, ["second.steps=30"], tmp_path / "runs", "lines")
    assert capsys.readouterr().out == "first: already done\nsecond: already done\n"

    run(toy, ["second.steps=31"], tmp_path / "runs", "lines")  # now somebody does
    said = capsys.readouterr().out
    assert (
        "first: runs again (its checkpoint changed)" in said
        and "second: runs again (parameters changed)" in said
    )
    assert (
        trail(folders["second"])[:30] == second.metrics["value"].tolist()
        and len(trail(folders["second"])) == 31
    )


def test_stages_side_by_side_wait_for_what_they_need_and_the_first_error_stops_the_rest():
    import threading

    stages = tuple(
        Stage(name, Path("x.ipynb"), {}, needs)
        for name, needs in {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}.items()
    )
    together, most, done, lock = [], [], [], threading.Lock()

    def work(stage, broken=""):
        with lock:
            assert set(stage.needs) <= set(done)
            together.append(stage.name)
            most.append(len(together))
        time.sleep(0.05)
        with lock:
            together.remove(stage.name)
        if stage.name == broken:
            raise DataError(f"{stage.name} is broken")
        with lock:
            done.append(stage.name)
        return stage.name.upper()

    assert (
        work_through(stages, work, 2) == {name: name.upper() for name in "abcde"} and max(most) == 2
    )
    done.clear()
    with pytest.raises(DataError, match="b is broken"):
        work_through(stages, lambda stage: work(stage, "b"), 2)
    assert "a" in done and "d" not in done
    most.clear()
    done.clear()
    assert list(work_through(stages, work, 1)) == list("abcde") and max(most) == 1


def test_two_jobs_end_in_the_numbers_of_one(toy, tmp_path):
    write_text(toy, CONFIG + "  third: {pipeline: walk.ipynb, parameters: {steps: 12}}\n")
    one, two = (
        run(toy, (), tmp_path / "one", "quiet"),
        run(toy, (), tmp_path / "two", "quiet", jobs=2),
    )
    assert list(one) == list(two) and [trail(folder) for folder in one.values()] == [
        trail(folder) for folder in two.values()
    ]
    with pytest.raises(ConfigError, match="jobs is 0"):
        run(toy, (), tmp_path / "two", "quiet", jobs=0)


def test_an_error_in_a_stage_is_one_message_and_keeps_what_was_there(toy, tmp_path):
    run(toy, (), tmp_path / "runs", "quiet")
    before = folder_state(tmp_path / "runs" / "toy" / "first")
    broken = 'raise DataError("row 17 of prefs.jsonl: the answer is empty.")'
    write_pipeline(tmp_path / "walk.ipynb", PARAMETERS, SETUP, broken, FINISH)
    done = subprocess.run(
        command(toy, tmp_path / "runs"), cwd=project_root(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        done.stderr.splitlines()[0]
        == "error: stage first: row 17 of prefs.jsonl: the answer is empty."
    )
    # the executed notebook
    assert Path(done.stderr.splitlines()[1].split(": ", 1)[1].rstrip(")")).exists()
    assert folder_state(tmp_path / "runs" / "toy" / "first") == before


def test_a_stage_that_fails_otherwise_or_says_nothing_is_not_finished(tmp_path):
    config = write_text(
        tmp_path / "toy.yaml", "experiment: toy\nstages: {only: {pipeline: only.ipynb}}\n"
    )
    for cell, says in (
        ("1 / 0", "ZeroDivisionError"),
        ("None", "without calling prefkit.runs.stage.finish"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended from outside"),
    ):
        write_pipeline(tmp_path / "only.ipynb", 'output_dir: str = ""', cell)
        with pytest.raises(StageError, match=says):
            run(config, (), tmp_path / "runs", "quiet")
        assert not is_done(tmp_path / "runs" / "toy" / "only")


@pytest.mark.slow
def test_a_run_killed_three_times_ends_as_an_undisturbed_one(toy, tmp_path):
    home, chance = (
        tmp_path / "runs" / "killed",
        random.Random(int(os.environ.get("PREFKIT_KILL_SEED", "0"))),
    )
    for stage, least in (("first", 2), ("second", 1), ("second", 12)):
        place = home / f".{stage}.partial" / "trail.json"
        process = start(toy, tmp_path / "runs", "experiment=killed")
        wait_for(
            lambda: (
                process.poll() is not None or (place.exists() and len(trail(place.parent)) > least)
            )
        )
        time.sleep(chance.uniform(0, 0.1))
        kernel = int((place.parent / "pid").read_text())
        process.kill()
        process.wait()
        wait_for(lambda: not alive(kernel), 3)  # the kernel does not outlive its runner
        assert not (home / stage).exists()
    resumed, straight = (
        run(toy, ["experiment=killed"], tmp_path / "runs", "quiet"),
        run(toy, (), tmp_path / "runs", "quiet"),
    )
    for name in ("first", "second"):
        assert trail(resumed[name]) == trail(straight[name])
        assert (resumed[name] / "metrics.jsonl").read_text() == (
            straight[name] / "metrics.jsonl"
        ).read_text()
    assert folder_state(resumed["second"])["attempts"] == 3 and not list(home.glob(".*.partial"))


@pytest.mark.slow
def test_two_commands_do_not_work_on_one_stage(toy, tmp_path):
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    with StageLock(tmp_path / "runs" / "toy" / ".first.lock"):
        with pytest.raises(ConfigError, match=f"another run .process {os.getpid()}."):
            StageLock(tmp_path / "runs" / "toy" / ".first.lock", wait=0).__enter__()
    processes = [start(toy, tmp_path / "runs") for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert (
        sum("first: done in" in text for text in said) == 1
        and sum("first: already done" in text for text in said) == 1
    )


def test_ctrl_c_ends_command_and_kernel_and_the_stage_goes_on_later(toy, tmp_path):
    place = tmp_path / "runs" / "toy" / ".first.partial" / "trail.json"
    process = start(toy, tmp_path / "runs", "first.steps=1500")
    wait_for(lambda: process.poll() is not None or place.exists())
    kernel = int((place.parent / "pid").read_text())
    # Python loses an interrupt that falls into a callback of a library; a person presses again
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        try:
            said = process.communicate(timeout=8)[0]
            break
        except subprocess.TimeoutExpired:
            pass
    assert process.returncode == 1 and "goes on from here" in said and "Traceback" not in said
    wait_for(lambda: not alive(kernel), 3)


def test_a_half_finished_run_of_other_settings_is_set_aside_and_taken_back(tmp_path):
    one, two = {"stage": "1", "parameters": "a"}, {"stage": "2", "parameters": "b"}
    prepare(tmp_path, "sft", one)
    write_text(tmp_path / ".sft.partial" / "work", "one")
    assert (
        "parameters changed" in prepare(tmp_path, "sft", two)
        and not (tmp_path / ".sft.partial" / "work").exists()
    )
    assert (
        "attempt 2" in prepare(tmp_path, "sft", one)
        and (tmp_path / ".sft.partial" / "work").read_text() == "one"
    )


def test_a_report_needs_a_name_and_finished_stages(toy, tmp_path):
    with pytest.raises(ConfigError, match="names no report"):
        report(toy, (), tmp_path / "runs", "quiet")
    with pytest.raises(ConfigError, match="not finished yet: first, second"):
        report(toy, ["report=first_path"], tmp_path / "runs", "quiet")


def test_progress_is_a_plain_line_where_there_is_no_terminal(capsys):
    display = Display("lines", every=0.0)
    for done in (10, 20):
        display.show(
            "sft [2/4]", {"label": "training", "done": done, "total": 700, "note": "loss 0.61"}
        )
        time.sleep(0.02)
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == "sft [2/4] training 10/700, loss 0.61"
        and lines[1].startswith("sft [2/4] training 20/700, 0:")
        and "left" in lines[1]
    )


def test_the_bar_tells_stage_step_and_time_left(capsys):
    display = Display("bar")
    for done in (0, 10, 350):
        display.show(
            "sft [2/4]", {"label": "training", "done": done, "total": 700, "note": "loss 0.61"}
        )
        time.sleep(0.12)
    display.close()
    assert (
        "sft [2/4] training" in (drawn := capsys.readouterr().err)
        and "350/700" in drawn
        and "left, loss 0.61" in drawn
    )


def test_a_stage_has_its_modules_before_its_first_cell_and_looks_for_garbage_afterwards(tmp_path):
    # wave: nobody else imports it
    book = write_pipeline(
        tmp_path / "looks.ipynb",
        'output_dir: str = ""',
        "import gc, sys\nthere = 'wave' in sys.modules\nimport wave",
        (
            "from prefkit.runs.runner import finish\nfinish(output_dir, metrics={'there': there, "
            "'on': gc.isenabled(), 'frozen': gc.get_freeze_count()})"
        ),
    )
    folder = run(
        write_text(
            tmp_path / "looks.yaml", f"experiment: looks\nstages:\n  one: {{pipeline: {book}}}\n"
        ),
        (),
        tmp_path / "runs",
        "quiet",
    )["one"]
    found = open_run(folder).info
    assert (
        found["metrics"]["there"]
        and found["metrics"]["on"]
        and found["metrics"]["frozen"] > 1000
        and 0 < found["start_seconds"] < found["wall_seconds"]
    )


def test_a_module_that_is_missing_is_an_error_of_the_cell_that_needs_it(tmp_path):
    book = write_pipeline(tmp_path / "lacks.ipynb", 'output_dir: str = ""', "import no_such_module")
    with pytest.raises(StageError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        run(
            write_text(
                tmp_path / "lacks.yaml",
                f"experiment: lacks\nstages:\n  one: {{pipeline: {book}}}\n",
            ),
            (),
            tmp_path / "runs",
            "quiet",
        )


def test_the_time_of_every_stage_is_said_at_the_end(toy, tmp_path, capsys):
    run(toy, (), tmp_path / "runs", "lines")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == [
        "first",
        "second",
        "together",
        "passed",
    ] and all("s to start" in line for line in lines[-4:-1])


def test_a_pipeline_with_a_magic_ends_as_any_other(tmp_path):
    book = write_pipeline(
        tmp_path / "magic.ipynb",
        'output_dir: str = ""',
        "%config InlineBackend.figure_format = 'png'",
        "import math\nfrom prefkit.runs.runner import finish\nfinish(output_dir, metrics={})",
    )
    folder = run(
        write_text(
            tmp_path / "magic.yaml", f"experiment: magic\nstages:\n  one: {{pipeline: {book}}}\n"
        ),
        (),
        tmp_path / "runs",
        "quiet",
    )["one"]
    assert open_run(folder).info["status"] == "done"
