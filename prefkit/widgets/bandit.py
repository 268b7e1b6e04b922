"""The five-answer bandit of the lesson on DPO: what beta and the noise of the labels make of a
policy, where everything can be computed exactly.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit, log_softmax

from prefkit.core import ConfigError, check_number
from prefkit.report.figures import COLOURS, nice_name
from prefkit.widgets.canvas import house_style, stacked
from prefkit.widgets.view import Choice, Explorer, Slider

__all__ = ["best_policy", "draw_bandit", "explore_bandit", "kl_of", "learned_policy"]

REWARD = np.array([1.0, 0.2, -0.5, 2.0, 0.0])  # of the five answers
REFERENCE = np.array([0.40, 0.30, 0.15, 0.05, 0.10])  # the policy before training
LEARNERS = ("dpo", "ipo")


def best_policy(
    beta: float,  # reward that a nat of KL costs
) -> np.ndarray:  # (5,) probabilities
    "What maximises reward less beta KL to the reference: reference times exp(reward / beta)."
    check_number("beta", beta, above=0)
    return np.exp(log_softmax(np.log(REFERENCE) + REWARD / beta))


def learned_policy(
    method: str,  # dpo or ipo
    beta: float,  # of DPO; IPO's tau
    noise: float,  # temperature of the labels (Bradley and Terry's), in units of reward
) -> np.ndarray:  # (5,) probabilities
    """Where the expected loss over all pairs is least, with endless labels: DPO's margin is the
    label's log odds over beta, IPO's the win rates' difference over 2 tau.
    """
    check_number("beta", beta, above=0)
    check_number("noise", noise, above=0)
    apart = (REWARD[:, None] - REWARD[None, :]) / noise
    if method == "dpo":  # of labels that Bradley and Terry's model draws
        score = REWARD / (noise * beta)
    elif method == "ipo":  # a regression of margins on 2 P(preferred) - 1
        score = ((2 * expit(apart) - 1) / (2 * beta)).mean(1)
    else:
        raise ConfigError(
            f"method: {method!r} is none of {', '.join(LEARNERS)}", field="method", reason="unknown"
        )
    return np.exp(log_softmax(np.log(REFERENCE) + score))


def kl_of(
    policy: np.ndarray,  # (5,) probabilities
) -> float:  # nats
    "KL of a policy to the reference."
    held = policy > 0
    return float((policy[held] * np.log(policy[held] / REFERENCE[held])).sum())


@house_style()
def draw_bandit(
    method: str,  # dpo or ipo
    beta: float,  # of DPO; IPO's tau
    noise: float,  # temperature of the labels, in units of reward
) -> Figure:
    "Policies by answer, and where they stand between reward and KL."
    found = {
        "reference": REFERENCE,
        f"learned by {nice_name(method)}": learned_policy(method, beta, noise),
        "optimum (true reward)": best_policy(beta),
    }
    name, strength = nice_name(method), "tau" if method == "ipo" else "beta"
    learned, best = list(found.values())[1:]
    meant = f"as if beta were {noise * beta:.2g}"
    if method == "ipo":
        meant = f"DPO's would be {kl_of(learned_policy('dpo', beta, noise)):.2f}"
    title = (
        f"{name}, {strength} {beta:.2g}, label noise {noise:.2g}: KL {kl_of(learned):.2f} nats, "
        f"{meant}; the optimum's is {kl_of(best):.2f}"
    )
    fig, (above, below) = stacked(title, sharex=False, legend=1)
    _bars(above, found)
    _frontier(below, found)
    fig.legend(*above.get_legend_handles_labels(), loc="lower center", ncols=3, handlelength=1.6)
    return fig


_LOOKS = (("grey", "", "v"), ("dpo", "///", "o"), ("orange", "...", "D"))  # colour, hatch, marker


def _bars(ax: Axes, found: dict[str, np.ndarray]):
    places = np.arange(len(REWARD))
    for number, ((name, policy), look) in enumerate(zip(found.items(), _LOOKS)):
        colour, hatch, _ = look
        edge = "white" if hatch == "..." else COLOURS[colour]
        face = "white" if hatch == "///" else COLOURS[colour]
        fill: dict[str, Any] = {
            "facecolor": face,
            "edgecolor": edge,
            "hatch": hatch,
            "linewidth": 1.2,
        }
        ax.bar(places + 0.27 * (number - 1), policy, 0.25, label=name, **fill)
    ax.set_xticks(places, [f"{chr(97 + i)}: {reward:g}" for i, reward in enumerate(REWARD)])
    ax.set(xlabel="answer: its true reward", ylabel="probability", ylim=(0, 1.04))
    ax.grid(False, axis="x")


def _frontier(ax: Axes, found: dict[str, np.ndarray]):
    "The most reward that a KL can buy, and the three policies."
    line = [best_policy(beta) for beta in np.geomspace(0.02, 300, 120)]
    look: dict[str, Any] = {
        "color": COLOURS["black"],
        "linestyle": "-",
        "linewidth": 1.2,
        "zorder": 1,
    }
    ax.plot([kl_of(one) for one in line], [float(one @ REWARD) for one in line], **look)
    for policy, (colour, _, marker) in zip(found.values(), _LOOKS):
        face = COLOURS[colour] if colour != "dpo" else "white"
        size = 9 if colour != "dpo" else 12  # a ring around what may stand at the same place
        point: dict[str, Any] = {"color": COLOURS[colour], "markerfacecolor": face}
        ax.plot(kl_of(policy), policy @ REWARD, marker, markersize=size, **point)
    ax.text(0.75, 0.82, "the most that this KL can buy", color=COLOURS["black"], fontsize=9.5)
    ax.set(xlabel="KL to the reference (nats)", ylabel="expected reward")
    ax.set(xlim=(-0.08, 3.1), ylim=(0.2, 2.1))


def explore_bandit() -> Explorer:
    "Beta and noise of the labels on five answers, against the optimum in closed form."
    controls = {
        "method": Choice(LEARNERS, "dpo"),
        "beta": Slider(0.05, 5.0, 0.5, log=True, frames=(0.1, 0.25, 0.5, 1.0, 2.0)),
        "noise": Slider(
            0.1,
            5.0,
            1.0,
            log=True,
            frames=(0.1, 0.5, 1.0, 2.0, 5.0),
            label="noise of the labels (temperature)",
        ),
    }
    return Explorer(draw_bandit, "Five answers: learned and optimal policy", controls)
