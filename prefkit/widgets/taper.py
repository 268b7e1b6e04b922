"""TOPR's taper: what a bad answer still counts once it has become rarer, and how far it falls with
and without.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from prefkit.core import ConfigError
from prefkit.losses import topr_loss, topr_weight
from prefkit.report.figures import COLOURS
from prefkit.widgets.canvas import house_style, stacked
from prefkit.widgets.view import Explorer, Slider

__all__ = ["draw_taper", "explore_taper", "fall", "taper_weights"]

STEPS = 100


def taper_weights(
    ratios: np.ndarray,  # (places,) nats, log-ratio of an answer to whoever wrote it
    *,
    ratio_low: float,  # smallest weight of a bad answer
    ratio_high: float,  # largest
) -> np.ndarray:  # (places,)
    "What `topr_weight` gives bad answers; raises `ConfigError` where the bounds are crossed."
    if ratio_low > ratio_high:
        raise ConfigError(
            f"ratio_low is {ratio_low:g}, above ratio_high ({ratio_high:g}): lower it, or raise "
            "the other.",
            field="ratio_low",
            reason="above ratio_high",
        )
    places = torch.from_numpy(np.asarray(ratios, dtype=float))
    bad, limits = -torch.ones_like(places), {"ratio_low": ratio_low, "ratio_high": ratio_high}
    return topr_weight(places, torch.zeros_like(places), bad, **limits).numpy()


def fall(
    rate: float,  # nats that a step of weight 1 takes from the answer's log-prob
    *,
    ratio_low: float,
    ratio_high: float,
) -> np.ndarray:  # (STEPS + 1,) nats, its log-ratio; it begins at 0
    "A bad answer under descent on `topr_loss`, each step along its gradient."
    path, here = [0.0], torch.zeros(1, dtype=torch.float64, requires_grad=True)
    behaviour, bad = torch.zeros(1, dtype=torch.float64), -torch.ones(1, dtype=torch.float64)
    for _ in range(STEPS):
        loss = topr_loss(here, behaviour, bad, ratio_low=ratio_low, ratio_high=ratio_high)
        (gradient,) = torch.autograd.grad(loss.sum(), here)
        here = (here - rate * gradient).detach().requires_grad_()
        path.append(here.item())
    return np.array(path)


@house_style()
def draw_taper(
    ratio_low: float,  # smallest weight of a bad answer
    ratio_high: float,  # largest
    rate: float,  # nats that a step of weight 1 takes from a bad answer's log-prob
) -> Figure:
    "The weight of an answer over its log-ratio, and a bad answer's way down."
    ratios = np.linspace(-5.0, 3.0, 161)
    limits = {"ratio_low": ratio_low, "ratio_high": ratio_high}
    weights, tapered = taper_weights(ratios, **limits), fall(rate, **limits)
    straight = -rate * np.arange(STEPS + 1)
    title = (
        f"After {STEPS} steps a bad answer has lost {-tapered[-1]:.1f} nats, without the taper "
        f"{-straight[-1]:.1f}"
    )
    fig, (above, below) = stacked(title, sharex=False)
    good, bad = COLOURS["chosen"], COLOURS["rejected"]
    above.plot(ratios, np.ones_like(ratios), "-", color=good, label="good answer")
    above.plot(ratios, weights, "--", color=bad, label="bad answer")
    below.plot(tapered, "--", color=bad)
    look: dict[str, Any] = {"color": COLOURS["grey"], "linestyle": ":"}
    below.plot(straight, label="bad, without the taper", **look)
    above.axvline(0, color=COLOURS["grey"], linewidth=0.8, zorder=0)
    above.set(ylabel="weight", ylim=(-0.05, max(1.15, 1.05 * weights.max())))
    above.set_xlabel("log-ratio to the policy that wrote it (nats)")
    below.set(xlabel="step", ylabel="its log-ratio (nats)")
    shown = [one for ax in (above, below) for one in zip(*ax.get_legend_handles_labels())]
    fig.legend(*zip(*shown), loc="lower center", ncols=3, handlelength=2.2)
    return fig


def explore_taper() -> Explorer:
    "The taper of TOPR with its bounds."
    controls = {
        "ratio_low": Slider(
            0.0, 1.0, 0.0, 0.05, frames=(0.0, 0.2, 1.0), label="smallest weight (1: no taper)"
        ),
        "ratio_high": Slider(0.0, 4.0, 1.0, 0.1, frames=(1.0, 2.0, 4.0), label="largest weight"),
        "rate": Slider(0.02, 1.0, 0.2, log=True, frames=(0.05, 0.2, 1.0), label="nats a step"),
    }
    return Explorer(draw_taper, "TOPR's taper", controls)
