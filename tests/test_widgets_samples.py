"Answers beside each other with their scores, from folders whose numbers are known by hand."

import json
import re

import pytest
from helpers.widgets import cpu_seconds_an_update, moved_everywhere

from prefkit.core import DataError, write_jsonl
from prefkit.widgets.examples import example_answers, example_samples
from prefkit.widgets.samples import (
    ALONE,
    filtered_answers,
    evaluation_of,
    explore_samples,
    paired_answers,
    read_evaluation,
)

GOLD = {"sft": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "dpo": [1.0, 9.0, 2.0, 5.0, 0.0, 7.0]}
KINDS = ["adds", "adds", "counts", "adds", "counts", "adds"]


def records():
    "Two models' answers to six prompts, judged by gold and by somebody whose name the kit lacks."
    return [
        {
            "prompt_id": str(i),
            "prompt": [{"role": "user", "content": f"Question {i} <b>?"}],
            "model": model,
            "kind": KINDS[i],
            "answer": f"{model} says <{i}>",
            "tokens": 3,
            "gold": {"total": score, "right": score > 3},
            "house": -score,
        }
        for model, scores in GOLD.items()
        for i, score in enumerate(scores)
    ]


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "generations.jsonl", records())
    (tmp_path / "params.yaml").write_text("judges: {gold: {}, house: {}, pairwise: {model: m}}\n")
    return tmp_path


def asked(shown):
    "Numbers of the questions of a page, in order."
    return [int(one) for one in re.findall(r"Question (\d)", shown)]


def test_a_folder_names_its_models_kinds_and_judges(folder):
    found = read_evaluation(folder)
    assert found.models == ("sft", "dpo") and found.kinds == ("adds", "counts")
    assert found.judges == ("gold", "house")  # pairwise gives no answer a score
    (folder / "params.yaml").unlink()
    assert read_evaluation(folder).judges == ("gold",)  # the one that has a name in the kit


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("as asked", [0, 1, 2, 3, 4, 5]),
        ("left wins by most", [1, 3, 5, 0, 2, 4]),  # 7, 1, 1, 0, -1, -5
        ("right wins by most", [4, 2, 0, 3, 5, 1]),
        ("best left answer", [1, 5, 3, 2, 0, 4]),
        ("worst left answer", [4, 0, 2, 3, 5, 1]),
    ],
)
def test_prompts_are_sorted_by_what_a_judge_says(folder, sort, order):
    rows = paired_answers(read_evaluation(folder), "dpo", "sft", "", "gold")
    shown = filtered_answers(rows, "all kinds", "", sort)
    assert [int(name) for name, _ in shown.index] == order


def test_a_page_shows_answers_scores_and_who_wins(folder):
    one = explore_samples(folder).set(left="dpo", right="sft", page=2)
    shown = one.html()
    assert asked(shown) == [4, 5] and "Prompts 5 to 6 of 6" in shown
    # dpo wins 3 of 6, one tie: 3.5 / 6
    assert "By gold, dpo wins 58 %" in shown and "6 prompts (1 ties)" in shown
    assert "dpo says &lt;4&gt;" in shown and "says <" not in shown and "<b>?" not in shown
    assert "<b>gold 5.00 ▲</b> · house −5.00" in shown  # of SFT's answer to question 4
    assert "<b>house 0.00 ▲</b>" in shown or "<b>house −0.00 ▲</b>" in shown


def test_kind_and_text_leave_fewer_pages(folder):
    one = explore_samples(folder)
    one.set(page=2).view()
    one._widgets["kind"].value = "counts"
    assert one._widgets["page"].max == 1 and asked(one._shown.value) == [2, 4]
    one._widgets["kind"].value = "all kinds"
    one._widgets["find"].value = "SAYS <3"
    assert asked(one._shown.value) == [3]
    one._widgets["find"].value = "nowhere"
    assert "No prompt like that" in one._shown.value


def test_one_model_may_be_read_alone(folder):
    one = explore_samples(folder).set(left="sft", right=ALONE, sort="left wins by most")
    assert asked(one.html()) == [0, 1, 2, 3] and "dpo says" not in one.html()
    assert asked(one.set(sort="best left answer").html()) == [5, 4, 3, 2]


def test_several_ways_of_decoding_are_kept_apart(tmp_path):
    greedy = [{**one, "decoding": "greedy", "token_limit": 64} for one in records()]
    others = [{**one, "decoding": "reports", "answer": "sampled"} for one in records()]
    write_jsonl(tmp_path / "generations.jsonl", greedy + others)
    one = explore_samples(tmp_path)
    assert one.controls["way"].options == ("greedy, 64", "reports")
    assert "sampled" not in one.html() and one.set(way="reports").html().count("sampled") == 8


def test_a_model_that_has_not_answered_all_is_held_against_what_both_have():
    found = evaluation_of([one for one in records() if one["model"] == "sft" or one["tokens"] < 3])
    assert found.models == ("sft",)
    partly = [one for one in records() if one["model"] == "sft" or one["prompt_id"] in "14"]
    rows = paired_answers(evaluation_of(partly), "dpo", "sft", "", "gold")
    assert [name for name, _ in rows.index] == ["1", "4"]


def test_the_browser_takes_every_value_of_its_controls_in_time(folder):
    one = explore_samples(folder)
    moved_everywhere(one)
    large = explore_samples(evaluation_of(example_answers(), ("gold", "second", "large", "small")))
    states = [{"page": page} for page in (1, 40, 75)]
    states += [{"sort": "left wins by most"}, {"judge": "small"}, {"right": "sft"}]
    assert cpu_seconds_an_update(large, states) < 0.2  # 0.03 on an idle core
    frames = json.loads(re.search(r"frames = (\[.*\]);", one.page())[1])
    assert len(frames) <= 60 and not any("alert" in one for one in frames)


# ---- what is no evaluation


def broken_params(folder):
    (folder / "params.yaml").write_text("models: {}\n")


def broken_line(folder):
    (folder / "generations.jsonl").write_text('{"prompt": "a", "answer"\n')


def no_model(folder):
    write_jsonl(folder / "generations.jsonl", [{"prompt": "a", "answer": "b"}])


def emptied(folder):
    (folder / "generations.jsonl").write_text("")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (broken_params, r"params\.yaml: it does not name the judges.*delete the file"),
        (broken_line, r"generations\.jsonl, line 1: .*Mend or delete"),
        (no_model, r"generations\.jsonl, record 1: no model"),
        (emptied, r"generations\.jsonl: it is empty\. Name the folder"),
        (lambda folder: (folder / "generations.jsonl").unlink(), r"no generations\.jsonl in it"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_file(folder, damage, says):
    damage(folder)
    with pytest.raises(DataError, match=says):
        explore_samples(folder)


def test_the_example_begins_with_a_policy_beside_what_it_comes_from():
    one = example_samples()
    one.view()
    assert one._widgets["left"].value == "small" and one._widgets["right"].value == "sft"
    assert "small wins 50 %" in one.html() and one.controls["judge"].options[0] == "gold"
