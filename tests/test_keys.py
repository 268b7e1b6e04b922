"""Which server may be sent which key, redirects, and locks that are links."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from prefkit.core import ConfigError
from prefkit.judging.combined import HttpReward
from prefkit.judging.keys import KEY_HOSTS, check_key_host, is_loopback
from prefkit.judging.served import Served, ask_all, reach
from prefkit.runs.stage import StageLock


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.delenv(KEY_HOSTS, raising=False)
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_KEY", "NVIDIA_API_KEY"):
        monkeypatch.setenv(name, "sk-0123456789")


@pytest.mark.parametrize(
    "address, key",
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY"),
        ("http://localhost:8000/v1", "OPENAI_API_KEY"),
        ("http://127.0.0.1:8000/v1", "MY_KEY"),
        ("http://[::1]:8000/v1", "MY_KEY"),
        ("https://anywhere.example/v1", ""),
        ("https://anywhere.example/v1", "NOT_SET_AT_ALL"),
    ],
)
def test_keys_go_where_they_belong_and_to_this_machine(address, key):
    check_key_host(address, key)


@pytest.mark.parametrize(
    "address, key, said",
    [
        ("https://anywhere.example/v1", "OPENAI_API_KEY", "OPENAI_API_KEY@anywhere.example"),
        ("https://api.openai.com.evil.example/v1", "OPENAI_API_KEY", "not sent to api.openai.com."),
        ("https://api.openai.com:8443/v1", "OPENAI_API_KEY", "api.openai.com:8443"),
        ("https://api.openai.com/v1", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY@"),
        ("http://api.openai.com/v1", "OPENAI_API_KEY", "in the clear"),
        ("http://10.0.0.7:8000/v1", "MY_KEY", "in the clear"),
        ("http://127.0.0.1.evil.example/v1", "MY_KEY", "in the clear"),
    ],
)
def test_a_config_sends_no_key_anywhere_else(address, key, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        check_key_host(address, key)
    server = Served("some-model", address, key)
    with pytest.raises(ConfigError, match=said):
        reach(server)
    with pytest.raises(ConfigError, match=said):
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        ask_all(server, {"one": body}, tmp_path / "store.jsonl")
    with pytest.raises(ConfigError, match=said):
        HttpReward(url=address, key_env=key).reach()


def test_the_environment_says_what_else_is_allowed(monkeypatch):
    monkeypatch.setenv(KEY_HOSTS, "MY_KEY@api.mine.example, OTHER@x:8443")
    check_key_host("https://api.mine.example/v1", "MY_KEY")
    for key in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(ConfigError, match="host is not|not sent"):
            check_key_host("https://api.mine.example/v1", key)
    with pytest.raises(ConfigError, match="in the clear"):
        check_key_host("http://api.mine.example/v1", "MY_KEY")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_by_its_names(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0x7f000001.example", "localhost.evil.example", "10.0.0.1"])
def test_other_machines(host):
    assert not is_loopback(host)


@pytest.fixture
def redirecting():
    "A server that sends everybody on to another, which counts who comes."
    came = []

    class Other(BaseHTTPRequestHandler):
        def do_POST(self):
            came.append(self.path)
            self.send_response(500)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    other = HTTPServer(("127.0.0.1", 0), Other)

    class Sends(Other):
        def do_POST(self):
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{other.server_port}/elsewhere")
            self.end_headers()

        do_GET = do_POST

    first = HTTPServer(("127.0.0.1", 0), Sends)
    for server in (first, other):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{first.server_port}/v1", came
    for server in (first, other):
        server.shutdown()


def test_nobody_is_followed_to_another_host(redirecting, tmp_path):
    address, came = redirecting
    server = Served("some-model", address, "MY_KEY", retries=0)
    with pytest.raises(ConfigError):
        reach(server)
    with pytest.raises(ConfigError, match="307"):
        HttpReward(url=address, key_env="MY_KEY", retries=0).reach()
    assert came == []


def test_a_lock_that_is_a_link_overwrites_nothing(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (tmp_path / ".sft.lock").symlink_to(precious)
    with pytest.raises(ConfigError, match="delete what stands there"):
        with StageLock(tmp_path / ".sft.lock"):
            pass
    (tmp_path / ".dpo.lock").mkdir()
    with pytest.raises(ConfigError, match="delete what stands there"):
        with StageLock(tmp_path / ".dpo.lock"):
            pass
    assert precious.read_text() == "mine"
