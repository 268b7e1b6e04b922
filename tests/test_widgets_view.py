"A picture with controls: what a draw function is wrapped in."

import base64
import io
import json
import re

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from prefkit.core import ConfigError
from prefkit.widgets.view import Choice, Explorer, Several, Slider, Switch, Words


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

    one = Explorer(refuses, "It", {"text": Words("none")})
    for shown in (one.html(), one.page()):
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
    assert page.count('type="range"') == 1 and page.count("<select") == 1
    assert 'value="1" data-says' in page  # it begins where the state is


def test_a_page_of_too_many_pictures_is_refused():
    many = {name: Slider(0, 9, 5, frames=tuple(range(10))) for name in ("a", "b", "c")}
    with pytest.raises(ConfigError, match="1000 pictures"):
        Explorer(lambda a, b, c: pd.DataFrame(), "Many", many).page()


def test_a_table_is_shown_with_its_texts_escaped():
    shown = Explorer(lambda: pd.DataFrame({"said": ["<b>"]}), "Answers", {}).html()
    assert "&lt;b&gt;" in shown and "<b>" not in shown


def pages(group, page):
    return f"<p>{group}: page {page}</p>"


def paged():
    most = {"many": 9, "few": 2}
    return Explorer(
        pages,
        "Pages",
        {"group": Choice(tuple(most), "many"), "page": Slider(1, 9, 1, frames=(1, 9))},
        bounds=lambda state: {"page": most[state["group"]]},
    )


def test_a_slider_whose_range_another_control_sets_moves_into_it():
    one = paged()
    one.set(page=9).view()
    one._widgets["group"].value = "few"
    assert one._widgets["page"].max == 2 and one.state["page"] == 2
    assert one._shown.value == "<p>few: page 2</p>"
    one.set(page=9, group="many")
    assert one._shown.value == "<p>many: page 9</p>"


def test_controls_that_were_moved_before_they_were_shown_show_it():
    one = paged().set(group="few", page=2)
    one.view()
    assert {name: each.value for name, each in one._widgets.items()} == one.state
    assert one._shown.value == "<p>few: page 2</p>" and one._widgets["page"].max == 2


def test_bounds_hold_without_widgets_and_on_a_page():
    one = paged().set(group="few", page=9)
    assert one.html() == "<p>few: page 2</p>" and one.state["page"] == 2
    frames = json.loads(re.search(r"frames = (\[.*\]);", paged().page())[1])
    assert [one.replace("<\\/", "</") for one in frames] == [
        "<p>many: page 1</p>",
        "<p>many: page 9</p>",
        "<p>few: page 1</p>",
        "<p>few: page 2</p>",
    ]


def test_several_of_a_list_are_chosen_at_once_and_none_is_refused():
    one = Explorer(lambda runs: "+".join(runs), "Runs", {"runs": Several(("a", "b", "c"), ("a",))})
    one.view()
    one._widgets["runs"].value = ("a", "c")
    assert one._shown.value == "a+c"
    for wrong in ((), ("d",), "a"):
        with pytest.raises(ConfigError, match="runs.*at least one of a, b, c"):
            one.set(runs=wrong)
    assert "<select" not in one.page()  # what is chosen at the start is all it shows


def test_a_choice_may_draw_some_of_its_options_beforehand():
    controls = {"one": Choice(("a", "b", "c"), "b", frames=("b", "c"))}
    page = Explorer(lambda one: one, "It", controls).page()
    assert json.loads(re.search(r"frames = (\[.*\]);", page)[1]) == ["b", "c"]
    assert page.count("<option") == 2


def test_a_page_draws_those_options_and_texts_that_are_named():
    controls = {
        "method": Choice(("dpo", "kto", "orpo"), "kto", frames=("dpo", "kto")),
        "text": Words("one", frames=("one", "a <b> of many words, " * 9, "")),
    }
    page = Explorer(lambda method, text: f"{method} {len(text)}", "It", controls).page()
    frames = json.loads(re.search(r"frames = (\[.*\]);", page)[1])
    assert frames == ["dpo 3", "dpo 189", "dpo 0", "kto 3", "kto 189", "kto 0"]
    assert '<option value="1" selected>kto</option>' in page and "(empty)" in page
    assert max(map(len, re.findall(r"<option[^>]*>([^<]*)", page))) < 90 and "&lt;b&gt;" in page


def test_a_picture_has_few_colours_and_its_white_is_white():
    data = re.search(r"base64,([^\"]*)", explorer().html())[1]
    drawn = Image.open(io.BytesIO(base64.b64decode(data)))
    assert drawn.mode == "P" and drawn.size == (300, 200)
    assert drawn.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_title_of_the_whole_figure_is_read_too():
    def titled():
        fig = Figure()
        fig.suptitle("What one sees")
        return fig

    assert re.search(r'alt="([^"]*)"', Explorer(titled, "It", {}).html())[1] == "It. What one sees"
