"""What is put before what a row asks: one system prompt for all rows, or an instruction.

The setting `system_prompt` puts a system turn before the prompt of every row that is read. A row
with a system turn of its own keeps it, since such a turn often says what the task is. The account
of the rows counts both. Written by hand, not exported from a notebook.
"""

from collections import Counter

from prefkit.core import ConfigError, DataError

SYSTEM_PUT = "system_prompt put before the prompt"
SYSTEM_KEPT = "own system turn kept in place of system_prompt"


def check_system_prompt(text: str):
    'Raise `ConfigError` for a system prompt of white space alone; "" is none.'
    if text and not text.strip():
        raise ConfigError(
            f'system_prompt is {text!r}, which says nothing. Write "" for no system turn, or a '
            "text.",
            field="system_prompt",
            reason="blank",
        )


def system_turn(
    text: str,  # the system prompt; "": none
) -> list[dict]:  # one message, or none
    "What stands before a conversation."
    return [{"role": "system", "content": text}] if text else []


def put_system_prompt(
    rows: list[dict],  # each with prompt: messages, or the user's words
    text: str,  # the system prompt; "": none
) -> tuple[list[dict], dict[str, int]]:  # the rows; what was done: in how many of them
    "Rows whose prompts begin with a system turn; raises `ConfigError`."
    check_system_prompt(text)
    if not text:
        return rows, {}
    found, counts = [], Counter()
    for row in rows:
        prompt = row["prompt"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        own = any(turn["role"] == "system" for turn in turns)
        counts[SYSTEM_KEPT if own else SYSTEM_PUT] += 1
        found.append(row if own else {**row, "prompt": [*system_turn(text), *turns]})
    return found, {what: counts[what] for what in (SYSTEM_PUT, SYSTEM_KEPT) if counts[what]}


def with_instruction(
    prompt: str | list[dict],  # the user's words, or messages that end with the user's turn
    instruction: str,  # a sentence; "": none
    separator: str = " ",  # between instruction and question
) -> str | list[dict]:  # as given
    "A prompt whose last question stands behind an instruction; raises `DataError`."
    if isinstance(prompt, str):
        return f"{instruction}{separator}{prompt}" if instruction else prompt
    if not prompt or prompt[-1].get("role") != "user":
        raise DataError(
            "the prompt does not end with the user's turn, before which the instruction belongs.",
            field="prompts",
            reason="not the user's turn",
        )
    if not instruction:
        return prompt
    last = {**prompt[-1], "content": f"{instruction}{separator}{prompt[-1]['content']}"}
    return [*prompt[:-1], last]
