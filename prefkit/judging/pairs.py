"""What models make of held-out pairs: how likely they find the chosen and the rejected answer, and
how far that has moved from a reference.
"""

import os
from collections.abc import Sequence

import torch

from prefkit.core import Progress, resolve_path
from prefkit.data.records import load_records
from prefkit.data.rows import Row, as_rows
from prefkit.model.batches import batch_logps, collate
from prefkit.stats.intervals import mean_interval, share_interval

PAIR = ("chosen", "rejected")


def score_pairs(
    model,  # a causal language model
    rows: Sequence[Row | dict],  # encoded pairs: prompt_ids, chosen_ids, rejected_ids
    pad_token_id: int,  # any token
    batch_size: int = 4,  # pairs in one forward pass
    label: str = "scoring",  # for the progress bar
) -> list[dict]:  # chosen, rejected: log-probs in nats, summed over the answer's tokens
    "The log-probs of both answers of every pair; the model's mode is put back afterwards."
    found, was_training = [], model.training
    model.eval()
    try:
        with torch.no_grad(), Progress(len(rows), label) as progress:
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                batch = collate(part, PAIR, pad_token_id).to(next(model.parameters()).device)
                logps = batch_logps(model, batch).view(len(PAIR), len(part)).T.tolist()
                found += [dict(zip(PAIR, pair)) for pair in logps]
                progress.update(len(part))
    finally:
        model.train(was_training)
    return found


def margins(
    scores: list[dict],  # of a model
    reference: list[dict],  # of the model that it is compared with, the same pairs
) -> list[float]:  # nats
    "How much more a model has come to prefer the chosen answer: the difference of log-ratios."
    return [
        (ours["chosen"] - theirs["chosen"]) - (ours["rejected"] - theirs["rejected"])
        for ours, theirs in zip(scores, reference)
    ]


def pair_summary(
    scores: list[dict],  # of a model
    reference: list[dict] | None,  # None: the model is the reference itself
    rows: Sequence[Row | dict],  # the encoded pairs
) -> dict:  # each estimate with _low and _high, 95 % over pairs; None where it means nothing
    """One row of a table: `likelier`, the share of pairs whose chosen answer has the higher
    log-prob per token; the mean log-ratios to the reference of both answers; their mean difference
    `margin`; `accuracy`, the share of pairs whose margin is above 0.
    """

    def estimate(name, interval):
        return dict(zip((name, f"{name}_low", f"{name}_high"), interval))

    def per_token(score, row, side):
        return score[side] / sum(row.learned_of(side))

    likelier = sum(
        per_token(score, row, "chosen") > per_token(score, row, "rejected")
        for score, row in zip(scores, as_rows(rows))
    )
    n, nothing = len(rows), (None, None, None)
    line = {"n": n, **estimate("likelier", share_interval(likelier, n))}
    for side in PAIR:
        moved = zip(scores, reference or ())
        ratios = [ours[side] - theirs[side] for ours, theirs in moved]
        line |= estimate(f"logratio_{side}", mean_interval(ratios) if ratios else nothing)
    gained = margins(scores, reference or [])
    right = sum(margin > 0 for margin in gained)
    line |= estimate("margin", mean_interval(gained) if gained else nothing)
    return line | estimate("accuracy", share_interval(right, n) if gained else nothing)


def beginning(
    prompt: list[dict],  # messages
) -> str:  # at most 200 characters
    "How the last question begins, for answers side by side."
    return prompt[-1]["content"][:200]


def prompts_here(
    dataset: str,  # as a config names it
    split: str,  # of it, with its slice
) -> dict[str, str]:  # name of a row -> how its prompt begins; {}: the data are not here
    "The prompts of a file that results do not quote, read where the user has it."
    variable = dataset.split("/")[0]
    if variable.startswith("$") and variable[1:] not in os.environ:
        return {}
    if not resolve_path(dataset).exists():
        return {}
    rows = load_records(dataset, kind="pairs", split=split)
    return {row["row"]: beginning(row["prompt"]) for row in rows}
