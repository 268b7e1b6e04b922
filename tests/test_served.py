"""Models behind a server: a real one on loopback (`transformers serve` with the tiny model), and
one with every fault there is.
"""

import asyncio, email.utils, json, os, re, signal, socket, subprocess, sys
import time, traceback
from pathlib import Path
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.served import KEY
from prefkit.core import ConfigError, DataError, read_jsonl
from prefkit.judging import served
from prefkit.judging.asking import DECODING, generate_records
from prefkit.judging.served import Secret, Served, ask_all, retry_after
from prefkit.data.world import tiny_records

ROOT = Path(__file__).resolve().parents[1]


def asking(*texts, **settings):
    "Requests by name; each text is 'name: what the server does'."
    return {
        text.partition(": ")[0]: {"messages": [{"role": "user", "content": text}], **settings}
        for text in texts
    }


def ask(server, requests, store, **options):
    return ask_all(server, requests, store, quiet=True, **options)


FAULTS = (
    "429",
    "429/0",
    "429/0.1",
    "500",
    "503",
    "408",
    "cut",
    "reset",
    "malformed",
    "nan",
    "list",
    "bytes",
    "empty",
    "error-200",
    "echo-error",
)


def test_every_fault_is_outlived_and_nothing_is_asked_more_often_than_needed(faulty, tmp_path):
    requests = asking(
        *(f"{fault}: {fault} {fault} ok" for fault in FAULTS),
        *(f"good{number}" for number in range(10)),
    )
    replies, failures = ask(faulty.client(), requests, tmp_path / "s.jsonl")
    assert failures == {} and list(replies) == list(requests)
    assert all(
        reply["reply"] == f"reply to {name}"
        and reply["usage"] == {"completion_tokens": 3}
        and reply["finish_reason"] == "stop"
        for name, reply in replies.items()
    )
    assert faulty.asked == {
        **{fault: 3 for fault in FAULTS},
        **{f"good{number}": 1 for number in range(10)},
    }
    assert {record["id"] for record in read_jsonl(tmp_path / "s.jsonl")} == set(requests)


def test_what_keeps_failing_is_named_and_only_that_is_asked_again(faulty, tmp_path):
    requests = asking(*(f"{fault}: {fault} {fault} ok" for fault in FAULTS), "a", "b: 400 ok")
    replies, failures = ask(faulty.client(retries=1), requests, tmp_path / "s.jsonl")
    assert list(replies) == ["a"] and list(failures) == [*FAULTS, "b"]
    for name, words in {
        "429": "429",
        "500": "500",
        "cut": "no connection",
        "malformed": "not JSON",
        "empty": "no choice",
        "error-200": "provider is down",
        "b": "400",
    }.items():
        assert words in failures[name], failures[name]
    assert "after 2 tries" in failures["500"] and "tries" not in failures["b"]
    replies, failures = ask(faulty.client(retries=1), requests, tmp_path / "s.jsonl")
    assert list(replies) == list(requests) and failures == {}
    assert faulty.asked == {**{fault: 3 for fault in FAULTS}, "a": 1, "b": 2}
    ask(faulty.client(), requests, tmp_path / "s.jsonl")
    assert sum(faulty.asked.values()) == 3 * len(FAULTS) + 3, "a third run asks nothing"


@pytest.mark.parametrize("slow", ["hang", "drip"])
def test_a_server_that_hangs_is_left_and_asked_again(faulty, tmp_path, slow):
    start = time.monotonic()
    _, failures = ask(
        faulty.client(timeout=0.5, retries=0), asking(f"a: {slow} ok"), tmp_path / "s.jsonl"
    )
    assert (
        "no reply within 0.5 seconds" in failures["a"]
        and faulty.asked["a"] == 1
        and time.monotonic() - start < 2.9
    ), "before the server gives up by itself"
    replies, _ = ask(faulty.client(timeout=2), asking(f"b: {slow} ok", "c"), tmp_path / "s.jsonl")
    assert list(replies) == ["b", "c"] and faulty.asked["b"] == 2


@pytest.mark.parametrize("flood", ["flood", "bomb"])
def test_a_reply_that_does_not_end_is_left(faulty, tmp_path, flood, monkeypatch):
    "A long one, and a short one that unpacks into a long one: neither fills the memory."
    monkeypatch.setattr(served, "MOST_BYTES", 2**16)
    requests, store = asking(f"a: {flood}", "b"), tmp_path / "s.jsonl"
    replies, failures = ask(faulty.client(retries=0), requests, store)
    assert list(replies) == ["b"] and "longer than" in failures["a"]
    assert [record["id"] for record in read_jsonl(store)] == ["b"]


def test_retry_after_holds_everybody_back(faulty, tmp_path):
    faulty.delay = 0.1  # so that the others are still being asked when the first comes back
    ask(faulty.client(concurrency=2), asking("a: 429/1 ok", *"bcdefgh"), tmp_path / "s.jsonl")
    first, second = faulty.times["a"]
    assert second - first >= 1
    between = [
        name
        for name, times in faulty.times.items()
        for time in times
        if first < time < second - 0.1
    ]
    assert set(between) <= {"b", "c"}, "at most what was under way"


def test_a_wait_that_is_too_long_is_not_waited_for(faulty, tmp_path):
    start = time.monotonic()
    _, failures = ask(faulty.client(longest_wait=5), asking("a: 429/3600 ok"), tmp_path / "s.jsonl")
    assert (
        "asks to wait 3600 seconds" in failures["a"]
        and time.monotonic() - start < 4
        and faulty.asked["a"] == 1
    )


def test_waits_double(faulty, tmp_path):
    ask(faulty.client(backoff=0.1, retries=3), asking("a: 500 500 500 ok"), tmp_path / "s.jsonl")
    gaps = [later - sooner for sooner, later in zip(faulty.times["a"], faulty.times["a"][1:])]
    assert all(0.5 * 0.1 * 2**number <= gap for number, gap in enumerate(gaps)) and len(gaps) == 3


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": email.utils.formatdate(1_000_030, usegmt=True)}, 30),
        ({"retry-after": email.utils.formatdate(999_000, usegmt=True)}, 0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert retry_after(headers, 1_000_000) == seconds


@pytest.mark.parametrize(
    "fault, words",
    [
        ("401", "status 401; one was sent). Set the environment variable FAKE_KEY"),
        ("403", "status 403"),
        ("404", "model's name"),
        ("402", "status 402"),
        ("quota", "no credit left"),
    ],
)
def test_going_on_in_vain_ends_early_and_keeps_what_came(faulty, tmp_path, fault, words):
    requests = asking("a", "b", f"bad: {fault}", *(f"later{number}" for number in range(50)))
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        ask(faulty.client(concurrency=1), requests, tmp_path / "s.jsonl")
    assert (
        "2 of 53 replies are kept" in str(caught.value)
        and caught.value.__cause__ is None
        and caught.value.__context__ is None
    )
    assert faulty.asked == {"a": 1, "b": 1, "bad": 1}
    faulty.asked.update(bad=0)
    ask(faulty.client(concurrency=1), asking("a", "b"), tmp_path / "s.jsonl")
    assert faulty.asked["a"] == faulty.asked["b"] == 1


def test_replies_on_their_way_when_it_ends_are_kept(faulty, tmp_path):
    faulty.delay = 0.3
    with pytest.raises(ConfigError):
        ask(faulty.client(), asking("bad: 401", "a", "b", "c"), tmp_path / "s.jsonl")
    assert {record["id"] for record in read_jsonl(tmp_path / "s.jsonl")} == {"a", "b", "c"}


def test_one_refused_request_is_its_own_fault_and_many_are_the_settings(faulty, tmp_path):
    replies, failures = ask(
        faulty.client(concurrency=1),
        asking("a", *(f"long{number}: 400" for number in range(5)), "b"),
        tmp_path / "s.jsonl",
    )
    assert list(replies) == ["a", "b"] and len(failures) == 5
    with pytest.raises(DataError, match="status 422.*Check the messages and settings"):
        ask(
            faulty.client(concurrency=1),
            asking(*(f"x{number}: {'422' if number else '400'}" for number in range(50))),
            tmp_path / "t.jsonl",
        )
    assert sum(count for name, count in faulty.asked.items() if name.startswith("x")) == 3


def test_a_dead_server_is_not_asked_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Served(
        "m", f"http://127.0.0.1:{port}/v1", key_env="", concurrency=4, retries=1, backoff=0.001
    )
    replies, failures = ask(
        server, asking(*(f"q{number}" for number in range(200))), tmp_path / "s.jsonl"
    )
    assert not replies and len(failures) == 200
    assert (
        sum("no connection" in why and "not asked" not in why for why in failures.values()) < 40
        and "not asked: 2" in failures["q199"]
    )


def test_as_many_at_once_as_allowed_and_no_more(faulty, tmp_path):
    faulty.delay = 0.05
    ask(
        faulty.client(concurrency=6),
        asking(*(f"q{number}" for number in range(30))),
        tmp_path / "s.jsonl",
    )
    assert faulty.most == 6


def test_another_request_under_the_same_id_is_asked(faulty, tmp_path):
    for chosen, count in (
        ({"temperature": 0}, 1),
        ({"temperature": 0}, 1),
        ({"temperature": 1}, 2),
        ({"temperature": 0}, 2),
        ({"temperature": 0, "top_k": 5}, 3),
    ):
        ask(faulty.client(), asking("a", **chosen), tmp_path / "s.jsonl")
        assert faulty.asked["a"] == count
    assert faulty.bodies[-1] == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0,
        "top_k": 5,
    }
    ask(
        Served("other", faulty.client().base_url, key_env="FAKE_KEY"),
        asking("a", temperature=0),
        tmp_path / "s.jsonl",
    )
    assert faulty.asked["a"] == 4, "another model is another request"


def test_a_torn_line_is_dropped_and_said_and_a_broken_one_named(faulty, tmp_path, capsys):
    store, requests = tmp_path / "s.jsonl", asking("a", "b", "c")
    ask(faulty.client(concurrency=1), requests, store)
    whole = store.read_bytes()
    # the line without its end; the line torn
    for cut, said in ((len(whole) - 1, 0), (len(whole) - 20, 1)):
        store.write_bytes(whole[:cut])
        capsys.readouterr()
        assert (
            list(ask(faulty.client(), requests, store)[0]) == ["a", "b", "c"]
            and len(read_jsonl(store)) == 3
        )
        assert capsys.readouterr().out.count("s.jsonl: its last line was torn off") == said
    assert faulty.asked == {"a": 1, "b": 1, "c": 2}
    store.write_bytes(whole.replace(b'{"id": "b"', b'"id": "b"'))
    with pytest.raises(DataError, match="line 2"):
        ask(faulty.client(), requests, store)
    assert store.read_bytes().count(b"\n") == 3


def test_one_process_at_a_time(faulty, tmp_path):
    store = tmp_path / "s.jsonl"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "from prefkit.judging.served import JsonLinesFile; "
                f"held = JsonLinesFile({str(store)!r}, {{}}); print('held', flush=True); input()"
            ),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process"):
            ask(faulty.client(), asking("a"), store)
    finally:
        holder.communicate("\n", timeout=20)
    assert list(ask(faulty.client(), asking("a"), store)[0]) == ["a"]


def number(text):
    found = re.search(r"\d+", text)
    if not found:
        raise DataError(f"no number in {text!r}")
    return int(found.group())


def test_a_reply_that_cannot_be_read_is_a_failure_and_asked_again(faulty, tmp_path):
    requests = asking("7", "none: none ok", "words", "half: surrogate")
    replies, failures = ask(faulty.client(), requests, tmp_path / "s.jsonl", read=number)
    assert {name: reply["read"] for name, reply in replies.items()} == {"7": 7}
    assert (
        "no number" in failures["words"]
        and "content_filter" in failures["none"]
        and list(failures) == ["none", "words", "half"]
    )
    ask(faulty.client(), requests, tmp_path / "s.jsonl", read=number)
    assert faulty.asked == {"7": 1, "none": 2, "words": 2, "half": 2}
    # what was received and kept is there for a better reader
    replies, failures = ask(faulty.client(), requests, tmp_path / "s.jsonl")
    assert (
        not failures
        and replies["words"]["reply"] == "reply to words"
        and replies["half"]["reply"].startswith("half ")
        and sum(faulty.asked.values()) == 7
    )


def test_a_reader_with_a_bug_does_not_lose_the_reply(faulty, tmp_path):
    def broken(text):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(faulty.client(concurrency=1), asking("a"), tmp_path / "s.jsonl", read=broken)
    assert (
        list(ask(faulty.client(), asking("a"), tmp_path / "s.jsonl")[0]) == ["a"]
        and faulty.asked["a"] == 1
    )


def test_works_where_a_loop_is_running(faulty, tmp_path):
    async def notebook():
        return ask(faulty.client(), asking("a", "b: 500 ok"), tmp_path / "s.jsonl")

    assert list(asyncio.run(notebook())[0]) == ["a", "b"]

    async def refused():
        return ask(faulty.client(), asking("c: 401"), tmp_path / "s.jsonl")

    with pytest.raises(ConfigError, match="401"):
        asyncio.run(refused())


CLIENT = """
import sys, traceback
from prefkit.judging.served import Served, ask_all
from prefkit.core import PrefkitError
options = {"backoff": 0.01, "timeout": 5, "concurrency": 4, "retries": 1}
server = Served("m", sys.argv[1], key_env="FAKE_KEY", **options)
print(server, flush=True)
for number, texts in enumerate(" ".join(sys.argv[3:]).split(" | ")): # each part is a run of its own
    requests = {}
    for text in texts.split(", "):
        message = {"role": "user", "content": text}
        requests[text.partition(": ")[0]] = {"messages": [message]}
    try:
        print(ask_all(server, requests, sys.argv[2] + str(number or "")))
    except PrefkitError:
        traceback.print_exc()
"""


def client(server, store, texts, **environment):
    environment = {
        **os.environ,
        "FAKE_KEY": KEY,
        "NO_PROXY": "127.0.0.1",
        "HOME": str(Path(store).parent),
        **environment,
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            CLIENT,
            server.client().base_url,
            str(store),
            " | ".join(map(", ".join, texts)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def test_killed_half_way_nothing_is_lost_or_asked_twice(faulty, tmp_path):
    store, names = tmp_path / "s.jsonl", [f"q{number}" for number in range(40)]
    faulty.delay = 0.05
    running = client(faulty, store, [names])
    deadline = time.monotonic() + 30
    while sum(faulty.asked.values()) < 15 and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    running.stdout.close()
    running.stderr.close()
    lines = store.read_bytes().split(b"\n")[:-1]
    kept = {json.loads(line)["id"] for line in lines}
    time.sleep(0.2)  # what was on its way reaches the server
    first = dict(faulty.asked)
    assert 5 <= len(kept) < 40 and kept <= first.keys() and len(first) <= len(kept) + 4, (
        "at most the four under way are not on disk"
    )
    replies, failures = ask(faulty.client(), asking(*names), store)
    assert list(replies) == names and not failures
    assert all(faulty.asked[name] == 1 for name in kept) and all(
        faulty.asked[name] == 1 + (name in first and name not in kept) for name in names
    )
    assert [json.loads(line)["id"] for line in store.read_bytes().split(b"\n")[:-1]][
        : len(lines)
    ] == [json.loads(line)["id"] for line in lines]


def traces(folder, *texts):
    "Everything that was written: files of a folder, and texts."
    return "\n".join(
        [
            *texts,
            *(
                file.read_bytes().decode("utf-8", "replace")
                for file in folder.rglob("*")
                if file.is_file()
            ),
        ]
    )


def test_the_key_appears_nowhere(faulty, tmp_path):
    faults = [
        *(f"{fault}: {fault} {fault}" for fault in FAULTS),
        "a",
        "echo",
        "e: echo",
        "s: echo-status",
        "x: echo-error",
    ]
    runs = [faults, ["y", "u: 401"], ["v: 403"], ["w: quota"], ["z: echo-status"]]
    said = client(
        faulty,
        tmp_path / "s.jsonl",
        runs,
        OPENAI_LOG="debug",
        PREFKIT_PROGRESS=str(tmp_path / "progress"),
    ).communicate(timeout=120)
    assert faulty.keys == {f"Bearer {KEY}"}, "the key was sent"
    everything = traces(tmp_path, *said)
    assert (
        "your key is [key]" in everything
        and "refuses the key" in everything
        and "DEBUG" in everything
        and everything.count("Traceback") == 4
    )
    for part in (
        KEY,
        KEY[3:-3],
        json.dumps(KEY)[1:-1],
        KEY.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D"),
    ):
        assert part not in everything


def test_the_key_is_not_in_an_error_or_what_hangs_on_it(faulty, tmp_path):
    for text in ("u: 401", "z: echo-status"):
        with pytest.raises((ConfigError, DataError)) as caught:
            ask(faulty.client(), asking(text), tmp_path / "s.jsonl")
        error = caught.value
        everything = (
            "".join(
                traceback.TracebackException.from_exception(error, capture_locals=True).format()
            )
            + repr(error)
            + str(error)
        )
        assert KEY not in everything and error.__cause__ is None and error.__context__ is None
    secret = Secret("FAKE_KEY")
    assert (
        KEY not in f"{secret} {secret!r} {faulty.client()!r}" and secret and secret.reveal() == KEY
    )


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(),
        st.tuples(st.text(), st.text()).map(lambda ends: ends[0] + KEY + ends[1]),
    ),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.one_of(st.text(), st.just(KEY)), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(json_values)
def test_cleaning_takes_the_key_out_and_leaves_the_rest(value):
    os.environ["FAKE_KEY"] = KEY
    try:
        secret = Secret("FAKE_KEY")
    finally:
        del os.environ["FAKE_KEY"]
    clean = secret.clean(value)
    assert KEY not in json.dumps(clean, ensure_ascii=False).encode("utf-8").decode()
    if KEY not in json.dumps(value, ensure_ascii=False):
        assert clean == value


def test_a_placeholder_is_no_secret_and_a_broken_key_is_not_shown(monkeypatch):
    monkeypatch.setenv("FAKE_KEY", "EMPTY")
    assert Secret("FAKE_KEY").clean("EMPTY words") == "EMPTY words"
    monkeypatch.setenv("FAKE_KEY", "sk-broken\nkey")
    with pytest.raises(ConfigError) as caught:
        Secret("FAKE_KEY")
    assert "broken" not in str(caught.value) and not Secret("NO_SUCH_KEY") and not Secret("")


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"base_url": "localhost:8000"},
        {"base_url": "http://user:secretsecret@host/v1"},
        {"base_url": "http://host/v1?api_key=secretsecret"},
        {"base_url": 3},
        {"key_env": "sk-secretsecret"},
        {"key_env": "hf_secretsecret"},
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"concurrency": True},
        {"retries": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"backoff": -1},
        {"engine": "magic"},
    ],
)
def test_refuses_what_cannot_be_asked_without_repeating_a_secret(wrong):
    with pytest.raises(ConfigError) as caught:
        Served(**{"model": "m", "base_url": "http://localhost:8000/v1", **wrong})
    assert caught.value.field == next(iter(wrong)) and "secretsecret" not in str(caught.value)


def test_refuses_requests_that_are_none(faulty, tmp_path):
    for requests in ({1: {"messages": []}}, {"a": {}}, {"a": []}):
        with pytest.raises(DataError, match="request"):
            ask(faulty.client(), requests, tmp_path / "s.jsonl")
    with pytest.raises(ConfigError, match="stream"):
        ask(faulty.client(), asking("a", stream=True), tmp_path / "s.jsonl")
    with pytest.raises(ConfigError, match="cannot write"):
        ask(faulty.client(), asking("a"), ROOT / "settings.ini" / "s.jsonl")


def test_says_what_to_install(faulty, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"prefkit\[judge\]"):
        ask(faulty.client(), asking("a"), tmp_path / "s.jsonl")


# Answers of a model behind a server.


def test_answers_through_a_faulty_server_are_kept_and_made_once(faulty, tmp_path):
    prompts = [
        {"prompt_id": name, "prompt": f"{name}: {faults}".rstrip(": "), "kind": "k"}
        for name, faults in {"a": "", "b": "500 500 ok", "c": "429/0.05 ok", "d": "empty"}.items()
    ]
    chosen, output = {**DECODING["reports"], "max_new_tokens": 350}, tmp_path / "answers.jsonl"
    for count in (2, 4):  # retries=1: two tries a run
        with pytest.raises(DataError, match="1 of|2 of") as caught:
            generate_records(faulty.client(retries=1), prompts, chosen, output=output)
        assert "d: the reply holds no choice" in str(caught.value) and faulty.asked["d"] == count
    made = generate_records(faulty.client(retries=1), prompts[:3], chosen, output=output)
    assert [record["answer"] for record in made] == [
        "reply to a",
        "reply to b",
        "reply to c",
    ] and faulty.asked == {"a": 1, "b": 3, "c": 2, "d": 4}
    assert {key: value for key, value in made[0].items() if key != "made_by"} == {
        "prompt_id": "a",
        "prompt": "a",
        "kind": "k",
        "answer": "reply to a",
        "tokens": 3,
        "ended": True,
        "model": "m",
        "settings": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 350, "seed": 0},
    }
    assert read_jsonl(output) == made and KEY not in traces(tmp_path)
    with pytest.raises(ConfigError, match="other|not"):
        generate_records(faulty.client(), prompts[:3], {**chosen, "seed": 1}, output=output)
    with pytest.raises(ConfigError, match="output"):
        generate_records(faulty.client(), prompts, chosen)
    body = next(body for body in faulty.bodies if body["messages"][-1]["content"] == "a")
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (
        0.6,
        0.95,
        350,
    ) and isinstance(body["seed"], int)


def test_no_beam_search_where_the_server_has_none(faulty, tmp_path):
    chosen = {**DECODING["beam"], "max_new_tokens": 256}
    with pytest.raises(ConfigError, match="no beam search.*checkpoint"):
        generate_records(faulty.client(), ["a"], chosen, output=tmp_path / "a.jsonl")
    generate_records(faulty.client(engine="vllm"), ["a"], chosen, output=tmp_path / "b.jsonl")
    assert faulty.asked["a"] == 1 and {
        name: faulty.bodies[0][name]
        for name in ("use_beam_search", "n", "length_penalty", "temperature")
    } == {"use_beam_search": True, "n": 4, "length_penalty": 0.9, "temperature": 0.0}


# The real server.

FOLDER = str(ROOT / "data/tiny/base")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "`transformers serve` with the tiny model on loopback."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+")
    command = [
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        FOLDER,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, Path(
                log.name
            ).read_text()[-2000:]
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                    assert answer.status == 200
                break
            except OSError:
                time.sleep(0.1)
        yield Served(
            FOLDER, f"http://127.0.0.1:{port}/v1", key_env="", engine="transformers", concurrency=4
        )
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def here():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32
    ), AutoTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize("preset", ["greedy", "beam"])
def test_a_real_server_answers_as_the_loaded_model_does(real, here, tmp_path, preset):
    prompts, chosen = (
        tiny_records("prompts", "test", 12),
        {**DECODING[preset], "max_new_tokens": 24},
    )
    there = generate_records(real, prompts, chosen, output=tmp_path / "there.jsonl", name="tiny")
    local = generate_records(
        here[0], prompts, chosen, tokenizer=here[1], output=tmp_path / "here.jsonl", name="tiny"
    )
    bare = lambda records: [
        {key: value for key, value in record.items() if key not in ("made_by", "ended", "tokens")}
        for record in records
    ]
    assert bare(there) == bare(local) and len({record["answer"] for record in there}) > 6
    if preset == "greedy":
        assert [(one["tokens"], one["ended"]) for one in there] == [
            (one["tokens"], one["ended"] and one["tokens"] < 24) for one in local
        ]


def test_a_real_server_draws_and_is_not_asked_again(real, here, tmp_path):
    prompts, chosen = (
        tiny_records("prompts", "test", 12),
        {**DECODING["reports"], "max_new_tokens": 24},
    )
    drawn = generate_records(real, prompts, chosen, output=tmp_path / "a.jsonl")
    greedy = generate_records(
        here[0], prompts, {**DECODING["greedy"], "max_new_tokens": 24}, tokenizer=here[1]
    )
    assert sum(one["answer"] != other["answer"] for one, other in zip(drawn, greedy)) > 3, (
        "temperature and top-p reached the model"
    )
    (tmp_path / "a.jsonl").unlink()  # the replies are still there
    dead = Served(real.model, "http://127.0.0.1:9/v1", key_env="", engine="transformers", retries=0)
    assert generate_records(dead, prompts, chosen, output=tmp_path / "a.jsonl") == drawn


def test_a_real_server_refuses_what_it_does_not_know(real, tmp_path):
    with pytest.raises(DataError, match="422.*magic"):
        ask(real, asking("a", magic=1), tmp_path / "s.jsonl")
