"""The gallery: every widget stands in the lesson that it names, in the notebook of all, and on a
page that needs no kernel.
"""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from prefkit.core import ConfigError
from prefkit.widgets.gallery import GALLERY, gallery_page, show_widget
from prefkit.widgets.view import Explorer

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
VIEW = "application/vnd.jupyter.widget-view+json"


def cells(name):
    return json.loads((ROOT / f"nbs/{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def shown(notebook):
    "What the cells of a notebook store that end with a widget, by the call that makes it."
    code = [one for one in cells(notebook) if one["cell_type"] == "code"]
    sources = ["".join(one["source"]) for one in code]
    made = re.findall(
        r"^from prefkit\.widgets\.\w+ import (\([^)]*\)|.*)$", "\n".join(sources), re.M
    )
    names = re.findall(r"\w+", " ".join(made))
    found = {}
    for cell, source in zip(code, sources):
        call = source.rpartition("\n")[2].partition("(")[0]
        if call in names:
            found[call] = [one["data"] for one in cell["outputs"] if "data" in one]
    return found


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize("where", ["lesson", "widgets"])
def test_a_widget_stands_in_its_lesson_and_in_the_notebook_of_all(name, where):
    widget = GALLERY[name]
    found = shown(widget.lesson if where == "lesson" else where)
    call = widget.make.__name__
    if call not in found and where == "lesson":  # over something that the lesson has made
        call = next(one for one in found if one.lower().endswith(name))
    [data] = found[call]
    assert VIEW not in data  # a number of a kernel that is gone
    assert "".join(data["text/html"]).startswith(("<img alt=", "<div", "<p"))


def test_one_sentence_says_what_to_try():
    told = ["".join(one["source"]) for one in cells("widgets") if one["cell_type"] == "markdown"]
    for widget in GALLERY.values():
        assert any(widget.tries in one for one in told), widget.title


def test_a_widget_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean `clipping`"):
        show_widget("cliping")


def test_a_page_is_whole_and_asks_for_nothing(tmp_path):
    path = gallery_page(tmp_path / "widgets.html", ["inspector", "microscope"])
    text = path.read_text(encoding="utf-8")
    assert text.count('class="explorer"') == 2 and text.count("<h2") == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert isinstance(show_widget("inspector"), Explorer)
    assert "what the loss sees" in text and "Lower max_length until" in text


@pytest.fixture
def telephone(tmp_path):
    "A page with two widgets, as wide as a telephone."
    if not CHROMIUM or not find_spec("playwright"):
        pytest.skip("there is no chromium, or no playwright, to open the page in")
    from playwright.sync_api import sync_playwright

    path = gallery_page(tmp_path / "widgets.html", ["value", "inspector"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.goto(path.as_uri())
        yield page
        browser.close()


@pytest.mark.slow
def test_controls_are_reached_by_keyboard_and_fit_a_telephone(telephone):
    page = telephone
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    before = page.locator(".explorer img").get_attribute("src")
    page.locator(".explorer input").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".explorer output").first.inner_text() == "10"
    assert page.locator(".explorer img").get_attribute("src") != before
    assert "z0 10" in page.locator(".explorer img").get_attribute("alt")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "INPUT"
