"""A conversation as the loss sees it: the tokens that a template makes of it, which of them are
learned, and what truncation cuts.
"""

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from prefkit.core import DataError, PrefkitError
from prefkit.data.chat import check_limits, use_template
from prefkit.data.records import encode_records, normalise
from prefkit.data.rows import Row
from prefkit.widgets.pieces import escaped
from prefkit.widgets.typed import cached_tokenizer, read_typed, token_text
from prefkit.widgets.view import Explorer, Slider, Words

__all__ = ["CutRow", "cut_row", "draw_inspector", "explore_inspector"]

_ROLES = ("system", "user", "assistant")
EXAMPLE_TALKS = (
    "user: What colour is the fox?\nassistant: The fox is red.",
    "user: What colour is the fox?\n"
    "assistant: The fox is red.\n"
    "user: And where does the lion live?\n"
    "assistant: Of course! The lion lives in the swamp. I hope this helps.",
    "system: Be brief.\nuser: What colour is the fox?\nassistant: Red.",
)
WHOLE = 10**6  # a limit that nothing reaches


@dataclass(frozen=True)
class CutRow:
    "A row before and after truncation."

    tokens: tuple[str, ...]  # of the whole row, prompt and answer
    kinds: tuple[str, ...]  # of each: "prompt", "learned" or "read" (of an answer, not learned)
    cut: tuple[bool, ...]  # whether truncation takes it away
    account: str  # what became of the row, in the words of the account
    refused: bool  # the row would not be trained on

    def count(self, kind: str, cut: bool) -> int:
        "Tokens of a kind that are cut, or kept."
        return sum(one == (kind, cut) for one in zip(self.kinds, self.cut, strict=True))


@lru_cache(16)
def _with_template(tokenizer: Any, template: str) -> Any:
    "A tokenizer of its own with the template; raises `ConfigError`."
    made = copy.deepcopy(tokenizer)
    use_template(made, template)
    return made


def cut_row(
    text: str,  # a typed conversation: lines that begin with system:, user: and assistant:
    model: str,  # whose tokenizer is asked: a folder or a name on the Hub
    template: str = "",  # a file, a shipped template's name, its text; "": the tokenizer's own
    **limits: Any,  # whole numbers: max_length, max_prompt_length, min_response_tokens
) -> CutRow:
    "What the encoder of the kit makes of a conversation; raises `DataError` and `ConfigError`."
    check_limits(**limits)
    tokenizer = _with_template(cached_tokenizer(model), template.strip())
    turns = read_typed(text, _ROLES)
    messages = [{"role": role, "content": words} for role, words in turns]
    record = normalise({"messages": messages}, "sft") | {"row": "this conversation"}
    [whole], account = encode_records(
        [record],
        tokenizer,
        kind="sft",
        max_length=WHOLE,
        min_response_tokens=1,
        on_bad_rows="error",
    )
    refused, left = False, whole
    try:
        [left], account = encode_records([record], tokenizer, kind="sft", **limits)
        said = str(account)
    except DataError as error:
        refused, said = True, str(error)
    return _compared(tokenizer, whole, None if refused else left, said)


def _compared(tokenizer: Any, whole: Row, left: Row | None, said: str) -> CutRow:
    "A row and what truncation leaves of it; None: nothing, for it is refused."
    prompt, answer = whole.prompt_ids, whole.answers["response"]
    kinds = ["prompt"] * len(prompt)
    kinds += ["learned" if each else "read" for each in whole.learned_of("response")]
    if left is None:
        cut = [True] * len(kinds)
    else:
        shorter = len(prompt) - len(left.prompt_ids)  # a prompt is cut from the left
        kept = len(left.answers["response"])  # and an answer from the right
        cut = [place < shorter for place in range(len(prompt))]
        cut += [place >= kept for place in range(len(answer))]
    tokens = [token_text(tokenizer, one) for one in (*prompt, *answer)]
    return CutRow(tuple(tokens), tuple(kinds), tuple(cut), said, left is None)


def draw_inspector(
    text: str,  # a typed conversation: lines that begin with system:, user: and assistant:
    model: str,  # whose tokenizer is asked
    template: str,  # a file, a shipped template's name, its text; "": the tokenizer's own
    max_length: int,  # most tokens of prompt and answer together
    max_prompt_length: int,  # most tokens of the prompt
    min_response_tokens: int,  # an answer that is cut must keep so many
) -> str:  # HTML
    "A box for each token: what the loss sees, what is only read, what is cut."
    limits = {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "min_response_tokens": min_response_tokens,
    }
    try:
        row = cut_row(text, model, template, **limits)
    except PrefkitError as error:
        return f'<p role="alert" style="color:#B00020">{escaped(error)}</p>'
    boxes = []
    for token, kind, cut in zip(row.tokens, row.kinds, row.cut, strict=True):
        boxes.append(_token(token, kind, cut))
        if token.endswith("↵"):
            boxes.append("<br>")
    shown = f'<div style="font-family:monospace;line-height:1.9">{"".join(boxes)}</div>'
    alert = ' role="alert" style="color:#B00020"' if row.refused else ""
    account = f"<p{alert}>{escaped(row.account, lines=True)}</p>"
    return f"<div>{shown}<p>{_counted(row)}</p>{account}</div>"


_FRAME = "border-radius:3px;padding:0 2px;margin:1px;display:inline-block"
_KINDS = {
    "learned": "background:#ffe08a;color:#000;font-weight:bold;text-decoration:underline",
    "read": "background:#f2f2f2;color:#333;font-style:italic",
    "prompt": "background:#f2f2f2;color:#333",
}


def _token(text: str, kind: str, cut: bool) -> str:
    style = f"{_KINDS[kind]};border:1px solid #bbb"
    if cut:
        style = "background:#fff;color:#767676;text-decoration:line-through;border:1px dashed #999"
    return f'<span style="{style};{_FRAME}">{escaped(text)}</span>'


def _counted(row: CutRow) -> str:  # HTML
    "How many tokens of each kind there are, each as it is drawn."
    parts = [
        ("learned", False, "seen by the loss"),
        ("prompt", False, "of the prompt"),
        ("read", False, "of an answer, read and not learned"),
    ]
    told = [
        f"{_token(str(number), kind, cut)} {words}"
        for kind, cut, words in parts
        if (number := row.count(kind, cut)) or kind == "learned"
    ]
    if not row.refused:
        ends = {
            "prompt's beginning": row.count("prompt", True),
            "answer's end": row.count("learned", True) + row.count("read", True),
        }
        box = f'<span style="border:1px dashed #999;{_FRAME}">'
        told += [
            f"{box}{number}</span> cut from the {end}" for end, number in ends.items() if number
        ]
    return ", ".join(told) + f"; {len(row.tokens)} tokens in all."


def explore_inspector(
    text: str = EXAMPLE_TALKS[1],  # a typed conversation
    model: str = "data/tiny/base",  # whose tokenizer is asked
    template: str = "",  # a file, a shipped template's name, its text; "": the tokenizer's own
) -> Explorer:
    "What a template and the limits make of a conversation."
    drawn = tuple(dict.fromkeys((text, *EXAMPLE_TALKS)))
    controls = {
        "text": Words(text, 5, "a conversation", frames=drawn),
        "model": Words(model),
        "template": Words(
            template, label="template (empty: the model's own)", frames=("", "chatml")
        ),
        "max_length": Slider(4, 512, 64, 1, frames=(16, 32, 48, 64, 512)),
        "max_prompt_length": Slider(4, 512, 512, 1, frames=(24, 512)),
        "min_response_tokens": Slider(1, 64, 4, 1, frames=(4,)),
    }
    return Explorer(draw_inspector, "Tokens of a conversation, and what the loss sees", controls)
