"""A figure in the style of the house, whose parts keep their places when a control moves."""

import textwrap
from collections.abc import Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefkit.report.figures import set_title, use_style

__all__ = ["house_style", "stacked"]

_WIDTH = 5.6  # inches; narrow enough for the screen of a telephone
# inches that are left for the title, beside the axes, and below them
_TITLE, _LEFT, _RIGHT, _LABEL, _LINE = 0.72, 0.9, 0.14, 0.52, 0.24


@contextmanager
def house_style():
    "Draw in the style of the house and leave the reader's own as it was; also a decorator."
    with matplotlib.rc_context():
        use_style()
        # it places the axes anew in every picture, and takes half of the time
        matplotlib.rcParams["figure.constrained_layout.use"] = False
        yield


def stacked(
    title: str,  # a sentence that says what to see
    heights: Sequence[float] = (1.7, 1.7),  # inches of the panels
    *,
    sharex: bool = True,  # one axis for all, labelled at the last
    legend: int = 1,  # lines of the legend that will stand below; 0: there will be none
) -> tuple[Figure, list[Axes]]:
    "An empty figure with panels below one another; to be called in `house_style`."
    gap = 0.16 if sharex else _LABEL + 0.12
    below = _LABEL + legend * _LINE + 0.04
    total = _TITLE + sum(heights) + gap * (len(heights) - 1) + below
    fig = Figure(figsize=(_WIDTH, total))
    panels: list[Axes] = []
    top = total - _TITLE
    for height in heights:
        place = (_LEFT / _WIDTH, (top - height) / total, 1 - (_LEFT + _RIGHT) / _WIDTH)
        first = panels[0] if panels and sharex else None
        panels.append(fig.add_axes((*place, height / total), sharex=first))
        top -= height + gap
    for ax in panels[:-1] if sharex else ():
        ax.tick_params(labelbottom=False)
    set_title(fig, "\n".join(textwrap.wrap(title, 56)), width=None)
    return fig, panels
