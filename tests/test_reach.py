"Who is asked later is asked once at the start: without an answer a run does not begin."

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from prefkit.core import ConfigError, PrefkitError, write_text
from prefkit.judging.judges import Judge, make_judge, reach_judge, register_judge
from prefkit.judging.rewards import RewardSource, register_reward
from prefkit.judging.served import Served, reach
from prefkit.runs.pipelines import reach_rewards, reach_servers
from prefkit.runs.runner import run


class Handler(BaseHTTPRequestHandler):
    "Answers GET and POST with what `server.replies` says, (status, body); notes who asked what."

    def answer(self, what):
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.asked.append((what, self.path, body))
        status, reply = self.server.replies.get(what, (501, {}))
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer("list")

    def do_POST(self):
        self.answer("chat")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.replies = [], {}
    made.at = f"http://127.0.0.1:{made.server_port}/v1"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/v1"


LIST = (200, {"data": [{"id": "m"}, {"id": "other"}]})
YES = (200, {"choices": [{"message": {"content": "Yes"}, "finish_reason": "length"}]})
NO_MODEL = (404, {"error": {"message": "no model x"}})


@pytest.mark.parametrize(
    "model, replies, asked",
    [
        ("m", {"list": LIST}, ["list"]),  # vLLM, OpenAI
        ("alias", {"list": LIST, "chat": YES}, ["list", "chat"]),  # proxies list some only
        ("m", {"list": (404, {}), "chat": YES}, ["list", "chat"]),
        ("m", {"list": (200, "pong"), "chat": YES}, ["list", "chat"]),
        ("m", {"list": (500, {}), "chat": YES}, ["list", "chat"]),  # transformers serve
        ("m", {"list": (405, {})}, ["list"]),
        ("m", {"list": (501, {})}, ["list"]),
        ("m", {"list": (429, {"error": {"message": "slowly"}})}, ["list"]),
        ("m", {"list": (404, {}), "chat": (400, {"error": "a reward model"})}, ["list", "chat"]),
    ],
)
def test_a_server_that_answers_passes_and_pays_for_a_token_at_most(server, model, replies, asked):
    server.replies = replies
    reach(Served(model, server.at))
    assert [what for what, *_ in server.asked] == asked
    assert all(body["max_tokens"] == 1 for what, _, body in server.asked if what == "chat")


@pytest.mark.parametrize(
    "replies, field, reason",
    [
        ({"list": (401, {})}, "key_env", "key refused"),
        ({"list": (403, {})}, "key_env", "key refused"),
        ({"list": (404, {}), "chat": (401, {})}, "key_env", "key refused"),
        ({"list": (503, {"error": {"message": "loading"}})}, "base_url", "unreachable"),
        ({"list": (500, {}), "chat": (500, {})}, "base_url", "unreachable"),
        ({"list": (404, {}), "chat": (502, {})}, "base_url", "unreachable"),
        ({"list": (404, {}), "chat": (200, {"error": "down"})}, "base_url", "unreachable"),
        ({"list": (404, {}), "chat": NO_MODEL}, "model", "no such model"),
        ({"list": LIST, "chat": NO_MODEL}, "model", "no such model"),
        (
            {"list": (429, {"error": {"code": "insufficient_quota", "message": "empty"}})},
            "base_url",
            "unreachable",
        ),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_reason(server, replies, field, reason):
    server.replies = replies
    with pytest.raises(ConfigError) as error:
        reach(Served("x", server.at))
    assert (error.value.field, error.value.reason) == (field, reason)
    assert server.at in str(error.value) and "'x'" in str(error.value)


def test_nobody_there_is_known_at_once():
    address, start = free_address(), time.monotonic()
    with pytest.raises(ConfigError, match="cannot be asked.*no connection.*Start the server"):
        reach(Served("m", address))
    assert time.monotonic() - start < 5


def test_a_server_that_never_answers_is_waited_for_once():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match="no reply within 0.3 seconds"):
            reach(Served("m", address, timeout=0.3))


class Away(Judge):
    def reach(self):
        raise ConfigError("nobody is at home.", field="judge", reason="unreachable")


class AwayReward(RewardSource):
    name = "away_reward"

    def reach(self):
        raise ConfigError("nobody is at home.", field="reward", reason="unreachable")


def test_every_judge_and_reward_can_say_that_it_is_away():
    from dataclasses import dataclass

    register_judge("away", dataclass(Away))
    register_reward("away_reward", dataclass(kw_only=True)(AwayReward))
    reach_judge("gold")  # in this process
    make_judge("pairwise", model="m", ask=len).reach()  # a function in place of the server
    with pytest.raises(ConfigError, match="judges, mine: nobody is at home"):
        reach_servers({}, {"gold": {}, "mine": {"kind": "away"}})
    with pytest.raises(ConfigError, match="judges, away_reward: nobody"):
        reach_rewards("gold", {}, ["away_reward"])
    with pytest.raises(ConfigError, match="reward: nobody"):
        reach_rewards("away_reward", {}, [])


TRAINS = {"pipeline": "sft", "parameters": {"model": "data/tiny/base", "limit": 8}}


def evaluation(**change):
    models = {"base": "data/tiny/base", "sft": "stage:sft"}
    given = {"models": models, "judges": {"gold": {}}, "prompts": 8, "max_new_tokens": 4}
    return {"pipeline": "evaluate", "parameters": {**given, **change}}


@pytest.mark.parametrize("what", ["judge", "reward model", "answers"])
def test_a_run_whose_last_stage_needs_a_server_does_not_begin_without_it(tmp_path, what):
    at = {"model": "m", "base_url": free_address()}
    change, said = {
        "judge": ({"judges": {"gpt": {"kind": "pairwise", **at}}}, "judges, gpt"),
        "reward model": ({"judges": {"r": {"kind": "reward_api", **at}}}, "judges, r"),
        "answers": ({"models": {"base": "data/tiny/base", "far": at}}, "models, far"),
    }[what]
    stages = {"sft": TRAINS, "evaluate": evaluation(**change)}
    config = write_text(tmp_path / "e.yaml", json.dumps({"experiment": "e", "stages": stages}))
    with pytest.raises(PrefkitError, match=f"stage evaluate: {said}: {at['base_url']}"):
        run(config, (), tmp_path / "runs", "quiet")
    assert not list((tmp_path / "runs").rglob("*sft*"))


def test_what_is_done_needs_no_server(tmp_path, server):
    "A finished stage is not run again, so nobody is asked for it."
    server.replies = {"list": LIST, "chat": (200, {**YES[1], "usage": {"completion_tokens": 1}})}
    far = {"model": "m", "base_url": server.at}
    stages = {"evaluate": evaluation(models={"far": far, "base": "data/tiny/base"})}
    config = write_text(tmp_path / "e.yaml", json.dumps({"experiment": "e", "stages": stages}))
    run(config, (), tmp_path / "runs", "quiet")
    asked, server.replies = len(server.asked), {"list": (503, {})}
    run(config, (), tmp_path / "runs", "quiet")
    assert len(server.asked) == asked
