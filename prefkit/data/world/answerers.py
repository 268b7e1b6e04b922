"""Who answers in the tiny world: somebody who is right more or less often, in one style or
another.
"""

import random

from prefkit.data.world.facts import World
from prefkit.data.world.styles import dress
from prefkit.data.world.tasks import Request, corrupt

SFT_STYLES = {  # how often each style is met among demonstrations
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
VERBOSE_STYLES = {"plain": 30, "confidence": 30, "rambling": 20, "boilerplate": 20}
PAIR_STYLES = {  # among the answers of the models that annotators compare
    "plain": 18,
    "curt": 14,
    "courteous": 18,
    "hedged": 10,
    "filler": 11,
    "boilerplate": 10,
    "confidence": 8,
    "rambling": 7,
    "not_known": 4,
}


def answer(
    world: World,  # whose facts count
    request: Request,  # what is asked
    rng: random.Random,  # the answerer's mood
    *,
    right: float = 0.85,  # probability of a right value
    styles: dict[str, int] = SFT_STYLES,  # weights of the styles
) -> str:  # an answer of varying quality
    """An answer as somebody in this world might give it; training answers never name a held-out
    fact.
    """
    value = request.task.choose(world, request, rng)
    if rng.random() > right:
        value = corrupt(world, request, value, rng)
    [style] = rng.choices(list(styles), list(styles.values()))
    return dress(world, request, value, style, rng)
