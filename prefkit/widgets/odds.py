"""ORPO's odds beside plain probabilities: how far apart two answers are in each, and how hard each
pushes the rejected one down.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from prefkit.losses import log_odds_ratio, orpo_loss, probability_ratio_loss
from prefkit.report.figures import COLOURS
from prefkit.widgets.canvas import house_style, stacked
from prefkit.widgets.view import Explorer, Slider

__all__ = ["draw_odds", "explore_odds", "log_odds", "odds_pushes"]

_TERMS = {"odds ratio": orpo_loss, "probability ratio": probability_ratio_loss}


def log_odds(
    chance: np.ndarray,  # (places,) probability per token, the geometric mean over an answer
) -> np.ndarray:  # (places,) log of P / (1 - P), by the loss's own function
    "The log odds: of a log odds ratio against an answer of probability a half, whose odds are 1."
    logps = torch.from_numpy(np.asarray(chance, dtype=float)).log()
    one = torch.ones_like(logps)
    return log_odds_ratio(logps, torch.full_like(logps, 0.5).log(), one, one).numpy()


def odds_pushes(
    chosen: float,  # probability per token of the chosen answer
    rejected: np.ndarray,  # (places,) of the rejected one
) -> dict[str, np.ndarray]:  # term -> (places,) per nat of the rejected answer's mean log-prob
    "How hard each term alone, of weight 1, pushes the rejected answer down: its gradient."
    low = torch.from_numpy(np.asarray(rejected, dtype=float)).log().requires_grad_()
    high, one = torch.full_like(low, chosen).log().detach(), torch.ones_like(low)
    found = {}
    for name, loss in _TERMS.items():
        term = loss(high, low, one, one, lam=1.0, nll_weight=0.0)
        found[name] = torch.autograd.grad(term.sum(), low)[0].numpy()
    return found


@house_style()
def draw_odds(
    chosen: float,  # probability per token, the geometric mean over the chosen answer
    rejected: float,  # the same of the rejected answer
) -> Figure:
    "Odds and probability over P with both answers marked, and the push on the rejected one."
    chances = np.linspace(0.02, 0.98, 97)
    odds = {side: np.exp(log_odds(np.array([p])))[0] for side, p in _pair(chosen, rejected)}
    here = {name: one[0] for name, one in odds_pushes(chosen, np.array([rejected])).items()}
    title = (
        f"Odds ratio {odds['chosen'] / odds['rejected']:.3g}, probability ratio "
        f"{chosen / rejected:.3g}: they push the rejected answer down by "
        f"{here['odds ratio']:.2g} and {here['probability ratio']:.2g}"
    )
    fig, (above, below) = stacked(title, legend=2)
    looks = (("blue", "-"), ("black", "--"))
    curves = (np.exp(log_odds(chances)), chances)
    for name, curve, (colour, dash) in zip(("odds", "probability"), curves, looks):
        above.plot(chances, curve, color=COLOURS[colour], linestyle=dash, label=name)
    for name, push in odds_pushes(chosen, chances).items():
        colour, dash = looks[list(_TERMS).index(name)]
        below.plot(chances, push, color=COLOURS[colour], linestyle=dash)
    for (side, chance), marker in zip(_pair(chosen, rejected), "os"):
        look: dict[str, Any] = {
            "color": COLOURS[side],
            "linestyle": "",
            "marker": marker,
            "markersize": 8,
        }
        above.plot([chance] * 2, [odds[side], chance], label=side, **look)
    look = {"color": COLOURS["rejected"], "linestyle": "", "marker": "s", "markersize": 8}
    below.plot([rejected] * 2, list(here.values()), **look)
    above.set(ylabel="P, and its odds", yscale="log", ylim=(0.015, 70))
    below.set(ylabel="push on rejected", ylim=(0, 1.2 + 1.2 * max(here.values())))
    above.yaxis.set_major_formatter("{x:g}")
    below.set_xlabel("P, probability per token (of the rejected answer below)")
    handles, names = above.get_legend_handles_labels()
    fig.legend(handles, names, loc="lower center", ncols=2, handlelength=2.6)
    return fig


def _pair(chosen: float, rejected: float) -> tuple[tuple[str, float], tuple[str, float]]:
    return ("chosen", chosen), ("rejected", rejected)


def explore_odds() -> Explorer:
    "ORPO's odds against probabilities."
    drawn = (0.05, 0.25, 0.5, 0.75, 0.9, 0.97)
    controls = {
        "chosen": Slider(
            0.02,
            0.98,
            0.6,
            0.01,
            frames=tuple(sorted({*drawn, 0.6})),
            label="P of the chosen answer",
        ),
        "rejected": Slider(
            0.02,
            0.98,
            0.35,
            0.01,
            frames=tuple(sorted({*drawn, 0.35})),
            label="P of the rejected answer",
        ),
    }
    return Explorer(draw_odds, "Odds and probabilities of two answers", controls)
