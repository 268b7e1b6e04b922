"""What asking a server may cost: requests and tokens a minute, and money. A plain module.

What every try may cost at most is set aside, on disk, before it is sent, and replaced by what the
server says it took. So the limit holds with many requests under way, and for a run that was killed.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefkit.core import ConfigError, check_number
from prefkit.judging.served import JsonLinesFile, Served, ask_all

PRICES = ("prompt", "completion")
ON_SPEND_LIMIT = ("error", "keep")
# tokens that a chat template may put around a conversation, and around each message
AROUND_ALL, AROUND_EACH = 64, 8


@dataclass(frozen=True)
class AskingLimits:
    "Limits for the requests to one server; raises `ConfigError` for a field out of range."

    requests_per_minute: float | None = None  # tries are sent evenly; None: no limit
    # tokens, as many as set aside: what a prompt may have, and max_tokens; None: no limit
    tokens_per_minute: float | None = None
    price_per_million: dict = field(default_factory=dict)  # {prompt: , completion: } of tokens
    spend_limit: float | None = None  # in the currency of the prices; None: no limit
    on_spend_limit: str = "error"  # or keep: go on with what came

    def __post_init__(self):
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        given = self.price_per_million
        if not isinstance(given, dict) or (given and set(given) != set(PRICES)):
            raise ConfigError(
                f"price_per_million: {given!r} is not {{prompt: 0.4, completion: 1.6}}.",
                field="price_per_million",
                reason="not two prices",
            )
        for name, price in given.items():
            check_number(f"price_per_million.{name}", price, least=0)
        if self.on_spend_limit not in ON_SPEND_LIMIT:
            raise ConfigError(
                f"on_spend_limit: {self.on_spend_limit!r} is none of {', '.join(ON_SPEND_LIMIT)}.",
                field="on_spend_limit",
                reason="no such choice",
            )
        if self.spend_limit is None:
            return
        check_number("spend_limit", self.spend_limit, above=0)
        if not given:
            raise ConfigError(
                "spend_limit: what is spent is known by the prices. Give price_per_million, such "
                "as {prompt: 0.4, completion: 1.6}.",
                field="price_per_million",
                reason="missing",
            )

    def money(self, prompt: int, completion: int) -> float | None:  # None: no prices
        "What so many tokens cost."
        if not self.price_per_million:
            return None
        prices = self.price_per_million
        return (prompt * prices["prompt"] + completion * prices["completion"]) / 1e6


def most_tokens(body: dict) -> tuple[int, int | None]:
    """Tokens that a request may take: of the prompt, which has no more than bytes, and of the
    answers; None where the request does not limit these.
    """
    texts = [str(turn.get("content") or "") for turn in body["messages"]]
    prompt = sum(len(text.encode("utf-8", "replace")) + AROUND_EACH for text in texts) + AROUND_ALL
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    return prompt, None if most is None else most * body.get("n", 1)


NEEDED: dict[str, type] = {"try": int, "prompt": int, "completion": int, "is": str, "at": float}


class Budget:
    """Limits, and what was spent of them so far, which a file keeps. Use it as a context manager,
    for any number of calls of `ask_all`, one after the other.

    Raises what `JsonLinesFile` raises.
    """

    def __init__(
        self,
        limits: AskingLimits,
        path: str | Path,  # a JSON-lines file of tries; the same one to go on
    ):
        self.limits, self.tries = limits, {}
        self.tokens = dict.fromkeys(PRICES, 0)  # of all tries, those under way among them
        self.file = JsonLinesFile(path, NEEDED)
        last = 0.0
        for record in self.file.records:
            self._count(record)
            last = max(last, record["at"])
        self.more = 0  # tokens by which a prompt was longer than thought, so far
        self.free_at = time.monotonic()  # when the next try may be sent
        if last:
            latest = next(each for each in self.file.records if each["at"] == last)
            gap = self._gap(latest["prompt"], latest["completion"])
            self.free_at += max(0.0, last + gap - time.time())
        self.reached = ""  # why nothing more is asked

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def fits(self, body: dict) -> bool:
        """Whether the spend limit has room for a try; raises `ConfigError` where nothing limits
        what it may cost.
        """
        limits, (prompt, completion) = self.limits, self._most(body)
        if limits.spend_limit is None:
            return True
        prompt, completion = prompt + self.tokens["prompt"], completion + self.tokens["completion"]
        return (limits.money(prompt, completion) or 0.0) <= limits.spend_limit

    def slot(self, body: dict) -> float:  # seconds
        "How long a try has to wait for the rates; the next one waits longer."
        now = time.monotonic()
        start = max(now, self.free_at)
        self.free_at = start + self._gap(*self._most(body))
        return start - now

    def reserve(self, body: dict) -> int | None:  # the try's number; None: there is no room
        "Set aside what a try may cost, which is then sent."
        if not self.fits(body):
            return None
        number = len(self.tries)
        self._write(number, *self._most(body), "reserved", at=time.time())
        return number

    def settle(
        self,
        number: int,  # of the try
        body: dict,  # that was sent
        usage: dict | None,  # as the server tells it
        free: bool = False,  # the server has made nothing
    ):
        "Put what a try took in the place of what was set aside; where nobody says, that stays."
        held = self.tries[number]
        usage = usage if isinstance(usage, dict) else {}
        prompt, completion = (usage.get(f"{name}_tokens") for name in PRICES)
        if free:
            self._write(number, 0, 0, "free", held["at"])
        elif isinstance(prompt, int) and isinstance(completion, int):
            self.more = max(self.more, prompt - most_tokens(body)[0])
            self._write(number, prompt, completion, "told", held["at"])
        else:
            self._write(number, held["prompt"], held["completion"], "estimated", held["at"])

    def spent(self) -> dict:
        """Tokens and money so far (None: no prices), and tries whose tokens are an upper bound,
        since the server did not tell or no reply came.
        """
        prompt, completion = self.tokens.values()
        kept = self.tries.values()
        return {
            "tries": len(kept),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "estimated": sum(each["is"] in ("reserved", "estimated") for each in kept),
            "money": self.limits.money(prompt, completion),
        }

    def words(self) -> str:
        "What was spent, in words."
        said = self.spent()
        text = f"{said['prompt_tokens']:,} + {said['completion_tokens']:,} tokens in "
        text += f"{said['tries']:,} requests"
        if said["money"] is not None:
            text = f"{said['money']:.6g} ({text})"
        if said["estimated"]:
            text += f"; {said['estimated']:,} of them counted with the most they may have taken"
        return text

    def reach(self, left: int) -> ConfigError | str:  # an error where the limits say so
        "Why nothing more is asked, with so many requests left."
        self.reached = (
            f"spend_limit {self.limits.spend_limit:g}: the next request could pass it. Spent: "
            f"{self.words()}. {left:,} requests are left; raise spend_limit for them"
        )
        if self.limits.on_spend_limit == "keep":
            return self.reached
        return ConfigError(self.reached, field="spend_limit", reason="spend limit reached")

    def to_dict(self) -> dict:
        "Limits and what was spent, for an account."
        return {**asdict(self.limits), **self.spent(), "reached": self.reached}

    def _most(self, body):
        "Tokens to set aside for a try."
        prompt, completion = most_tokens(body)
        for name in ("spend_limit", "tokens_per_minute"):
            if completion is None and getattr(self.limits, name) is not None:
                raise ConfigError(
                    f"{name}: a request without max_tokens may take any number of tokens. Give "
                    "max_tokens.",
                    field="max_tokens",
                    reason="missing",
                )
        return prompt + self.more, completion or 0

    def _gap(self, prompt, completion):
        "Seconds between a try of so many tokens and the next."
        limits, gaps = self.limits, [0.0]
        if limits.requests_per_minute:
            gaps.append(60 / limits.requests_per_minute)
        if limits.tokens_per_minute:
            gaps.append(60 * (prompt + completion) / limits.tokens_per_minute)
        return max(gaps)

    def _write(self, number, prompt, completion, kind, at):
        record = {"try": number, "prompt": prompt, "completion": completion, "is": kind, "at": at}
        self.file.append(record)
        self._count(record)

    def _count(self, record):
        "The last record of a try holds."
        before = self.tries.get(record["try"], dict.fromkeys(PRICES, 0))
        for name in PRICES:
            self.tokens[name] += record[name] - before[name]
        self.tries[record["try"]] = record


def ask_within(
    limits: dict,  # of `AskingLimits`; {}: none
    server: Served,
    requests: dict[str, dict],  # as `ask_all` takes them
    store: str | Path,  # as `ask_all` takes it; what was spent stands beside it, .spent.jsonl
    read: Callable | None,  # as `ask_all` takes it
    label: str,  # for the progress bar
) -> tuple[dict[str, dict], dict[str, str]]:
    "`ask_all` with limits, where there are any."
    if not limits:
        return ask_all(server, requests, store, read=read, label=label)
    with Budget(AskingLimits(**limits), Path(store).with_suffix(".spent.jsonl")) as budget:
        return ask_all(server, requests, store, read=read, budget=budget, label=label)
