"""The narrow version of a figure: another one that keeps the rules, and leaves the first alone."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from prefkit.report.figures import check_figure, draw_curves, draw_intervals, use_style
from prefkit.report.narrow import WIDTH, narrowed
from prefkit.report.replication import draw_grid

LONG = "A title that says in more than a few words what there is to be seen in this figure"


def curves():
    names = ("the first of two", "the second of two")
    return pd.concat(
        [pd.DataFrame({"x": range(9), "value": range(9), "series": name}) for name in names]
    )


def grid():
    panels = {(row, column): curves() for row in ("low", "high") for column in ("a", "b", "c")}
    return draw_grid(panels, LONG, "a quantity with a long name (nats)")


def one_panel():
    return draw_curves(
        curves(), title=LONG, xlabel="step", ylabel="value", reference=(3, "a level")
    )


def rows():
    names = [f"a model with a name of many words, number {number}" for number in range(5)]
    table = pd.DataFrame({"row": names, "value": 0.5, "low": 0.4, "high": 0.6})
    return draw_intervals(table, title=LONG, xlabel="win rate (%)", percent=True)


@pytest.mark.parametrize("draw", [grid, one_panel, rows])
def test_it_keeps_the_rules_and_leaves_the_first_as_it_was(draw):
    with plt.rc_context():
        use_style()
        fig = draw()
        before = fig.get_suptitle(), tuple(fig.get_size_inches()), len(fig.legends)
        made = narrowed(fig)
        assert check_figure(made) == [] and check_figure(fig) == []
        assert made.get_size_inches()[0] == WIDTH
        assert (fig.get_suptitle(), tuple(fig.get_size_inches()), len(fig.legends)) == before
        told = [[text.get_text() for text in one.get_texts()] for one in (*fig.legends,)]
        assert told == [[text.get_text() for text in one.get_texts()] for one in made.legends]
        pd.testing.assert_frame_equal(made.data, fig.data)
        plt.close("all")


def test_panels_side_by_side_come_to_stand_one_below_the_other_in_their_order():
    with plt.rc_context():
        use_style()
        fig = grid()
        made = narrowed(fig)
        titles = [ax.get_title(loc="left") for ax in made.axes]
        places = [ax.get_subplotspec().num1 for ax in made.axes]
        assert places == list(range(6)) and titles[:3] == ["low, a", "low, b", "low, c"]
        assert len({round(ax.get_position().x0, 3) for ax in made.axes}) <= 2
        assert made.get_size_inches()[1] > 2 * fig.get_size_inches()[1]
        plt.close("all")
