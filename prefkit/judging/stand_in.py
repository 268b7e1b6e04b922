"""A stand-in for a server with OpenAI's chat interface: no language model, but the tiny world's own
makers of prompts and answers, on this machine. For a first look, for lessons and for tests.
"""

import json
import random
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prefkit.core import DataError, derive_seed
from prefkit.data.world import World, pool, preference_pair, read_request, tiny_records
from prefkit.judging.served import Served
from prefkit.judging.synthesis import BETTER, THEME, WORSE

STAND_IN = "stand-in"  # its model's name
_WANTED = re.compile(re.escape(THEME[THEME.index("Write ") :]).replace(r"\{prompts\}", r"(\d+)"))


def stand_in_reply(
    body: dict,  # of a chat completion, as `prefkit.judging.synthesis` asks
) -> str:
    "What it says: a numbered list of requests, or a good or a poor answer to one of them."
    *before, last = body["messages"]
    wanted = _WANTED.search(last["content"])
    if wanted:
        made = tiny_records("prompts", "train", int(wanted[1]), body.get("seed", 0))
        return "\n".join(f"{number}. {row['prompt']}" for number, row in enumerate(made, 1))
    system = before[0]["content"] if before else BETTER
    side = "rejected" if system.startswith(WORSE.partition("{")[0]) else "chosen"
    try:
        request = read_request(last["content"])
    except DataError:
        return "I know nothing of that." if side == "chosen" else "Yes."
    rng = random.Random(derive_seed(STAND_IN, last["content"]))
    # as a model, it does not always do what it is told: whoever orders the answers errs at times
    return preference_pair(World(), request, rng, pool(), 1.0)[side][-1]["content"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self._send({"data": [{"id": STAND_IN}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = stand_in_reply(body)
        message = {"role": "assistant", "content": text}
        asked = sum(len(turn["content"].split()) for turn in body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": len(text.split())}  # words
        self._send({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    def _send(self, reply):
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def stand_in(**options):  # -> Served; options of it
    "The stand-in on a free port of this machine while the block runs."
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Served(STAND_IN, f"http://127.0.0.1:{server.server_port}/v1", key_env="", **options)
    finally:
        server.shutdown()
        server.server_close()
