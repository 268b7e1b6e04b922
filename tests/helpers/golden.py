"""What each method writes into metrics.jsonl in a few steps, kept in `tests/golden.json`.

The record was made by the trainers before they became one loop; that of xpo anew, since what it
samples now stops at every token that the model's generation_config names, and that of grpo with
dropout, which draws for every token that is read: what all prompts begin with is read once. To
record cases anew, or those of a new method, with the library of a checkout (this one's, or an older
one's):

    PYTHONPATH=CHECKOUT:tests python -P -m helpers.golden [CASE ...]
"""

import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import prefkit
from helpers.encoded import BASE, QUESTIONS, encoded_rows, prompts
from prefkit.train import train_model

FILE = Path(__file__).resolve().parents[1] / "golden.json"
# where a name stands here, and where it stood when the loop was not yet one
PLACES = {
    "train_online": ("prefkit.train", "prefkit.online"),
    "reward_source": ("prefkit.judging.rewards", "prefkit.reward_sources"),
    "TrainSettings": ("prefkit.train", "prefkit.settings"),
    "RolloutSettings": ("prefkit.train", "prefkit.online_methods"),
}
TIMES = {"seconds", "tokens_per_second", "seconds_sampling", "seconds_learning"}

BOTH = {"learning_rate": 3e-4, "logging_steps": 1, "eval_steps": 2, "max_steps": 3, "seed": 0}
BOTH |= {"show_samples": 0, "device": "cpu", "precision": "float32"}
OFFLINE = {**BOTH, "batch_size": 3}
ONLINE = {**BOTH, "batch_size": 2, "gradient_accumulation": 1, "samples": 3, "max_new_tokens": 8}
LORA = {"lora": True, "lora_rank": 4, "lora_alpha": 8, "learning_rate": 5e-3, "lora_dropout": 0.2}

KINDS = {"sft": ["sft"], "binary": ["kto", "topr", "topr_per_token"]}
KINDS["pairs"] = ["dpo", "ipo", "ipo_per_token", "dpop", "minor_dpo", "xpo", "simpo", "orpo"]
KINDS["pairs"] += ["probability_ratio", "reward_model", "sppo"]
KINDS["prompts"] = ["reinforce", "rloo", "rloo_kl", "grpo", "ppo", "online_xpo", "online_topr"]
KINDS["prompts"] += ["sft_length", "online_sppo", "distill"]
KIND = {method: kind for kind, methods in KINDS.items() for method in methods}
# case -> changes of its settings; its method is what stands before the first space
CASES: dict[str, dict] = {method: {} for method in KIND}
# At the start policy and reference differ by rounding alone, and the hinges of dpop and minor_dpo
# make gradients of that: on another CPU they are others. Dropout sets the two apart.
DROPOUT = {"attention_dropout": 0.1}
CASES |= dict.fromkeys(["dpo", "ipo", "ipo_per_token", "dpop", "minor_dpo", "xpo"], DROPOUT)
CASES["online_xpo"] = {"samples": 2}
CASES["distill"] = {"reference_model": str(BASE.parent / "instruct")}
CASES["dpo accumulation, cosine"] = {
    **DROPOUT,
    "gradient_accumulation": 2,
    "schedule": "cosine",
    "warmup_steps": 1,
    "weight_decay": 0.5,
    "max_grad_norm": 0.02,
}
CASES["sft dropout, lengths"] = {**DROPOUT, "group_by_length": True}
CASES["kto LoRA with dropout"] = LORA
CASES["grpo LoRA with dropout, passes"] = {**LORA, "passes": 2}
CASES["ppo minibatches, passes"] = {"minibatches": 2, "passes": 2}


def named(name: str):
    "What has this name in the library, here or in an older tree."
    for place in PLACES[name]:
        try:
            return getattr(import_module(place), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"none of {PLACES[name]} has {name}: say in PLACES where it stands")


def start(method: str, dropout: float):
    "The tiny base, or a reward model on it."
    torch.manual_seed(0)
    options = {"attention_dropout": dropout, "dtype": torch.float32}
    if method == "reward_model":
        options |= {"num_labels": 1}
        return AutoModelForSequenceClassification.from_pretrained(BASE, **options)
    return AutoModelForCausalLM.from_pretrained(BASE, **options)


def lines_of(case: str) -> list[dict]:
    """The lines of metrics.jsonl of a case, without times; at the start without reward_accuracy,
    which counts the signs of zeros that were rounded.
    """
    method, changes = case.split()[0], dict(CASES[case])
    model = start(method, changes.pop("attention_dropout", 0.0))
    tokenizer, kind = AutoTokenizer.from_pretrained(BASE), KIND[method]
    with tempfile.TemporaryDirectory() as folder:
        common = {"model": model, "tokenizer": tokenizer, "method": method, "output_dir": folder}
        if kind == "prompts":
            settings = named("RolloutSettings")(**{**ONLINE, **changes})
            rows, source = prompts(tokenizer, QUESTIONS), named("reward_source")("gold")
            train_online = named("train_online")
            train_online(**common, rows=rows, validation=rows, source=source, settings=settings)
        else:
            kept = {"dropout": True} if model.config.attention_dropout else {}
            known = named("TrainSettings")
            kept = {name: kept[name] for name in kept if hasattr(known, name)}  # once always kept
            settings = known(**{**OFFLINE, **kept, **changes})
            rows = {"train_rows": encoded_rows(9, kind)}
            rows["validation_rows"] = encoded_rows(4, kind, seed=1)
            train_model(**common, **rows, settings=settings)
        texts = Path(folder, "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(text) for text in texts]
    for line in lines:
        for name in [*TIMES, *(["reward_accuracy"] if line["step"] == 0 else [])]:
            line.pop(name, None)
    return lines


def columns(lines: list[dict]) -> dict[str, list]:
    "Column -> its values, None where a line has none; numbers to seven digits."
    names = dict.fromkeys(name for line in lines for name in line)

    def short(value):
        return float(f"{value:.7g}") if isinstance(value, float) else value

    return {name: [short(line.get(name)) for line in lines] for name in names}


def record(cases: list[str]):
    "Put what these cases write now into the file, each with the commit of the library."
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    library = Path(prefkit.__file__).resolve().parents[1]
    ask = ["git", "-C", str(library), "describe", "--always", "--dirty", "--abbrev=7"]
    commit = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    for case in cases:
        found[case] = {"commit": commit, "columns": columns(lines_of(case))}
        print(case)
    texts = [f"{json.dumps(case)}: {json.dumps(value)}" for case, value in found.items()]
    FILE.write_text("{\n" + ",\n".join(texts) + "\n}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    record(sys.argv[1:] or list(CASES))
