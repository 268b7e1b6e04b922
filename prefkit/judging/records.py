"""Records of answers as judges take them, looked at before anything is judged.

A record has `prompt` (messages, or one string), `answer` (a text), `prompt_id`, and whatever else
its data set has; what a model thought before it answered is `reasoning`, which nobody judges.
Written by hand, not exported from a notebook.
"""

from collections import Counter

from prefkit.core import DataError, fingerprint
from prefkit.data.thoughts import split_thought


def messages_of(
    prompt: list | str,  # messages, or the user's words
) -> list[dict]:  # messages, with role and content only
    "A prompt as messages; raises `DataError`."
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    good = (
        isinstance(prompt, (list, tuple))
        and prompt
        and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in prompt
        )
    )
    if good:
        return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    raise DataError(
        "prompt is neither a text nor a list of messages with role and content.",
        field="prompt",
        reason="no prompt",
    )


def text_of(
    prompt: list | str,  # messages, or the user's words
) -> str:  # one user turn as it is; several turns with their roles
    "A prompt as a person or a pairwise judge reads it; raises `DataError`."
    turns = messages_of(prompt)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _check_record(record):
    "Raise `DataError` for a record that cannot be judged."
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise DataError(
            f"a {kind} where a dict with prompt and answer is needed.", reason="no record"
        )
    messages_of(record.get("prompt"))
    if not isinstance(record.get("answer"), str):
        raise DataError(
            'answer is not a text. Generate the answers first; an empty one is "".',
            field="answer",
            reason="no text",
        )


def without_thought(
    record: dict,  # with answer
) -> dict:  # the same where its answer holds none; else its answer without, and its reasoning
    "A record whose answer is what is judged, counted and shown."
    if not isinstance(record.get("answer"), str) or "reasoning" in record:
        return record  # bad, which others say; or apart already
    said = split_thought(record["answer"])
    return record if said.reasoning is None else {**record, **said.to_dict()}


def without_thoughts(
    records: list[dict],  # with answer
) -> list[dict]:
    "`without_thought` of each."
    return [without_thought(record) for record in records]


def record_ids(
    records: list[dict],  # prompt, answer, prompt_id
    where: str = "record",  # what a record is called in messages
) -> list[str]:  # one for each, all different
    """A name for each record: its prompt_id, numbered where it comes again; raises `DataError`
    naming a record that cannot be judged.
    """
    names, seen, taken = [], Counter(), set()
    for number, record in enumerate(records):
        try:
            _check_record(record)
        except DataError as error:
            raise error.at(f"{where} {number}") from error
        base = record.get("prompt_id")
        base = fingerprint(messages_of(record["prompt"])) if base is None else str(base)
        name = base
        while name in taken:
            seen[base] += 1
            name = f"{base} #{seen[base] + 1}"
        taken.add(name)
        names.append(name)
    return names


def pair_ids(
    records_a: list[dict],  # of one model
    records_b: list[dict],  # of the other
) -> list[str]:  # one for each pair, all different
    """Names of the pairs; raises `DataError` unless both lists ask the same prompts in the same
    order.
    """
    ids, others = record_ids(records_a, "record a"), record_ids(records_b, "record b")
    if len(ids) != len(others):
        raise DataError(
            f"{len(ids)} records against {len(others)}: both models must answer the same prompts, "
            "in the same order.",
            field="records",
            reason="unequal lengths",
        )
    for number, (name, other, a, b) in enumerate(zip(ids, others, records_a, records_b)):
        if name != other or messages_of(a["prompt"]) != messages_of(b["prompt"]):
            raise DataError(
                f"record {number}: the two lists have different prompts there ({name} against "
                f"{other}). Sort both by prompt_id.",
                field="prompt_id",
                reason="different prompts",
            )
    return ids


def same_answer(
    a: dict,  # a record
    b: dict,  # another one
) -> bool:
    """Whether two answers differ in nothing but white space at their ends: a tie about which nobody
    needs to be asked.
    """
    return a["answer"].strip() == b["answer"].strip()


def models_of(
    a: dict,  # a record with `model`
    b: dict,  # the other of the pair
) -> list[str]:  # both names
    """Names of the two models of a pair; raises `DataError` where votes could not be told apart by
    them.
    """
    names = [record.get("model") for record in (a, b)]
    stripped = [name.strip() for name in names if isinstance(name, str)]
    if len(stripped) == 2 and all(stripped) and stripped[0] != stripped[1]:
        return stripped
    raise DataError(
        f"record {a.get('prompt_id')}: votes go by the models' names, so both records need "
        f"`model`, two different names; they have {names[0]!r} and {names[1]!r}.",
        field="model",
        reason="no two names",
    )
