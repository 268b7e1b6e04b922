"""Several answers to each prompt, scored by a judge: how a judge labels pairs, and how it gives
rewards. A plain module: the pipeline `own_pairs` uses it.
"""

from itertools import combinations
from pathlib import Path

from prefkit.judging.judges import Judge


def judge_scores(
    judge: Judge,  # as `make_judge` gives it
    names: list[str],  # of the prompts, all different
    prompts: list,  # messages or text
    answers: list[list[dict]],  # to each prompt: text, tokens, ended
    store: str | Path | None = None,  # keeps the replies of a server, as for `Judge.score`
) -> list[list[float]]:  # of each answer
    """A judge's scores; of one that compares, the share of the other answers that each one beats,
    ties half. Raises `DataError` where one is not judged.
    """
    if judge.compares:
        return _shares_won(judge, names, prompts, answers, store)
    records = [
        _record(f"{name}, answer {place}", prompt, said)
        for name, prompt, group in zip(names, prompts, answers)
        for place, said in enumerate(group)
    ]
    found = iter(judge.score(records, store).whole())
    return [[next(found).value for _ in group] for group in answers]


def _record(name, prompt, said):
    "An answer as judges take it."
    counted = {"tokens": said["tokens"], "ended": said["ended"]}
    return {"prompt_id": name, "prompt": prompt, "answer": said["text"], **counted}


def _shares_won(judge, names, prompts, answers, store):
    "Every two answers to a prompt are compared once."
    duels = [
        (place, one, other)
        for place, group in enumerate(answers)
        for one, other in combinations(range(len(group)), 2)
    ]
    sides = [
        [
            _record(f"{names[place]}, answers {one} and {other}", prompts[place], answers[place][k])
            for place, one, other in duels
            for k in [(one, other)[side]]
        ]
        for side in (0, 1)
    ]
    won = [[0.0] * len(group) for group in answers]
    for (place, one, other), said in zip(duels, judge.compare(*sides, store).whole()):
        won[place][one] += said.preference
        won[place][other] += 1 - said.preference
    return [[wins / max(1, len(group) - 1) for wins in group] for group in won]
