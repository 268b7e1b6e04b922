"""A search for settings: `prefkit search CONFIG` tries values of an experiment's parameters by
Optuna, judged on validation data. Each trial is an ordinary experiment in a process of its own.

What has been tried stands in a journal (or a database, for workers on several machines). A killed
search goes on: a trial whose worker is gone is taken up by another, with the same values, where its
run was left.
"""

import itertools
import json
import math
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock

from prefkit.core import (
    ConfigError,
    DataError,
    announce,
    check_number,
    derive_seed,
    fingerprint,
    is_number,
    nearest,
    project_root,
    resolve_path,
    write_json,
    write_text,
)
from prefkit.runs.config import (
    Config,
    apply_setting,
    check_keys,
    load_config,
    read_config,
)
from prefkit.runs.fingerprints import check_stage
from prefkit.runs.runner import git_state, open_run, run, selected

# ---- the config


@dataclass(frozen=True)
class Range:
    "What one parameter may be: between two numbers, or one of some choices."

    low: float = 0.0
    high: float = 0.0
    log: bool = False  # as likely between 1 and 10 as between 10 and 100
    step: float | None = None
    choices: tuple = ()

    @classmethod
    def of(cls, given, where: str) -> "Range":
        "From a config: {low, high, log, step} or {choices}; raises `ConfigError`."
        check_keys(given, ("low", "high", "log", "step", "choices"), (), where)
        if "choices" in given:
            check_keys(given, ("choices",), ("choices",), where)
            choices = given["choices"]
            if not isinstance(choices, list) or len(choices) < 2:
                raise ConfigError(f"{where}: choices are a list of two or more, not {choices!r}.")
            return cls(choices=tuple(choices))
        check_keys(given, ("low", "high", "log", "step"), ("low", "high"), where)
        made = cls(**given)
        check_number(f"{where}, low", made.low, above=0 if made.log else None)
        check_number(f"{where}, high", made.high, above=made.low)
        return made

    @property
    def ends(self) -> tuple:
        "The first and the last of what it may be."
        return (self.choices[0], self.choices[-1]) if self.choices else (self.low, self.high)

    @property
    def whole(self) -> bool:
        return all(is_number(end, whole=True) for end in self.ends) and not self.choices

    def ask(self, trial, name: str):
        "A value, by Optuna's trial."
        if self.choices:
            return trial.suggest_categorical(name, list(self.choices))
        if self.whole:
            step = {"step": int(self.step)} if self.step else {}
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log, **step)
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def at_edge(self, value) -> str:
        "`lower` or `upper` where a value lies at an end, to a fiftieth of the range; else empty."
        if self.choices:
            numbers = sorted(one for one in self.choices if is_number(one))
            if len(numbers) < len(self.choices):
                return ""  # they have no order
            return "lower" if value == numbers[0] else "upper" if value == numbers[-1] else ""
        scale = math.log if self.log else float
        low, high, here = scale(self.low), scale(self.high), scale(value)
        place = (here - low) / (high - low)
        return "lower" if place < 0.02 else "upper" if place > 0.98 else ""


@dataclass(frozen=True)
class Objective:
    "Which number of which stage says how good a trial is."

    stage: str
    column: str
    table: str = ""  # of an evaluation's metrics, such as win_rates; "": of metrics.jsonl
    where: tuple = ()  # pairs (column, value) that the row of the table has
    direction: str = "maximize"

    def read(self, folder: Path) -> float:
        "The number in a finished run; raises `DataError` where there is none."
        found = open_run(folder)
        if not self.table:
            lines = [line for line in found.metrics.to_dict("records") if self._fits(line)]
            values = [line[self.column] for line in lines if line.get(self.column) is not None]
            values = [value for value in values if value == value][-1:]
        else:
            rows = found.info.get("metrics", {}).get(self.table, [])
            values = [row[self.column] for row in rows if self._has(row)]
        if len(values) != 1 or not is_number(values[0]):
            raise DataError(
                f"objective: {len(values)} rows of {self.stage} have {self.column} with "
                f"{dict(self.where)}. One is needed: name more columns in `where`.",
                field="objective",
                reason="not one number",
            )
        return float(values[0])

    def _fits(self, line):
        return line.get("split") == "validation" and self.column in line

    def _has(self, row):
        return self.column in row and all(row.get(key) == value for key, value in self.where)


@dataclass(frozen=True)
class Search:
    "A search as its config says it, checked."

    name: str
    config: Path  # of the experiment
    settings: tuple[str, ...]  # that hold in every trial, as `--set` has them
    space: dict[str, Range]  # STAGE.PARAMETER, or several with commas -> what they may be
    trials: int
    objective: Objective
    sampler: str  # tpe, random or grid
    seed: int
    prune: str  # a column of the searched stage's validation lines that is to be small; "": none
    output: Path
    storage: str  # of a database; "": a journal beside the trials

    def grid(self) -> list[dict]:
        "All combinations of the choices, in an order drawn by the seed: the first n are a subset."
        choices = [one.choices for one in self.space.values()]
        found = [dict(zip(self.space, values)) for values in itertools.product(*choices)]
        random.Random(self.seed).shuffle(found)
        return found

    @property
    def many(self) -> int:
        "Trials: as many as asked for, and no more than a grid has."
        return min(self.trials, len(self.grid())) if self.sampler == "grid" else self.trials


SAMPLERS = ("tpe", "random", "grid")
KEYS = "search config set space trials objective sampler seed prune output storage".split()


def load_search(
    path: str | Path,  # a YAML file
) -> Search:
    """Read the config of a search and check all of it, both ends of every range among them; raises
    `ConfigError`. `config`: of an experiment. `set`: settings for every trial. `space`:
    STAGE.PARAMETER: {low, high, log, step} or {choices}; several places parted by commas have one
    value. `objective`: {stage, table, where, column, direction}, or without a table the last
    validation value of a column of metrics.jsonl.
    """
    path = resolve_path(path)
    raw = read_config(path)
    check_keys(raw, tuple(KEYS), ("search", "config", "space", "objective"), str(path))
    given = {"trials": 25, "sampler": "tpe", "seed": 0, "prune": "", "set": {}, "storage": ""} | raw
    check_number("trials", given["trials"], whole=True, least=1)
    check_number("seed", given["seed"], whole=True, least=0)
    if given["sampler"] not in SAMPLERS:
        close = nearest(given["sampler"], SAMPLERS)
        raise ConfigError(
            f"{path}: there is no sampler `{given['sampler']}`.{close}",
            field="sampler",
            reason="unknown",
        )
    space = {name: Range.of(one, f"{path}, space, {name}") for name, one in given["space"].items()}
    if given["sampler"] == "grid" and not all(one.choices for one in space.values()):
        raise ConfigError(f"{path}: a grid needs choices for every parameter.", field="sampler")
    own = path.parent / str(given["config"])
    base = own.resolve() if own.is_file() else resolve_path(str(given["config"]))
    settings = _texts(given["set"])
    made = Search(
        str(given["search"]),
        base,
        settings,
        space,
        given["trials"],
        _objective(given["objective"], path),
        given["sampler"],
        given["seed"],
        str(given["prune"]),
        resolve_path(given.get("output") or f"data/results/searches/{given['search']}.json"),
        str(given["storage"]),
    )
    _check_trials(made)
    return made


def _objective(given, path) -> Objective:
    check_keys(
        given,
        ("stage", "column", "table", "where", "direction"),
        ("stage", "column", "direction"),
        f"{path}, objective",
    )
    direction = given["direction"]
    if direction not in ("maximize", "minimize"):
        raise ConfigError(f"{path}, objective: direction is maximize or minimize.")
    where = tuple((given.get("where") or {}).items())
    return Objective(given["stage"], given["column"], given.get("table", ""), where, direction)


def _check_trials(search: Search):
    "Both ends of every range have to make a config; the objective has to be no test."
    ends = [
        load_config(
            search.config,
            (
                *search.settings,
                *_texts({name: one.ends[end] for name, one in search.space.items()}),
            ),
        )
        for end in (0, 1)
    ]
    loaded = ends[0]
    stages = {stage.name: stage for stage in loaded.stages}
    judged = stages.get(search.objective.stage)
    if judged is None:
        raise ConfigError(
            f"objective: there is no stage `{search.objective.stage}`."
            f"{nearest(search.objective.stage, stages)}",
            field="objective",
            reason="unknown stage",
        )
    place = "split" if search.objective.table else "validation_split"
    data = judged.parameters.get("data")
    held = {**judged.parameters, **(data if isinstance(data, dict) else {})}
    if str(held.get(place, "")).startswith("test"):
        raise ConfigError(
            f"objective: {judged.name} is asked on {place}: {held[place]}. What is "
            "chosen by test data cannot be tested by them: set it to validation, such as `set: "
            f"{{{judged.name}.{place}: validation}}`.",
            field="objective",
            reason="chosen on test data",
        )
    if not _touched(search) & _above(loaded, judged.name):
        raise ConfigError(
            f"objective: nothing that is searched changes {judged.name}.", field="space"
        )
    for one in ends:
        for stage in selected(one, (judged.name,)).stages:
            check_stage(stage)


def _texts(values: dict) -> tuple[str, ...]:
    "As `--set` takes them; YAML's own way of writing 1.0e-05 is a number to YAML."
    style = {"default_flow_style": True, "sort_keys": False, "width": 10**6}
    as_text = lambda value: yaml.safe_dump([value], **style).strip()
    return tuple(
        f"{place}={as_text(value)[1:-1]}"
        for name, value in values.items()
        for place in _places(name)
    )


def _places(name: str) -> list[str]:
    "The parameters that a line of the space sets."
    return [place.strip() for place in name.split(",")]


def _touched(search: Search) -> set[str]:
    "Stages that have a parameter in the space."
    return {place.split(".")[0] for name in search.space for place in _places(name)}


def _above(config: Config, stage: str) -> set[str]:
    "A stage and all that it needs."
    return {one.name for one in selected(config, (stage,)).stages}


# ---- one trial


def _parts(search: Search) -> tuple[set[str], set[str]]:
    "The stages of a trial, and those before them, which all trials share."
    loaded = load_config(search.config, search.settings)
    needed = _above(loaded, search.objective.stage)
    touched = _touched(search)
    own = {name for name in needed if _above(loaded, name) & touched}
    return own, needed - own


class Trials:
    "Where the trials of a search lie, and how one is run."

    def __init__(self, search: Search, output_root: str | Path | None = None):
        root = Path(output_root) if output_root else project_root() / "data" / "runs"
        self.search, self.home = search, (root / "searches" / search.name).absolute()
        self.own, self.shared = _parts(search)
        self.home.mkdir(parents=True, exist_ok=True)

    def share(self) -> dict[str, str]:
        "Run what all trials begin with, once; stage -> its checkpoint."
        if not self.shared:
            return {}
        with FileLock(str(self.home / ".shared.lock")):
            settings = (*self.search.settings, "experiment=shared")
            folders = run(
                self.search.config, settings, self.home, "quiet", only=tuple(sorted(self.shared))
            )
        return {name: str(folders[name] / "checkpoint") for name in self.shared}

    def write(self, values: dict, shared: dict[str, str]) -> Path:
        "A trial as the config of an experiment, which can be run by hand."
        raw = read_config(self.search.config)
        for setting in (*self.search.settings, *_texts(values)):
            apply_setting(raw, setting)
        stages = {name: raw["stages"][name] for name in raw["stages"] if name in self.own}
        made = {
            "experiment": f"trial-{fingerprint(values)}",
            "seed": raw.get("seed", 0),
            "stages": _located(stages, shared),
        }
        if raw.get("plugins"):
            here = self.search.config.parent
            made["plugins"] = [
                str((here / one) if (here / one).is_file() else resolve_path(one))
                for one in raw["plugins"]
            ]
        text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
        return write_text(self.home / "trials" / f"{made['experiment']}.yaml", text)

    def folder(self, config: Path, stage: str) -> Path:
        return self.home / config.stem / stage

    def progress(self, config: Path) -> list[tuple[int, float]]:
        "Steps and validation values so far, of the stage that is watched."
        found = []
        for stage in sorted(_touched(self.search)):
            for place in (f".{stage}.partial", stage):
                file = self.folder(config, place) / "metrics.jsonl"
                lines = _whole_lines(file) if file.exists() else []
                found += [
                    (int(line["step"]), float(line[self.search.prune]))
                    for line in lines
                    if line.get("split") == "validation" and self.search.prune in line
                ]
        return sorted(dict(found).items())

    def start(self, config: Path, threads: int) -> subprocess.Popen:
        "The trial's experiment in a process of its own."
        words = [sys.executable, "-m", "prefkit", "run", str(config)]
        words += ["--output-root", str(self.home)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        log = open(config.with_suffix(".log"), "ab")
        with log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=environment)


def _located(value, shared):
    "`stage:NAME` of a shared stage as its checkpoint, however deep."
    if isinstance(value, dict):
        return {key: _located(one, shared) for key, one in value.items()}
    if isinstance(value, list):
        return [_located(one, shared) for one in value]
    name = value.removeprefix("stage:") if isinstance(value, str) else None
    return shared[name] if name in shared and value.startswith("stage:") else value


def _whole_lines(file: Path) -> list[dict]:
    "Lines that are written to their end."
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]


# ---- the search


WORKER = f"{socket.gethostname()}:{os.getpid()}"


def _alive(worker: str) -> bool:
    "Whether a worker may still be at work; of another machine nobody knows."
    host, _, number = worker.rpartition(":")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _database(address: str, file: Path):  # -> (storage, lock)
    """Optuna's storage in a database, and what lets one worker at a time make its tables and take a
    trial: of all machines where PostgreSQL joins them, else of those that see the file. Raises
    `ConfigError` without repeating the address.
    """
    import optuna
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = sqlalchemy.create_engine(address)
        lock = _AdvisoryLock(engine) if engine.dialect.name == "postgresql" else FileLock(str(file))
        with lock:
            return optuna.storages.RDBStorage(address), lock
    except (ImportError, SQLAlchemyError) as error:
        why = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        lacks = isinstance(error, ImportError)
        hint = "its driver is missing: pip install 'psycopg[binary]'" if lacks else why
        raise ConfigError(
            f"storage: the database cannot be used ({hint}). An address is such as "
            "postgresql+psycopg://USER@HOST/DATABASE; without one a journal is kept beside the "
            "trials.",
            field="storage",
            reason="no database",
        ) from None


class _AdvisoryLock:
    "A lock that PostgreSQL holds, and lets go of where its holder dies."

    NUMBER = 0x70726566  # any, the same for all workers

    def __init__(self, engine):
        self.engine = engine

    def __enter__(self):
        import sqlalchemy

        self.connection = self.engine.connect()
        ask = sqlalchemy.text("SELECT pg_advisory_lock(:number)")
        self.connection.execute(ask, {"number": self.NUMBER})

    def __exit__(self, *exception):
        self.connection.invalidate()  # closed for good: its lock goes with it
        self.connection.close()


class Worker:
    "One process that takes trials until there are enough."

    def __init__(self, search: Search, trials: Trials, number: int = 0, threads: int = 1):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search, self.trials, self.threads, self.optuna = search, trials, threads, optuna
        journal = str(trials.home / "journal.log")
        file = trials.home / ".ask.lock"
        if search.storage:
            self.storage, self.lock = _database(search.storage, file)
        else:
            self.storage = JournalStorage(JournalFileBackend(journal))
            self.lock = FileLock(str(file))
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if search.prune else None
        with self.lock:
            self.study = optuna.create_study(
                study_name=search.name,
                storage=self.storage,
                direction=optuna.study.StudyDirection[search.objective.direction.upper()],
                sampler=optuna.samplers.RandomSampler(),
                pruner=pruner or optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            self._check_same()
            begun = len(self.study.get_trials(deepcopy=False))
            # another for each worker, and for each time that the search goes on
            seed = derive_seed(search.seed, number, begun)
            self.study.sampler = (
                optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                if search.sampler == "tpe"
                else optuna.samplers.RandomSampler(seed=seed)
            )

    def _check_same(self):
        "A journal of another search is not gone on with."
        now = fingerprint([repr(self.search.space), repr(self.search.objective)])
        was = self.study.user_attrs.get("search")
        if was not in (None, now):
            raise ConfigError(
                f"{self.trials.home} holds trials of another space or objective. Give the search "
                "another name, or delete that folder.",
                field="search",
                reason="another search",
            )
        self.study.set_user_attr("search", now)

    def take(self):
        """The next trial: (number, values, Optuna's trial or None). One that a dead worker has left
        comes first; None where there are enough.
        """
        with self.lock:
            known = self.study.get_trials(deepcopy=False)
            running = self.optuna.trial.TrialState.RUNNING
            owner = self.study.user_attrs
            for one in known:
                if one.state == running and not _alive(owner.get(f"worker {one.number}", WORKER)):
                    self.study.set_user_attr(f"worker {one.number}", WORKER)
                    return one.number, one.params, None
            if len(known) >= self.search.many:
                return None
            if self.search.sampler == "grid":
                self.study.enqueue_trial(self.search.grid()[len(known)])
            trial = self.study.ask()
            self.study.set_user_attr(f"worker {trial.number}", WORKER)
            values = {name: one.ask(trial, name) for name, one in self.search.space.items()}
            return trial.number, values, trial

    def carry_out(self, number: int, values: dict, trial) -> str:  # what came of it
        "Run a trial to its end, or to where it is given up."
        config = self.trials.write(values, self.trials.share())
        sign = 1 if self.search.objective.direction == "minimize" else -1
        process, reported = self.trials.start(config, self.threads), set()
        try:
            while process.poll() is None:
                time.sleep(0.5)
                if trial is None or not self.search.prune:
                    continue
                for step, value in self.trials.progress(config):
                    if step not in reported:
                        reported.add(step)
                        trial.report(sign * value, step)
                if reported and trial.should_prune():
                    process.kill()
                    process.wait()
                    self.study.tell(number, state=self.optuna.trial.TrialState.PRUNED)
                    return f"given up after step {max(reported)}"
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            self.study.set_user_attr(f"error {number}", _last_words(config.with_suffix(".log")))
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)
            return "failed: " + self.study.user_attrs[f"error {number}"]
        value = self.search.objective.read(self.trials.folder(config, self.search.objective.stage))
        self.study.tell(number, value)
        return f"{self.search.objective.column} {value:.4g}"

    def work(self, say):
        "Trials, until there are enough."
        while (taken := self.take()) is not None:
            number, values, trial = taken
            said = self.carry_out(number, values, trial)
            write_results(self)
            words = ", ".join(f"{name}={_short(value)}" for name, value in values.items())
            say(f"[{number + 1}/{self.search.many}] {words}: {said}")


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _last_words(log: Path) -> str:
    lines = [
        line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line
    ]
    told = [line for line in lines if line.startswith("error:")]
    return (told or lines or ["no word"])[-1].removeprefix("error: ")


def write_results(worker: Worker) -> dict:
    "What has been found so far, as JSON."
    search, study = worker.search, worker.study
    told = study.user_attrs
    trials = [
        {
            "number": one.number,
            "state": one.state.name.lower(),
            "values": one.params,
            "objective": one.value,
            "seconds": round(one.duration.total_seconds(), 1) if one.duration else None,
            "error": told.get(f"error {one.number}"),
        }
        for one in study.get_trials(deepcopy=False)
    ]
    done = [one for one in trials if one["state"] == "complete"]
    pick = max if search.objective.direction == "maximize" else min
    best = pick(done, key=lambda one: one["objective"]) if done else None
    found = {
        "search": search.name,
        "command": told.get("command", ""),
        "date": time.strftime("%Y-%m-%d"),
        "git": git_state(),
        "config": str(search.config.name),
        "set": list(search.settings),
        "sampler": search.sampler,
        "space": {name: _told(one) for name, one in search.space.items()},
        "objective": {**vars(search.objective), "where": dict(search.objective.where)},
        "complete": len(trials) >= search.many and all(t["state"] != "running" for t in trials),
        "best": best,
        "edges": edges(search, best, done),
        "importance": _importance(worker, done),
        "trials": trials,
    }
    write_json(search.output, found)
    return found


def _told(one: Range) -> dict:
    if one.choices:
        return {"choices": list(one.choices)}
    more = {"log": True} if one.log else {}
    return {"low": one.low, "high": one.high, **more, **({"step": one.step} if one.step else {})}


def edges(
    search: Search,
    best: dict | None,  # trial
    done: list[dict],  # all that came to their end
) -> dict[str, str]:  # parameter -> lower or upper
    """Where the best value lies at an end of its range, or beyond all others that were tried (of
    five or more): the range is to be widened.
    """
    found = {}
    if best is None:
        return found
    for name, one in search.space.items():
        here = best["values"][name]
        tried = {trial["values"][name] for trial in done}
        found[name] = one.at_edge(here)
        if not one.choices and len(tried) >= 5 and here in (min(tried), max(tried)):
            found[name] = "upper" if here == max(tried) else "lower"
    return {name: end for name, end in found.items() if end}


def _importance(worker, done) -> dict[str, float]:
    "How much of what differs goes by which parameter (PED-ANOVA); {} for fewer than eight trials."
    if len(done) < 8 or len({one["objective"] for one in done}) == 1:
        return {}
    evaluator = worker.optuna.importance.PedAnovaImportanceEvaluator()
    found = worker.optuna.importance.get_param_importances(worker.study, evaluator=evaluator)
    return {name: round(share, 4) for name, share in found.items()}


def run_search(
    config: str | Path,  # a YAML file
    workers: int = 1,  # processes at a time on this machine
    output_root: str | Path | None = None,  # holds searches/NAME; None: data/runs
    number: int = 0,  # of this worker, where another process started it
) -> Path:  # the JSON
    "Search, or go on; raises `PrefkitError`s."
    check_number("workers", workers, whole=True, least=1)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError(
            "a search needs Optuna: pip install 'prefkit[search]'.",
            field="optuna",
            reason="not installed",
        ) from None
    search = load_search(config)
    trials = Trials(search, output_root)
    threads = max(1, (os.cpu_count() or 1) // workers)
    worker = Worker(search, trials, number, threads)
    words = ["prefkit", "search", str(config)]
    words += ["--jobs", str(workers)] if workers > 1 else []
    if number == 0:
        worker.study.set_user_attr("command", shlex.join(words))
        trials.share()
    others = [_other(config, output_root, one, threads) for one in range(1, workers)]
    try:
        worker.work(announce)
        failed = [one.wait() for one in others]
    finally:
        for one in others:
            one.kill()
    if any(failed):
        raise ConfigError(f"{sum(map(bool, failed))} of {workers} workers failed: see above.")
    if number == 0:
        _tell(worker, write_results(worker))
    return search.output


def _other(config, output_root, number, threads):
    "A further worker, as a process."
    words = [sys.executable, "-m", "prefkit", "search", str(config), "--number", str(number)]
    words += ["--output-root", str(output_root)] if output_root else []
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def _tell(worker, found):
    "The best, what lies at an end, and pictures."
    from prefkit.report.figures import save_figure, use_style
    from prefkit.report.search import draw_importance, draw_landscape

    best = found["best"]
    left = [str(one["number"]) for one in found["trials"] if one["state"] == "running"]
    if left:
        announce(
            f"trials {', '.join(left)} are still with workers on other machines. If one of those "
            "is gone, run this command there again."
        )
    if best is None:
        announce("no trial came to its end.")
        return
    words = ", ".join(f"{name}={_short(value)}" for name, value in best["values"].items())
    announce(f"best: {words}: {found['objective']['column']} {best['objective']:.4g}")
    for name, end in found["edges"].items():
        announce(
            f"warning: the best {name} lies at the {end} end of what was tried: widen its range."
        )
    use_style()
    save_figure(draw_landscape(found), worker.trials.home, "landscape")
    if found["importance"]:
        save_figure(draw_importance(found), worker.trials.home, "importance")
    announce(f"pictures: {worker.trials.home}")
