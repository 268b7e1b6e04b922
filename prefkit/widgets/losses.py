"""Every offline loss on one canvas: what it says of a pair, and how hard a step pushes each of the
two answers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from prefkit.report.figures import COLOURS, nice_name
from prefkit.train.inputs import INPUTS
from prefkit.train.methods import BUILT_IN_METHODS, Method, get_method, methods
from prefkit.widgets.canvas import house_style, stacked
from prefkit.widgets.view import Choice, Explorer, Slider

__all__ = ["PairCurve", "draw_loss_and_push", "explore_losses", "pair_curve", "strength_of"]

# the pair that is drawn: two answers of 40 tokens, to each of which the reference gives -1 nat
TOKENS, REFERENCE = 40, -40.0
_REACH = 30.0  # nats, on both sides of the reference
ALONE = "nothing"  # what a method is compared with at first
# hyper-parameters that say how strongly a loss pulls, in the order in which they are looked for
_STRENGTHS = ("beta", "tau", "eta", "lam")


@dataclass(frozen=True)
class PairCurve:
    "A loss and the push on both answers (minus its gradient) at the places of the chosen one."

    chosen: np.ndarray  # (places,) nats, log-ratio of the chosen answer to the reference
    loss: np.ndarray  # (places,)
    push_chosen: np.ndarray  # (places,) above 0: a step makes the answer likelier
    push_rejected: np.ndarray  # (places,)

    def at(self, place: float, what: str) -> float:
        "A column's value where the chosen answer stands at a place."
        return float(np.interp(place, self.chosen, getattr(self, what)))


def strength_of(method: Method) -> str:  # "" where it has none
    "The hyper-parameter that says how strongly a method pulls."
    return next((name for name in _STRENGTHS if name in method.defaults), "")


def pair_curve(
    name: str,  # of an offline method
    chosen: np.ndarray,  # (places,) nats, log-ratio of the chosen answer to the reference
    rejected: float,  # nats, log-ratio of the rejected one
    strength: float = 1.0,  # its hyper-parameter, as a multiple of the default
) -> PairCurve:
    """The loss of a pair by the function that trains, its gradient by autograd. A method that reads
    single answers reads both, and their losses are added; a reward model's rewards stand for the
    log-ratios. Raises `ConfigError`.
    """
    method = get_method(name, online=False)
    places = torch.from_numpy(chosen).double().requires_grad_()
    others = torch.full_like(places, rejected).requires_grad_()
    turned = strength_of(method)
    settings = dict(method.defaults)
    if turned:
        settings[turned] *= strength
    loss = _loss(method, places, others, settings)
    pushes = torch.autograd.grad(loss.sum(), (places, others), materialize_grads=True)
    return PairCurve(chosen, loss.detach().numpy(), *(-each.numpy() for each in pushes))


def _loss(method: Method, chosen: Tensor, rejected: Tensor, settings: dict) -> Tensor:
    "The loss of pairs whose answers stand at these log-ratios, (places,)."
    if method.kind == "pairs":
        known = _known({"chosen": chosen, "rejected": rejected})
        known |= {"chosen_rewards": chosen, "rejected_rewards": rejected}
        known["explore_logps"] = torch.full_like(chosen, REFERENCE).detach()
        return _asked(method, known, settings)
    sides = [(chosen, True), (rejected, False)] if method.kind == "binary" else [(chosen, True)]
    losses = []
    for answer, good in sides:
        known = _known({"": answer})
        known["behaviour_logps"] = known["ref_logps"]
        known["desirable"] = torch.full(answer.shape, good)
        known["rewards"] = torch.full_like(answer, 1.0 if good else -1.0).detach()
        known["kl"] = answer.new_zeros(())  # the widget of KTO's value turns it
        losses.append(_asked(method, known, settings))
    return torch.stack(losses).sum(0)


def _known(answers: dict[str, Tensor]) -> dict[str, Tensor]:
    "Log-probs and lengths of answers, by the names that losses give them."
    known: dict[str, Tensor] = {}
    for side, ratio in answers.items():
        end = f"{side}_" if side else ""
        known[f"policy_{end}logps"] = REFERENCE + ratio
        known[f"ref_{end}logps"] = torch.full_like(ratio, REFERENCE).detach()
        known[f"{end}lengths"] = torch.full(ratio.shape, TOKENS)
    return known


def _asked(method: Method, known: dict[str, Tensor], settings: dict) -> Tensor:
    inputs = INPUTS[method.kind].of(known)
    return method.loss(**inputs.asked(method.inputs()), **settings)


@house_style()
def draw_loss_and_push(
    method: str,  # an offline method
    against: str,  # another, at its defaults; "nothing": none
    strength: float,  # the first one's hyper-parameter, as a multiple of its default
    rejected: float,  # nats, log-ratio of the rejected answer
) -> Figure:
    """Loss and push over the chosen answer's log-ratio. Two methods are drawn in units of what each
    pushes the chosen answer by at the start, for a learning rate makes up for the rest.
    """
    chosen = np.linspace(-_REACH, _REACH, 121)
    curves = {_called(method, strength): pair_curve(method, chosen, rejected, strength)}
    if against != ALONE:  # the same at the same strength is one curve
        curves.setdefault(_called(against, 1.0), pair_curve(against, chosen, rejected))
    first = next(iter(curves.values()))
    up, down = (first.at(0.0, f"push_{side}") + 0.0 for side in ("chosen", "rejected"))
    title = (
        f"{next(iter(curves))} pushes the chosen answer, at 0, by {up:+.2g} and the rejected one, "
        f"at {rejected:g}, by {down:+.2g}"
    )
    fig, (above, below) = stacked(title, legend=len(curves))
    alone = len(curves) == 1
    units = [(0.0, 1.0)] if alone else _units(method, against, strength)
    for place, (curve, unit) in enumerate(zip(curves.values(), units)):
        _curve(above, below, curve, unit, ("-", "--")[place])
    for ax in (above, below):
        ax.axvline(0, color=COLOURS["grey"], linewidth=0.8, zorder=0)
    below.yaxis.set_major_formatter("{x:g}")
    below.yaxis.set_major_locator(MaxNLocator(4))  # few, so that they leave room
    below.axhline(0, color=COLOURS["grey"], linewidth=0.8, zorder=0)
    above.set_ylabel("loss" if alone else "loss above the start's")
    below.set_ylabel("push (minus gradient)" if alone else "push (first step's = 1)")
    below.set_xlabel("log-ratio of the chosen answer to the reference (nats)")
    _legend(fig, list(curves))
    return fig


def _units(method: str, against: str, strength: float) -> list[tuple[float, float]]:
    "For each curve what its loss is counted from, and what both are divided by."
    found = []
    for name, times in ((method, strength), (against, 1.0)):
        start = pair_curve(name, np.zeros(1), 0.0, times)
        found.append((float(start.loss[0]), float(start.push_chosen[0])))
    return found


def _curve(above: Axes, below: Axes, curve: PairCurve, unit: tuple[float, float], dash: str):
    start, size = unit
    look: dict[str, Any] = {"linestyle": dash, "markevery": 20}
    above.plot(curve.chosen, (curve.loss - start) / size, color=COLOURS["black"], linestyle=dash)
    for side, marker in (("chosen", "o"), ("rejected", "s")):
        push = getattr(curve, f"push_{side}") / size
        below.plot(curve.chosen, push, color=COLOURS[side], marker=marker, **look)


def _legend(fig: Figure, names: list[str]):
    "Dashes for the methods, markers for the answers."
    ax = fig.axes[1]
    handles = [
        *(ax.plot([], [], color=COLOURS["black"], linestyle=one)[0] for one in ("-", "--")),
        *(
            ax.plot([], [], color=COLOURS[side], marker=marker, linestyle="-")[0]
            for side, marker in (("chosen", "o"), ("rejected", "s"))
        ),
    ]
    methods_drawn = list(zip(handles, names))
    answers = list(zip(handles[2:], ("push on chosen", "push on rejected")))
    shown = [*methods_drawn, *answers]
    if len(names) == 2:  # a legend is filled column by column
        shown = [methods_drawn[0], answers[0], methods_drawn[1], answers[1]]
    lines, told = zip(*shown)
    fig.legend(lines, told, loc="lower center", ncols=(3, 2)[len(names) - 1], handlelength=2.1)


def _called(name: str, strength: float) -> str:  # "DPO (beta 0.1)"
    method = get_method(name, online=False)
    turned = strength_of(method)
    value = f" ({turned} {method.defaults[turned] * strength:.3g})" if turned else ""
    return f"{nice_name(name)}{value}"


def explore_losses(method: str = "dpo", against: str = ALONE) -> Explorer:
    "Loss and push of every offline method of the table, one beside another."
    names = tuple(methods(online=False))
    # a page without a kernel shows neither those of the reader's own nor the variants per token
    drawn = tuple(x for x in names if x in BUILT_IN_METHODS and not x.endswith("_per_token"))
    controls = {
        "method": Choice(names, method, frames=drawn if method in drawn else (method, *drawn)),
        "against": Choice((ALONE, *names), against, "compare with", frames=_beside(against)),
        "strength": Slider(
            0.1, 10.0, 1.0, log=True, frames=(1.0,), label="strength, times the default"
        ),
        "rejected": Slider(
            -_REACH, _REACH, 0.0, 1.0, frames=(-15.0, 0.0), label="rejected answer (nats)"
        ),
    }
    return Explorer(draw_loss_and_push, "Loss and push of an offline method", controls)


def _beside(against: str) -> tuple[str, ...]:
    "With whom a page without a kernel compares."
    return (ALONE, "dpo") if against == ALONE else (against,)
