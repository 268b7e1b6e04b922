"""What the training pipelines share: their settings out of the notebook's parameters, a look at the data before anything runs, the model."""
from __future__ import annotations

from dataclasses import fields

from prefkit.chat import truncate
from prefkit.core import ConfigError, resolve_path
from prefkit.data import DATASETS, Records, encode_records, load_records


def training_settings(
    names: dict, # the notebook's globals()
): # -> prefkit.train.TrainSettings
    "The notebook's parameters that are training settings, by name; raises `ConfigError` for one out of its range."
    from prefkit.train import TrainSettings
    return TrainSettings(**{field.name: names[field.name] for field in fields(TrainSettings) if field.name in names})


def check_dataset(
    name: str, # as `load_records` takes it
    *,
    kind: str, # sft or pairs
    split: str = "train", # of the data set
    limit: int | None = None, # rows to read
    on_bad_rows: str = "drop", # drop or error
    max_length: int = 512, # as `encode_records` takes it
    max_prompt_length: int | None = None, # as `encode_records` takes it
    min_response_tokens: int = 16, # as `encode_records` takes it
):
    "Read what is on this machine once through, so that faulty data show before anything runs; nothing is downloaded for it."
    truncate([], max_length=max_length, max_prompt_length=max_prompt_length, min_response_tokens=min_response_tokens)
    local, source = resolve_path(name).exists(), DATASETS.get(name)
    if source and kind not in source.kinds: raise ConfigError(f"{name} has no rows of kind {kind}; it has {', '.join(source.kinds)}.")
    if source and split.partition("[")[0] not in source.splits: raise ConfigError(f"{name} has no split {split!r}; it has {', '.join(source.splits)}.")
    if source or (not local and name.count("/") == 1): return # generated, or on the Hub
    load_records(name, kind=kind, split=split, limit=limit, on_bad_rows=on_bad_rows)


def chosen_answers(
    pairs: Records, # of kind pairs
) -> Records: # of kind sft
    "The chosen answers of pairs as rows to imitate: what 'SFT on the chosen answers' trains on."
    rows = [{"prompt": row["prompt"], "response": row["chosen"], "row": row["row"]} for row in pairs]
    return Records(rows, pairs.report)


def load_model(
    name: str, # a folder, or a name on the Hub
): # -> model in float32, tokenizer
    "A causal language model and its tokenizer; raises `ConfigError` where they cannot be loaded."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    place = str(resolve_path(name)) if resolve_path(name).exists() else name
    try: model, tokenizer = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {name} cannot be loaded ({str(error).strip().splitlines()[0]}). "
                          "Give a folder written by save_pretrained, stage:NAME, or a name on the Hub.") from error
    return model, tokenizer


def describe_model(
    model, # loaded
    name: str, # as it was asked for
) -> dict: # for run.json
    "Name, type and size of a model."
    return {"start": name, "type": model.config.model_type, "parameters": sum(weight.numel() for weight in model.parameters())}


def last_values(
    metrics: list[dict], # the lines of metrics.jsonl
    split: str, # train or validation
) -> dict: # the last line of that split without its times; {} where there is none
    "What a table of results would show."
    from prefkit.train import TIME_FIELDS
    lines = [line for line in metrics if line["split"] == split]
    return {name: value for name, value in lines[-1].items() if name not in (*TIME_FIELDS, "split")} if lines else {}
