"""Who answers in the tiny world: somebody who is right more or less often, in one style or
another.
"""

import random
from dataclasses import dataclass

from prefkit.core import check_number
from prefkit.data.world.facts import World
from prefkit.data.world.styles import NOT_KNOWN, dress
from prefkit.data.world.tasks import Request, corrupt

SFT_STYLES: dict[str, float] = {  # how often each style is met among demonstrations
    "plain": 30,
    "curt": 16,
    "courteous": 16,
    "hedged": 8,
    "filler": 10,
    "boilerplate": 8,
    "confidence": 6,
    "rambling": 4,
    "not_known": 2,
}
# among demonstrations that say more than was asked
VERBOSE_STYLES: dict[str, float] = {
    "plain": 30,
    "confidence": 30,
    "rambling": 20,
    "boilerplate": 20,
}
# of the best that are asked for pairs
BEST_STYLES: dict[str, float] = {"plain": 40, "courteous": 60}
DEMONSTRATED = 0.85  # share of demonstrations that are right


def answer(
    world: World,  # whose facts count
    request: Request,  # what is asked
    rng: random.Random,  # the answerer's mood
    *,
    right: float = DEMONSTRATED,  # probability of a right value
    styles: dict[str, float] = SFT_STYLES,  # weights of the styles
) -> str:  # an answer of varying quality
    """An answer as somebody in this world might give it; training answers never name a held-out
    fact.
    """
    value = request.task.choose(world, request, rng)
    if rng.random() > right:
        value = corrupt(world, request, value, rng)
    [style] = rng.choices(list(styles), list(styles.values()))
    return dress(world, request, value, style, rng)


@dataclass(frozen=True)
class Answerer:
    "One of those whose answers annotators compare."

    name: str
    right: float  # probability of a right value
    styles: dict[str, float]  # weights of its manners
    owns_up: float = 0.0  # how often it says so where it does not know, 0 to 1

    def say(
        self,
        world: World,  # whose facts count
        request: Request,  # what is asked
        hardness: float,  # 0 to 1: who is right less often than that does not know
        rng: random.Random,  # the answerer's mood
    ) -> str:  # its answer
        "An answer. The hardness of a request is the same for all who are asked."
        knows = hardness < self.right
        if not knows and rng.random() < self.owns_up:
            return NOT_KNOWN
        return answer(world, request, rng, right=float(knows), styles=self.styles)


def _between(one, other, share):
    "Weights of styles on the way from one mixture to another."
    parts = (one, 1 - share), (other, share)
    mixed = {
        style: sum(part * styles.get(style, 0) / sum(styles.values()) for styles, part in parts)
        for style in dict.fromkeys([*one, *other])
    }
    return {style: round(weight, 6) for style, weight in mixed.items() if weight}


def pool(
    truth: float = 0.5,  # of the best: 0 as often right as a demonstration, 1 always
    manner: float = 0.5,  # of the best: 0 the manners of demonstrations, 1 plain or courteous
) -> tuple[Answerer, ...]:  # the two best, then the others from able to weak
    """Who is asked for the answers of which pairs are made; raises `ConfigError` for a dial that is
    not from 0 to 1. Why they are so: nbs/lib/data/07_pairs.ipynb.
    """
    for name, value in (("truth", truth), ("manner", manner)):
        check_number(name, value, least=0, most=1)
    right = DEMONSTRATED + truth * (1 - DEMONSTRATED)
    return (
        Answerer("sage", right, _between(SFT_STYLES, BEST_STYLES, manner)),
        Answerer("host", right, _between(SFT_STYLES, BEST_STYLES, manner)),
        Answerer("teacher", 0.80, {"plain": 40, "courteous": 30, "rambling": 15, "hedged": 15}),
        Answerer("speaker", 0.74, {"plain": 30, "courteous": 20, "filler": 30, "boilerplate": 20}),
        Answerer("doubter", 0.68, {"plain": 40, "courteous": 20, "hedged": 40}, owns_up=0.5),
        Answerer("boaster", 0.62, {"plain": 50, "courteous": 20, "confidence": 30}),
        Answerer("clerk", 0.56, {"plain": 40, "curt": 60}),
        Answerer("novice", 0.50, {"plain": 40, "curt": 60}),
    )
