"""One experiment over several random seeds: run it for each, gather what its evaluations found, and
say how far seeds differ.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from filelock import FileLock
import yaml

from prefkit.core import ConfigError, fingerprint, project_root, resolve_path, write_json
from prefkit.runs.config import load_config
from prefkit.runs.runner import carry_out, open_experiment, open_run
from prefkit.stats.intervals import mean_interval, pooled_spread, smallest_detectable


def mean_over_seeds(values: list[float]) -> dict:
    """Mean over seeds with its 95 % interval by Student's t, which knows that three seeds are few;
    one seed has none.
    """
    mean, *bounds = mean_interval(values)
    low, high = bounds if len(values) > 1 else (None, None)
    return {"mean": mean, "low": low, "high": high, "seeds": len(values)}


# What an evaluation finds: table -> columns that name a row. All other columns are numbers, but for
# intervals and counts within one seed.
TABLES = {
    "win_rates": ("model", "reference", "judge"),
    "differences": ("model", "reference"),
    "scores": ("model",),
    "distances": ("model", "start"),
    "best_of_n": ("chosen_by", "n"),
    "own_pairs": ("stage", "part"),
    "synthesize": ("stage", "part"),
    "texts": ("model",),
    "spreads": ("model", "judge"),
    "instructions": ("model", "against"),
}
# name a row too, where an evaluation had several
WAYS = ("instruction", "decoding", "token_limit")
WITHIN = ("n", "wins", "ties")


# What a picture of training needs of metrics.jsonl, where the lines are kept.
LINES = (
    "step",
    "split",
    "loss",
    "nll",
    "logps_chosen",
    "logps_rejected",
    "logratio_chosen",
    "logratio_rejected",
    "reward",
    "reward_accuracy",
    "kl_k1",
    "reward_gold",
    "log_odds_ratio",
    "bonus",
    "length",
    "entropy",
    "grad_norm",
    "seconds",
    "seconds_sampling",
)


def training_lines(metrics) -> list[dict]:  # of a run's metrics, a DataFrame
    "Its lines with the columns of `LINES` that they have, four significant digits."
    keep = [name for name in LINES if name in metrics]
    return [
        {
            name: float(f"{value:.4g}")
            if isinstance(value, float) and not value.is_integer()
            else value
            for name, value in line.items()
            if value == value
        }
        for line in metrics[keep].to_dict("records")
    ]


def findings(
    folders: dict[str, Path],  # stage -> its run folder
    lines: bool = False,  # keep the course of training too
) -> dict:
    """What the evaluations of one finished experiment found, the curves of its stages where they
    tell one, and their wall times.
    """
    runs = {name: open_run(folder) for name, folder in folders.items()}
    metrics = {name: one.info.get("metrics", {}) for name, one in runs.items()}
    if not any(name in one for one in metrics.values() for name in (*TABLES, "curve")):
        raise ConfigError(
            "the experiment has no stage that evaluates, or tells a curve: there is nothing to "
            "compare over seeds."
        )
    found = {
        table: [
            {"stage": name, **row} for name, one in metrics.items() for row in one.get(table, [])
        ]
        for table in TABLES
    }
    course = (
        {
            "training": {
                name: training_lines(one.metrics) for name, one in runs.items() if len(one.metrics)
            }
        }
        if lines
        else {}
    )
    return {
        **{table: rows for table, rows in found.items() if rows},
        **course,
        "curves": {name: one["curve"] for name, one in metrics.items() if "curve" in one},
        "examples": {
            name: last
            for name, one in runs.items()
            if (last := last_answers(getattr(one, "samples", [])))
        },
        **told_of(runs),
        "wall_seconds": {name: round(one.info["wall_seconds"], 1) for name, one in runs.items()},
    }


def told_of(
    runs: dict,  # stage -> its opened run
) -> dict:  # name -> stage -> what it says; without what nobody says
    """What stages say besides numbers: answers side by side, what had been done to the weights that
    a model began with, and the account of the rows that it was trained on. Results are committed,
    so that the prompts of a file outside the project are named by their rows, not quoted.
    """
    told = {"answers": {}, "weights": {}, "rows": {}}
    for name, one in runs.items():
        about, data = one.info.get("model") or {}, one.info.get("data") or {}
        answers = one.info.get("metrics", {}).get("answers") or []
        if _is_elsewhere(data.get("dataset")):
            answers = [{k: v for k, v in each.items() if k != "prompt"} for each in answers]
        told["answers"][name] = answers
        told["weights"][name] = about.get("weights")
        told["rows"][name] = {
            part: account["text"]
            for part, account in data.items()
            if isinstance(account, dict) and "text" in account
        }
    kept = {
        what: {name: said for name, said in each.items() if said} for what, each in told.items()
    }
    return {what: each for what, each in kept.items() if each}


def _is_elsewhere(dataset) -> bool:
    "Whether a data set is a file or folder outside the project."
    if not isinstance(dataset, str):
        return False
    place = resolve_path(dataset)
    return place.exists() and not place.resolve().is_relative_to(project_root().resolve())


def last_answers(samples: list[dict]) -> list[dict]:  # the lines of samples.jsonl
    "The answers of the last validation where they have rewards, as plain text."
    last = max((line["step"] for line in samples), default=0)
    return [
        {
            "prompt": line["prompt"][-1]["content"],
            **{name: line[name] for name in ("answer", "tokens", "ended", "reward")},
        }
        for line in samples
        if line["step"] == last and "reward" in line
    ]


def over_seeds(found: Mapping[Any, dict]) -> dict:
    """Means over seeds of every number in every table, with intervals, and the smallest difference
    that so many seeds tell from none in four cases of five (`detectable`), the spread between seeds
    pooled over the rows that differ in their first column only: models, for instance.
    """
    return {
        table: _gathered([row for seed in found.values() for row in seed.get(table, [])], keys)
        for table, keys in TABLES.items()
        if any(table in seed for seed in found.values())
    }


def _gathered(rows: list[dict], keys: tuple[str, ...]) -> list[dict]:
    "The rows of a table in all seeds, one for each name of a row."
    named = {}
    for row in rows:
        name = tuple((key, row[key]) for key in (*keys, *WAYS) if key in row)
        columns = named.setdefault(name, {})
        for column in _numbers(row):
            columns.setdefault(column, []).append(row[column])

    def over(name, column):
        arms = [other.get(column, []) for one, other in named.items() if one[1:] == name[1:]]
        own = named[name][column]
        told = smallest_detectable(pooled_spread(arms), len(own))
        return mean_over_seeds(own) | {"detectable": None if math.isnan(told) else told}

    return [
        {**dict(name), **{column: over(name, column) for column in columns}}
        for name, columns in named.items()
    ]


def _numbers(row: dict) -> list[str]:
    """The columns of a row that are numbers of their own. One may be None in a seed, as a standard
    error is where a fit separates.
    """
    return [
        name
        for name, value in row.items()
        if isinstance(value, (int, float))
        and name not in (*WITHIN, *WAYS)
        and not name.endswith(("low", "high"))
    ]


def run_seeds(
    config: str | Path,  # a YAML file
    seeds: list[int],  # one whole experiment each
    output: str | Path | None = None,  # the JSON; None: data/results/seeds/<experiment>.json
    settings: tuple = (),  # texts of --set
    output_root: str | Path | None = None,  # holds the experiments' folders; None: data/runs
    progress: str = "auto",  # bar | lines | quiet
    jobs: int = 1,  # stages at a time, of whichever seed
    lines: bool = False,  # keep the course of training too: for pictures of it
    add: bool = False,  # to the seeds that the JSON holds, which are not run again
) -> Path:  # the JSON
    """Run an experiment for each seed (finished stages are skipped) and write what was found;
    raises `PrefkitError`s.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds: give different whole numbers, such as 0,1,2, not {seeds}.")
    text = (
        resolve_path(config).read_text(encoding="utf-8") if resolve_path(config).is_file() else ""
    )
    name = (
        next((word.split("=", 1)[1] for word in settings if word.startswith("experiment=")), None)
        or (yaml.safe_load(text) or {}).get("experiment")
        or "seeds"
    )
    output = Path(output or project_root() / "data/results/seeds" / f"{name}.json")
    made_from = fingerprint([text, *settings] if settings else text)
    found = _found_before(output, made_from) if add else {}
    wanted = [seed for seed in seeds if str(seed) not in found]
    checked = [
        load_config(config, (*settings, f"seed={seed}", f"experiment={name}-seed{seed}"))
        for seed in wanted
    ]
    experiments = [open_experiment(one, output_root) for one in checked]
    folders = carry_out(experiments, progress, jobs) if wanted else []
    for seed, runs in zip(wanted, folders):
        found[str(seed)] = findings(runs, lines) | {"made": _made(runs)}
    turn = Path(gettempdir()) / f"prefkit-{fingerprint(str(output.resolve()))}.lock"
    with FileLock(turn):
        # others may have added theirs meanwhile
        found = (_found_before(output, made_from) if add else {}) | found
        found = {seed: found[seed] for seed in sorted(found, key=int)}
        made = {
            "command": _command(config, found, settings, lines),
            "config": made_from,
            **list(found.values())[-1]["made"],
            "over_seeds": over_seeds(found),
            "seeds": found,
        }
        return write_json(output, made)


def _found_before(output: Path, made_from: str) -> dict[str, dict]:
    "The seeds that a file holds; raises `ConfigError` where another config made them."
    if not output.exists():
        return {}
    try:
        held = json.loads(output.read_text(encoding="utf-8"))
        same = held["config"] == made_from and all("made" in one for one in held["seeds"].values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{output}: no seeds can be added to it ({error!r}). Leave --add out to write it anew.",
            field="add",
            reason="no results of seeds",
        ) from error
    if not same:
        raise ConfigError(
            f"{output}: its seeds were made from another config, or before their origin was kept, "
            "and cannot stand beside new ones. Leave --add out to run all of them anew.",
            field="add",
            reason="another config",
        )
    return held["seeds"]


def _made(runs: dict) -> dict:
    "When, where and by what the stages of a seed were made: by its last."
    info = open_run(list(runs.values())[-1]).info
    told = {key: info[key] for key in ("git", "versions", "device", "threads") if key in info}
    return {"date": time.strftime("%Y-%m-%d"), **told}


def _command(config, found: dict, settings: tuple, lines: bool) -> str:
    "The command that makes a file, in one go; a config of the project is named by its place in it."
    whole, root = resolve_path(config).resolve(), project_root().resolve()
    config = whole.relative_to(root).as_posix() if whole.is_relative_to(root) else config
    seeds = ("--seeds", ",".join(found))
    more = [word for setting in settings for word in ("--set", setting)]
    return shlex.join(["prefkit", "seeds", str(config), *seeds, *more, *(["--lines"] * lines)])


def open_results(
    name: str | Path,  # below data/results, such as seeds/online.json, or a whole path
    command: str,  # that makes it
) -> dict:
    """Results that were measured and committed; raises `ConfigError` naming the command where they
    are missing, or broken.
    """
    path = resolve_path(Path("data/results") / name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = Path("data/results") / name
        raise ConfigError(f"{there} is not there. Make it: {command}") from None
    except ValueError:
        raise ConfigError(f"{path}: not valid JSON. Make it again: {command}") from None
