"""Pairs of the tiny world: the best of four scored answers and another one, by a pool whose best
are as far above demonstrations as two dials say.
"""

import math
import random
import statistics

import pytest
import yaml

from prefkit.core import ConfigError, DataError, project_root
from prefkit.data.records import load_records
from prefkit.data.scored import pairs_of
from prefkit.data.world import (
    CRITERIA,
    World,
    annotate,
    answer,
    four_answers,
    gold_reward,
    pool,
    preference_pair,
    prompts,
    read_request,
    tiny_records,
)
from prefkit.runs.pipelines import check_dataset
from prefkit.train.settings import PreferenceData, SftData

WORLD = World()
PAIRS = tiny_records("pairs", "train", 3000, 11)


def said(pair, side):
    return pair[side][-1]["content"]


def gold(pair, side):
    return gold_reward(pair["prompt"], said(pair, side))


def test_chosen_is_the_best_of_four_and_never_has_the_lower_score():
    for pair in PAIRS:
        scores = {one["response"]: one["overall_score"] for one in pair["completions"]}
        assert len(scores) == 4 and len(set(pair["models"])) == 4
        assert [one["model"] for one in pair["completions"]] == pair["models"]
        assert pair["score_chosen"] == scores[said(pair, "chosen")] == max(scores.values())
        assert pair["score_rejected"] == scores[said(pair, "rejected")] <= pair["score_chosen"]


def test_the_rejected_answer_is_each_of_the_other_three_as_often():
    places = []
    for pair in PAIRS:
        ordered = sorted(pair["completions"], key=lambda one: -one["overall_score"])
        places.append([one["response"] for one in ordered].index(said(pair, "rejected")))
    for place in (1, 2, 3):
        assert abs(places.count(place) / len(PAIRS) - 1 / 3) < 4 * math.sqrt(2 / 9 / len(PAIRS))


def test_the_criteria_are_those_of_the_gold_reward():
    for pair in PAIRS[:300]:
        for one in pair["completions"]:
            found = gold_reward(pair["prompt"], one["response"])
            ratings = {name: one["annotations"][name]["Rating"] for name in CRITERIA}
            assert ratings == {name: getattr(found, name) for name in CRITERIA}


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.5])
def test_the_better_answer_is_chosen_in_the_share_that_the_noise_foretells(temperature):
    pairs = tiny_records("pairs", "train", 2500, 5, temperature=temperature)
    gaps = [gold(pair, "chosen").total - gold(pair, "rejected").total for pair in pairs]
    gaps = [gap for gap in gaps if gap]
    foretold = [1 / (1 + math.exp(-abs(gap) / temperature)) for gap in gaps]
    error = math.sqrt(sum(p * (1 - p) for p in foretold)) / len(gaps)
    found = statistics.mean(gap > 0 for gap in gaps)
    assert abs(found - statistics.mean(foretold)) < 4 * error


def test_a_pair_picked_from_four_is_still_labelled_by_bradley_and_terry():
    rewards, temperature, rng = [5.2, 4.4, 6.0, 0.7], 0.8, random.Random(2)
    orders = {}
    for _ in range(60_000):
        scores = annotate(rewards, rng, temperature=temperature)
        [(chosen, rejected)] = pairs_of(scores, "best_random", rng)
        orders[chosen, rejected] = orders.get((chosen, rejected), 0) + 1
    for one, other in ((0, 1), (0, 2), (1, 2)):
        n = orders[one, other] + orders[other, one]
        expected = 1 / (1 + math.exp(-(rewards[one] - rewards[other]) / temperature))
        error = math.sqrt(expected * (1 - expected) / n)
        assert abs(orders[one, other] / n - expected) < 4 * error


def test_without_noise_the_chosen_answer_is_the_better_one():
    for pair in tiny_records("pairs", "train", 300, temperature=0.0):
        assert gold(pair, "chosen").total > gold(pair, "rejected").total


def test_answerers_come_out_in_the_order_of_their_skills():
    right = {one.name: [] for one in pool()}
    for pair in PAIRS:
        for one in pair["completions"]:
            right[one["model"]].append(gold_reward(pair["prompt"], one["response"]).right)
    shares = {name: statistics.mean(values) for name, values in right.items()}
    by_skill = [shares[one.name] for one in sorted(pool(), key=lambda one: one.right)]
    assert all(lower < higher + 0.02 for lower, higher in zip(by_skill, by_skill[1:]))
    for one in pool():
        assert abs(shares[one.name] - one.right) < 0.06, one.name


def test_what_is_hard_is_hard_for_everybody():
    "Nobody knows what a more able one does not."
    known = {one.name: one.right for one in pool()}
    asked = [pair for pair in PAIRS if not read_request(pair["prompt"]).task.unknowable]
    for pair in asked:
        answers = {
            known[one["model"]]: gold_reward(pair["prompt"], one["response"])
            for one in pair["completions"]
        }
        claims = [
            answers[skill].right
            for skill in sorted(answers)
            if answers[skill].instruction_following  # "I do not know" is no error
        ]
        assert claims == sorted(claims), pair


def test_at_zero_the_best_are_as_demonstrations_and_at_one_as_far_as_can_be():
    near, far = pool(0, 0), pool(1, 1)
    rng, requests = random.Random(0), prompts("train")
    asked = [rng.choice(requests) for _ in range(4000)]
    shown = [gold_reward(each.text, answer(WORLD, each, rng)) for each in asked]
    same = [gold_reward(each.text, near[0].say(WORLD, each, rng.random(), rng)) for each in asked]
    best = [gold_reward(each.text, far[0].say(WORLD, each, rng.random(), rng)) for each in asked]
    right = lambda found: statistics.mean(one.right for one in found)
    assert abs(right(shown) - right(same)) < 0.035 and right(best) == 1
    total = lambda found: statistics.mean(one.total for one in found)
    assert abs(total(shown) - total(same)) < 0.15 and total(best) > total(shown) + 1
    assert near[2:] == far[2:] == pool()[2:]


def chosen_quality(**dials):
    found = [gold(pair, "chosen") for pair in tiny_records("pairs", "train", 1500, 3, **dials)]
    right = [one for one in found if one.right]
    return len(right) / len(found), statistics.mean(one.total for one in right)


def test_one_dial_moves_truth_and_the_other_manner():
    none, truth, manner = (chosen_quality(truth=a, manner=b) for a, b in ((0, 0), (1, 0), (0, 1)))
    assert truth[0] > none[0] + 0.08 and abs(truth[1] - none[1]) < 0.12
    assert manner[1] > none[1] + 0.2 and abs(manner[0] - none[0]) < 0.04


def test_what_is_known_of_the_real_set_adds_up():
    known = yaml.safe_load((project_root() / "data/reported/ultrafeedback.yaml").read_text())
    sample = known["sample"]
    assert sum(sample["gaps"].values()) == sample["pairs"]
    mean = sum(gap * n for gap, n in sample["gaps"].items()) / sample["pairs"]
    assert mean == pytest.approx(sample["chosen"]["mean"] - sample["rejected"]["mean"])
    assert tuple(known["cards"]["criteria"]) == CRITERIA


def test_a_pool_with_too_little_to_say_is_an_error_that_names_the_prompt():
    curt = [one for one in pool() if one.name in ("clerk", "novice")]
    with pytest.raises(DataError, match="gave . different answers, 4 are wanted") as error:
        four_answers(WORLD, prompts("train")[0], random.Random(0), tuple(curt))
    assert (error.value.field, error.value.reason) == ("answerers", "too few different answers")


@pytest.mark.parametrize(
    "options, kind, words, field",
    [
        (
            {"truth": 1.5},
            "pairs",
            "truth is 1.5, but must be a finite number of at least 0 and of at most 1",
            "truth",
        ),
        ({"manner": True}, "binary", "manner is True", "manner"),
        ({"temperature": -1}, "pairs", "temperature is -1", "temperature"),
        ({"temperature": float("nan")}, "pairs", "temperature is nan", "temperature"),
        ({"turth": 1}, "pairs", "there is no 'turth'. Did you mean", "dataset_options"),
        ({"truth": 1}, "sft", "rows of kind sft have none", "dataset_options"),
    ],
)
def test_options_that_there_are_not_are_refused(options, kind, words, field):
    with pytest.raises(ConfigError, match=words) as error:
        load_records("tiny-world", kind=kind, limit=4, dataset_options=options)
    assert error.value.field == field
    with pytest.raises(ConfigError, match=words):  # before anything runs
        check_dataset("tiny-world", kind=kind, dataset_options=options)


@pytest.mark.parametrize("name", ["tiny-world-verbose", "countdown-tiny", "owner/name", "a.jsonl"])
def test_other_data_sets_have_no_options(name):
    with pytest.raises(ConfigError, match=f"the data set {name} has none"):
        load_records(name, kind="sft", limit=4, dataset_options={"truth": 1})


def test_options_reach_the_rows_and_the_account_names_them():
    far = load_records(
        "tiny-world", kind="pairs", limit=8, seed=1, dataset_options={"truth": 1, "manner": 0}
    )
    made = tiny_records("pairs", "train", 8, 1, truth=1, manner=0)
    assert [said(row, "chosen") for row in far.rows] == [said(pair, "chosen") for pair in made]
    assert far.report.source == "tiny-world (train, truth 1, manner 0)"
    assert {"models", "completions"} <= set(far.report.columns)


def test_options_hold_for_other_rows_of_the_same_data_set_only():
    data = PreferenceData(dataset_options={"truth": 1})
    assert data.part("validation").dataset_options == {"truth": 1}
    other = PreferenceData(dataset_options={"truth": 1}, validation_dataset="a.jsonl")
    assert other.part("validation").dataset_options == {}
    assert SftData(probe_dataset="tiny-world").part("probe").dataset_options == {}


def test_the_same_seed_gives_the_same_pairs_and_a_dial_other_ones():
    rng = lambda: random.Random(4)
    request = prompts("train")[5]
    one = preference_pair(WORLD, request, rng(), pool(), 0.5)
    assert one == preference_pair(WORLD, request, rng(), pool(), 0.5)
    assert tiny_records("pairs", "train", 400) != tiny_records("pairs", "train", 400, truth=1)
