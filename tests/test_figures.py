"""The drawing helpers keep the rules of the house, and their words follow the numbers."""

import math
import subprocess, sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st
from matplotlib import pyplot as plt

from prefkit.core import PrefkitError
from prefkit.report.figures import (
    COLOURS,
    LOOKS,
    SPARE,
    check_figure,
    draw_curves,
    draw_distributions,
    draw_durations,
    draw_intervals,
    looks,
    mean_interval,
    moving_average,
    nice_name,
    save_figure,
    say_change,
    say_difference,
    say_interval,
    say_seconds,
    say_win,
    sentence,
    share_interval,
    use_style,
)

LONG = (
    "A title so long that it has to be broken into several lines, since otherwise its end would be "
    "cut off at the right"
)


@pytest.fixture(autouse=True)
def style():
    matplotlib.use("agg")
    with matplotlib.rc_context():
        use_style()
        yield
    plt.close("all")


def contrast_with_white(colour):
    "WCAG 2's contrast ratio."
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def curves(names=("chosen", "rejected"), n=30):
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "x": range(n),
                    "value": np.arange(n) * (place + 1.0),
                    "low": np.arange(n) - 1.0,
                    "high": np.arange(n) * (place + 1.0) + 1,
                    "series": name,
                }
            )
            for place, name in enumerate(names)
        ]
    )


def drawings():
    rows = pd.DataFrame(
        [
            {"row": f"DPO v. {other}", "group": judge, "value": 0.7, "low": 0.6, "high": 0.8}
            for other in ("a reference with a long name", "SFT")
            for judge in ("gold", "second")
        ]
    )
    return {
        "curves": draw_curves(
            curves(),
            title=LONG,
            xlabel="step",
            ylabel="log-probability (nats)",
            reference=(0.0, "reference"),
        ),
        "many curves": draw_curves(
            curves(("base", "sft", "control", "dpo", "new", "newer")),
            title=LONG,
            xlabel="step",
            ylabel="loss (nats)",
        ),
        "intervals": draw_intervals(
            rows, title=LONG, xlabel="win rate (%)", percent=True, reference=(0.5, "no difference")
        ),
        "distributions": draw_distributions(
            pd.DataFrame({"group": ["base", "dpo"] * 50, "value": np.linspace(-1, 1, 100)}),
            title=LONG,
            xlabel="gold reward",
        ),
        "durations": draw_durations(
            pd.DataFrame({"stage": ["sft", "dpo"], "seconds": [10.0, 300.0]}), title=LONG
        ),
    }


def test_every_drawing_keeps_the_rules():
    assert {name: check_figure(fig) for name, fig in drawings().items()} == dict.fromkeys(
        drawings(), []
    )


def test_every_drawing_carries_its_numbers(tmp_path):
    for name, fig in drawings().items():
        picture, table = save_figure(fig, tmp_path, name.replace(" ", "_"))
        assert picture.read_bytes()[:4] == b"\x89PNG"
        pd.testing.assert_frame_equal(pd.read_csv(table), fig.data, check_dtype=False)
    assert (
        sorted({path.suffix for path in tmp_path.iterdir()}) == [".csv", ".png"]
        and len(list(tmp_path.iterdir())) == 10
    )


def test_check_finds_each_broken_rule():
    def figure(title="What there is to see", xlabel="x", ylabel="y", styles=("-", "--"), **legend):
        fig, ax = plt.subplots()
        for place, line in enumerate(styles):
            ax.plot([0, 1], [place, 1], linestyle=line, label=str(place))
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if legend:
            ax.legend(**legend)
        return check_figure(fig)

    assert figure() == []
    assert figure(title="Results") == ["the title does not say what to see"]
    assert figure(xlabel="") == ["the x-axis has no label"] and figure(ylabel="") == [
        "the y-axis has no label"
    ]
    assert figure(styles=("-", "-")) == ["some lines or bars differ in colour only"]
    assert figure(loc="center") == ["the legend stands on the data"]
    assert figure(loc="upper left", bbox_to_anchor=(1, 1)) == []
    assert "a title or label is cut off" in figure(title=LONG)


def test_no_two_looks_are_alike_in_grey():
    both = [LOOKS[name] for name in ("base", "sft", "control", "dpo")] + SPARE
    assert (
        len({(str(look.line), look.marker) for look in both})
        == len({look.hatch for look in both})
        == len(both)
    )
    for pair in (("chosen", "rejected"), ("train", "validation"), ("gold", "second")):
        assert LOOKS[pair[0]].line != LOOKS[pair[1]].line


def test_every_drawn_colour_is_dark_enough_on_white():
    assert [
        name for name in COLOURS if name != "light" and contrast_with_white(COLOURS[name]) < 3
    ] == []


def test_known_names_keep_their_look_and_too_many_are_refused():
    assert looks(["x", "dpo"])["dpo"] == LOOKS["dpo"] == looks(["dpo"])["dpo"]
    with pytest.raises(PrefkitError, match="tell them apart"):
        looks([f"new{number}" for number in range(len(SPARE) + 1)])


def test_importing_leaves_the_style_alone():
    code = (
        "import matplotlib; before = dict(matplotlib.rcParams); import prefkit.report.figures; "
        "assert {k: v for k, v in matplotlib.rcParams.items() if k != 'backend'} == {k: v for k, v "
        "in before.items() if k != 'backend'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50, deadline=None)
def test_share_interval_is_wilsons(counts):
    hits, n = counts
    oracle = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(
        share_interval(hits, n), (hits / n, oracle.low, oracle.high), atol=1e-6
    )


def test_mean_interval_is_students_and_leaves_out_nan():
    values = np.random.default_rng(0).normal(2, 3, 40)
    oracle = scipy.stats.t.interval(0.95, 39, loc=values.mean(), scale=scipy.stats.sem(values))
    np.testing.assert_allclose(mean_interval([*values, math.nan]), (values.mean(), *oracle))
    assert math.isnan(mean_interval([1.0])[1])
    with pytest.raises(PrefkitError, match="no values"):
        mean_interval([])
    with pytest.raises(PrefkitError):
        share_interval(3, 2)


def test_moving_average_covers_the_truth_about_as_often_as_it_says():
    inside = []
    for seed in range(40):
        curve = moving_average(
            range(60), np.random.default_rng(seed).normal(1.0, 1.0, 60), window=9
        ).iloc[4:-4:9]
        inside += ((curve.low <= 1.0) & (curve.high >= 1.0)).tolist()
    assert 0.90 < np.mean(inside) < 0.99


def test_moving_average_of_a_constant_is_that_constant_and_skips_nan():
    curve = moving_average([1, 2, 3, 4], [5.0, math.nan, 5.0, 5.0], window=3)
    assert curve.value.tolist() == [5.0] * 4 and moving_average([1], [math.nan]).empty


@given(st.floats(0, 1), st.floats(0, 0.3))
@settings(max_examples=50, deadline=None)
def test_a_win_is_said_only_where_the_interval_excludes_one_half(rate, half):
    low, high = rate - half, rate + half
    said = say_win("dpo", "sft", rate, low, high)
    assert ("cannot be told apart" in said) == (low <= 0.5 <= high)
    assert ("loses" in said) == (high < 0.5) and said.startswith("DPO")


def test_a_difference_is_said_only_where_the_interval_excludes_zero():
    assert (
        say_difference("dpo", "sft", "gold reward", 0.3, 0.2, 0.4)
        == "the gold reward of DPO is 0.30 [0.20, 0.40] higher than that of SFT"
    )
    assert (
        say_difference("dpo", "sft", "gold reward", -0.3, -0.4, -0.2)
        == "the gold reward of DPO is 0.30 [0.20, 0.40] lower than that of SFT"
    )
    for interval in ((0.1, -0.1, 0.3), (0.1, math.nan, math.nan)):
        assert "cannot be told apart" in say_difference("dpo", "sft", "gold reward", *interval)


def test_words_for_numbers():
    assert (
        say_interval(0.712, 0.68, 0.741) == "71 % [68, 74]"
        and say_interval(-0.5, -1, 0, False, 1) == "−0.5 [−1.0, 0.0]"
    )
    assert (
        say_change(-30.2, -33.3, "nats") == "falls by 3.1 nats, from −30.2 to −33.3"
        and say_change(1.0, 1.04) == "stays at 1.0"
    )
    assert [say_seconds(seconds) for seconds in (0.04, 9.97, 59.97, 125, 3720)] == [
        "0.0 s",
        "10 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 02 min",
    ]
    assert (
        nice_name("sft_control") == "SFT control"
        and sentence("base wins") == "Base wins"
        and sentence("cDPO wins") == "cDPO wins"
    )


def test_nothing_to_draw_is_said():
    for draw in (
        lambda: draw_curves(curves().iloc[:0], title="t", xlabel="x", ylabel="y"),
        lambda: draw_durations(pd.DataFrame(columns=["stage", "seconds"]), title="t"),
        lambda: draw_intervals(
            pd.DataFrame(columns=["row", "value", "low", "high"]), title="t", xlabel="x"
        ),
        lambda: draw_distributions(
            pd.DataFrame({"group": ["a"], "value": [math.nan]}), title="t", xlabel="x"
        ),
    ):
        with pytest.raises(PrefkitError, match="nothing to draw"):
            draw()


def test_a_figure_without_numbers_is_not_saved(tmp_path):
    fig, _ = plt.subplots()
    with pytest.raises(PrefkitError, match="no numbers"):
        save_figure(fig, tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
