"""Who trains in `make bench`, on what: models of given shapes, pairs of random tokens with the
lengths of real ones, this kit, TRL, the naive way.
"""

import importlib.util
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = ROOT / "data/results/bench/pair_lengths.json"
BIN = 16  # tokens
SHAPES = {  # as Qwen2Config has them
    "tiny": dict(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1007,
    ),
    "5m": dict(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=4096,
    ),
    "qwen_vocabulary": dict(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=151_936,
    ),
    # its config.json
    "qwen2.5-0.5b": dict(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
    ),
}
CONTESTANTS = {
    "naive": (
        "every answer with its own prompt, padded; all scores; the reference read at every step"
    ),
    "trl": "TRL, defaults",
    "trl_precomputed": "TRL, precompute_ref_log_probs=True",
    "trl_liger": (
        "TRL, precompute_ref_log_probs=True, use_liger_kernel=True (on a GPU, where liger-kernel "
        "is installed)"
    ),
    "prefkit": "prefkit, defaults",
    "prefkit_apart": "prefkit, layout=apart: every answer with its own prompt, padded",
    "prefkit_shared": "prefkit, layout=shared: both answers behind one prompt, padded",
    "prefkit_checkpointing": "prefkit, gradient_checkpointing=True",
    "prefkit_compiled": "prefkit, compile=True",
    "prefkit_lora": "prefkit, lora=True",
}
CHANGES = {
    "prefkit_apart": {"layout": "apart"},
    "prefkit_shared": {"layout": "shared"},
    "prefkit_checkpointing": {"gradient_checkpointing": True},
    "prefkit_compiled": {"compile": True},
    "prefkit_lora": {"lora": True},
}
OPTIONS = ("prefkit", *CHANGES)


def rivals(device):
    "Who is compared: padding_free is switched off in TRL 1.16, and its Liger loss is for GPUs."
    names = ["naive", "trl", "trl_precomputed"]
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        names.append("trl_liger")
    return [*names, "prefkit"]


# ---- lengths


def count_lengths(path):
    """Histogram of (prompt, chosen, rejected) in words and signs, as GPT-2 cuts a text before it
    looks for tokens: a token or more each.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    cut = ByteLevel(add_prefix_space=False, use_regex=True)
    found = Counter()
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = [turn["value"] for turn in row["conversations"]]
        answers = [row[side]["value"] for side in ("chosen", "rejected")]
        words = {text: len(cut.pre_tokenize_str(text)) for text in (*turns, *answers)}
        prompt = sum(4 + words[text] for text in turns)
        lengths = (prompt, *(words[text] + 1 for text in answers))
        found[tuple(-(-n // BIN) for n in lengths)] += 1
    note = (
        "Lengths of 299 real chat preference pairs (hiyouga/LLaMA-Factory, data/dpo_en_demo.json): "
        "words and signs as GPT-2's pre-tokeniser cuts them, 4 for each turn's template and 1 for "
        "the end of an answer"
    )
    head = {"source": note, "bin": BIN, "columns": ["prompt", "chosen", "rejected", "pairs"]}
    bins = ",\n".join("  " + json.dumps([*key, n]) for key, n in sorted(found.items()))
    LENGTHS.write_text(
        json.dumps(head, indent=1)[:-2] + ',\n "pairs": [\n' + bins + "\n ]\n}\n", encoding="utf-8"
    )


def draw_pairs(number, longest, vocabulary, seed=0):
    """Encoded pairs of random tokens: prompt and longer answer within `longest`, lengths as in the
    histogram, even within a bin.
    """
    kept, draw = json.loads(LENGTHS.read_text(encoding="utf-8")), random.Random(seed)
    size = kept["bin"]
    counts = {
        (prompt, *answers): n
        for prompt, *answers, n in kept["pairs"]
        if size * (prompt + max(answers)) <= longest
    }
    rows = []
    for bins in draw.choices(list(counts), list(counts.values()), k=number):
        lengths = [draw.randint(max(1, size * (b - 1)), size * b) for b in bins]
        ids = [[draw.randrange(3, vocabulary) for _ in range(n)] for n in lengths]
        rows.append(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), ids)))
    return rows


# ---- contestants


def make_model(shape, device="cpu", **changes):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        **{**SHAPES[shape], **changes},
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=2,
    )
    with torch.device(device):
        return Qwen2ForCausalLM(config)


def rows_of(kind, pairs):
    """The pairs as a method reads them: whole, their chosen answers, or single answers with labels,
    good and bad in turn.
    """
    if kind == "pairs":
        return pairs
    sides = ("chosen", "rejected") if kind == "binary" else ("chosen",)
    rows = []
    for number, row in enumerate(pairs):
        side = sides[number % len(sides)]
        answer = {"response_ids": row[f"{side}_ids"], "label": side == "chosen"}
        rows.append({"prompt_ids": row["prompt_ids"], **answer})
    return rows


def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "data/tiny/base")


def wait():
    "Until the GPU has done what it was told."
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def contestant(name, shape, rows, steps, batch, device, folder, method="dpo", **changes):
    """A function that trains `steps` steps on the rows, each time the same, and gives the seconds
    of a step.
    """
    if name == "naive":
        return timed(*naive_trainer(shape, rows, steps, batch, device, folder), batch, steps)
    if name.startswith("trl"):
        return timed(*trl_trainer(name, shape, rows, steps, batch, device, folder), batch, steps)
    changes = {**CHANGES.get(name, {}), **changes}
    return prefkit_runs(shape, rows, steps, batch, device, folder, method, **changes)


def prefkit_runs(shape, rows, steps, batch, device, folder, method, **changes):
    """`train_model` as it is called. It shuffles the rows, so they are given in the order that its
    shuffle turns into that of the others: the same pairs count, and the same ones warm up.
    """
    from prefkit.train import TrainSettings, train_model
    from prefkit.train.schedule import epoch_batches

    model, words = make_model(shape, device), tokenizer()
    settings = TrainSettings(
        learning_rate=1e-6,
        batch_size=batch,
        max_steps=steps,
        logging_steps=1,
        save_steps=10**6,
        device="auto" if device == "cuda" else "cpu",
        **changes,
    )
    batches = epoch_batches([1] * len(rows), batch, seed=settings.seed)
    drawn = [place for batch_rows in batches for place in batch_rows]
    rows = [row for _, row in sorted(zip(drawn, rows), key=lambda pair: pair[0])]

    def run():
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            result = train_model(model, words, method, rows, None, place, settings)
        return mean_of(result.metrics, "seconds")

    return run


def mean_of(metrics, name):
    "Over the steps behind the first, which warms up."
    return statistics.mean(
        line[name] for line in metrics if line["split"] == "train" and line["step"] > 1
    )


def rloo_trainer(shape, rows, steps, prompts, device, folder, new_tokens, samples=4, **changes):
    """A function that trains on samples of `new_tokens` tokens (a model of random weights hardly
    ever ends one) and gives the seconds of a step, and those of its sampling.
    """
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from prefkit.judging.rewards import reward_source
    from prefkit.train import RolloutSettings, train_online

    words = {f"w{number}": number for number in range(SHAPES[shape]["vocab_size"])}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")),
        pad_token="w0",
        unk_token="w1",
        eos_token="w2",
    )
    settings = RolloutSettings(
        learning_rate=1e-6,
        batch_size=prompts,
        samples=samples,
        max_new_tokens=new_tokens,
        max_steps=steps,
        logging_steps=1,
        save_steps=10**6,
        device="auto" if device == "cuda" else "cpu",
        **changes,
    )
    asked = {"prompt": [{"role": "user", "content": "hello"}], "record": {}}
    asked = [{"prompt_ids": row["prompt_ids"], **asked} for row in rows]

    def run():
        model, reward = make_model(shape, device), reward_source("text")
        with tempfile.TemporaryDirectory(dir=folder) as place:
            result = train_online(model, made, "rloo", asked, None, place, reward, settings)
        parts = ("seconds_sampling", "seconds_learning")
        found = {name: mean_of(result.metrics, name) for name in parts}
        return {"seconds": sum(found.values()), **found}

    return run


# ---- the others, on the trainer of transformers


class Clock:
    """Seconds of a step: from the end of the first to the end of the last, with the GPU waited for
    at both.
    """

    def callback(self):
        from transformers import TrainerCallback

        clock = self

        class Ends(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 1:
                    wait()
                    clock.first = time.perf_counter()
                elif state.global_step == state.max_steps:
                    wait()
                    clock.last = time.perf_counter()

        return Ends()


def timed(trainer, rows, collate, batch, steps):
    "A function that trains with the trainer of transformers on given batches, in their order."
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback

    pin = trainer.args.device.type == "cuda"
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock.callback())
    trainer.get_train_dataloader = lambda: DataLoader(
        rows, batch_size=batch, collate_fn=collate, pin_memory=pin
    )

    def run():
        trainer.create_optimizer_and_scheduler(steps)
        trainer.train()
        trainer.optimizer = trainer.lr_scheduler = None
        return (clock.last - clock.first) / (steps - 1)

    return run


def naive_trainer(shape, rows, steps, batch, device, folder):
    "DPO as one writes it first: padded, all scores, two models."
    import torch
    from transformers import Trainer, TrainingArguments

    from prefkit.data.chat import pad_batch
    from prefkit.losses import dpo_loss
    from prefkit.model.logps import sequence_logps

    model, reference = make_model(shape, device), make_model(shape, device).eval()

    class Naive(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            told = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            policy = sequence_logps(model(**told).logits, inputs["labels"])
            with torch.no_grad():
                ref = sequence_logps(reference(**told).logits, inputs["labels"])
            return dpo_loss(*policy.chunk(2), *ref.chunk(2)).mean()

    def collate(part):
        prompts = [row["prompt_ids"] for row in part] * 2
        answers = [row[f"{side}_ids"] for side in ("chosen", "rejected") for row in part]
        padded = pad_batch(prompts, answers, 0)
        return {name: padded[name] for name in ("input_ids", "attention_mask", "labels")}

    arguments = TrainingArguments(
        **usual_arguments(steps, batch, device, folder), remove_unused_columns=False
    )
    return Naive(model=model, args=arguments), rows, collate


def usual_arguments(steps, batch, device, folder):
    "What both trainers of others are told."
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda",
        "logging_steps": 10,
    }


def trl_trainer(name, shape, rows, steps, batch, device, folder):
    import datasets

    datasets.disable_progress_bars()
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from prefkit.model.batches import reference_logps

    ready = name != "trl"  # the reference's log-probs are there beforehand
    arguments = DPOConfig(
        **usual_arguments(steps, batch, device, folder),
        gradient_checkpointing=False,
        precompute_ref_log_probs=ready,
        use_liger_kernel=name == "trl_liger",
        max_length=None,
        dataloader_pin_memory=False,
        beta=0.1,
    )
    toy = Dataset.from_list([{"prompt": "hello", "chosen": " you", "rejected": " there"}] * batch)
    model = make_model(shape, device)
    trainer = DPOTrainer(
        model=model,
        ref_model=None if ready else make_model(shape, device),
        args=arguments,
        train_dataset=toy,
        processing_class=tokenizer(),
    )
    found = reference_logps(model, rows, ("chosen", "rejected"), 0) if ready else [{}] * len(rows)
    return trainer, [{**row, **ref} for row, ref in zip(rows, found)], trainer.data_collator
