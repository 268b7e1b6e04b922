"""What a model can read, asked of its config: positions, ids that have a row, a window of
attention, a token to fill up with; and its dropout.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch

from prefkit.core import DataError

# ---- ids


def embedding_rows(model) -> int:
    "How many token ids a model can read."
    return model.get_input_embeddings().weight.shape[0]


def vocabulary_of(tokenizer, rows: int) -> int | None:  # None: every row belongs to a token
    "One more than the largest id that is a token, where a model has rows beyond: they are filling."
    if len(tokenizer) >= rows:
        return None
    return min(rows, max(tokenizer.get_vocab().values()) + 1)


def filling_id(
    tokenizer,  # of the model
    rows: int | None = None,  # ids that the model can read; None: not asked
    never: Sequence[int] = (),  # ids that may not fill; (): what fills is neither seen nor scored
) -> int | None:  # None: there is none
    "A token to fill batches up with: the tokenizer's own if it can be had, else a special one."
    tokens = [tokenizer.pad_token_id]
    if never:
        tokens += [one for one in tokenizer.all_special_ids if one != tokenizer.unk_token_id]
    else:
        tokens += [tokenizer.eos_token_id, 0]
    for token in tokens:
        if token is not None and token not in never and (rows is None or token < rows):
            return token
    return None


def filling_of(
    model,  # a language model, or one with a scalar head
    tokenizer,  # of it
) -> int:
    """A token to fill batches up with that the model has a row for.

    Any would do for a language model, since what is filled is never seen: an end-of-text token is
    harmless. A scalar head is read before the one that its config names.
    """
    rows, own = embedding_rows(model), tokenizer.pad_token_id
    named = model.config.get_text_config().pad_token_id if hasattr(model, "score") else None
    if named is not None and (own is None or own >= rows):
        return named
    return cast(int, filling_id(tokenizer, rows))


def check_ids(
    sequences: Iterable[tuple[str, list[int]]],  # where it stands, token ids
    rows: int,  # ids that the model can read
    tokenizer=None,  # to say which token it is
):
    "Raise `DataError` for an id that the model has no row for."
    for where, ids in sequences:
        if ids and max(ids) >= rows:
            worst = max(ids)
            name = f" ({tokenizer.convert_ids_to_tokens(worst)!r})" if tokenizer else ""
            raise DataError(
                f"{where}: token {worst}{name} has no row in the model, which knows the ids below "
                f"{rows}. Tokenizer and model do not belong together: take the model's own "
                "tokenizer, or call model.resize_token_embeddings(len(tokenizer)) and train the "
                "new rows, or leave the row out.",
                field="tokenizer",
                reason="token without a row",
            )


# ---- positions


def most_positions(config) -> tuple[int | None, bool]:
    """How many positions a model knows, None if any number, and whether it fails beyond them:
    learned positions end there, rotary ones go on, untrained.
    """
    config = config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    goes_on = getattr(config, "rope_parameters", None) or getattr(config, "alibi", False)
    return most, most is not None and not goes_on


def check_prompt_lengths(
    config,  # of the model
    prompts: Mapping[Any, list[int]],  # what a prompt is called -> token ids
    max_new_tokens: int,  # of an answer
):
    "Raise `DataError` for prompts that a model has no positions for; nothing is generated before."
    most, fails = most_positions(config)
    if most is None:
        return
    room = most - max_new_tokens if fails else most
    long = {name: len(ids) for name, ids in prompts.items() if len(ids) > room}
    if not long:
        return
    name, tokens = next(iter(long.items()))
    answer = f", its answer up to {max_new_tokens} more" if fails else ""
    many = f" ({len(long)} of {len(prompts)} prompts are too long)" if len(long) > 1 else ""
    way_out = "leave the prompt out or shorten it"
    if fails and tokens <= most:
        way_out += f", or set max_new_tokens: {max(1, most - tokens)}"
    raise DataError(
        f"prompt {name}: it has {tokens} tokens{answer}, and the model "
        f"({config.get_text_config().model_type}) has positions for {most}{many}. Nothing was "
        f"generated: {way_out}.",
        field="prompts",
        reason="beyond the positions",
    )


def check_lengths(
    config,  # of the model
    sets: dict[str, list[int]],  # name -> for each row the tokens of its longest sequence
    way_out: str = "Set max_length: {most}.",
) -> list[str]:  # notes for the account
    """Raise `DataError` for rows that a model with learned positions cannot read; where it can, but
    was not made for it, that is noted.
    """
    most, fails = most_positions(config)
    notes = []
    for name, lengths in sets.items():
        long = [number for number, tokens in enumerate(lengths) if most and tokens > most]
        if not long:
            continue
        if fails:
            raise DataError(
                f"{name}, row {long[0]}: it has {lengths[long[0]]} tokens, and the model "
                f"({config.get_text_config().model_type}) has positions for {most} ({len(long)} of "
                f"{len(lengths)} rows are too long). {way_out.format(most=most)}",
                field="max_length",
                reason="beyond the positions",
            )
        notes.append(
            f"{name}: {len(long)} of {len(lengths)} rows are longer than the {most} positions that "
            f"the model was made for, the longest {max(lengths)} tokens"
        )
    return notes


# ---- attention


def window_of(config) -> int | None:
    "How many tokens the narrowest layer looks at, itself included; None: all that come before."
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention", "chunked_attention"]
    widths = []
    if "sliding_attention" in kinds and getattr(config, "use_sliding_window", True):
        widths.append(getattr(config, "sliding_window", None))
    if "chunked_attention" in kinds:
        widths.append(getattr(config, "attention_chunk_size", None))
    return min((width for width in widths if width), default=None)


# ---- dropout

DROPOUT = (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d)


def dropout_of(model) -> dict[str, float]:  # name in the config -> probability, those above 0
    "The dropout that a model's config asks for while it is trained."
    return {name: value for name, value in _dropouts(model.config.get_text_config()) if value}


def _dropouts(thing):
    "Numbers in an object that are called dropout, resid_pdrop, layerdrop and the like."
    for name, value in list(vars(thing).items()):
        if "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value


def set_dropout(
    model,  # before adapters are added: theirs is their own
    wanted: bool | float,  # True: as the model has it; False: none; a number: this everywhere
) -> str:  # what was changed, "": nothing
    "Set every probability of dropout in a model's config and modules."
    modules = [module for module in model.modules() if isinstance(module, DROPOUT)]
    before, inside = dropout_of(model), max((module.p for module in modules), default=0.0)
    if wanted is True or not (before or inside or wanted):
        return ""
    places = [(module, "p") for module in modules]
    for thing in (model.config, model.config.get_text_config(), *model.modules()):
        places += [(thing, name) for name, _ in _dropouts(thing)]
    for thing, name in places:
        setattr(thing, name, 0.0 if name == "layerdrop" else float(wanted))
    had = ", ".join(f"{name} {value:g}" for name, value in before.items()) or f"{inside:g}"
    if not wanted:
        return f"dropout of the start model ({had}) switched off; dropout: true keeps it"
    return f"dropout of the start model ({had}) set to {wanted:g}"
