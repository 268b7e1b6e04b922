"""AskingLimits on what asking costs: what a server counts never passes them, whatever it does, and
whenever the run is killed.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.served import Faulty, serving
from prefkit.core import ConfigError, read_jsonl
from prefkit.judging.budget import AskingLimits, Budget, most_tokens
from prefkit.judging.judges import make_judge
from prefkit.judging.served import Served, ask_all

ROOT = Path(__file__).resolve().parents[1]
PRICES = {"prompt": 2.0, "completion": 10.0}
FAULTS = ("ok", "500 ok", "ok", "429/0.05 ok", "malformed ok", "cut ok", "ok", "hang ok")


class Counting(Faulty):
    "Tells what it took: an answer is from 1 to max_tokens long."

    tells = True

    def says(self, name, body):
        length = 1 + len(name) * 7 % body["max_tokens"]
        usage = {"prompt_tokens": len(name.split()), "completion_tokens": length}
        return "word " * length, "stop", usage if self.tells else None

    def money(self):
        "What it would want, replies that never arrived among them."
        given = [self.says(name, {"max_tokens": 40})[2] for name in self.made]
        prompt, completion = (
            sum(each[f"{name}_tokens"] for each in given) for name in ("prompt", "completion")
        )
        return (prompt * PRICES["prompt"] + completion * PRICES["completion"]) / 1e6


@pytest.fixture()
def counting(monkeypatch):
    monkeypatch.setenv("FAKE_KEY", "a-key-for-the-tests")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Counting()) as server:
        yield server


def asking(count, faults=("ok",)):
    each = zip(range(count), itertools.cycle(faults))
    texts = [f"question {'very ' * (number % 5)}{number}: {fault}" for number, fault in each]
    return {
        text.partition(":")[0]: {"messages": [{"role": "user", "content": text}], "max_tokens": 40}
        for text in texts
    }


def ask(server, requests, folder, limits, **options):
    client = server.client(**{"timeout": 1.0, "concurrency": 8, **options})
    with Budget(limits, folder / "spent.jsonl") as budget:
        found = ask_all(client, requests, folder / "replies.jsonl", budget=budget, quiet=True)
        return *found, budget.spent()


def reserved(requests):
    "The most that one of the requests is set aside for."
    limits = AskingLimits(price_per_million=PRICES)
    return max(limits.money(*most_tokens(body)) for body in requests.values())


def test_what_the_server_counts_never_passes_the_limit_whatever_it_does(counting, tmp_path):
    requests, limit = asking(60, FAULTS), 0.0095
    with pytest.raises(ConfigError, match="raise spend_limit") as error:
        ask(counting, requests, tmp_path, AskingLimits(price_per_million=PRICES, spend_limit=limit))
    assert (error.value.field, error.value.reason) == ("spend_limit", "spend limit reached")
    with Budget(AskingLimits(price_per_million=PRICES), tmp_path / "spent.jsonl") as budget:
        spent = budget.spent()
    kept = len(read_jsonl(tmp_path / "replies.jsonl"))
    for told in (f"Spent: {spent['money']:.6g}", f"spend_limit {limit:g}", f"{60 - kept} requests"):
        assert told in str(error.value), told
    assert counting.money() <= spent["money"] <= limit and 0 < kept < 60
    # it did not stop before it had to
    assert spent["money"] > limit - reserved(requests)
    before = dict(counting.asked)
    replies, failures, spent = ask(
        counting, requests, tmp_path, AskingLimits(price_per_million=PRICES, spend_limit=1.0)
    )
    assert list(replies) == list(requests) and not failures
    assert counting.money() <= spent["money"]
    done = {record["id"] for record in read_jsonl(tmp_path / "replies.jsonl")[:kept]}
    assert len(done) == kept and all(counting.asked[name] == before[name] for name in done)


def test_without_faults_it_is_known_to_the_token(counting, tmp_path):
    requests = asking(30)
    *_, spent = ask(counting, requests, tmp_path, AskingLimits(price_per_million=PRICES))
    assert spent["money"] == pytest.approx(counting.money()) and spent["estimated"] == 0
    assert spent["tries"] == 30 == sum(counting.asked.values())


def test_keep_goes_on_with_what_came_and_says_what_was_not_asked(counting, tmp_path):
    limits = AskingLimits(price_per_million=PRICES, spend_limit=0.004, on_spend_limit="keep")
    replies, failures, spent = ask(counting, asking(40), tmp_path, limits)
    assert 0 < len(replies) < 40 and len(replies) + len(failures) == 40
    assert all(why.startswith("not asked: spend_limit 0.004") for why in failures.values())
    assert counting.money() <= spent["money"] <= 0.004


def test_where_the_server_does_not_tell_the_most_it_may_be_counts(counting, tmp_path):
    counting.tells, requests = False, asking(5)
    *_, spent = ask(counting, requests, tmp_path, AskingLimits(price_per_million=PRICES))
    most = [most_tokens(body) for body in requests.values()]
    assert spent["estimated"] == 5
    assert (spent["prompt_tokens"], spent["completion_tokens"]) == tuple(map(sum, zip(*most)))
    with Budget(AskingLimits(), tmp_path / "spent.jsonl") as budget:
        assert "5 of them counted with the most" in budget.words()


CLIENT = """
import sys
from prefkit.judging.budget import AskingLimits, Budget
from prefkit.judging.judges import make_judge
from prefkit.judging.served import Served, ask_all
requests = {}
for number in range(60):
    message = {"role": "user", "content": f"question {number}: ok"}
    requests[f"question {number}"] = {"messages": [message], "max_tokens": 40}
server = Served("m", sys.argv[1], key_env="", concurrency=6)
limits = AskingLimits(price_per_million={"prompt": 2.0, "completion": 10.0}, spend_limit=1.0)
with Budget(limits, sys.argv[2] + "/spent.jsonl") as budget:
    ask_all(server, requests, sys.argv[2] + "/replies.jsonl", budget=budget, quiet=True)
"""


def test_what_was_under_way_when_a_run_was_killed_counts(counting, tmp_path):
    counting.delay = 0.1
    words = [sys.executable, "-c", CLIENT, counting.client().base_url, str(tmp_path)]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    running = subprocess.Popen(words, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 60
    while sum(counting.asked.values()) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    time.sleep(0.5)  # what was on its way reaches the server
    first, counting.delay = dict(counting.asked), 0.0
    kept = {record["id"] for record in read_jsonl(tmp_path / "replies.jsonl")}
    with Budget(AskingLimits(price_per_million=PRICES), tmp_path / "spent.jsonl") as budget:
        held = budget.spent()
    assert counting.money() <= held["money"] and held["estimated"] <= 6
    assert len(first.keys() - kept) <= 6
    limit = held["money"] + 0.004
    requests = {
        f"question {number}": {
            "messages": [{"role": "user", "content": f"question {number}: ok"}],
            "max_tokens": 40,
        }
        for number in range(60)
    }
    with pytest.raises(ConfigError, match="spend_limit"):
        ask(counting, requests, tmp_path, AskingLimits(price_per_million=PRICES, spend_limit=limit))
    assert counting.money() <= limit
    assert all(counting.asked[name] == 1 for name in kept)


def test_a_server_that_is_away_costs_nothing(tmp_path):
    server = Served("m", "http://127.0.0.1:9/v1", key_env="", retries=0, backoff=0.0)
    with Budget(AskingLimits(price_per_million=PRICES), tmp_path / "spent.jsonl") as budget:
        _, failures = ask_all(
            server, asking(3), tmp_path / "replies.jsonl", budget=budget, quiet=True
        )
        assert len(failures) == 3 and budget.spent()["money"] == 0.0


def starts(server):
    "When tries came in, in order."
    return sorted(at for times in server.times.values() for at in times)


def test_requests_come_as_evenly_as_they_may(counting, tmp_path):
    ask(counting, asking(12, ("ok", "500 ok")), tmp_path, AskingLimits(requests_per_minute=600))
    at = starts(counting)
    gaps = [later - sooner for sooner, later in zip(at, at[1:])]
    assert len(at) == 18 and at[-1] - at[0] >= 17 * 0.1 - 0.05
    # a busy machine may hold one up, and the next come closer
    assert sorted(gaps)[len(gaps) // 4] > 0.08


def test_tokens_a_minute_are_those_that_are_set_aside(counting, tmp_path):
    requests = asking(8)
    tokens = [sum(most_tokens(body)) for body in requests.values()]
    ask(counting, requests, tmp_path, AskingLimits(tokens_per_minute=60 * 10 * min(tokens)))
    at = starts(counting)
    assert at[-1] - at[0] >= 7 * 0.1 - 0.05


def test_the_rate_holds_for_a_run_that_is_started_again(tmp_path):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    for expected in (0.0, 30.0, 60.0):
        with Budget(AskingLimits(requests_per_minute=2), tmp_path / "spent.jsonl") as budget:
            assert budget.slot(body) == pytest.approx(min(expected, 30.0), abs=5)
            budget.reserve(body)


def test_no_more_at_once_than_allowed(counting, tmp_path):
    counting.delay = 0.05
    ask(counting, asking(20), tmp_path, AskingLimits(price_per_million=PRICES), concurrency=3)
    assert counting.most == 3


def test_a_judge_behind_a_server_keeps_limits(counting, tmp_path):
    options = {"model": "m", "base_url": counting.client().base_url, "key_env": "FAKE_KEY"}
    judge = make_judge("reward_api", **options, limits={"requests_per_minute": 600})
    asked = [{"prompt_id": f"{n}", "prompt": "?", "answer": f"word {n}"} for n in range(8)]
    counting.says = lambda name, body: ("reward:1.5", "stop", None)
    assert judge.score(asked, tmp_path / "judged.jsonl").values == [1.5] * 8
    at = starts(counting)
    assert at[-1] - at[0] >= 7 * 0.1 - 0.05
    assert len(read_jsonl(tmp_path / "judged.spent.jsonl")) == 16  # set aside, and what it took
    with pytest.raises(ConfigError, match="requests_per_minute"):
        make_judge("reward_api", **options, limits={"requests_per_minut": 600})


@pytest.mark.parametrize(
    "given, field",
    [
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1.0}, "tokens_per_minute"),
        ({"price_per_million": {"prompt": 1.0}}, "price_per_million"),
        ({"price_per_million": {"prompt": 1.0, "completion": "x"}}, "price_per_million.completion"),
        ({"spend_limit": 1.0}, "price_per_million"),
        ({"spend_limit": 0, "price_per_million": PRICES}, "spend_limit"),
        ({"on_spend_limit": "go"}, "on_spend_limit"),
    ],
)
def test_limits_that_cannot_be_are_refused_by_name(given, field):
    with pytest.raises(ConfigError) as error:
        AskingLimits(**given)
    assert error.value.field == field


def test_a_request_that_may_cost_anything_is_refused(counting, tmp_path):
    requests = {"a": {"messages": [{"role": "user", "content": "a"}]}}
    with pytest.raises(ConfigError, match="Give max_tokens"):
        ask(counting, requests, tmp_path, AskingLimits(price_per_million=PRICES, spend_limit=1.0))
    assert not counting.asked
