"""The config of a study: what it may hold, read and checked before anything runs."""

import itertools
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from prefkit.core import ConfigError, nearest, resolve_path
from prefkit.data.sources import check_options
from prefkit.model.loading import check_model
from prefkit.runs.config import (
    LONGEST_NAME,
    TAKEN,
    Parameter,
    check_keys,
    check_parameters,
    check_value,
    load_config,
    put,
    read_config,
    specified,
)
from prefkit.runs.pipelines import check_sampling, check_training
from prefkit.train.methods import check_batch_size, get_method
from prefkit.train.settings import Settings, TrainSettings, setting

TOP = {  # what a config may hold besides these: start, common, evaluate
    "study": "str",
    "seed": "int",
    "runs": "list[dict]",
    "keep": "list[str] | None",
    "output": "str",
}


@dataclass
class StudyData(Settings):
    "What a run learns from: records of the tiny world."

    limit: int = setting(8000, "of its training split: pairs, or demonstrations", low=1)
    validation_limit: int | None = setting(
        None, "of its validation split; null: no validation", low=1
    )
    answers: str = setting(
        "chosen",
        "what sft imitates: the chosen answers of pairs, or demonstrations",
        choices=("chosen", "demonstrations"),
    )
    dataset_kind: str = setting(
        "pairs",
        "what kto and its like learn from: pairs, each of which gives two rows, or binary",
        choices=("pairs", "binary"),
    )
    dataset_options: dict = setting(
        {},
        "of the pairs: truth and manner (0 to 1), temperature; those of the world where not given",
    )
    probe: bool = setting(False, "watch the log-probs of 256 validation pairs at every validation")


@dataclass
class Evaluation(Settings):
    "What every model is asked, and how it answers."

    prompts: int = setting(200, "of the tiny world")
    split: str = setting("validation", "of the tiny world")
    temperature: float = setting(0.6, "of sampling; 0 is greedy")
    top_p: float = setting(0.95, "nucleus; 1 keeps every token")
    max_new_tokens: int = setting(64, "answers are cut off there")
    batch_size: int = setting(128, "prompts at a time")
    examples: int = setting(6, "answers that the JSON keeps", low=0)

    def __post_init__(self):
        super().__post_init__()
        check_sampling(**{key: value for key, value in asdict(self).items() if key != "examples"})


RUN = specified(StudyData) | specified(TrainSettings)  # what a run may be given, flat
CONCERNS = {"answers": "sft", "dataset_kind": "binary"}  # the kind of method that it is for


@dataclass(frozen=True)
class StudyRun:
    "One run of a study, checked."

    name: str  # in the JSON
    method: str  # of the method table
    hyperparameters: dict  # all of them, defaults included
    settings: dict  # of training: what the config gives
    data: dict  # values for all of `StudyData`
    start: dict  # {config, stage} or {model}

    @property
    def folder(self) -> str:
        "Of the stage that trains it."
        return re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.name)

    @property
    def stages(self) -> tuple[str, str]:
        "That trains it, and of its answers."
        return self.folder, f"{self.folder}@answers"


@dataclass(frozen=True)
class Study:
    "A study as its config says it, checked."

    name: str  # of the JSON
    start: dict  # {config, stage} or {model}: what every run is judged against
    seed: int  # of data, training and sampling
    runs: tuple[StudyRun, ...]  # in the order of the config
    evaluate: dict | None  # values for all of `Evaluation`; None: nothing is judged
    keep: tuple[str, ...] | None  # columns of metrics.jsonl; None: all but times
    output: Path  # the JSON


# words for a name such as "beta=0.1", the entry without lists
def _variants(entry: dict) -> list[tuple[str, dict]]:
    "Every combination of the values in lists: of the entry and of its hyper-parameters."
    deep = {("hyperparameters", key): v for key, v in entry.get("hyperparameters", {}).items()}
    flat = {(key,): value for key, value in entry.items() if key != "lora_targets"}
    lists = {place: v for place, v in [*flat.items(), *deep.items()] if isinstance(v, list)}
    found = []
    for values in itertools.product(*lists.values()):
        words, one = [], entry
        for place, value in zip(lists, values):
            words.append(f"{place[-1]}={value}")
            one = put(one, place, value)
        found.append((" ".join(words), one))
    return found


def _check_start(start, where: str, seen: dict) -> dict:
    "Raise `ConfigError` unless it is {config, stage}, both there, or {model}."
    needed = ("config", "stage")
    if isinstance(start, dict) and "model" in start:
        needed = ("model",)
    check_keys(start, ("config", "stage", "model"), needed, where)
    if len(start) > len(needed):
        raise ConfigError(
            f"{where}: `model` stands alone. Write {{model: FOLDER}} or {{config: FILE, stage: "
            f"NAME}}."
        )
    for name, value in start.items():
        check_value(Parameter(name, "str", ""), value, where)
    if "model" in start:
        check_model(start["model"], where)
        return start
    config, stage = start["config"], start["stage"]
    if config not in seen:
        try:
            seen[config] = [one.name for one in load_config(config).stages]
        except ConfigError as error:
            raise error.at(f"{where}, config") from None
    if stage not in seen[config]:
        raise ConfigError(
            f"{where}: {config} has no stage `{stage}`.{nearest(stage, seen[config])}"
        )
    return start


def _settings_of(kind: type[Settings], given: dict, where: str):
    "Those of some named values that are settings of a kind, as an object; raises `ConfigError`."
    known = specified(kind)
    # also finds numbers as text
    check_parameters({key: given[key] for key in given if key in known}, known, where)
    try:
        return kind.of(given)
    except ConfigError as error:
        raise error.at(where) from None


def _make_run(words: str, entry: dict, own: dict, study: dict, where: str, seen: dict) -> StudyRun:
    "Check one run; `own` is what stands in its entry, `entry` the same over `common`."
    name = " ".join(filter(None, (str(entry.get("name", entry["method"])), words)))
    where, given = f"{where} ({name})", entry.get("hyperparameters", {})
    check_value(Parameter("hyperparameters", "dict", {}), given, where)
    data = _settings_of(StudyData, entry, where)
    made = _settings_of(TrainSettings, {"seed": study["seed"], **entry}, where)
    try:
        row = get_method(entry["method"], online=False)
        hyperparameters = row.hyperparameters(given)
        check_batch_size(row, made.batch_size)
        check_training(made, "validation" if data.validation_limit else "")
    except ConfigError as error:
        raise error.at(where) from None
    for key, kind in CONCERNS.items():
        if key in own and row.kind != kind:
            raise ConfigError(
                f"{where}: `{key}` is for methods of kind {kind}, and {row.name} is of kind "
                f"{row.kind}."
            )
    if row.output == "rewards":
        raise ConfigError(
            f"{where}: {row.name} trains no model that answers, so a study cannot judge it. Use "
            "its pipeline."
        )
    learned = "pairs" if (row.kind, data.answers) == ("sft", "chosen") else row.kind
    try:
        check_options("tiny-world", learned, data.dataset_options)
    except ConfigError as error:
        raise error.at(where) from None
    start = study["start"]
    if "start" in own:
        start = _check_start(entry["start"], f"{where}, start", seen)
    settings = {key: getattr(made, key) for key in entry if key in vars(made)}
    return StudyRun(name, row.name, hyperparameters, settings, asdict(data), start)


def load_study(
    path: str | Path,  # a YAML file
) -> Study:
    """Read the config of a study and check all of it; raises `ConfigError` naming file and key.

    `study`: name of the JSON. `start`: {config, stage}, the checkpoint of that stage of that
    experiment, or {model}: a folder; every run begins there, unless it names its own, and is judged
    against it. `seed`. `common`: what holds for all runs. `runs`: entries with `method`,
    `hyperparameters`, any of `prefkit.train.settings.TrainSettings`, any of `StudyData`, `name`,
    `start`; lists multiply out, and runs are named after what varies. `evaluate`: any of
    `Evaluation`; without it nothing is judged. `keep`: columns of metrics.jsonl. `output`: the
    JSON, data/results/lessons/STUDY.json if missing.
    """
    path = resolve_path(path)
    raw = _read_study(path)
    seen, common = {}, raw.get("common") or {}
    check_keys(common, ("method", "hyperparameters", *RUN), (), f"{path}, common")
    start = _check_start(raw["start"], f"{path}, start", seen)
    study = {"seed": raw.get("seed", 0), "start": start}
    runs = []
    for number, own in enumerate(raw["runs"], 1):
        where = f"{path}, run {number}"
        entry = _check_entry(own, common, where)
        runs += [_make_run(words, one, own, study, where, seen) for words, one in _variants(entry)]
    for one in runs:
        _check_folder(one, str(path))
    twice = [name for name, count in Counter(one.folder for one in runs).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{path}: {[one.name for one in runs if one.folder == twice[0]]} would have one name. "
            "Tell them apart with `name`.",
            field="runs",
            reason="one name twice",
        )
    evaluate = raw.get("evaluate")
    if evaluate is not None:
        check_keys(evaluate, tuple(specified(Evaluation)), (), f"{path}, evaluate")
        evaluate = asdict(_settings_of(Evaluation, evaluate, f"{path}, evaluate"))
    output = raw.get("output", f"data/results/lessons/{raw['study']}.json")
    return Study(
        raw["study"],
        study["start"],
        study["seed"],
        tuple(runs),
        evaluate,
        tuple(raw["keep"]) if raw.get("keep") is not None else None,
        resolve_path(output),
    )


def _check_folder(run: StudyRun, where: str):
    "Raise `ConfigError` for a name that would make a folder outside of the study, or another's."
    name = run.folder
    fine = re.match("[A-Za-z0-9]", name) and len(name) <= LONGEST_NAME and not TAKEN.search(name)
    if not fine or name == "report" or name.endswith(".ipynb"):
        raise ConfigError(
            f"{where}: `{run.name[:60]}` cannot name the folder of a run. Begin with a letter or a "
            f"digit and use at most {LONGEST_NAME}; `report` and endings such as .partial, .old, "
            ".lock and .ipynb are taken.",
            field="name",
            reason="no name of a folder",
        )


def _check_entry(own: dict, common: dict, where: str) -> dict:
    "An entry of `runs` over what is common to all; raises `ConfigError`."
    check_keys(own, ("name", "start", "method", "hyperparameters", *RUN), (), where)
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
    raw = read_config(path)
    known = (*TOP, "start", "common", "evaluate")
    check_keys(raw, known, ("study", "start", "runs"), str(path))
    for name, kind in TOP.items():
        if name in raw:
            check_value(Parameter(name, kind, None), raw[name], str(path))
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
