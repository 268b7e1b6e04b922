"""A study: many short runs from one start, each judged against it, in one small JSON that pictures
are drawn from.

`prefkit study CONFIG` runs it; `open_study` and `study_lines` read what it found. `load_study` says
what a config may hold.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

from prefkit.runs.config import (
    Parameter,
    check_keys,
    check_parameters,
    check_value,
    load_config,
    read_yaml,
)
from prefkit.core import (
    nearest,
    ConfigError,
    NotFinite,
    PrefkitError,
    cache_folder,
    fingerprint,
    fingerprint_files,
    project_root,
    read_jsonl,
    resolve_path,
    write_json,
    write_jsonl,
    write_text,
)
from prefkit.core import bare_code, reached_modules
from prefkit.runs.pipelines import (
    answer_prompts,
    check_sampling,
    check_training,
    chosen_answers,
    encode_once,
    judge_answers,
)
from prefkit.data.records import encode_records, load_records
from prefkit.data.world import tiny_records
from prefkit.model.loading import check_model, load_model
from prefkit.runs.runner import git_state, open_home, run
from prefkit.runs.stage import StageLock, clock, machine, versions
from prefkit.stats.text_metrics import loops
from prefkit.stats.win_rate import win_rate

TOP = ("study", "start", "seed", "common", "runs", "evaluate", "keep", "output")
DATA = {
    parameter.name: parameter
    for parameter in (
        Parameter(
            "limit",
            "int",
            8000,
            "records of the tiny world's training split: pairs, or demonstrations",
        ),
        Parameter(
            "validation_limit",
            "int | None",
            None,
            "records of its validation split; null: no validation",
        ),
        Parameter(
            "answers",
            "str",
            "chosen",
            "what sft imitates: the chosen answers of pairs, or demonstrations",
        ),
        Parameter(
            "dataset_kind",
            "str",
            "pairs",
            "what kto and its like learn from: pairs, each of which gives two rows, or binary",
        ),
        Parameter(
            "probe",
            "bool",
            False,
            "watch the log-probs of 256 validation pairs at every validation",
        ),
    )
}
EVALUATE = {
    parameter.name: parameter
    for parameter in (
        Parameter("prompts", "int", 200),
        Parameter("split", "str", "validation"),
        Parameter("temperature", "float", 0.6),
        Parameter("top_p", "float", 0.95),
        Parameter("max_new_tokens", "int", 64),
        Parameter("batch_size", "int", 128),
        Parameter("examples", "int", 6, "answers that the JSON keeps"),
    )
}
CHOICES = {"answers": ("chosen", "demonstrations"), "dataset_kind": ("pairs", "binary")}
CONCERNS = {"answers": "sft", "dataset_kind": "binary"}  # the kind of method that it is for
START = "_start"  # folder of the start model's own answers


@dataclass(frozen=True)
class StudyRun:
    "One run of a study, checked."

    name: str  # in the JSON
    method: str  # of the method table
    hyperparameters: dict  # all of them, defaults included
    settings: dict  # of training: what the config gives
    data: dict  # values for all of `DATA`
    start: dict  # {config, stage} or {model}

    @property
    def folder(self) -> str:
        return re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.name)


@dataclass(frozen=True)
class Study:
    "A study as its config says it, checked."

    name: str  # of the JSON
    start: dict  # {config, stage} or {model}: what every run is judged against
    seed: int  # of data, training and sampling
    runs: tuple[StudyRun, ...]  # in the order of the config
    evaluate: dict | None  # values for all of `EVALUATE`; None: nothing is judged
    keep: tuple[str, ...] | None  # columns of metrics.jsonl; None: all but times
    output: Path  # the JSON


def _settings() -> dict[str, Parameter]:
    "The fields of `TrainSettings` as parameters of a config."
    from prefkit.train.settings import TrainSettings

    return {
        f.name: Parameter(
            f.name, f.type.__name__ if type(f.type) is type else str(f.type), f.default
        )
        for f in fields(TrainSettings)
    }


def _variants(
    entry: dict,
) -> list[tuple[str, dict]]:  # words for a name such as "beta=0.1", entry without lists
    "Every combination of the values in lists: of the entry and of its hyper-parameters."
    places = [
        (None, key)
        for key, value in entry.items()
        if isinstance(value, list) and key != "lora_targets"
    ]
    places += [
        ("hyperparameters", key)
        for key, value in entry.get("hyperparameters", {}).items()
        if isinstance(value, list)
    ]
    found = []
    for values in itertools.product(
        *(entry[key] if group is None else entry[group][key] for group, key in places)
    ):
        one = {
            **entry,
            **(
                {"hyperparameters": dict(entry["hyperparameters"])}
                if "hyperparameters" in entry
                else {}
            ),
        }
        for (group, key), value in zip(places, values):
            (one if group is None else one[group])[key] = value
        found.append((" ".join(f"{key}={value}" for (_, key), value in zip(places, values)), one))
    return found


def _check_start(start, where: str, seen: dict) -> dict:
    "Raise `ConfigError` unless it is {config, stage}, both there, or {model}."
    check_keys(
        start,
        ("config", "stage", "model"),
        ("model",) if isinstance(start, dict) and "model" in start else ("config", "stage"),
        where,
    )
    if len(start) > 1 and "model" in start:
        raise ConfigError(
            f"{where}: `model` stands alone. Write {{model: FOLDER}} or {{config: FILE, stage: "
            f"NAME}}."
        )
    for name, value in start.items():
        check_value(Parameter(name, "str", ""), value, where)
    if "model" in start:
        check_model(start["model"], where)
        return start
    if start["config"] not in seen:
        try:
            seen[start["config"]] = [stage.name for stage in load_config(start["config"]).stages]
        except ConfigError as error:
            raise ConfigError(f"{where}, config: {error}") from None
    if start["stage"] not in seen[start["config"]]:
        raise ConfigError(
            f"{where}: {start['config']} has no stage "
            f"`{start['stage']}`.{nearest(start['stage'], seen[start['config']])}"
        )
    return start


def _make_run(words: str, entry: dict, own: dict, study: dict, where: str, seen: dict) -> StudyRun:
    "Check one run; `own` is what stands in its entry, `entry` the same over `common`."
    from prefkit.train.methods import check_batch_size
    from prefkit.train.settings import TrainSettings
    from prefkit.train.methods import get_method

    known, given = _settings(), entry.get("hyperparameters", {})
    name = " ".join(filter(None, (str(entry.get("name", entry["method"])), words)))
    where = f"{where} ({name})"
    # also finds numbers as text
    check_value(Parameter("hyperparameters", "dict", {}), given, where)
    settings = {key: value for key, value in entry.items() if key in known}
    data = check_parameters(
        {key: value for key, value in entry.items() if key in DATA}, DATA, where
    )
    check_parameters(settings, known, where)
    try:
        row, made = (
            get_method(entry["method"], online=False),
            TrainSettings(**{"seed": study["seed"], **settings}),
        )
        hyperparameters = row.hyperparameters(given)
        check_batch_size(row, made.batch_size)
        check_training(made, "validation" if data["validation_limit"] else "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for key, kind in CONCERNS.items():
        if key in own and row.kind != kind:
            raise ConfigError(
                f"{where}: `{key}` is for methods of kind {kind}, and {row.name} is of kind "
                f"{row.kind}."
            )
    for key, choices in CHOICES.items():
        if data[key] not in choices:
            raise ConfigError(
                f"{where}: `{key}` must be {' or '.join(choices)}, not {data[key]!r}."
            )
    for key in ("limit", "validation_limit"):
        if data[key] is not None and data[key] < 1:
            raise ConfigError(f"{where}: `{key}` must be at least 1, not {data[key]}.")
    if row.output == "rewards":
        raise ConfigError(
            f"{where}: {row.name} trains no model that answers, so a study cannot judge it. Use "
            "its pipeline."
        )
    start = (
        _check_start(entry["start"], f"{where}, start", seen) if "start" in own else study["start"]
    )
    return StudyRun(
        name, row.name, hyperparameters, {key: getattr(made, key) for key in settings}, data, start
    )


def _check_evaluate(given, where: str) -> dict | None:
    if given is None:
        return None
    check_keys(given, tuple(EVALUATE), (), where)
    values = check_parameters(given, EVALUATE, where)
    try:
        check_sampling(**{key: value for key, value in values.items() if key != "examples"})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if values["examples"] < 0:
        raise ConfigError(f"{where}: `examples` must be at least 0, not {values['examples']}.")
    return values


def load_study(
    path: str | Path,  # a YAML file
) -> Study:
    """Read the config of a study and check all of it; raises `ConfigError` naming file and key.

    `study`: name of the JSON. `start`: {config, stage}, the checkpoint of that stage of that
    experiment, or {model}: a folder; every run begins there, unless it names its own, and is judged
    against it. `seed`. `common`: what holds for all runs. `runs`: entries with `method`,
    `hyperparameters`, any of `prefkit.train.settings.TrainSettings`, any of `DATA`, `name`,
    `start`; lists multiply out, and runs are named after what varies. `evaluate`: any of
    `EVALUATE`; without it nothing is judged. `keep`: columns of metrics.jsonl. `output`: the JSON,
    data/results/lessons/STUDY.json if missing.
    """
    path = resolve_path(path)
    raw = _read_study(path)
    seen, common = {}, raw.get("common") or {}
    check_keys(common, _run_keys(), (), f"{path}, common")
    start = _check_start(raw["start"], f"{path}, start", seen)
    study = {"seed": raw.get("seed", 0), "start": start}
    runs = []
    for number, own in enumerate(raw["runs"], 1):
        where = f"{path}, run {number}"
        entry = _check_entry(own, common, where)
        runs += [_make_run(words, one, own, study, where, seen) for words, one in _variants(entry)]
    twice = [name for name, count in Counter(one.folder for one in runs).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{path}: {[one.name for one in runs if one.folder == twice[0]]} would have one name. "
            "Tell them apart with `name`.",
            field="runs",
            reason="one name twice",
        )
    output = project_root() / "data/results/lessons" / f"{raw['study']}.json"
    return Study(
        raw["study"],
        study["start"],
        study["seed"],
        tuple(runs),
        _check_evaluate(raw.get("evaluate"), f"{path}, evaluate"),
        tuple(raw["keep"]) if raw.get("keep") is not None else None,
        resolve_path(raw["output"]) if "output" in raw else output,
    )


def _run_keys() -> tuple[str, ...]:
    "What an entry of `runs`, or `common`, may hold besides name and start."
    return ("method", "hyperparameters", *DATA, *_settings())


def _check_entry(own: dict, common: dict, where: str) -> dict:
    "An entry of `runs` over what is common to all; raises `ConfigError`."
    check_keys(own, ("name", "start", *_run_keys()), (), where)
    entry = {**common, **own}
    check_keys(entry, tuple(entry), ("method",), where)
    for key in ("hyperparameters", "start"):
        if key in entry:
            known = tuple(entry[key]) if isinstance(entry[key], dict) else ()
            check_keys(entry[key], known, (), f"{where}, {key}")
    for key, value in [*entry.items(), *entry.get("hyperparameters", {}).items()]:
        if value == []:
            raise ConfigError(
                f"{where}: the list of `{key}` is empty. Give it values, or leave it out.",
                field=key,
                reason="empty",
            )
    return entry


def _read_study(path: Path) -> dict:
    "The config of a study as it is written; raises `ConfigError` for what can be told by itself."
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}. Name the config of a study, for example one of "
            "data/configs/lessons."
        ) from None
    raw = read_yaml(text, str(path))
    check_keys(raw, TOP, ("study", "start", "runs"), str(path))
    for parameter in (
        Parameter("study", "str", ""),
        Parameter("seed", "int", 0),
        Parameter("runs", "list[dict]", []),
        Parameter("keep", "list[str] | None", None),
        Parameter("output", "str", ""),
    ):
        if parameter.name in raw:
            check_value(parameter, raw[parameter.name], str(path))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", raw["study"]):
        raise ConfigError(
            f"{path}: `{raw['study']}` cannot name a file. Use letters, digits, and _ . - after "
            "the first."
        )
    if raw.get("seed", 0) < 0:
        raise ConfigError(f"{path}: `seed` must be a whole number from 0 up, not {raw['seed']}.")
    if not raw["runs"]:
        raise ConfigError(
            f"{path}: `runs` is empty. Write at least one, such as - {{method: dpo}}."
        )
    for name in raw.get("keep") or ():
        if name in ("step", "split", "name", "method", "learning_rate"):
            raise ConfigError(f"{path}: `keep` need not name {name}: every line has one already.")
    return raw


# One run, in a process of its own.


def share_of_loops(
    answers: list[str],  # texts
) -> float:  # in [0, 1]
    "Share of answers in which some word 3-gram (three words in a row) occurs at least 3 times."
    return sum(map(loops, answers)) / len(answers) if answers else math.nan


def _rows(tokenizer, kind: str, data: dict, split: str, limit: int, seed: int):
    "Encoded rows of the tiny world, of the kind that a method learns from."
    chosen = kind == "sft" and data["answers"] == "chosen"
    options = {"from_pairs": data["dataset_kind"] == "pairs"} if kind == "binary" else {}
    found = load_records(
        "tiny-world",
        kind="pairs" if chosen else kind,
        split=split,
        limit=limit,
        seed=seed,
        **options,
    )
    return encode_once(chosen_answers(found) if chosen else found, tokenizer, kind=kind)[0]


def _train(job: dict, model, tokenizer, folder: Path):
    "Train one run, or go on with it; returns the model."
    from prefkit.train.saves import OtherRun
    from prefkit.train.settings import TrainSettings
    from prefkit.train.methods import get_method
    from prefkit.train.loop import train_model

    kind, data, seed = (
        get_method(job["method"], online=False).kind,
        job["data"],
        job["settings"]["seed"],
    )
    rows, validation = _rows(tokenizer, kind, data, "train", data["limit"], seed), None
    if data["validation_limit"]:
        validation = _rows(tokenizer, kind, data, "validation", data["validation_limit"], seed)
    probe = _rows(tokenizer, "pairs", data, "validation", 256, seed) if data["probe"] else None

    # what the start says of the data is the same for many runs: they find it in the cache
    def make():
        return train_model(
            model,
            tokenizer,
            job["method"],
            rows,
            validation,
            folder,
            TrainSettings(**job["settings"]),
            job["hyperparameters"],
            probe_rows=probe,
            cache=cache_folder() / "reference",
        ).model

    try:
        return make()
    except OtherRun:
        # the job is checked: the folder holds a run on other data, made by an earlier version of
        # them
        for name in ("training.json", "reference.json", "metrics.jsonl", "samples.jsonl"):
            (folder / name).unlink(missing_ok=True)
        for name in ("checkpoints", "checkpoint"):
            shutil.rmtree(folder / name, ignore_errors=True)
        return make()


def work(
    folder: Path,  # holds job.json
):
    """Carry out one job: train if it names a method, answer and judge if it says how, write
    result.json.
    """
    import torch

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    begin, result, device = (
        time.perf_counter(),
        {"fingerprint": job["fingerprint"]},
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    try:
        model, tokenizer = load_model(job["model"])
        if job["method"]:
            model = _train(job, model, tokenizer, folder)
        if options := job["evaluate"]:
            asked = tiny_records("prompts", options["split"], options["prompts"])
            sampling = {
                key: options[key]
                for key in ("temperature", "top_p", "max_new_tokens", "batch_size")
            }
            write_jsonl(
                folder / "answers.jsonl",
                judge_answers(
                    answer_prompts(model.to(device), tokenizer, asked, seed=job["seed"], **sampling)
                ),
            )
    except NotFinite as error:
        # a finding; anything else is tried again by the next call
        result["error"] = str(error)
    write_json(
        folder / "result.json",
        {
            **result,
            "seconds": round(time.perf_counter() - begin, 1),
            **machine(),
            "versions": versions(),
        },
    )


def _bind_to_parent():
    "End with the process that started this one."
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ["PREFKIT_PARENT"]):
        os._exit(1)


# All runs, and what they found.


def _code() -> str:
    "A fingerprint of all code that a run's numbers come from, comments and layout aside."
    reached = reached_modules(
        [
            (
                "import prefkit.data.records, prefkit.model.sampling, prefkit.runs.pipelines, "
                "prefkit.train.loop, prefkit.stats.win_rate, prefkit.data.world"
            )
        ]
    )
    return fingerprint(
        {name: bare_code(file.read_text(encoding="utf-8")) for name, file in reached.items()}
    )


def _job(study: Study, one: StudyRun | None, model: str, seen: dict) -> dict:
    """What a process has to know of a run (None: of the start model), and its fingerprint:
    settings, start, data, code.
    """
    seen[model] = seen.get(model) or (
        fingerprint_files(Path(model)) if Path(model).exists() else model
    )
    job = {"seed": study.seed, "method": None, "evaluate": study.evaluate}
    if one:
        job |= {
            "method": one.method,
            "hyperparameters": one.hyperparameters,
            "settings": {"seed": study.seed, **one.settings},
            "data": one.data,
        }
    seen["code"] = seen.get("code") or _code()
    training = fingerprint(
        [seen[model], seen["code"], {key: value for key, value in job.items() if key != "evaluate"}]
    )
    return {
        **job,
        "model": model,
        "training": training,
        "fingerprint": fingerprint(
            [
                training,
                {key: value for key, value in (study.evaluate or {}).items() if key != "examples"},
            ]
        ),
    }


def _is_done(folder: Path, job: dict) -> dict | None:  # its result
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result["fingerprint"] == job["fingerprint"] else None


def _begin(folder: Path, job: dict, threads: int) -> subprocess.Popen:
    """Start the process of a job; what is in its folder of other settings goes, what belongs to it
    stays.
    """
    try:
        before = json.loads((folder / "job.json").read_text(encoding="utf-8"))["training"]
    except (OSError, ValueError, KeyError):
        before = None
    if before != job["training"]:
        shutil.rmtree(folder, ignore_errors=True)
    (folder / "result.json").unlink(missing_ok=True)
    write_json(folder / "job.json", job)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PREFKIT_PARENT": str(os.getpid()),
        "PREFKIT_ROOT": str(project_root()),
        "PREFKIT_PROGRESS": str(folder / "progress.json"),
    }
    with open(folder / "worker.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "prefkit.runs.studies", "--one", str(folder)],
            stdout=log,
            stderr=log,
            env=environment,
        )


def _carry_out(jobs: dict[Path, dict], workers: int, finished):
    "Run jobs in `workers` processes at a time; `finished(folder, error)` is called as each ends."
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    queue, running = list(jobs.items()), {}
    try:
        while queue or running:
            while queue and len(running) < workers:
                folder, job = queue.pop(0)
                running[folder] = _begin(folder, job, max(1, cores // workers))
            for folder in [
                folder for folder, process in running.items() if process.poll() is not None
            ]:
                code, said = (
                    running.pop(folder).returncode,
                    (folder / "worker.log").read_text(encoding="utf-8", errors="replace").strip(),
                )
                finished(
                    folder,
                    (
                        f"its process ended with code {code}: "
                        f"{said.splitlines()[-1] if said else 'it said nothing'}"
                    )
                    if not _is_done(folder, jobs[folder])
                    else None,
                )
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.kill()
            process.wait()


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
    found = {
        "n": len(rows),
        "gold": mean(row["gold"]["total"] for row in rows),
        "right": mean(row["gold"]["right"] for row in rows),
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


def _entry(
    study: Study,
    one: StudyRun,
    folder: Path,
    job: dict,
    start: list[dict] | None,
    crash: str | None,
) -> dict | None:
    "What one run found; None where it has not run."
    from prefkit.train.log import TIME_FIELDS

    result = _is_done(folder, job) or ({"error": crash, "seconds": None} if crash else None)
    if result is None:
        return None
    lines = read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    dropped = {
        "step",
        "split",
        "learning_rate",
        *TIME_FIELDS,
        *(() if study.keep is None else {key for line in lines for key in line} - set(study.keep)),
    }
    made = {
        "name": one.name,
        "method": one.method,
        "hyperparameters": one.hyperparameters,
        "settings": {**one.settings, **one.data},
        "start": one.start,
        "seconds": result["seconds"],
        "fingerprint": job["fingerprint"],
        **({"error": result["error"]} if "error" in result else {}),
        "lines": [
            {
                "step": line["step"],
                "split": line["split"],
                **{key: value for key, value in line.items() if key not in dropped},
            }
            for line in lines
        ],
        "evaluation": None,
        "examples": [],
    }
    if study.evaluate and "error" not in result and start is not None:
        rows = read_jsonl(folder / "answers.jsonl")
        made |= {"evaluation": _judged(rows, start), "examples": _examples(rows, study)}
    return rounded(made)


def _start_rows(home: Path, jobs: dict) -> list[dict] | None:
    "The start model's judged answers, where there are any yet."
    folder = home / START
    if folder not in jobs or not (result := _is_done(folder, jobs[folder])):
        return None
    if "error" in result:
        raise ConfigError(f"the start model cannot be judged: {result['error']}")
    return read_jsonl(folder / "answers.jsonl")


def _gathered(study: Study, home: Path, jobs: dict, crashes: dict, about: dict) -> dict:
    """The JSON as far as it goes; of runs that have not run here, what an earlier JSON of the same
    settings knows.
    """
    try:
        before = {
            one["name"]: one
            for one in json.loads(study.output.read_text(encoding="utf-8"))["runs"]
            if "error" not in one
        }
    except (OSError, ValueError, KeyError):
        before = {}
    start, runs, found = (
        _start_rows(home, jobs),
        [],
        [result for folder, job in jobs.items() if (result := _is_done(folder, job))],
    )
    for one in study.runs:
        folder, known = home / one.folder, before.get(one.name)
        made = (
            _entry(study, one, folder, jobs[folder], start, crashes.get(folder))
            if folder in jobs
            else None
        )
        if made:
            runs.append(made)
        elif known and (
            folder not in jobs or known.get("fingerprint") == jobs[folder]["fingerprint"]
        ):
            runs.append(known)
    complete = (
        len(runs) == len(study.runs) and not crashes and (start is not None or not study.evaluate)
    )
    by_start = {**_judged(start, None), "examples": _examples(start, study)} if start else None
    machine = {key: found[-1][key] for key in ("versions", "device", "threads")} if found else {}
    return {
        "study": study.name,
        **about,
        **machine,
        "complete": complete,
        "start": study.start,
        "seed": study.seed,
        "evaluate": study.evaluate,
        "start_evaluation": rounded(by_start),
        "runs": runs,
    }


def _line(made: dict, number: int, total: int) -> str:
    "What is said of a run that has ended."
    rate, head = (made["evaluation"] or {}).get("win_rate"), f"[{number}/{total}] {made['name']}: "
    if "error" in made:
        return f"{head}failed: {made['error'].splitlines()[0]}"
    judged = (
        (
            f"gold win rate {rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] against the "
            "start"
        )
        if rate
        else "trained"
    )
    return f"{head}{judged} ({clock(made['seconds'])})"


def _picked(study: Study, only: tuple) -> list[StudyRun]:
    "The runs that `--only` names, by their names or their methods."
    for name in only:
        if not any(name in (one.name, one.method) for one in study.runs):
            raise ConfigError(
                "--only: "
                f"there is no run `{name}`.{nearest(name, [one.name for one in study.runs])}"
            )
    return [one for one in study.runs if not only or one.name in only or one.method in only]


def _start_model(start: dict, output_root, progress: str) -> str:
    """The folder (or Hub name) of the model that a study starts from; made where it is a stage that
    has not run.
    """
    if "model" in start:
        return (
            str(resolve_path(start["model"]))
            if resolve_path(start["model"]).exists()
            else start["model"]
        )
    folder = run(start["config"], (), output_root, progress, only=(start["stage"],))[start["stage"]]
    if not (folder / "checkpoint").is_dir():
        raise ConfigError(
            f"start: {folder} holds no checkpoint. Delete this folder to have the stage run again."
        )
    return str(folder / "checkpoint")


class _Board:
    """Writes the JSON after each run and says how it went; holds a line back until the start model
    is judged.
    """

    def __init__(self, study, home, jobs, todo, about, say):
        (
            self.study,
            self.home,
            self.jobs,
            self.todo,
            self.about,
            self.say,
            self.crashes,
            self.held,
            self.count,
        ) = study, home, jobs, todo, about, say, {}, [], 0

    def write(self) -> dict:
        made = _gathered(self.study, self.home, self.jobs, self.crashes, self.about())
        text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)
        # a line of metrics on one line
        write_text(
            self.study.output,
            re.sub(r"\{\n[^{}\[\]]*\}", lambda found: re.sub(r"\n *", " ", found[0]), text) + "\n",
        )
        return made

    def finished(self, folder: Path, crash: str | None):
        if folder == self.home / START:
            if crash:
                raise PrefkitError(
                    f"the start model could not be judged: {crash}\n(what it said: "
                    f"{folder / 'worker.log'})"
                )
        else:
            self.held.append(folder)
        if crash:
            self.crashes[folder] = crash
        made, names = (
            {one["name"]: one for one in self.write()["runs"]},
            {self.home / one.folder: one.name for one in self.study.runs},
        )
        if self.home / START in self.jobs and not _is_done(
            self.home / START, self.jobs[self.home / START]
        ):
            return
        for folder in self.held:
            self.count += 1
            self.say(_line(made[names[folder]], self.count, len(self.todo - {self.home / START})))
        self.held = []


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
        raise ConfigError(f"--workers must be at least 1, not {workers}.")
    picked, home = _picked(study, only), open_home(output_root, f"studies/{study.name}")
    models, seen = {}, {}
    say = (lambda text: None) if progress == "quiet" else lambda text: print(text, flush=True)
    with StageLock(home / ".lock"):
        for start in [study.start, *(one.start for one in picked)]:
            if (key := json.dumps(start)) not in models:
                models[key] = _start_model(start, output_root, progress)
        jobs = {}
        if study.evaluate:
            jobs[home / START] = _job(study, None, models[json.dumps(study.start)], seen)
        for one in study.runs:
            if (key := json.dumps(one.start)) in models:
                jobs[home / one.folder] = _job(study, one, models[key], seen)
        wanted = {home / START, *(home / one.folder for one in picked)}
        done = {folder: result for folder, job in jobs.items() if (result := _is_done(folder, job))}
        todo = {folder: job for folder, job in jobs.items() if folder in wanted - done.keys()}
        if skipped := len(picked) - len(todo.keys() - {home / START}):
            say(f"{skipped} of {len(picked)} runs are done already.")
        words = ["prefkit", "study", _shown(config)]
        words = shlex.join(words + (["--workers", str(workers)] if workers != 2 else []))
        before = sum(result["seconds"] for result in done.values()) / workers  # of an earlier call
        git = git_state()  # now: the JSON itself will differ later
        about = lambda: {
            "command": words,
            "date": time.strftime("%Y-%m-%d"),
            "git": git,
            "workers": workers,
            "seconds": round(before + time.monotonic() - began, 1),
        }
        board = _Board(study, home, jobs, todo.keys(), about, say)
        _carry_out(todo, workers, board.finished)
        made = board.write()
    known = {key for one in made["runs"] for line in one["lines"] for key in line}
    if lost := [name for name in study.keep or () if name not in known and made["runs"]]:
        say(f"keep: no run has logged {', '.join(lost)}.")
    return study.output


def _shown(config: str | Path) -> str:
    "The config's path as a person in the project's folder would write it."
    path = resolve_path(config)
    return (
        path.relative_to(project_root()).as_posix()
        if path.is_relative_to(project_root())
        else str(config)
    )


# What it found, for lessons and reports.


def open_study(
    name: str | Path,  # of data/results/lessons/NAME.json, or a path that ends in .json
) -> dict:
    "The JSON of a study; raises `ConfigError` with the command that makes it where it is missing."
    path = (
        resolve_path(name)
        if str(name).endswith(".json")
        else project_root() / "data/results/lessons" / f"{name}.json"
    )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{path}: no such study. Run it: prefkit study data/configs/lessons/{path.stem}.yaml."
        ) from None
    except ValueError:
        raise ConfigError(
            f"{path}: not valid JSON. Run the study again: prefkit study "
            f"data/configs/lessons/{path.stem}.yaml."
        ) from None


def study_lines(
    study: dict,  # from `open_study`
):  # -> DataFrame: name, method, learning_rate, each hyper-parameter, step, split, metrics
    "All lines of all runs, one row a line."
    import pandas as pd
    from prefkit.train.settings import TrainSettings

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


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--one":
        sys.exit(
            "This carries out one job of a study: python -m prefkit.runs.studies --one FOLDER. A "
            "study is run by: prefkit study CONFIG"
        )
    _bind_to_parent()
    work(Path(sys.argv[2]))
