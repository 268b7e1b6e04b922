"""The recount of the five reports' tables, figures and features: what stands where, and what is
missing.
"""

import json
from collections import Counter

import pytest

from helpers.tools import tool

coverage = tool("coverage")
ITEMS = coverage.items()
FEATURES = coverage.features()


def test_every_table_and_figure_of_the_five_reports_is_counted_once():
    found = coverage.counts(ITEMS)
    sizes = {report: sum(told.values()) for report, told in found.items()}
    wanted = {"comparison": 14, "xpo_ipo": 15, "length_penalty": 7, "orpo": 21, "minor_dpo": 6}
    assert sizes == wanted | {"all": 63}
    assert len({(one.report, one.id) for one in ITEMS}) == 63


def test_pages_draw_what_they_are_said_to_and_what_is_short_says_why():
    for one in ITEMS:
        assert "is not drawn" not in one.why, one
        assert one.verdict == "full" or len(one.why) > 10, one
    assert coverage.counts(ITEMS)["all"]["partial"] <= 3


@pytest.mark.parametrize(
    "given, verdict, why",
    [
        ({"none": "a diagram"}, "no analogue", "a diagram"),
        ({"shows": ["figure_1"], "exact": True}, "full", ""),
        ({"shows": ["figure_99"], "exact": True}, "missing", "figure_99 is not drawn"),
        ({"shows": ["figure_1"], "exact": True, "partly": "half"}, "partial", "half"),
        ({"shows": ["figure_1"], "results": ["x"]}, "full", ""),
        ({"shows": ["figure_1"], "results": ["y"]}, "missing", "y.json has 2 of 5 seeds"),
        ({"shows": ["figure_1"], "results": ["y"], "seeds": 2}, "full", ""),
        ({"shows": ["figure_1"], "results": ["z"]}, "missing", "z.json has not been made"),
        ({"shows": ["figure_1"], "results": ["runs"], "seeds": 3}, "full", ""),
    ],
)
def test_a_verdict_follows_page_and_results(given, verdict, why, tmp_path, monkeypatch):
    for name, found in {
        "data/results/x.json": {"seeds": dict.fromkeys("56789")},
        "data/results/y.json": {"seeds": dict.fromkeys("56")},
        "data/results/runs.json": {"runs": [{"settings": {"seed": n % 3}} for n in range(9)]},
        "nbs/reports/toy.ipynb": "keep('figure_1')",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    monkeypatch.setattr(coverage, "ROOT", tmp_path)
    found = coverage.judged("toy", {"id": "figure 1"} | given)
    assert found.verdict == verdict and why in found.why


def test_figures_named_by_their_method_are_found():
    assert coverage._stands("log_ratios_minor_dpo", "keep(f'log_ratios_{method}')")
    assert not coverage._stands("log_ratios_minor_dpo", "keep(f'log_ratios_x')")


# ---- features


def test_every_feature_of_the_reports_is_counted_once():
    assert len(FEATURES) == 87 == len({one.name for one in FEATURES})
    assert {report for one in FEATURES for report in one.reports} == {one.report for one in ITEMS}


def test_every_test_that_shows_a_feature_exists():
    gone = {one.name: coverage.absent(one.tests) for one in FEATURES}
    assert not {name: tests for name, tests in gone.items() if tests}
    assert not [one.name for one in FEATURES if not one.tests and one.state != "no analogue"]


def test_a_feature_is_whole_or_lacks_something_with_a_reason_or_has_none():
    assert {one.state for one in FEATURES} <= set(coverage.STATES)
    for one in FEATURES:
        assert len(one.how) > 5, one
        assert one.why == "" if one.state == "whole" else len(one.why) > 30, one


HERE = "test_toy.py::test_it_works"


@pytest.mark.parametrize(
    "given, state, why",
    [
        ({"tests": [HERE]}, "whole", ""),
        ({"tests": [HERE], "lacks": "half of it"}, "lacks something", "half of it"),
        ({"none": "a course's own"}, "no analogue", "a course's own"),
        ({"tests": []}, "lacks something", "no test shows it"),
        ({"tests": ["test_toy.py::test_it"]}, "lacks something", "no test test_toy.py::test_it"),
        ({"tests": [HERE, "test_toy.py::test_inner"]}, "lacks something", "::test_inner"),
        ({"tests": ["test_nowhere.py::test_it_works"]}, "lacks something", "no test test_nowhere"),
        ({"tests": ["test_toy.py"]}, "lacks something", "no test test_toy.py"),
        ({"tests": ["test_toy.py::test_x"], "none": "nothing"}, "lacks something", "::test_x"),
    ],
)
def test_a_feature_follows_its_tests(given, state, why, tmp_path, monkeypatch):
    file = tmp_path / "tests/test_toy.py"
    file.parent.mkdir()
    file.write_text("def test_it_works(tmp_path):\n    def test_inner():\n        pass\n")
    monkeypatch.setattr(coverage, "ROOT", tmp_path)
    found = coverage.weighed({"feature": "toy", "report": ["orpo"], "how": "by hand"} | given)
    assert found.state == state and why in found.why
    assert found.reports == ("orpo",)


def test_the_recount_names_what_lacks_and_why(capsys):
    coverage.say_features(FEATURES)
    head, *lines = capsys.readouterr().out.splitlines()
    told = Counter(one.state for one in FEATURES)
    wanted = ", ".join(f"{told[state]} {state}" for state in coverage.STATES)
    assert head == f"87 features: {wanted}"
    assert len(lines) == 87 - told["whole"]
    for one in FEATURES:
        if one.state != "whole":
            assert any(line.startswith(one.name) and line.endswith(one.why) for line in lines)
