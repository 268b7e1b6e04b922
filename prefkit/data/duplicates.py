"""Whether a text has been there before, word for word or nearly: new prompts among themselves,
against those that they were made after, and against those that a model is going to be tested on.
A plain module: the pipeline `synthesize` uses it.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from prefkit.core import check_number

WORDS = 3  # in a row make a shingle


def words_alone(text: str) -> str:
    "A text without case, punctuation, accents and spacing: what is equal then says the same."
    whole = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(re.findall(r"\w+", "".join(x for x in whole if not unicodedata.combining(x))))


def shingles(text: str) -> frozenset[str]:  # never empty
    "Every three words in a row of a text that is `words_alone`; of a shorter one, itself."
    words = text.split()
    runs = range(max(1, len(words) - WORDS + 1))
    return frozenset(" ".join(words[at : at + WORDS]) for at in runs)


def jaccard(one: frozenset, other: frozenset) -> float:  # 0: nothing in common; 1: the same
    "How alike two sets are."
    return len(one & other) / len(one | other)


@dataclass(frozen=True)
class Found:
    "What a text is a duplicate of."

    text: str  # as it was added
    where: Any  # as it was added
    alike: float  # 1.0: equal but for case, punctuation and spacing


class Seen:
    """Texts that have been there; raises `ConfigError` for a threshold out of range.

    Exact, and fast for many texts: a pair that is alike shares one of a text's rarest shingles.
    """

    def __init__(
        self,
        near: float = 0.7,  # from which Jaccard similarity of shingles on texts are alike
    ):
        check_number("near", near, above=0, most=1)
        self.near, self.texts = near, []  # of (text, where, shingles)
        self.exact: dict[str, int] = {}  # a plain text -> its place
        self.holding: dict[str, list[int]] = defaultdict(list)  # shingle -> places

    def add(self, text: str, where: Any):
        "Remember a text, and where it stands."
        bare = words_alone(text)
        place, parts = len(self.texts), shingles(bare)
        self.texts.append((text, where, parts))
        self.exact.setdefault(bare, place)
        for part in parts:
            self.holding[part].append(place)

    def find(self, text: str) -> Found | None:
        "The text that is most alike, if one is; of several equals the first."
        bare = words_alone(text)
        if bare in self.exact:
            known, where, _ = self.texts[self.exact[bare]]
            return Found(known, where, 1.0)
        parts = shingles(bare)
        rarest = sorted(parts, key=lambda part: (len(self.holding.get(part, ())), part))
        # without all of these, too few are left to be so much alike
        rarest = rarest[: int(len(parts) * (1 - self.near) + 1e-9) + 1]
        places = Counter(place for part in rarest for place in self.holding.get(part, ()))
        alike = [(jaccard(parts, self.texts[place][2]), -place) for place in places]
        most, place = max(alike, default=(0.0, 0))
        if most < self.near:
            return None
        known, where, _ = self.texts[-place]
        return Found(known, where, most)
