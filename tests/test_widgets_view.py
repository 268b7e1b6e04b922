"A picture with controls: what a draw function is wrapped in."

import json
import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from prefkit.core import ConfigError
from prefkit.widgets.view import Choice, Explorer, Slider, Switch, Words


def line(slope, bend):
    fig = Figure(figsize=(3, 2))
    ax = fig.subplots()
    ax.plot([0, 1, 2], [0, slope, 2 * slope + (1 if bend else 0)])
    ax.set_title("A line & its <slope>", loc="left")
    return fig


def explorer():
    controls = {"slope": Slider(0.0, 2.0, 1.0, frames=(0.0, 1.0, 2.0)), "bend": Switch(False)}
    return Explorer(line, "A line", controls)


def test_a_control_moves_the_state_and_the_picture():
    one = explorer()
    one.view()
    shown = one._shown.value
    one._widgets["slope"].value = 2.0  # as a hand does
    assert one.state == {"slope": 2.0, "bend": False}
    assert one._shown.value != shown
    one.set(slope=1.0)
    assert one._shown.value == shown and one._widgets["slope"].value == 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"slop": 1.0}, "'slop'.*slope"),
        ({"slope": 3.0}, "slope.*3.0.*from 0 to 2"),
        ({"slope": True}, "slope"),
        ({"bend": 1}, "bend.*true or false"),
    ],
)
def test_what_no_control_can_take_is_refused_by_name(given, says):
    with pytest.raises(ConfigError, match=says):
        explorer().set(**given)


def test_a_start_that_a_control_cannot_take_is_refused():
    with pytest.raises(ConfigError, match=r"method: 'dpo'.*kto, orpo"):
        Explorer(line, "A line", {"method": Choice(("kto", "orpo"), "dpo")})


def test_whoever_does_not_see_the_picture_reads_values_and_titles():
    alt = re.search(r'alt="([^"]*)"', explorer().html())[1]
    assert alt == "A line (slope 1.0, bend False). A line &amp; its &lt;slope&gt;"


def test_what_stands_in_the_way_is_said_in_the_pictures_place():
    def refuses(text):
        raise ConfigError(f"text: {text} is <empty>", field="text", reason="empty")

    shown = Explorer(refuses, "It", {"text": Words("none")}).html()
    assert 'role="alert"' in shown and "none is &lt;empty&gt;" in shown


def test_a_mistake_of_ours_is_not_hidden():
    def broken(text):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Explorer(broken, "It", {"text": Words("none")}).html()


def test_where_no_kernel_runs_the_picture_itself_is_shown():
    bundle = explorer()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"].startswith("<img alt=")


def test_a_page_holds_a_picture_for_each_combination_in_the_order_its_script_counts():
    one = explorer()
    page = one.page()
    frames = json.loads(re.search(r"frames = (\[.*\]);", page)[1])
    assert len(frames) == len(set(frames)) == 6
    one.set(slope=2.0, bend=True)
    assert frames[2 * 2 + 1] == one.html()
    assert page.count('type="range"') == 1 and page.count("<select>") == 1
    assert 'value="1" data-says' in page  # it begins where the state is


def test_a_page_of_too_many_pictures_is_refused():
    many = {name: Slider(0, 9, 5, frames=tuple(range(10))) for name in ("a", "b", "c")}
    with pytest.raises(ConfigError, match="1000 pictures"):
        Explorer(lambda a, b, c: pd.DataFrame(), "Many", many).page()


def test_a_table_is_shown_with_its_texts_escaped():
    shown = Explorer(lambda: pd.DataFrame({"said": ["<b>"]}), "Answers", {}).html()
    assert "&lt;b&gt;" in shown and "<b>" not in shown
