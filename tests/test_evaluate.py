"""The evaluation pipeline: what it asks, whom, in which ways; refused before anything starts where
it cannot be; through servers, nothing asked twice.
"""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from prefkit.core import ConfigError, DataError, read_jsonl, write_jsonl, write_text
from prefkit.data.records import load_records
from prefkit.data.world import read_request
from prefkit.runs.pipelines import (
    check_evaluation,
    check_shape,
    decoding_ways,
    evaluation_prompts,
)
from prefkit.runs.runner import open_run, run
from prefkit.runs.stage import StageError

ROOT = Path(__file__).resolve().parents[1]
GOOD = dict(
    models={"a": "data/tiny/base", "b": "data/tiny/base"},
    references=[],
    judges={"gold": {}},
    dataset="tiny-world",
    split="test",
    prompts=8,
    batch_size=4,
    seed=0,
    decodings={},
    token_limits=[],
    temperature=0.6,
    top_p=0.95,
    max_new_tokens=16,
)
SERVER = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}


def test_ways_are_every_decoding_with_every_limit():
    asked = dict(seed=3, temperature=0.6, top_p=0.95, max_new_tokens=16)
    assert decoding_ways({}, [], **asked) == [
        {"sampling": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 16, "seed": 3}}
    ]
    ways = decoding_ways(
        {"warm": {"temperature": 1.0, "top_p": 1.0}, "beam": "beam", "plain": {"temperature": 0.0}},
        [8, 32],
        **asked,
    )
    assert [(way["decoding"], way["token_limit"]) for way in ways] == [
        (name, limit) for name in ("warm", "beam", "plain") for limit in (8, 32)
    ]
    assert ways[2]["sampling"] == {"beams": 4, "length_penalty": 0.9, "max_new_tokens": 8} and ways[
        5
    ]["sampling"] == {"temperature": 0.0, "max_new_tokens": 32}


def refused(change):
    with pytest.raises((ConfigError, DataError)) as error:
        check_evaluation(**{**GOOD, **change})
    return error.value


@pytest.mark.parametrize(
    "change, field, reason",
    [
        ({"models": {}}, "models", "missing"),
        ({"models": {"a": {"model": "m"}}}, "models.a", "no server"),
        ({"models": {"a": {**SERVER, "key": "x"}}}, "models.a", "no server"),
        ({"models": {"a": {**SERVER, "base_url": "nowhere"}}}, "models.a", "no server"),
        ({"references": ["c"]}, "references", "unknown"),
        ({"references": ["b"]}, "references", "nothing to compare"),
        ({"judges": {}}, "judges", "missing"),
        ({"judges": {"gold": 5}}, "judges.gold", "wrong type"),
        ({"judges": {"gold": {"kind": "second"}}}, "judges.gold", "name is taken"),
        (
            {"dataset": "ultrafeedback_binarized"},
            "judges.gold",
            "cannot judge these prompts",
        ),
        ({"decodings": {"x": "best"}}, "decodings.x", "unknown"),
        ({"decodings": {"x": 4}}, "decodings.x", "wrong type"),
        ({"prompts": 99999}, "prompts", "out of range"),
        ({"prompts": 0}, "prompts", "out of range"),
        ({"split": "tst"}, "split", "no such split"),
        ({"dataset": "ultrafeedback_binarized", "batch_size": 0}, "batch_size", "out of range"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, field, reason):
    error = refused(change)
    assert (error.field, error.reason) == (field, reason)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"models": {}}, "models: name at least one"),
        ({"models": {"a": {"model": "m"}}}, "models, a: .*base_url"),
        ({"models": {"a": {**SERVER, "key": "x"}}}, "models, a: .*key"),
        ({"models": {"a": {**SERVER, "base_url": "nowhere"}}}, "models, a: base_url"),
        ({"references": ["c"]}, "references: 'c' is none"),
        ({"references": ["b"]}, "stands after every other"),
        ({"judges": {}}, "judges: name at least one"),
        ({"judges": {"golden": {}}}, "no judge `golden`"),
        ({"judges": {"gold": 5}}, "judges, gold: give options"),
        (
            {"judges": {"gold": {"kind": "second"}}},
            "gold is the name of the tiny world's true reward",
        ),
        ({"judges": {"api": {"kind": "reward_api", "api_key": "x"}}}, "A key is never an option"),
        ({"judges": {"pair": {"kind": "pairwise"}}}, "model"),
        ({"dataset": "ultrafeedback_binarized"}, "judges, gold: it knows the tiny world only"),
        ({"decodings": {"x": "best"}}, "decodings, x: 'best' is none of"),
        ({"decodings": {"x": 4}}, "decodings, x: give settings"),
        ({"decodings": {"x": {"heat": 1.0}}}, "decodings, x: heat"),
        ({"token_limits": [0]}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"prompts": 99999}, "prompts: the test split has"),
    ],
)
def test_each_message_says_what_and_how_to_mend_it(change, says):
    assert re.search(says, str(refused(change)))


def test_good_settings_pass_and_nobody_is_asked():
    check_evaluation(**GOOD)
    check_evaluation(
        **{
            **GOOD,
            "models": {"a": "data/tiny/base", "far": SERVER},
            "dataset": "ultrafeedback_binarized",
            "judges": {
                "nemotron": {"kind": "reward_api"},
                "gpt": {"kind": "pairwise", "model": "gpt", "base_url": "http://127.0.0.1:9/v1"},
            },
        }
    )


def test_prompts_of_other_data_keep_their_ids_and_too_few_are_an_error(tmp_path):
    file = write_jsonl(
        tmp_path / "asked.jsonl",
        [{"prompt": f"What is {i}?", "prompt_id": f"p{i}"} for i in range(3)],
    )
    asked = evaluation_prompts(str(file), "train", 3)
    assert [row["prompt_id"] for row in asked] == ["p0", "p1", "p2"] and asked[0]["prompt"][-1] == {
        "role": "user",
        "content": "What is 0?",
    }
    with pytest.raises(DataError, match="3 that can be asked, 4 are wanted"):
        evaluation_prompts(str(file), "train", 4)


class Chat(BaseHTTPRequestHandler):
    """Answers questions; as a reward model it likes long answers, as a pairwise judge the first
    place. The first judgement of p2's answer fails.
    """

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, last = json.dumps(body["messages"]), body["messages"][-1]
        self.server.asked.append((body["model"], text))
        if last["role"] == "assistant" and "What is 2?" in text and not self.server.mended:
            reply = "no idea"
        elif last["role"] == "assistant":
            reply = f"reward:{len(last['content']) / 10}"
        elif body["model"] == "judge":
            reply = "Verdict: A"
        else:
            reply = "It is " + last["content"].split()[-1].rstrip("?") + ", I am told."
        data = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": reply},
                    }
                ],
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_servers_answer_and_judge_and_a_second_run_asks_for_the_rest_alone(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    server.asked, server.mended = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFKIT_TEST_KEY", secret := "sk-very-secret-0123456789")
    at = {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "key_env": "PREFKIT_TEST_KEY"}
    file = write_jsonl(
        tmp_path / "asked.jsonl",
        [{"prompt": f"What is {i}?", "prompt_id": f"p{i}"} for i in range(4)],
    )
    given = {
        "models": {"here": "data/tiny/base", "there": {"model": "m", **at}},
        "dataset": str(file),
        "split": "train",
        "prompts": 4,
        "max_new_tokens": 12,
        "judges": {
            "reward": {"kind": "reward_api", "retries": 0, **at},
            "pair": {"kind": "pairwise", "model": "judge", **at},
        },
    }
    config = write_text(
        tmp_path / "e.yaml",
        json.dumps(
            {
                "experiment": "e",
                "stages": {"evaluate": {"pipeline": "evaluate", "parameters": given}},
            }
        ),
    )
    with pytest.raises(
        (DataError, StageError), match="(?s)p2.*no idea.*only these are asked again"
    ):
        run(config, (), tmp_path / "runs", "quiet")
    before, server.mended = len(server.asked), True
    found = open_run(run(config, (), tmp_path / "runs", "quiet")["evaluate"])
    server.shutdown()
    twice = [text for (_, text), times in Counter(server.asked).items() if times > 1]
    # the one that failed, and nothing else
    assert (
        len(server.asked) > before
        and len(twice) == 1
        and "What is 2?" in twice[0]
        and "assistant" in twice[0]
    )
    assert sum(model == "m" for model, _ in server.asked) == 4
    wins = {row["judge"]: row for row in found.info["metrics"]["win_rates"]}
    rows = read_jsonl(found.path / "generations.jsonl")
    longer = [len(there["answer"]) > len(here["answer"]) for here, there in zip(rows[:4], rows[4:])]
    # always the first place: both orders cancel
    assert wins["reward"]["rate"] == sum(longer) / 4 and wins["pair"]["rate"] == 0.5
    assert (
        found.info["metrics"]["position_bias"][0]["first"] == 1.0
        and found.info["metrics"]["position_bias"][0]["inconsistent"] == 1.0
    )
    assert {row["prompt"] for row in read_jsonl(found.path / "leaderboard" / "there.jsonl")} == {
        f"What is {i}?" for i in range(4)
    }
    assert json.loads((found.path / "alpaca_eval" / "there.json").read_text())[0][
        "generator"
    ] == "there" and list(found.path.glob("win_rates_*.png"))
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def test_the_world_of_long_answers_asks_four_kinds_of_request_and_is_judged():
    rows = load_records("tiny-world-long", kind="pairs", limit=400).rows
    kinds = {read_request(row["prompt"][-1]["content"]).kind for row in rows}
    assert kinds == {"count", "story", "sort", "two_step"}
    words = lambda rows: np.mean([len(row["chosen"][-1]["content"].split()) for row in rows])
    plain = load_records("tiny-world", kind="pairs", limit=400).rows
    assert words(rows) > 1.4 * words(plain)
    asked = evaluation_prompts("tiny-world-long", "test", 300)
    assert len(asked) == 300 and {row["kind"] for row in asked} == kinds
    given = GOOD | {"dataset": "tiny-world-long", "judges": {"gold": {}, "second": {}}}
    check_evaluation(**given | {"prompts": 300})
    with pytest.raises(ConfigError, match="the test split has 2087 prompts, 3000 are wanted"):
        check_evaluation(**given | {"prompts": 3000})


def test_rounds_of_the_same_settings_have_seeds_of_their_own():
    rounds = {f"round_{n}": {"temperature": 1.0, "seed": n} for n in (1, 2)}
    options = dict(token_limits=[], seed=7, temperature=0.6, top_p=1.0, max_new_tokens=8)
    assert [way["sampling"]["seed"] for way in decoding_ways(rounds, **options)] == [1, 2]
    plain = decoding_ways({"sampled": {"temperature": 1.0}}, **options)
    assert plain[0]["sampling"]["seed"] == 7


@pytest.mark.parametrize(
    "shape, said",
    [
        ({"hiden_size": 64}, "there is no 'hiden_size'. Did you mean `hidden_size`"),
        ({"num_hidden_layers": 0}, "shape.num_hidden_layers is 0"),
        ({"hidden_size": 60, "num_attention_heads": 8}, "do not go together"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "do not go together"),
    ],
)
def test_a_shape_that_is_no_model_is_refused(shape, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_shape(shape)


def test_a_shape_that_is_one_is_not():
    check_shape({})
    check_shape({"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3})
