"""The arena: blind votes between two models' answers, kept line by line, counted as a win rate, and
handed on as votes of the judge `person` or as pairs to train on.

Each vote is a line of `arena.jsonl` in a folder of yours, on the disk before the next pair is
shown; `arena.json` beside it says between which answers. An undone vote is a line, too: nothing is
ever rewritten.
"""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ipywidgets
from filelock import FileLock

from prefkit.core import (
    ConfigError,
    DataError,
    derive_seed,
    fingerprint,
    iter_jsonl,
    nearest,
    read_jsonl,
    resolve_path,
    write_json,
    write_jsonl,
)
from prefkit.data.records import RowReport
from prefkit.judging.records import (
    messages_of,
    models_of,
    pair_ids,
    same_answer,
    text_of,
    without_thoughts,
)
from prefkit.report.words import counted, joined
from prefkit.stats.win_rate import PreferenceRate, WinRate, preference_rate, win_rate
from prefkit.widgets.pieces import LINE_HEIGHT, escaped
from prefkit.widgets.samples import read_evaluation, way_of

__all__ = ["Arena", "ArenaPair", "VoteLog", "explore_arena"]

LEFT, TIE, RIGHT = "left", "tie", "right"
VOTE_KEYS = {"1": LEFT, "2": TIE, "3": RIGHT, "s": "skip", "u": "undo"}
AMBIGUOUS = {"tie", "tie (bothbad)", "model_a", "model_b"}  # mean something else among votes


@dataclass(frozen=True)
class ArenaPair:
    "Two answers to one prompt, as they are shown."

    name: str  # of the prompt
    prompt: str | list[dict]  # as the records have it
    answers: dict[str, str]  # model -> answer; the left one first

    @property
    def left(self) -> str:
        return next(iter(self.answers))

    @property
    def right(self) -> str:
        return list(self.answers)[1]


class VoteLog:
    """The lines of a folder's votes. Several processes may append at once: each takes the lock,
    and reads what the others have written before it shows the next pair.
    """

    def __init__(
        self,
        folder: Path,  # made if it is not there
        identity: dict,  # models and answers that the votes are about; a folder holds those of one
    ):
        self.folder, self.file = folder, folder / "arena.jsonl"
        self.winners = {None, TIE, *identity["models"]}  # that a line may name
        self.broken: list[int] = []  # numbers of lines that are no votes, such as half of one
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / ".arena.lock")
            with self.lock:
                self._claim(identity)
        except OSError as error:
            raise ConfigError(
                f"folder: {folder} cannot be written to ({error.strerror}). Choose a folder that "
                "you may write to.",
                field="folder",
                reason="cannot be written",
            ) from error

    def _claim(self, identity: dict):
        "Take a folder, or raise `ConfigError` where it holds votes on other answers."
        place = self.folder / "arena.json"
        if not place.is_file():
            if self.file.is_file():
                raise DataError(
                    f"{place}: it is gone, so that nobody knows which answers the votes beside it "
                    "are about. Put it back, or choose another folder.",
                    field="folder",
                    reason="claim is gone",
                )
            write_json(place, identity)
            return
        try:
            before = json.loads(place.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"{place}: it is damaged, so that nobody knows which answers the votes beside it "
                "are about. Put it back as it was, or choose another folder.",
                field="folder",
                reason="damaged",
            ) from error
        if before != identity:
            told = joined(before.get("models", ["?"]))
            raise ConfigError(
                f"folder: {self.folder} holds votes on other answers (of {told}). Choose another "
                "folder.",
                field="folder",
                reason="other answers",
            )

    def append(self, line: dict):
        "Add a line and wait until it is on the disk; raises `ConfigError` where it cannot be."
        text = json.dumps(line, ensure_ascii=False) + "\n"
        try:
            with self.lock, open(self.file, "ab+") as file:
                if file.tell() and not _ends_with_newline(file):
                    text = "\n" + text  # somebody was killed within a line
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(
                f"{self.file}: the vote could not be written ({error.strerror}). Make room there, "
                "and vote again.",
                field="folder",
                reason="cannot be written",
            ) from error

    def votes(self) -> dict[tuple[str, str], str]:  # (person, prompt) -> model or tie; in order
        "What counts now: of a person's votes on a pair the last, and none that was undone."
        self.broken = []
        found: dict[tuple[str, str], str] = {}
        if not self.file.is_file():
            return found
        with self.lock:
            lines = list(iter_jsonl(self.file))
        for number, line, why in lines:
            known = not why and {"person", "prompt_id", "winner"} <= set(line)
            if not known or line["winner"] not in self.winners:
                self.broken.append(number)
                continue
            key = str(line["person"]), str(line["prompt_id"])
            found.pop(key, None)  # one that is cast again is the newest
            if line["winner"] is not None:
                found[key] = line["winner"]
        return found


def _ends_with_newline(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


class Arena:
    """Two answers beside each other without their names, and a vote. A notebook shows it as
    buttons and a field for keys; where no kernel runs it is the pair that is next.
    """

    title = "Which answer is better?"

    def __init__(
        self,
        records_a: list[dict],  # of one model: prompt, answer, model, prompt_id
        records_b: list[dict],  # of the other, the same prompts in the same order
        folder: str | Path,  # where votes are kept; one that holds votes on them is gone on with
        *,
        person: str = "me",  # who votes
        seed: int = 0,  # of the order of the pairs, and of which answer stands left
    ):
        """Raises `ConfigError` where the folder holds votes on other answers, `DataError` for
        records that are no pairs.
        """
        records_a, records_b = without_thoughts(records_a), without_thoughts(records_b)
        names = pair_ids(records_a, records_b)
        whole = list(zip(names, records_a, records_b, strict=True))
        if not whole:
            raise DataError(
                "records: there are none to vote on. Give the answers of two models.",
                field="records",
                reason="empty",
            )
        self.models = models_of(records_a[0], records_b[0])
        if AMBIGUOUS & set(self.models):
            raise DataError(
                f"records: the models are called {joined(self.models)}, and one of these means "
                "something else among votes. Give it another name.",
                field="model",
                reason="ambiguous name",
            )
        self.seed, self.person = seed, person
        self.same = [name for name, a, b in whole if same_answer(a, b)]
        pairs = [self._pair(*one) for one in whole if one[0] not in set(self.same)]
        random.Random(derive_seed(seed, "arena")).shuffle(pairs)
        self.pairs = {pair.name: pair for pair in pairs}
        answers = [[name, a["answer"], b["answer"]] for name, a, b in whole]
        identity = {"models": self.models, "answers": fingerprint([self.models, answers])}
        self.log = VoteLog(resolve_path(folder), identity)
        self.skipped: list[str] = []  # come again at the end
        self.mine: list[str] = []  # prompts that this window has voted on, the newest last
        self.said = ""  # what the last act was
        self._view: ipywidgets.VBox | None = None
        self._typed = ""
        self._votes = self.log.votes()
        self.pair = self._next()  # that is shown and voted on; None: none is left

    def _pair(self, name: str, a: dict, b: dict) -> ArenaPair:
        answers = dict(zip(models_of(a, b), (a["answer"], b["answer"]), strict=True))
        if derive_seed(self.seed, "left", name) % 2:
            answers = dict(reversed(answers.items()))
        return ArenaPair(name, a["prompt"], answers)

    # -- what is next, and votes

    def _next(self) -> ArenaPair | None:
        "The first pair that this person has not voted on; skipped ones last."
        todo = [name for name in self.pairs if (self.person, name) not in self._votes]
        fresh = [name for name in todo if name not in self.skipped]
        later = [name for name in self.skipped if name in todo]
        name = next(iter([*fresh, *later]), None)
        return None if name is None else self.pairs[name]

    def vote(
        self,
        choice: str,  # left, tie or right
    ):
        """Vote on the pair that is shown; the vote is on the disk when this returns. Raises
        `ConfigError` where it cannot be kept, or nothing is left to vote on.
        """
        if choice not in (LEFT, TIE, RIGHT):
            raise ConfigError(
                f"choice: {choice!r} is none of {LEFT}, {TIE}, {RIGHT}.",
                field="choice",
                reason="unknown",
            )
        pair = self.pair
        if pair is None:
            raise ConfigError(
                "choice: no pair is left to vote on. Undo a vote to change it.",
                field="choice",
                reason="nothing left",
            )
        winner = {LEFT: pair.left, TIE: TIE, RIGHT: pair.right}[choice]
        self._write(pair, winner)
        self.mine.append(pair.name)
        self.pair = self._next()
        self.said = (
            f"{'A tie' if choice == TIE else f'You preferred {choice}, {winner}'}: left was "
            f"{pair.left}, right {pair.right}."
        )

    def skip(self):
        "Leave the pair that is shown for the end."
        if self.pair is not None:
            name = self.pair.name
            self.skipped = [*(one for one in self.skipped if one != name), name]
            self.pair = self._next()
            self.said = "Skipped: the pair comes again at the end."

    def undo(self):
        """Take back the last vote: this window's, or, where it has none, the newest that is on
        record; its pair is shown again.
        """
        self._votes = self.log.votes()
        on_record = [name for person, name in self._votes if person == self.person]
        mine = [name for name in self.mine if name in on_record]
        last = next(reversed(mine or on_record), None)
        if last is None:
            self.said = "There is no vote to take back."
            return
        self.pair = self.pairs[last]
        self._write(self.pair, None)
        self.mine = mine[:-1]
        self.skipped = [one for one in self.skipped if one != last]
        self.said = "Your last vote is taken back."

    def _write(self, pair: ArenaPair, winner: str | None):
        "A vote, or None for one that is taken back."
        about = {"prompt_id": pair.name, "model_a": pair.left, "model_b": pair.right}
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self.log.append({**about, "winner": winner, "person": self.person, "time": when})
        self._votes = self.log.votes()  # those of other windows, too

    # -- what the votes say

    def preferences(self) -> dict[str, float]:  # prompt -> share of the votes for the first model
        "What people prefer, pair by pair: 1 for the first model, 0 for the second, ½ a tie."
        cast: dict[str, list[float]] = {}
        for (_, name), winner in self.log.votes().items():
            if name in self.pairs:
                worth = {self.models[0]: 1.0, self.models[1]: 0.0}
                cast.setdefault(name, []).append(0.5 if winner == TIE else worth[winner])
        return {name: sum(values) / len(values) for name, values in cast.items()}

    def win_rate(self) -> WinRate | PreferenceRate | None:  # None: no vote yet
        """How often the first model wins the pairs that were voted on, ties half, with its 95 %
        interval. Pairs of equal answers are not among them: nobody is asked about those.
        """
        values = list(self.preferences().values())
        if not values:
            return None
        if set(values) <= {0.0, 0.5, 1.0}:
            return win_rate(values, [1 - value for value in values])
        return preference_rate(values)  # people who do not agree

    def write_votes(
        self,
        path: str | Path,  # a .jsonl file
    ) -> Path:
        """The votes that count, as the judge `person` reads them; raises `DataError` where there
        are none.
        """
        rows = [
            {
                "prompt_id": name,
                "model_a": self.pairs[name].left,
                "model_b": self.pairs[name].right,
                "winner": winner,
                "person": person,
            }
            for (person, name), winner in self.log.votes().items()
            if name in self.pairs
        ]
        self._check_some(rows)
        return write_jsonl(resolve_path(path), rows)

    def write_pairs(
        self,
        path: str | Path,  # a .jsonl file, which `load_records` reads as pairs
    ) -> RowReport:  # what became of each prompt; ties and prompts without a vote give no pair
        "The votes as preference pairs; raises `DataError` where they give none."
        preferences, rows = self.preferences(), []
        report = RowReport("arena", read=len(self.pairs) + len(self.same))
        for name in self.same:
            report.drop(f"prompt {name}", _no_pair("both models gave the same answer"), asked=True)
        for name, pair in self.pairs.items():
            value = preferences.get(name)
            if value is None or value == 0.5:
                why = "nobody has voted on it yet" if value is None else "a tie"
                report.drop(f"prompt {name}", _no_pair(why), asked=True)
                continue
            chosen, rejected = self.models if value > 0.5 else reversed(self.models)
            rows.append(_as_pair(pair, chosen, rejected))
        report.kept = len(rows)
        self._check_some(rows, f"\n{report}")
        write_jsonl(resolve_path(path), rows)
        return report

    def _check_some(self, rows: list, account: str = ""):
        if not rows:
            raise DataError(
                f"{self.log.file}: no vote that could be written. Vote on some pairs first."
                f"{account}",
                field="votes",
                reason="none",
            )

    # -- what is shown

    def standing(self) -> str:
        "How far the voting is, and, once it is at its end, who wins."
        own = sum(person == self.person for person, _ in self._votes)
        text = f"{own} of {len(self.pairs)} pairs voted on"
        ties = sum(one == TIE and who == self.person for (who, _), one in self._votes.items())
        text += f", {counted(ties, 'tie')}" if own else ""
        if self.same:
            text += f"; {counted(len(self.same), 'prompt')} with two equal answers are not asked"
        if self.log.broken:
            told = ", ".join(map(str, self.log.broken))
            text += f"; not counted, since it holds no vote: line {told} of {self.log.file.name}"
        if self.pair is None and (rate := self.win_rate()) is not None:
            text += f". {self.models[0]} against {self.models[1]}: {rate}"
        return f"{text}."

    def html(self) -> str:
        "The pair that is next, without names."
        pair = self.pair
        said = f'<p role="status" style="margin:.3em 0">{escaped(self.said)}</p>'
        standing = f'<p style="margin:.3em 0"><small>{escaped(self.standing())}</small></p>'
        if pair is None:
            over = "<p><strong>Every pair has your vote.</strong></p>"
            return f'<div style="{LINE_HEIGHT}">{said}{standing}{over}</div>'
        prompt = escaped(text_of(pair.prompt), lines=True)
        boxes = "".join(
            _box(side, answer) for side, answer in zip((LEFT, RIGHT), pair.answers.values())
        )
        return (
            f'<div style="{LINE_HEIGHT}">{said}{standing}'
            f'<p style="margin:.5em 0"><strong>{prompt}</strong></p>'
            f'<div style="display:flex;flex-wrap:wrap;gap:.6em 1em">{boxes}</div></div>'
        )

    def view(self) -> ipywidgets.VBox:
        "The widgets: made once, however often it is shown."
        if self._view is None:
            acts = {LEFT: "1: left", TIE: "2: tie", RIGHT: "3: right"}
            acts |= {"skip": "s: skip", "undo": "u: undo"}
            self._buttons: dict[str, Any] = {}
            for act, words in acts.items():
                button = ipywidgets.Button(
                    description=words, tooltip=f"{words[3:]} (key {words[0]})"
                )
                button.layout.width = "7.5em"
                button.on_click(lambda _, act=act: self._act(act))
                self._buttons[act] = button
            self._keys: Any = ipywidgets.Text(description="keys", placeholder="1 2 3 s u")
            self._keys.layout.width, self._keys.style.description_width = "13em", "initial"
            self._keys.observe(lambda change: self._pressed(change["new"]), "value")
            row = ipywidgets.Layout(flex_flow="row wrap")
            controls = ipywidgets.Box([*self._buttons.values(), self._keys], layout=row)
            self._shown: Any = ipywidgets.HTML(self.html())
            self._view = ipywidgets.VBox([controls, self._shown])
            self._refresh()
        return self._view

    def _pressed(self, text: str):
        """Of the keys that have come at once only the first counts: whoever typed the others had
        not seen what they would be about.
        """
        new = text[len(self._typed) :] if text.startswith(self._typed) else ""
        self._typed = text
        if new and new[0].lower() in VOTE_KEYS:
            self._act(VOTE_KEYS[new[0].lower()])

    def _act(self, act: str):
        "What a button or a key does; what stands in its way is said."
        try:
            if act == "skip":
                self.skip()
            elif act == "undo":
                self.undo()
            else:
                self.vote(act)
        except (ConfigError, DataError) as error:
            self.said = str(error)
        self._refresh()

    def _refresh(self):
        self._shown.value = self.html()
        for act in (LEFT, TIE, RIGHT, "skip"):
            self._buttons[act].disabled = self.pair is None

    def page(self) -> str:
        "The pair that is next, as a page without a kernel shows it: names behind a click."
        pair = self.pair
        if pair is None:
            return self.html()
        told = escaped(f"left: {pair.left}, right: {pair.right}")
        return (
            '<figure class="explorer" style="margin:1em 0">'
            f"<figcaption><strong>{self.title}</strong></figcaption>"
            f"{self.html()}<details><summary>Who is who?</summary>{told}</details>"
            "<p><small>Votes need a notebook.</small></p></figure>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = self.view()._repr_mimebundle_() or {}
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        return {**data, "text/plain": self.title, "text/html": self.html()}


def explore_arena(
    answers: str | Path | Sequence[dict],  # the folder of an evaluation stage, or records of models
    folder: str | Path,  # where votes are kept
    models: tuple[str, str] | None = None,  # whose answers; None: the first two that there are
    *,
    person: str = "me",  # who votes
    seed: int = 0,  # of the order of the pairs, and of which answer stands left
) -> Arena:
    """An arena over two models of an evaluation, on the prompts that both answered in the first
    way of decoding. Raises `ConfigError` for a model that is not there, `DataError` for what is no
    evaluation.
    """
    if isinstance(answers, str | Path):
        read_evaluation(answers)  # says what is wrong with it
        answers = read_jsonl(resolve_path(answers) / "generations.jsonl")
    first = way_of(answers[0]) if answers else ""
    by_model: dict[str, dict[str, dict]] = {}
    for record in (one for one in answers if way_of(one) == first):
        own = by_model.setdefault(str(record.get("model")), {})
        own.setdefault(str(record.get("prompt_id", record.get("prompt"))), record)
    chosen = models or tuple(by_model)[:2]
    for name in chosen:
        if name not in by_model:
            raise ConfigError(
                f"models: {name!r} has no answers here.{nearest(name, by_model)}",
                field="models",
                reason="unknown",
            )
    if len(chosen) < 2:
        raise ConfigError(
            f"models: one model ({joined(list(chosen))}) cannot be set against itself. Give the "
            "answers of two.",
            field="models",
            reason="too few",
        )
    ours, theirs = (by_model[name] for name in chosen)
    both = [name for name in ours if name in theirs]
    pairs = [ours[name] for name in both], [theirs[name] for name in both]
    return Arena(*pairs, folder, person=person, seed=seed)


def _box(side: str, answer: str) -> str:
    "One answer."
    shown = escaped(answer, lines=True) or "<i>(empty)</i>"
    return (
        '<div style="flex:1 1 240px;min-width:0;border:1px solid #767676;border-radius:4px;'
        f'padding:.4em .7em;overflow-wrap:anywhere"><small>{side}</small><div>{shown}</div></div>'
    )


def _no_pair(why: str) -> DataError:
    return DataError(f"{why}: it gives no pair.", field="votes", reason=why)


def _as_pair(pair: ArenaPair, chosen: str, rejected: str) -> dict:
    "A row of pairs, as UltraFeedback's: each side begins with the prompt's turns."
    turns = messages_of(pair.prompt)
    sides = {
        side: [*turns, {"role": "assistant", "content": pair.answers[model]}]
        for side, model in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": text_of(pair.prompt), "prompt_id": pair.name, **sides}
