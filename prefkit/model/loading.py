"""A model by its name: looked at without its weights, loaded, and told apart by them."""

import hashlib
import json
from pathlib import Path

from prefkit.core import ConfigError, input_path
from prefkit.data.sources import is_hub_name

WAY_OUT = (
    "Give a folder written by save_pretrained (model and tokenizer), stage:NAME, or owner/name "
    "on the Hub."
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def _missing_part(folder: Path) -> str:  # "" where nothing is missing
    "What a model's folder lacks, in words."
    if not (folder / "adapter_config.json").exists():
        try:
            json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except OSError:
            return "has no config.json"
        except ValueError:
            return "has a broken config.json"
    if not any(file for ending in ("safetensors", "bin") for file in folder.glob(f"*.{ending}")):
        return "has no weights (.safetensors or .bin)"
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return "has no tokenizer"
    settings = folder / "tokenizer_config.json"
    inside = settings.exists() and b'"chat_template"' in settings.read_bytes()
    if inside or any(folder.glob("chat_template*")):
        return ""
    return "has a tokenizer without a chat template"


def check_model(
    name: str,  # a folder, stage:NAME, or a name on the Hub
    where: str = "model",  # stands at the start of a message
):
    """Look at a model's files without loading them; raises `ConfigError`.

    A stage's checkpoint and the Hub are not looked at.
    """

    def refuse(what, reason):
        raise ConfigError(f"{where}: {what}. {WAY_OUT}", field=where, reason=reason)

    if not isinstance(name, str) or not name.strip():
        refuse(f"{name!r} names no model", "no name")
    if name.startswith("stage:"):
        return
    folder = input_path(name)
    if folder.is_dir():
        if lack := _missing_part(folder):
            refuse(f"the folder {name} {lack}", "incomplete")
        adapter = folder / "adapter_config.json"
        if adapter.exists():
            base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
            if base:
                check_model(base, f"{where}: the base model of {name}")
    elif folder.exists():
        refuse(f"{name} is a file, not a folder", "a file")
    elif not is_hub_name(name):
        refuse(f"{name} is no folder, and no name on the Hub", "not found")


def load_model(
    name: str,  # a folder, or a name on the Hub
):  # -> model in float32, tokenizer
    "A causal language model and its tokenizer; raises `ConfigError` where they cannot be loaded."
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(input_path(name)) if input_path(name).exists() else name
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model: {name} cannot be loaded ({str(error).strip().splitlines()[0]}). "
            "Give a folder written by save_pretrained, stage:NAME, or a name on the Hub.",
            field="model",
            reason="cannot be loaded",
        ) from error
    return model, tokenizer


def describe_model(
    model,  # loaded
    name: str,  # as it was asked for
) -> dict:  # for run.json
    "Name, type and size of a model."
    return {
        "start": name,
        "type": model.config.model_type,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def model_fingerprint(
    model,  # loaded
) -> str:  # 16 hexadecimal digits
    "A short name for a model's weights."
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        values = weight.detach().cpu().contiguous().view(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
