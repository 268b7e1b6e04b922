"""Pairs from a model's own answers: which are made of scores, whether their order follows the
noise, and the stage from answers to a trained model.
"""

import math
import random
from math import comb

import datasets
import pytest
import yaml

from prefkit.core import ConfigError, PrefkitError, read_jsonl, write_jsonl, write_text
from prefkit.data.records import load_records
from prefkit.data.scored import pair_rows, pairs_of
from prefkit.data.world import annotate, gold_reward
from prefkit.judging.judges import make_judge, register_judge
from prefkit.judging.several import judge_scores
from prefkit.runs.config import load_config
from prefkit.runs.plan import plan_lines
from prefkit.runs.runner import open_run, run

MODEL = "data/tiny/instruct"
FEW = {"model": MODEL, "limit": 24, "validation_limit": 8, "samples": 3, "batch_size": 16}


@pytest.mark.parametrize(
    "scores, way, expected",
    [
        ([1.0, 3.0, 2.0], "best_worst", [(1, 0)]),
        ([1.0, 3.0, 2.0], "all", [(1, 2), (1, 0), (2, 0)]),
        ([2.0, 2.0, 1.0], "best_worst", [(0, 2)]),
        ([2.0, 2.0, 1.0], "all", [(0, 2), (1, 2)]),
        ([2.0, 2.0, 1.0], "best_random", [(0, 2)]),
        ([1.0, 1.0, 1.0], "best_worst", []),
        ([1.0, 1.0], "best_random", []),
        ([5.0, 5.0], "all", []),
    ],
)
def test_pairs_of_scores(scores, way, expected):
    assert pairs_of(scores, way, random.Random(0)) == expected


def test_a_random_rejected_one_is_any_lower_one_equally_often():
    rng, scores = random.Random(0), [4.0, 1.0, 3.0, 4.0, 2.0]
    drawn = [pairs_of(scores, "best_random", rng)[0] for _ in range(3000)]
    assert {chosen for chosen, _ in drawn} == {0}
    for place in (1, 2, 4):
        assert sum(rejected == place for _, rejected in drawn) == pytest.approx(1000, abs=110)


def test_noise_makes_bradley_terry_and_none_changes_nothing():
    rng, gap, noise = random.Random(0), 1.0, 0.7
    assert annotate([gap, 0.0], rng, temperature=0.0) == [gap, 0.0]
    drawn = [annotate([gap, 0.0], rng, temperature=noise) for _ in range(8000)]
    wins = [first > second for first, second in drawn]
    expected = 1 / (1 + math.exp(-gap / noise))
    error = math.sqrt(expected * (1 - expected) / 8000)
    assert sum(wins) / 8000 == pytest.approx(expected, abs=4 * error)


def test_a_way_that_there_is_not_is_an_error():
    with pytest.raises(ConfigError, match="best_worst, best_random, all") as error:
        pairs_of([1.0, 2.0], "best", random.Random(0))
    assert (error.value.field, error.value.reason) == ("pairs", "no such choice")


def test_rows_have_the_columns_of_pairs_and_names_of_their_own(tmp_path):
    prompt, answers, scores = [{"role": "user", "content": "Hi"}], ["a", "b", "c"], [1.0, 3.0, 2.0]
    rows = pair_rows(prompt, "p", answers, scores, [(1, 2), (1, 0)])
    assert [row["prompt_id"] for row in rows] == ["p-0", "p-1"]
    assert pair_rows(prompt, "p", answers, scores, [(1, 0)])[0]["prompt_id"] == "p"
    read = load_records(write_jsonl(tmp_path / "rows.jsonl", rows), kind="pairs")
    assert [row["chosen"][0]["content"] for row in read] == ["b", "b"]
    assert [row["score_rejected"] for row in rows] == [2.0, 1.0]


# ---- the stage


def experiment(tmp_path, name="own", **stages):
    stages = {key: {"pipeline": one[0], "parameters": one[1]} for key, one in stages.items()}
    config = {"experiment": name, "stages": stages}
    return write_text(tmp_path / f"{name}.yaml", yaml.safe_dump(config))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A model answers, and learns from its own answers."
    folder = tmp_path_factory.mktemp("own")
    short = {"model": MODEL, "dataset": "stage:pairs", "max_steps": 1, "batch_size": 4}
    config = experiment(folder, pairs=("own_pairs", FEW), dpo=("preference", short))
    return run(config, output_root=folder / "runs", progress="quiet")


@pytest.mark.slow
def test_every_chosen_answer_earns_more_and_all_is_accounted_for(trained):
    kept = datasets.load_from_disk(str(trained["pairs"] / "checkpoint"))
    assert set(kept) == {"train", "validation"}
    metrics = {one["part"]: one for one in open_run(trained["pairs"]).info["metrics"]["own_pairs"]}
    for part, rows in kept.items():
        answers = read_jsonl(trained["pairs"] / "answers" / f"{part}.jsonl")
        assert [len(one["scores"]) for one in answers] == [3] * metrics[part]["prompts"]
        flat = sum(len(set(one["scores"])) == 1 for one in answers)
        assert (metrics[part]["pairs"], metrics[part]["without_pair"]) == (len(rows), flat)
        assert len(rows) + flat == len(answers)
        for row in rows:
            asked = row["prompt"][-1]["content"]
            for side in ("chosen", "rejected"):
                earned = gold_reward(asked, row[side][0]["content"]).total
                assert earned == pytest.approx(row[f"score_{side}"])
            assert row["score_chosen"] > row["score_rejected"]
        # without noise the labels are the scores
        assert (metrics[part]["equal"], metrics[part]["better"]) == (0, 1)
        assert metrics[part]["chosen"] == pytest.approx(metrics[part]["score_chosen"])


def test_what_the_noise_of_the_labels_did_is_told(tmp_path):
    "At a low temperature many answers are the same text, which no noise makes a pair."
    cold = {**FEW, "noise": 5.0, "temperature": 0.3, "pairs": "all"}
    config = experiment(tmp_path, pairs=("own_pairs", cold))
    made = run(config, output_root=tmp_path / "runs", progress="quiet")["pairs"]
    answers = [one["answers"] for one in read_jsonl(made / "answers" / "train.jsonl")]
    assert any(len(set(texts)) < len(texts) for texts in answers)
    told, rows = (
        {one["part"]: one for one in open_run(made).info["metrics"]["own_pairs"]}["train"],
        datasets.load_from_disk(str(made / "checkpoint"))["train"],
    )
    earned = {
        side: [gold_reward(row["prompt"][-1]["content"], row[side][0]["content"]) for row in rows]
        for side in ("chosen", "rejected")
    }
    gaps = [a.total - b.total for a, b in zip(earned["chosen"], earned["rejected"])]
    for row in rows:
        assert row["chosen"][0]["content"] != row["rejected"][0]["content"]
    assert told["without_pair"] == sum(len({*texts} - {""}) < 2 for texts in answers)
    assert told["pairs"] == sum(comb(len({*texts} - {""}), 2) for texts in answers)
    assert 0 < told["better"] < 1
    assert told["better"] == pytest.approx(sum(g > 0 for g in gaps) / sum(g != 0 for g in gaps))
    assert told["equal"] == pytest.approx(sum(g == 0 for g in gaps) / len(gaps))
    assert told["chosen"] - told["rejected"] == pytest.approx(sum(gaps) / len(gaps))


def test_a_later_stage_reads_them_and_names_the_stage_in_its_account(trained):
    told = open_run(trained["dpo"]).info["data"]["train"]
    rows = datasets.load_from_disk(str(trained["pairs"] / "checkpoint"))["train"]
    assert told["source"] == "pairs/checkpoint" and told["kept"] == len(rows)


@pytest.mark.slow
def test_a_killed_stage_goes_on_and_the_batches_change_nothing(trained, tmp_path):
    "The first batch is there, the second is not: what is there is not drawn again."
    home = tmp_path / "runs" / "own"
    partial = home / ".pairs.partial"
    config = experiment(tmp_path, pairs=("own_pairs", {**FEW, "batch_size": 5}))
    whole = {
        part: read_jsonl(trained["pairs"] / "answers" / f"{part}.jsonl")
        for part in ("train", "validation")
    }
    marked = [{**one, "ended": [True] * 3} for one in whole["train"][:5]]
    begun = run(config, output_root=tmp_path / "runs", progress="quiet")["pairs"]
    for part, records in whole.items():
        assert read_jsonl(begun / "answers" / f"{part}.jsonl") == records
    begun.rename(partial)
    for left in ("run.json", "params.yaml", "result.json"):
        (partial / left).unlink(missing_ok=True)
    write_jsonl(partial / "answers" / "train.jsonl", marked)
    again = run(config, output_root=tmp_path / "runs", progress="quiet")["pairs"]
    records = read_jsonl(again / "answers" / "train.jsonl")
    assert records[:5] == marked and records[5:] == whole["train"][5:]


def test_what_cannot_be_is_refused_before_anything_is_drawn(tmp_path):
    def refused(says, **changes):
        with pytest.raises(PrefkitError, match=says):
            run(
                experiment(tmp_path, pairs=("own_pairs", {**FEW, **changes})),
                output_root=tmp_path / "runs",
                progress="quiet",
            )

    refused("samples", samples=1)
    refused("best_worst, best_random, all", pairs="best")
    refused("noise", noise=-1.0)
    refused("countdown", reward="countdown")  # the tiny world has no numbers
    refused("name one, and no reward", judge={"second": {}}, reward="second")
    refused("name one, and no reward", judge={"second": {}, "gold": {}})
    refused("secnd", judge={"secnd": {}})
    short = {"model": MODEL, "dataset": "stage:pairs", "dataset_revision": "v1"}
    with pytest.raises(ConfigError, match="only for the Hub"):
        config = experiment(tmp_path, pairs=("own_pairs", FEW), dpo=("preference", short))
        run(config, output_root=tmp_path / "runs", progress="quiet")
    assert not (tmp_path / "runs" / "own" / "pairs").exists()


def test_a_plan_takes_a_data_set_that_is_still_to_be_made(tmp_path):
    later = {"model": MODEL, "dataset": "stage:pairs", "max_steps": 3}
    config = experiment(tmp_path, pairs=("own_pairs", FEW), dpo=("preference", later))
    assert load_config(config).stages[1].needs == ("pairs",)
    said = "\n".join(plan_lines(str(config), (), None))
    assert "dpo" in said and "the longest allowed" in said


@pytest.mark.slow
def test_a_judge_labels_as_a_reward_of_the_same_name_does(tmp_path):
    few = {**FEW, "limit": 8, "validation_split": ""}
    config = experiment(
        tmp_path,
        judged=("own_pairs", {**few, "judge": {"second": {}}}),
        rewarded=("own_pairs", {**few, "reward": "second"}),
    )
    folders = run(config, output_root=tmp_path / "runs", progress="quiet")
    judged, rewarded = (
        read_jsonl(folders[name] / "answers/train.jsonl") for name in ("judged", "rewarded")
    )
    assert judged == rewarded and any(len(set(each["scores"])) > 1 for each in judged)


def test_of_a_judge_that_compares_the_share_of_the_others_that_an_answer_beats_is_its_score():
    asked = []

    def longer(ours, theirs, store):
        for one, other in zip(ours, theirs):
            asked.append(one["prompt_id"])
            a, b = len(one["answer"]), len(other["answer"])
            yield (a > b) + (a == b) / 2

    register_judge("longer", lambda: longer, compares=True)
    said = [
        [{"text": text, "tokens": 1, "ended": True} for text in group]
        for group in (["a", "bbb", "cc", "bbb"], ["x"])
    ]
    found = judge_scores(make_judge("longer"), ["p", "q"], ["one?", "two?"], said)
    assert found == [pytest.approx([0.0, 2.5 / 3, 1 / 3, 2.5 / 3]), [0.0]]
    assert len(asked) == len(set(asked)) == 6  # every two, once
