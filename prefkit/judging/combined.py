"""Rewards that ask others: several with weights, a server of one's own, a judge. Who imports this
adds them to `REWARDS`. Not from a notebook.
"""

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar
from uuid import uuid4

from prefkit.core import (
    ConfigError,
    PrefkitError,
    announce,
    cache_folder,
    check_number,
    fingerprint,
    iter_jsonl,
)
from prefkit.judging.rewards import REWARDS, RewardSource, check_data, make_reward
from prefkit.judging.judges import JUDGES, Judge
from prefkit.judging.keys import check_key_host
from prefkit.judging.kinds import lookup
from prefkit.judging.served import MOST_BYTES, JsonLinesFile, Secret
from prefkit.judging.several import judge_scores


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    "Another host would get the answers, and the key."

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(kw_only=True)
class WeightedReward(RewardSource):
    "Several rewards, each with a weight, and each logged by its name."

    name = "weighted"
    reads_thoughts = True  # each of them as it does by itself

    # name -> {weight: 1.0, ...options of that reward; kind: its kind, where the name is your own}
    of: dict

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.of, dict) or not self.of:
            raise ConfigError(
                "of: name at least one reward, such as {gold: {weight: 1.0}}.",
                field="of",
                reason="missing",
            )
        _ = self.parts

    @cached_property
    def parts(self) -> dict[str, tuple[float, RewardSource]]:  # name -> weight, reward
        made = {}
        for name, options in self.of.items():
            options = dict(options or {})
            weight, kind = options.pop("weight", 1.0), options.pop("kind", name)
            check_number(f"of.{name}.weight", weight)
            if name == "reward":
                raise ConfigError(
                    "of: `reward` is what the sum is called. Call that one otherwise, with `kind`.",
                    field="of.reward",
                    reason="taken",
                )
            made[name] = weight, make_reward(kind, options, f"of, {name}")
        return made

    def _each(self, act):
        for name, (_, source) in self.parts.items():
            try:
                act(source)
            except PrefkitError as error:
                raise error.at(f"of, {name}") from error

    def check(self, record):
        self._each(lambda source: check_data(source, record))

    def reach(self):
        self._each(lambda source: source.reach())

    def load(self):
        self._each(lambda source: source.load())

    def rates(self, rows, answers):
        found = {name: source(rows, answers) for name, (_, source) in self.parts.items()}
        return [self._sum(dict(zip(found, said))) for said in zip(*found.values())]

    def _sum(self, said):
        "The sum, each reward by its name, and the parts behind each."
        made = {"reward": sum(self.parts[name][0] * one["reward"] for name, one in said.items())}
        for name, one in said.items():
            made[name] = one["reward"]
            made |= {f"{name}_{part}": value for part, value in one.items() if part != "reward"}
        return made

    def known_by(self):
        return {
            name: [weight, source.fingerprint()] for name, (weight, source) in self.parts.items()
        }


@dataclass(kw_only=True)
class HttpReward(RewardSource):
    """Numbers from a server of one's own: POST {"prompts": [messages], "answers": [text]}, to which
    it replies {"rewards": [number]}. Replies are kept, so that nothing is asked twice.
    """

    name = "http"

    url: str
    key_env: str = ""  # a variable of the environment with a key, sent as Authorization: Bearer
    batch_size: int = 16  # answers in one request
    concurrency: int = 4  # requests at a time
    retries: int = 4  # after an error of the line or of the server, ever later
    timeout: float = 60.0  # seconds for one reply
    wait: float = 1.0  # seconds before the first retry; doubled each time
    cache: bool = True  # keep replies below the cache folder, and do not ask for them again
    version: str = ""  # of what runs there: another one has replies of its own

    def __post_init__(self):
        super().__post_init__()
        if not str(self.url).startswith(("http://", "https://")):
            raise ConfigError(
                f"url: {self.url!r} is no address. Write http://host:port/path.",
                field="url",
                reason="no address",
            )
        for name in ("batch_size", "concurrency"):
            check_number(name, getattr(self, name), whole=True, least=1)
        check_number("retries", self.retries, whole=True, least=0)
        for name in ("timeout", "wait"):
            check_number(name, getattr(self, name), above=0)

    def reach(self):
        self._key()
        self._ask([{"prompt": [{"role": "user", "content": "ping"}], "text": "pong"}])

    def _key(self):
        check_key_host(self.url, self.key_env)
        if self.key_env and not os.environ.get(self.key_env):
            raise ConfigError(
                f"the environment has no variable {self.key_env} with a key for {self.url}.",
                field="key_env",
                reason="not set",
            )
        return os.environ.get(self.key_env, "")

    def known_by(self):
        return {"url": self.url, "version": self.version}

    @property
    def store(self):
        "Where replies of this address are kept: a file for each process that has asked."
        return cache_folder() / "rewards" / fingerprint([self.url, self.version])

    def rates(self, rows, answers):
        wanted = [{"prompt": row["prompt"], "text": one["text"]} for row, one in zip(rows, answers)]
        keys = [fingerprint(one) for one in wanted]
        known = self._kept() if self.cache else {}
        open_ones = {key: one for key, one in zip(keys, wanted) if key not in known}
        names = list(open_ones)
        batches = [names[at : at + self.batch_size] for at in range(0, len(names), self.batch_size)]
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = pool.map(lambda batch: self._ask([open_ones[key] for key in batch]), batches)
            for batch, said in zip(batches, asked):
                known |= dict(zip(batch, said))
                if self.cache:
                    self._keep(batch, said)
        return [known[key] for key in keys]

    def _kept(self):
        lines = [line for file in sorted(self.store.glob("*.jsonl")) for line in iter_jsonl(file)]
        found = {record["key"]: record["reward"] for _, record, broken in lines if not broken}
        if found and not self._told:
            type(self)._told = True  # once a process
            announce(
                f"reward {self.name}: {len(found):,} replies of {self.url} are known from before. "
                "If another model runs there now, give it another version, or cache: false."
            )
        return found

    def _keep(self, batch, said):
        with JsonLinesFile(self.store / f"{self._own}.jsonl", {"key": str, "reward": float}) as own:
            own.append(*({"key": key, "reward": value} for key, value in zip(batch, said)))

    _told: ClassVar[bool] = False

    @cached_property
    def _own(self):
        return uuid4().hex

    def _ask(self, batch: list[dict]) -> list[float]:
        "One request, again where the line or the server fails; raises `ConfigError`."
        sent = {
            "prompts": [one["prompt"] for one in batch],
            "answers": [one["text"] for one in batch],
        }
        key = self._key()
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(self.url, json.dumps(sent).encode(), headers)
        for tried in range(self.retries + 1):
            try:
                with OPENER.open(request, timeout=self.timeout) as reply:
                    return self._read(self._whole(reply), len(batch))
            except urllib.error.HTTPError as error:
                said = f"{error.code} {error.reason}"
                if error.code < 500 and error.code != 429:
                    raise self._failed(said) from None
            except (OSError, http.client.HTTPException) as error:
                said = str(error)
            if tried < self.retries:
                time.sleep(self.wait * 2**tried)
        raise self._failed(f"{said}, {self.retries + 1} times")

    def _whole(self, reply) -> bytes:
        "What a reply holds; raises `OSError` where it is too long, takes too long or is cut."
        # the connection's own limit is for the gap between two bytes
        until, whole = time.monotonic() + self.timeout, bytearray()
        while part := reply.read1():
            whole += part
            if len(whole) > MOST_BYTES:
                raise OSError(f"the reply is longer than {MOST_BYTES:,} bytes")
            if time.monotonic() > until:
                raise OSError(f"no whole reply within {self.timeout:g} seconds")
        if reply.length:
            raise OSError(f"the reply is cut, {reply.length:,} bytes before its end")
        return bytes(whole)

    def _failed(self, said):
        said = Secret(self.key_env).hide(said)
        return ConfigError(f"{self.url}: {said}.", field="url", reason="no reply")

    def _read(self, text, n):
        try:
            said = [float(one) for one in json.loads(text)["rewards"]]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise self._failed(f'the reply {text[:80]!r} is not {{"rewards": [numbers]}}') from None
        if not all(map(math.isfinite, said)):
            raise self._failed(f"the reply {text[:80]!r} has a reward that is no finite number")
        if len(said) != n:
            raise self._failed(f"{len(said)} rewards for {n} answers")
        return said


@dataclass(kw_only=True)
class JudgeReward(RewardSource):
    """A judge as a reward: its score; of one that compares, the share of the other answers to the
    same prompt that an answer beats.
    """

    name = "judge"

    judge: dict  # {name: options}, one judge as evaluations take it

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.judge, dict) or len(self.judge) != 1:
            raise ConfigError(
                f"judge: name one, such as {{pairwise: {{model: ...}}}}, not {self.judge!r}.",
                field="judge",
                reason="not one",
            )
        _ = self.asked

    @cached_property
    def asked(self) -> Judge:
        [(name, options)] = self.judge.items()
        options = dict(options or {})
        kind = options.pop("kind", name)
        return lookup(JUDGES, kind, "judge").make(kind, options)

    def check(self, record):
        known = isinstance(record, dict) and "prompt" in record
        self.asked.check(record if known else None)

    def reach(self):
        self.asked.reach()

    def load(self):
        self.asked.load()

    def known_by(self):
        return {"judge": self.judge}

    def rates(self, rows, answers):
        groups = {}
        for place, row in enumerate(rows):
            groups.setdefault(fingerprint(row["prompt"]), []).append(place)
        if self.asked.compares and any(len(places) < 2 for places in groups.values()):
            raise ConfigError(
                f"judge {self.asked.name} compares answers, and of a prompt there is one only. "
                "Draw more samples, or take a judge that scores.",
                field="samples",
                reason="nothing to compare",
            )
        said = [[answers[place] for place in places] for places in groups.values()]
        prompts = [rows[places[0]]["prompt"] for places in groups.values()]
        names = [fingerprint([name, said[place]]) for place, name in enumerate(groups)]
        store = cache_folder() / "judged" / f"{fingerprint(self.judge)}.jsonl"
        scores = judge_scores(self.asked, names, prompts, said, store)
        found = {
            place: score
            for places, each in zip(groups.values(), scores)
            for place, score in zip(places, each)
        }
        return [found[place] for place in range(len(rows))]


for kind in (WeightedReward, HttpReward, JudgeReward):
    REWARDS[kind.name] = kind
