"""Answers of several turns, answers that the prompt begins, tools and thoughts: what a chat
template makes of them, and which of their tokens are learned.

Nothing is believed of a template: each turn that is learned is rendered behind those before it, and
what the template does not show is found out with words put in its place. Written by hand, not
exported from a notebook.
"""

from typing import Any, NamedTuple

from prefkit.data.chat import bad_row, render, render_prompt, render_response, split_response
from prefkit.data.foreign import THOUGHTS

NAMES_LEFT_OUT = "name of a message left out by the chat template"
THOUGHTS_LEFT_OUT = "thoughts of earlier turns left out by the chat template"


class Piece(NamedTuple):
    "A turn that is learned, as text; as token ids two lists."

    before: Any  # what stands before it; None: the prompt alone
    whole: Any  # up to its end


class Texts(NamedTuple):
    "A prompt and one answer to it as the chat template writes them."

    prompt: str  # with the generation prompt, and with what is begun of the answer
    pieces: list[Piece]  # of the answer: its turns that are learned
    changes: list[str]  # what the template changed that is no loss


def begun_in(prompt: list[dict]) -> str:  # "": nothing
    "What a prompt begins of the answer."
    return prompt[-1]["content"] if prompt[-1]["role"] == "assistant" else ""


def is_learned_turn(turn: dict) -> bool:
    "Whether a turn of an answer is learned: the assistant's, unless they are marked otherwise."
    return turn["role"] == "assistant" and turn.get("weight") != 0


def asked_text(
    tokenizer,  # a transformers tokenizer with a chat template
    prompt: list[dict],  # a checked conversation
    tools: list[dict] | None = None,  # that it may call
) -> tuple[str, list[str]]:  # with the generation prompt; what the template changed
    "`render_prompt` of a prompt that may hold tools; raises as `shown` does."
    found = shown(tokenizer, prompt, tools)
    text, changes = render_prompt(tokenizer, prompt, tools)
    return text, [*changes, *found]


def answer_texts(
    tokenizer,  # a transformers tokenizer with a chat template
    prompt: list[dict],  # a checked conversation; its last turn may begin the answer
    answer: list[dict],  # turns, the first of them the assistant's
    tools: list[dict] | None = None,  # that it may call
) -> Texts:
    """Render a prompt, and the prompt with its answer up to the end of each turn that is learned;
    raises `DataError` where the template hides something.
    """
    begun = begun_in(prompt)
    if begun:
        prompt = prompt[:-1]
        first = {**answer[0], "content": begun + answer[0]["content"]}
        answer = [first, *answer[1:]]
    pieces, changes, opening = [], [], None
    for number, turn in enumerate(answer):
        if not is_learned_turn(turn):
            continue
        before = [*prompt, *answer[:number]]
        changes += shown(tokenizer, [*before, turn], tools)
        one = render_response(tokenizer, before, [turn], tools)
        changes += one.changes
        if number:
            pieces.append(Piece(one.prompt, one.text))
            continue
        opening = one.prompt + begun
        if not one.text.startswith(opening):
            raise bad_row(
                "answer begun and changed by the chat template",
                f"the chat template does not go on with {begun!r} behind its generation prompt",
                "Use a template that writes answers as they are.",
                "chat_template",
            )
        pieces.append(Piece(None, one.text))
    if not pieces or answer[0]["role"] != "assistant":
        raise bad_row(
            "no answer of the assistant",
            f"the answer has the roles {', '.join(turn['role'] for turn in answer)}",
            "An answer begins with a turn of the assistant, and one of them is learned.",
            "role",
        )
    if opening is None:
        opening = render_prompt(tokenizer, prompt, tools)[0] + begun
    return Texts(opening, pieces, list(dict.fromkeys(changes)))


def as_ids(piece: Piece, ids) -> Piece:  # of token ids
    "A piece of text as the next token ids of an iterator, for each of its texts that there is."
    before = None if piece.before is None else next(ids)
    return Piece(before, next(ids))


def learned_ids(
    tokenizer,  # the tokenizer that made the ids
    prompt_ids: list[int],  # of `Texts.prompt`
    pieces: list[Piece],  # of token ids
    begun: str = "",  # what the prompt begins of the answer
) -> tuple[list[int], list[bool]]:  # ids of the answer; which of them are learned
    """The tokens of an answer: its turns that are learned, each with its end, and what stands
    between them; raises `DataError` where the template writes earlier turns anew.
    """
    ids, learned = [], []
    for before, whole in pieces:
        before = prompt_ids if before is None else before
        so_far = [*prompt_ids, *ids]
        if before[: len(so_far)] != so_far:
            raise bad_row(
                "earlier turns rewritten by the chat template",
                "a turn reads otherwise where it is the last than where another follows it",
                "Use a template that keeps turns as they are, or rows with one answer.",
                "chat_template",
            )
        if begun and whole[: len(before)] != before:
            raise bad_row(
                "answer begun within a token",
                f"what the prompt begins ({begun[-20:]!r}) and the answer's first letters are one "
                "token",
                "Let the prompt end where a word ends, and the answer begin with its space.",
                "prompt",
            )
        between, new = before[len(so_far) :], split_response(tokenizer, before, whole)
        ids += [*between, *new]
        learned += [False] * len(between) + [True] * len(new)
    return ids, learned


# ---- what a template shows


def shown(
    tokenizer,  # a transformers tokenizer with a chat template
    messages: list[dict],  # a conversation; the last turn may be one that is learned
    tools: list[dict] | None = None,  # that it may call
) -> list[str]:  # what the template leaves out that is no loss
    """Look whether the template writes tools, calls, what tools answer and thoughts, by putting
    words in their place that stand nowhere else; raises `DataError` where it does not.
    """
    words = _Words()
    marked = [_marked(turn, words, turn is messages[-1]) for turn in messages]
    marked_tools = [_marked_tool(tool, words) for tool in tools or []] or None
    if not words.meant:
        return []
    text = render(tokenizer, marked, generation_prompt=False, tools=marked_tools)
    missing = [meaning for word, meaning in words.meant.items() if word not in text]
    losses = [meaning for meaning in missing if meaning not in (NAMES_LEFT_OUT, THOUGHTS_LEFT_OUT)]
    if losses:
        raise bad_row(
            f"{losses[0]} left out by the chat template",
            f"the chat template does not write {losses[0]}",
            "Use a model or a chat_template that does.",
            "chat_template",
        )
    return list(dict.fromkeys(missing))


class _Words:
    "Words that stand nowhere else, and what each stands for."

    def __init__(self):
        self.meant = {}

    def new(self, meaning):
        word = f"word-{len(self.meant)}-7391"
        self.meant[word] = meaning
        return word


def _marked(turn, words, last):
    "A turn with words in place of what a template may not show."
    found = dict(turn)
    if turn["role"] == "tool":
        found["content"] = words.new("what a tool answers")
    if "tool_calls" in turn:
        found["tool_calls"] = [_marked_call(call, words) for call in turn["tool_calls"]]
    if THOUGHTS[0] in turn:
        found[THOUGHTS[0]] = words.new("the thoughts of an answer" if last else THOUGHTS_LEFT_OUT)
    if "name" in turn:
        found["name"] = words.new(NAMES_LEFT_OUT)
    return found


def _marked_call(call, words):
    function, what = call["function"], "a tool call"
    arguments = {name: words.new(what) for name in function["arguments"]}
    return {**call, "function": {"name": words.new(what), "arguments": arguments}}


def _marked_tool(tool, words):
    function = tool.get("function", tool)
    marked = {**function, "name": words.new("the tools")}
    return {**tool, "function": marked} if "function" in tool else marked
