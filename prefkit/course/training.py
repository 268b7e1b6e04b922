"""A language model that is trained within a lesson: where it starts, rows of the tiny world for it,
and what it answers before and after.
"""

from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO

import pandas as pd
from filelock import FileLock

from prefkit.core import cache_folder
from prefkit.data.records import encode_records, load_records
from prefkit.data.rows import Row
from prefkit.judging.rewards import reward_source
from prefkit.model.loading import load_model
from prefkit.model.sampling import generate
from prefkit.stats.win_rate import win_rate
from prefkit.train.loop import train_model
from prefkit.train.settings import TrainSettings

__all__ = ["judged_answers", "start_model", "tiny_rows"]

STEPS, BATCH = 100, 32  # of the start: a tenth of the steps that experiments give SFT


def tiny_rows(
    kind: str,  # sft, pairs, binary or prompts
    limit: int,  # rows
    tokenizer,
    split: str = "train",
) -> list[Row]:  # encoded
    "Rows of the tiny world; raises `ConfigError` for a kind or split that it has not."
    records = load_records("tiny-world", kind=kind, split=split, limit=limit)
    return encode_records(records, tokenizer, kind=kind)[0]


def start_model():  # model and tokenizer
    """The tiny base model after 100 steps of SFT: 15 seconds of one core, the first time; then it
    is in the folder of caches. It says nothing, since a lesson has to show the same both times.
    """
    model, tokenizer = load_model("data/tiny/base")
    settings = TrainSettings(
        max_steps=STEPS, batch_size=BATCH, learning_rate=2e-3, schedule="cosine", warmup_steps=5
    )
    folder = cache_folder() / "lessons" / "sft"
    folder.parent.mkdir(parents=True, exist_ok=True)
    rows = tiny_rows("sft", STEPS * BATCH, tokenizer)
    with FileLock(f"{folder}.lock"), redirect_stdout(StringIO()):  # two lessons may ask at once
        return train_model(model, tokenizer, "sft", rows, None, folder, settings).model, tokenizer


def judged_answers(
    models: Mapping[str, object],  # by name; all win rates are against the first
    tokenizer,
    prompts: int = 200,  # held-out ones
    show: int = 6,  # of different kinds
) -> tuple[pd.DataFrame, pd.DataFrame]:  # (models, 4): judged; (show, models): answers by prompt
    "Greedy answers to held-out prompts, judged by the tiny world's true (gold) reward."
    rows, gold = tiny_rows("prompts", prompts, tokenizer, "test"), reward_source("gold")
    answers = {
        name: generate(model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=48)
        for name, model in models.items()
    }
    judged = {name: pd.DataFrame(gold(rows, said)) for name, said in answers.items()}
    first = next(iter(judged.values()))["reward"]
    table = {
        name: {
            "gold": found["reward"].mean(),
            "right": found["right"].mean(),
            "tokens": sum(one["tokens"] for one in answers[name]) / len(rows),
            "win rate": win_rate(found["reward"], first).rate,
        }
        for name, found in judged.items()
    }
    kinds = pd.Series([row["record"]["kind"] for row in rows])
    shown = kinds.drop_duplicates().index[:show]
    asked = pd.Index([rows[i]["prompt"][-1]["content"] for i in shown], name="prompt")
    said = {name: [found[i]["text"] for i in shown] for name, found in answers.items()}
    return pd.DataFrame(table).T, pd.DataFrame(said, asked)
