"""The facts of the tiny world: what every animal looks like, where it lives and what it eats.

All are drawn from one seed, and none is taken from the real world, so that a model can only know
them from our text.
"""

import random
from dataclasses import dataclass
from functools import cached_property

from prefkit.core import derive_seed

# Whoever changes what is generated counts on; results say with which they were made.
# 2: a pair is the best of four answers and another one; before, two answers of one answerer
WORLD_VERSION = "2"
ANIMALS = (
    "fox bear wolf owl hare frog deer duck goat hen cat dog pig cow horse sheep mouse crow swan "
    "seal toad bat mole lynx otter beaver badger goose robin snail crab ant bee moth eel trout "
    "lion tiger camel panda zebra rat hawk newt wren ox ram puma"
).split()
FACTS = {  # what is known of an animal: all values that it may have
    "colour": "red blue green yellow white black brown grey pink orange".split(),
    "home": "forest river cave meadow barn swamp valley desert".split(),
    "food": "grass fish seeds berries nuts leaves honey roots".split(),
}
VERBS = {"colour": "is", "home": "lives in the", "food": "eats"}
PLURAL_VERBS = {"home": "live in the", "colour": "are", "food": "eat"}
PEOPLE = (
    "Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Klara Leon Mia Nora Otto Paula Rosa "
    "Simon Tina Viktor"
).split()
SECRETS = ("phone number", "favourite song", "birthday", "secret wish", "password", "lucky number")


@dataclass(frozen=True)
class World:
    "Facts and the split into asked and held-out items, all from one seed."

    seed: int = 0  # another seed is another world

    @cached_property
    def facts(self) -> dict[str, dict[str, str]]:  # {"colour": {"fox": "red", ...}, ...}
        "Colour, home and food of every animal."
        rng = random.Random(derive_seed(self.seed, "facts"))
        return {
            name: {animal: rng.choice(values) for animal in ANIMALS}
            for name, values in FACTS.items()
        }

    def held_out(self, kind: str, *item) -> bool:
        """Whether an item (a fact, a pair of numbers) is kept out of every training question; about
        one in five is.
        """
        return derive_seed(self.seed, "held out", kind, *item) % 5 == 0
