"""Questions to any server with OpenAI's chat interface (vLLM, SGLang, llama.cpp, `transformers
serve`, a paid API): many at once, and no reply is lost or paid for twice.

Every reply is on disk before it is used. A run that was cut off, by an error, by Ctrl-C or by kill
-9, goes on from there. The API key is read from the environment when it is needed and is neither
stored nor shown. Written by hand, not exported from a notebook.
"""

import asyncio, base64, email.utils, json, os, random, re, threading, time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from filelock import FileLock, Timeout

from prefkit.core import (
    ConfigError,
    DataError,
    PrefkitError,
    Progress,
    announce,
    check_number,
    fingerprint,
    iter_jsonl,
)
from prefkit.data.thoughts import split_thought
from prefkit.judging.keys import check_key_host

RETRIED = (408, 409, 425, 429)  # besides 5xx: the server could not answer now
REFUSED = (400, 413, 422)  # this request is at fault, for instance too long; the next may not be
# servers that need more said than OpenAI's own fields; see `prefkit.judging.asking`
ENGINES = ("", "vllm", "sglang", "llama.cpp", "transformers")
MOST_BYTES = 2**26  # of a reply: whoever sends more does not answer
MOST_LEVELS = (
    64  # levels of a reply's JSON; what is deeper cannot be stored and read again everywhere
)
PART = 4  # letters in a row that tell something of a key
SECRET_LENGTH = 8  # a shorter "key" is a placeholder such as EMPTY, as local servers want it


@dataclass(frozen=True)
class Served:
    "A model behind an OpenAI-compatible server; raises `ConfigError` for a field out of range."

    model: str  # as the server calls it
    base_url: str  # with the version: http://localhost:8000/v1
    # the environment variable that holds the key, never the key; where it is not set, none is sent
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 16  # requests under way at once
    timeout: float = 60.0  # seconds for one try, from sending to the last byte
    retries: int = 4  # tries after the first
    # seconds before the first retry; doubled each time, at random down to half of it
    backoff: float = 1.0
    # seconds at most between two tries; a server that asks for more is not asked again in this run
    longest_wait: float = 60.0
    # what runs there, one of ENGINES, for settings that each server takes in its own way
    engine: str = ""

    def __post_init__(self):
        if not self.model or not isinstance(self.model, str):
            self._refuse("model", "give the name by which the server knows the model.")
        url = urlsplit(self.base_url if isinstance(self.base_url, str) else "")
        # the address is not repeated: what is wrong with it may be a password
        if "@" in url.netloc or url.query:
            self._refuse(
                "base_url",
                "no user, password, key or query in the address. Name the environment variable "
                "that holds the key in key_env.",
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            self._refuse("base_url", "give an address such as http://localhost:8000/v1.")
        # a key put here by mistake would be shown with the object: only what looks like a
        # variable's name is let in, and nothing is repeated
        if not isinstance(self.key_env, str) or not re.fullmatch(
            "([A-Z_][A-Z0-9_]*)?", self.key_env
        ):
            self._refuse(
                "key_env",
                "give the name of an environment variable in capitals, such as OPENAI_API_KEY (or "
                "nothing for a server without a key), not the key itself.",
            )
        if self.engine not in ENGINES:
            known = ", ".join(ENGINES[1:])
            self._refuse("engine", f"{self.engine!r} is none of {known} (empty: another).")
        check_number("concurrency", self.concurrency, whole=True, least=1)
        check_number("retries", self.retries, whole=True, least=0)
        check_number("timeout", self.timeout, above=0)
        check_number("backoff", self.backoff, least=0)
        check_number("longest_wait", self.longest_wait, least=0)

    @staticmethod
    def _refuse(name, what):
        raise ConfigError(f"{name}: {what}", field=name, reason="not usable")


class Secret:
    """An API key that does not show itself in a repr or traceback, and that can be taken out of
    texts.
    """

    # the environment variable; raises `ConfigError` for a key that no header can carry
    def __init__(self, key_env: str):
        self._key = os.environ.get(key_env, "").strip() if key_env else ""
        if re.search(r"[^\x21-\x7e]", self._key):
            raise ConfigError(
                f"the key in {key_env} has a space, a line break or another character that no key "
                "has. Set it anew.",
                field="key_env",
                reason="broken key",
            )
        forms = (
            self._key,
            quote(self._key, safe=""),
            json.dumps(self._key)[1:-1],
            base64.b64encode(self._key.encode()).decode().rstrip("="),
        )
        known = forms if len(self._key) >= SECRET_LENGTH else ()
        self._forms = sorted({form for form in known if form}, key=len, reverse=True)

    def __repr__(self):
        return "Secret(***)" if self._key else "Secret()"

    def __reduce__(self):
        raise TypeError("a key is not written anywhere")

    def __bool__(self):
        return bool(self._key)

    def reveal(self) -> str:
        return self._key

    # anything from JSON; the same without the key, and without characters that UTF-8 does not have
    def clean(self, value):
        if isinstance(value, dict):
            return {self.clean(name): self.clean(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [self.clean(entry) for entry in value]
        if not isinstance(value, str):
            return value
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for form in self._forms:
            value = value.replace(form, "[key]")
        return value

    def hide(self, text: str) -> str:
        """The same text of an error without the key and without any part of it: servers repeat
        its first or last letters.
        """
        text, shown, at = self.clean(text), [], 0
        while self._forms and at < len(text):
            end = at + PART
            while end <= len(text) and text[at:end] in self._key:
                end += 1
            found = end > at + PART
            shown.append("[key]" if found else text[at])
            at = end - 1 if found else at + 1
        return "".join(shown) if self._forms else text


def _client(server, secret):
    try:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    except ImportError:
        raise ConfigError(
            "a model behind a server needs the openai client: pip install 'prefkit[judge]'.",
            field="openai",
            reason="not installed",
        ) from None
    # our own retries: they are counted together with what the client cannot see, such as a reply
    # that is no JSON
    return AsyncOpenAI(
        base_url=server.base_url,
        api_key=secret.reveal() or "none",
        timeout=server.timeout,
        max_retries=0,
        # another host would get the prompts, and the key
        http_client=DefaultAsyncHttpxClient(
            follow_redirects=False, event_hooks={"response": [_limit]}
        ),
        default_headers={"Accept-Encoding": "identity"},  # so that what is counted is what comes
    )


async def _limit(response):
    "Let a reply be read up to `MOST_BYTES`, a compressed one to a fiftieth of it."
    whole = response.stream
    most = MOST_BYTES // (50 if response.headers.get("content-encoding") else 1)

    class Limited(type(whole)):  # of the client's own kind, which it asks for when it closes it
        def __init__(self):
            pass

        async def __aiter__(self):
            seen = 0
            async for part in whole:
                seen += len(part)
                if seen > most:
                    raise OSError(f"the reply is longer than {most:,} bytes")
                yield part

        async def aclose(self):
            await whole.aclose()

    response.stream = Limited()


# What is on disk.


class JsonLinesFile:
    """A JSON-lines file that is appended to, line by line, by one process at a time: what was
    appended is on disk, whatever happens next.

    Raises `ConfigError` where it cannot be written or another process has it, `DataError` for a
    line that is broken (a torn last one is dropped).
    """

    def __init__(
        self,
        path: str | Path,  # made where it is missing, with its folders
        needed: dict[str, type],  # what every record has, by name
    ):
        self.path, self.records = Path(path), []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror}. Choose another file; what is below "
                "the cache lies elsewhere where PREFKIT_CACHE names another folder.",
                field=str(self.path),
                reason="cannot be written",
            ) from None
        try:
            self._lock()
            self._mend()
            self._read(needed)
        except BaseException:
            self.close()  # the error itself goes on
            raise

    def _lock(self):
        "The file itself is locked; where there is no fcntl, one beside it."
        self.lock = None
        try:
            import fcntl
        except ImportError:  # Windows
            self.lock = FileLock(str(self.path.with_name(f".{self.path.name}.lock")), timeout=0)
        try:
            if self.lock:
                self.lock.acquire()
            else:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (Timeout, BlockingIOError):
            raise ConfigError(
                f"{self.path}: another process is writing there. Wait for it, or choose another "
                "file.",
                field=str(self.path),
                reason="in use",
            ) from None

    def _read(self, needed):
        for number, record, reason in iter_jsonl(self.path):
            lack = [
                name
                for name, kind in needed.items()
                if record is not None and not isinstance(record.get(name), kind)
            ]
            if reason or lack:
                raise DataError(
                    f"{self.path}, line {number}: {reason or f'no {lack[0]}'}. Delete that line: "
                    "what it stood for is made again.",
                    field=lack[0] if lack else None,
                    reason="broken line",
                )
            self.records.append(record)

    def _mend(self):
        """A last line without its end was torn when the process died: kept where it is whole, else
        dropped, which is said.
        """
        self.file.seek(0)
        whole, found, last = self.file.read().rpartition(b"\n")
        if not last:
            return
        try:
            is_whole = isinstance(json.loads(last), dict)
        except ValueError:
            is_whole = False
        if is_whole:
            self.file.write(b"\n")
        else:
            self.file.truncate(len(whole) + len(found))
            announce(
                f"{self.path}: its last line was torn off when a run was killed. It is dropped; "
                "what it stood for is made again."
            )
        self.file.flush()

    def append(self, *records: dict):
        "Add records and wait until they are on disk."
        self.file.write(
            b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
        )
        self.file.flush()
        os.fsync(self.file.fileno())
        self.records += records

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        "Let others write."
        self.file.close()  # and with it the lock
        if self.lock:
            self.lock.release()


class _Store(JsonLinesFile):
    "Replies as they came, by id and fingerprint of the request."

    def __init__(self, path):
        super().__init__(path, {"id": str, "request": str, "raw": dict})
        self.kept = {(record["id"], record["request"]): record["raw"] for record in self.records}

    def keep(self, name, request, raw):
        self.append({"id": name, "request": request, "raw": raw})
        self.kept[name, request] = raw


# One try.


@dataclass
class _Try:
    "What came of one try: a reply, or why there is none."

    raw: dict | None = None
    why: str = ""
    status: int | None = None  # None: no answer from the server at all, or none that can be read
    wait: float | None = None  # seconds that the server asks us to wait
    exhausted: bool = False  # a 429 that no waiting helps: the account is empty
    sent: bool = True  # False: no connection came about

    @property
    def free(self):
        "Whether the server has made nothing that it could want money for."
        return not self.sent or self.status is not None

    @property
    def again(self):
        return (
            self.raw is None
            and not self.exhausted
            and (self.status in (None, *RETRIED) or self.status >= 500)
        )


def retry_after(
    headers,  # of a reply, by lower-case name
    now: float,  # seconds since the epoch
) -> float | None:  # seconds; None where the server says nothing that can be read
    """How long a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date
    (RFC 9110, section 10.2.3).
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value):
            return float(value) * scale
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
        except (ValueError, TypeError, OverflowError):
            # neither a number nor a date: as if it were not there
            continue
    return None


def _refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def _is_deep(value, left=MOST_LEVELS) -> bool:
    "Whether JSON has more levels than are stored."
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(_is_deep(one, left - 1) for one in inner)


def _has_message(raw):
    "Whether a reply is what a chat completion looks like."
    choices = raw.get("choices") if isinstance(raw, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False
    return isinstance(choices[0].get("message"), dict)


async def _content(call, server, secret) -> "bytes | _Try":
    "What a call of the client brings, or why it brings nothing."
    import openai

    try:
        # the client's own limit is for the gap between two bytes
        async with asyncio.timeout(server.timeout):
            return (await call()).http_response.content
    except (TimeoutError, openai.APITimeoutError):
        return _Try(why=f"no reply within {server.timeout:g} seconds")
    except openai.APIStatusError as error:
        text = " ".join(secret.hide(error.response.text[:2000]).split())[:300] or "no reason given"
        kinds = (str(error.code), str(error.type))
        return _Try(
            why=f"status {error.status_code}: {text}",
            status=error.status_code,
            wait=retry_after(error.response.headers, time.time()),
            exhausted=error.status_code == 429 and "insufficient_quota" in kinds,
        )
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        why = f"no connection ({type(cause).__name__}: {cause})"
        sent = type(cause).__name__ not in ("ConnectError", "ConnectTimeout")
        return _Try(why=secret.hide(why[:2000])[:300], sent=sent)
    except OSError as error:  # of `_limit`
        return _Try(why=str(error))


async def _try(client, server, body, secret) -> _Try:
    rest = dict(body)
    known = {"model": rest.pop("model", server.model), "messages": rest.pop("messages")}
    ask = client.chat.completions.with_raw_response.create
    content = await _content(lambda: ask(**known, extra_body=rest), server, secret)
    if isinstance(content, _Try):
        return content
    try:
        raw = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _Try(why="the reply is not JSON")
    if _is_deep(raw):
        return _Try(why=f"the reply is nested more than {MOST_LEVELS} levels deep")
    if not _has_message(raw):
        said = raw.get("error") if isinstance(raw, dict) else None
        shown = f": {secret.hide(json.dumps(said)[:2000])[:300]}" if said else ""
        return _Try(why=f"the reply holds no choice with a message{shown}")
    return _Try(raw=secret.clean(raw))


CUT_OFF = ("length", "max_tokens", "model_length")  # finish reasons
APART = ("reasoning_content", "reasoning")  # vLLM, SGLang, DeepSeek; OpenRouter, newer vLLM


class Reply(str):
    "The text of a reply, without the thought before it."

    reasoning: str | None = None  # the thought
    ended: bool = True  # False: cut off at max_tokens
    thought_cut_off: bool = False  # the thought never ended

    @classmethod
    def of_text(cls, text: str) -> "Reply":  # as a model wrote it
        "A reply of which nothing but the text is known."
        said = split_thought(text)
        reply = cls(said.answer)
        reply.reasoning, reply.thought_cut_off = said.reasoning, said.cut_off
        return reply

    @classmethod
    def of(cls, choice: dict) -> "Reply":  # of a chat completion
        """A server gives the thought apart, or leaves it in the text; raises `DataError` where
        there is neither text nor thought.
        """
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content")
        apart = next((message[name] for name in APART if isinstance(message.get(name), str)), None)
        if not isinstance(text, str) and not apart:
            raise DataError(
                f"the reply has no text (finish_reason {finish!r})",
                field="content",
                reason="no text",
            )
        reply = cls.of_text(text or "")
        reply.ended = finish not in CUT_OFF
        if apart:
            reply.reasoning, reply.thought_cut_off = apart, not (text or "").strip()
        return reply


def _result(raw, read):
    "A reply as it is given to the caller; raises `DataError` where it is not usable."
    choice = raw["choices"][0]
    reply = Reply.of(choice)
    return {
        "reply": reply,
        "finish_reason": choice.get("finish_reason"),
        "usage": raw.get("usage"),
        "raw": raw,
        "read": read(reply) if read else None,
    }


# All requests.


class _Asking:
    "The state of one call of `ask_all`."

    def __init__(self, server, requests, store, read, secret, budget=None):
        self.server, self.requests, self.store = server, requests, store
        self.budget: Any = budget
        self.read, self.secret = read, secret
        self.prints = {name: self._print(body) for name, body in requests.items()}
        self.results: dict[str, dict] = {}
        self.failures: dict[str, str] = {}  # id -> why there is no reply
        self.stop: PrefkitError | str | None = None  # why nothing more is asked; an error is raised
        self.progress = None
        self.not_before = 0.0  # on the monotonic clock
        self.lost_in_a_row, self.refused, self.under_way = 0, 0, 0
        kept = {name: store.kept.get((name, self.prints[name])) for name in requests}
        self.todo = [name for name, raw in kept.items() if raw is None or not self._take(name, raw)]
        self.failures.clear()  # those are asked again

    def _print(self, body):
        rest = {name: value for name, value in body.items() if name != "model"}
        return fingerprint([body.get("model", self.server.model), rest])

    def _take(self, name, raw):
        try:
            self.results[name] = _result(raw, self.read)
        except DataError as error:
            self.failures[name] = self.secret.hide(str(error))
            return False
        return True

    async def all(self):
        queue = iter(self.todo)
        async with _client(self.server, self.secret) as client:
            workers = [
                asyncio.create_task(self._worker(client, queue))
                for _ in range(min(self.server.concurrency, len(self.todo)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        for name in queue:
            self.failures[name] = f"not asked: {self.stop}"

    async def _worker(self, client, queue):
        while self.stop is None and (name := next(queue, None)) is not None:
            await self._one(client, name)
            if self.progress:
                self.progress.update(note=f"{len(self.failures)} failed" if self.failures else "")

    async def _one(self, client, name):
        for attempt in range(self.server.retries + 1):
            await self._pause()
            if attempt and self.stop:
                break  # no more tries once it is clear that they are in vain
            place = await self._place(name) if self.budget else 0
            if place is None:
                self.failures[name] = f"not asked: {self.stop}"
                return
            body = self.requests[name]
            made = await _try(client, self.server, body, self.secret)
            if self.budget:
                self.under_way -= 1
                self.budget.settle(place, body, made.raw and made.raw.get("usage"), made.free)
            if made.raw is not None:
                # first of all: what is paid for is kept
                self.store.keep(name, self.prints[name], made.raw)
                self.lost_in_a_row = 0
                self._take(name, made.raw)
                return
            if not made.again or attempt == self.server.retries:
                break
            longest = self.server.longest_wait
            if made.wait is None:
                doubled = min(longest, self.server.backoff * 2**attempt)
                await asyncio.sleep(doubled * random.uniform(0.5, 1.0))
            elif made.wait <= longest:
                # the limit is everybody's
                self.not_before = max(self.not_before, time.monotonic() + made.wait)
            else:
                made.why += f" (asks to wait {made.wait:.0f} seconds, longest_wait is {longest:g})"
                break
        self.failures[name] = made.why + (f", after {attempt + 1} tries" if attempt else "")
        self._go_on_or_stop(made)

    async def _place(self, name):
        "A place within the limits, waited for; None: there will be none."
        body = self.requests[name]
        while self.stop is None:
            if self.budget.fits(body):
                self.under_way += 1
                await asyncio.sleep(self.budget.slot(body))
                if self.stop is None and self.not_before <= time.monotonic():
                    place = self.budget.reserve(body)
                    if place is not None:
                        return place
                self.under_way -= 1
                await self._pause()
            elif self.under_way:  # which may cost less than was set aside for it
                await asyncio.sleep(0.02)
            else:
                left = sum(each not in self.results for each in self.requests)
                self.stop = self.budget.reach(left)
        return None

    async def _pause(self):
        while (left := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, 0.05) * left)

    def _go_on_or_stop(self, made):
        "Whether it makes sense to go on after a failure."
        server = self.server
        here = f"{server.base_url} answers for model {server.model!r} with {made.why}"
        if made.again:
            self.lost_in_a_row += 1
            if self.lost_in_a_row >= max(20, 2 * server.concurrency):
                self.stop = (
                    f"{self.lost_in_a_row} requests in a row failed, the last with: {made.why}"
                )
        elif made.status in (401, 403):
            self.stop = _refused_key(server, self.secret, made.status)
        elif made.exhausted:
            self.stop = ConfigError(
                f"{here}. The account has no credit left: fill it up",
                field="key_env",
                reason="no credit",
            )
        elif made.status not in REFUSED:
            self.stop = ConfigError(
                f"{here}. Check base_url (with /v1 at its end) and the model's name",
                field="base_url",
                reason="no such model",
            )
        else:
            self.refused += 1  # none accepted so far: it is the settings, not this one prompt
            if not self.store.kept and self.refused >= min(3, len(self.todo)):
                self.stop = DataError(
                    f"{here}. Check the messages and settings of the requests (too long? a "
                    "setting that this server does not know?)",
                    field="requests",
                    reason="all refused",
                )


def _refused_key(server, secret, status):
    "The server's words are left out: some repeat a part of the key."
    name = server.key_env
    way_out = (
        f"Set the environment variable {name} to a key that may use this model"
        if name
        else "Name the environment variable that holds the key in key_env"
    )
    return ConfigError(
        f"{server.base_url} refuses the key for model {server.model!r} (status {status}; "
        f"{'one was' if secret else 'none was'} sent). {way_out}",
        field="key_env",
        reason="key refused",
    )


def _run(make: Callable):
    """Run a coroutine to its end, in a thread of its own where an event loop is running already, as
    in a notebook.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    state = {}

    async def main():
        state["loop"], state["task"] = asyncio.get_running_loop(), asyncio.current_task()
        await make()

    def target():
        try:
            asyncio.run(main())
        except BaseException as error:
            state["error"] = error  # handed to the caller's thread below

    thread = threading.Thread(target=target, name="prefkit-served", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        if "task" in state:
            state["loop"].call_soon_threadsafe(state["task"].cancel)
        thread.join()
        raise
    if "error" in state:
        raise state["error"]


def ask_all(
    server: Served,  # whom to ask
    # id -> body of a chat completion: messages, and temperature, max_tokens, seed ... as the server
    # knows them
    requests: dict[str, dict],
    # a JSON-lines file that keeps every reply as it comes; what it holds for the same id and the
    # same request is not asked again
    store: str | Path,
    *,
    # `Reply`, a text -> anything; raises `DataError` where the reply is not usable, which names it
    # a failure and asks again next time
    read: Callable | None = None,
    # a `prefkit.judging.budget.Budget`: limits on requests and tokens a minute and on money
    budget: Any = None,
    label: str = "asking",  # for the progress bar
    quiet: bool = False,  # no progress bar
    # id -> reply (a `Reply`: text without thought), finish_reason, usage, raw, read; and id -> why
    # there is none
) -> tuple[dict[str, dict], dict[str, str]]:
    """Replies of a server to many requests; what fails is named and the rest goes on.

    Raises `ConfigError` where going on makes no sense (key refused, no such model, no credit) and
    `DataError` where every request is refused, in both cases after keeping what was received. The
    address of the server is not part of a request: for another model behind the same name take
    another file. Where a spend limit is reached, it is a `ConfigError` too, unless the budget says
    `keep`: then those that were not asked are among the failures.
    """
    for name, body in requests.items():
        _check_request(name, body)
    check_key_host(server.base_url, server.key_env)
    secret = Secret(server.key_env)
    with _Store(store) as replies:
        asking = _Asking(server, requests, replies, read, secret, budget)
        if asking.todo and quiet:
            _run(asking.all)
        elif asking.todo:
            done = len(requests) - len(asking.todo)
            with Progress(len(requests), label, initial=done) as asking.progress:
                _run(asking.all)
    if isinstance(asking.stop, PrefkitError):
        raise type(asking.stop)(
            f"{asking.stop}. {len(asking.results)} of {len(requests)} replies are kept in "
            f"{Path(store).name}; a second run asks only for the rest.",
            field=asking.stop.field,
            reason=asking.stop.reason,
        )
    in_order = lambda found: {name: found[name] for name in requests if name in found}
    return in_order(asking.results), in_order(asking.failures)


def reach(
    server: Served,  # that is going to be asked
):
    """Ask a server once which models it has, so that one that is away, refuses the key or lacks the
    model is known before hours of work; raises `ConfigError`.

    Only where the list of models does not settle it (it is not there, or the model is not in it) a
    question of one token is asked.
    """
    check_key_host(server.base_url, server.key_env)
    secret, found = Secret(server.key_env), []

    async def ask():
        async with _client(server, secret) as client:
            found.append(await _content(client.models.with_raw_response.list, server, secret))
            if not _settled(found[0], server):
                short = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
                found.append(await _try(client, server, short, secret))

    _run(ask)
    made = found[-1]
    here = (*REFUSED, 405, 501, 429)  # it answers; what it refuses depends on the request
    if not isinstance(made, _Try) or made.raw is not None:
        return
    if made.status in here and not made.exhausted:
        return
    if made.status in (401, 403):
        error = _refused_key(server, secret, made.status)
        raise type(error)(f"{error}.", field=error.field, reason=error.reason)
    if made.status == 404:
        raise ConfigError(
            f"{server.base_url} has no model {server.model!r} ({made.why}). Check base_url (with "
            "/v1 at its end) and the model's name.",
            field="model",
            reason="no such model",
        )
    raise ConfigError(
        f"{server.base_url} cannot be asked for model {server.model!r}: {made.why}. Start the "
        "server, mend base_url or, where credit has run out, fill up the account; so far nothing "
        "has been run.",
        field="base_url",
        reason="unreachable",
    )


def _settled(found, server):
    "Whether the list of models says enough: the model is in it, or the server is at fault."
    if isinstance(found, _Try):
        # transformers serve cannot list where nothing was ever fetched from the Hub: 500
        return found.status not in (404, 500)
    try:
        listed = json.loads(found)["data"]
        return server.model in [one.get("id") for one in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False  # no list


def _check_request(name, body):
    if not isinstance(name, str):
        raise DataError(
            f"request {name!r}: an id must be a string.", field="id", reason="not a string"
        )
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise DataError(
            f"request {name}: needs a list of messages.", field="messages", reason="missing"
        )
    if body.get("stream"):
        raise ConfigError(
            f"request {name}: stream is not supported here; leave it out.",
            field="stream",
            reason="not supported",
        )
