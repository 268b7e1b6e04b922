"""`make bench`: a step of training beside the naive one and TRL's, and what it costs as things grow.

    python tools/bench.py lengths PAIRS.jsonl    the lengths of real pairs, counted once, into data/results/bench/pair_lengths.json
    python tools/bench.py cpu [--quick]          into data/results/bench/cpu.json

Contestants train in one process, in turn (A B C A B C ...), on the same batches of random tokens with the lengths of real pairs.
Memory is measured in a process for each. --quick: a look whether everything runs; writes nothing unless --output says where."""
import argparse, importlib.metadata, json, os, platform, random, statistics, subprocess, sys, tempfile, time, warnings
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data/results/bench"
LENGTHS = RESULTS / "pair_lengths.json"
BIN = 16 # tokens
SHAPES = { # as Qwen2Config has them
    "tiny": dict(hidden_size=128, intermediate_size=384, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, vocab_size=1007),
    "5m": dict(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, vocab_size=4096),
    "qwen_vocabulary": dict(hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=151_936),
    "qwen2.5-0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151_936), # its config.json
}
CONTESTANTS = {
    "naive": "every answer with its own prompt, padded; all scores; the reference read at every step",
    "trl": "TRL, defaults",
    "trl_precomputed": "TRL, precompute_ref_log_probs=True",
    "prefkit": "prefkit, defaults",
}


# --- lengths ---------------------------------------------------------------------------------------------------------------------

def count_lengths(path):
    "Histogram of (prompt, chosen, rejected) in words and signs, as GPT-2 cuts a text before it looks for tokens: a token or more each."
    from tokenizers.pre_tokenizers import ByteLevel
    cut = ByteLevel(add_prefix_space=False, use_regex=True)
    count = lambda text: len(cut.pre_tokenize_str(text))
    found = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        lengths = (sum(4 + count(turn["value"]) for turn in row["conversations"]), count(row["chosen"]["value"]) + 1, count(row["rejected"]["value"]) + 1)
        key = tuple(-(-n // BIN) for n in lengths)
        found[key] = found.get(key, 0) + 1
    note = "Lengths of 299 real chat preference pairs (hiyouga/LLaMA-Factory, data/dpo_en_demo.json): words and signs as GPT-2's pre-tokeniser cuts them, 4 for each turn's template and 1 for the end of an answer"
    head = {"source": note, "bin": BIN, "columns": ["prompt", "chosen", "rejected", "pairs"]}
    bins = ",\n".join("  " + json.dumps([*key, n]) for key, n in sorted(found.items()))
    LENGTHS.write_text(json.dumps(head, indent=1)[:-2] + ',\n "pairs": [\n' + bins + "\n ]\n}\n", encoding="utf-8")

def draw_pairs(number, longest, vocabulary, seed=0):
    "Encoded pairs of random tokens: prompt and longer answer within `longest`, lengths as in the histogram, even within a bin."
    kept, draw = json.loads(LENGTHS.read_text(encoding="utf-8")), random.Random(seed)
    bins = [(key, n) for *key, n in kept["pairs"] if kept["bin"] * (key[0] + max(key[1:])) <= longest]
    ids = lambda n: [draw.randrange(3, vocabulary) for _ in range(n)]
    rows = []
    for key in draw.choices([key for key, _ in bins], [n for _, n in bins], k=number):
        prompt, chosen, rejected = (draw.randint(max(1, kept["bin"] * (b - 1)), kept["bin"] * b) for b in key)
        rows.append({"prompt_ids": ids(prompt), "chosen_ids": ids(chosen), "rejected_ids": ids(rejected)})
    return rows


# --- contestants -----------------------------------------------------------------------------------------------------------------

def make_model(shape, device="cpu"):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    with torch.device(device): return Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0, eos_token_id=2))

def tokenizer():
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(ROOT / "data/tiny/base")

class Clock:
    "Seconds of a step: from the end of the first to the end of the last, with the GPU waited for at both."
    def callback(self):
        from transformers import TrainerCallback
        clock = self
        class Ends(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step in (1, state.max_steps):
                    wait()
                    clock.times = [*([] if state.global_step == 1 else clock.times), time.perf_counter()]
        return Ends()
    def seconds(self, steps): return (self.times[-1] - self.times[0]) / (steps - 1)

def wait():
    import torch
    if torch.cuda.is_available(): torch.cuda.synchronize()

def contestant(name, shape, rows, steps, batch, device, folder, method="dpo", **changes):
    "A function that trains `steps` steps on the rows, each time the same, and gives the seconds of a step."
    from torch.utils.data import DataLoader
    if name.startswith("trl"): trainer, collate = trl_trainer(name, shape, rows, steps, batch, device, folder)
    else: trainer, collate = our_trainer(name, shape, rows, steps, batch, device, folder, method, changes)
    trainer.get_train_dataloader = lambda: DataLoader(trainer.bench_rows, batch_size=batch, collate_fn=collate)
    clock = Clock()
    trainer.add_callback(clock.callback())
    def run():
        trainer.create_optimizer_and_scheduler(steps)
        trainer.train()
        trainer.optimizer = trainer.lr_scheduler = None
        return clock.seconds(steps)
    return run

def our_trainer(name, shape, rows, steps, batch, device, folder, method, changes):
    from prefkit.methods import get_method, method_hyperparameters
    from prefkit.settings import TrainSettings, training_arguments
    from prefkit.train import PreferenceTrainer, add_lora, collate, prepare_rows
    settings = TrainSettings(learning_rate=1e-6, batch_size=batch, max_steps=steps, logging_steps=10, device="auto" if device == "cuda" else "cpu", **changes)
    arguments = training_arguments(settings, folder / "checkpoints", steps)
    arguments.save_strategy, arguments.eval_strategy = "no", "no"
    model, row = make_model(shape, device), get_method(method)
    if name == "naive": return naive_trainer(model, row, settings, arguments, rows)
    sets, layout = prepare_rows(model, tokenizer(), row, {"train": rows, "validation": []}, folder, settings, "bf16" if device == "cuda" else "float32")
    trainer = PreferenceTrainer(add_lora(model, settings) if settings.lora else model, tokenizer(), row, method_hyperparameters(row, None), settings, arguments, sets["train"], layout=layout)
    trainer.bench_rows = sets["train"]
    return trainer, lambda part: collate(part, row.answers(), 0, layout)

def naive_trainer(model, method, settings, arguments, rows):
    "DPO as one writes it first: padded, all scores, two models."
    import copy, torch
    from transformers import Trainer
    from prefkit.chat import pad_batch
    from prefkit.logps import sequence_logps
    from prefkit.losses import dpo_loss
    reference = copy.deepcopy(model).eval()
    class Naive(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            told = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            policy = sequence_logps(model(**told).logits, inputs["labels"])
            with torch.no_grad(): ref = sequence_logps(reference(**told).logits, inputs["labels"])
            return dpo_loss(*policy.chunk(2), *ref.chunk(2)).mean()
    arguments.remove_unused_columns, arguments.bf16 = False, arguments.device.type == "cuda"
    trainer = Naive(model=model, args=arguments)
    trainer.bench_rows = rows
    def collate(part):
        batch = pad_batch([row["prompt_ids"] for row in part] * 2, [row[f"{side}_ids"] for side in ("chosen", "rejected") for row in part], 0)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    return trainer, collate

def trl_trainer(name, shape, rows, steps, batch, device, folder):
    import datasets
    datasets.disable_progress_bars()
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from prefkit.batches import reference_logps
    ready = name != "trl"
    arguments = DPOConfig(output_dir=str(folder), max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-6, save_strategy="no", report_to="none",
                          disable_tqdm=True, use_cpu=device == "cpu", bf16=device == "cuda", gradient_checkpointing=False, precompute_ref_log_probs=ready,
                          max_length=None, dataloader_pin_memory=False, logging_steps=10, beta=0.1)
    toy = Dataset.from_list([{"prompt": "hello", "chosen": " you", "rejected": " there"}] * batch)
    model = make_model(shape, device)
    trainer = DPOTrainer(model=model, ref_model=None if ready else make_model(shape, device), args=arguments, train_dataset=toy, processing_class=tokenizer())
    found = reference_logps(model, rows, ("chosen", "rejected"), 0) if ready else [{}] * len(rows)
    trainer.bench_rows = [{**row, **ref} for row, ref in zip(rows, found)]
    return trainer, trainer.data_collator


# --- measuring -------------------------------------------------------------------------------------------------------------------

def in_turn(runs, rounds):
    "Seconds of each, round by round, after one that does not count."
    found = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if number: found[name].append(seconds)
    return found

def spread(values):
    "Median, with the smallest and the largest."
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}

def reset_peak(): # Linux
    Path("/proc/self/clear_refs").write_text("5")

def child(what, **arguments):
    "Call one of CHILDREN in a process of its own: nobody else's memory, warm-up or garbage."
    done = subprocess.run([sys.executable, __file__, "child", what, json.dumps(arguments)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode: raise RuntimeError(f"{what} {arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])

def peak_of(action, device):
    "Peak memory of `action` over what there was before, in bytes."
    import gc, torch
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        wait()
        return torch.cuda.max_memory_allocated() - before
    from prefkit.plan import resident
    reset_peak()
    before = resident()
    action()
    return resident(peak=True) - before

def step_memory(name, shape, longest, batch, device, method="dpo", **changes):
    "Peak memory of a few steps on the longest pairs: weights, reference, gradients, AdamW and what a step makes."
    from prefkit import train # noqa: F401 what is imported is not counted
    if name.startswith("trl"): from trl import DPOTrainer # noqa: F401
    rows = sorted(draw_pairs(32 * batch, longest, SHAPES[shape]["vocab_size"]), key=lambda row: -len(row["prompt_ids"]) - max(len(row["chosen_ids"]), len(row["rejected_ids"])))[:2 * batch]
    with tempfile.TemporaryDirectory() as folder:
        return {"bytes": peak_of(lambda: contestant(name, shape, rows, 2, batch, device, Path(folder), method, **changes)(), device)}

def head_inputs(vocabulary, width, tokens, share):
    "A head, hidden states and labels of which all but `share` are not scored."
    import torch
    torch.manual_seed(0)
    head = torch.nn.Linear(width, vocabulary, bias=False)
    hidden, ids = torch.randn(1, tokens, width, requires_grad=True), torch.randint(vocabulary, (1, tokens))
    return head, hidden, ids.masked_fill(torch.arange(tokens) < round((1 - share) * tokens), -100)

def head_step(way, head, hidden, labels):
    "Forward and backward of the log-probs alone."
    from prefkit.engine import head_logps
    from prefkit.logps import sequence_logps
    if way == "naive": return sequence_logps(head(hidden), labels).sum().backward()
    rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    head_logps(head, hidden[rows, columns], labels[rows, columns + 1]).sum().backward()

def head_memory(way, **shape):
    import prefkit.engine, prefkit.logps # noqa: F401
    inputs = head_inputs(**shape)
    inputs[0].weight.grad = inputs[0].weight * 0 # it is there in any case
    return {"bytes": peak_of(lambda: head_step(way, *inputs), "cpu")}

def grown_step(way, shape, batch, prompt, answer, k, vocabulary, device):
    "Log-probs of k answers to each prompt, forward and backward: seconds (best of three) and peak memory."
    import torch
    from prefkit.batches import batch_logps, collate
    from prefkit.engine import use_rows
    SHAPES[shape]["vocab_size"] = vocabulary or SHAPES[shape]["vocab_size"]
    model, names = make_model(shape, device), tuple(f"a{i}" for i in range(k))
    ids = lambda n: torch.randint(3, SHAPES[shape]["vocab_size"], (n,)).tolist()
    rows = [{"prompt_ids": ids(prompt), **{f"{name}_ids": ids(answer) for name in names}} for _ in range(batch)]
    use_rows(model)
    def step():
        model.zero_grad(set_to_none=False)
        if way == "naive":
            from prefkit.logps import sequence_logps
            made = torch.tensor([row["prompt_ids"] + row[f"{name}_ids"] for name in names for row in rows], device=device)
            found = sequence_logps(model(input_ids=made).logits, made.masked_fill(torch.arange(prompt + answer, device=device) < prompt, -100))
        else:
            from prefkit.batches import to_device
            found = batch_logps(model, to_device(collate(rows, names, 0, "packed"), device))
        found.sum().backward()
        wait()
    for weight in model.parameters(): weight.grad = torch.zeros_like(weight)
    memory, spent = peak_of(step, device), []
    for _ in range(3):
        start = time.perf_counter()
        step()
        spent.append(time.perf_counter() - start)
    return {"bytes": memory, "seconds": min(spent)}

CHILDREN = {"step_memory": step_memory, "head_memory": head_memory, "grown_step": grown_step}


# --- the benchmark ---------------------------------------------------------------------------------------------------------------

def machine(device):
    import torch
    name = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers", "trl", "peft", "prefkit")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"date": date.today().isoformat(), "cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None, "python": platform.python_version(), "versions": versions, "commit": commit}

def compare(shape, longest, batch, steps, rounds, device, names=tuple(CONTESTANTS)):
    "DPO steps of every contestant, in turn, and their memory."
    rows = draw_pairs(steps * batch, longest, SHAPES[shape]["vocab_size"])
    tokens = [sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows[i * batch:(i + 1) * batch]) for i in range(steps)]
    with tempfile.TemporaryDirectory() as folder:
        times = in_turn({name: contestant(name, shape, rows, steps, batch, device, Path(folder) / name) for name in names}, rounds)
    memory = {name: child("step_memory", name=name, shape=shape, longest=longest, batch=batch, device=device)["bytes"] for name in names}
    base = statistics.median(times["prefkit"])
    return {"shape": shape, "longest": longest, "batch": batch, "steps": steps, "tokens_per_step": sum(tokens[1:]) / (steps - 1),
            "cases": {name: {"step_seconds": spread(times[name]), "times_prefkit": statistics.median(times[name]) / base, "peak_bytes": memory[name]} for name in names}}

def compare_heads(tokens, rounds, vocabulary=151_936, width=64, share=0.2):
    "Log-probs alone, every position against responses in pieces."
    shape = dict(vocabulary=vocabulary, width=width, tokens=tokens, share=share)
    inputs = head_inputs(**shape)
    def timed(way):
        start = time.perf_counter()
        head_step(way, *inputs)
        return time.perf_counter() - start
    times = in_turn({way: lambda way=way: timed(way) for way in ("naive", "prefkit")}, rounds)
    memory = {way: child("head_memory", way=way, **shape)["bytes"] for way in times}
    return {**shape, "cases": {way: {"seconds": spread(times[way]), "peak_bytes": memory[way]} for way in times},
            "time_ratio": statistics.median(times["prefkit"]) / statistics.median(times["naive"]), "memory_ratio": memory["prefkit"] / memory["naive"]}

USUAL = dict(batch=8, prompt=128, answer=128, k=2, vocabulary=None)
GROWTH = {"batch": [2, 4, 8, 16], "length": [64, 128, 256, 512], "vocabulary": [2048, 8192, 32_768, 131_072], "prompt_share": [0.1, 0.3, 0.5, 0.7, 0.9], "k": [1, 2, 4, 8]}

def grown(axis, value):
    "The usual batch with one thing changed. A length is that of prompt and answer, half and half; a share is the prompt's of 256 tokens."
    if axis == "length": return {**USUAL, "prompt": value // 2, "answer": value // 2}
    if axis == "prompt_share": return {**USUAL, "prompt": round(256 * value), "answer": 256 - round(256 * value)}
    return {**USUAL, axis: value}

def scaling(shape, device, quick):
    return {axis: [{"value": value, **{way: child("grown_step", way=way, shape=shape, device=device, **grown(axis, value)) for way in ("naive", "prefkit")}}
                   for value in (values[:1] if quick else values)] for axis, values in GROWTH.items()}

def bench_cpu(quick):
    import torch
    torch.set_num_threads(1 if quick else os.cpu_count())
    steps, rounds = (3, 1) if quick else (9, 5)
    cases = {"tiny": ("tiny", 128, 2)} if quick else {"tiny": ("tiny", 512, 8), "5m": ("5m", 512, 8), "qwen_vocabulary": ("qwen_vocabulary", 512, 4)}
    found = {"machine": machine("cpu"), "contestants": CONTESTANTS, "steps": {}}
    for name, (shape, longest, batch) in cases.items():
        found["steps"][name] = compare(shape, longest, batch, steps, rounds, "cpu")
        print(name, {k: round(v["times_prefkit"], 2) for k, v in found["steps"][name]["cases"].items()}, flush=True)
    found["head"] = compare_heads(64 if quick else 2048, rounds)
    print("head", round(found["head"]["time_ratio"], 2), round(found["head"]["memory_ratio"], 2), flush=True)
    found["scaling"] = scaling("tiny" if quick else "5m", "cpu", quick)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lengths", "cpu", "child"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.what == "lengths": return count_lengths(given.rest[0])
    if given.what == "child": return print(json.dumps(CHILDREN[given.rest[0]](**json.loads(given.rest[1]))))
    output = given.output or (None if given.quick else RESULTS / f"{given.what}.json")
    found = bench_cpu(given.quick)
    if output: output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else: print(json.dumps(found, indent=1))


if __name__ == "__main__": main()
