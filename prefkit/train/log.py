"""What a run says of itself: metrics.jsonl, samples.jsonl, a tracker, a progress bar.

One line of metrics.jsonl every `logging_steps`, at each validation and at the end: weighted means
of everything since the last one. The same numbers go to the tracker and to the caller's callbacks.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from prefkit.core import NotFinite, Progress
from prefkit.train.devices import Share
from prefkit.train.settings import TrainSettings

# of metrics.jsonl: these alone may differ between two runs of one seed
TIME_FIELDS = ("seconds", "tokens_per_second", "seconds_sampling", "seconds_learning")


class Averages:
    "Weighted means of named values, summed on the device and read out only when a line is written."

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(
        self,
        name: str,  # of the value
        total: Tensor,  # () sum of the values
        count: int | Tensor,  # how many they were, or the sum of their weights
    ):
        "Add `count` values whose sum is `total`."
        if total.device.type != "mps":
            total = total.double()  # sums of many small numbers; mps has no float64
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + count

    def add_all(self, sums: dict[str, tuple[Tensor, int | Tensor]]):
        "Sums and counts by name."
        for name, (total, count) in sums.items():
            self.add(name, total, count)

    def means(self) -> dict[str, float]:  # without those that no row had
        "The means so far. Reading them makes the device finish its work: it is done once a line."
        state = self.state()
        counts = state["counts"]
        return {name: total / counts[name] for name, total in state["sums"].items() if counts[name]}

    def state(self) -> dict:  # for a checkpoint; `load` takes it back to the last bit
        "Sums and counts as plain numbers."
        return {
            "sums": {name: float(total) for name, total in self.sums.items()},
            "counts": {name: float(count) for name, count in self.counts.items()},
        }

    def load(self, state: dict, device: torch.device | str = "cpu"):
        "Go on from a saved `state`."
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.sums = {
            name: torch.tensor(total, dtype=dtype, device=device)
            for name, total in state["sums"].items()
        }
        self.counts = dict(state["counts"])

    @classmethod
    def of_all(cls, states: list[dict]) -> "Averages":
        "The averages of several processes as one."
        whole = cls()
        for state in states:
            for name, total in state["sums"].items():
                whole.add(name, torch.tensor(total, dtype=torch.float64), state["counts"][name])
        return whole


class Log:
    "Collects a run's numbers and writes them down; only the main process writes."

    def __init__(
        self,
        folder: Path,  # of the run
        settings: TrainSettings,
        accelerator: Accelerator,
        callbacks: tuple[Callable, ...] = (),  # each gets every line of metrics.jsonl; True: stop
    ):
        self.metrics, self.samples = folder / "metrics.jsonl", folder / "samples.jsonl"
        self.settings, self.accelerator, self.callbacks = settings, accelerator, callbacks
        self.share = Share.of_process(accelerator)
        self.window, self.tokens, self.seconds = Averages(), 0, 0.0
        self.first_bad = torch.zeros(3)  # step, loss and gradient norm of a step that is not finite
        self.note, self.stop_asked = "", False
        if accelerator.log_with:
            places = {"wandb": {"dir": str(folder)}}  # its files; tensorboard's are there as well
            accelerator.init_trackers("prefkit", config=_flat(vars(settings)), init_kwargs=places)

    # -- numbers of a step

    def add(self, watched: dict[str, tuple[Tensor, int | Tensor]], tokens: int = 0):
        "Sums and counts of a batch, and how many tokens it had."
        self.window.add_all(watched)
        self.tokens += tokens

    def step(
        self,
        step: int,  # optimiser steps, this one included
        loss: Tensor,  # () of the step
        grad_norm: Tensor,  # () before clipping
        origin: Callable[[], str],  # where a number that is not finite arose, in words
        scaled: bool = False,  # by a scaler, which skips steps
    ):
        """A step's gradient norm. Remembers the first step that is not finite; a GPU is not waited
        for.
        """
        now = torch.stack([torch.full_like(grad_norm, step), loss.to(grad_norm), grad_norm])
        if scaled:
            bad = self._skipped(loss, grad_norm)
        else:
            self.window.add("grad_norm", grad_norm, 1)
            bad = ~torch.isfinite(now).all()
        bad = bad & (self.first_bad[0].to(bad.device) == 0)
        self.first_bad = torch.where(bad, now, self.first_bad.to(now))
        if grad_norm.device.type == "cpu":
            self.check_finite(origin)

    def _skipped(self, loss: Tensor, grad_norm: Tensor) -> Tensor:  # (): is something wrong
        """Count a step that a scaler skips because its gradient overflows; it tries a smaller scale
        next, so that only a loss that is not finite is an error.
        """
        skipped = ~torch.isfinite(grad_norm)
        self.window.add("grad_norm", grad_norm.masked_fill(skipped, 0), ~skipped)
        first = "skipped_steps" not in self.window.sums  # counted once, so that its mean is the sum
        self.window.add("skipped_steps", skipped, int(first))
        return ~torch.isfinite(loss)

    def check_finite(self, origin: Callable[[], str] = str):
        "Raise `NotFinite` with the way out if a step was not finite."
        step, loss, norm = self.first_bad.tolist()
        if step:
            rate = self.settings.learning_rate
            raise NotFinite(
                f"step {step:.0f}: the loss is {loss:g} and its gradient's norm {norm:g}, no "
                f"finite numbers{origin()}. Lower learning_rate (now {rate:g}), add warmup_steps "
                "or set precision: float32; the last checkpoint is from before.",
                field="learning_rate",
                reason="not finite",
            )

    # -- lines

    def line(self, step: int, learning_rate: float, source):
        "The means of everything since the last line; what other processes have seen counts too."
        self.check_finite()
        parts = self.share.each({"window": self.window.state(), "tokens": self.tokens})
        whole = self.window if len(parts) == 1 else Averages.of_all([x["window"] for x in parts])
        values, seconds = whole.means(), max(self.seconds, 1e-9)
        source.check(values, step)
        norm = {"grad_norm": values.pop("grad_norm")} if "grad_norm" in values else {}
        line = {
            "step": step,
            "epoch": source.passes(step),
            "split": "train",
            "loss": values.pop("loss"),
            "learning_rate": learning_rate,
            **norm,  # none where every step was skipped
            **values,
            "tokens_per_second": sum(x["tokens"] for x in parts) / seconds,
            "seconds": seconds,
            **source.times(self.seconds),
        }
        self.write(line)
        self.note = f"loss {line['loss']:.3f}"
        self.window, self.tokens, self.seconds = Averages(), 0, 0.0

    def validation(self, line: dict, seconds: float, samples: list[dict], show: Callable):
        "A line of a validation, if it found numbers, and its answers; a few are shown by `show`."
        if len(line) > 3:
            self.write(line | {"seconds": seconds})
        if not self.accelerator.is_main_process:
            return
        for sample in samples:
            append_line(self.samples, {"step": line["step"], **sample})
        few = samples[: self.settings.show_samples]
        if few:
            print(show(line, few))

    def write(self, line: dict):
        "To metrics.jsonl, the tracker and the callbacks."
        if self.accelerator.is_main_process:
            append_line(self.metrics, line)
        if self.accelerator.log_with:
            names = {f"{line['split']}/{name}": value for name, value in line.items()}
            numbers = {name: value for name, value in names.items() if not isinstance(value, str)}
            self.accelerator.log(numbers, step=line["step"])
        if self.callbacks:
            self.stop_asked |= self.share.main_does(partial(self._call, line))

    def _call(self, line: dict) -> bool:
        "Every callback gets the line; does one of them ask to stop?"
        return any([callback(dict(line)) is True for callback in self.callbacks])

    def close(self):
        "The tracker's run is over."
        # not `end_training`, which would part the processes for good
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()

    # -- a kill

    def state(self) -> dict:
        "Of the lines not yet written, of every process."
        mine = {"window": self.window.state(), "tokens": self.tokens, "seconds": self.seconds}
        return {"processes": self.share.each(mine)}

    def load(self, state: dict):
        "Take up what `state` gave; the main process takes up what more processes had then."
        parts = state["processes"]
        if len(parts) == self.share.of:
            parts = [parts[self.share.rank]]
        elif self.share.rank:
            parts = []
        whole = Averages.of_all([part["window"] for part in parts])
        self.window.load(whole.state(), self.accelerator.device)
        self.tokens = sum(part["tokens"] for part in parts)
        self.seconds = sum(part["seconds"] for part in parts)


class Clock:
    "Seconds of training alone: neither validation nor checkpoints, nor the drawing of samples."

    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        "Seconds since the last lap."
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        return seconds


def append_line(path: Path, record: dict):
    "Append one line and hand it to the system, so that it outlives a killed process."
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _flat(values: dict) -> dict:
    "What every tracker can store."
    plain = (int, float, str, bool)
    return {name: x if isinstance(x, plain) else str(x) for name, x in values.items()}
