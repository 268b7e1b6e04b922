"""Lines of a run's log as a figure, and pieces of HTML whose texts are escaped: what the widgets
over run folders are put together from.
"""

import html
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefkit.core import DataError
from prefkit.report.figures import COLOURS, looks, nice_name, set_legend
from prefkit.widgets.canvas import house_style, stacked

__all__ = ["LINE_HEIGHT", "beside", "draw_lines", "escaped", "note", "say_number", "table"]

HEIGHT = 2.1  # inches of the axes
LINE_HEIGHT = "line-height:1.4"  # of text, which JupyterLab's widgets set twice as far apart
MARKED_POINTS = 25  # points of a line that are marked


@house_style()
def draw_lines(
    lines: Mapping[str, pd.DataFrame],  # name -> columns x, value, and low, high where estimated
    *,
    title: str,  # a sentence that says what to see
    xlabel: str,  # with unit
    ylabel: str,  # with unit
    mark: float | None = None,  # where on the x-axis the reader stands
) -> Figure:
    "Named lines, told apart without colour; raises `DataError` where there is nothing to draw."
    drawn = {name: part.sort_values("x") for name, part in lines.items() if len(part)}
    if not drawn:
        raise DataError(
            f"nothing to draw for {ylabel}: the log has no number in it. Choose another metric.",
            field="metric",
            reason="nothing logged",
        )
    columns = 3 if len(drawn) != 4 else 2
    rows = 0 if len(drawn) == 1 else -(-len(drawn) // columns)
    fig, [ax] = stacked(title, [HEIGHT], legend=rows)
    for name, look in looks(drawn).items():
        part = drawn[name]
        marker = (look.marker or "o") if len(part) == 1 else look.marker
        ax.plot(
            part["x"],
            part["value"],
            color=look.colour,
            linestyle=look.line,
            marker=marker if len(part) <= MARKED_POINTS else "",
            label=nice_name(name),
        )
        if {"low", "high"} <= set(part):
            ends = part["low"].astype(float), part["high"].astype(float)
            ax.fill_between(part["x"], *ends, color=look.colour, alpha=0.2, linewidth=0)
    if mark is not None:
        ax.axvline(mark, color=COLOURS["black"], linewidth=1.2, linestyle=(0, (1, 1.5)))
    whole = all((part["x"] % 1 == 0).all() for part in drawn.values())
    ax.xaxis.set_major_locator(MaxNLocator(integer=whole))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if rows:
        set_legend(fig, *ax.get_legend_handles_labels(), columns=columns)
    return fig


def escaped(
    text: object,
    lines: bool = False,  # keep its line breaks
) -> str:  # HTML
    "A text within HTML."
    safe = html.escape(str(text))
    return safe.replace("\n", "<br>") if lines else safe


def beside(
    *pieces: str,  # HTML
) -> str:  # HTML
    "Pieces beside each other where there is room, else below each other."
    cells = "".join(f'<div style="flex:1 1 300px;min-width:0">{one}</div>' for one in pieces)
    return f'<div style="display:flex;flex-wrap:wrap;gap:0 1.5em;{LINE_HEIGHT}">{cells}</div>'


def note(
    text: str,
) -> str:  # HTML
    "A sentence below a table or a picture."
    return f'<p style="margin:.4em 0;opacity:.8">{escaped(text)}</p>'


def table(
    rows: pd.DataFrame,
    caption: str,
) -> str:  # HTML
    "A table with its caption; where it is wider than the page it is scrolled."
    told = rows.to_html(border=0, float_format=say_number, na_rep="", justify="left")
    told = told.replace("<table ", '<table cellpadding="4" ', 1)
    head = f'<strong style="display:block;margin:.6em 0 .2em">{escaped(caption)}</strong>'
    return f'<div style="overflow-x:auto;{LINE_HEIGHT}">{head}{told}</div>'


def say_number(
    value: float,
) -> str:  # "0.693", "2e-05", "−12.4", "3,129"
    "Three significant digits with a true minus sign, thousands whole."
    told = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return told.replace("-", "−") if value < 0 else told
