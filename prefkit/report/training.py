"""How training went, in one run and over seeds, as the comparison draws it: losses of each method,
rewards of RLOO, log-probs of pairs during SFT, wall times.

A run is what `prefkit.runs.runner.open_run` gives.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prefkit.report.claims import verdict
from prefkit.report.curves import SIDES
from prefkit.report.figures import (
    draw_curves,
    mean_interval,
    say_change,
    say_interval,
    say_seconds,
)
from prefkit.report.panels import draw_bars, draw_panels, ends_of
from prefkit.report.reported import Reported
from prefkit.report.views import View
from prefkit.report.words import signed

__all__ = [
    "draw_end_losses",
    "draw_losses",
    "draw_probe",
    "draw_rewards",
    "draw_times",
    "say_rejected",
]

UNITS = {
    "sft": "nats a token",
    "orpo": "nats a token",
    "dpo": "nats a pair",
    "topr": "nats an answer",
    "kto": "1 − utility",
}
# what is to be known of a method's loss
NOTES = {
    "topr": "The value is no measure of progress: a rejected answer's share in it is weighted by "
    "its own ratio to the reference, cut at 1, which training changes. ",
    "orpo": "V1.3's loss is the odds-ratio term alone: its height does not compare with the "
    "others'. ",
}
PROBE, RLOO = "sft_v2_6", "rloo_v1_2"  # what probed pairs, and what learned from its own samples


def method_of(run) -> str:
    "A run's method, without its form that divides by the answer's length."
    return (run.params.get("method") or "sft").removesuffix("_per_token")


def moved(
    view: View, stage: str, column: str = "loss", digits: int = 3
) -> tuple[str, str]:  # what became of it, and over seeds the change with its interval
    "What became of a validation column between start and end."
    found = view.courses(stage, "validation", column)
    first, last = (float(np.mean([values.iloc[place] for values in found])) for place in (0, -1))
    spread = view.say_changes(view.changes(stage, column), digits)
    return say_change(first, last, digits=digits), spread


def draw_losses(
    reported: Reported,
    view: View,
    stages: list[str],  # of one method
    runs: dict,
) -> tuple[Figure, str]:  # the figure and its caption
    "Validation loss above training loss."
    method = method_of(runs[stages[0]])
    panels = {
        f"{what}\n({UNITS[method]})": pd.concat(
            [view.curve(stage, split, "loss", reported.called(stage)) for stage in stages],
            ignore_index=True,
        )
        for what, split in (("validation loss", "validation"), ("training loss", "train"))
    }
    rises, ended = [], []
    for stage in stages:
        steps = [np.diff(values) for values in view.courses(stage, "validation", "loss")]
        up = sum(int((each > 0).sum()) for each in steps)
        rises.append(f"{reported.called(stage)} {up} of {sum(map(len, steps))} times")
        ended.append(f"{reported.called(stage)} {''.join(moved(view, stage))}")
    change, _ = moved(view, stages[0], digits=2)
    title = f"{view.start}: validation loss of {reported.called(stages[0])} {change}"
    return draw_panels(panels, title), (
        f"Validation loss (top) and training loss (bottom): {'; '.join(ended)}. The validation "
        f"loss rose from one validation to the next: {', '.join(rises)}. "
        f"{NOTES.get(method, '')}{view.band}"
    )


def draw_rewards(reported: Reported, view: View) -> tuple[Figure, str]:  # the figure, its caption
    "Rewards of RLOO, whose loss says nothing."
    name = reported.called(RLOO)
    panels = {
        "validation: reward\nby the model": view.curve(RLOO, "validation", "reward", name),
        "training: reward\nby the model": view.curve(RLOO, "train", "reward", name),
        "validation:\ngold reward": view.curve(RLOO, "validation", "reward_gold", name),
    }
    largest = max(values.abs().max() for values in view.courses(RLOO, "train", "loss"))
    reward, gold = (moved(view, RLOO, column, 2) for column in ("reward", "reward_gold"))
    title = f"{view.start}: RLOO's validation reward by the model {reward[0]}"
    return draw_panels(panels, title), (
        "RLOO, in place of its loss, which is zero on-policy by construction (here at most "
        f"{largest:.1g} in any window of the log): validation reward by the reward model "
        f"{''.join(reward)}, and by the gold reward {''.join(gold)}. {view.band}"
    )


def say_rejected(reported: Reported, view: View) -> str:
    "Whether the rejected answers, too, become likelier during SFT."
    chosen, rejected = (view.changes(PROBE, f"logps_{side}") for side in SIDES)
    name = reported.called(PROBE)
    if view.several:
        rise = mean_interval(rejected)
        return (
            f"Over {view.name} the mean log-prob of rejected answers changes by "
            f"{say_interval(*rise, False, 1)} nats during {name}, that of chosen ones by "
            f"{say_interval(*mean_interval(chosen), False, 1)}: that the rejected ones rise along "
            f"{verdict([rise])}."
        )
    plain = "unlike in the report, they do not both become likelier"
    if min(*chosen, *rejected) > 0:
        plain = "as in the report, the rejected answers become likelier along with the chosen ones"
    return (
        f"During {name} the mean log-prob of chosen answers changes by {signed(chosen[0], 1)} nats "
        f"and that of rejected ones by {signed(rejected[0], 1)}: {plain}."
    )


def draw_probe(reported: Reported, view: View) -> tuple[Figure, str]:  # the figure and its caption
    "Log-probs of chosen and rejected answers during SFT."
    curves = [view.curve(PROBE, "validation", f"logps_{side}", side) for side in SIDES]
    name = reported.called(PROBE)
    chosen, rejected = (
        signed(float(np.mean(view.changes(PROBE, f"logps_{side}"))), 1) for side in SIDES
    )
    fig = draw_curves(
        pd.concat(curves, ignore_index=True),
        title=f"{view.start}: in {name} the log-prob of chosen answers changes by {chosen} nats, "
        f"of rejected by {rejected}",
        xlabel="optimiser step",
        ylabel="log-prob (nats)",
        points=True,
    )
    return fig, (
        "Mean log-prob of the chosen and the rejected answers of the same validation pairs during "
        f"{name}. {say_rejected(reported, view)}{f' {view.band}' if view.several else ''}"
    )


def end_losses(reported: Reported, view: View, runs: dict) -> pd.DataFrame:
    "Last validation loss of each stage that has one."
    rows = []
    for stage in reported.rows:
        found = view.courses(stage, "validation", "loss")
        if all(len(values) for values in found):
            ends = mean_interval([values.iloc[-1] for values in found])
            unit = UNITS[method_of(runs[stage])]
            rows.append({"row": reported.called(stage), "unit": unit, **ends_of(ends)})
    return pd.DataFrame(rows)


def draw_end_losses(
    reported: Reported, view: View, runs: dict
) -> tuple[Figure, str]:  # the figure and its caption
    "Validation loss after training, one axis for each unit."
    table = end_losses(reported, view, runs)
    tokens = table[table["unit"] == "nats a token"]
    lowest = tokens.loc[tokens["value"].idxmin(), "row"]
    said = reported.paper["figures"]["figure_5"]["losses"]
    ours, theirs = table.loc[table["row"] == reported.called("topr_v1_1"), "value"], ""
    if len(ours):
        total, factor = map(float, said["topr_v1_1"].split("/"))
        theirs = (
            f" TOPR V1.1 ends at {ours.iloc[0]:.3g} here and {total / factor:.0f} there, which is "
            f"{said['topr_v1_1']}: a sum over an answer's tokens grows with its length."
        )
    title = f"of the losses in nats a token, that of {lowest} is lowest after training"
    spread = view.band if view.several else "Always the same rows: no interval within one run."
    return draw_bars(table, f"{view.start}: {title}"), (
        "Validation loss after training, one axis for each unit. The report draws one axis, "
        '"times 15 due to bug in calculation", with RLOO and TOPR divided by 15 again in words '
        f"({said['rloo_v1_2']} and {said['topr_v1_1']}); ours are the losses as they are.{theirs} "
        f"RLOO has no bar: its loss is zero by construction. {spread}"
    )


def draw_times(
    reported: Reported, view: View, runs: dict
) -> tuple[Figure, str]:  # the figure and its caption
    "Wall time of each stage, longest first."
    wall = {stage: mean_interval(view.wall(stage)) for stage in runs}
    data = pd.DataFrame(
        [
            {"row": reported.called(stage), "unit": "wall time (s)", **ends_of(wall[stage])}
            for stage in sorted(wall, key=lambda stage: -wall[stage][0])
        ]
    )
    total, longest = data["value"].sum(), data.iloc[0]
    title = (
        f"{view.start}: {longest['row']} takes {100 * longest['value'] / total:.0f} % of the "
        f"{say_seconds(total)} of all stages"
    )
    end = view.band if view.several else say_elapsed(runs, total)
    return draw_bars(data, title), (
        f"Wall time of each stage, start-up included; {say_seconds(total)} in sum. {end}"
    )


def say_elapsed(
    runs: dict,  # stage -> run
    total: float,  # seconds of all stages together
) -> str:
    "How long it took from start to end, where the stages ran in one go."
    infos = [run.info for run in runs.values()]
    ends = [pd.to_datetime(info["finished"]).timestamp() for info in infos]
    starts = [end - info["wall_seconds"] for end, info in zip(ends, infos)]
    elapsed = max(ends) - min(starts)
    if elapsed > 1.5 * total:
        return "They were not run in one go."
    said = f"From the first start to the last end it was {say_seconds(elapsed)}"
    if elapsed < 0.95 * total:
        return f"{said}: stages ran side by side, each slower for it."
    return f"{said}."
