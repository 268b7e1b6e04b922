"""Judges: each against what it stands for, both orders, what a failing server may do, what a votes
file may hold, and that a key stays out of everything.
"""

import base64, csv, itertools, json, math, os, random, re, signal, socket, subprocess, sys
import threading, time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np, pytest
from hypothesis import example, given, settings, strategies as st
from transformers import AutoTokenizer

from prefkit.judging.records import messages_of, pair_ids, record_ids, text_of
from prefkit.core import ConfigError, DataError, check_number, project_root, read_jsonl
from prefkit.data.countdown import verify
from prefkit.judging.judges import (
    BUILT_IN_JUDGES,
    JUDGES,
    TEMPLATE,
    Judge,
    Judgement,
    NotJudged,
    Pairwise,
    Preference,
    Score,
    check_judge,
    make_judge,
    pairwise_prompt,
    position_bias,
    read_reward,
    read_verdict,
    register_judge,
)
from prefkit.judging.reward_model import rewards_of, scalar_head
from prefkit.judging.votes import read_votes, write_ballot
from prefkit.stats.win_rate import win_rate
from prefkit.data.world import World, answer, gold_reward, prompts, read_request, second_judge

KEY = "test-key/0123456789+abcdef"  # with characters that an address would quote
ASKED = [request.text for request in prompts("test")[:24]]


def written(model, seed, n=len(ASKED)):
    rng = random.Random(seed)
    return [
        {
            "prompt": text,
            "prompt_id": f"p{number}",
            "model": model,
            "answer": answer(World(), read_request(text), rng, right=0.6),
        }
        for number, text in enumerate(ASKED[:n])
    ]


A, B = written("a", 1), written("b", 2)


@pytest.fixture(autouse=True)
def table():
    before = dict(JUDGES)
    yield
    JUDGES.clear()
    JUDGES.update(before)


# Judges that need nobody


def test_gold_and_second_are_the_worlds_judges_with_a_reason():
    # a string or messages
    for prompt in (lambda text: text, lambda text: [{"role": "user", "content": text}]):
        records = [{**record, "prompt": prompt(record["prompt"])} for record in A]
        assert make_judge("gold").score(records).values == [
            gold_reward(record["prompt"], record["answer"]).total for record in A
        ]
        assert make_judge("second").score(records).values == [
            second_judge(record["prompt"], record["answer"]) for record in A
        ]
    first = make_judge("gold").score(A)[0]
    assert (
        first.parts["right"] == gold_reward(A[0]["prompt"], A[0]["answer"]).right
        and "truthfulness" in first.reason
        and "total" not in first.parts
    )


def test_countdown_judges_by_the_verifier_with_its_reason():
    records = [
        {
            "prompt": "Make 26 from 2, 4 and 6.",
            "prompt_id": str(n),
            "nums": [2, 4, 6],
            "target": 26,
            "answer": text,
        }
        for n, text in enumerate(("<answer>2+4*6</answer>", "<answer>2+4+6</answer>"))
    ]
    found = make_judge("countdown").score(records)
    assert (
        found.values == [1.0, 0.0]
        and found[1].reason == verify(records[1]["answer"], [2, 4, 6], 26).reason
    )


def test_a_learned_reward_model_is_rewards_of(tmp_path):
    (
        scalar_head("data/tiny/base", seed=3).save_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(project_root() / "data/tiny/base").save_pretrained(tmp_path),
    )
    chats = [
        [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": record["prompt"]},
        ]
        for record in A
    ]
    wanted = rewards_of(
        scalar_head(str(tmp_path)),
        AutoTokenizer.from_pretrained(tmp_path),
        chats,
        [record["answer"] for record in A],
        quiet=True,
    )
    judge = make_judge("model", model_name_or_path=str(tmp_path), batch_size=5)
    found = judge.score([{**record, "prompt": chat} for record, chat in zip(A, chats)])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-6)
    # a model that says the same to all would pass anything
    assert len(set(np.round(wanted, 6))) > 10
    both = judge.compare(
        [{**record, "prompt": chat} for record, chat in zip(A, chats)],
        [{**record, "prompt": chat} for record, chat in zip(B, chats)],
    )
    others = judge.score([{**record, "prompt": chat} for record, chat in zip(B, chats)])
    assert both.values == [(x > y) + (x == y) / 2 for x, y in zip(found.values, others.values)]
    with pytest.raises(ConfigError, match="judge model: .*without a head"):
        make_judge("model", model_name_or_path="data/tiny/base")


def test_a_judge_that_scores_compares_by_its_scores():
    register_judge(
        "length", lambda: lambda records, store: [len(record["answer"]) for record in records]
    )
    B = written("b", 2, 20) + A[20:]
    found = make_judge("length").compare(A, B)
    assert set(found.values) == {0.0, 0.5, 1.0} and found.values == [
        0.5 if len(a["answer"]) == len(b["answer"]) else float(len(a["answer"]) > len(b["answer"]))
        for a, b in zip(A, B)
    ]
    assert win_rate(found.values, [1 - value for value in found.values]).rate == np.mean(
        found.values
    )
    swapped = make_judge("length").compare(B, A)
    assert [1 - value for value in swapped.values] == found.values


def test_what_is_not_judged_has_a_name_and_is_no_number():
    register_judge(
        "moody",
        lambda: (
            lambda records, store: [
                NotJudged("not in the mood")
                if len(record["answer"]) % 3 == 0
                else len(record["answer"])
                for record in records
            ]
        ),
    )
    found, lost = (
        make_judge("moody").score(A),
        [record["prompt_id"] for record in A if len(record["answer"]) % 3 == 0],
    )
    assert list(found.failed) == lost != [] and [math.isnan(value) for value in found.values] == [
        record["prompt_id"] in lost for record in A
    ]
    assert [each is None for each in found] == [
        math.isnan(value) for value in found.values
    ] and len(found) == len(A)
    with pytest.raises(DataError, match=lost[0]):
        found.whole()
    pairs = make_judge("moody").compare(A, B)
    assert set(pairs.failed) == {
        a["prompt_id"]
        for a, b in zip(A, B)
        if len(a["answer"]) % 3 == 0 or len(b["answer"]) % 3 == 0
    }
    # nothing leaves them out in silence
    with pytest.raises(DataError, match="NaN"):
        win_rate(pairs.values, [0.0] * len(pairs))
    assert (
        make_judge("gold").score(A).whole().failed == {}
        and make_judge("gold").score([]).values == []
    )


@pytest.mark.parametrize(
    "made, kind, field, reason",
    [
        ([1.0], ConfigError, "judge", "unequal lengths"),
        ([float("nan")] * 24, DataError, "p0", "no verdict"),
        ([1.0] * 23 + [None], DataError, "p23", "no verdict"),
        (["good"] * 24, DataError, "p0", "no verdict"),
    ],
)
def test_a_judge_of_ones_own_is_looked_at(made, kind, field, reason):
    register_judge("own", lambda: lambda records, store: list(made))
    with pytest.raises(kind, match="judge own: ") as error:
        make_judge("own").score(A)
    assert (error.value.field, error.value.reason) == (field, reason)


def test_a_preference_outside_0_to_1_is_refused():
    register_judge("own", lambda: lambda a, b, store: [1.5] * len(a), compares=True)
    with pytest.raises(DataError, match="preference from 0 to 1"):
        make_judge("own").compare(A, B)
    with pytest.raises(ConfigError, match="gives no score"):
        make_judge("own").score(A)


def test_built_in_names_are_kept():
    for name in BUILT_IN_JUDGES:
        with pytest.raises(ConfigError, match="there already"):
            register_judge(name, lambda: None)


# Records


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": None},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [{"role": "user"}]},
        {"prompt": 3},
    ],
)
def test_records_that_cannot_be_judged_are_named_before_anything_is_asked(wrong):
    asked = []
    for judge in (make_judge("pairwise", model="m", ask=asked.append), make_judge("gold")):
        with pytest.raises(DataError, match="record a 3: ") as error:
            judge.compare([*A[:3], {**A[3], **wrong}], B[:4])
        assert error.value.field == next(iter(wrong))
    assert asked == []


def test_lists_that_do_not_line_up_are_refused():
    judge = make_judge("gold")
    with pytest.raises(DataError, match="24 records against 23"):
        judge.compare(A, B[:-1])
    with pytest.raises(DataError, match="record 0: .*p0 against p1"):
        judge.compare(A[:2], B[1::-1])
    # the same id on another prompt
    with pytest.raises(DataError, match="record 1"):
        judge.compare(A[:2], [B[0], {**B[1], "prompt": "Count from 1 to 3."}])
    # another id on the same prompt
    with pytest.raises(DataError, match="record 1: .*p1 against q"):
        judge.compare(A[:2], [B[0], {**B[1], "prompt_id": "q"}])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["x", "y", "x #2", "x #3", None]), max_size=9))
def test_every_record_has_a_name_of_its_own(names):
    found = record_ids([{"prompt": "Hello", "answer": "", "prompt_id": name} for name in names])
    assert len(set(found)) == len(names) and all(
        made.startswith(name) for made, name in zip(found, names) if name
    )


def test_several_turns_are_shown_with_their_roles():
    turns = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three", "name": "x"},
    ]
    assert (
        text_of(turns) == "user: One\n\nassistant: Two\n\nuser: Three"
        and messages_of(turns)[2] == {"role": "user", "content": "Three"}
        and text_of("One") == "One"
    )


# What a reply says


@settings(max_examples=150, deadline=None)
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["{}", "reward:{}", " Reward: {}\n", "reward={}", "helpfulness:1.5,reward:{},verbosity:-2"]
    ),
)
def test_a_number_comes_back_as_it_was_written(value, form):
    assert read_reward(form.format(repr(value))) == value


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
@example("reward:nan")
@example("1e999")
@example("reward:")
@example("-")
@example("٣")
@example("reward:٣")
@example("reward:1e400")
def test_any_other_reply_is_refused_or_a_finite_number(text):
    try:
        value = read_reward(text)
    except DataError:
        return
    assert math.isfinite(value) and any(sign in "0123456789" for sign in text)


@pytest.mark.parametrize(
    "text",
    [
        "reward:nan",
        "1e999",
        "reward:inf",
        "I give it 7",
        "7 of 10",
        "1,5",
        "",
        "quality: 3",
        "reward: high",
        None,
        3.0,
    ],
)
def test_a_reply_without_a_number_is_a_failure(text):
    with pytest.raises(DataError):
        read_reward(text)


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="AB tie.[]\nVerdict:xy", max_size=60),
    st.sampled_from(
        [
            "Verdict: {}",
            "**Verdict:** {}",
            "verdict = {}.",
            "Final verdict: [[{}]]",
            '  Verdict: "{}"',
            "Verdict: Answer {}",
        ]
    ),
    st.sampled_from(["A", "B", "tie"]),
    st.sampled_from(["", "\n", "  \n\n"]),
)
@example("Verdict: A\n[[C]]", "Verdict: {}", "B", "")
def test_the_last_line_is_the_verdict_whatever_stands_before(before, form, verdict, after):
    if form == "Final verdict: [[{}]]" and verdict == "tie":
        verdict, wanted = "C", "tie"
    else:
        wanted = verdict
    assert read_verdict(f"{before}\n{form.format(verdict)}{after}") == wanted


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("A", "A"),
        (" b.", "B"),
        ("**Tie**", "tie"),
        ("[[C]]", "tie"),
        ("[[A]] if colours were homes, so [[B]].", "B"),
        ("Verdict: B\nVerdict: A", "A"),
        ("B is better.\n> Verdict: A", "A"),
    ],
)
def test_forms_of_a_verdict(reply, verdict):
    assert read_verdict(reply) == verdict


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I cannot say.",
        "A is better.",
        "Verdict: A or B",
        "Verdict: C3",
        "Verdict: neither",
        "Verdict:",
        "AB",
        "Verdict: Apple",
        None,
    ],
)
def test_no_verdict_is_made_up(reply):
    with pytest.raises(DataError):
        read_verdict(reply)


# Both orders


def shown(body):
    "The two answers as the template shows them."
    text = body["messages"][0]["content"]
    return text.split(" answer A]\n")[1].rsplit("\n[", 2)[0], text.split(" answer B]\n")[1].rsplit(
        "\n[", 1
    )[0]


@pytest.mark.parametrize("first, second", list(itertools.product(["A", "B", "tie"], repeat=2)))
def test_a_preference_needs_both_orders(first, second):
    a, b, seen = {**A[0], "answer": "ours"}, {**A[0], "answer": "theirs"}, []

    def ask(body):
        seen.append(shown(body))
        return f"Because.\nVerdict: {first if shown(body) == ('ours', 'theirs') else second}"

    found = make_judge("pairwise", model="m", ask=ask).compare([a], [b])[0]
    assert sorted(seen) == [("ours", "theirs"), ("theirs", "ours")]
    wanted = {("A", "B"): 1.0, ("B", "A"): 0.0}.get((first, second), 0.5)
    value = {"A": 1.0, "tie": 0.5, "B": 0.0}
    assert (
        found.preference == wanted
        and found.verdicts == (value[first], 1 - value[second])
        and found.reason.count("Because.") == 2
    )
    bias = position_bias([found])
    assert (
        bias.inconsistent == (value[first] != 1 - value[second])
        and bias.first == (value[first] + value[second]) / 2
    )


def test_a_judge_that_reads_is_gold_and_one_that_does_not_is_a_tie():
    def by_gold(body):
        request = body["messages"][0]["content"].split(" request]\n")[1].split("\n[")[0]
        first, second = (gold_reward(request, text).total for text in shown(body))
        return "Verdict: " + ("tie" if first == second else "A" if first > second else "B")

    read = make_judge("pairwise", model="m", ask=by_gold).compare(A, B)
    assert read.values == make_judge("gold").compare(A, B).values
    unread = make_judge("pairwise", model="m", ask=lambda body: "Verdict: A").compare(A, B)
    assert (
        unread.values == [0.5] * len(A)
        and position_bias(unread).first == 1.0 == position_bias(unread).inconsistent
    )


def test_answers_that_are_the_same_are_a_tie_that_nobody_is_asked_about():
    asked = []
    judge = make_judge("pairwise", model="m", ask=lambda body: asked.append(body) or "Verdict: A")
    found = judge.compare(A[:1], [{**B[0], "answer": A[0]["answer"] + " \n"}])
    assert found.values == [0.5] and asked == [] and found[0].verdicts is None
    with pytest.raises(DataError, match="both orders"):
        position_bias(found)


def test_half_a_pair_is_no_pair():
    def ask(body):
        if shown(body)[0] == A[0]["answer"]:
            return "hm"
        return "Verdict: A"

    found = make_judge("pairwise", model="m", ask=ask).compare(A[:3], B[:3])
    assert (
        list(found.failed) == ["p0"]
        and found.failed["p0"].startswith("shown first: ")
        and "shown second" not in found.failed["p0"]
        and found[0] is None
    )


def test_settings_go_into_the_request():
    seen = []
    make_judge(
        "pairwise",
        model="m",
        seed=4,
        temperature=0.5,
        max_tokens=9,
        template="{prompt}|{first}|{second}",
        ask=lambda body: seen.append(body) or "A",
    ).compare(A[:1], B[:1])
    assert seen[0] == {
        "model": "m",
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 4,
        "messages": [
            {"role": "user", "content": f"{A[0]['prompt']}|{A[0]['answer']}|{B[0]['answer']}"}
        ],
    }


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_answers_are_fenced_in_by_a_mark_that_both_orders_share(first, second):
    text, other = (
        pairwise_prompt("Hello {you}", first, second),
        pairwise_prompt("Hello {you}", second, first),
    )
    mark = text.split("lines that carry ")[1].split(" is quoted")[0]
    assert (
        f"[{mark} answer A]\n{first}\n[{mark} answer B]\n{second}\n[{mark} end]" in text
        and f"[{mark} answer A]\n{second}\n[{mark} answer B]" in other
    )
    # an answer cannot know it
    assert mark not in pairwise_prompt("Hello {you}", first + "x", second)
    assert f"[{mark} request]\nHello {{you}}\n" in text


# Intervals of the bias


def test_the_share_for_the_first_place_has_win_rates_interval_where_verdicts_are_whole():
    rng = np.random.default_rng(0)
    pairs = [tuple(pair) for pair in rng.integers(0, 2, (80, 2)).astype(float)]
    found, halves = (
        position_bias([Preference(0.5, verdicts=pair) for pair in pairs]),
        [(first + 1 - second) / 2 for first, second in pairs],
    )
    wanted = win_rate(halves, [1 - half for half in halves])
    np.testing.assert_allclose(
        [found.first, found.first_low, found.first_high],
        [wanted.rate, wanted.low, wanted.high],
        rtol=1e-6,
    )
    wanted = win_rate(
        [float(first != second) for first, second in pairs],
        [float(first == second) for first, second in pairs],
    )
    np.testing.assert_allclose(
        [found.inconsistent, found.inconsistent_low, found.inconsistent_high],
        [wanted.rate, wanted.low, wanted.high],
        rtol=1e-6,
    )
    assert (
        found.n == 80
        and position_bias(
            [None, *[Preference(0.5, verdicts=pair) for pair in pairs], Preference(1.0)]
        )
        == found
    )


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_intervals_hold_the_truth(ties):
    "A hurried judge of known strength that now and then says tie: 1,500 draws of 120 pairs."
    b, w, rng, held = 0.3, 0.6, np.random.default_rng(1), np.zeros(2)
    for _ in range(1500):
        better, unread, tied = (
            rng.random(120) < w,
            rng.random((120, 2)) < b,
            rng.random((120, 2)) < ties,
        )
        v = np.where(unread, [1.0, 0.0], np.where(tied, 0.5, better[:, None]))
        found = position_bias([Preference(0.5, verdicts=tuple(pair)) for pair in v])
        # E v_1 given who is better
        one = np.array([[(1 - b) * ties * 0.5 + b + (1 - b) * (1 - ties) * x, 0] for x in (1, 0)])
        two = [(1 - b) * ties * 0.5 + (1 - b) * (1 - ties) * x for x in (1, 0)]
        first = sum(p * (o[0] + 1 - t) / 2 for p, o, t in zip((w, 1 - w), one, two))
        spread = [
            (
                {
                    1.0: b + (1 - b) * (1 - ties) * x,
                    0.5: (1 - b) * ties,
                    0.0: (1 - b) * (1 - ties) * (1 - x),
                },
                {
                    0.0: b + (1 - b) * (1 - ties) * (1 - x),
                    0.5: (1 - b) * ties,
                    1.0: (1 - b) * (1 - ties) * x,
                },
            )
            for x in (1, 0)
        ]
        inconsistent = sum(
            p * (1 - sum(s[value] * t[value] for value in s))
            for p, (s, t) in zip((w, 1 - w), spread)
        )
        held += [
            found.inconsistent_low <= inconsistent <= found.inconsistent_high,
            found.first_low <= first <= found.first_high,
        ]
    assert (held / 1500 > 0.93).all() and (held / 1500 < 0.97).all()


# A server that fails


class Faulty(BaseHTTPRequestHandler):
    """Plays a reward model or a pairwise judge; the server's `faults` say what happens to which
    request, its `told` counts good replies.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        "Nothing is printed."

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        turns = body["messages"]
        name = turns[-1]["content"]
        with server.lock:
            server.asked[name] += 1
            server.keys.add(self.headers["Authorization"])
            fault = server.faults(name, server.asked[name])
        try:
            self.reply(
                fault,
                f"reward:{gold_reward(turns[0]['content'], name).total}"
                if len(turns) == 2
                else server.verdict(body),
                name,
            )
        except (BrokenPipeError, ConnectionResetError):
            # the client hung up, which is what a time-out is
            pass

    def reply(self, fault, text, name):
        time.sleep(self.server.pause)
        if fault == "hang":
            time.sleep(5)
        if fault == "cut":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        status = {"429": 429, "500": 500}.get(fault, 200)
        said = {
            "choices": [
                {
                    "message": {
                        "role": "assistant",
                        "content": "rather good, I think" if fault == "mute" else text,
                    },
                    "finish_reason": "stop",
                }
            ]
        }
        if status != 200:
            said = {"error": {"message": f"no, {self.headers['Authorization']} must wait"}}
        data = b'{"choices": [{"mess' if fault == "malformed" else json.dumps(said).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        if fault is None:
            with self.server.lock:
                self.server.told[name] += 1


@pytest.fixture
def server(monkeypatch):
    made = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    made.daemon_threads, made.lock, made.pause = True, threading.Lock(), 0.0
    made.asked, made.told, made.keys, made.faults, made.verdict = (
        Counter(),
        Counter(),
        set(),
        lambda name, time: None,
        lambda body: "Verdict: A",
    )
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("JUDGE_TEST_KEY", KEY)
    yield made
    made.shutdown()
    made.server_close()


def options(server, **more):
    return {
        "model": "judge",
        "base_url": f"http://127.0.0.1:{server.server_port}/v1",
        "key_env": "JUDGE_TEST_KEY",
        "retries": 0,
        "timeout": 3,
        "concurrency": 4,
        **more,
    }


def key_is_nowhere(folder, *texts):
    "The key, quoted and encoded too, is in no file below a folder and in no text."
    forms = [
        KEY,
        KEY.replace("/", "%2F").replace("+", "%2B"),
        json.dumps(KEY)[1:-1].replace("/", "\\/"),
        base64.b64encode(KEY.encode()).decode().rstrip("="),
        "0123456789+abcdef",
    ]
    for place in Path(folder).rglob("*"):
        texts = (
            *texts,
            str(place),
            *([place.read_bytes().decode("utf-8", "replace")] if place.is_file() else []),
        )
    assert texts and not [(form, text) for form in forms for text in texts if form in text]


FAULTS = ["429", "500", "malformed", "mute", "hang", "cut"]


def test_every_fault_is_named_and_a_second_run_asks_only_for_the_rest(
    server, tmp_path, capfd, caplog
):
    caplog.set_level("DEBUG")
    unique = list({record["answer"]: record for record in A}.values())
    fault = {record["answer"]: FAULTS[number // 2] for number, record in enumerate(unique[:12])}
    server.faults = lambda name, tries: fault.get(name) if tries == 1 else None
    judge = make_judge("reward_api", **options(server))
    first = judge.score(unique, tmp_path / "replies.jsonl")
    assert server.keys == {f"Bearer {KEY}"}
    assert set(first.failed) == {record["prompt_id"] for record in unique[:12]}
    for why, record in zip(
        (
            "status 429",
            "status 500",
            "not JSON",
            "carries no number",
            "no reply within",
            "no connection",
        ),
        unique[0:12:2],
    ):
        assert why in first.failed[record["prompt_id"]]
    again = (
        make_judge("reward_api", **options(server))
        .score(unique, tmp_path / "replies.jsonl")
        .whole()
    )
    assert again.values == [
        gold_reward(record["prompt"], record["answer"]).total for record in unique
    ]
    assert all(
        server.asked[record["answer"]] == 1 + (record["answer"] in fault) for record in unique
    )
    asked = server.asked.total()
    # a third run asks nothing
    assert (
        judge.score(unique, tmp_path / "replies.jsonl").values == again.values
        and server.asked.total() == asked
    )
    key_is_nowhere(
        tmp_path, repr(judge), repr(first), str(first.failed), *capfd.readouterr(), caplog.text
    )


def test_retries_wait_and_come_through(server, tmp_path):
    server.faults = lambda name, tries: "429" if tries <= 2 else None
    found = (
        make_judge("reward_api", **options(server, retries=2))
        .score(A[:6], tmp_path / "replies.jsonl")
        .whole()
    )
    assert found.values == [
        gold_reward(record["prompt"], record["answer"]).total for record in A[:6]
    ] and set(server.asked.values()) == {3}


def test_equal_answers_are_judged_once_and_other_settings_anew(server, tmp_path):
    twins = [A[0], {**A[0], "model": "other"}, A[1]]
    store = tmp_path / "replies.jsonl"
    found = make_judge("reward_api", **options(server)).score(twins, store).whole()
    assert found[0] == found[1] and server.asked.total() == 2
    make_judge("reward_api", **options(server, model="another")).score(twins, store).whole()
    assert server.asked.total() == 4
    (
        make_judge("pairwise", **options(server)).compare(A[:2], B[:2], store),
        make_judge("pairwise", **options(server, template="{prompt} {first} {second}")).compare(
            A[:2], B[:2], store
        ),
    )
    assert server.asked.total() == 12  # two templates, two pairs, two orders


def test_a_reward_model_behind_a_server_compares_as_gold_does(server, tmp_path):
    found = (
        make_judge("reward_api", **options(server))
        .compare(A, B, tmp_path / "replies.jsonl")
        .whole()
    )
    assert found.values == make_judge("gold").compare(A, B).values
    assert server.asked.total() == len(
        {(record["prompt"], record["answer"]) for record in [*A, *B]}
    )


def test_a_pairwise_judge_keeps_the_half_that_came(server, tmp_path):
    lost = pairwise_prompt(A[0]["prompt"], A[0]["answer"], B[0]["answer"])
    server.faults = lambda name, tries: "mute" if name == lost and tries == 1 else None
    server.verdict = lambda body: f"{KEY}\nVerdict: A"  # a server that says the key in its reply
    judge, store = make_judge("pairwise", **options(server)), tmp_path / "replies.jsonl"
    first = judge.compare(A[:4], B[:4], store)
    assert list(first.failed) == ["p0"] and server.asked.total() == 8
    again = judge.compare(A[:4], B[:4], store).whole()
    assert server.asked.total() == 9 and server.asked[lost] == 2 and again.values == [0.5] * 4
    key_is_nowhere(tmp_path, str(first.failed), *(each.reason for each in again))


CLIENT = """
import json, sys
from pathlib import Path
from prefkit.judging.judges import make_judge
records, options = json.loads(Path(sys.argv[1]).read_text()), json.loads(sys.argv[2])
make_judge("reward_api", **options).score(records, sys.argv[3])
"""


def test_nothing_is_lost_when_the_client_is_killed(server, tmp_path):
    records = [
        {"prompt": A[0]["prompt"], "prompt_id": str(number), "answer": f"It is {number}."}
        for number in range(60)
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    server.pause, store = 0.05, tmp_path / "replies.jsonl"
    client = subprocess.Popen(
        [
            sys.executable,
            "-c",
            CLIENT,
            str(tmp_path / "records.json"),
            json.dumps(options(server, timeout=20)),
            str(store),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 60
    while server.told.total() < 25 and time.monotonic() < end and client.poll() is None:
        time.sleep(0.005)
    client.send_signal(signal.SIGKILL)
    printed = client.communicate()[0]
    assert client.returncode == -signal.SIGKILL, printed
    time.sleep(0.15)  # what the server was still at
    raw = store.read_bytes()
    kept = raw.count(b"\n")
    # all but what was under way is on disk
    assert 20 <= kept < 60 and server.told.total() - kept <= 4
    store.write_bytes(raw + b'{"id": "reward torn off half')
    before, server.pause = server.asked.total(), 0.0
    found = make_judge("reward_api", **options(server)).score(records, store).whole()
    assert server.asked.total() - before == 60 - kept
    assert found.values == [
        gold_reward(record["prompt"], record["answer"]).total for record in records
    ]
    lines = read_jsonl(store)
    assert len(lines) == len({line["id"] for line in lines}) == 60  # none kept twice
    key_is_nowhere(tmp_path, printed)


def test_a_refused_key_stops_at_once_and_what_is_kept_stays(server, tmp_path, monkeypatch):
    judge, store = make_judge("reward_api", **options(server)), tmp_path / "replies.jsonl"
    judge.score(A[:5], store).whole()
    monkeypatch.setattr(
        Faulty,
        "reply",
        lambda self, fault, text, name: (
            self.send_response(401),
            self.send_header("Content-Length", "0"),
            self.end_headers(),
        ),
    )
    with pytest.raises(ConfigError, match="JUDGE_TEST_KEY") as error:
        judge.score(A, store)
    assert judge.score(A[:5], store).whole().values and len(read_jsonl(store)) == 5
    key_is_nowhere(tmp_path, str(error.value))


def test_a_server_needs_a_store(server):
    with pytest.raises(ConfigError, match="store"):
        make_judge("reward_api", **options(server)).score(A)
    assert server.asked.total() == 0


# Options


STAND_IN = {"model": "m", "ask": len}


@pytest.mark.parametrize(
    "name, given, field, reason",
    [
        ("glod", {}, "judge", "unknown name"),
        ("pairwise", {}, "model", "missing"),
        ("pairwise", {"model": ""}, "model", "not usable"),
        ("pairwise", {"model": "m"}, "base_url", "not usable"),
        ("pairwise", {"model": "m", "base_url": "ftp://x"}, "base_url", "not usable"),
        ("pairwise", {"model": "m", "ask": 3}, "ask", "no function"),
        ("pairwise", {**STAND_IN, "temperature": -1}, "temperature", "out of range"),
        ("pairwise", {**STAND_IN, "temperature": True}, "temperature", "out of range"),
        ("pairwise", {**STAND_IN, "max_tokens": 0}, "max_tokens", "out of range"),
        ("pairwise", {**STAND_IN, "seed": -1}, "seed", "out of range"),
        ("pairwise", {**STAND_IN, "seed": 1.5}, "seed", "out of range"),
        ("pairwise", {**STAND_IN, "template": "{prompt} {second}"}, "template", "incomplete"),
        (
            "pairwise",
            {**STAND_IN, "template": "{prompt} {first} {second} {reference}"},
            "template",
            "no template",
        ),
        ("pairwise", {**STAND_IN, "template": 3}, "template", "no template"),
        ("pairwise", {**STAND_IN, "template": "{"}, "template", "no template"),
        ("reward_api", {"attribute": "a b"}, "attribute", "no word"),
        ("reward_api", {"concurrency": 0}, "concurrency", "out of range"),
        ("reward_api", {"concurrency": True}, "concurrency", "out of range"),
        ("reward_api", {"retries": -1}, "retries", "out of range"),
        ("reward_api", {"timeout": 0}, "timeout", "out of range"),
        ("reward_api", {"timeout": "60"}, "timeout", "out of range"),
        ("gold", {"colour": 1}, "colour", "unknown option"),
        ("gold", {"scale": 0}, "scale", "out of range"),
        ("person", {"votes": []}, "votes", "no file"),
        ("model", {}, "model_name_or_path", "missing"),
    ],
)
def test_options_are_checked_by_name_before_anything_is_asked(name, given, field, reason):
    for make in (make_judge, check_judge):
        with pytest.raises(ConfigError, match="judge") as error:
            make(name, **given)
        assert (error.value.field, error.value.reason) == (field, reason)


def test_what_is_said_of_an_option():
    for name, options, message in (
        ("glod", {}, "judge: there is no judge `glod`. Did you mean `gold`?"),
        ("pairwise", {}, "judge pairwise: the option model must be given."),
        ("pairwise", {"model": "m", "sead": 1}, "there is no option `sead`. Did you mean `seed`?"),
        ("pairwise", {**STAND_IN, "template": "{first}"}, "no {prompt} and no {second}"),
        ("gold", {"scale": 0}, "judge gold: scale is 0, but must be a finite number above 0."),
    ):
        with pytest.raises(ConfigError) as error:
            check_judge(name, **options)
        assert message in str(error.value)


def test_a_judge_is_its_class_with_its_options():
    judge = Pairwise("m", ask=lambda body: "Verdict: A", seed=3)
    assert judge == make_judge("pairwise", model="m", ask=judge.ask, seed=3)
    assert judge.compare(A[:2], B[:2]).judge == "pairwise"

    @dataclass
    class Brief(Judge):
        most: int = 5

        def __post_init__(self):
            check_number("most", self.most, whole=True, least=1)

        def __call__(self, records, store):
            return [-max(0, len(record["answer"].split()) - self.most) for record in records]

    register_judge("brief", Brief)
    assert make_judge("brief", most=2).compare(A, B).judge == "brief"
    assert make_judge("brief", most=2).score(A).values == Brief(2).score(A).values
    with pytest.raises(ConfigError, match="judge brief: most is 0"):
        check_judge("brief", most=0)


def test_a_check_of_ones_own_is_asked_before_anything_is_made():
    def refuse(words):
        raise ConfigError("no words.", field="words")

    register_judge("own", lambda words=(): pytest.fail("made"), check=refuse)
    for make in (make_judge, check_judge):
        with pytest.raises(ConfigError, match="judge own: no words") as error:
            make("own")
        assert error.value.field == "words"


@pytest.mark.parametrize(
    "given",
    [
        {"api_key": KEY},
        {"key": KEY},
        {"token": KEY},
        {"key_env": KEY},
        {"base_url": f"http://user:{KEY.replace('/', '')}@localhost/v1"},
        {"base_url": "http://localhost/v1?key=0123456789+abcdef"},
        {"modle": KEY},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(given):
    with pytest.raises(ConfigError) as error:
        make_judge("pairwise", **{"model": "m", "base_url": "http://localhost/v1", **given})
    assert "0123456789" not in str(error.value)
    if set(given) & {"api_key", "key", "token"}:
        assert "key_env" in str(error.value)


def test_what_a_judge_cannot_know_is_said_before_it_is_used():
    (
        check_judge("gold", A[0]),
        check_judge("countdown", {"prompt": "Make 3.", "answer": "", "nums": [1, 2], "target": 3}),
    )
    with pytest.raises(ConfigError, match="judge gold: .*tiny world"):
        check_judge("gold", {"prompt": "Who are you?", "answer": ""})
    with pytest.raises(DataError, match="judge countdown: .*nums"):
        check_judge("countdown", A[0])
    with pytest.raises(DataError, match="Who are you"):
        make_judge("gold").score([{"prompt": "Who are you?", "answer": "I."}])


# People

HEAD = "prompt_id,model_a,model_b,winner\n"


@pytest.mark.parametrize(
    "text, row, field, reason",
    [
        (HEAD + "p0,a,b,a\np1,a,b,c\n", 3, "winner", "unknown winner"),
        (HEAD + "p0,a,b\n", 2, None, "number of columns"),
        (HEAD + "p0,a,a,a\n", 2, "model_a", "no two names"),
        (HEAD + "p0,a,,a\n", 2, "model_a", "no two names"),
        (HEAD + ",a,b,a\n", 2, "prompt_id", "empty"),
        ("prompt_id,model_a,winner\np0,a,a\n", 1, "model_b", "missing column"),
        ("", None, None, "empty"),
        (HEAD + 'p0,a,b,"a\np1,a,b,b\n', 2, None, "broken row"),
        (HEAD + "p0,a,tie,a\n", 2, "model_a", "ambiguous name"),
        (
            "prompt_id,model_a,model_b,winner,person\np0,a,b,a,Ida\np1,a,b,a,Ida\np0,b,a,a,Ida\n",
            4,
            "person",
            "twice",
        ),
        ("prompt_id,model_a,model_b,winner,winner\n", 1, "winner", "twice"),
        (HEAD + "\n\np0,a,b,x\n", 4, "winner", "unknown winner"),
        (b"prompt_id,model_a,model_b,winner\np0,a,b,a\np1,\xe9,b,b\n", 3, None, "not UTF-8"),
        ("number,answer_1,answer_2,winner\n1,x,y,2\n", None, "key", "cannot be read"),
    ],
)
def test_a_fault_in_a_votes_file_names_file_and_row(tmp_path, text, row, field, reason):
    path = tmp_path / "votes.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for make in (lambda: read_votes(path), lambda: make_judge("person", votes=str(path))):
        with pytest.raises(DataError, match=re.escape(str(path))) as error:
            make()
        assert (error.value.field, error.value.reason) == (field, reason)
        assert row is None or f"{path}, row {row}: " in str(error.value)


@pytest.mark.parametrize(
    "lines, row, field, reason",
    [
        (
            ['{"prompt_id": "p0", "model_a": "a", "model_b": "b", "winner": "a"}', "{"],
            2,
            None,
            "broken row",
        ),
        (
            ['{"prompt_id": "p0", "model_a": "a", "model_b": "b"}'],
            1,
            "winner",
            "missing column",
        ),
        (["[1]"], 1, None, "broken row"),
        (
            ['{"prompt_id": null, "model_a": "a", "model_b": "b", "winner": "a"}'],
            1,
            "prompt_id",
            "missing column",
        ),
        (
            ['{"prompt_id": "p0", "model_a": "a", "model_b": "b", "winner": 1}'],
            1,
            "winner",
            "unknown winner",
        ),
    ],
)
def test_a_fault_in_json_lines_names_the_row(tmp_path, lines, row, field, reason):
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=re.escape(f"{path}, row {row}: ")) as error:
        read_votes(path)
    assert (error.value.field, error.value.reason) == (field, reason)


def test_what_is_said_of_a_vote(tmp_path):
    path = tmp_path / "votes.csv"
    for text, message in (
        (HEAD + "p0,a,b,c\n", "row 2: winner 'c' is neither a, b, model_a, model_b nor tie."),
        (HEAD + "p0,a,b\n", "row 2: 3 columns where the header has 4."),
        (
            HEAD.strip() + ",person\np0,a,b,a,Ida\np0,b,a,a,Ida\n",
            "row 3: Ida has voted on this pair before, in row 2.",
        ),
    ):
        path.write_text(text)
        with pytest.raises(DataError) as error:
            read_votes(path)
        assert message in str(error.value)


def test_files_that_are_none(tmp_path):
    for name in ("none.csv", "none.jsonl"):
        with pytest.raises(DataError, match="no such file"):
            read_votes(tmp_path / name)
    with pytest.raises(DataError, match="csv or a .jsonl"):
        read_votes(tmp_path / "votes.xlsx")


@pytest.mark.parametrize(
    "write",
    [
        lambda rows: HEAD + "".join(",".join(row) + "\n" for row in rows),
        lambda rows: (
            "\ufeff" + HEAD.replace(",", ";") + "".join(";".join(row) + "\r\n" for row in rows)
        ),
        lambda rows: "\n".join(json.dumps(dict(zip(HEAD.strip().split(","), row))) for row in rows),
    ],
)
def test_a_person_prefers_whoever_was_voted_for(tmp_path, write):
    rows = [
        ("p0", "a", "b", "a"),
        ("p1", "b", "a", "model_a"),
        ("p2", "a", "b", "tie"),
        ("p3", "b", "a", "a"),
        ("p4", "a", "b", ""),
        ("p5", "a", "other", "a"),
        ("p6", "a", "b", "tie (bothbad)"),
        ("p0", "b", "a", "b"),
        ("p0", "b", "a", "tie"),
    ]
    path = tmp_path / ("votes.jsonl" if write(rows).startswith("{") else "votes.csv")
    path.write_text(write(rows), encoding="utf-8", newline="")
    judge = make_judge("person", votes=path)
    found = judge.compare(A[:7], B[:7])
    # p0: one for each, and a tie
    assert [value for value in found.values if not math.isnan(value)] == [
        0.5,
        0.0,
        0.5,
        1.0,
        0.5,
    ] and list(found.failed) == ["p4", "p5"]
    assert [value for value in judge.compare(B[:7], A[:7]).values if not math.isnan(value)] == [
        0.5,
        1.0,
        0.5,
        0.0,
        0.5,
    ]
    with pytest.raises(DataError, match="`model`"):
        judge.compare([{**A[0], "model": None}], B[:1])
    with pytest.raises(ConfigError, match="gives no score"):
        judge.score(A)


def fill(path, choose):
    "Vote on a ballot as a person with a spreadsheet would."
    if path.suffix == ".jsonl":
        rows = [{**row, "winner": choose(row)} for row in read_jsonl(path)]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return rows
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [{**row, "winner": choose(row)} for row in csv.DictReader(file)]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=";")
        table.writeheader(), table.writerows(rows)
    return rows


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_ballot_is_blind_and_comes_back_as_votes(tmp_path, suffix):
    hard = ["=1+1", 'two\nlines, "quoted"; and more', "-5", "@x", "ä ö 中", ""]
    a, b = (
        [
            {**record, "answer": f"{text}{extra}", "model": name}
            if number < len(hard)
            else {**record, "model": name}
            for number, (record, text) in enumerate(zip(records, [*hard, *[""] * 99]))
        ]
        for records, extra, name in ((A, "", "zeta-7b"), (B, "!", "omega-7b"))
    )
    path = tmp_path / f"ballot{suffix}"
    key = write_ballot(path, a, b, seed=3)
    longest = lambda row: (
        "1"
        if len(row["answer_1"]) > len(row["answer_2"])
        else "2"
        if len(row["answer_1"]) < len(row["answer_2"])
        else "tie"
    )
    rows = fill(path, longest)
    raw = path.read_text(encoding="utf-8-sig")
    assert (
        "zeta" not in raw
        and "omega" not in raw
        and not any(record["prompt_id"] in row.values() for row in rows for record in a)
    )
    if suffix == ".csv":
        assert not any(
            row[name][:1] in "=+-@"
            for row in rows
            for name in ("prompt", "answer_1", "answer_2")
            if row[name]
        )
    register_judge(
        "length",
        lambda: (
            lambda records, store: [
                len(record["answer"])
                + (suffix == ".csv" and record["answer"][:1] in ("=", "-", "@"))
                for record in records
            ]
        ),
    )
    found, wanted = (
        make_judge("person", votes=path).compare(a, b),
        make_judge("length").compare(a, b),
    )
    assert found.whole().values == wanted.values and {0.0, 1.0} <= set(found.values)
    assert make_judge("person", votes=[path], key=key).compare(b, a).values == [
        1 - value for value in wanted.values
    ]


def test_the_order_of_a_ballot_tells_nothing(tmp_path):
    places, order = Counter(), []
    for seed in range(30):
        key = json.loads(write_ballot(tmp_path / f"{seed}.jsonl", A, B, seed=seed).read_text())
        places.update(entry["first"] for entry in key.values())
        order.append([entry["prompt_id"] for entry in key.values()])
    assert (
        abs(places["a"] / places.total() - 0.5) < 4 * 0.5 / math.sqrt(places.total())
        and len({tuple(each) for each in order}) == 30
    )
    assert (
        write_ballot(tmp_path / "again.jsonl", A, B, seed=0).read_text()
        == (tmp_path / "0.key.json").read_text()
    )


def test_ballots_are_not_overwritten_nor_mixed_up(tmp_path):
    path = tmp_path / "ballot.csv"
    write_ballot(path, A[:3], B[:3])
    with pytest.raises(ConfigError, match="there already"):
        write_ballot(path, A[:3], B[:3])
    other = write_ballot(tmp_path / "other.csv", A[:3], B[:3], seed=1)
    fill(path, lambda row: "1")
    with pytest.raises(DataError, match="row 2: .*another ballot"):
        read_votes(path, other)
    (tmp_path / "bad.json").write_text('{"x": 1}')
    with pytest.raises(DataError, match="key"):
        read_votes(path, tmp_path / "bad.json")
    fill(tmp_path / "other.csv", lambda row: "3")
    with pytest.raises(DataError, match="row 2: winner '3'"):
        read_votes(tmp_path / "other.csv")
    with pytest.raises(ConfigError, match="end in .csv"):
        write_ballot(tmp_path / "ballot.txt", A[:3], B[:3])
    with pytest.raises(DataError, match="two different names"):
        write_ballot(tmp_path / "same.csv", A[:3], [{**record, "model": "a"} for record in B[:3]])


def test_results_are_plain_and_say_how_many():
    found = Judgement("gold", (Score(1.0), None), {"x": "why"})
    assert (
        repr(found) == "gold: 1 of 2 judged; x: why"
        and found[0].value == 1.0
        and list(found) == [Score(1.0), None]
        and len(TEMPLATE.format(prompt="", first="", second="", mark="")) > 200
    )
    assert pair_ids(A, B) == [record["prompt_id"] for record in A]
