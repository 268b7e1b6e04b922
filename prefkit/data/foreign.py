"""What the rows of other people's data mean: their columns, the keys of their messages, and the
values that a row carries along.

Nothing is passed over in silence: a key is used, the row is refused with the reason, or the key is
named in the account as ignored. The lesson `nbs/lib/data/02_records.ipynb` reads rows through it.
Written by hand, not exported from a notebook.
"""

import datetime
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from prefkit.core import ConfigError, DataError, nearest
from prefkit.data.chat import ROLES, bad_row

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
# what others call the same: OpenAI now and formerly, Gemini, Llama 3, Hermes
OTHER_ROLES = {
    "developer": "system",
    "model": "assistant",
    **dict.fromkeys(("function", "ipython", "function_response", "tool_response"), "tool"),
}
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
# says of a turn, or of a row, whether it is learned -> what it is where it is learned
FLAGS = {
    **dict.fromkeys(("weight", "train", "training", "trainable", "train_on_turn", "loss"), 1),
    **dict.fromkeys(("mask", "masked"), 0),
}
# what may say the same in a message, in words that are not known here
MARK = re.compile(r"(^|_)(train\w*|loss\w*|mask\w*|weights?|learn\w*)(_|$)", re.I)
CALL = "function_call"  # ShareGPT's role of a turn that calls a tool, and OpenAI's former key
NOT_LEARNED = "marked as not to be learned"
DEEPEST = 64  # a value that is nested deeper is not carried along

JSON_TEXT = "messages read from a text of JSON"
JOINED = "parts of a message's content joined"
NULL_ARGUMENTS = "null arguments of a tool call left out"


# ---- columns


@dataclass
class Columns:
    "The columns of one row that hold something, and what becomes of each."

    values: dict  # name -> value
    fates: dict = field(default_factory=dict)  # name -> what it was used as
    changes: list = field(default_factory=list)  # what was changed or left out in it

    def __contains__(self, name):
        return name in self.values

    def use(self, name: str, fate: str):
        "The value of a column, which is used as something."
        self.fates[name] = f"used as {fate}"
        if isinstance(self.values[name], Unread):
            found = f"{name} cannot be read ({self.values[name].why})"
            raise bad_row("column cannot be read", found, "Mend it, or leave the row out.", name)
        return self.values[name]

    def first(self, *names: str) -> str | None:
        "The first of some names that there is."
        return next((name for name in names if name in self.values), None)

    def filled(self, name: str, fate: str):
        "The value of a column, None where it is missing or empty; a text of JSON is read."
        if name not in self.values or is_empty(self.values[name]):
            return None
        return from_json(self.use(name, fate), name)

    def text(self, name: str, fate: str) -> str | None:
        "The text of a column as it stands, None where it is missing or empty; raises `DataError`."
        if self.values.get(name) in (None, "", [], {}):
            return None
        text = self.use(name, fate)
        if not isinstance(text, str):
            found = f"{name} is of type {type(text).__name__}"
            raise bad_row("column is not text", found, "Give text.", name)
        return text


@dataclass(frozen=True)
class Unread:
    "The value of a cell that its source cannot give."

    why: str


def is_empty(value) -> bool:
    "Whether a value says nothing: none, an empty text or list, or the text of one."
    if isinstance(value, str):
        return value.strip() in ("", "[]", "null")
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def from_json(value, name: str):
    "A value, that of a text of JSON where a list or an object is meant; raises `DataError`."
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise bad_row(
            "text that is no JSON",
            f"{name} begins like JSON and is none ({error})",
            "Write it as JSON.",
            name,
        ) from error


def map_columns(
    columns: dict,  # our name -> the source's; None: a column that is not to be read
    record: dict,  # a row of the source
) -> dict:  # the row under our names; what a mapping hides keeps its name with a sign
    "Rename the columns of a row."
    given = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
    unread = {ours for ours, theirs in columns.items() if theirs is None} | set(given)
    taken = {theirs for theirs in given.values()}
    found = {ours: record[theirs] for ours, theirs in given.items() if theirs in record}
    rest = {name: value for name, value in record.items() if name not in unread | taken}
    return found | rest


def check_mapping(
    columns,  # as `load_records` takes them
    names: Iterable[str],  # the columns that there are
    source: str,  # what they are those of
):
    "Raise `ConfigError` for a mapping that is none, or onto a column that is not there."
    names = list(names)
    for ours, theirs in columns.items():
        if not isinstance(ours, str) or not (theirs is None or isinstance(theirs, str)):
            raise ConfigError(
                f"columns: {ours!r}: {theirs!r} is no pair of names. Write {{prompt: question}}: "
                "the name here, then the one in the data; null: do not read that column.",
                field="columns",
                reason="wrong type",
            )
        if (theirs or ours) not in names:
            raise ConfigError(
                f"columns: {source} has no column {theirs or ours!r}."
                f"{nearest(theirs or ours, map(str, names))}",
                field="columns",
                reason="no such column",
            )


# ---- what a row says besides prompt and answer


def refuse_media(columns: Columns):
    "Raise `DataError` where a row shows something that a model of text cannot see."
    for name in MEDIA:
        if name in columns and not is_empty(columns.values[name]):
            raise _media(name, name)


def _media(name, where):
    return bad_row(
        "pictures or sound",
        f"{where} holds something to see or to hear, and this model reads text only",
        f"Leave such rows out, or do not read the column: columns: {{{name}: null}}.",
        name,
    )


def refuse_unlearned(columns: Columns):
    """Raise `DataError` for a row that is marked as not to be learned, or to be learned by a share.

    A column `weight` is such a mark; the other flags are where they say yes or no.
    """
    flags = {
        name: columns.use(name, "mark of what is learned")
        for name in FLAGS
        if name in columns and (name == "weight" or _says_yes_or_no(name, columns.values[name]))
    }
    if is_learned(flags, "the row") is False:
        raise not_learned("the row is")


def _says_yes_or_no(name: str, value) -> bool:
    "Whether a column's value is a truth value, in a table of text too; a loss may be 0 or 1."
    if isinstance(value, str):
        return value.lower() in ("true", "false")
    return isinstance(value, bool) or (name != "loss" and type(value) is int and value in (0, 1))


def not_learned(who: str) -> DataError:
    "The reason to leave a row out that its data do not want learned."
    return bad_row(
        NOT_LEARNED, f"{who} marked by weight, train or the like", "Nothing to mend.", "weight"
    )


def is_learned(flags: dict, where: str) -> bool | None:  # None: nothing is said
    "What weights and flags say; raises `DataError` for shares, and where they disagree."
    said = {}
    for name, value in flags.items():
        if isinstance(value, str):
            value = {"true": 1, "false": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}.get(
                value.lower(), value
            )
        if value not in (0, 1):
            raise bad_row(
                "weight is neither 0 nor 1",
                f"{where} has {name} {value!r}, and no loss here learns by a share",
                "Write 1 (learned) or 0 (not learned), or leave it out; a column that means "
                "something else is not read with columns: {weight: null}.",
                name,
            )
        said[name] = value == FLAGS[name]
    if len(set(said.values())) > 1:
        raise bad_row(
            "weights that disagree",
            f"{where} has {', '.join(f'{name} {flags[name]!r}' for name in said)}",
            "Keep one of them.",
            "weight",
        )
    return next(iter(said.values()), None)


def framed(
    columns: Columns,  # with system and history, perhaps
    prompt: list[dict],  # messages
    read,  # messages from a value and a role, as `read_messages` without the changes
) -> list[dict]:  # messages
    "A prompt behind the system's text and the earlier turns that have columns of their own."
    given = [columns.text(name, "system") for name in ("system", "system_prompt")]
    systems = [text for text in given if text is not None]
    own = [turn["content"] for turn in prompt if turn["role"] == "system"]
    if any(text != other for text in systems for other in (*systems, *own)):
        raise bad_row(
            "two system texts that disagree",
            f"the row has the system texts {', '.join(map(repr, [*systems, *own]))}",
            "Keep one of them.",
            "system",
        )
    system = [] if own or not systems else [{"role": "system", "content": systems[0]}]
    turns = _history(columns.filled("history", "history"), read)
    if turns and len([turn for turn in prompt if turn["role"] != "system"]) > 1:
        raise bad_row(
            "history beside a conversation",
            "the row has a history, and a prompt of several turns",
            "Put all turns into one of the two.",
            "history",
        )
    first = bool(own) if turns else 0
    return [*system, *prompt[:first], *turns, *prompt[first:]]


def _history(history, read):
    "Earlier turns as messages, from pairs of a question and its answer or from messages."
    if history is None:
        return []
    if isinstance(history, (list, tuple)) and all(isinstance(turn, dict) for turn in history):
        return read(history, None)
    whole = isinstance(history, (list, tuple)) and all(
        isinstance(turn, (list, tuple)) and list(map(type, turn)) == [str, str] for turn in history
    )
    if not whole:
        raise bad_row(
            "history is not a list of pairs",
            f"history is {str(history)[:80]!r}",
            'Write it as [["question", "answer"], ...].',
            "history",
        )
    return [
        {"role": role, "content": text}
        for turn in history
        for text, role in zip(turn, ("user", "assistant"))
    ]


def tools_of(columns: Columns) -> list[dict] | None:  # None: there are none
    "The tools that a row describes; raises `DataError`."
    tools = columns.filled("tools", "tools")
    if tools is None or tools == []:
        return None
    tools = [tools] if isinstance(tools, dict) else tools
    tools = [from_json(tool, "tools") for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_row(
            "tools are not a list of descriptions",
            f"tools is {str(tools)[:80]!r}",
            "Write a list of JSON schemas, as OpenAI's interface takes them.",
            "tools",
        )
    return [without_null(tool) for tool in tools]


def without_null(value):
    "A value of JSON without keys that hold nothing: tables put them into every row."
    if isinstance(value, dict):
        return {key: without_null(each) for key, each in value.items() if each is not None}
    return [without_null(each) for each in value] if isinstance(value, (list, tuple)) else value


# ---- messages


def messages_in_text(
    text: str,  # of a column that may hold messages
) -> list | dict | None:  # None: it is plain text
    "Messages that are written as one text of JSON; raises `DataError` where they begin like some."
    begins = re.match(r"""\s*(?:\[\s*)?\{\s*(['"])(role|from|content|value)\1\s*:""", text)
    if not begins:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith("[") or begins[2] not in ("role", "from"):
            return None
        raise bad_row(
            "messages in a text that is no JSON",
            f"the text begins with {text.strip()[:30]!r} and is no JSON ({error})",
            'Write messages as JSON: [{"role": "user", "content": "..."}, ...].',
            "messages",
        ) from error
    turns = found if isinstance(found, list) else [found]
    keys = ({"role", "content"}, {"from", "value"}, {"role", "tool_calls"})
    alike = all(isinstance(turn, dict) and any(key <= set(turn) for key in keys) for turn in turns)
    known = {*ROLES, *SHAREGPT_ROLES, *OTHER_ROLES, CALL}
    if isinstance(found, dict) and alike and found.get("role", found.get("from")) not in known:
        return None  # an answer that is an object of JSON
    return found if alike else None


def read_turn(
    turn,  # one message in anybody's words
    changes: list,  # what is changed or ignored in it is added
) -> dict:  # a message: role, content and, where there are such, tool_calls, weight and the like
    "A message in our words, without keys that hold nothing; raises `DataError`."
    if not isinstance(turn, dict):
        return turn
    kept = {name: value for name, value in turn.items() if value is not None}
    if {"from", "value"} <= set(turn):
        kept["role"], kept["content"] = turn["from"], turn["value"]
        for name in ("from", "value"):
            kept.pop(name, None)
        if isinstance(kept["role"], str):
            kept["role"] = SHAREGPT_ROLES.get(kept["role"], kept["role"])
    if isinstance(role := kept.get("role"), str) and role in OTHER_ROLES:
        kept["role"] = OTHER_ROLES[role]
        changes.append(f"role {role} read as {kept['role']}")
    if kept.get("role") == CALL:
        kept |= {"role": "assistant", "content": "", "tool_calls": kept["content"]}
    if CALL in kept:
        kept.setdefault("tool_calls", [kept.pop(CALL)])
    calls = _calls(kept.pop("tool_calls", None), changes)
    if calls:
        kept.setdefault("content", "")
    if not {"role", "content"} <= set(kept):
        return turn  # which `check_messages` refuses
    message = {"role": kept.pop("role"), "content": _text(kept.pop("content"), changes)}
    return message | ({"tool_calls": calls} if calls else {}) | _other_keys(message, kept, changes)


def _other_keys(message, kept, changes):
    "The keys of a message besides role, content and calls that mean something."
    found = {name: kept.pop(name) for name in ("name", "tool_call_id") if name in kept}
    thoughts = [kept.pop(name) for name in THOUGHTS if name in kept]
    if thoughts := [thought for thought in thoughts if thought != ""]:
        if not isinstance(thoughts[0], str) or set(thoughts) != {thoughts[0]}:
            what = f"a message has the thoughts {str(thoughts)[:80]}"
            raise bad_row("thoughts are not one text", what, "Write one text.", THOUGHTS[0])
        found[THOUGHTS[0]] = thoughts[0]
    for name in [name for name in MEDIA if name in kept]:
        if not is_empty(kept.pop(name)):
            raise _media(name, f"a message's {name}")
    flags = {name: kept.pop(name) for name in FLAGS if name in kept}
    learned = is_learned(flags, f"a message of the {message['role']}")
    if message["role"] == "assistant" and learned is not None:
        found["weight"] = int(learned)
    elif learned:
        changes.append(f"mark that a turn of the {message['role']} is learned ignored")
    unread = [name for name in kept if not is_empty(kept[name])]
    for name in unread:
        if MARK.search(str(name)):
            raise bad_row(
                "a mark of what is learned that is not known",
                f"a message of the {message['role']} has {name} {str(kept[name])[:60]}, which may "
                "say what of it is learned",
                f"Say it with one of {', '.join(FLAGS)}, or take the key out.",
                name,
            )
    changes += [f"key {name} of a message ignored" for name in unread]
    return found


def _text(content, changes):
    "The text of a content that may be a list of parts."
    if not isinstance(content, (list, tuple)):
        return content
    texts = []
    for part in content:
        held = {"text": part} if isinstance(part, str) else part
        held = without_null(held) if isinstance(held, dict) else {}
        kind, text = held.pop("type", "text"), held.pop("text", None)
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise bad_row(
                "content that is not text",
                f"a message has a part of type {kind!r}",
                "Give text parts only.",
                "content",
            )
        changes += [f"key {name} of a message's part ignored" for name in held]
        texts.append(text)
    if len(texts) > 1:
        changes.append(JOINED)
    return "".join(texts)


def _calls(calls, changes):
    "Tool calls as templates take them: arguments as an object."
    calls = from_json(calls, "tool_calls")
    if calls is None or calls == []:
        return []
    calls = [calls] if isinstance(calls, dict) else calls
    calls = calls if isinstance(calls, list) else [calls]  # which is refused
    return [_call(call, changes) for call in calls]


def _call(call, changes):
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    given = function.get("arguments") if isinstance(function, dict) else None
    arguments = {} if is_empty(given) else from_json(given, "arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise bad_row(
            "tool call without name and arguments",
            f"a tool call is {str(call)[:120]!r}",
            'Write {"function": {"name": "...", "arguments": {...}}}.',
            "tool_calls",
        )
    if None in arguments.values():
        changes.append(NULL_ARGUMENTS)
    known = {"id": call["id"]} if call.get("id") is not None and function is not call else {}
    return {
        "type": "function",
        **known,
        "function": {"name": name, "arguments": without_null(arguments)},
    }


# ---- what is carried along


class Carried(dict):
    """The columns of a row beside its prompt, as JSON can hold them. Asking for one that it cannot
    hold raises `DataError`, naming row and column.
    """

    left_out: dict  # name -> why
    row: str  # its name

    def __init__(self, values: dict, left_out: dict, row: str):
        super().__init__(values)
        self.left_out, self.row = left_out, row

    def __contains__(self, name):
        return super().__contains__(name) or name in self.left_out

    def __missing__(self, name):
        if name not in self.left_out:
            raise KeyError(name)
        raise DataError(
            f"{self.row}: column {name} holds {self.left_out[name]}, which cannot be stored. Write "
            "it as text or numbers.",
            field=name,
            reason="column cannot be stored",
        )

    def get(self, name, default=None):
        return self[name] if name in self else default

    def __reduce__(self):
        return type(self), (dict(self), self.left_out, self.row)


class _Unstorable(Exception):
    "A value that JSON cannot hold."


def carried(
    values: dict,  # columns of a row
    changes: list,  # what had to be written otherwise is added
) -> tuple[dict, dict]:  # the columns as JSON can hold them; those that it cannot: name -> why
    "Part what can be stored from what cannot."
    kept, left_out = {}, {}
    for name, value in values.items():
        written = set()
        try:
            kept[_printable(name, set())] = _storable(value, 0, written)
        except _Unstorable as error:
            left_out[name] = str(error)
        changes += [f"{what} in the column {_printable(name, set())}" for what in sorted(written)]
    return kept, left_out


def _printable(text, written):
    safe = text.encode("utf-8", "backslashreplace").decode()
    if safe != text:
        written.add("half of a surrogate pair written as its number")
    return safe


def _storable(value, depth, written):
    "A value as JSON can hold it; adds to `written` what it says otherwise; raises `_Unstorable`."
    if depth > DEEPEST:
        raise _Unstorable(f"a value nested more than {DEEPEST} deep")
    if isinstance(value, str):
        return _printable(value, written)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return {
            _printable(str(key), written): _storable(each, depth + 1, written)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_storable(each, depth + 1, written) for each in value]
    if isinstance(value, Decimal) and value.is_finite():
        written.add("decimal numbers written as numbers")
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (datetime.date, datetime.time)):
        written.add("dates written as text")
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, uuid.UUID)):
        written.add(f"{type(value).__name__} written as text")
        return str(value)
    if hasattr(value, "tolist"):  # of NumPy
        return _storable(value.tolist(), depth + 1, written)
    raise _Unstorable(value.why if isinstance(value, Unread) else type(value).__name__)
