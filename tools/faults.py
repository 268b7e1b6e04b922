"""Inflict faults on small real runs and write down what became of each:

python tools/faults.py [--only WORDS] [--again]

A fault is a run of one of the pipelines, a few steps long, that is killed, starved or robbed of a
file, and is started again. What was promised, what happened and what was said go into
data/results/faults.json, fault by fault: a command that was broken off goes on. Linux only; where
this is not root, the faults that need it are told as not done.
"""

import argparse
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

from prefkit.cli import app
from prefkit.core import iter_jsonl, project_root, write_json, write_text
from prefkit.judging.served import JsonLinesFile
from prefkit.runs.config import write_pipeline
from prefkit.runs.runner import git_state
from prefkit.train.log import TIME_FIELDS

RESULTS = project_root() / "data/results/faults.json"

TRAINING = {"limit": 48, "validation_limit": 8, "max_steps": 8, "batch_size": 4, "device": "cpu"}
TRAINING |= {"logging_steps": 1, "save_steps": 2, "sample_prompts": [], "learning_rate": 1e-3}
WITHOUT = {name: TRAINING[name] for name in TRAINING if name != "sample_prompts"}
OWN = {"model": "data/tiny/instruct", "limit": 24, "validation_limit": 8, "samples": 3}
PIPELINES = {  # name -> parameters
    "sft": TRAINING,
    "preference": {"method": "dpo", **TRAINING},
    "reward_model": {**WITHOUT, "test_limit": 8},
    "rollout": {
        "method": "rloo",
        "model": "data/tiny/instruct",
        **{**WITHOUT, "max_steps": 5, "save_steps": 1},
        "samples": 2,
        "max_new_tokens": 16,
    },
    "evaluate": {
        "models": {"base": "data/tiny/base", "instruct": "data/tiny/instruct"},
        "references": ["base"],
        "prompts": 48,
        "max_new_tokens": 32,
        "batch_size": 8,
    },
    "own_pairs": {**OWN, "batch_size": 16},
}


# ---- commands


class Command:
    "A `prefkit` command in a process of its own, forked from this one, which has imported the kit."

    def __init__(
        self,
        *words,  # of the command line
        before: Callable = lambda: None,  # is called in the process: limits, another user
        variables: dict | None = None,  # of the environment; None as a value: not set
        folder: Path | None = None,  # the current folder
    ):
        self.log = Path(tempfile.mkstemp(prefix="prefkit-said-")[1])
        self.begin = time.monotonic()
        self.code: int | None = None
        self.process = os.fork()
        if self.process == 0:
            self._become([str(word) for word in words], before, variables or {}, folder)

    def _become(self, words, before, variables, folder):
        code = 70
        try:
            os.setsid()
            handle = os.open(self.log, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(handle, stream)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
            os.chdir(folder or project_root())
            for name, value in variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            before()
            app(words, prog_name="prefkit")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended(self) -> bool:
        if self.code is None and os.waitpid(self.process, os.WNOHANG)[0]:
            self.code = -1
        return self.code is not None

    def wait(self, seconds: float = 900) -> int | None:  # None: it hangs, and is killed
        "Its exit code."
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        if self.code is None:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        return self.code

    def kernels(self) -> list[int]:
        "Its child processes."
        found = []
        for place in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = place.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if int(fields[1]) == self.process and fields[0] != "Z":
                found.append(int(place.parent.name))
        return found

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def without_rights():
    "Give up what root may do and others may not; so do the processes that it starts."
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.prctl(28, 3, 0, 0, 0)  # to be root gives no rights any more, for good
    assert libc.capset(header, none) == 0


def limited(kind: int, most: int) -> Callable:
    return lambda: resource.setrlimit(kind, (most, most))


# ---- places


class Place:
    "A folder with configs, and what their undisturbed runs ended in."

    def __init__(self, folder: Path):
        self.folder, self.wholes, self.seconds = folder, {}, {}
        os.chmod(folder, 0o755)
        os.environ["PREFKIT_CACHE"] = str(folder / "cache")
        for name, parameters in PIPELINES.items():
            self.config(name, name, parameters)

    def config(self, name: str, pipeline: str, parameters: dict, stage: str = "") -> Path:
        "A config of one stage."
        stages = {stage or name: {"pipeline": pipeline, "parameters": parameters}}
        whole = {"experiment": name, "seed": 0, "stages": stages}
        return write_json(self.folder / f"{name}.yaml", whole)  # JSON is YAML

    def new(self) -> Path:
        "An empty folder for runs."
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="runs-"))
        os.chmod(folder, 0o755)
        return folder

    def run(self, name: str, root: Path, **options) -> Command:
        return Command("run", self.folder / f"{name}.yaml", "--output-root", root, **options)

    def whole(self, name: str) -> Path:
        "The stage's folder of a run that nobody disturbed."
        if name not in self.wholes:
            root, begin = self.new(), time.monotonic()
            command = self.run(name, root)
            assert command.wait() == 0, command.said
            self.wholes[name] = root / name / name
            self.seconds[name] = time.monotonic() - begin
        return self.wholes[name]

    def killed(self, name: str = "preference", steps: int = 5) -> Path:
        "A copy of the runs of one that was killed behind some of its steps."
        kept = self.folder / f"killed-{name}"
        if not kept.exists():
            root = self.new()
            command = self.run(name, root)
            lines = root / name / f".{name}.partial" / "metrics.jsonl"
            while len(steps_in(lines)) < steps and not command.ended():
                time.sleep(0.02)
            os.kill(command.process, signal.SIGKILL)
            command.wait()
            wait_for_silence(command)
            root.rename(kept)
        root = self.new()
        shutil.copytree(kept, root, dirs_exist_ok=True)
        return root

    def finished(self, name: str = "preference") -> Path:
        "A copy of the runs of one that came to its end."
        root = self.new()
        shutil.copytree(self.whole(name).parents[1], root, dirs_exist_ok=True)
        return root


def wait_for_silence(command: Command):
    "A kernel ends with its runner, in a moment."
    until = time.monotonic() + 10
    while command.kernels() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)


def steps_in(lines: Path) -> list[dict]:
    if not lines.exists():
        return []
    return [line for _, line, _ in iter_jsonl(lines) if line and line.get("split") == "train"]


def end_of(folder: Path) -> dict:
    "What counts of a finished stage: weights, lines, tables and metrics, without times."
    found = {"weights": [f.read_bytes() for f in sorted(folder.glob("checkpoint/*.safetensors"))]}
    for file in sorted(folder.glob("*.jsonl")):
        lines = [line or {} for _, line, _ in iter_jsonl(file)]
        plain = [{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in lines]
        found[file.name] = json.dumps(plain, sort_keys=True)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    found["metrics"] = re.sub(r'"\w*seconds\w*": [\d.e-]+', "", json.dumps(metrics, sort_keys=True))
    return found


# ---- outcomes


@dataclass
class Outcome:
    "What became of a fault."

    happened: str
    held: bool
    code: int | None = None
    said: str = ""


EQUAL = "ends bit for bit as the undisturbed run"
NAMED = "is refused in one sentence that names it"
REFUSED = "is refused in one sentence that names it, before anything runs"


def excerpt(command: Command, words: str = "error:") -> str:
    "The line of what a command said that matters, without the machine's paths."
    lines = [line.strip() for line in command.said.splitlines() if line.strip()]
    fitting = [line for line in lines if words in line] or lines[-1:] or [""]
    return without_places(fitting[0])[:240]


def without_places(text: str) -> str:
    text = re.sub(r"(/[^\s'\":,;()\[\]]+)+/", ".../", text)
    return re.sub(r"process \d+", "process N", text)


def resumed(place: Place, root: Path, name: str, say: str = "", **options) -> Outcome:
    "Start a stage again; it should end as the undisturbed one."
    command = place.run(name, root, **options)
    code = command.wait()
    said = excerpt(command, say or "error:") if say or code else ""
    if code != 0:
        names = bool(re.search(r"error: ", command.said)) and "Traceback" not in command.said
        return Outcome("refused" if names else "a raw error", False, code, said)
    same = end_of(root / name / name) == end_of(place.whole(name))
    outcome = Outcome(EQUAL if same else "ended in OTHER weights or lines", same, code, said)
    if say and say not in command.said:
        outcome = Outcome(f"{outcome.happened}, without a word", False, code, said)
    return outcome


def refusal(command: Command, *words: str, seconds: float = 600) -> Outcome:
    "A command that should end with exit code 1 and a sentence that has some words."
    code = command.wait(seconds)
    said, raw = command.said, "Traceback" in command.said
    flat = " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())
    lacking = [word for word in words if word not in flat]
    if code is None:
        return Outcome("hangs", False, code)
    if code == 0:
        return Outcome("ran to its end as if nothing were", False, code)
    happened = "a raw error" if raw else "refused" + (f", not naming {lacking}" if lacking else "")
    shown = next((word for word in words if word in said), "error")
    return Outcome(happened, not raw and not lacking, code, excerpt(command, shown))


# ---- the faults

FAULTS: dict[str, tuple[str, str, Callable]] = {}  # name -> kind, promise, what inflicts it


def fault(kind: str, name: str, promise: str):
    def add(function):
        FAULTS[name] = kind, promise, function
        return function

    return add


def kill(pipeline: str, whom: str, which: signal.Signals):
    "Kill at a random instant of a stage, and start again."

    def inflict(place: Place) -> Outcome:
        place.whole(pipeline)
        draw, share = random.Random(f"{pipeline} {whom} {which}"), 1.0
        while share > 0.05:
            root = place.new()
            command = place.run(pipeline, root)
            begun = root / pipeline / f".{pipeline}.partial" / "stage.json"
            while not begun.exists() and not command.ended():
                time.sleep(0.01)
            time.sleep(draw.uniform(0.2, 0.9) * share * place.seconds[pipeline])
            target = command.process if whom == "runner" else (command.kernels() or [0])[0]
            if command.ended() or not target:
                share *= 0.6
                continue
            os.kill(target, which)
            at = f"{time.monotonic() - command.begin:.1f} s"
            code = command.wait()
            wait_for_silence(command)
            if (root / pipeline / pipeline).exists():
                share *= 0.6  # it had ended already
                continue
            outcome = resumed(place, root, pipeline)
            outcome.happened = f"killed after {at} (exit {code}); {outcome.happened}"
            return outcome
        return Outcome("always ended before it was killed", False)

    return inflict


KILLS = [
    ("sft", "runner", "SIGKILL"),
    ("preference", "runner", "SIGTERM"),
    ("preference", "kernel", "SIGKILL"),
    ("reward_model", "runner", "SIGINT"),
    ("rollout", "runner", "SIGKILL"),
    ("rollout", "kernel", "SIGKILL"),
    ("evaluate", "runner", "SIGKILL"),
    ("own_pairs", "runner", "SIGKILL"),
]
for pipeline, whom, which in KILLS:
    name = f"{which} to the {whom} at a random instant of {pipeline}"
    fault("kill", name, EQUAL)(kill(pipeline, whom, signal.Signals[which]))


def newest(root: Path, name: str = "preference") -> Path:
    "The newest checkpoint of a run that was killed."
    found = (root / name / f".{name}.partial" / "checkpoints").glob("checkpoint-*")
    return max(found, key=lambda path: int(path.name.split("-")[1]))


def halve(file: Path):
    text = file.read_bytes()
    file.write_bytes(text[: len(text) // 2])


def flip(file: Path):
    text = bytearray(file.read_bytes())
    text[len(text) // 2] ^= 1
    file.write_bytes(bytes(text))


DAMAGES = [
    ("optimizer.pt", "deleted", Path.unlink),
    ("model.safetensors", "cut in half", halve),
    ("model.safetensors", "one byte changed", flip),
    ("prefkit.json", "one byte changed", flip),
    ("prefkit.json", "emptied", lambda file: file.write_bytes(b"")),
]
for file, what, damage in DAMAGES:

    @fault("torn or tampered", f"{file} of the newest checkpoint {what}", EQUAL)
    def _(place, file=file, damage=damage):
        root = place.killed()
        damage(newest(root) / file)
        return resumed(place, root, "preference", f"{file} is damaged")


RUN_FILES = [
    ("metrics.jsonl", "a number changed", flip, "metrics.jsonl is damaged"),
    ("training.json", "cut in half", halve, "training.json is gone or damaged"),
    ("reference.json", "one byte changed", flip, "reference.json is damaged"),
    ("stage.json", "made a list", lambda file: file.write_text("[]"), "stage.json"),
]
for file, what, damage, says in RUN_FILES:

    @fault("torn or tampered", f"{file} of a killed run {what}", f"{EQUAL}, and says so")
    def _(place, file=file, damage=damage, says=says):
        root = place.killed()
        damage(root / "preference/.preference.partial" / file)
        return resumed(place, root, "preference", says)


def other_number(file: Path):
    text = file.read_text()
    number = re.search(r'"loss": (\d)', text)
    assert number
    file.write_text(text[: number.start(1)] + str(9 - int(number[1])) + text[number.end(1) :])


for file, damage in [("run.json", other_number), ("metrics.jsonl", other_number)]:

    @fault("torn or tampered", f"a number of a finished run's {file} edited", "it is run again")
    def _(place, file=file, damage=damage):
        root = place.finished()
        damage(root / "preference/preference" / file)
        return resumed(place, root, "preference", "runs")


@fault("torn or tampered", "a byte of a finished run's weights changed", "it is run again")
def _(place):
    root = place.finished()
    flip(root / "preference/preference/checkpoint/model.safetensors")
    return resumed(place, root, "preference", "model.safetensors changed")


@fault("torn or tampered", "every file of the cache with a byte changed", EQUAL)
def _(place):
    place.whole("preference")
    for file in [path for path in (place.folder / "cache").rglob("*") if path.is_file()]:
        flip(file)
    return resumed(place, place.new(), "preference", "is damaged")


@fault("inputs", "a row of the data changed between two runs", "it is run again")
def _(place):
    data = shutil.copy(project_root() / "data/tiny/pairs_train.jsonl", place.folder)
    given = {"method": "dpo", **TRAINING, "dataset": str(data), "validation_split": ""}
    place.config("data", "preference", given)
    root = place.new()
    first = place.run("data", root)
    if first.wait():
        return Outcome("did not run", False, first.code, excerpt(first))
    before = end_of(root / "data/data")
    lines = Path(data).read_text().splitlines()
    write_text(data, "\n".join(lines[1:] + lines[:1]) + "\n")
    again = place.run("data", root)
    code = again.wait()
    other = end_of(root / "data/data") != before
    happened = "run again, with other numbers" if other else "ALREADY DONE"
    return Outcome(happened, code == 0 and other, code, excerpt(again, "runs again"))


# ---- two writers


@fault("two writers", "the same command twice at a time", "the second waits, then is refused")
def _(place):
    root = place.new()
    first = place.run("preference", root)
    while not (root / "preference/.preference.partial/stage.json").exists():
        time.sleep(0.02)
    os.kill(first.process, signal.SIGSTOP)  # it holds the lock for as long as this takes
    try:
        second = refusal(place.run("preference", root), "another run", "is at work here")
    finally:
        os.kill(first.process, signal.SIGCONT)
    code = first.wait()
    same = code == 0 and end_of(root / "preference/preference") == end_of(place.whole("preference"))
    return Outcome(
        f"{second.happened}; the first {EQUAL if same else 'is harmed'}",
        second.held and same,
        second.code,
        second.said,
    )


@fault("two writers", "two processes on one store of replies", "the second is refused")
def _(place):
    store, read, write = place.folder / "replies.jsonl", *os.pipe()
    process = os.fork()
    if process == 0:
        with JsonLinesFile(store, {}) as file:
            file.append({"id": "one"})
            os.write(write, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    try:
        JsonLinesFile(store, {}).close()
        outcome = Outcome("both write", False)
    except ValueError as error:
        outcome = Outcome("refused", "another process" in str(error), None, str(error))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    JsonLinesFile(store, {}).close()  # it is free, and whole
    beside = [path.name for path in place.folder.glob(".replies*")]
    outcome.held &= not beside
    outcome.said = without_places(outcome.said)
    return outcome


@fault("links", "the lock is a link to a file of yours", f"{REFUSED}; the file stays as it is")
def _(place):
    root, mine = place.new(), write_text(place.folder / "mine.txt", "mine")
    (root / "preference").mkdir()
    (root / "preference/.preference.lock").symlink_to(mine)
    outcome = refusal(place.run("preference", root), "delete what stands there")
    outcome.held &= mine.read_text() == "mine"
    return outcome


@fault("links", "the lock is a folder", REFUSED)
def _(place):
    root = place.new()
    (root / "preference/.preference.lock").mkdir(parents=True)
    return refusal(place.run("preference", root), "delete what stands there")


# ---- what a machine lacks


class Disk:
    "A small disk of its own."

    def __init__(self, size: str):
        self.folder, self.size = tempfile.mkdtemp(prefix="prefkit-disk-"), size

    def __enter__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        option = f"size={self.size}".encode()
        if libc.mount(b"tmpfs", self.folder.encode(), b"tmpfs", 0, option):
            raise NotDone("no small disk can be mounted here")
        return Path(self.folder)

    def __exit__(self, *_):
        ctypes.CDLL(None).umount2(self.folder.encode(), 2)


class NotDone(Exception):
    "This machine does not let a fault be inflicted."


@fault("disk full", "the disk is full in the middle of a stage", "says so; with room it goes on")
def _(place):
    with Disk("16m") as disk:
        first = refusal(place.run("preference", disk), "no room left")
        libc = ctypes.CDLL(None, use_errno=True)
        assert not libc.mount(b"", str(disk).encode(), b"", 32, b"size=400m")  # 32: remount
        again = resumed(place, disk, "preference")
    happened = f"{first.happened}; with room it {again.happened}"
    return Outcome(happened, first.held and again.held, first.code, first.said)


@fault("disk full", "no room for any file at all", REFUSED)
def _(place):
    with Disk("4k") as disk:
        write_text(disk / "full", "x")
        return refusal(place.run("preference", disk), "no room left")


@fault("disk full", "no file may be larger than 2 MB", "says so; without the limit it goes on")
def _(place):
    root = place.new()
    tight = place.run("preference", root, before=limited(resource.RLIMIT_FSIZE, 2**21))
    first = refusal(tight, "File too large")
    again = resumed(place, root, "preference")
    happened = f"{first.happened}; without the limit it {again.happened}"
    return Outcome(happened, first.held and again.held, first.code, first.said)


@fault("few handles", "24 open files at most", "says so; without the limit it goes on")
def _(place):
    root = place.new()
    tight = place.run("preference", root, before=limited(resource.RLIMIT_NOFILE, 24))
    first = refusal(tight, "Too many open files")
    again = resumed(place, root, "preference")
    happened = f"{first.happened}; without the limit it {again.happened}"
    return Outcome(happened, first.held and again.held, first.code, first.said)


def own_stage(place: Place, name: str, *cells: str) -> Path:
    "A config whose stage is a notebook of a few cells."
    book = write_pipeline(place.folder / f"{name}.ipynb", 'output_dir: str = ""', *cells)
    return place.config(name, str(book), {})


@fault("out of memory", "a cell asks for more memory than there is", "says that it is memory")
def _(place):
    own_stage(place, "greedy", "held = bytearray(2**60)")
    return refusal(place.run("greedy", place.new()), "out of memory", "batch_size")


@fault("out of memory", "the system kills the kernel", "says what may have been, and goes on")
def _(place):
    own_stage(place, "ended", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    return refusal(place.run("ended", place.new()), "ended from outside", "memory")


CLOCK = """import time
real = time.time
time.time = lambda: real() - 10 * 365 * 86400 - 3600 * (real() % 7 > 3)
"""


@fault("clock", "the clock is ten years back, and jumps by an hour now and then", EQUAL)
def _(place):
    folder = place.new()
    write_text(folder / "sitecustomize.py", CLOCK)
    variables = {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return resumed(place, place.killed(), "preference", variables=variables)


@fault("clock", "all files of a killed run are from the future", EQUAL)
def _(place):
    root = place.killed()
    for path in root.rglob("*"):
        os.utime(path, (4e9, 4e9))
    return resumed(place, root, "preference")


# ---- who one is, and where


def sealed(place: Place) -> Path:
    "A folder that may not be written to."
    folder = place.new()
    folder.chmod(0o555)
    return folder


def as_other(place: Place, **variables) -> dict:
    "Options of a command of a user without root's rights, with a cache of its own."
    given = {"PREFKIT_CACHE": str(place.new()), "HOME": None, **variables}
    return {"before": without_rights, "variables": given}


@fault("user", "a user without root's rights, and HOME is not set", EQUAL)
def _(place):
    return resumed(place, place.new(), "preference", **as_other(place))


@fault("user", "HOME is a folder that may not be written to", EQUAL)
def _(place):
    return resumed(place, place.new(), "preference", **as_other(place, HOME=str(sealed(place))))


@fault("read-only", "the runs' folder may not be written to", REFUSED)
def _(place):
    return refusal(place.run("preference", sealed(place), **as_other(place)), "Permission denied")


@fault("read-only", "the cache may not be written to", f"{EQUAL}; says how to name another")
def _(place):
    given = as_other(place, PREFKIT_CACHE=str(sealed(place) / "none"))
    return resumed(place, place.new(), "preference", "PREFKIT_CACHE", **given)


@fault("paths", "braces, spaces, quotes and letters of all kinds in a path", EQUAL)
def _(place):
    root = place.new() / "a {x} {} 'b' \u00e9\u4e2d $HOME"
    root.mkdir()
    return resumed(place, root, "preference")


# ---- models, configs, servers


def model_with(place: Place, name: str, change: Callable) -> Path:
    "A config that trains from a changed copy of the tiny base model."
    folder = place.folder / f"model-{name}"
    shutil.copytree(project_root() / "data/tiny/base", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return place.config(name, "preference", {"method": "dpo", **TRAINING, "model": str(folder)})


@fault("models", "a tensor is missing", NAMED)
def _(place):
    model_with(place, "missing", lambda weights: weights.pop(sorted(weights)[3]))
    return refusal(place.run("missing", place.new()), "layers.0")


@fault("models", "all weights are NaN", NAMED)
def _(place):
    model_with(place, "nan", lambda weights: [x.fill_(numpy.nan) for x in weights.values()])
    return refusal(place.run("nan", place.new()), "NaN")


BAD_CONFIGS = {
    "an alias bomb": "a: &a [x, x]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi")
    ),
    "a number of 5,000 digits": f"experiment: a\nseed: {'9' * 5000}\n",
    "two thousand brackets": f"experiment: {'[' * 2000}{']' * 2000}\n",
    "an anchor inside of itself": "experiment: a\nstages: &x {s: *x}\n",
    "a tag that runs code": "experiment: !!python/object/apply:os.system [ls]\n",
}
for what, text in BAD_CONFIGS.items():

    @fault("configs", f"{what} in a config", REFUSED)
    def _(place, text=text):
        config = write_text(place.folder / "bad.yaml", text)
        return refusal(Command("run", config), "bad.yaml", seconds=30)


@fault("keys", "a config names another host for the key", "refused; nothing is sent")
def _(place):
    with Server("garbage") as server:
        # this machine by a name that is not its own: nothing says that it may have the key
        address = server.address.replace("127.0.0.1", socket.gethostname())
        given = judged(address)
        given["judges"]["pairwise"].pop("key_env")
        place.config("key", "evaluate", given)
        variables = {"OPENAI_API_KEY": "sk-0123456789abcdef"}
        outcome = refusal(place.run("key", place.new(), variables=variables), "OPENAI_API_KEY")
        outcome.held &= not server.asked
        return outcome


class Server:
    "Answers every request badly, in one way."

    def __init__(self, way: str):
        self.asked, asked = [], None
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked.append(self.path)
                if way == "hang":
                    time.sleep(30)
                    return
                self.send_response(307 if way == "redirect" else 200)
                self.send_header("Location", "http://localhost:9/elsewhere")
                self.end_headers()
                self.wfile.write(b"\x00garbage{" * 100)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("0.0.0.0", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def judged(address: str) -> dict:
    "An evaluation with a judge behind a server."
    options = {"base_url": address, "model": "m", "timeout": 1.0, "retries": 0, "key_env": ""}
    return {**PIPELINES["evaluate"], "judges": {"pairwise": options}}


for way in ("hang", "redirect", "garbage"):

    @fault("servers", f"the judge's server answers with {way}", REFUSED)
    def _(place, way=way):
        with Server(way) as server:
            place.config(f"server-{way}", "evaluate", judged(server.address))
            return refusal(place.run(f"server-{way}", place.new()), server.address)


# ---- the table


LONG = ("kill", "torn or tampered")  # kinds that take most of the time, and come last


def inflict(name: str, place: Place) -> dict:
    "A fault, as the table has it."
    kind, promise, function = FAULTS[name]
    begin = time.monotonic()
    try:
        outcome = function(place)
    except NotDone as why:
        outcome = None
        happened = f"not done: {why}"
    except Exception as error:
        outcome = Outcome(without_places(f"{type(error).__name__}: {error}")[:240], False)
    told = {"fault": name, "kind": kind, "promised": promise}
    told["happened"] = outcome.happened if outcome else happened
    told |= {"held": outcome.held if outcome else None}
    told |= {"code": outcome.code if outcome else None, "said": outcome.said if outcome else ""}
    return told | {"seconds": round(time.monotonic() - begin, 1)}


def table(only: str = "", again: bool = False, results: Path = RESULTS) -> list[dict]:
    "Inflict what is not yet written down; what is, stays."
    git = git_state()
    known = json.loads(results.read_text()) if results.exists() and not again else {"faults": []}
    rows = {row["fault"]: row for row in known["faults"] if row["fault"] in FAULTS}
    with tempfile.TemporaryDirectory(prefix="prefkit-faults-") as folder:
        place = Place(Path(folder))
        for name in sorted(FAULTS, key=lambda name: FAULTS[name][0] in LONG):
            if only not in f"{FAULTS[name][0]}: {name}" or (name in rows and not only):
                continue
            row = inflict(name, place)
            rows[name] = {**row, "revision": git["revision"]}
            print(
                f"{'held' if row['held'] else 'NOT'}  {row['seconds']:5.1f} s  {name}", flush=True
            )
            if not row["held"]:
                print(f"      {row['happened']} ({row['said']})", flush=True)
            in_order = [rows[one] for one in FAULTS if one in rows]
            about = {"command": "python tools/faults.py", "date": time.strftime("%Y-%m-%d")}
            write_json(results, {**about, "git": git, "faults": in_order})
    return [rows[one] for one in FAULTS if one in rows]


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--only", default="", metavar="WORDS", help="of a kind, or a part of a name"
    )
    options.add_argument("--again", action="store_true", help="forget what is written down")
    chosen = options.parse_args()
    found = table(chosen.only, chosen.again)
    print(f"{sum(row['held'] is True for row in found)} of {len(found)} held")
