"""The same figure for a phone: as wide as its screen, so that letters keep their size, with panels
one below the other and long names on several lines. A page shows it where the screen is narrow.
"""

import copy
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FuncFormatter, ScalarFormatter

from prefkit.report.figures import set_legend

__all__ = ["WIDTH", "narrowed"]

WIDTH = 3.7  # inches of a figure; a phone shows some 370 points
TITLE, LABEL, NAME = 33, 32, 19  # characters of a line: of the title, of an axis, of a row's name
LINE = 0.17  # inches of a line of text
SIDE = 20  # characters of a line of an axis that stands upright
PANEL = 1.75  # inches of a panel that stood beside others


def narrowed(
    fig: Figure,  # a finished figure, which stays as it is
) -> Figure:  # another one, to be saved and closed
    "The figure laid out anew for a narrow screen."
    made = copy.deepcopy(fig)
    _, height = made.get_size_inches()
    shown = [ax for ax in made.axes if ax.axison]
    height += sum(_narrow_names(ax) for ax in shown)
    height += _stack(made) + _narrow_title(made) + _narrow_legend(made)
    if made.get_supylabel():
        made.supylabel(_wrapped(made.get_supylabel(), SIDE), fontsize=10)
    for ax in shown:
        ax.set_xlabel(_wrapped(ax.get_xlabel(), LABEL))
        ax.set_ylabel(_wrapped(ax.get_ylabel(), SIDE))
        if isinstance(ax.xaxis.get_major_formatter(), ScalarFormatter) and _is_linear(ax):
            ax.locator_params(axis="x", nbins=4)
    made.set_size_inches(WIDTH, height)
    return made


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) if text else text


def _is_linear(ax: Axes) -> bool:
    return ax.get_xscale() == "linear"


def _stack(fig: Figure) -> float:  # inches that it takes
    "Panels that stand side by side, one below the other, each with its own ticks."
    placed = [(ax, spec) for ax in fig.axes if (spec := ax.get_subplotspec())]
    grids = {spec.get_gridspec() for _, spec in placed}
    if len(grids) != 1 or (grid := grids.pop()).ncols == 1:
        return 0.0
    _, height = fig.get_size_inches()
    new = fig.add_gridspec(grid.nrows * grid.ncols, 1)
    placed.sort(key=lambda one: one[1].num1)
    for place, (ax, _) in enumerate(placed):
        ax.set_subplotspec(new[place])
        ax.tick_params(labelbottom=True, labelleft=True)
    each = max(PANEL, (height - 1) / grid.nrows)
    return (grid.ncols - 1) * grid.nrows * each


def _narrow_title(fig: Figure) -> float:  # inches that it takes
    before = fig.get_suptitle()
    lines = textwrap.wrap(" ".join(before.split()), TITLE)
    fig.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return LINE * (len(lines) - before.count("\n") - 1)


def _narrow_legend(fig: Figure) -> float:  # inches that it takes
    took = 0.0
    for legend in list(fig.legends):
        names = [text.get_text() for text in legend.get_texts()]
        drawn = {
            name: handle for ax in fig.axes for handle, name in zip(*ax.get_legend_handles_labels())
        }
        pairs = zip(names, legend.legend_handles)
        handles, rows = [drawn.get(name, shown) for name, shown in pairs], -(-len(names) // 3)
        fig.legends.remove(legend)  # its own `remove` is that of the figure it was copied from
        columns = 2 if max(map(len, names)) <= NAME and len(names) > 1 else 1
        set_legend(fig, handles, names, columns)
        took += 1.3 * LINE * (-(-len(names) // columns) - rows)
    return took


def _narrow_names(ax: Axes) -> float:  # inches that it takes
    "Names of rows on several lines."
    if not isinstance(ax.yaxis.get_major_formatter(), FixedFormatter | FuncFormatter):
        return 0.0
    names = [text.get_text() for text in ax.get_yticklabels()]
    if not any(names):
        return 0.0
    lines = [_wrapped(" ".join(name.split()), NAME) for name in names]
    ax.set_yticks(ax.get_yticks(), lines, fontsize=9)
    more = sum(max(0, one.count("\n") - name.count("\n")) for one, name in zip(lines, names))
    return 0.85 * LINE * more
