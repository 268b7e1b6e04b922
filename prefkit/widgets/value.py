"""KTO's value of an answer, and whom its loss pushes, around the reference point."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from prefkit.losses import kto_loss
from prefkit.report.figures import COLOURS
from prefkit.widgets.canvas import house_style, stacked
from prefkit.widgets.view import Explorer, Slider

__all__ = ["draw_value", "explore_value", "kto_curve"]

_REACH = 60.0  # nats, on both sides of the reference model


def kto_curve(
    ratios: np.ndarray,  # (places,) nats, log-ratio of an answer to the reference model
    good: bool,  # a desirable answer
    *,
    z0: float,  # nats, the reference point
    beta: float,  # how soon a gain or a loss saturates
    weight: float,  # lambda of its label
) -> tuple[np.ndarray, np.ndarray]:  # (places,) each: value; push, above 0 where it makes likelier
    "Value (lambda less the loss) and push (minus the gradient) of `kto_loss`."
    places = torch.from_numpy(np.asarray(ratios, dtype=float)).requires_grad_()
    labels = torch.full(places.shape, good)
    weights = {"weight_desirable": weight, "weight_undesirable": weight}
    kl = places.new_tensor(z0)
    loss = kto_loss(places, torch.zeros_like(places), labels, kl, beta=beta, **weights)
    (gradient,) = torch.autograd.grad(loss.sum(), places)
    return weight - loss.detach().numpy(), -gradient.numpy()


@house_style()
def draw_value(
    z0: float,  # nats, the reference point; KTO's is never below 0
    beta: float,  # how soon a gain or a loss saturates
    weight_desirable: float,  # lambda_D
    weight_undesirable: float,  # lambda_U
) -> Figure:
    "Value of a good and of a bad answer over its log-ratio, and the push on each."
    ratios = np.linspace(-_REACH, _REACH, 241)
    weights = {True: weight_desirable, False: weight_undesirable}
    most = {good: beta * weight / 4 for good, weight in weights.items()}
    title = (
        f"Good answers are pushed up by at most {most[True]:.2g}, bad ones down by "
        f"{most[False]:.2g}: both where the log-ratio is {z0:g} nats"
    )
    fig, (above, below) = stacked(title)
    names = {True: ("good answer", "chosen", "-"), False: ("bad answer", "rejected", "--")}
    for good, (name, colour, dash) in names.items():
        curve = kto_curve(ratios, good, z0=z0, beta=beta, weight=weights[good])
        for ax, values in zip((above, below), curve):
            ax.plot(ratios, values, color=COLOURS[colour], linestyle=dash, label=name)
    for ax in (above, below):
        look: dict[str, Any] = {"color": COLOURS["black"], "linestyle": ":", "linewidth": 1.4}
        ax.axvline(z0, label="reference point z0", **look)
    below.yaxis.set_major_formatter("{x:g}")
    below.axhline(0, color=COLOURS["grey"], linewidth=0.8, zorder=0)
    above.set(ylabel="value", ylim=(-0.05, 1.08 * max(1.0, *weights.values())))
    below.set(ylabel="push (minus gradient)", xlabel="log-ratio of the answer (nats)")
    fig.legend(*above.get_legend_handles_labels(), loc="lower center", ncols=3, handlelength=2.2)
    return fig


def explore_value() -> Explorer:
    "KTO's value function with its reference point and the weights of the labels."
    label = "weight of {} answers"
    controls = {
        "z0": Slider(
            0.0, 40.0, 0.0, 1.0, frames=(0.0, 10.0, 30.0), label="reference point z0 (nats)"
        ),
        "beta": Slider(0.02, 1.0, 0.1, log=True, frames=(0.05, 0.1, 0.3)),
        "weight_desirable": Slider(
            0.0, 3.0, 1.0, 0.05, frames=(1.0, 1.5), label=label.format("good")
        ),
        "weight_undesirable": Slider(
            0.0, 3.0, 1.0, 0.05, frames=(1.0, 1.5, 2.25), label=label.format("bad")
        ),
    }
    return Explorer(draw_value, "KTO's value of an answer", controls)
