"""Pairs that a model behind a server makes: prompts in the theme of others, and to each of them an
answer that is good by criteria given as text and one that falls short of them. A plain module: the
pipeline `synthesize` uses it.

As in "Exploratory Preference Optimization and Synthetic Dataset Generation for Preference
Alignment" (Chaturvedi and Shroff), sections 3.3 and 5.3. The instructions are ours: the report does
not print its own.
"""

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefkit.core import (
    ConfigError,
    DataError,
    announce,
    cache_folder,
    check_number,
    derive_seed,
    fingerprint,
    nearest,
)
from prefkit.data.duplicates import Seen, words_alone
from prefkit.data.records import RowReport
from prefkit.judging.asking import decoding, request_body
from prefkit.judging.budget import Budget
from prefkit.judging.records import text_of
from prefkit.judging.served import REFUSED, Served, ask_all

# section 3.3: what the reward model of its leaderboard goes by
REPORT_CRITERIA = (
    "Chat quality (fluency, relevance, coherence) in basic interactions, adversarial scenarios, "
    "multi-turn consistency"
)
PREFERRED = {"temperature": 0.7, "max_tokens": 800}  # section 5.3
DISPREFERRED = {"temperature": 0.9, "max_tokens": 400}  # section 5.3
# ours: seed prompts shown in a request, new ones asked for in it, and how they are drawn
PROMPTING = {"seeds": 4, "prompts": 10, "temperature": 1.0, "max_tokens": 2000}

THEME = """Here are {seeds} requests that people sent to an assistant.

{shown}

Write {prompts} new requests in the same theme: of the same kinds, as hard, as long and in the \
same tone, but about other things. None may repeat or rephrase one of those above, and none may \
rest on another. Number them from 1 to {prompts} and write nothing else."""
BETTER = """Answer the user's request as well as you can. Your answer will be judged by these \
criteria:

{criteria}

Write the answer alone, and do not speak of the criteria."""
WORSE = """You help to make examples of answers that people like less. Answer the user's request \
in a way that is plausible at first sight and clearly falls short of these criteria:

{criteria}

Write the answer alone. Do not say that it is a poor one, and do not speak of the criteria."""

# how an answer begins that is none; finish reasons and fields of servers are looked at besides
REFUSAL = re.compile(
    r"\W*(i['’]?m|i am|we['’]?re)? ?(very |so |really )?(sorry|afraid)\b.{0,60}\b"
    r"(can['’]?t|can ?not|unable|not able|won['’]?t)\b"
    r"|\W*(as an ai\b.{0,60})?\bi (can['’]?t|can ?not|won['’]?t|am unable to|am not able to) "
    r"(\w+ )?(help|assist|fulfil|comply|provide|create|write|generate|do that|answer)",
    re.I | re.S,
)
ROUNDS = 4  # requests for prompts at most, as a multiple of what would be enough without losses


def _options(name, default, given):
    "Options with those that are given in place of the default ones; `ConfigError` for others."
    if not isinstance(given, dict):
        raise ConfigError(f"{name}: {given!r} is no dict.", field=name, reason="wrong type")
    for option in given:
        if option not in default:
            raise ConfigError(
                f"{name}: there is no option {option!r}.{nearest(option, default)}",
                field=f"{name}.{option}",
                reason="unknown option",
            )
    full = {**default, **given}
    check_number(f"{name}.temperature", full["temperature"], least=0)
    for option in full.keys() - {"temperature"}:
        check_number(f"{name}.{option}", full[option], whole=True, least=1)
    return full


@dataclass
class Recipe:
    "What is asked for, and how; raises `ConfigError` for a field out of range."

    criteria: str = REPORT_CRITERIA  # what makes an answer good
    prompting: dict = field(default_factory=dict)  # in place of some of `PROMPTING`
    preferred: dict = field(default_factory=dict)  # in place of some of `PREFERRED`
    dispreferred: dict = field(default_factory=dict)  # in place of some of `DISPREFERRED`
    near: float = 0.8  # prompts are alike from this Jaccard similarity of three-word shingles on
    on_bad_rows: str = "drop"  # replies that are of no use: drop (and count) or error
    seed: int = 0  # of what is shown, and of the server's draws

    def __post_init__(self):
        if not isinstance(self.criteria, str) or not self.criteria.strip():
            raise ConfigError(
                "criteria: say in words what makes an answer good.",
                field="criteria",
                reason="missing",
            )
        self.prompting = _options("prompting", PROMPTING, self.prompting)
        self.preferred = _options("preferred", PREFERRED, self.preferred)
        self.dispreferred = _options("dispreferred", DISPREFERRED, self.dispreferred)
        Seen(self.near)
        if self.on_bad_rows not in ("drop", "error"):
            raise ConfigError(
                f"on_bad_rows is {self.on_bad_rows!r}, but must be drop or error.",
                field="on_bad_rows",
                reason="no such choice",
            )

    def to_dict(self) -> dict:
        return asdict(self)

    def body(self, server: Served, messages: list[dict], how: dict, name: str) -> dict:
        "A request; its name gives the seed of its draw."
        settings = {"temperature": how["temperature"], "max_new_tokens": how["max_tokens"]}
        settings |= {"seed": self.seed} if how["temperature"] > 0 else {}
        return request_body(server.engine, messages, decoding(settings), name)


@dataclass
class Asker:
    """A server with the store of its replies and a budget: called with requests by name, it gives
    the replies, and why the server refused the others.

    Raises `DataError` where some were lost: a second run asks only for these.
    """

    server: Served
    store: str | Path  # a JSON-lines file that keeps the replies
    budget: Budget

    def __call__(self, requests: dict[str, dict], label: str) -> tuple[dict, dict]:
        said, failed = ask_all(self.server, requests, self.store, budget=self.budget, label=label)
        own = (*(f"status {code}:" for code in REFUSED), "the reply has no text")
        refused = {name: why for name, why in failed.items() if why.startswith(own)}
        lost = {
            name: why
            for name, why in failed.items()
            if name not in refused and not (self.budget.reached and why.startswith("not asked"))
        }
        if lost:
            some = "; ".join(f"{name}: {why}" for name, why in list(lost.items())[:3])
            raise DataError(
                f"{len(lost):,} of {len(requests):,} requests ({label}) have no reply ({some}"
                f"{'; ...' if len(lost) > 3 else ''}). What came is kept; a second run asks only "
                "for the rest.",
                field="server",
                reason="no reply",
            )
        return said, refused


def store_folder(
    server: Served,
    *parts,  # the data set, the split, the seed: what tells one set of pairs from another
) -> Path:  # it need not exist
    """Where replies are kept, and what they have cost: not in a run's folder, so that a run with
    another limit goes on with them.
    """
    known = [server.model, server.base_url, server.engine, *parts]
    return cache_folder() / "synthesized" / fingerprint(known)


# ---- prompts


def _strings(value):
    "The texts in a JSON value that is a list, or holds one."
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        value = lists[0] if len(lists) == 1 else []
    if not isinstance(value, list):
        return []
    found = []
    for entry in value:
        if isinstance(entry, dict):
            texts = [text for text in entry.values() if isinstance(text, str)]
            entry = max(texts, key=len, default=None)
        if isinstance(entry, str):
            found.append(entry)
    return found


def _of_json(text):
    fenced = re.search(r"```(?:json)?\s*(.*?)```", text, re.S)
    text = fenced[1] if fenced else text
    starts = [at for at in (text.find("["), text.find("{")) if at >= 0]
    try:
        return _strings(json.JSONDecoder().raw_decode(text[min(starts) :])[0])
    except (ValueError, RecursionError):  # none, or another text in brackets
        return []


def _of_list(text, mark):
    "Points of a list, each with the lines that go on with it; numbers have to follow each other."
    found = []
    for line in text.splitlines():
        point = mark.match(line)
        number = point and point.groupdict().get("number")
        if point and (number is None or int(number) == len(found) + 1):
            found.append([point["text"]])
        elif found:
            found[-1].append(line)
    points = ["\n".join(lines).strip() for lines in found]
    if points and not any("\n\n" in point for point in points[:-1]):
        points[-1] = points[-1].split("\n\n")[0]  # what is said after the list
    return points


_NUMBERED = re.compile(
    r"[\s*_#]*(?:request|prompt)?\s*(?P<number>\d{1,3})\s*[.):]\**\s+(?P<text>.*)", re.I
)
_BULLETS = re.compile(r"\s*[-*•]\s+(?P<text>.*)")


def read_prompts(
    text: str,  # of a reply
    ended: bool = True,  # False: it was cut off, and the last prompt with it
) -> list[str]:  # at least one, none of them empty
    """The prompts in a reply: a list in JSON, a numbered list or one with bullets, whatever stands
    around it; raises `DataError`.
    """
    if ended and (found := _of_json(text)):
        points = found
    else:
        lists = (_of_list(text, mark) for mark in (_NUMBERED, _BULLETS))
        points = next((points for points in lists if points), [])
        points = points if ended else points[:-1]
    points = [
        re.sub(r'^(["“*]+)(.*?)(["”*]+)$', r"\2", point.strip(), flags=re.S) for point in points
    ]
    points = [point.strip() for point in points if words_alone(point)]
    if points:
        return points
    why = "" if ended else " before it was cut off (raise prompting.max_tokens)"
    raise DataError(
        f"the reply {text[:80]!r} holds no list of prompts{why}.",
        field="reply",
        reason="unreadable reply",
    )


class NewPrompts:
    "Prompts in the theme of a seed set, and the account of how they came about."

    def __init__(
        self,
        recipe: Recipe,
        seeds: Iterable[dict],  # rows of kind prompts
        # rows of kind prompts that a model will be tested on, by the name of their split
        held_out: dict[str, Iterable[dict]],
    ):
        self.recipe, self.seen = recipe, Seen(recipe.near)
        for split, rows in held_out.items():  # before the seeds: a leak is the worse of the two
            for row in rows:
                self.seen.add(text_of(row["prompt"]), ("held out", f"{row['row']}"))
        self.seeds = list(seeds)
        for row in self.seeds:
            self.seen.add(text_of(row["prompt"]), ("seed", row["row"]))
        self.rows: list[dict] = []  # prompt_id, prompt (text), lineage
        self.dropped: list[dict] = []
        self.replies, self.report = RowReport("requests for prompts"), RowReport("new prompts")

    def make(
        self,
        wanted: int,  # prompts
        ask: Asker,
    ) -> list[dict]:  # the rows
        """Ask until there are enough, or until it is in vain, which is said; raises `DataError`
        where there are none.
        """
        each, model = self.recipe.prompting["prompts"], ask.server.model
        most, asked = ROUNDS * -(-wanted // each), 0
        while len(self.rows) < wanted and asked < most and not ask.budget.reached:
            count = min(most - asked, -(-(wanted - len(self.rows)) // each))
            names = [f"prompts {number}" for number in range(asked, asked + count)]
            shown = {name: self._shown(name) for name in names}
            said, refused = ask(
                {name: self._body(ask.server, name, shown[name]) for name in names}, "new prompts"
            )
            for name in names:
                if name in said or name in refused:
                    self._read(name, said.get(name), refused.get(name), shown[name], model, wanted)
            asked += count
        if not self.rows:
            raise DataError(
                f"{model} has made no prompt that could be used. Look at the replies, and take "
                f"another model, or show it other seeds.\n{self.replies}\n{self.report}",
                field="server",
                reason="no prompt is left",
            )
        if len(self.rows) < wanted:
            announce(
                f"{len(self.rows):,} new prompts, fewer than the {wanted:,} that were wanted: "
                f"{ask.budget.reached or f'{asked:,} requests brought no more'}."
            )
        return self.rows

    def _shown(self, name):
        "The seeds that a request shows."
        rng = random.Random(derive_seed(self.recipe.seed, "seeds", name))
        count = min(self.recipe.prompting["seeds"], len(self.seeds))
        return rng.sample(self.seeds, count)

    def _body(self, server, name, shown):
        texts = [f"[request]\n{text_of(row['prompt'])}" for row in shown]
        count = self.recipe.prompting["prompts"]
        text = THEME.format(seeds=len(shown), shown="\n\n".join(texts), prompts=count)
        message = {"role": "user", "content": text}
        return self.recipe.body(server, [message], self.recipe.prompting, name)

    def _read(self, name, said, refused, shown, model, wanted):
        "The prompts of one reply, or why there are none."
        self.replies.read += 1
        try:
            if refused:
                raise DataError(refused, field="reply", reason="refused by the server")
            points = read_prompts(said["reply"].strip(), said["reply"].ended)
        except DataError as error:
            self.replies.bad(name, error, self.recipe.on_bad_rows)
            text = said["reply"] if said else ""
            self._drop({"request": name, "reply": text}, "reply", error)
            return
        self.replies.kept += 1
        seeds = [row["row"] for row in shown]
        for place, text in enumerate(points):
            row = {
                "prompt_id": fingerprint(text),
                "prompt": text,
                "lineage": {"model": model, "request": name, "place": place, "seeds": seeds},
            }
            self._take(row, f"{name}, number {place + 1}", wanted)

    def _take(self, row, name, wanted):
        "Keep a prompt that is new."
        self.report.read += 1
        found = self.seen.find(row["prompt"])
        if found:
            what = {
                "held out": "held-out prompt, a leak",
                "seed": "seed prompt",
                "new": "new prompt",
            }
            how = "the same as" if found.alike == 1 else "nearly the same as"
            kind, where = found.where
            error = DataError(
                f"{row['prompt'][:80]!r} is {how} {where}, {found.text[:80]!r} "
                f"(alike: {found.alike:.2f})",
                field="prompt",
                reason=f"{how} a {what[kind]}",
            )
        elif len(self.rows) >= wanted:
            error = DataError(row["prompt"][:80], field="prompt", reason="more than were wanted")
        else:
            self.report.kept += 1
            self.rows.append(row)
            self.seen.add(row["prompt"], ("new", name))
            return
        self.report.drop(name, error, asked=True)
        self._drop(row, "prompt", error)

    def _drop(self, row, step, error):
        self.dropped.append({"step": step, "reason": error.reason, "why": str(error), **row})


# ---- answers

INSTRUCTIONS = {"chosen": BETTER, "rejected": WORSE}


def _answer(said, refused):
    "The text of an answer; raises `DataError` for one that is of no use."
    if refused:
        raise DataError(refused, field="answer", reason="refused by the server")
    text, message = said["reply"].strip(), said["raw"]["choices"][0]["message"]
    if said["finish_reason"] == "content_filter" or message.get("refusal"):
        why = message.get("refusal") or "content_filter"
        raise DataError(str(why)[:120], field="answer", reason="refused by the server")
    if not said["reply"].ended or said["reply"].thought_cut_off:
        raise DataError(
            f"it ends with {text[-60:]!r}. Raise max_tokens.", field="answer", reason="cut off"
        )
    if not text:
        raise DataError("there is no text.", field="answer", reason="empty")
    if REFUSAL.match(text):
        raise DataError(repr(text[:120]), field="answer", reason="the model refuses to answer")
    return text


class NewPairs:
    "Answers to prompts, two to each, and the account of how they came about."

    def __init__(
        self,
        recipe: Recipe,
        rows: list[dict],  # of `NewPrompts`
    ):
        self.recipe, self.asked = recipe, rows
        self.rows: list[dict] = []  # of the layout of pairs
        self.dropped: list[dict] = []
        self.report = RowReport("pairs of answers")

    def make(self, ask: Asker) -> list[dict]:  # the rows
        """Ask for all answers; raises `DataError` where one is of no use and on_bad_rows is error,
        or no pair is left.
        """
        requests = {}
        for row in self.asked:  # both answers of a prompt together: a limit cuts off few pairs
            for side in INSTRUCTIONS:
                name = f"{row['prompt_id']} {side}"
                requests[name] = self._body(ask.server, row, side, name)
        said, refused = ask(requests, "answers")
        for row in self.asked:
            self._read(row, said, refused, ask.budget.reached)
        if not self.rows:
            raise DataError(
                f"no pair is left. The reasons say what to change.\n{self.report}",
                field="server",
                reason="no pair is left",
            )
        return self.rows

    def _how(self, side):
        return self.recipe.preferred if side == "chosen" else self.recipe.dispreferred

    def _body(self, server, row, side, name):
        system = INSTRUCTIONS[side].format(criteria=self.recipe.criteria.strip())
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": row["prompt"]},
        ]
        return self.recipe.body(server, messages, self._how(side), name)

    def _read(self, row, said, refused, reached):
        "A pair of the two answers to one prompt."
        self.report.read += 1
        names = {side: f"{row['prompt_id']} {side}" for side in INSTRUCTIONS}
        lost = [name for name in names.values() if name not in said and name not in refused]
        texts = {}
        try:
            if lost:  # only where the budget says so
                raise DataError(reached, field="spend_limit", reason="not asked: the spend limit")
            for side, name in names.items():
                try:
                    texts[side] = _answer(said.get(name), refused.get(name))
                except DataError as error:
                    raise error.at(f"the {side} answer") from error
            if words_alone(texts["chosen"]) == words_alone(texts["rejected"]):
                raise DataError(
                    repr(texts["chosen"][:80]), field="answer", reason="both answers are the same"
                )
        except DataError as error:
            if lost:
                self.report.drop(row["prompt_id"], error, asked=True)
            else:
                self.report.bad(row["prompt_id"], error, self.recipe.on_bad_rows)
            self.dropped.append(
                {"step": "answers", "reason": error.reason, "why": str(error), **row, **texts}
            )
            return
        self.report.kept += 1
        self.rows.append(self._pair(row, texts, said, names))

    def _pair(self, row, texts, said, names):
        usage = {side: said[name]["usage"] or {} for side, name in names.items()}
        lineage = {
            **row["lineage"],
            "criteria": fingerprint(self.recipe.criteria),
            **{f"{side}_request": name for side, name in names.items()},
            **{f"{side}_tokens": usage[side].get("completion_tokens") for side in INSTRUCTIONS},
        }
        return {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "prompt_id": row["prompt_id"],
            **{side: [{"role": "assistant", "content": text}] for side, text in texts.items()},
            "lineage": lineage,
        }


# ---- a judge


def filter_pairs(
    rows: list[dict],  # of `NewPairs`
    # of messages and two answers (text, tokens, ended) to each, the two scores
    scores: Callable[[list, list], list],
    least_margin: float = 0.0,  # by which a chosen answer has to be above the rejected one
) -> tuple[list[dict], list[dict], RowReport]:  # kept rows with their scores, dropped ones
    """Pairs that a judge sees as they were meant; of the others the account says how many it sees
    the other way round, how many are ties, and how many are too close.
    """
    report, kept, dropped = RowReport("pairs judged"), [], []
    ended = lambda row, side: {"text": row[side][0]["content"], "tokens": None, "ended": True}
    answers = [[ended(row, side) for side in INSTRUCTIONS] for row in rows]
    for row, (chosen, rejected) in zip(rows, scores([row["prompt"] for row in rows], answers)):
        report.read += 1
        judged = {**row, "score_chosen": float(chosen), "score_rejected": float(rejected)}
        margin = chosen - rejected
        if margin > 0 and margin >= least_margin:
            report.kept += 1
            kept.append(judged)
            continue
        close = "a tie" if margin == 0 else "closer than least_margin"
        error = DataError(
            f"chosen {chosen:g}, rejected {rejected:g}",
            field="least_margin",
            reason="the judge sees it the other way round" if margin < 0 else close,
        )
        report.drop(row["prompt_id"], error, asked=True)
        dropped.append({"step": "judge", "reason": error.reason, "why": str(error), **judged})
    return kept, dropped, report
