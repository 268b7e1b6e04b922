"""Where the losses of PPO's family clip: how hard a token is pushed, over the ratio of the policy
to the one that wrote it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from prefkit.losses import grpo_loss, policy_gradient_loss, ppo_loss
from prefkit.report.figures import COLOURS
from prefkit.train.methods import get_method, keywords
from prefkit.widgets.canvas import house_style, stacked
from prefkit.widgets.view import Choice, Explorer, Slider

__all__ = ["Bounds", "bounds_of", "clipped_push", "draw_clipping", "explore_clipping"]

METHODS_DRAWN = ("ppo", "grpo", "dapo", "gspo", "cispo")


@dataclass(frozen=True)
class Bounds:
    "Between which ratios a method follows a token, as its row of the method table has it."

    method: str
    low: float  # 0 where there is no lower bound
    high: float
    of_answer: bool = False  # the ratio is the answer's, the geometric mean over its tokens
    of_weight: bool = False  # beyond them the weight stays, where others fall silent

    def of_token(self, tokens: int) -> tuple[float, float]:
        "The same for one token, where the others of the answer stand still."
        power = tokens if self.of_answer else 1
        return self.low**power, self.high**power


def bounds_of(
    method: str,  # ppo, grpo, dapo, gspo or cispo
    width: float = 1.0,  # a multiple of the default distance from 1
) -> Bounds:
    "The bounds of a row of the method table, made wider or narrower."
    row = get_method(method, online=True).defaults
    low = row.get("clip_low", row["clip"])
    high = row.get("clip_high", row["clip"])
    weight = row["clip"] == "weight"
    below = 0.0 if low >= 1 else max(0.0, 1 - width * low)
    return Bounds(method, below, 1 + width * high, row.get("level") == "answer", weight)


def clipped_push(
    ratios: np.ndarray,  # (places,) of the answer's first token; its others have 1
    bounds: Bounds,
    advantage: float,  # of the answer
    tokens: int = 1,  # of the answer
) -> np.ndarray:  # (places,) on the token's log-prob, times the answer's tokens
    "Minus the gradient of the method's own loss."
    logps = torch.zeros(len(ratios), tokens, dtype=torch.float64)
    logps[:, 0] = torch.from_numpy(np.asarray(ratios, dtype=float)).log()
    logps.requires_grad_()
    loss = _loss(logps, bounds, advantage)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    return -tokens * gradient[:, 0].numpy()


def _loss(logps: Tensor, bounds: Bounds, advantage: float) -> Tensor:
    "The loss of each row by the function that trains, without a KL and without a value head's."
    old, mask = torch.zeros_like(logps).detach(), torch.ones_like(logps).detach()
    answers = torch.full((len(logps),), advantage, dtype=logps.dtype)
    if bounds.method == "ppo":
        each, values = answers[:, None].expand_as(mask), (old, old, old)
        return ppo_loss(logps, old, *values, each, mask, clip=bounds.high - 1, value_weight=0.0)
    if bounds.method == "grpo":
        return grpo_loss(logps, old, None, mask, answers, clip=bounds.high - 1)
    row = get_method(bounds.method, online=True).defaults
    choices: dict[str, Any] = {
        name: row[name] for name in keywords(policy_gradient_loss) if name in row
    }
    choices |= {"clip_low": 1 - bounds.low, "clip_high": bounds.high - 1}
    length = torch.full_like(answers, logps.shape[1])
    ones = torch.ones_like(answers)
    return policy_gradient_loss(logps, old, None, mask, answers, ones, length, length, **choices)


@house_style()
def draw_clipping(
    method: str,  # ppo, grpo, dapo, gspo or cispo
    width: float,  # of the bounds, as a multiple of the default
    tokens: int,  # of the answer; one of them moves
) -> Figure:
    "How hard a token is pushed over its ratio, in a good answer and in a bad one."
    bounds = bounds_of(method, width)
    low, high = bounds.of_token(tokens)
    reach = 2.2 * max(high - 1, 1 - low if low else 0)
    ratios = np.linspace(max(0.02, 1 - reach), 1 + reach, 401)
    name = method.upper()
    title = f"{name} does not push a token of a good answer at ratios above {high:.4g}"
    if bounds.of_weight:
        title = f"{name} pushes on at ratios above {high:.4g}, no harder than there"
    elif low:
        title += f", of a bad one below {low:.4g}"
    fig, panels = stacked(title, legend=2)
    sides = (("good answer", 1.0, "chosen", "-"), ("bad answer", -1.0, "rejected", "--"))
    for ax, (side, sign, colour, dash) in zip(panels, sides):
        push = clipped_push(ratios, bounds, sign, tokens)
        free: dict[str, Any] = {"color": COLOURS["grey"], "linestyle": ":", "linewidth": 1.6}
        alone = ratios ** (1 / tokens) if bounds.of_answer else ratios
        ax.plot(ratios, sign * alone, label="without a bound", **free)
        ax.plot(ratios, push, color=COLOURS[colour], linestyle=dash, label=side)
        _regions(ax, ratios, push, (low, high))
        ax.set_ylabel("push, good answer" if sign > 0 else "push, bad answer")
        ax.set_xlim(ratios[0], ratios[-1])
        ax.ticklabel_format(axis="x", useOffset=False)
    panels[1].set_xlabel("ratio of the policy to the one that wrote the token")
    shown = {
        label: handle for ax in panels for handle, label in zip(*ax.get_legend_handles_labels())
    }
    fig.legend(shown.values(), shown.keys(), loc="lower center", ncols=2, handlelength=2.2)
    return fig


def _regions(ax: Axes, ratios: np.ndarray, push: np.ndarray, ends: tuple[float, float]):
    "Where there is no gradient, and the bounds."
    bottom, top = sorted((0.0, 1.15 * float(np.sign(push.sum()) * ratios[-1])))
    ax.set_ylim(bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom))
    look: dict[str, Any] = {
        "facecolor": COLOURS["light"],
        "edgecolor": "white",
        "hatch": "///",
        "linewidth": 0,
    }
    ax.fill_between(ratios, *ax.get_ylim(), where=push == 0, label="no gradient", zorder=0, **look)
    for end in ends:
        ax.axvline(end, color=COLOURS["black"], linewidth=1, linestyle="-.", zorder=1)
    ax.axvline(1, color=COLOURS["grey"], linewidth=0.8, zorder=0)


def explore_clipping(method: str = "ppo") -> Explorer:
    "Clip regions of PPO, GRPO, DAPO, GSPO and CISPO."
    controls = {
        "method": Choice(METHODS_DRAWN, method),
        "width": Slider(
            0.25, 4.0, 1.0, log=True, frames=(0.5, 1.0, 2.0), label="bounds, times the default"
        ),
        "tokens": Slider(1, 64, 1, frames=(1, 8, 64), label="tokens of the answer"),
    }
    return Explorer(draw_clipping, "Where a ratio is clipped", controls)
