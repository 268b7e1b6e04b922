"""Pairs that a model behind a server makes: what is asked, what is made of good and bad replies,
and the stage from a seed set to a trained model.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import datasets
import pytest
import yaml

from helpers.served import Faulty, serving
from prefkit.core import ConfigError, DataError, PrefkitError, read_jsonl, write_text
from prefkit.data.world import gold_reward
from prefkit.judging.budget import AskingLimits, Budget
from prefkit.judging.stand_in import stand_in_reply
from prefkit.judging.synthesis import (
    BETTER,
    WORSE,
    Asker,
    NewPrompts,
    NewPairs,
    Recipe,
    filter_pairs,
    read_prompts,
)
from prefkit.runs.config import load_config
from prefkit.runs.plan import plan_lines
from prefkit.runs.runner import open_run, run

ROOT = Path(__file__).resolve().parents[1]
KEY = "a-key-for-the-tests"


class Scripted(Faulty):
    """Says what the stand-in says, or what a test has put into `lines` for a request: `prompts`, or
    `chosen` or `rejected` and the prompt, such as `chosen What is it?`.
    """

    def __init__(self):
        super().__init__()
        self.faults, self.lines, self.ends = {}, {}, {}

    def asks(self, body):
        first, last = body["messages"][0]["content"], body["messages"][-1]["content"]
        if "new requests in the same theme" in last:
            return f"prompts {body['seed']}", self.faults.get("prompts", ["ok"])
        side = "rejected" if first.startswith(WORSE[:40]) else "chosen"
        name = f"{side} {last}"
        return name, self.faults.get(name, self.faults.get(side, ["ok"]))

    def says(self, name, body):
        said = self.lines.get("prompts" if name.startswith("prompts") else name)
        text = stand_in_reply(body) if said is None else said
        asked = sum(len(turn["content"].split()) for turn in body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": min(len(text.split()), 200)}
        return text, self.ends.get(name, "stop"), usage


@pytest.fixture()
def scripted(monkeypatch):
    monkeypatch.setenv("FAKE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Scripted()) as server:
        yield server


def rows(*texts, split="train"):
    "Prompts as `load_records` gives them."
    each = [{"role": "user", "content": text} for text in texts]
    return [{"prompt": [turn], "row": f"row {n} of {split}"} for n, turn in enumerate(each, 1)]


@contextmanager
def asker(server, folder, limits=None, **options):
    client = server.client(**{"concurrency": 4, **options})
    with Budget(limits or AskingLimits(), folder / "spent.jsonl") as budget:
        yield Asker(client, folder / "replies.jsonl", budget)


def reasons(report):
    return {reason: entry["rows"] for reason, entry in report.dropped.items()}


# ---- replies


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1. What is it?\n2. Who was it?", ["What is it?", "Who was it?"]),
        ('Sure!\n\n1) **What is it?**\n2) "Who was it?"\n', ["What is it?", "Who was it?"]),
        ("1. A poem\n   about the sea.\n2. Another", ["A poem\n   about the sea.", "Another"]),
        ("1. Do both:\n - a\n - b\n2. Sort 3. and 4.", ["Do both:\n - a\n - b", "Sort 3. and 4."]),
        ("1. What is it?\n2. Who?\n\nI hope that helps!", ["What is it?", "Who?"]),
        ("Request 1: What is it?\nRequest 2: Who?", ["What is it?", "Who?"]),
        ("- What is it?\n* Who was it?", ["What is it?", "Who was it?"]),
        ('["What is it?", "Who?"]', ["What is it?", "Who?"]),
        (
            'Here:\n```json\n{"prompts": [{"prompt": "What is it?", "id": "1"}]}\n```',
            ["What is it?"],
        ),
        ("1. What is it?\n2. ...\n3. Who?", ["What is it?", "Who?"]),
    ],
)
def test_prompts_are_read_from_any_list(text, expected):
    assert read_prompts(text) == expected


@pytest.mark.parametrize("text", ["I cannot do that.", "", "1.", "[1, 2", '{"a": 1}', "***"])
def test_a_reply_without_a_list_is_an_error(text):
    with pytest.raises(DataError) as error:
        read_prompts(text)
    assert (error.value.field, error.value.reason) == ("reply", "unreadable reply")


def test_of_a_reply_that_was_cut_off_the_last_prompt_is_left_out():
    assert read_prompts("1. What is it?\n2. Who w", ended=False) == ["What is it?"]
    with pytest.raises(DataError, match="prompting.max_tokens"):
        read_prompts("1. What is", ended=False)


# ---- prompts


def test_duplicates_and_leaks_are_found_counted_and_shown(scripted, tmp_path):
    story = "Write a short story about a dragon who learns to cook for all of his friends"
    trip = "Plan a trip of three days to the sea for a family of five people"
    scripted.lines["prompts"] = "\n".join(
        [
            "1. What is the capital of France",  # a seed, but for its mark
            f"2. {story} today",  # nearly a seed
            "3. how much is nine times seven?",  # held out
            f"4. {trip} this year",  # nearly held out
            "5. Name three rivers.",
            "6. Name THREE rivers",
            "7. Explain in a few plain words to a child why the sky is blue by day",
            "8. Explain in a few plain words to a child why the sky is blue by day now",
            "9. Say hello.",
            "10. Say goodbye.",
        ]
    )
    prompts = NewPrompts(
        Recipe(prompting={"seeds": 2}, near=0.7),
        rows("What is the capital of France?", story),
        {"test": rows("How much is nine times seven?", trip, split="test")},
    )
    with asker(scripted, tmp_path) as ask:
        made = prompts.make(3, ask)
    assert [row["prompt"][:7] for row in made] == ["Name th", "Explain", "Say hel"]
    assert reasons(prompts.report) == {
        "the same as a seed prompt": 1,
        "nearly the same as a seed prompt": 1,
        "the same as a held-out prompt, a leak": 1,
        "nearly the same as a held-out prompt, a leak": 1,
        "the same as a new prompt": 1,
        "nearly the same as a new prompt": 1,
        "more than were wanted": 1,
    }
    assert "row 1 of test" in str(prompts.report) and "alike: 1.00" in str(prompts.report)
    assert prompts.report.read == 10 == prompts.report.kept + prompts.report.dropped_rows
    assert len(prompts.dropped) == 7 and all(each["why"] for each in prompts.dropped)
    assert made[0]["lineage"] == {
        "model": "m",
        "request": "prompts 0",
        "place": 4,
        "seeds": made[0]["lineage"]["seeds"],
    }
    assert sorted(made[0]["lineage"]["seeds"]) == ["row 1 of train", "row 2 of train"]


def test_each_request_shows_other_seeds_and_asks_for_their_theme(scripted, tmp_path):
    seeds = rows(*(f"What is the {number}th of the numbers?" for number in range(40)))
    prompts = NewPrompts(Recipe(prompting={"seeds": 3, "prompts": 5}), seeds, {})
    with asker(scripted, tmp_path) as ask:
        assert len(prompts.make(12, ask)) == 12
    texts = [body["messages"][0]["content"] for body in scripted.bodies]
    shown = [frozenset(re.findall(r"What is the \d+th of the numbers\?", text)) for text in texts]
    assert all(len(each) == 3 for each in shown) and len(set(shown)) == len(shown) >= 3
    assert all("Write 5 new requests" in text for text in texts)
    assert len({body["seed"] for body in scripted.bodies}) == len(texts)


def test_unreadable_replies_are_counted_named_and_not_asked_for_ever(scripted, tmp_path):
    scripted.lines["prompts"] = "I would rather talk about the weather."
    prompts = NewPrompts(Recipe(prompting={"prompts": 5}), rows("Why?"), {})
    with asker(scripted, tmp_path) as ask, pytest.raises(DataError) as error:
        prompts.make(10, ask)
    assert error.value.reason == "no prompt is left" and "talk about the weather" in str(
        error.value
    )
    assert reasons(prompts.replies) == {"unreadable reply": 8}  # four times as many as are enough
    assert [each["request"] for each in prompts.dropped] == [f"prompts {n}" for n in range(8)]
    strict = NewPrompts(Recipe(on_bad_rows="error"), rows("Why?"), {})
    with asker(scripted, tmp_path) as ask, pytest.raises(DataError, match="^prompts 0: the reply"):
        strict.make(1, ask)


def test_fewer_prompts_than_wanted_are_said(scripted, tmp_path, capsys):
    scripted.lines["prompts"] = "1. Name three rivers.\n2. Say hello."
    with asker(scripted, tmp_path) as ask:
        made = NewPrompts(Recipe(), rows("Why?"), {}).make(7, ask)
    assert len(made) == 2 and "2 new prompts, fewer than the 7" in capsys.readouterr().out


# ---- answers

ASKED = [
    {"prompt_id": f"p{number}", "prompt": text, "lineage": {"model": "m", "request": "prompts 0"}}
    for number, text in enumerate(
        ["What eats the fox?", "Cut", "Empty", "Refused", "Filtered", "Same", "Long", "Last"]
    )
]


def answers(server, **faults):
    server.lines |= {
        f"{side} {row['prompt']}": side for side in ("chosen", "rejected") for row in ASKED
    }
    server.ends["rejected Cut"] = "length"
    server.lines |= {
        "chosen Empty": " ",
        "rejected Refused": "I'm sorry, but I can't write a poor answer.",
        "chosen Same": "It is so.",
        "rejected Same": "it is  so",
    }
    server.ends["chosen Filtered"] = "content_filter"
    server.faults |= {"chosen Long": ["400"], **faults}


def test_answers_of_no_use_are_dropped_by_reason_and_kept_beside(scripted, tmp_path):
    answers(scripted)
    pairs = NewPairs(Recipe(criteria="Be kind."), ASKED)
    with asker(scripted, tmp_path) as ask:
        made = pairs.make(ask)
    assert [row["prompt_id"] for row in made] == ["p0", "p7"]
    assert reasons(pairs.report) == {
        "cut off": 1,
        "empty": 1,
        "the model refuses to answer": 1,
        "refused by the server": 2,
        "both answers are the same": 1,
    }
    assert "the rejected answer: it ends with" in str(pairs.report)
    assert {each["prompt_id"] for each in pairs.dropped} == {f"p{n}" for n in range(1, 7)}
    # what was asked by the report's settings, and what a row holds of it
    for side, system, heat, most in (("chosen", BETTER, 0.7, 800), ("rejected", WORSE, 0.9, 400)):
        [body] = [body for body in scripted.bodies if scripted.asks(body)[0] == f"{side} Last"]
        assert body["messages"] == [
            {"role": "system", "content": system.format(criteria="Be kind.")},
            {"role": "user", "content": "Last"},
        ]
        assert (body["temperature"], body["max_tokens"]) == (heat, most)
        assert made[1][side] == [{"role": "assistant", "content": side}]
    assert made[1]["prompt"] == [{"role": "user", "content": "Last"}]
    assert made[1]["lineage"]["chosen_request"] == "p7 chosen"


def test_or_the_first_of_them_is_an_error_that_says_what_to_do(scripted, tmp_path):
    answers(scripted)
    with asker(scripted, tmp_path) as ask, pytest.raises(DataError) as error:
        NewPairs(Recipe(on_bad_rows="error"), ASKED).make(ask)
    assert error.value.reason == "cut off"
    for says in ("p1: ", "the rejected answer", "Raise max_tokens", "on_bad_rows=drop"):
        assert says in str(error.value)


def test_faults_that_pass_change_nothing(scripted, tmp_path):
    answers(scripted)
    quiet, loud = tmp_path / "quiet", tmp_path / "loud"
    with asker(scripted, quiet) as ask:
        expected = NewPairs(Recipe(), ASKED).make(ask)
    scripted.asked.clear()
    answers(scripted, chosen=["429/0.05", "malformed", "ok"], rejected=["500", "hang", "ok"])
    with asker(scripted, loud, timeout=1.0) as ask:
        assert NewPairs(Recipe(), ASKED).make(ask) == expected
    assert scripted.asked["chosen Last"] == scripted.asked["rejected Last"] == 3


def test_faults_that_stay_are_named_and_only_they_are_asked_again(scripted, tmp_path):
    answers(scripted, **{"rejected Last": ["500", "500", "ok"]})
    with asker(scripted, tmp_path, retries=1) as ask, pytest.raises(DataError) as error:
        NewPairs(Recipe(), ASKED).make(ask)
    assert error.value.reason == "no reply" and "p7 rejected: status 500" in str(error.value)
    before = dict(scripted.asked)
    with asker(scripted, tmp_path, retries=1) as ask:
        assert len(NewPairs(Recipe(), ASKED).make(ask)) == 2
    again = {name for name in before if scripted.asked[name] > before[name]}
    assert again == {"rejected Last", "chosen Long"}  # and what the server refused


def test_where_money_ends_the_pairs_that_are_whole_are_kept(scripted, tmp_path):
    limits = AskingLimits(
        price_per_million={"prompt": 1.0, "completion": 10.0},
        spend_limit=0.02,
        on_spend_limit="keep",
    )
    asked = [{**ASKED[0], "prompt_id": f"p{n}", "prompt": f"Say {n}."} for n in range(40)]
    for side in ("chosen", "rejected"):
        scripted.lines |= {f"{side} Say {n}.": f"{side} " * 40 for n in range(40)}
    pairs = NewPairs(Recipe(), asked)
    with asker(scripted, tmp_path, limits) as ask:
        made = pairs.make(ask)
        assert ask.budget.spent()["money"] <= 0.02 and ask.budget.reached
    left = reasons(pairs.report)["not asked: the spend limit"]
    assert 0 < len(made) < 40 and len(made) + left == 40
    assert len(scripted.asked) <= 2 * len(made) + 4  # hardly a reply is half of a pair


# ---- a judge


def test_pairs_that_a_judge_sees_otherwise_are_dropped_with_its_scores():
    given = [
        {
            "prompt_id": str(n),
            "prompt": "?",
            "chosen": [{"content": "a"}],
            "rejected": [{"content": "b"}],
        }
        for n in range(4)
    ]
    scores = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.4, 2.0)]
    kept, dropped, report = filter_pairs(given, lambda prompts, answers: scores, 0.5)
    assert [(row["prompt_id"], row["score_chosen"], row["score_rejected"]) for row in kept] == [
        ("0", 3.0, 1.0)
    ]
    assert reasons(report) == {
        "the judge sees it the other way round": 1,
        "a tie": 1,
        "closer than least_margin": 1,
    }
    assert [(row["prompt_id"], row["score_rejected"]) for row in dropped] == [
        ("1", 3.0),
        ("2", 2.0),
        ("3", 2.0),
    ]
    assert len(filter_pairs(given, lambda *_: scores)[0]) == 2  # without a margin a tie is dropped


# ---- the stage


def experiment(folder, faulty, *stages, name="made", **given):
    parameters = {
        "server": {
            "model": "m",
            "base_url": faulty.client().base_url,
            "key_env": "FAKE_KEY",
            "concurrency": 4,
        },
        "limit": 50,
        "new_prompts": 16,
        "validation_prompts": 4,
        **given,
    }
    made = {"pairs": {"pipeline": "synthesize", "parameters": parameters}}
    short = {
        "method": "dpo",
        "model": "data/tiny/base",
        "dataset": "stage:pairs",
        "max_steps": 2,
        "batch_size": 4,
    }
    made |= {stage: {"pipeline": "preference", "parameters": short} for stage in stages}
    return write_text(folder / f"{name}.yaml", yaml.safe_dump({"experiment": name, "stages": made}))


def test_a_stage_makes_pairs_and_the_next_learns_from_them(scripted, tmp_path):
    config = experiment(
        tmp_path,
        scripted,
        "dpo",
        reward="gold",
        least_margin=0.25,
        price_per_million={"prompt": 1.0, "completion": 2.0},
    )
    folders = run(config, output_root=tmp_path / "runs", progress="quiet")
    folder, info = folders["pairs"], open_run(folders["pairs"]).info
    kept = datasets.load_from_disk(str(folder / "checkpoint"))
    assert set(kept) == {"train", "validation"}
    # every row as it was judged
    for row in [*kept["train"], *kept["validation"]]:
        asked = row["prompt"][0]["content"]
        for side in ("chosen", "rejected"):
            earned = gold_reward(asked, row[side][0]["content"]).total
            assert row[f"score_{side}"] == pytest.approx(earned)
        assert row["score_chosen"] - row["score_rejected"] >= 0.25
        assert row["lineage"]["model"] == "m" and len(row["lineage"]["seeds"]) == 4
    # the account, and what is left out
    data, dropped = info["data"], read_jsonl(folder / "dropped.jsonl")
    assert data["prompts"]["kept"] == 16 == data["answers"]["read"]
    assert data["judged"]["kept"] == len(kept["train"]) + len(kept["validation"])
    steps = ("replies", "prompts", "answers", "judged")
    assert len(dropped) == sum(data[step]["dropped_rows"] for step in steps) > 0
    parts = {one["part"]: one for one in info["metrics"]["synthesize"]}
    assert parts["train"]["pairs"] == len(kept["train"]) and parts["validation"]["prompts"] == 4
    spent = info["metrics"]["spent"]
    assert spent["tries"] == sum(scripted.asked.values()) and spent["estimated"] == 0
    made = [scripted.says(scripted.asks(body)[0], body)[2] for body in scripted.bodies]
    assert spent["completion_tokens"] == sum(each["completion_tokens"] for each in made)
    assert info["model"]["recipe"]["preferred"] == {"temperature": 0.7, "max_tokens": 800}
    # the card
    _, front, text = (folder / "checkpoint/README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "other" and front["source_datasets"] == ["tiny-world"]
    criteria = info["model"]["recipe"]["criteria"]
    for told in ("`m`", criteria, "| preferred answers | 0.7 | 800 |", "reward `gold`", "0.25"):
        assert told in text, told
    assert f"{spent['money']:.6g} ({spent['prompt_tokens']:,} +" in text and "terms of" in text
    assert "the judge sees it the other way round" in text or "a tie" in text or "closer" in text
    assert KEY not in text and KEY not in json.dumps(info)
    # the next stage
    told = open_run(folders["dpo"]).info["data"]["train"]
    assert told["source"] == "pairs/checkpoint" and told["kept"] == len(kept["train"])
    assert open_run(folders["dpo"]).info["metrics"]["steps"] == 2


def test_with_a_higher_limit_it_goes_on_and_asks_nothing_twice(scripted, tmp_path):
    prices = {
        "price_per_million": {"prompt": 1.0, "completion": 10.0},
        "prompting": {"max_tokens": 100},
        "seed": 1,
    }
    low = experiment(tmp_path, scripted, **prices, spend_limit=0.012)
    with pytest.raises(PrefkitError, match="spend_limit 0.012: the next request could pass it"):
        run(low, output_root=tmp_path / "runs", progress="quiet")
    before = dict(scripted.asked)
    assert before and set(before.values()) == {1}
    high = experiment(tmp_path, scripted, **prices, spend_limit=3.0)
    folder = run(high, output_root=tmp_path / "runs", progress="quiet")["pairs"]
    assert set(scripted.asked.values()) == {1} and len(scripted.asked) > len(before)
    spent = open_run(folder).info["metrics"]["spent"]
    assert spent["tries"] == len(scripted.asked) and spent["money"] > 0.0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_asks_nothing_twice(scripted, tmp_path):
    config = experiment(tmp_path, scripted, new_prompts=60, seed=2)
    scripted.delay = 0.05
    words = [sys.executable, "-m", "prefkit.cli", "run", str(config)]
    words += ["--output-root", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while sum(scripted.asked.values()) < 40 and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    time.sleep(2)  # the kernel ends with its parent
    [store] = (Path(os.environ["PREFKIT_CACHE"]) / "synthesized").rglob("replies.jsonl")
    scripted.delay, first = 0.0, dict(scripted.asked)
    kept = len([line for line in store.read_bytes().split(b"\n")[:-1]])
    assert 30 < kept < 126
    run(config, output_root=tmp_path / "runs", progress="quiet")
    twice = [name for name, count in scripted.asked.items() if count > 1]
    assert len(twice) <= sum(first.values()) - kept <= 4  # what was under way


ASKING = """
import sys
from pathlib import Path
from prefkit.judging.budget import AskingLimits, Budget
from prefkit.judging.served import Served
from prefkit.judging.synthesis import Asker, NewPairs, Recipe
lineage = {"model": "m", "request": "prompts 0"}
asked = [{"prompt_id": f"p{n}", "prompt": f"Say {n}.", "lineage": lineage} for n in range(40)]
home = Path(sys.argv[2])
server = Served("m", sys.argv[1], key_env="", concurrency=4)
with Budget(AskingLimits(), home / "spent.jsonl") as budget:
    NewPairs(Recipe(), asked).make(Asker(server, home / "replies.jsonl", budget))
"""


def test_killed_while_answers_come_it_asks_only_for_what_is_missing(scripted, tmp_path):
    scripted.lines |= {
        f"{side} Say {n}.": f"{side} {n}" for side in ("chosen", "rejected") for n in range(40)
    }
    scripted.delay = 0.05
    words = [sys.executable, "-c", ASKING, scripted.client().base_url, str(tmp_path)]
    running = subprocess.Popen(words, cwd=ROOT)
    deadline = time.monotonic() + 200
    while sum(scripted.asked.values()) < 25 and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    time.sleep(0.3)
    kept = {record["id"] for record in read_jsonl(tmp_path / "replies.jsonl")}
    assert 10 < len(kept) < 80
    scripted.delay, first = 0.0, sum(scripted.asked.values())
    asked = [{**ASKED[0], "prompt_id": f"p{n}", "prompt": f"Say {n}."} for n in range(40)]
    with asker(scripted, tmp_path) as ask:
        assert len(NewPairs(Recipe(), asked).make(ask)) == 40
    assert sum(scripted.asked.values()) == 80 + first - len(kept) and first - len(kept) <= 4


@pytest.mark.parametrize(
    "given, field",
    [
        ({"server": {"model": "m"}}, "server"),
        ({"server": {"model": "m", "base_url": "nowhere"}}, "base_url"),
        ({"server": {"model": "stand-in"}, "dataset": "ultrafeedback_binarized"}, "server"),
        ({"server": "m"}, "server"),
        ({"split": "tst"}, "split"),
        ({"held_out": ["tst"]}, "split"),
        ({"new_prompts": 0}, "new_prompts"),
        ({"validation_prompts": 16}, "validation_prompts"),
        ({"criteria": " "}, "criteria"),
        ({"preferred": {"max_token": 3}}, "preferred.max_token"),
        ({"preferred": {"max_tokens": 0}}, "preferred.max_tokens"),
        ({"prompting": {"seeds": 0}}, "prompting.seeds"),
        ({"near": 0.0}, "near"),
        ({"on_bad_rows": "drp"}, "on_bad_rows"),
        ({"spend_limit": 1.0}, "price_per_million"),
        ({"on_spend_limit": "stop"}, "on_spend_limit"),
        ({"requests_per_minute": -1.0}, "requests_per_minute"),
        ({"reward": "gld"}, "reward"),
        ({"reward": "countdown"}, None),
        ({"reward": "gold", "judge": {"second": {}}}, "judge"),
        ({"judge": {"gold": {}, "second": {}}}, "judge"),
        ({"reward_options": {"scale": 2.0}}, "reward"),
        ({"least_margin": -1.0}, "least_margin"),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_anybody_is_asked(
    given, field, scripted, tmp_path
):
    from prefkit.runs.fingerprints import check_stage

    config = experiment(tmp_path, scripted, **given)
    with pytest.raises(PrefkitError, match="^stage pairs: ") as error:
        check_stage(load_config(config).stages[0])
    assert field is None or error.value.field == field
    assert not scripted.asked


def test_a_server_that_is_away_is_known_before_anything_runs(scripted, tmp_path):
    from prefkit.runs.fingerprints import reach_stage

    away = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "key_env": "", "retries": 0}
    config = experiment(tmp_path, scripted, server=away)
    with pytest.raises(ConfigError, match="stage pairs: server: .*cannot be asked"):
        reach_stage(load_config(config).stages[0])


def test_a_plan_takes_pairs_that_are_still_to_be_made(scripted, tmp_path):
    config = experiment(tmp_path, scripted, "dpo")
    assert load_config(config).stages[1].needs == ("pairs",)
    assert "the longest allowed" in "\n".join(plan_lines(str(config), (), ("L4",)))


def test_the_config_for_an_l4_has_the_report_s_numbers():
    text = (ROOT / "data/configs/l4/synthetic_dpo.yaml").read_text(encoding="utf-8")
    stages = {
        one.name: one.parameters
        for one in load_config(ROOT / "data/configs/l4/synthetic_dpo.yaml").stages
    }
    pairs = stages["pairs"]
    assert (pairs["server"]["model"], pairs["new_prompts"]) == ("gpt-4.1-mini", 2500)
    assert pairs["preferred"] == {"temperature": 0.7, "max_tokens": 800}
    assert pairs["dispreferred"] == {"temperature": 0.9, "max_tokens": 400}
    for words in ("fluency, relevance", "Basic Interactions", "Adversarial", "Multi-turn"):
        assert words.lower() in pairs["criteria"].lower()
    synthetic, real = stages["dpo_synthetic"], stages["dpo_ultrafeedback"]
    assert synthetic["dataset"] == "stage:pairs" and real["limit"] == 2500
    differs = {name for name in synthetic if synthetic[name] != real[name]}
    assert differs == {"dataset", "limit", "validation_dataset"}
    # a value says where it is from
    lines = [line for line in text.splitlines() if re.match(r"      \w+: [^&]", line)]
    silent = [line for line in lines if "section" not in line and "ours" not in line]
    assert not silent, "\n".join(silent)


@pytest.mark.slow
def test_the_page_s_command_runs_as_it_stands(tmp_path):
    "With the stand-in for a server, which the card and the output say."
    words = ["run", "data/configs/tiny/synthetic_dpo.yaml", "--output-root", str(tmp_path)]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "prefkit.cli", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "synthetic_dpo" / "pairs"
    for text in (done.stdout, (folder / "checkpoint/README.md").read_text()):
        assert "is no language model" in text
    assert open_run(folder.with_name("dpo")).info["metrics"]["steps"] == 6
    page = (ROOT / "nbs/tutorials/pairs_from_an_api.ipynb").read_text(encoding="utf-8")
    assert f"prefkit {' '.join(words[:2])}" in page


# ---- a real server

SMOLLM2 = ROOT / "data/models/smollm2"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    "`transformers serve` with SmolLM2 on loopback."
    if not SMOLLM2.is_dir():
        pytest.skip("data/models/smollm2 is not there: prefkit model smollm2 fetches it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+")
    words = ["serve", str(SMOLLM2), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--device", "cpu", "--dtype", "float32"]
    command = [str(Path(sys.executable).parent / "transformers"), *words]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, Path(
                log.name
            ).read_text()
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.slow
def test_a_real_model_makes_pairs(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # short answers: each token takes a while on a CPU
    seeds = [
        "What is the capital of France? Answer in one sentence.",
        "Name one thing that bees make. Answer in one sentence.",
        "Why is the sky blue? Answer in one sentence.",
    ]
    file = write_text(
        tmp_path / "seeds.jsonl", "".join(json.dumps({"prompt": text}) + "\n" for text in seeds)
    )
    server = {
        "model": str(SMOLLM2),
        "base_url": smollm2,
        "key_env": "",
        "engine": "transformers",
        "concurrency": 2,
        "timeout": 600.0,
    }
    stages = {
        "pairs": {
            "pipeline": "synthesize",
            "parameters": {
                "server": server,
                "dataset": str(file),
                "held_out": [],
                "new_prompts": 4,
                "validation_prompts": 0,
                "prompting": {"seeds": 2, "prompts": 4, "max_tokens": 150, "temperature": 0.5},
                "preferred": {"max_tokens": 100},
                "dispreferred": {"max_tokens": 100},
                "reward": "text",
            },
        }
    }
    config = write_text(
        tmp_path / "real.yaml", yaml.safe_dump({"experiment": "real", "stages": stages})
    )
    folder = run(config, output_root=tmp_path / "runs", progress="quiet")["pairs"]
    kept, info = datasets.load_from_disk(str(folder / "checkpoint")), open_run(folder).info
    assert len(kept["train"]) > 0 and info["metrics"]["spent"]["completion_tokens"] > 0
    for row in kept["train"]:
        assert row["chosen"][0]["content"].strip() != row["rejected"][0]["content"].strip()
        assert row["prompt"][0]["content"] not in seeds
    for name in ("replies", "prompts", "answers"):
        print(info["data"][name]["text"])
    print(info["metrics"], *kept["train"].select(range(min(3, len(kept["train"])))), sep="\n")
