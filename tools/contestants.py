"""Who trains in `make bench`, on what: models of given shapes, pairs of random tokens with the
lengths of real ones, this kit, TRL, the naive way.
"""

import importlib.util, json, random, statistics, tempfile, time
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
RIVALS, OPTIONS = ("naive", "trl", "trl_precomputed", "prefkit"), ("prefkit", *CHANGES)


def rivals(device):
    "Who is compared: padding_free is switched off in TRL 1.16, and its Liger loss is for GPUs."
    return (
        *RIVALS[:-1],
        *(["trl_liger"] if device == "cuda" and importlib.util.find_spec("liger_kernel") else []),
        "prefkit",
    )


# --- lengths
# ---------------------------------------------------------------------------------------------------------------------


def count_lengths(path):
    """Histogram of (prompt, chosen, rejected) in words and signs, as GPT-2 cuts a text before it
    looks for tokens: a token or more each.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    cut = ByteLevel(add_prefix_space=False, use_regex=True)
    count = lambda text: len(cut.pre_tokenize_str(text))
    found = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        lengths = (
            sum(4 + count(turn["value"]) for turn in row["conversations"]),
            count(row["chosen"]["value"]) + 1,
            count(row["rejected"]["value"]) + 1,
        )
        key = tuple(-(-n // BIN) for n in lengths)
        found[key] = found.get(key, 0) + 1
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
    bins = [
        (key, n) for *key, n in kept["pairs"] if kept["bin"] * (key[0] + max(key[1:])) <= longest
    ]
    ids = lambda n: [draw.randrange(3, vocabulary) for _ in range(n)]
    rows = []
    for key in draw.choices([key for key, _ in bins], [n for _, n in bins], k=number):
        prompt, chosen, rejected = (
            draw.randint(max(1, kept["bin"] * (b - 1)), kept["bin"] * b) for b in key
        )
        rows.append(
            {"prompt_ids": ids(prompt), "chosen_ids": ids(chosen), "rejected_ids": ids(rejected)}
        )
    return rows


# --- contestants
# -----------------------------------------------------------------------------------------------------------------


def make_model(shape, device="cpu", **changes):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return Qwen2ForCausalLM(
            Qwen2Config(
                **{**SHAPES[shape], **changes},
                tie_word_embeddings=True,
                max_position_embeddings=2048,
                pad_token_id=0,
                eos_token_id=2,
            )
        )


def rows_of(kind, pairs):
    """The pairs as a method reads them: whole, their chosen answers, or single answers with labels,
    good and bad in turn.
    """
    if kind == "pairs":
        return pairs
    sides = ("chosen", "rejected") if kind == "binary" else ("chosen",)
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "response_ids": row[f"{side}_ids"],
            "label": side == "chosen",
        }
        for number, row in enumerate(pairs)
        for side in (sides[number % len(sides)],)
    ]


def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "data/tiny/base")


class Clock:
    """Seconds of a step: from the end of the first to the end of the last, with the GPU waited for
    at both.
    """

    def callback(self):
        from transformers import TrainerCallback

        clock = self

        class Ends(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step in (1, state.max_steps):
                    wait()
                    clock.times = [
                        *([] if state.global_step == 1 else clock.times),
                        time.perf_counter(),
                    ]

        return Ends()

    def seconds(self, steps):
        return (self.times[-1] - self.times[0]) / (steps - 1)


def wait():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def contestant(name, shape, rows, steps, batch, device, folder, method="dpo", **changes):
    """A function that trains `steps` steps on the rows, each time the same, and gives the seconds
    of a step.
    """
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback

    if name.startswith("trl"):
        trainer, collate = trl_trainer(name, shape, rows, steps, batch, device, folder)
    else:
        trainer, collate = our_trainer(
            name,
            shape,
            rows,
            steps,
            batch,
            device,
            folder,
            method,
            {**CHANGES.get(name, {}), **changes},
        )
    trainer.remove_callback(PrinterCallback)
    trainer.get_train_dataloader = lambda: DataLoader(
        trainer.bench_rows, batch_size=batch, collate_fn=collate, pin_memory=device == "cuda"
    )
    clock = Clock()
    trainer.add_callback(clock.callback())

    def run():
        trainer.create_optimizer_and_scheduler(steps)
        trainer.train()
        trainer.optimizer = trainer.lr_scheduler = None
        return clock.seconds(steps)

    return run


def our_trainer(name, shape, rows, steps, batch, device, folder, method, changes):
    from prefkit.model.kernels import halves
    from prefkit.train.methods import get_method, method_hyperparameters
    from prefkit.train.settings import TrainSettings, training_arguments
    from prefkit.train.loop import PreferenceTrainer, add_lora, prepare_rows
    from prefkit.model.batches import collate

    settings = TrainSettings(
        learning_rate=1e-6,
        batch_size=batch,
        max_steps=steps,
        logging_steps=10,
        device="auto" if device == "cuda" else "cpu",
        **changes,
    )
    arguments = training_arguments(settings, folder / "checkpoints", steps)
    arguments.save_strategy, arguments.eval_strategy = "no", "no"
    model, row = make_model(shape, device), get_method(method)
    if name == "naive":
        return naive_trainer(model, row, settings, arguments, rows)
    if settings.compile:
        halves(model)[0].compile(dynamic=True)  # as train_model does
    sets, layout = prepare_rows(
        model,
        tokenizer(),
        row,
        {"train": rows, "validation": []},
        folder,
        settings,
        "bf16" if device == "cuda" else "float32",
    )
    trainer = PreferenceTrainer(
        add_lora(model, settings) if settings.lora else model,
        tokenizer(),
        row,
        method_hyperparameters(row, None),
        settings,
        arguments,
        sets["train"],
        layout=layout,
    )
    trainer.bench_rows = sets["train"]
    return trainer, lambda part: collate(part, row.answers(), 0, layout)


def rloo_trainer(shape, rows, steps, prompts, device, folder, new_tokens, samples=4, **changes):
    """A function that trains on samples of `new_tokens` tokens (a model of random weights hardly
    ever ends one) and gives the seconds of a step, and those of its sampling.
    """
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from prefkit.train.rounds import train_online
    from prefkit.train.online_methods import RolloutSettings
    from prefkit.judging.rewards import reward_source

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
    asked = [
        {
            "prompt_ids": row["prompt_ids"],
            "prompt": [{"role": "user", "content": "hello"}],
            "record": {},
        }
        for row in rows
    ]

    def run():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            lines = [
                line
                for line in train_online(
                    make_model(shape, device),
                    made,
                    "rloo",
                    asked,
                    None,
                    place,
                    reward_source("text"),
                    settings,
                ).metrics
                if line["split"] == "train"
            ][1:]
        parts = {
            name: statistics.mean(line[name] for line in lines)
            for name in ("seconds_sampling", "seconds_learning")
        }
        return {"seconds": sum(parts.values()), **parts}

    return run


def naive_trainer(model, method, settings, arguments, rows):
    "DPO as one writes it first: padded, all scores, two models."
    import copy, torch
    from transformers import Trainer
    from prefkit.data.chat import pad_batch
    from prefkit.model.logps import sequence_logps
    from prefkit.losses import dpo_loss

    reference = copy.deepcopy(model).eval()

    class Naive(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            told = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            policy = sequence_logps(model(**told).logits, inputs["labels"])
            with torch.no_grad():
                ref = sequence_logps(reference(**told).logits, inputs["labels"])
            return dpo_loss(*policy.chunk(2), *ref.chunk(2)).mean()

    arguments.remove_unused_columns, arguments.bf16 = False, arguments.device.type == "cuda"
    trainer = Naive(model=model, args=arguments)
    trainer.bench_rows = rows

    def collate(part):
        batch = pad_batch(
            [row["prompt_ids"] for row in part] * 2,
            [row[f"{side}_ids"] for side in ("chosen", "rejected") for row in part],
            0,
        )
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    return trainer, collate


def trl_trainer(name, shape, rows, steps, batch, device, folder):
    import datasets

    datasets.disable_progress_bars()
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from prefkit.model.batches import reference_logps

    ready = name != "trl"  # the reference's log-probs are there beforehand
    arguments = DPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=1e-6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        gradient_checkpointing=False,
        precompute_ref_log_probs=ready,
        use_liger_kernel=name == "trl_liger",
        max_length=None,
        dataloader_pin_memory=False,
        logging_steps=10,
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
    trainer.bench_rows = [{**row, **ref} for row, ref in zip(rows, found)]
    return trainer, trainer.data_collator
