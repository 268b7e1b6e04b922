"""Models in GGUF files, as llama.cpp writes them: looked at by their header alone, and loaded by
transformers into a plain model that can be trained and saved.
"""

import re
import struct
from collections import Counter
from math import prod
from pathlib import Path

from prefkit.core import ConfigError

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}


def is_gguf(name: str | Path) -> bool:
    "Whether a name is that of a GGUF file."
    return Path(name).suffix.lower() == ".gguf"


def known_architectures() -> list[str]:  # as GGUF files call them, underlines for hyphens
    "The causal language models that transformers reads from GGUF files."
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    return sorted({*GGUF_ARCHS, *(name for name in GGUF_SUPPORTED_ARCHITECTURES if name in CAUSAL)})


def _plain(architecture):
    "Without hyphens and underlines: qwen2moe is what transformers calls qwen2_moe."
    return re.sub("[-_]", "", architecture)


def need_gguf(
    what: str,  # that it is to read
    where: str = "model",  # stands at the start of a message
):
    "Raise `ConfigError` where the package gguf is not installed."
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise ConfigError(
            f"{where}: {what} is read by the package gguf, which is not installed. Install it: pip "
            "install -c constraints.txt gguf, or the extra prefkit[gguf].",
            field=where,
            reason="gguf is not installed",
        )


def check_gguf(
    path: Path,  # a GGUF file
    where: str = "model",  # stands at the start of a message
    chat_template: str | None = None,  # given in place of its own
):
    "Look at a file's header; raises `ConfigError` for a model that could not be loaded from it."
    from transformers.integrations.gguf import GGUF_ARCHS, read_gguf_metadata

    def refuse(what, reason):
        raise ConfigError(f"{where}: {what}", field=where, reason=reason)

    try:
        header, _ = read_gguf_metadata(str(path))
    except (OSError, ValueError, struct.error) as error:
        refuse(f"{path.name} is no whole GGUF file ({error}). Fetch it again.", "cannot be read")
    architecture, known = header["general.architecture"], known_architectures()
    if _plain(architecture) not in map(_plain, known):
        refuse(
            f"{path.name} holds a model of the architecture {architecture!r}, which transformers "
            f"does not read as a language model. It reads {', '.join(known)}.",
            "unknown architecture",
        )
    if not (chat_template or header.get("tokenizer.chat_template")):
        refuse(
            f"{path.name} has a tokenizer without a chat template. Take a chat model's file, or "
            "give chat_template.",
            "no chat template",
        )
    if architecture not in GGUF_ARCHS:
        need_gguf(path.name, where)


def rounded_weights(
    path: Path,  # a GGUF file
) -> str:  # such as "weights were rounded to four bits (Q4_1)"; "" where none were
    "What was lost when a file was made, the type of most weights first."
    from transformers.integrations.gguf import GgufHeader
    from transformers.integrations.gguf.dequant import GGML_NAME

    counts = Counter()
    for tensor in GgufHeader.from_file(str(path)).tensors:
        counts[GGML_NAME.get(tensor.ggml_type)] += prod(tensor.shape)
    total, parts = counts.total(), []
    for name, count in counts.most_common():
        if name:  # else they are numbers as they were written
            bits = int(re.search(r"\d", name)[0])  # ty: ignore[not-subscriptable] Q4_1, IQ2_XXS
            share = "" if not parts else f", {100 * count / total:.0f} % of them"
            parts.append(f"{share} to {NUMBERS[bits]} bits ({name})")
    return f"weights were rounded{''.join(parts)}" if parts else ""
