"""Claims: what intervals say for or against them, and whether models come in a claimed order.

A claim is one comparison or several. It holds where every interval lies on its side of no
difference, does not hold where one lies on the other side, and cannot be told otherwise. Each
interval is taken by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, rankdata

__all__ = ["VERDICTS", "Claim", "exact_p", "rank_correlation", "sign", "verdict"]

VERDICTS = {1: "holds", -1: "does not hold", 0: "cannot be told"}


def sign(
    low: float,
    high: float,  # ends of an interval; NaN where there is none
    level: float = 0.0,  # no difference; one half for a win rate
) -> int:  # 1: above the level, -1: below, 0: not apart from it
    "On which side of no difference an interval lies."
    return int(low > level) - int(high < level)


def verdict(
    intervals: Sequence[tuple[float, float, float]],  # value, low, high of each comparison
    side: int = 1,  # of zero on which all of them should lie: 1 above, -1 below
) -> str:  # one of VERDICTS
    "What the intervals of all comparisons say together."
    signs = [side * sign(low, high) for _, low, high in intervals]
    if all(each == 1 for each in signs):
        return VERDICTS[1]
    return VERDICTS[-1] if -1 in signs else VERDICTS[0]


@dataclass(frozen=True)
class Claim:
    "What is said of models, as comparisons that can be made."

    text: str  # "TOPR is better than SFT"
    source: str  # where it is said
    side: int  # 1: more is claimed, -1: less
    # (model, reference): a win rate against one half; (model, other, reference): the difference of
    # two win rates against the same reference
    comparisons: tuple[tuple[str, ...], ...]

    def judge(
        self,
        compared: Callable,  # a comparison -> its difference from no difference: value, low, high
    ) -> tuple[str, tuple[str, ...]]:  # the verdict, and the comparison that stands worst for it
        "What the comparisons say."
        found = {names: compared(names) for names in self.comparisons}
        said = verdict(list(found.values()), self.side)
        against = said == VERDICTS[-1]

        def standing(names):
            "How far a comparison lies on the claim's side: by its far end if it is against it."
            ends = sorted(self.side * value for value in found[names])
            return ends[-1 if against else 0]

        return said, min(found, key=standing)


def rank_correlation(
    theirs,  # (n,) numbers
    ours,  # (n,) numbers of the same models
) -> float:  # in [-1, 1]
    """Spearman's: Pearson's of the ranks, ties at their mean; 0 where all are tied, which is no
    order at all.
    """
    if min(np.ptp(theirs), np.ptp(ours)) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(theirs), rankdata(ours))[0, 1])


def exact_p(
    theirs,  # (n,) numbers; n! orders are counted
    ours,  # (n,) numbers of the same models
) -> float:  # in (0, 1]
    "Two-sided p of a rank correlation: the share of all orders that agree or disagree as strongly."
    ranks, fixed = rankdata(theirs), rankdata(ours) - np.mean(rankdata(ours))
    found = permutation_test(
        (ranks,),
        lambda x, axis=-1: (x * fixed).sum(axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=np.inf,
        batch=50_000,
    )
    return float(found.pvalue)
