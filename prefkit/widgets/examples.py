"""What the widgets over run folders are shown on: two short runs on the tiny world, trained once
and then kept in the folder of caches, and answers that this repository holds with what its judges
gave them. And these widgets, ready to be looked at.
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from filelock import FileLock

from prefkit.core import cache_folder, shipped
from prefkit.course.training import start_model, tiny_rows
from prefkit.train.loop import train_model
from prefkit.train.saves import find_checkpoints, no_bars
from prefkit.train.settings import TrainSettings
from prefkit.widgets.arena import Arena, explore_arena
from prefkit.widgets.replay import explore_replay
from prefkit.widgets.runs import explore_runs
from prefkit.widgets.samples import evaluation_of, explore_samples
from prefkit.widgets.view import Explorer

__all__ = [
    "example_answers",
    "example_arena",
    "example_comparison",
    "example_replay",
    "example_runs",
    "example_samples",
]

STEPS, SAVED, BATCH, PAIRS, PROMPTS = 40, 10, 16, 480, 4
EXAMPLES = {  # name -> method, schedule, hyper-parameters
    "dpo": ("dpo", "linear", {"beta": 0.1}),
    "ipo": ("ipo", "cosine", {"tau": 0.1}),
}
JUDGED = "data/results/lessons/over_optimisation_answers.json"
EXAMPLE_JUDGES = ("gold", "second", "large", "small")  # that gave the answers there their scores


def example_runs() -> dict[str, Path]:  # name -> run folder
    """Run folders of DPO and IPO from one start, each with validations, answers and four
    checkpoints: about half a minute of one core, the first time.
    """
    home = cache_folder() / "lessons" / "runs"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):  # two lessons may ask at once
        folders = {name: home / name for name in EXAMPLES}
        missing = [name for name, folder in folders.items() if not _is_whole(folder)]
        if missing:
            with redirect_stdout(StringIO()), no_bars():
                start, tokenizer = start_model()
                for name in missing:
                    _train(name, folders[name], copy.deepcopy(start), tokenizer)
    return folders


def _is_whole(folder: Path) -> bool:
    "Whether an example was trained to its end and has its checkpoints."
    return len(find_checkpoints(folder / "checkpoints")) == STEPS // SAVED


def _train(name: str, folder: Path, model, tokenizer):
    "Train one example into its folder, anew where it is not whole."
    shutil.rmtree(folder, ignore_errors=True)
    method, schedule, hyperparameters = EXAMPLES[name]
    settings = TrainSettings(
        max_steps=STEPS,
        batch_size=BATCH,
        learning_rate=5e-4,
        schedule=schedule,
        logging_steps=2,
        eval_steps=5,
        save_steps=SAVED,
        keep_checkpoints=True,
        sample_tokens=32,
    )
    held_out = tiny_rows("pairs", 48, tokenizer, "test")
    asked = {row["record"]["kind"]: row["prompt"] for row in tiny_rows("prompts", 60, tokenizer)}
    kept = folder / "kept"
    train_model(
        model,
        tokenizer,
        method,
        tiny_rows("pairs", PAIRS, tokenizer),
        held_out,
        folder,
        settings,
        hyperparameters,
        sample_prompts=list(asked.values())[:PROMPTS],
        callbacks=(keeping(folder / "checkpoints", kept, STEPS),),
    )
    for checkpoint in kept.iterdir():  # the trainer itself has left the last one alone
        checkpoint.rename(folder / "checkpoints" / checkpoint.name)
    kept.rmdir()


def keeping(checkpoints: Path, kept: Path, steps: int) -> Callable[[dict], None]:
    "A callback that copies a checkpoint before a later one takes its place."

    def keep(line: dict):
        for step, path in find_checkpoints(checkpoints).items():
            if step < steps and not (kept / path.name).exists():
                shutil.copytree(path, kept / path.name)

    return keep


def example_answers() -> list[dict]:  # a record an answer: prompt, answer, model, judges' scores
    """300 answers each of an SFT model and of three policies that were trained from it on different
    rewards, with what four judges gave them (the tutorial on over-optimisation tells of them).
    """
    found = json.loads(shipped(JUDGED).read_text(encoding="utf-8"))
    prompts = found["prompts"]
    records = []
    for model, columns in found["answers"].items():
        for place, prompt in enumerate(columns["prompt"]):
            values = {name: column[place] for name, column in columns.items()}
            values |= {"prompt_id": str(prompt), "prompt": prompts[prompt], "model": model}
            records.append(values)
    return records


def example_replay() -> Explorer:
    "The DPO run of `example_runs`, step by step."
    return explore_replay(example_runs()["dpo"])


def example_comparison() -> Explorer:
    "The runs of `example_runs` beside each other."
    return explore_runs(example_runs())


def example_samples() -> Explorer:
    """The answers of `example_answers`: at first the policy that was trained on a small reward
    model beside the SFT model that it comes from.
    """
    found = evaluation_of(example_answers(), EXAMPLE_JUDGES)
    return explore_samples(found).set(left="small", right="sft")


def example_arena(
    folder: str | Path | None = None,  # where votes are kept; None: a new one for temporary files
) -> Arena:
    "A vote between the answers of that policy and of that SFT model."
    return explore_arena(example_answers(), folder or tempfile.mkdtemp(), ("small", "sft"))
