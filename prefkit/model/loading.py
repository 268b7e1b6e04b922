"""A model by its name: looked at without its weights, loaded, and told apart by them."""

import hashlib
import json
from pathlib import Path

from prefkit.core import ConfigError, input_path
from prefkit.data.chat import render
from prefkit.data.sources import is_hub_name
from prefkit.model.gguf import check_gguf, is_gguf, load_gguf, rounded_weights

WAY_OUT = (
    "Give a folder written by save_pretrained (model and tokenizer), a .gguf file, stage:NAME, or "
    "owner/name on the Hub."
)
PROVENANCE = "provenance.json"  # in a model's folder: where it comes from, what was done to it
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
    elif folder.is_file() and is_gguf(name):
        check_gguf(folder, where)
    elif folder.exists():
        refuse(f"{name} is a file, not a folder", "a file")
    elif not is_hub_name(name):
        refuse(f"{name} is no folder, and no name on the Hub", "not found")


def load_model(
    name: str,  # a folder, a .gguf file, or a name on the Hub
):  # -> model in float32, tokenizer
    "A causal language model and its tokenizer; raises `ConfigError` where they cannot be loaded."
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(input_path(name)) if input_path(name).exists() else name
    if is_gguf(name) and Path(place).is_file():
        return load_gguf(Path(place))
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
    tokenizer=None,  # its own, with a chat template
) -> dict:  # for run.json
    """Name, type and size of a model, what had been done to its weights where that is known, and
    what its template puts around a question (`prompt`), a system prompt of its own among it.
    """
    told = said_of_weights(name)
    asked = [{"role": "user", "content": "..."}]
    frame = tokenizer and render(tokenizer, asked, generation_prompt=True)
    return {
        "start": name,
        "type": model.config.model_type,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        **({"weights": told} if told else {}),
        **({"prompt": frame} if frame else {}),
    }


def said_of_weights(
    name: str,  # of a model, as it was asked for
) -> str:  # such as "weights were rounded to four bits (Q4_1)"; "" where nothing is known
    """What was lost before the kit saw a model: told by a GGUF file, by the provenance in a
    model's folder, and by the run that a checkpoint comes from about the model that it began with.
    """
    place = input_path(name)
    if is_gguf(name) and place.is_file():
        return rounded_weights(place)
    if (place / PROVENANCE).is_file():
        return json.loads((place / PROVENANCE).read_text(encoding="utf-8")).get("weights", "")
    run = place.parent / "run.json"
    if run.is_file():
        about = json.loads(run.read_text(encoding="utf-8")).get("model") or {}
        return about.get("weights", "") if isinstance(about, dict) else ""
    return ""


def said_of_models(
    models: dict,  # name -> a model, or a server
) -> dict:  # {"weights": {name: words}}; {} where nothing is known
    "`said_of_weights` of the models that an evaluation asks, for its run.json."
    known = {name: said_of_weights(one) for name, one in models.items() if isinstance(one, str)}
    told = {name: words for name, words in known.items() if words}
    return {"weights": told} if told else {}


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
