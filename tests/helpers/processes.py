"""Small runs that one process or several carry out: `python -m helpers.processes CASES.json`.

A case is {"method", "folder"}, changes of the settings, and perhaps `kill_at`, the step at whose
line all processes are killed, or `break_at`, the step that fails in the second of them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.encoded import BASE, QUESTIONS, encoded_rows, prompts
from prefkit.core import project_root
from prefkit.judging.rewards import reward_source
from prefkit.train.loop import TrainResult, train_model
from prefkit.train.methods import METHODS
from prefkit.train.rounds import train_online
from prefkit.train.settings import RolloutSettings, TrainSettings

TESTS = Path(__file__).resolve().parents[1]
COMMON = {
    "learning_rate": 1e-4,
    "schedule": "constant",
    "gradient_accumulation": 2,
    "logging_steps": 1,
    "show_samples": 0,
    "sample_tokens": 8,
    "device": "cpu",
    "precision": "float32",
}


def train(method: str, folder: Path, callbacks: tuple = (), model=None, **changes) -> TrainResult:
    "Train the tiny base on a few rows: 13, whose last batch of 4 has one row only; 8 prompts."
    row = METHODS[method]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = model or AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    if row.online:
        samples = len(row.writers) or 3
        options = {"batch_size": 3, "samples": samples, "max_new_tokens": 8, "max_steps": 4}
        if row.teacher:
            options["reference_model"] = str(BASE.parent / "instruct")
        settings = RolloutSettings(**{**COMMON, **options, **changes})
        rows = prompts(tokenizer, (QUESTIONS * 3)[:8])
        source = reward_source("gold")
        options = {"settings": settings, "callbacks": callbacks}
        return train_online(model, tokenizer, method, rows, rows[:3], folder, source, **options)
    # KTO refuses a row that is alone
    number = 14 if row.kind == "binary" else 13
    settings = TrainSettings(**{**COMMON, "batch_size": 4, "epochs": 2.0, **changes})
    return train_model(
        model,
        tokenizer,
        method,
        encoded_rows(number, row.kind),
        encoded_rows(5, row.kind, seed=1),
        folder,
        settings,
        sample_prompts=[[{"role": "user", "content": QUESTIONS[0]}]],
        callbacks=callbacks,
    )


def carry_out(case: dict):
    "Train as a case says."
    case = dict(case)
    kill_at, break_at = case.pop("kill_at", None), case.pop("break_at", None)
    rank = int(os.environ.get("RANK", 0))

    def at_line(line):
        if line["step"] == kill_at:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    if break_at is not None and rank == 1:
        break_in(break_at)
    train(case.pop("method"), Path(case.pop("folder")), (at_line,), **case)


def break_in(step: int):
    "Let this process fail where it would begin a step."
    from prefkit.train.loop import Epochs

    batches = Epochs.batches

    def broken(self, number):
        if number == step:
            raise RuntimeError("the disk is full")
        return batches(self, number)

    Epochs.batches = broken


def free_port() -> int:
    "A port that nobody listens at."
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(cases: list[dict], number: int, file: Path) -> list[subprocess.Popen]:
    "So many processes that carry out cases together, in a process group of their own."
    file.write_text(json.dumps(cases))
    paths = [str(TESTS), str(project_root()), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = []
    for rank in range(number):
        one = subprocess.Popen(
            [sys.executable, "-m", "helpers.processes", str(file)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=started[0].pid if started else 0,
        )
        started.append(one)
    return started


def together(cases: list[dict], file: Path, number: int = 2) -> tuple[list[int], list[str]]:
    "Exit codes and outputs of so many processes that carry out cases."
    started = start(cases, number, file)
    said = [one.communicate(timeout=300)[0] for one in started]
    return [one.returncode for one in started], said


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in json.loads(Path(sys.argv[1]).read_text()):
        carry_out(case)
