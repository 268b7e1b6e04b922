"""A study: many short runs from one start, each judged against it, in one small JSON that pictures
are drawn from. Its runs are stages, which the runner works through.

`prefkit study CONFIG` runs it; `open_study` and `study_lines` read what it found. `load_study` says
what a config may hold.
"""

import json
import math
import re
import shlex
import threading
import time
from dataclasses import replace
from pathlib import Path

from prefkit.core import (
    ConfigError,
    nearest,
    project_root,
    read_jsonl,
    resolve_path,
    write_text,
)
from prefkit.runs.config import Config, Stage, write_pipeline
from prefkit.runs.runner import (
    Experiment,
    carry_out,
    folder_state,
    git_state,
    is_done,
    open_experiment,
    open_home,
    run,
)
from prefkit.runs.seeds import open_results
from prefkit.runs.stage import StageError, clock
from prefkit.runs.study_config import Study, StudyRun, load_study
from prefkit.stats.text_metrics import loops
from prefkit.stats.win_rate import win_rate
from prefkit.train.log import TIME_FIELDS
from prefkit.train.settings import TrainSettings

START = "_start"  # the stage of the start model's own answers


# Its stages.


def _shown(path: str | Path) -> str:
    "A path as a person in the project's folder would write it."
    place = resolve_path(path)
    inside = place.is_relative_to(project_root())
    return place.relative_to(project_root()).as_posix() if inside else str(path)


def _start_model(start: dict, output_root, progress: str) -> str:
    """The folder (or Hub name) of the model that a study starts from; made where it is a stage that
    has not run.
    """
    if "model" in start:
        return start["model"]
    folder = run(start["config"], (), output_root, progress, only=(start["stage"],))[start["stage"]]
    if not (folder / "checkpoint").is_dir():
        raise ConfigError(
            f"start: {folder} holds no checkpoint. Delete this folder to have the stage run again."
        )
    return _shown(folder / "checkpoint")


NOTEBOOK = """model: str = ""  # a folder, stage:NAME, or a name on the Hub
job: dict = {}  # everything else that the function takes
seed: int = 0  # of data, training or sampling
output_dir: str = ""  # the run folder; the runner names it"""


def _stages(
    study: Study,
    models: dict,  # start as JSON -> the model
    home: Path,  # takes the notebooks
) -> tuple[Stage, ...]:  # of all runs whose start is known
    "Each run trains, and then answers; first of all the start does."
    train, answer = (
        write_pipeline(
            home / f"{function}.ipynb",
            NOTEBOOK,
            f"from prefkit.runs.short import {function}",
            f"{function}(output_dir, model, seed, **job)",
        )
        for function in ("train_short", "answer_short")
    )

    def stage(name, notebook, model, job, seed, *needs):
        given = {"model": model, "job": job, "seed": seed, "output_dir": ""}
        return Stage(name, notebook, given, needs)

    asks = {key: value for key, value in (study.evaluate or {}).items() if key != "examples"}
    found = []
    if asks:
        found.append(stage(START, answer, models[json.dumps(study.start)], asks, study.seed))
    for one in study.runs:
        model = models.get(json.dumps(one.start))
        if model is None:
            continue  # `--only` names other runs
        job = {"method": one.method, "hyperparameters": one.hyperparameters, **one.data}
        job["settings"], seed = one.settings, one.settings.get("seed", study.seed)
        name, its_answers = one.stages
        found.append(stage(name, train, model, job, seed))
        if asks:
            found.append(stage(its_answers, answer, f"stage:{name}", asks, study.seed, name))
    return tuple(found)


# What they found.


def share_of_loops(
    answers: list[str],  # texts
) -> float:  # in [0, 1]
    "Share of answers in which some word 3-gram (three words in a row) occurs at least 3 times."
    return sum(map(loops, answers)) / len(answers) if answers else math.nan


def rounded(value):
    "Numbers with 5 significant digits, however deep; what is not finite is None."
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _judged(rows: list[dict], start: list[dict] | None) -> dict:
    "Means over the answers, and win rates against the start model's answers to the same prompts."
    mean = lambda values: sum(values) / len(rows)
    right = [row["gold"]["total"] for row in rows if row["gold"]["right"]]
    found = {
        "n": len(rows),
        "gold": mean(row["gold"]["total"] for row in rows),
        "right": len(right) / len(rows),
        # manner: what the gold reward says of answers that are right, and so differ in nothing else
        "gold_where_right": sum(right) / len(right) if right else math.nan,
        "second": mean(row["second"] for row in rows),
        "tokens": mean(row["tokens"] for row in rows),
        "repetition": share_of_loops([row["answer"] for row in rows]),
    }
    if start is None:
        return found
    for name, score in {
        "win_rate": lambda row: row["gold"]["total"],
        "second_win_rate": lambda row: row["second"],
    }.items():
        rate = win_rate(map(score, rows), map(score, start))
        found[name] = {"rate": rate.rate, "low": rate.low, "high": rate.high}
    return found


def _examples(rows: list[dict], study: Study) -> list[dict]:
    assert study.evaluate is not None  # or there would be no answers
    return [
        {"prompt": row["prompt"], "answer": row["answer"]}
        for row in rows[: study.evaluate["examples"]]
    ]


def _line(made: dict, number: int, total: int) -> str:
    "What is said of a run that has ended."
    rate, head = (made["evaluation"] or {}).get("win_rate"), f"[{number}/{total}] {made['name']}: "
    if "error" in made:
        return f"{head}failed: {made['error'].splitlines()[0]}"
    judged = "trained"
    if rate:
        interval = f"[{rate['low']:.3f}, {rate['high']:.3f}]"
        judged = f"gold win rate {rate['rate']:.3f} {interval} against the start"
    return f"{head}{judged} ({clock(made['seconds'])})"


class _Board:
    """What the stages of a study have found so far. It attends their work, and after each run
    writes the JSON and says how it went.
    """

    def __init__(self, study: Study, experiment: Experiment, about, say):
        self.study, self.experiment, self.about, self.say = study, experiment, about, say
        self.finished = {}  # stage -> its run.json
        self.crashes = {}  # stage -> what its process died of
        self.todo, self.count, self.lock = [], 0, threading.Lock()

    def state(self, stage: str) -> dict:  # its run.json; {}: not finished
        prints, folder = self.experiment.prints.get(stage), self.experiment.home / stage
        if stage not in self.finished and prints and is_done(folder, prints["stage"]):
            self.finished[stage] = folder_state(folder)
        return self.finished.get(stage, {})

    def error(self, stage: str) -> str | None:
        "Why a stage has failed: its process died, or numbers were not finite."
        return self.crashes.get(stage) or self.state(stage).get("metrics", {}).get("error")

    def stages(self, one: StudyRun) -> tuple[str, ...]:
        "Those that a run has in this study."
        return one.stages if self.study.evaluate else one.stages[:1]

    # seconds, fingerprint, and error where it has failed; None: it has not ended
    def result(self, one: StudyRun) -> dict | None:
        stages = self.stages(one)
        states, errors = list(map(self.state, stages)), list(filter(None, map(self.error, stages)))
        if not errors and not all(states):
            return None
        seconds = round(sum(state["wall_seconds"] for state in states if state), 1)
        found = {"seconds": seconds or None, "fingerprint": self.fingerprint(one)}
        return found | ({"error": errors[0]} if errors else {})

    def attend(self, stage: Stage, work):
        "Do the work of a stage, unless the one that it needs has failed."
        try:
            if not any(map(self.error, stage.needs)):
                work()
        except StageError as error:
            said = str(error).splitlines()[0]
            self.crashes[stage.name] = said.removeprefix(f"stage {stage.name}: ")
        with self.lock:
            for one in self.todo:
                if self.stages(one)[-1] == stage.name:
                    self.count += 1
                    made = {entry["name"]: entry for entry in self.write()["runs"]}[one.name]
                    self.say(_line(made, self.count, len(self.todo)))

    def answers(self, stage: str) -> list[dict] | None:  # judged; None: there are none yet
        file = self.experiment.home / stage / "answers.jsonl"
        return read_jsonl(file) if self.state(stage) else None

    def lines(self, one: StudyRun) -> list[dict]:
        "The lines of metrics.jsonl, of a stage that died too, with the columns that are kept."
        name = one.folder if self.state(one.folder) else f".{one.folder}.partial"
        file = self.experiment.home / name / "metrics.jsonl"
        rows = read_jsonl(file) if file.exists() else []
        known, keep = {key for row in rows for key in row}, self.study.keep
        kept = known if keep is None else {"step", "split", *keep}
        kept -= {"learning_rate", *TIME_FIELDS}
        return [{key: row[key] for key in row if key in kept} for row in rows]

    def entry(self, one: StudyRun) -> dict | None:
        "What one run found; None where it has not ended."
        result = self.result(one)
        if result is None:
            return None
        start, rows = self.answers(START), self.answers(one.stages[1])
        return rounded(
            {
                "name": one.name,
                "method": one.method,
                "hyperparameters": one.hyperparameters,
                "settings": {**one.settings, **one.data},
                "start": one.start,
                **result,
                "lines": self.lines(one),
                "evaluation": _judged(rows, start) if rows and start else None,
                "examples": _examples(rows, self.study) if rows else [],
            }
        )

    def fingerprint(self, one: StudyRun) -> str | None:  # None: its start is not known here
        return self.experiment.prints.get(self.stages(one)[-1], {}).get("stage")

    def write(self) -> dict:
        """Write the JSON as far as it goes; of runs that have not run here, it keeps what an
        earlier one of the same settings knows.
        """
        study, before, runs = self.study, _known_runs(self.study.output), []
        for one in study.runs:
            made, known = self.entry(one), before.get(one.name)
            if made or (known and self.fingerprint(one) in (None, known.get("fingerprint"))):
                runs.append(made or known)
        start = self.answers(START)
        by_start = {**_judged(start, None), "examples": _examples(start, study)} if start else None
        last = next(reversed(self.finished.values()), {})
        made = {
            "study": study.name,
            **self.about(),
            **{key: last[key] for key in ("versions", "device", "threads") if last},
            "complete": len(runs) == len(study.runs) and not self.crashes,
            "start": study.start,
            "seed": study.seed,
            "evaluate": study.evaluate,
            "start_evaluation": rounded(by_start),
            "runs": runs,
        }
        text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)
        # a line of metrics on one line
        flat = re.sub(r"\{\n[^{}\[\]]*\}", lambda found: re.sub(r"\n *", " ", found[0]), text)
        write_text(study.output, flat + "\n")
        return made


def _known_runs(output: Path) -> dict[str, dict]:
    "The runs of an earlier JSON, without those that failed; none where it is no JSON of a study."
    try:
        runs = json.loads(output.read_text(encoding="utf-8"))["runs"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return {one["name"]: one for one in runs if "error" not in one}


def _picked(study: Study, only: tuple) -> list[StudyRun]:
    "The runs that `--only` names, by their names or their methods."
    for name in only:
        if not any(name in (one.name, one.method) for one in study.runs):
            raise ConfigError(
                "--only: "
                f"there is no run `{name}`.{nearest(name, [one.name for one in study.runs])}"
            )
    return [one for one in study.runs if not only or one.name in only or one.method in only]


def run_study(
    config: str | Path,  # a YAML file
    workers: int = 2,  # runs at a time, each in a process of its own with its share of the cores
    only: tuple[str, ...] = (),  # names or methods of runs; (): all
    output: str | Path | None = None,  # the JSON; None: as the config says
    # holds studies/STUDY/RUN and the start's experiment; None: data/runs
    output_root: str | Path | None = None,
    progress: str = "auto",  # bar | lines | quiet
) -> Path:  # the JSON
    """Run a study: check everything, make its start, skip what is done, go on with what was killed,
    write the JSON. Raises `PrefkitError`s.
    """
    began, study = time.monotonic(), load_study(config)
    if output:
        study = replace(study, output=Path(output).absolute())
    if workers < 1:
        raise ConfigError(f"--jobs must be at least 1, not {workers}.")
    picked = _picked(study, only)
    starts = {json.dumps(start): start for start in (study.start, *(one.start for one in picked))}
    models = {key: _start_model(start, output_root, progress) for key, start in starts.items()}
    home = open_home(output_root, f"studies/{study.name}")
    all_stages = Config(f"studies/{study.name}", study.seed, _stages(study, models, home))
    experiment = open_experiment(all_stages, output_root)
    words = ["prefkit", "study", _shown(config)]
    words = shlex.join(words + (["--jobs", str(workers)] if workers != 2 else []))
    git = git_state()  # now: the JSON itself will differ later
    say = (lambda text: None) if progress == "quiet" else lambda text: print(text, flush=True)
    about = lambda: {
        "command": words,
        "date": time.strftime("%Y-%m-%d"),
        "git": git,
        "workers": workers,
        "seconds": round(before + time.monotonic() - began, 1),
    }
    board = _Board(study, experiment, about, say)
    board.todo = [one for one in picked if not board.result(one)]
    if skipped := len(picked) - len(board.todo):
        say(f"{skipped} of {len(picked)} runs are done already.")
    # of an earlier call
    before = sum(state["wall_seconds"] for state in board.finished.values()) / workers
    wanted = {name for one in board.todo for name in one.stages}
    # the start's answers come first: the others are judged against them
    for names, attend in (({START}, None), (wanted, board.attend)):
        stages = tuple(stage for stage in experiment.config.stages if stage.name in names)
        part = replace(experiment, config=replace(experiment.config, stages=stages))
        carry_out([part], "quiet", workers, attend)
    made = board.write()
    known = {key for one in made["runs"] for line in one["lines"] for key in line}
    if lost := [name for name in study.keep or () if name not in known and made["runs"]]:
        say(f"keep: no run has logged {', '.join(lost)}.")
    return study.output


# What it found, for lessons and reports.


def open_study(
    name: str | Path,  # of data/results/lessons/NAME.json, or a path that ends in .json
) -> dict:
    "The JSON of a study; raises `ConfigError` with the command that makes it where it is missing."
    file = resolve_path(name) if str(name).endswith(".json") else f"lessons/{name}.json"
    return open_results(file, f"prefkit study data/configs/lessons/{Path(file).stem}.yaml")


def study_lines(
    study: dict,  # from `open_study`
):  # -> DataFrame: name, method, learning_rate, each hyper-parameter, step, split, metrics
    "All lines of all runs, one row a line."
    import pandas as pd

    rows = [
        {
            "name": one["name"],
            "method": one["method"],
            "learning_rate": one["settings"].get("learning_rate", TrainSettings.learning_rate),
            **one["hyperparameters"],
            **line,
        }
        for one in study["runs"]
        for line in one["lines"]
    ]
    names = list(dict.fromkeys(key for one in study["runs"] for key in one["hyperparameters"]))
    first = ["name", "method", "learning_rate", *names, "step", "split"]
    frame = pd.DataFrame(
        rows, columns=list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    )
    return frame
