"""What somebody types, as messages; and the models that are asked about it, loaded once."""

import re
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any

from prefkit.core import DataError, input_path
from prefkit.model.loading import load_language_model, load_tokenizer
from prefkit.train.saves import no_bars

__all__ = ["cached_model", "cached_tokenizer", "read_typed", "token_text"]

MODELS_KEPT = 4


def read_typed(
    text: str,  # a message begins with its role and a colon, at the beginning of a line
    roles: tuple[str, ...],  # that may stand there
) -> list[tuple[str, str]]:  # role and content of each message
    "Split a typed conversation into its messages; raises `DataError` where it has none."
    head = re.compile(rf"(?im)^[ \t]*({'|'.join(roles)})[ \t]*:[ \t]*")
    found = list(head.finditer(text))
    if not found or text[: found[0].start()].strip():
        raise DataError(
            f"text: a message begins with its role and a colon ({', '.join(roles)}), as in "
            f"'{roles[0]}: ...', and the first stands at the beginning.",
            field="text",
            reason="no role",
        )
    ends = [*(one.start() for one in found[1:]), len(text)]
    return [
        (one[1].lower(), text[one.end() : end].strip())
        for one, end in zip(found, ends, strict=True)
    ]


def _stamp(name: str) -> tuple[str, float]:
    "A model's place and when its files last changed: one that was trained on is loaded anew."
    place = input_path(name)
    files = [place, *place.glob("*")] if place.is_dir() else [place] if place.is_file() else []
    return str(place if files else name), max((each.stat().st_mtime for each in files), default=0.0)


def cached_model(
    name: str,  # as `prefkit.model.loading.load_model` takes it
) -> Any:  # in float32, in evaluation mode
    "A language model, read once; raises `ConfigError`."
    return _model(*_stamp(name))


def cached_tokenizer(
    name: str,  # the same
) -> Any:
    "A model's tokenizer, read once, not to be changed; raises `ConfigError`."
    return _tokenizer(*_stamp(name))


@lru_cache(MODELS_KEPT)
def _model(name: str, changed: float):
    with redirect_stdout(StringIO()), no_bars():
        return load_language_model(name).eval()


@lru_cache(MODELS_KEPT)
def _tokenizer(name: str, changed: float):
    return load_tokenizer(name)


def token_text(
    tokenizer: Any,
    token: int,
) -> str:  # with its spaces and line breaks to be seen
    "A token as it is shown to a person."
    text = tokenizer.decode([token])
    return text.replace(" ", "·").replace("\n", "↵") or tokenizer.convert_ids_to_tokens(token)
