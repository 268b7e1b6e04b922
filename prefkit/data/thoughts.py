"""What a model thinks before it answers is not its answer: the two are told apart here.

Nobody judges a thought, counts its length or sends it to a leaderboard; a judge's verdict is what
stands behind its own. Written by hand, not exported from a notebook.
"""

import re
from dataclasses import dataclass

# Marks of a thought's beginning and end, as models write them.
_WORDS = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think"
THOUGHT_MARKS = (
    (rf"<(?:{_WORDS})>", rf"</(?:{_WORDS})>"),  # DeepSeek-R1, Qwen3, SmolLM3, Seed-OSS
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    (r"<unused94>", r"<unused95>"),  # MedGemma
    (r"<\|channel>thought\b", r"<channel\|>"),  # Gemma 4
    (r"Here is my thought process:", r"Here is my response:"),  # Granite 3.2
)
_OPEN = re.compile("|".join(begin for begin, _ in THOUGHT_MARKS), re.I)
_CLOSE = re.compile("(?<!`)(?:" + "|".join(end for _, end in THOUGHT_MARKS) + ")", re.I)
_OPEN_AT_END = re.compile(rf"(?:{_OPEN.pattern})\s*\Z", re.I)
_OPEN_AT_LINE = re.compile(rf"^[ \t]*(?:{_OPEN.pattern})", re.I | re.M)
# what some put around the answer that follows; `<answer>` is left to those who ask for it
_AROUND = re.compile(
    r"<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>|<\|(?:end|return)\|>\s*\Z"
)
# OpenAI's harmony: every part of a reply has a channel, `final` is the answer
_CHANNEL = re.compile(
    r"<\|channel\|>(?P<name>\w+)(?:(?!<\|message\|>).)*?<\|message\|>(?P<text>.*?)"
    r"(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.S,
)
# the same where a server or a tokenizer has dropped the special tokens
_BARE_CHANNEL = re.compile(
    r"\A\s*analysis(?=[A-Z])(?P<thought>.*?)(?:assistant\s*final(?P<answer>.*))?\Z", re.S
)


@dataclass(frozen=True)
class Said:
    "An answer and the thought before it."

    answer: str  # without white space at its ends, where there was a thought
    reasoning: str | None = None  # None: there is no thought
    cut_off: bool = False  # the thought never ended, and what came of it is not known

    def to_dict(self) -> dict:
        "As the record of an answer holds them: `reasoning` only where there is a thought."
        return {"answer": self.answer} | (
            {} if self.reasoning is None else {"reasoning": self.reasoning}
        )


def opens_thought(
    prompt: str,  # as the model reads it, generation prompt included
) -> str:  # the mark; empty where there is none
    "The mark of a thought that a template has begun for the model, which then writes its end only."
    found = _OPEN_AT_END.search(prompt)
    return found[0] if found else ""


def closes_first(text: str) -> bool:
    "Whether the first mark in a text is the end of a thought: the prompt had begun it."
    end, begin = _CLOSE.search(text), _OPEN.search(text)
    return end is not None and (begin is None or end.start() < begin.start())


def split_thought(
    text: str,  # what a model wrote
    opened: bool = False,  # its prompt ended within a thought, as `opens_thought` says
) -> Said:
    """Answer and thought apart. A thought begins at the beginning of a line, or with the text where
    only its end is there; marks that are quoted or spoken of stay in the answer.
    """
    if "<|channel|>" in text:
        return _of_channels(text)
    if bare := _BARE_CHANNEL.match(text):
        return _said([bare["answer"] or ""], [bare["thought"]], bare["answer"] is None)
    kept, thoughts, place = [], [], 0
    if opened or closes_first(text):
        end = _end_of_thought(text, 0)
        if end is None:
            return _said([], [text], cut_off=True)
        thoughts.append(text[: end.start()])
        place = end.end()
    while begin := _next_thought(text, place):
        kept.append(text[place : begin.start()])
        end = _end_of_thought(text, begin.end())
        if end is None:
            return _said(kept, [*thoughts, text[begin.end() :]], cut_off=True)
        thoughts.append(text[begin.end() : end.start()])
        place = end.end()
    if not thoughts:
        return Said(text)
    return _said([*kept, text[place:]], thoughts)


def whole_text(
    tokenizer,  # of the model
    prompt_ids: list[int],  # what it was asked, generation prompt included
    ids: list[int],  # of what it wrote, end token left out
) -> str:
    """What a model wrote, so that `split_thought` finds the thought in it: also one whose marks are
    special tokens, which are left out of a text, or that its template has begun.
    """
    plain = tokenizer.decode(ids, skip_special_tokens=True).strip()
    opened = bool(opens_thought(tokenizer.decode(prompt_ids[-32:])))
    said = split_thought(tokenizer.decode(ids), opened)
    if said.reasoning is None:
        return plain
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    leave_out = re.compile("|".join(map(re.escape, special)) or r"\Z")
    answer, thought = (leave_out.sub("", text).strip() for text in (said.answer, said.reasoning))
    if split_thought(plain) == Said(answer, thought, said.cut_off):
        return plain
    return f"<think>\n{thought}" + ("" if said.cut_off else f"\n</think>\n\n{answer}")


def _said(kept, thoughts, cut_off=False):
    answer = _AROUND.sub("", "".join(kept)).strip()
    return Said(answer, "\n\n".join(part.strip() for part in thoughts), cut_off)


def _of_channels(text):
    parts = [(found["name"], found["text"]) for found in _CHANNEL.finditer(text)]
    final = [part for name, part in parts if name == "final"]
    return _said(final, [part for name, part in parts if name != "final"], cut_off=not final)


def _next_thought(text, place):
    "The next beginning of a thought that is not in a block of code."
    fences, seen = 0, place
    for found in _OPEN_AT_LINE.finditer(text, place):
        fences += text.count("```", seen, found.start())
        seen = found.start()
        if fences % 2 == 0:
            return found
    return None


def _end_of_thought(text, place):
    "The last end before another thought begins: a thought may speak of its own marks."
    first = _CLOSE.search(text, place)
    if first is None:
        return None
    following = _next_thought(text, first.end())
    stop = following.start() if following else len(text)
    mention = _OPEN.search(text, first.end(), stop)
    ends = _CLOSE.finditer(text, first.end(), mention.start() if mention else stop)
    return [first, *ends][-1]
