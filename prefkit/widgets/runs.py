"""Several runs beside each other: their curves in one metric, the settings in which they differ,
and where they ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import yaml

from prefkit.core import ConfigError, DataError, read_jsonl, resolve_path
from prefkit.report.curves import SIDES, course, curve
from prefkit.report.stages import overview
from prefkit.train.log import TIME_FIELDS
from prefkit.train.saves import find_checkpoints, read_claim
from prefkit.widgets.pieces import beside, draw_lines, note, say_number, table
from prefkit.widgets.view import Choice, Explorer, Several, picture

__all__ = ["RunFolder", "draw_comparison", "explore_runs", "read_run_folder", "settings_apart"]

BOTH_SPLITS = ("validation", "train")
MOST_RUNS = 6  # lines that can be told apart
AXES = {"step": "optimiser step", "epoch": "passes over the data", "seconds": "seconds of training"}
RUN_WHERE = (
    "Name the folder of a training stage (data/runs/EXPERIMENT/STAGE) or the output_dir that "
    "train_model was given."
)
# settings that say where a run lies or how it was watched, and not what it learns
ASIDE = set("output_dir steps_taken best_step best_loss finished notes files lines".split())
ABSENT = "—"  # of a setting that a run does not have
CALLED = {  # how a column begins -> what it is, on an axis
    "logps": "log-prob (nats an answer)",
    "logratio": "log-ratio (nats an answer)",
    "kl_k1": "KL from the start (nats an answer)",
    "length": "length of answers (tokens)",
}


@dataclass(frozen=True)
class RunFolder:
    "What a training run has left in its folder."

    folder: Path
    name: str
    metrics: pd.DataFrame  # metrics.jsonl: a row a line
    samples: list[dict] = field(repr=False)  # samples.jsonl; [] where there is none
    params: dict = field(repr=False)  # settings as they were written; {} where nothing says
    checkpoints: dict[int, Path] = field(repr=False)  # step -> folder; those that were kept
    _curves: dict = field(default_factory=dict, repr=False)  # that were asked for

    @cached_property
    def lines(self) -> list[dict]:
        "The lines of metrics.jsonl."
        return self.metrics.to_dict("records")

    @cached_property
    def named(self) -> dict[str, tuple[str, ...]]:  # what is offered -> its columns
        """The metrics that were logged; what was logged of chosen and rejected answers is one of
        them.
        """
        aside = {"step", "epoch", "split", *TIME_FIELDS}
        logged = [
            str(name)
            for name in self.metrics.select_dtypes("number")
            if name not in aside and self.metrics[name].notna().any()
        ]
        found: dict[str, tuple[str, ...]] = {}
        for name in logged:
            stem, _, side = name.rpartition("_")
            pair = tuple(f"{stem}_{one}" for one in SIDES)
            if side in SIDES and set(pair) <= set(logged):
                found[f"{stem}, chosen and rejected"] = pair
            else:
                found[name] = (name,)
        return found

    def curve(self, split: str, column: str, series: str) -> pd.DataFrame:
        """One curve as `prefkit.report.curves.curve` gives it, computed once; a learning rate has
        no noise that one would have to average.
        """
        key = split, column, series
        if key not in self._curves:
            exact = "validation" if column == "learning_rate" else split
            self._curves[key] = curve(course(self.lines, split, column), exact, series)
        return self._curves[key]

    def last(self, split: str, column: str) -> float | None:
        "The last value of a column; None where there is none."
        values = course(self.lines, split, column)
        return float(values.iloc[-1]) if len(values) else None


def label_of(
    metric: str,  # a column of metrics.jsonl, or one of `RunFolder.named`
) -> str:
    "What an axis says of a metric, with its unit where it has one of its own."
    name = metric.split(",")[0]
    stem = name.removesuffix("_chosen").removesuffix("_rejected")
    side = name.removeprefix(stem).replace("_", " ")
    return f"{CALLED.get(stem, stem.replace('_', ' '))}{side}"


def read_run_folder(
    folder: str | Path,  # of a training stage, or the output_dir of `train_model`
    name: str = "",  # what to call the run; the folder's name if empty
) -> RunFolder:
    "Read what a run has left; raises `DataError` naming the file that is missing or damaged."
    path = resolve_path(folder)
    if not (path / "metrics.jsonl").is_file():
        what = "no metrics.jsonl in it" if path.is_dir() else "no such folder"
        raise DataError(f"{path}: {what}. {RUN_WHERE}", field=str(folder), reason="no run")
    lines = read_jsonl(path / "metrics.jsonl")
    if not lines:
        raise DataError(
            f"{path / 'metrics.jsonl'}: no line yet. Wait for the run's first validation, or "
            f"start it. {RUN_WHERE}",
            field="metrics.jsonl",
            reason="empty",
        )
    for row, line in enumerate(lines, 1):
        if not isinstance(line.get("step"), int) or line.get("split") not in BOTH_SPLITS:
            raise DataError(
                f"{path / 'metrics.jsonl'}, line {row}: no step, or a split that is neither train "
                "nor validation. Is it the log of a training run? Mend or delete that line.",
                field="metrics.jsonl",
                reason="no log",
            )
    samples = path / "samples.jsonl"
    return RunFolder(
        path,
        name or path.name,
        pd.DataFrame(lines),
        read_jsonl(samples) if samples.is_file() else [],
        _params(path),
        find_checkpoints(path / "checkpoints"),
    )


def _params(folder: Path) -> dict:
    "The settings of a run: a stage's params.yaml, else what `train_model` wrote."
    stage, claim = folder / "params.yaml", folder / "training.json"
    if stage.is_file():
        try:
            found = yaml.safe_load(stage.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            found = error
        if not isinstance(found, dict):
            raise DataError(
                f"{stage}: it is damaged, so that nobody knows the run's settings. Run the "
                "experiment again, or delete the file to see the run without them.",
                field="params.yaml",
                reason="damaged",
            )
        return found
    if not claim.is_file():
        return {}
    found = read_claim(claim)
    if found is None:
        raise DataError(
            f"{claim}: it is damaged, so that nobody knows the run's settings. Train again, or "
            "delete the file to see the run without them.",
            field="training.json",
            reason="damaged",
        )
    return found


def dotted(values: Mapping, before: str = "") -> dict[str, str]:
    "Nested settings by dotted names, as text; `settings.` and `hyperparameters.` go without."
    found: dict[str, str] = {}
    for name, value in values.items():
        place = f"{before}{name}"
        if isinstance(value, dict) and value:
            inner = "" if place in ("settings", "hyperparameters") else f"{place}."
            found |= dotted(value, inner)
        else:
            found[place] = str(value)
    return found


def settings_apart(
    runs: Sequence[RunFolder],
) -> pd.DataFrame:  # (settings that differ, runs); a dash where a run has no such setting
    "Only the settings in which the runs differ."
    told = {
        run.name: {
            name: value
            for name, value in dotted(run.params).items()
            if name.split(".")[0] not in ASIDE
        }
        for run in runs
    }
    whole = pd.DataFrame(told).fillna(ABSENT)
    return whole[whole.nunique(axis=1) > 1]


def on_axis(line: pd.DataFrame, run: RunFolder, axis: str) -> pd.DataFrame:
    "A line over the steps as one over another axis; points of which that is unknown are left out."
    if axis == "step" or line.empty:
        return line
    if axis == "seconds":
        train = run.metrics[run.metrics["split"] == "train"].drop_duplicates("step", keep="last")
        place = train.set_index("step")["seconds"].cumsum()
        place.loc[0] = 0.0  # a validation before the first step
    else:
        place = run.metrics.drop_duplicates("step", keep="last").set_index("step")["epoch"]
    return line.assign(x=line["x"].map(place)).dropna(subset=["x"])


def draw_comparison(
    runs: Mapping[str, RunFolder],  # by name, those that are shown
    metric: str,  # a column of metrics.jsonl
    split: str,  # validation or train
    axis: str = "step",  # or epoch, seconds
) -> str:  # HTML
    """The curves of several runs in one metric, what their settings differ in, and where they
    ended; raises `ConfigError` where they are too many, `DataError` where none has logged it.
    """
    if not 0 < len(runs) <= MOST_RUNS:
        raise ConfigError(
            f"runs: {len(runs)} are chosen; 1 to {MOST_RUNS} lines can be told apart. Choose "
            f"{'one' if not runs else 'fewer'}.",
            field="runs",
            reason="too many" if runs else "none",
        )
    lines = {name: on_axis(run.curve(split, metric, name), run, axis) for name, run in runs.items()}
    ends = {name: run.last(split, metric) for name, run in runs.items()}
    known = {name: value for name, value in ends.items() if value is not None}
    told = ", ".join(f"{name} at {say_number(value)}" for name, value in known.items())
    title = f"{split.capitalize()} {metric.replace('_', ' ')} ends: {told}"
    fig = draw_lines(lines, title=title, xlabel=AXES[axis], ylabel=label_of(metric))
    shown = beside(picture(fig, "curves of runs"), _differences(list(runs.values())))
    silent = [name for name in runs if name not in known]
    missing = note(f"{', '.join(silent)}: nothing logged of {metric} ({split}).") if silent else ""
    return shown + missing + table(_final(runs), "Where each run ended")


def _differences(runs: Sequence[RunFolder]) -> str:
    "The table of settings that differ, or why there is none."
    silent = [run.name for run in runs if not run.params]
    said = f"{', '.join(silent)}: no settings on record." if silent else ""
    if len(runs) < 2:
        return note("One run: there is nothing to compare its settings with.")
    apart = settings_apart(runs)
    if apart.empty:
        return note(f"The runs differ in no setting that is on record. {said}".strip())
    return table(apart, "Settings that differ, and no others") + (note(said) if said else "")


def _final(runs: Mapping[str, RunFolder]) -> pd.DataFrame:
    "The last logged numbers of each run."
    found = overview(dict(runs))
    return found.assign(stage=list(runs)).set_index("stage").rename_axis(None)


def explore_runs(
    runs: Mapping[str, str | Path] | Sequence[str | Path],  # folders, perhaps by name
) -> Explorer:
    """Choose a metric and runs. Raises `ConfigError` where no folder is given, `DataError` for one
    that holds no run.
    """
    if isinstance(runs, Mapping):
        found = [read_run_folder(folder, name) for name, folder in runs.items()]
    else:
        found = [read_run_folder(folder) for folder in runs]
    if not found:
        raise ConfigError(f"runs: none is given. {RUN_WHERE}", field="runs", reason="none")
    names = [run.name for run in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"runs: two are called {twice[0]!r}. Give names: {{name: folder, ...}}.",
            field="runs",
            reason="twice",
        )
    known = dict(zip(names, found, strict=True))
    columns = {column: None for run in found for part in run.named.values() for column in part}
    metrics = tuple(columns)
    first = "loss" if "loss" in columns else metrics[0]
    start = next(
        (
            split
            for split in BOTH_SPLITS
            if any(run.last(split, first) is not None for run in found)
        ),
        BOTH_SPLITS[0],
    )

    def draw(runs: tuple[str, ...], metric: str, split: str, axis: str) -> str:
        return draw_comparison({name: known[name] for name in runs}, metric, split, axis)

    controls = {
        "metric": Choice(metrics, first, frames=_beforehand(metrics, first)),
        "split": Choice(BOTH_SPLITS, start),
        "axis": Choice(tuple(AXES), "step", frames=("step",)),
        "runs": Several(tuple(names), tuple(names[:MOST_RUNS])),
    }
    return Explorer(draw, "Runs compared", controls)


def _beforehand(metrics: tuple[str, ...], first: str) -> tuple[str, ...]:
    "Metrics that a page without a kernel shows."
    wanted = ("loss", "reward_margin", "reward_accuracy", "logratio_chosen", "logratio_rejected")
    return tuple(dict.fromkeys([first, *(name for name in wanted if name in metrics)]))
