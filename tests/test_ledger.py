"""The ledger: every claim can be decided as it says, and is, from what seeds have found."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from prefkit import cli
from prefkit.core import ConfigError, DataError, project_root, write_text
from prefkit.runs import ledger
from prefkit.runs.ledger import (
    SEEDS,
    Training,
    check_claim,
    claim_words,
    corrected,
    ledger_lines,
    lesson_of,
    open_ledger,
    run_claims,
)
from prefkit.runs.seeds import LINES
from prefkit.stats.verdicts import OPEN

CLAIMS = open_ledger()
GOOD = {
    "id": "a-01",
    "report": "orpo",
    "claim": "One is better than another",
    "place": "section 1",
    "lesson": "orpo",
    "config": "tiny/comparison",
    "measure": {"win_rate": {"of": "orpo_v1_1", "against": "sft_v2_6"}},
}


def ledger_of(folder, *claims):
    return write_text(folder / "ledger.yaml", yaml.safe_dump({"claims": list(claims)}))


# ---- the file


def test_there_are_a_hundred_claims_and_most_can_be_decided():
    assert len(CLAIMS) >= 100 and sum(not one.untestable for one in CLAIMS) >= 85
    of = Counter(one.report for one in CLAIMS)
    assert len(of) == 5 and min(of.values()) >= 15
    reports = {path.stem for path in (project_root() / "data/reported").glob("*.yaml")}
    assert set(of) <= reports
    assert len({one.claim for one in CLAIMS}) == len(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda one: one.id)
def test_a_claim_names_what_there_is(claim):
    assert lesson_of(claim).is_file()
    check_claim(claim)
    for measure in claim.measures:
        if isinstance(measure, Training):  # a column that seeds keep
            assert {measure.column, measure.minus} - {""} <= set(LINES)
    if claim.exact:
        file, _, test = claim.exact["by"].partition("::")
        text = (project_root() / file).read_text(encoding="utf-8")
        assert claim.exact["verdict"] in ("holds", "does not hold") and f"def {test}" in text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"measure": None}, "none of them"),
        ({"untestable": "why not"}, "measure and untestable"),
        ({"measure": {"win_rat": {}}}, "Did you mean `win_rate`"),
        ({"measure": {"win_rate": {"of": "a"}}}, "against must be given"),
        ({"measure": {"win_rate": {"of": "a", "against": "b", "judg": "x"}}}, "judge"),
        ({"measure": {"kl": {"of": "a"}}}, "effect: say from where"),
        ({"measure": {"training": {"of": "a", "column": "loss", "at": "end"}}}, "at:"),
        ({"says": "more"}, "says is one of"),
        ({"effect": 0}, "effect is above 0"),
        ({"config": ""}, "config names"),
        ({"claims": "x"}, "Did you mean `claim`"),
    ],
)
def test_an_entry_that_decides_nothing_is_refused(changes, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        open_ledger(ledger_of(tmp_path, {**GOOD, **changes}))


def test_names_that_a_config_has_not_and_twice_the_same_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="stands 2 times"):
        open_ledger(ledger_of(tmp_path, GOOD, GOOD))
    (wrong,) = open_ledger(
        ledger_of(tmp_path, GOOD | {"measure": {"win_rate": {"of": "orpo", "against": "base"}}})
    )
    with pytest.raises(ConfigError, match="tiny/comparison has no `orpo`.*Did you mean"):
        check_claim(wrong)


# ---- measures by hand


SEED = {
    "win_rates": [
        {"model": m, "reference": "sft", "judge": j, "decoding": "sampled", "rate": rate}
        for m, j, rate in (("a", "gold", 0.7), ("b", "gold", 0.6), ("a", "second", 0.9))
    ],
    "scores": [
        {"model": "a", "decoding": "sampled", "right": 0.5, "tokens": 12.0},
        {"model": "b", "decoding": "sampled", "right": 0.75, "tokens": 10.0},
        {"model": "a", "decoding": "greedy", "right": 0.1, "tokens": 1.0},
    ],
    "texts": [{"model": "a", "bleu_4": 30.0}, {"model": "b", "bleu_4": 12.0}],
    "distances": [{"model": "a", "start": "sft", "kl": 2.0}, {"model": "b", "kl": 0.5}],
    "training": {
        "a": [
            {"step": 0, "split": "validation", "loss": 3.0, "reward": 1.0},
            {"step": 1, "split": "train", "loss": 99.0},
            {"step": 2, "split": "validation", "loss": 1.0, "reward": 2.0},
            {"step": 3, "split": "validation", "loss": 1.5, "reward": 1.5},
        ],
        "b": [{"step": 0, "split": "validation", "loss": 1.0}],
    },
    "wall_seconds": {"a": 30.0, "b": 60.0},
}


@pytest.mark.parametrize(
    "measure, value",
    [
        ({"win_rate": {"of": "a", "against": "sft"}}, 0.2),
        ({"win_rate": {"of": "a", "against": "sft", "less": "b"}}, 0.1),
        ({"win_rate": {"of": "a", "against": "sft", "judge": "second"}}, 0.4),
        ({"win_rate": {"of": "a", "against": "sft", "less_judge": "second"}}, -0.2),
        ({"score": {"of": "a", "column": "right"}}, 0.5),
        ({"score": {"of": "a", "column": "right", "less": "b"}}, -0.25),
        ({"score": {"of": "a", "column": "tokens", "decoding": "greedy"}}, 1.0),
        ({"score": {"of": "b", "column": "right", "than": 0.5}}, 0.25),
        ({"text": {"of": "a", "column": "bleu_4"}}, 30.0),
        ({"text": {"of": "a", "column": "bleu_4", "less": "b"}}, 18.0),
        ({"kl": {"of": "a", "less": "b"}}, 1.5),
        ({"training": {"of": "a", "column": "loss"}}, 1.5),
        ({"training": {"of": "a", "column": "loss", "at": "first"}}, 3.0),
        ({"training": {"of": "a", "column": "loss", "at": "change"}}, -1.5),
        ({"training": {"of": "a", "column": "loss", "at": "turn"}}, 0.5),
        ({"training": {"of": "a", "column": "reward", "at": "drop"}}, 0.5),
        ({"training": {"of": "a", "column": "loss", "at": "rises"}}, 0.5),
        ({"training": {"of": "a", "column": "loss", "minus": "reward"}}, 0.0),
        ({"training": {"of": "a", "column": "loss", "less": "b", "than": 0.25}}, 0.25),
        ({"training": {"of": "a", "column": "loss", "at": "highest", "split": "train"}}, 99.0),
        ({"seconds": {"of": ["a"], "over": ["b"], "than": 1.0}}, -0.5),
        ({"order": {"reported": {"a": 60, "b": 50}, "against": "sft"}}, 1.0),
        ({"order": {"reported": {"a": 40, "b": 50}, "against": "sft"}}, -1.0),
    ],
)
def test_a_measure_is_the_number_that_it_says(measure, value, tmp_path):
    (claim,) = open_ledger(ledger_of(tmp_path, {**GOOD, "measure": measure, "effect": 0.1}))
    assert claim.measures[0].value(SEED) == pytest.approx(value)


@pytest.mark.parametrize(
    "measure",
    [
        {"win_rate": {"of": "c", "against": "sft"}},
        {"score": {"of": "a", "column": "right", "decoding": "beams"}},
        {"text": {"of": "c", "column": "bleu_4"}},
        {"training": {"of": "a", "column": "kl_k1"}},
        {"training": {"of": "c", "column": "loss"}},
    ],
)
def test_what_a_seed_has_not_found_is_named(measure, tmp_path):
    (claim,) = open_ledger(ledger_of(tmp_path, {**GOOD, "measure": measure, "effect": 0.1}))
    with pytest.raises(DataError, match="one is needed|has no"):
        claim.measures[0].value(SEED)


# ---- verdicts


def with_results(folder, monkeypatch, rates, seeds=SEEDS):
    "A results folder in which `orpo_v1_1` wins as often as drawn, for claims on tiny/comparison."
    found = {
        str(seed): {
            "win_rates": [
                {"model": model, "reference": "sft_v2_6", "judge": "gold", "rate": rate}
                for model, rate in each.items()
            ]
        }
        for seed, each in zip(seeds, rates)
    }
    file = folder / "results" / "ledger" / "tiny_comparison.json"
    write_text(file, json.dumps({"seeds": found}))

    there = lambda path: folder / Path(path).relative_to("data")
    monkeypatch.setattr(ledger, "resolve_path", there)
    monkeypatch.setattr(ledger, "open_results", lambda name, command: json.loads(file.read_text()))


def test_a_planted_difference_is_found_and_the_seeds_of_others_are_not_read(tmp_path, monkeypatch):
    (claim,) = open_ledger(ledger_of(tmp_path, GOOD))
    with_results(tmp_path, monkeypatch, [], seeds=())
    assert ledger.verdicts([claim]) == {"a-01": None}
    rng = np.random.default_rng(0)
    with_results(tmp_path, monkeypatch, [{"orpo_v1_1": 0.6 + rng.normal(0, 0.02)} for _ in SEEDS])
    found = ledger.verdicts([claim])
    assert found["a-01"].said == "holds" and found["a-01"].n == 5
    words = "\n".join(claim_words(claim, found["a-01"]))
    assert "verdict: holds" in words and "5 seeds" in words and "section 1" in words
    # two of five seeds are no verdict yet
    with_results(tmp_path, monkeypatch, [{"orpo_v1_1": 0.9}] * 2, seeds=SEEDS[:2])
    assert ledger.verdicts([claim]) == {"a-01": None}
    assert "not run yet (2 of 5 seeds)" in ledger_lines([claim], {"a-01": None})[0]
    assert "not run yet (2 of 5 seeds): prefkit ledger --claim a-01" in claim_words(claim, None)[-1]
    # a model that its results lack is named with the claim
    with_results(tmp_path, monkeypatch, [{"dpo": 0.9}] * 5)
    with pytest.raises(DataError, match="ledger, a-01: win_rates: 0 rows"):
        ledger.verdicts([claim])
    # seeds that were looked at before the criteria were written decide nothing
    with_results(tmp_path, monkeypatch, [{"orpo_v1_1": 0.9}] * 5, seeds=range(5))
    assert ledger.verdicts([claim]) == {"a-01": None}


def test_twenty_claims_of_a_method_against_itself_give_at_most_three_differences(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(3)
    names = [f"arm_{number}" for number in range(20)]
    entries = [
        {
            **GOOD,
            "id": f"same-{number:02d}",
            "measure": {"win_rate": {"of": name, "against": "sft_v2_6"}},
        }
        for number, name in enumerate(names)
    ]
    claims = open_ledger(ledger_of(tmp_path, *entries))
    rates = [{name: 0.5 + rng.normal(0, 0.015) for name in names} for _ in SEEDS]
    with_results(tmp_path, monkeypatch, rates)
    found = ledger.verdicts(claims)
    told = [one for one in found.values() if one.said in ("holds", "reversed")]
    assert len(told) <= 3
    # together with nineteen others none is left
    assert not {"holds", "reversed"} & set(corrected(found).values())


def test_many_claims_together_need_more_than_one_alone(tmp_path, monkeypatch):
    names = [f"arm_{number}" for number in range(40)]
    claims = open_ledger(
        ledger_of(
            tmp_path,
            *[
                {**GOOD, "id": name, "measure": {"win_rate": {"of": name, "against": "sft_v2_6"}}}
                for name in names
            ],
        )
    )
    rng = np.random.default_rng(5)
    # one that is just told alone, among many with nothing to tell
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) * 0.02
    rates = [
        {name: 0.5 + (0.022 + s if name == "arm_0" else rng.normal(0, 0.1)) for name in names}
        for s in spread
    ]
    with_results(tmp_path, monkeypatch, rates)
    found = ledger.verdicts(claims)
    assert found["arm_0"].said == "holds" and corrected(found)["arm_0"] == OPEN
    line = ledger_lines(claims, found)[0]
    assert "cannot be told (alone: holds)" in line


def test_each_config_is_run_once_with_the_ledgers_seeds(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        ledger,
        "run_seeds",
        lambda config, seeds, output, **more: asked.append((config, seeds, more)),
    )
    run_claims([one for one in CLAIMS if one.config in ("ledger/orpo", "tiny/comparison")])
    assert [path.name for path, _, _ in asked] == ["comparison.yaml", "orpo.yaml"]
    assert all(seeds == list(SEEDS) and more["add"] and more["lines"] for _, seeds, more in asked)


def test_the_command_lists_all_and_tells_one():
    runner = CliRunner()
    listed = runner.invoke(cli.app, ["ledger"])
    assert listed.exit_code == 0 and listed.output.count("\n") >= 100
    told = runner.invoke(cli.app, ["ledger", "--claim", "orpo-05"])
    assert told.exit_code == 0 and "lambda" in told.output
    wrong = runner.invoke(cli.app, ["ledger", "--claim", "orpo-5"])
    assert wrong.exit_code != 0


def test_a_win_rate_that_was_evaluated_the_other_way_round_is_turned():
    row = {"model": "instruct", "reference": "base", "judge": "gold", "rate": 0.775}
    measure = ledger.WinRateOf("base", "instruct")
    assert measure.value({"win_rates": [row]}) == pytest.approx(0.225 - 0.5)
