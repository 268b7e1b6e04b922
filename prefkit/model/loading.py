"""A model by its name: looked at without its weights, loaded whole, and told apart by them."""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from prefkit.core import ConfigError, announce, check_number, input_path
from prefkit.data.chat import check_template, render
from prefkit.data.sources import is_hub_name
from prefkit.model.gguf import check_gguf, is_gguf, rounded_weights

WAY_OUT = (
    "Give a folder written by save_pretrained (model and tokenizer), a .gguf file, stage:NAME, or "
    "owner/name on the Hub."
)
PROVENANCE = "provenance.json"  # in a model's folder: where it comes from, what was done to it
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def _missing_part(folder: Path, chat_template: str) -> str:  # "" where nothing is missing
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
    if chat_template or inside or any(folder.glob("*chat_template*")):
        return ""
    return "has a tokenizer without a chat template"


def _named_templates(folder: Path) -> dict[str, str]:
    "The chat templates of a tokenizer that has several, as transformers stores them."
    files = folder.glob("additional_chat_templates/*.jinja")
    named = {file.stem: file.read_text(encoding="utf-8") for file in files}
    settings = folder / "tokenizer_config.json"
    try:
        inside = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    except ValueError as error:
        raise ConfigError(
            f"model: {settings} is broken ({error}). {WAY_OUT}", field="model", reason="incomplete"
        ) from error
    found = inside.get("chat_template")
    if isinstance(found, list):
        named |= {each["name"]: each["template"] for each in found}
    return named


def check_model(
    name: str,  # a folder, stage:NAME, or a name on the Hub
    where: str = "model",  # stands at the start of a message
    chat_template: str = "",  # what is given in place of its tokenizer's
):
    """Look at a model's files without loading them; raises `ConfigError`.

    A stage's checkpoint and the Hub are not looked at.
    """

    def refuse(what, reason):
        raise ConfigError(f"{where}: {what}. {WAY_OUT}", field=where, reason=reason)

    if not isinstance(name, str) or not name.strip():
        refuse(f"{name!r} names no model", "no name")
    folder = None if name.startswith("stage:") else input_path(name)
    here = folder is not None and folder.is_dir()
    check_template(chat_template, _named_templates(folder) if here and chat_template else None)
    if folder is None:
        return
    if here:
        if lack := _missing_part(folder, chat_template):
            refuse(f"the folder {name} {lack}", "incomplete")
        adapter = folder / "adapter_config.json"
        if adapter.exists():
            base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
            if base:
                check_model(base, f"{where}: the base model of {name}", chat_template)
    elif folder.is_file() and is_gguf(name):
        check_gguf(folder, where, chat_template)
    elif folder.exists():
        refuse(f"{name} is a file, not a folder", "a file")
    elif not is_hub_name(name) and not _on_the_hub(name)[1]:
        refuse(f"{name} is no folder, and no name on the Hub", "not found")


# ---- weights, all of them


def place_of(name: str) -> str:  # a path, or the name itself
    "Where transformers finds a model: a folder on this machine or a name on the Hub."
    return str(input_path(name)) if input_path(name).exists() else name


def pinned(
    name: str,  # a folder, stage:NAME, or a name on the Hub
    revision: str,  # a branch, tag or commit; "": the newest
) -> str:  # the name, with @revision where one is given: every function here reads it so
    "Pin a model on the Hub; raises `ConfigError` for one that is not from there."
    if not revision:
        return name
    if not is_hub_name(name) or name.startswith("stage:"):
        raise ConfigError(
            f"revision {revision!r} is only for the Hub; {name} is not from there. Leave it out.",
            field="revision",
            reason="only for the Hub",
        )
    return f"{name}@{revision}"


def _on_the_hub(name):
    "Name and revision of what is no path on this machine; the revision None where none is pinned."
    repository, at, revision = str(name).partition("@")
    here = input_path(name).exists() or not is_hub_name(repository)
    return (name, None) if here or not at else (repository, revision)


def source_of(name: str) -> dict:  # arguments of `from_pretrained`
    "Where a model, its config and its tokenizer are read from: a folder, the Hub, a GGUF file."
    place = Path(place_of(name))
    if is_gguf(name) and place.is_file():
        return {"pretrained_model_name_or_path": str(place.parent), "gguf_file": place.name}
    repository, revision = _on_the_hub(name)
    if revision:
        return {"pretrained_model_name_or_path": repository, "revision": revision}
    return {"pretrained_model_name_or_path": place_of(name)}


def _unloadable(name: str, what: str, reason: str) -> ConfigError:
    "The error of a model that cannot be used as it is."
    return ConfigError(f"model: {name} cannot be loaded: {what}.", field="model", reason=reason)


@contextmanager
def _loading(name: str):
    "Whatever a library raises while it reads a model's files, as an error that names the model."
    from safetensors import SafetensorError
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # what is said of keys is an error here, or meant
    try:
        yield
    except ConfigError:
        raise
    except (
        *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError),
        *(EOFError, UnpicklingError, SafetensorError),
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"model: {name} cannot be loaded ({lines[0]}). "
            "Give a folder written by save_pretrained, stage:NAME, or a name on the Hub.",
            field="model",
            reason="cannot be loaded",
        ) from error
    finally:
        logging.set_verbosity(level)


def load_tokenizer(name: str):  # of a folder, or a name on the Hub
    "A model's tokenizer; raises `ConfigError` where it cannot be loaded."
    from transformers import AutoTokenizer

    with _loading(name):
        return AutoTokenizer.from_pretrained(**source_of(name))


def model_config(name: str):  # of a folder, or a name on the Hub
    "A model's config; raises `ConfigError` where it cannot be loaded."
    from transformers import AutoConfig

    with _loading(name):
        if file := adapter_config(name):
            base = json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]
            return model_config(base)
        return AutoConfig.from_pretrained(**source_of(name))


def adapter_config(name: str) -> str | None:  # path of a file
    "The config of adapters, where a folder or a name on the Hub holds them in place of a model."
    from transformers.utils import find_adapter_config_file

    if "gguf_file" in source_of(name):
        return None
    with _loading(name):
        repository, revision = _on_the_hub(name)
        if revision:
            return find_adapter_config_file(repository, revision=revision)
        return find_adapter_config_file(place_of(name))


def read_weights(
    kind,  # a class with `from_pretrained`, such as AutoModelForCausalLM
    name: str,  # a folder, or a name on the Hub
    **options,  # of `from_pretrained`
):  # -> model in float32; missing_keys, unexpected_keys, mismatched_keys as sets
    "The one place where weights are read. What did not fit is told, and has to be looked at."
    import torch
    from transformers import GgufConfig

    options |= {"dtype": torch.float32, "ignore_mismatched_sizes": True, **source_of(name)}
    if "gguf_file" in options:  # else it could not be trained
        options |= {"quantization_config": GgufConfig(dequantize=True)}
    with _loading(name):
        model, info = kind.from_pretrained(output_loading_info=True, **options)
    if told := _narrowed(name):
        announce(f"{name}: its {told}")
    return model, {key: set(found) for key, found in info.items() if key != "error_msgs"}


def _narrowed(name: str) -> str:  # "" where float32 holds what is stored
    "What is lost where a model is read in float32, as it always is."
    import torch

    stored = model_config(name).dtype
    return "weights were rounded from float64 to float32" if stored == torch.float64 else ""


# what stands in the names of weights that were saved from a wrapped model, and the way out
WRAPPED = {
    "_orig_mod.": "saved from a compiled model: save model._orig_mod",
    "_fsdp_wrapped_module.": "saved from a sharded model: save the model inside it",
    "lora_": "saved with adapters in it: call merge_and_unload() and save what it returns",
    "base_layer.": "saved with adapters in it: call merge_and_unload() and save what it returns",
    "base_model.": "saved from a model wrapped by PEFT: save what merge_and_unload() returns",
    "module.": "saved from a model wrapped for several processes: save model.module",
}


def _way_out(missing, unexpected: list[str]) -> str:
    "What to do about weights whose names say nothing that is known."
    for key in missing:
        for other in unexpected:
            if other.endswith(f".{key}"):
                wrapper = other.removesuffix(key)
                return f"every name in the file begins with {wrapper!r}: save the model inside that"
    return "give a folder with the whole model and the config that belongs to it"


def check_loaded(
    name: str,  # of the model
    info: dict,  # from `read_weights`, without what is meant to be new or left out
    what: str = "of a language model",
):
    "Raise `ConfigError`, with the keys, where file and model do not hold the same weights."
    unexpected = sorted(info["unexpected_keys"])
    shapes = [f"{key} {tuple(was)} for {tuple(is_)}" for key, was, is_ in info["mismatched_keys"]]
    lists = {
        "missing": sorted(info["missing_keys"] - {key for key, *_ in info["mismatched_keys"]}),
        "left over": unexpected,
        "of another shape": sorted(shapes),
    }
    found = [
        f"{len(keys)} {word}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}"
        for word, keys in lists.items()
        if keys
    ]
    if not found:
        return
    words = (text for mark, text in WRAPPED.items() if any(mark in key for key in unexpected))
    hint = next(words, _way_out(info["missing_keys"], unexpected))
    raise ConfigError(
        f"model: the weights in {name} are not those {what} with its config ({'; '.join(found)}). "
        f"{hint[0].upper()}{hint[1:]}.",
        field="model",
        reason="other weights",
    )


def check_stored(
    name: str,  # a folder
):
    """`check_loaded` by the names and shapes of weights alone, which are not read: for who loads
    them otherwise.
    """
    from transformers import AutoModelForCausalLM

    check_loaded(name, read_weights(AutoModelForCausalLM, name, device_map="meta")[1])


def check_weights(
    name: str,  # of the model
    model,  # loaded
):
    "Raise `ConfigError` for weights that are NaN or infinite, or numbers that stand for others."
    import torch

    weights = dict(model.named_parameters())
    if packed := [key for key, weight in weights.items() if not weight.is_floating_point()]:
        raise _unloadable(
            name,
            f"its weights are quantised ({packed[0]} is {weights[packed[0]].dtype}). Give the "
            "model that it was made from",
            "quantised",
        )
    if bad := [key for key, weight in weights.items() if not torch.isfinite(weight).all()]:
        raise _unloadable(
            name,
            f"{len(bad)} of {len(weights)} weights are NaN or infinite ({', '.join(bad[:4])}). "
            "Save it again from where it was whole",
            "not finite",
        )


def load_model(
    # a folder, a .gguf file, or a name on the Hub; of adapters: they are merged into their base
    name: str,
):  # -> model in float32, tokenizer
    """A causal language model and its tokenizer; raises `ConfigError` where they cannot be loaded
    whole.
    """
    tokenizer = load_tokenizer(name)
    return load_language_model(name), tokenizer


def load_language_model(name: str):  # -> model in float32
    "`load_model` without the tokenizer."
    from transformers import AutoModelForCausalLM

    if file := adapter_config(name):
        model = merged_adapters(name, file)
    else:
        model, info = read_weights(AutoModelForCausalLM, name)
        check_loaded(name, info)
    check_weights(name, model)
    _say_untied(name, model)
    return model


def _say_untied(name, model):
    "transformers ties what the config says is tied, unless the file holds two different weights."
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    ties = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if ties and outside is not None and outside.weight is not inside.weight:
        print(
            f"{name}: its config ties embedding and head, but its file holds two different "
            "weights. Both are used as they are in the file."
        )


def merged_adapters(
    name: str,  # a folder, or a name on the Hub
    file: str,  # its adapter_config.json
):  # -> the base model with the adapters in its weights
    "LoRA adapters merged into their base; raises `ConfigError` where one does not fit the other."
    import torch
    from peft import (
        PeftConfig,
        get_peft_model,
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )

    with _loading(name), torch.random.fork_rng():
        config = PeftConfig.from_pretrained(str(Path(file).parent))
        base = config.base_model_name_or_path
        if not base:
            raise _unloadable(name, "its adapter_config.json names no base model", "no base")
        try:
            model = get_peft_model(load_language_model(base), config)
        except ConfigError as error:
            raise error.at(f"the base of the adapters {name}") from error
        repository, revision = _on_the_hub(name)
        place = repository if revision else place_of(name)
        stored = load_peft_weights(place, device="cpu", revision=revision)
        embeddings = any("embed" in key for key in stored)
        mine = get_peft_model_state_dict(model, save_embedding_layers=embeddings)
        shapes = {
            (key, stored[key].shape, mine[key].shape)
            for key in stored.keys() & mine.keys()
            if stored[key].shape != mine[key].shape
        }
        info = {
            "missing_keys": mine.keys() - stored.keys(),
            "unexpected_keys": stored.keys() - mine.keys(),
            "mismatched_keys": shapes,
        }
        check_loaded(name, info, f"of adapters on {base}")
        set_peft_model_state_dict(model, stored)
        return model.merge_and_unload()


# what files call the head of a language model, whatever it is called in the model
HEADS = (["lm_head"], ["embed_out"], ["unembed"], ["head"])


def load_reward_model(
    name: str,  # a folder, or a name on the Hub
    *,
    new_head: bool = False,  # a language model will do: its head is left out, a new one put on
    layers: int | None = None,  # keep only the first so many
    **options,  # of the config that are to be otherwise, such as pad_token_id
):  # -> model in float32 with a head of one number; names of the weights that are new
    """A model that gives one number; only with `new_head`, and only where the file is a language
    model's, its head is new. Raises `ConfigError`.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    if adapter_config(name):
        way_out = "merge them into their base with merge_and_unload() and save what it returns"
        raise _unloadable(name, f"it holds adapters; {way_out}", "adapters")
    stored = model_config(name)
    if layers is not None:
        options |= _first_layers(stored, layers)
    with torch.random.fork_rng():
        kind = AutoModelForSequenceClassification
        model, info = read_weights(kind, name, num_labels=1, **options)
    inside, fresh = f"{model.base_model_prefix}.", set()
    if new_head and not has_scalar_head(name):
        fresh = {key for key in info["missing_keys"] if not key.startswith(inside)}
        info["missing_keys"] -= fresh
        left = {key for key in info["unexpected_keys"] if key.split(".")[-2:-1] in HEADS}
        info["unexpected_keys"] -= left
    if layers is not None:
        beyond = {key for key in info["unexpected_keys"] if _layer_of(key) >= layers}
        info["unexpected_keys"] -= beyond
    check_loaded(name, info, "of a reward model")
    check_weights(name, model)
    return model, sorted(fresh)


def has_scalar_head(name: str) -> bool:  # of a folder, or a name on the Hub
    "Whether a model is a classifier, a reward model for instance, by what its config says."
    kinds = getattr(model_config(name), "architectures", None) or ()
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def _first_layers(config, layers: int) -> dict:
    "What the config has to say so that only the first layers are built and loaded."
    most = config.get_text_config().num_hidden_layers
    check_number("layers", layers, whole=True, least=1, most=most)
    kinds = getattr(config, "layer_types", None)
    return {"num_hidden_layers": layers, **({"layer_types": kinds[:layers]} if kinds else {})}


def _layer_of(key: str) -> int:
    "The number of the layer that a weight belongs to; -1: none."
    numbers = [part for part in key.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else -1


def describe_model(
    model,  # loaded
    name: str,  # as it was asked for
    tokenizer=None,  # its own, with a chat template
) -> dict:  # for run.json
    """Name, type and size of a model, its commit on the Hub, what had been done to its weights
    where that is known, and what its template puts around a question (`prompt`), a system prompt of
    its own among it.
    """
    told, commit = said_of_weights(name), hub_commit(name)
    asked = [{"role": "user", "content": "..."}]
    frame = tokenizer and render(tokenizer, asked, generation_prompt=True)
    return {
        "start": name,
        "type": model.config.model_type,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        **({"commit": commit} if commit else {}),
        **({"weights": told} if told else {}),
        **({"prompt": frame} if frame else {}),
    }


def hub_commit(
    name: str,  # of a model that has been loaded
) -> str:  # 40 hexadecimal digits; "" for one that is not from the Hub
    "The commit at which a model on the Hub was read: its files lie in a folder of that name."
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    repository, revision = _on_the_hub(name)
    if not is_hub_name(repository):
        return ""
    for config in ("config.json", "adapter_config.json"):
        found = cached_file(
            repository,
            config,
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
        )
        if found:
            return extract_commit_hash(found, None) or ""
    return ""


def said_of_weights(
    name: str,  # of a model, as it was asked for
) -> str:  # such as "weights were rounded to four bits (Q4_1)"; "" where nothing is known
    """What was lost before the kit saw a model, or as it read it: told by a GGUF file, by the
    provenance in a model's folder, by the run that a checkpoint comes from about the model that it
    began with, and by the type of its numbers.
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
    return _narrowed(name) if (place / "config.json").is_file() else ""


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
