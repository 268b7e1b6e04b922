"""Questions asked behind an instruction, such as to be brief or verbose, and how far the length of
the answers follows it (ORPO paper, appendix H).

Judges are given the question without its instruction, so that answers under different instructions
are judged alike. Written by hand, not exported from a notebook.
"""

from prefkit.core import ConfigError, derive_seed, nearest
from prefkit.data.framing import with_instruction
from prefkit.stats.intervals import ratio_interval
from prefkit.stats.text_metrics import VERBOSITY


def read_instructions(
    given: dict,  # name -> succinct, verbose, a text, several texts, or "" for none
) -> dict[str, tuple[str, ...]]:  # name -> wordings, one of which is drawn for each prompt
    "Instructions as a config names them; a single word is a name. Raises `ConfigError`."
    return {str(name): _wordings(str(name), value) for name, value in given.items()}


def _wordings(name, value):
    if value == "":
        return ()
    if value in tuple(VERBOSITY):
        return VERBOSITY[value]
    if isinstance(value, str) and len(value.split()) == 1:
        raise _refused(
            name,
            f"{value!r} is none of {', '.join(VERBOSITY)}.{nearest(value, VERBOSITY)} Or give the "
            "instruction itself, a sentence.",
            "unknown",
        )
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _refused(
            name,
            f"give {', '.join(VERBOSITY)}, a text, or a list of texts, not {value!r}.",
            "wrong type",
        )
    if not texts or not all(text.strip() for text in texts):
        raise _refused(
            name,
            'give at least one text, none of them blank, or "" for no instruction.',
            "empty",
        )
    return tuple(texts)


def _refused(name, text, reason):
    return ConfigError(f"instructions, {name}: {text}", field=f"instructions.{name}", reason=reason)


def instructed(
    rows: list[dict],  # each with prompt_id and prompt: messages, or the user's words
    name: str,  # of the instruction
    wordings: tuple[str, ...],  # of which one is drawn for each prompt; (): none
    seed: int,  # of the draws
) -> list[dict]:  # the rows; where there is one, `instruction_text` beside the prompt that holds it
    """Rows whose question stands behind an instruction; what is drawn depends on seed, name and
    prompt_id alone. Raises `DataError` for a prompt that does not end with the user's turn.
    """
    if not wordings:
        return rows
    found = []
    for row in rows:
        text = wordings[derive_seed(seed, name, row["prompt_id"]) % len(wordings)]
        prompt = with_instruction(row["prompt"], text)
        found.append({**row, "prompt": prompt, "instruction_text": text})
    return found


def length_against(
    rows: list[dict],  # with answer, of one model under one instruction
    first: list[dict],  # of the same model under the first one, in the same order
) -> dict:  # characters: mean length; ratio, ratio_low, ratio_high; None without any text there
    "How many times as long answers are as under another instruction, with a 95 % interval."
    ours, theirs = ([len(row["answer"]) for row in each] for each in (rows, first))
    names = ("ratio", "ratio_low", "ratio_high")
    ends = ratio_interval(ours, theirs) if sum(theirs) else (None, None, None)
    return {"characters": sum(ours) / len(ours), **dict(zip(names, ends))}
