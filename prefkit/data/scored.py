"""Pairs from several answers to a prompt that somebody has scored, in the columns of UltraFeedback:
how a model's own answers become data to train on. A plain module: the pipeline `own_pairs` uses it.
"""

import random
from collections.abc import Sequence
from itertools import combinations

from prefkit.core import ConfigError

PAIRINGS = ("best_worst", "best_random", "all")


def check_way(way: str):
    "Raise `ConfigError` for a way of making pairs that there is not."
    if way not in PAIRINGS:
        raise ConfigError(
            f"pairs: {way!r} is none of {', '.join(PAIRINGS)}.",
            field="pairs",
            reason="no such choice",
        )


def pairs_of(
    scores: Sequence[float],  # of the answers to one prompt
    way: str,  # one of `PAIRINGS`
    rng: random.Random,  # which of the others, where that is random
) -> list[tuple[int, int]]:  # places of chosen and rejected; [] where all scores are equal
    """best_worst: the highest score against the lowest. best_random: the highest against a random
    lower one, as UltraFeedback binarized was made (there an equal one may be drawn, which teaches
    nothing). all: every two answers whose scores differ. Of equal scores the first counts.
    """
    check_way(way)
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if way == "all":
        return [(a, b) for a, b in combinations(order, 2) if scores[a] > scores[b]]
    lower = [place for place in order if scores[place] < scores[order[0]]]
    if not lower:
        return []
    worst = min(lower, key=lambda place: scores[place])
    return [(order[0], worst if way == "best_worst" else rng.choice(lower))]


def pair_rows(
    prompt: list[dict],  # messages
    name: str,  # of the prompt
    answers: Sequence[str],  # to it
    scores: Sequence[float],  # of the answers
    places: list[tuple[int, int]],  # from `pairs_of`
) -> list[dict]:  # prompt, prompt_id, chosen, rejected, score_chosen, score_rejected
    "Rows of pairs; those of one prompt are told apart by a number behind its name."
    say = lambda place: [{"role": "assistant", "content": answers[place]}]
    return [
        {
            "prompt": prompt,
            "prompt_id": f"{name}-{number}" if len(places) > 1 else name,
            "chosen": say(chosen),
            "rejected": say(rejected),
            "score_chosen": float(scores[chosen]),
            "score_rejected": float(scores[rejected]),
        }
        for number, (chosen, rejected) in enumerate(places)
    ]
