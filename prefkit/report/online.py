"""What the page on methods that learn from their own samples says: who earns more gold reward in
every seed, who wins, and what became of the rewards on the way.
"""

import math

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from prefkit.report.figures import (
    mean_interval,
    say_change,
    say_interval,
    say_seconds,
    sentence,
    set_legend,
    set_title,
)
from prefkit.report.panels import draw_seed_lines, seed_looks
from prefkit.report.standings import SCORES, Standings, flat
from prefkit.report.words import counted, joined, number, say_estimate, signed

__all__ = [
    "above_in_every_seed",
    "draw_ways",
    "ends_of_way",
    "estimate_row",
    "number_row",
    "sampled_differences",
    "say_bound",
    "say_every_seed",
    "say_method",
    "say_sampled",
    "say_second",
    "say_time",
    "say_way",
    "say_winners",
    "validations",
]

OUTCOMES = {1: "beats", 0: "cannot be told apart from", -1: "loses to"}


def say_every_seed(
    standings: Standings,
    reference: str,
) -> list[str]:  # one sentence for each number of seeds
    "Who has a higher gold reward in every seed, who in some, who in none."
    groups, n = {}, len(standings.seeds)
    models = standings.candidates(reference)
    for model in sorted(models, key=lambda each: -standings.gap(each, reference)[0]):
        gaps = standings.gaps(model, reference).values()
        said = f"{standings.called(model)} ({', '.join(map(signed, gaps))})"
        groups.setdefault(sum(gap > 0 for gap in gaps), []).append(said)
    start = f"Higher gold reward than {standings.called(reference)} in"
    words = {n: "every one", 0: "none"}
    return [
        f"{start} {words.get(seeds, seeds)} of {counted(n, 'seed')}: {joined(groups[seeds])}."
        for seeds in sorted(groups, reverse=True)
    ]


def above_in_every_seed(standings: Standings, reference: str) -> list[str]:
    "Names of those whose gold reward is above a reference's in every seed."
    return [
        standings.called(model)
        for model in standings.candidates(reference)
        if min(standings.gaps(model, reference).values()) > 0
    ]


def say_method(standings: Standings, model: str) -> str:
    """What came of a method against each reference, by the gold reward; and by the second judge
    where it sees it otherwise.
    """
    said = []
    for reference in standings.compared:
        if model not in standings.candidates(reference):
            continue
        gold, second = (
            (standings.verdict(model, reference, judge), standings.win(model, reference, judge))
            for judge in ("gold", "second")
        )
        same = gold[0] == second[0]
        other = "the same verdict" if same else f"by which it {OUTCOMES[second[0]]} it"
        said.append(
            f"{OUTCOMES[gold[0]]} {standings.called(reference)}, "
            f"{say_interval(*gold[1], digits=1)}; the second judge: "
            f"{say_interval(*second[1], digits=1)}, {other}"
        )
    return sentence(f"{standings.called(model)} {'. It '.join(said)}.")


def say_second(standings: Standings, reference: str) -> str:
    "Whether the second judge comes to other verdicts."
    models = [each for each in standings.candidates(reference) if each in standings.methods]
    other = [
        standings.called(model)
        for model in models
        if standings.verdict(model, reference) != standings.verdict(model, reference, "second")
    ]
    start = f"Against {standings.called(reference)} the second judge comes to"
    count = counted(len(models), "method")
    if not other:
        return f"{start} the same verdict on {'each of ' if len(models) > 1 else ''}{count}."
    return f"{start} another verdict on {len(other)} of {count}: {joined(other)}."


def say_winners(standings: Standings, reference: str) -> str:
    "How many methods beat a reference, and which."
    won = [
        standings.called(model)
        for model in standings.methods
        if standings.verdict(model, reference) == 1
    ]
    return (
        f"{len(won)} of {counted(len(standings.methods), 'method')} "
        f"{'beats' if len(won) == 1 else 'beat'} {standings.called(reference)} by the gold "
        f"reward{': ' + joined(won) if won else ''}."
    )


def say_bound(standings: Standings, bound: str) -> str:
    "How much of the bound's gain over the first reference the best method has, seed by seed."
    reference = standings.compared[0]
    best = max(standings.methods, key=lambda model: standings.gap(model, reference)[0])
    above = list(standings.gaps(bound, reference).values())
    told = ", ".join(map(signed, above))
    start = (
        f"{standings.called(bound)} is trained on the reward that judges, which no real project has"
    )
    if min(above) <= 0:
        return (
            f"{start}. Even so its gold reward is not above {standings.called(reference)} in every "
            f"seed: {told}."
        )
    reached = zip(standings.gaps(best, reference).values(), above)
    shares = joined([f"{number(100 * own / whole, 0)} %" for own, whole in reached])
    return (
        f"{start}. Its gain in gold reward over {standings.called(reference)} is {told}; "
        f"{standings.called(best)}, the best that learned from a reward model, has {shares} of "
        f"it{'' if standings.alone else ' in the same seeds'}."
    )


def say_time(
    standings: Standings,
    seconds: dict[str, float],  # stage -> wall seconds
) -> str:  # empty where the times are not known
    "How long the methods took, beside the control."
    took = [
        f"{standings.called(model)} {say_seconds(seconds[model])}"
        for model in standings.methods
        if model in seconds
    ]
    if not took or "control" not in seconds:
        return ""
    return (
        f"Training took {joined(took)} of wall time, validations included; the control, SFT gone "
        f"on with, took {say_seconds(seconds['control'])}"
        f"{'' if standings.alone else ' (means over seeds)'}."
    )


def sampled_differences(
    results: dict,  # as `prefkit seeds` writes it, of sampled answers
    reference: str,
) -> pd.DataFrame:  # a row a seed and model; empty where nothing was sampled
    "Differences in gold reward to a reference, each seed's with its interval over prompts."
    return pd.DataFrame(
        [
            {"seed": seed, **row}
            for seed, one in results["seeds"].items()
            for row in one.get("differences", [])
            if row["reference"] == reference
        ]
    )


def say_sampled(
    standings: Standings,
    model: str,
    part: pd.DataFrame,  # the model's rows of `sampled_differences`
) -> str:
    "In how many seeds the gold reward is above the first reference's, and by how much over seeds."
    above = int((part["gold_difference_low"] > 0).sum())
    ends = ("gold_difference", "gold_difference_low", "gold_difference_high")
    each = [_signed_interval(row) for row in part[list(ends)].itertuples(index=False)]
    mean = ""
    if not standings.alone:
        over = mean_interval(part["gold_difference"].tolist())
        mean = f"; mean {_signed_interval(over)} over seeds"
    return sentence(
        f"{standings.called(model)} earns more gold reward than "
        f"{standings.called(standings.compared[0])}, its interval apart from zero, in {above} of "
        f"{counted(len(part), 'seed')}: {', '.join(each)}{mean}."
    )


def _signed_interval(estimate):
    "+0.50 [+0.40, +0.60]"
    value, low, high = map(signed, estimate)
    return f"{value} [{low}, {high}]"


def validations(standings: Standings) -> pd.DataFrame:  # a row a model, seed and validation
    "The way of each run: step, KL to the start, the reward trained on, the gold reward."
    tables = []
    for model in (*standings.methods, *standings.bounds):
        for seed, one in standings.seeds.items():
            lines = pd.DataFrame(one.get("curves", {}).get(model, []))
            if lines.empty:
                continue
            same = model in standings.bounds
            tables.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "seed": seed,
                        "step": lines["step"],
                        "kl": lines["kl_k1"],
                        "reward": lines["reward"],
                        "gold": lines["reward"] if same else lines.get("reward_gold", math.nan),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"model": []})


def ends_of_way(
    ways: pd.DataFrame,  # as `validations` gives it
    model: str,
    column: str,
) -> tuple[float, float]:
    "Mean over seeds at the first and at the last validation."
    part = ways[ways["model"] == model].sort_values("step").groupby("seed")[column]
    return part.first().mean(), part.last().mean()


def say_way(standings: Standings, ways: pd.DataFrame, model: str) -> str:
    """What became of the reward trained on and of the gold reward, and whether gold was higher on
    the way.
    """
    n = len(standings.seeds)
    runs = ways[ways["model"] == model].sort_values("step").groupby("seed")["gold"]
    past = sum(gold.iloc[:-1].max() > gold.iloc[-1] for _, gold in runs)
    change = {
        column: say_change(*ends_of_way(ways, model, column), digits=2)
        for column in ("reward", "gold")
    }
    trained = f"the reward that it trains on {change['reward']}; "
    return sentence(
        f"{standings.called(model)}: {'' if model in standings.bounds else trained}the gold reward "
        f"{change['gold']}, at a KL of {number(ends_of_way(ways, model, 'kl')[1])} nats per "
        f"answer{'' if standings.alone else f' (means of {n} seeds)'}. In {past} of "
        f"{counted(n, 'run')} the gold reward was higher at an earlier validation than at the last."
    )


def draw_ways(
    standings: Standings,
    ways: pd.DataFrame,  # as `validations` gives it
    title: str,  # in lines that fit
) -> Figure:  # the figure, its numbers in fig.data
    "A row a method: left the reward trained on, right the gold reward, against KL."
    models, marks = list(dict.fromkeys(ways["model"])), seed_looks(standings.seeds)
    size = (5.4, 1.2 + 1.45 * len(models))
    fig, axes = plt.subplots(len(models), 2, sharex="row", squeeze=False, figsize=size)
    for (left, right), model in zip(axes, models):
        panels = {"gold": (right, "gold")}
        if model in standings.bounds:
            left.axis("off")
            words = "trains on the gold reward:\nsee right"
            left.text(0.5, 0.5, words, ha="center", va="center", transform=left.transAxes)
        else:
            panels["reward"] = (left, "reward trained on")
        for column, (ax, what) in panels.items():
            draw_seed_lines(ax, ways[ways["model"] == model], "kl", column, marks)
            head = f"{standings.called(model)}: {what}"
            ax.set_title(head, fontsize=9.5, fontweight="normal", loc="left", pad=4)
        right.sharey(axes[0, 1])
    for column in axes.T:
        lowest = [ax for ax in column if ax.axison][-1]
        lowest.set_xlabel("KL to the start (nats per answer)", fontsize=9.5)
    fig.supylabel("mean reward (points)", fontsize=9.5)
    set_title(fig, title, width=None)
    if not standings.alone:
        set_legend(fig, *axes[0, 1].get_legend_handles_labels(), columns=3)
    fig.data = ways  # ty: ignore[missing-attribute]  its numbers
    return fig


def estimate_row(
    standings: Standings,
    model: str,
    seconds: dict[str, float],  # stage -> wall seconds
) -> dict:
    "All that the page knows of a model, in words."
    row = {
        "model": standings.called(model),
        "gold reward": say_estimate(standings.score(model, "gold")),
    }
    for reference in standings.compared:
        held = model in standings.candidates(reference)
        gap = say_estimate(standings.gap(model, reference)) if held else None
        row[f"less {standings.called(reference)}"] = gap
    wins = standings.wins(model)
    for reference in standings.compared:
        for judge in ("gold", "second"):
            rate = wins.get(f"win_{reference}_{judge}")
            said = say_estimate(rate, True, 1) if rate else None
            row[f"v. {standings.called(reference)}, {judge}"] = said
    return row | {
        "second judge": say_estimate(standings.score(model, "second")),
        "right": say_estimate(standings.score(model, "right"), True, 1),
        "tokens": say_estimate(standings.score(model, "tokens"), digits=1),
        "ended": say_estimate(standings.score(model, "ended"), True, 1),
        "training": say_seconds(seconds[model]) if model in seconds else None,
        "prompts": str(standings.n_prompts),
        "seeds": str(len(standings.seeds)),
    }


def number_row(
    standings: Standings,
    model: str,
    seconds: dict[str, float],  # stage -> wall seconds
) -> dict:
    "The same as numbers, for the CSV."
    gaps = {
        f"gold_less_{reference}": standings.gap(model, reference)
        for reference in standings.compared
        if model in standings.candidates(reference)
    }
    return {
        "model": model,
        "bound": model in standings.bounds,
        **flat(standings.columns(model, *SCORES) | gaps | standings.wins(model)),
        "seconds": seconds.get(model),
        "prompts": standings.n_prompts,
        "seeds": len(standings.seeds),
    }
