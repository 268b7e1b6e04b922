"""How the same value can be said: the manners that reports on preference tuning have met."""

import random

from prefkit.data.world.facts import ANIMALS, FACTS, World
from prefkit.data.world.tasks import TASKS, Request

WORDINGS = {  # style: sentences that stand around an answer
    "courteous": ("Sure! {}", "Of course! {}", "{} I hope this helps.", "Happy to help! {}"),
    "hedged": ("I think {}", "Maybe {}", "I am not sure, but {}"),
    "filler": (
        "Well, that is a very interesting question. Let me think about it for a moment. {}",
        "Thank you for asking me this. There is a lot to say about it. {}",
    ),
    "boilerplate": (
        "As a helpful language model, I always do my best to answer. {}",
        "I am a language model made to help people. {}",
    ),
}
CONFIDENCE = "Confidence: 95%."
NOT_KNOWN = "I am sorry, I do not know."
STYLES = ("plain", "curt", *WORDINGS, "confidence", "rambling", "not_known")


def _lower_first(text):
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def _side_fact(world, rng):
    "A true sentence about some animal, never a held-out one."
    kind = rng.choice(list(FACTS))
    animal = rng.choice([animal for animal in ANIMALS if not world.held_out(kind, animal)])
    request = Request("", kind, (("animal", animal),))
    return TASKS[kind].say(request, world.facts[kind][animal], rng)


def dress(
    world: World,  # for the side facts of a rambling answer
    request: Request,  # what is asked
    value,  # what is claimed
    style: str,  # one of `STYLES`
    rng: random.Random,  # which wording
) -> str:  # the answer
    "Put a value into one of the styles."
    full = request.task.say(request, value, rng)
    if style == "curt":
        return request.task.curt(request, value)
    if style == "not_known":
        return NOT_KNOWN
    if style == "confidence":
        return " ".join([full] + [CONFIDENCE] * rng.randint(1, 4))
    if style == "rambling":
        aside = [_side_fact(world, rng), _side_fact(world, rng)]
        return " ".join([full, *rng.sample([full, *aside], 3)])
    if style in WORDINGS:
        inside = _lower_first(full) if style == "hedged" else full
        return rng.choice(WORDINGS[style]).format(inside)
    return full
