"""Stored outputs of lessons: what a cell gives now is compared with what its notebook shows."""

import json

import pytest

from prefkit.course import run_lesson
from prefkit.course.fresh import stale_places, run_cell, stored_texts


@pytest.mark.parametrize(
    "stored, fresh, wrong",
    [
        ("loss 0.693", "loss 0.693", []),
        ("loss 0.693", "loss 0.694", []),  # one unit of the last decimal
        ("loss 0.693", "loss 0.720", ["0.693 is 0.720 now"]),
        ("1234.5 rows", "1260.0 rows", []),  # within three parts in a hundred
        ("17 of 200", "18 of 200", ["17 is 18 now"]),  # a small count is exact
        ("1,234 rows", "1,934 rows", ["1,234 is 1,934 now"]),
        ("[1,2,3]", "[1,2,4]", ["3 is 4 now"]),  # a list, not a hundred and twenty-three
        ("-3.2e-16", "4.1e-17", []),  # what rounding leaves of a zero
        ("2.5e-4", "2.5e-3", ["2.5e-4 is 2.5e-3 now"]),
        ("up 0.5", "down 0.5", ["'up' is 'down' now"]),
        ("a b", "a b c", ["nothing is 'c' now"]),
        ("tensor([0.1,  0.2])", "tensor([0.1, 0.2])", []),  # spaces do not count
        ("<f at 0x7f01>", "<f at 0x8e02>", []),
        ("x\nwrites to /tmp/tmpabcd1234/run\ny", "x\ny", []),
        ("V2.6 wins", "V2.7 wins", ["'V2.6' is 'V2.7' now"]),  # a name, not a number
        ("−1.5", "-1.5", []),
        ('id="T_b2009_row6_col0"', 'id="T_760d6_row6_col0"', []),
        ("no method dpoo. Known: sft, dpo. See", "no method dpoo. Known: sft, dpo, mine. See", []),
    ],
)
def test_words_are_the_same_and_numbers_within_a_tolerance(stored, fresh, wrong):
    assert stale_places([stored], [fresh]) == wrong


def test_numbers_of_a_cell_that_measures_time_may_be_others():
    assert not stale_places(["took 3.1 s"], ["took 4,210.5 s"], numbers=False)
    assert stale_places(["took 3.1 s"], ["lasted 3.1 s"], numbers=False)


def test_a_cell_gives_what_it_prints_shows_and_ends_in():
    source = "from IPython.display import Markdown\nprint('said')\nx = 2\nx + 1"
    assert run_cell(source, "<cell>", names := {}) == ["said\n", "3"]
    assert names["x"] == 2
    assert run_cell("Markdown('**a**')", "<cell>", names) == ["**a**"]
    assert run_cell("x + 1;", "<cell>", names) == [] == run_cell("", "<cell>", names)
    with pytest.raises(ZeroDivisionError):
        run_cell("1 / 0", "<cell>", {})


def test_stored_outputs_are_read_as_the_cell_gives_them():
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["said\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["a warning\n"]},
        {"output_type": "display_data", "data": {"image/png": "iVBOR", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/plain": ["3"], "text/html": ["<b>3</b>"]}},
    ]
    assert stored_texts(outputs) == ["said\n", "<b>3</b>"]


def lesson(tmp_path, monkeypatch, *cells):
    cells = [
        {"cell_type": "code", "source": [source], "metadata": {"tags": tags}, "outputs": outputs}
        for source, tags, outputs in cells
    ]
    path = tmp_path / "nbs/lib/toys/one.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr("prefkit.course.exercises.project_root", lambda: tmp_path)


def shown(text):
    return [{"output_type": "execute_result", "data": {"text/plain": [text]}}]


def test_a_lesson_that_shows_what_its_cells_no_longer_give_is_refused(tmp_path, monkeypatch):
    cells = [("x = 2\nx / 3", [], shown("0.5")), ("x * 7", [], shown("14"))]
    lesson(tmp_path, monkeypatch, *cells, ("x + 40", ["varies"], shown("7")))
    with pytest.raises(AssertionError, match="toys/one.*\ncell 0: 0.5 is 0.6+7? now$"):
        run_lesson("toys/one", compare=True)
    monkeypatch.delenv("IN_TEST", raising=False)
    assert run_lesson("toys/one")["x"] == 2  # a reader's own machine is not held to them
    monkeypatch.setenv("IN_TEST", "1")  # as nbdev_test does
    with pytest.raises(AssertionError, match="no longer give"):
        run_lesson("toys/one")


def test_what_a_trained_model_says_may_be_another_word_but_not_less(tmp_path, monkeypatch):
    lesson(tmp_path, monkeypatch, ("'Sure!'", ["answers"], shown("'Of course!'")))
    run_lesson("toys/one", compare=True)
    silent = tmp_path / "nbs/lib/toys/one.ipynb"
    silent.write_text(silent.read_text().replace("'Sure!'", "'Sure!';"))
    with pytest.raises(AssertionError, match="is nothing now"):
        run_lesson("toys/one", compare=True)


def test_what_a_widget_shows_without_a_kernel_is_compared_and_its_controls_are_not():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "0a"}}
    picture = '<img alt="loss {}" src="data:image/png;base64,iVBOR{}">'

    def output(loss, colour, **more):
        data = {"text/html": picture.format(loss, colour), "text/plain": "It", **more}
        return stored_texts([{"output_type": "execute_result", "data": data}])

    stored = output("0.69", "w0KGgo")
    assert not stale_places(stored, output("0.69", "AAAA", **view))
    assert stale_places(stored, output("0.81", "w0KGgo", **view)) == ["0.69 is 0.81 now"]
    bar = [{"output_type": "display_data", "data": {"text/plain": "0%", **view}}]
    assert stored_texts(bar) == []
