"""A server with OpenAI's chat interface on loopback that has every fault there is, on demand."""

import gzip
import json
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prefkit.judging.served import Served

KEY = "sk-Very/Secret+Key=0123456789"


@contextmanager
def serving(server):
    "A server while the block runs."
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


class Faulty(ThreadingHTTPServer):
    """Does with a request what its text says: 'name: fault fault ok' meets two faults and is
    answered at the third try.
    """

    daemon_threads, request_queue_size = True, 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.times, self.keys, self.bodies = Counter(), {}, set(), []
        self.now, self.most, self.delay, self.lock = 0, 0, 0.0, threading.Lock()
        self.closing = threading.Event()
        self.made = []  # names of the replies that were made, whoever got them
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def handle_error(self, request, client_address):  # a client that hangs up is what is tested
        pass

    def asks(self, body):
        "The name of a request, and the faults that its tries meet."
        name, _, faults = body["messages"][-1]["content"].partition(": ")
        return name, faults.split() or ["ok"]

    def says(self, name, body):
        "A good reply: its text, why it ended, and its usage."
        return f"reply to {name}", "stop", {"completion_tokens": 3}

    def client(self, **options):
        return Served(
            "m",
            f"http://127.0.0.1:{self.server_port}/v1",
            **{"key_env": "FAKE_KEY", "backoff": 0.01, "timeout": 20.0, **options},
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body, server = json.loads(self.rfile.read(int(self.headers["content-length"]))), self.server
        name, faults = server.asks(body)
        with server.lock:
            fault = faults[min(server.asked[name], len(faults) - 1)]
            server.asked[name] += 1
            server.times.setdefault(name, []).append(time.monotonic())
            server.keys.add(self.headers["authorization"])
            server.bodies.append(body)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            time.sleep(server.delay)
            self.act(fault, name, body)
        finally:
            with server.lock:
                server.now -= 1

    def act(self, fault, name, body):
        key, (status, _, wait) = (
            self.headers["authorization"].removeprefix("Bearer "),
            fault.partition("/"),
        )
        text, finish, usage = self.server.says(name, body)
        message = {"role": "assistant", "content": text}
        good = {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
        if fault in ("ok", "malformed", "hang", "cut"):
            with self.server.lock:
                self.server.made.append(name)
        if fault == "ok":
            self.send(200, good)
        elif fault == "echo":
            self.send(
                200,
                {
                    **good,
                    key: key,
                    "choices": [
                        {
                            "message": {"content": f"your key is {key}"},
                            "finish_reason": key,
                            "logprobs": [{key: 1}],
                        }
                    ],
                },
            )
        elif fault == "echo-error":
            self.send(500, {"error": {"message": f"bad key {key}", "code": key}})
        elif fault == "echo-status":
            self.send(422, f"<p>{key}</p>".encode())
        elif fault == "none":
            self.send(
                200,
                {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]},
            )
        elif fault == "empty":
            self.send(200, {"choices": []})
        elif fault == "error-200":
            self.send(200, {"error": {"message": "the provider is down"}})
        elif fault == "malformed":
            self.send(200, b'{"choices": [{"mess')
        elif fault == "nan":
            self.send(200, b'{"choices": [{"message": {"content": "x"}, "score": NaN}]}')
        elif fault == "list":
            self.send(200, b"[1, 2]")
        elif fault == "bytes":
            self.send(200, b"\xff\xfe\x00")
        elif fault == "surrogate":
            self.send(
                200,
                b'{"choices": [{"message": {"content": "half \\ud83d"}, "finish_reason": "stop"}]}',
            )
        elif fault == "quota":
            self.send(
                429,
                {
                    "error": {
                        "message": "no credit",
                        "code": "insufficient_quota",
                        "type": "insufficient_quota",
                    }
                },
            )
        elif fault == "hang":
            self.server.closing.wait(3)
        elif fault == "drip":  # a byte now and then: no gap is long, the whole takes for ever
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            for _ in range(60):
                if self.server.closing.wait(0.05):
                    break
                self.wfile.write(b" ")
                self.wfile.flush()
        elif fault == "flood":
            self.send(200, b" " * 2**20)
        elif fault == "bomb":
            self.send(200, gzip.compress(b" " * 2**22), {"content-encoding": "gzip"})
        elif fault == "cut":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": ')
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "reset":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.send(
                int(status),
                {"error": {"message": f"refused with {status}"}},
                {"retry-after": wait} if wait else {},
            )
