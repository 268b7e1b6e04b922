"""`make bench`: a step of training beside the naive one and TRL's, and what it costs as things
grow.

    python tools/bench.py lengths PAIRS.jsonl   count the lengths of real pairs, once
    python tools/bench.py cpu                   into data/results/bench/cpu.json
    python tools/bench.py gpu                   the same at the shape of Qwen2.5-0.5B, and memory
                                                limits, into data/results/bench/gpu.json

Contestants (tools/contestants.py) train in one process, in turn (A B C A B C ...), on the same
pairs of random tokens with the lengths of real ones. Memory is measured in a process for each. A
part that is done is written at once. --only PART measures it anew. --quick looks whether everything
runs, on any machine, and writes nothing unless --output says where.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path

from contestants import (
    CONTESTANTS,
    OPTIONS,
    ROOT,
    SHAPES,
    contestant,
    count_lengths,
    draw_pairs,
    make_model,
    rivals,
    rloo_trainer,
    rows_of,
    wait,
)

RESULTS = ROOT / "data/results/bench"
GIB = 2**30


# ---- measuring


def in_turn(runs, rounds):
    "Seconds of each, round by round, after one that does not count."
    found = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if number:
                found[name].append(seconds)
    return found


def spread(values):
    "Median, with the smallest and the largest."
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def reset_peak():  # Linux
    Path("/proc/self/clear_refs").write_text("5")


ALONE = True  # --quick: False


def child(what, **arguments):
    "Call one of CHILDREN in a process of its own: nobody else's memory, warm-up or garbage."
    if not ALONE:
        return CHILDREN[what](**arguments)
    done = subprocess.run(
        [sys.executable, __file__, "child", what, json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"{what} {arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_of(action, device):
    "Peak memory of `action` over what there was before, in bytes."
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        wait()
        return torch.cuda.max_memory_allocated() - before
    from prefkit.runs.plan import resident

    reset_peak()
    before = resident()
    action()
    return resident(peak=True) - before


def step_memory(name, shape, longest, batch, device):
    """Peak memory of a few steps on the longest pairs: weights, reference, gradients, AdamW and
    what a step makes.
    """
    import prefkit.train  # noqa: F401 what is imported is not counted

    if name.startswith("trl"):
        from trl import DPOTrainer  # noqa: F401

    def length(row):
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    drawn = draw_pairs(32 * batch, longest, SHAPES[shape]["vocab_size"])
    rows = sorted(drawn, key=length, reverse=True)[: 2 * batch]
    with tempfile.TemporaryDirectory() as folder:

        def train():
            contestant(name, shape, rows, 2, batch, device, Path(folder))()

        return {"bytes": peak_of(train, device)}


def head_inputs(vocabulary, width, tokens, share, device):
    "A head, hidden states and labels of which all but `share` are not scored; bf16 on a GPU."
    import torch

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        head = torch.nn.Linear(width, vocabulary, bias=False, dtype=dtype)
        hidden = torch.randn(1, tokens, width, requires_grad=True, dtype=dtype)
        ids = torch.randint(vocabulary, (1, tokens))
        ignored = torch.arange(tokens) < round((1 - share) * tokens)
    return head, hidden, ids.masked_fill(ignored, -100)


def head_step(way, head, hidden, labels):
    "Forward and backward of the log-probs alone."
    from prefkit.model.kernels import head_logps
    from prefkit.model.logps import sequence_logps

    if way == "naive":
        return sequence_logps(head(hidden), labels).sum().backward()
    rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    head_logps(head, hidden[rows, columns], labels[rows, columns + 1]).sum().backward()


def head_memory(way, **shape):
    import prefkit.model.kernels  # noqa: F401 what is imported is not counted
    import prefkit.model.logps  # noqa: F401

    inputs = head_inputs(**shape)
    inputs[0].weight.grad = inputs[0].weight * 0  # it is there in any case
    return {"bytes": peak_of(lambda: head_step(way, *inputs), shape["device"])}


def grown_step(way, shape, batch, prompt, answer, k, vocabulary, device, shared=0):
    """Log-probs of k answers to each prompt, forward and backward: seconds (best of three) and peak
    memory. All prompts begin with the same `shared` tokens.
    """
    import torch

    from prefkit.model.batches import autocast, batch_logps, collate
    from prefkit.model.kernels import use_rows
    from prefkit.model.logps import sequence_logps

    vocabulary = vocabulary or SHAPES[shape]["vocab_size"]
    model = make_model(shape, device, vocab_size=vocabulary)
    use_rows(model)
    names = tuple(f"a{number}" for number in range(k))
    rows, first = [], torch.randint(3, vocabulary, (shared,)).tolist()
    for _ in range(batch):
        ids = first + torch.randint(3, vocabulary, (prompt - shared + k * answer,)).tolist()
        answers = [ids[prompt + i * answer :][:answer] for i in range(k)]
        named = {f"{name}_ids": each for name, each in zip(names, answers)}
        rows.append({"prompt_ids": ids[:prompt], **named})

    def naive():
        made = [row["prompt_ids"] + row[f"{name}_ids"] for name in names for row in rows]
        ids = torch.tensor(made, device=device)
        ignored = torch.arange(prompt + answer, device=device) < prompt
        return sequence_logps(model(input_ids=ids).logits, ids.masked_fill(ignored, -100))

    def ours():
        return batch_logps(model, collate(rows, names, 0, "packed").to(device))

    def step():
        model.zero_grad(set_to_none=False)
        with autocast(model, "bf16" if device == "cuda" else "float32"):
            found = naive() if way == "naive" else ours()
        found.sum().backward()
        wait()

    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    memory = peak_of(step, device)
    return {"bytes": memory, "seconds": min(seconds_of(step) for _ in range(3))}


def seconds_of(action):
    "How long a call takes, with the GPU waited for."
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def useful_operations(model, lengths):
    """Of a step on (prompt, answer) pairs of lengths: 6 for each weight and token (2 forward, 4
    back), attention as a triangle, the head for the answers alone.
    """
    import torch

    config, head = model.config, model.get_output_embeddings().weight.numel()
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    body = sum(part.weight.numel() for part in linear) - head
    attention = config.num_hidden_layers * config.hidden_size
    return 6 * sum(body * (p + a) + attention * (p + a) ** 2 + head * a for p, a in lengths)


def product_speed(device, size):
    "Operations a second of a large matrix product, best of five; bf16 on a GPU."
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(seconds_of(lambda: x @ x) for _ in range(5))


def measured(run, device):
    "What a run returns, and its peak memory in bytes."
    found = []
    peak = peak_of(lambda: found.append(run()), device)
    return found[0], peak


def method_step(method, shape, longest, batch, steps, device, product):
    """A method's step: how long it takes, how many real tokens go through, how much memory it
    needs, and how much of the device's speed it uses.
    """
    from prefkit.train.methods import get_method

    speed = product_speed(device, product)
    pairs = draw_pairs(steps * batch, longest, SHAPES[shape]["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        if method == "rloo":
            tokens = longest // 2
            pairs = [{**row, "prompt_ids": row["prompt_ids"][: longest - tokens]} for row in pairs]
            run = rloo_trainer(shape, pairs, steps, batch, device, folder, tokens)
            lengths = [(len(row["prompt_ids"]), tokens) for row in pairs[batch:] for _ in range(4)]
        else:
            rows = rows_of(get_method(method).kind, pairs)
            run = contestant("prefkit", shape, rows, steps, batch, device, Path(folder), method)
            lengths = [pair for row in rows[batch:] for pair in answer_lengths(row)]
        found, peak = measured(run, device)
    if not isinstance(found, dict):
        found = {"seconds": found}
    seconds = found["seconds"]
    done = useful_operations(make_model(shape, "meta"), lengths) / (steps - 1)
    return {
        **found,
        "iterations_per_second": 1 / seconds,
        "tokens_per_second": sum(p + a for p, a in lengths) / (steps - 1) / seconds,
        "peak_bytes": peak,
        "product_operations_per_second": speed,
        "utilisation": done / found.get("seconds_learning", seconds) / speed,
    }


def answer_lengths(row):
    "Tokens of (prompt, answer) of each answer that a row has."
    names = ("chosen_ids", "rejected_ids", "response_ids")
    return [(len(row["prompt_ids"]), len(row[name])) for name in names if name in row]


def limited_step(config, stage, shape, limit, device, lora):
    """Two steps of a stage of a config, all answers as long as they may be, under an enforced limit
    of memory; and what `prefkit plan` says of them.
    """
    import torch

    from prefkit.runs.config import load_config
    from prefkit.runs.plan import stage_job
    from prefkit.runs.plan import step_memory as planned

    if device == "cuda":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / whole)
    stage = next(one for one in load_config(config).stages if one.name == stage)
    given, method = stage.parameters, stage.parameters.get("method", "sft")
    kind, names, settings, _, _ = stage_job(stage)
    batch, longest = settings.batch_size, given["max_length"]
    prompt = given.get("max_prompt_length") or longest // 2
    answer = given.get("max_new_tokens") or longest - prompt
    estimate = planned(
        make_model(shape, "meta").config,
        [(prompt, *[answer] * len(names))] * batch,
        names,
        replace(settings, lora=lora),
        precision="bf16" if device == "cuda" else "float32",
        copies=int(kind == "prompts" and not lora),
    ).total
    row = {"chosen_ids": [6] * answer, "rejected_ids": [7] * answer}
    # no two neighbours begin alike, or they would share what is to be measured
    pairs = [{"prompt_ids": [5 + n % 2] * prompt, **row} for n in range(2 * batch)]
    with tempfile.TemporaryDirectory() as folder:
        if method == "rloo":
            given = (shape, pairs, 2, batch, device, folder, answer, settings.samples)
            run = rloo_trainer(*given, lora=lora)
        else:
            given = (shape, rows_of(kind, pairs), 2, batch, device, Path(folder), method)
            run = contestant("prefkit", *given, lora=lora)
        try:
            peak = measured(run, device)[1]
        except torch.OutOfMemoryError:
            peak = None
    return {
        "stage": stage.name,
        "method": method,
        "lora": lora,
        "batch": batch,
        "prompt": prompt,
        "answer": answer,
        "limit_bytes": limit,
        "fits": peak is not None,
        "peak_bytes": peak,
        "planned_bytes": estimate,
    }


CHILDREN = {
    one.__name__: one for one in (step_memory, head_memory, grown_step, method_step, limited_step)
}


# ---- the benchmark


def machine(device):
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "transformers", "trl", "peft", "prefkit")
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "date": date.today().isoformat(),
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": commit,
    }


def compare(shape, longest, batch, steps, rounds, device, names):
    "DPO steps of every contestant, in turn, and their memory."
    rows = draw_pairs(steps * batch, longest, SHAPES[shape]["vocab_size"])
    counted = [p + a for row in rows[batch:] for p, a in answer_lengths(row)]
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: contestant(name, shape, rows, steps, batch, device, Path(folder) / name)
            for name in names
        }
        times = in_turn(runs, rounds)
    given = {"shape": shape, "longest": longest, "batch": batch}
    base = statistics.median(times["prefkit"])
    cases = {}
    for name in names:
        found = child("step_memory", name=name, device=device, **given)
        cases[name] = {
            "step_seconds": spread(times[name]),
            "times_prefkit": statistics.median(times[name]) / base,
            "peak_bytes": found["bytes"],
        }
        ratio, memory = cases[name]["times_prefkit"], found["bytes"] / 2**20
        print(f"{shape} {longest} {name}: {ratio:.2f} x, {memory:.0f} MiB", flush=True)
    tokens = sum(counted) / (steps - 1)
    return {**given, "steps": steps, "tokens_per_step": tokens, "cases": cases}


def compare_heads(tokens, rounds, device, vocabulary=151_936, width=64, share=0.2):
    "Log-probs alone, every position against responses in pieces."
    shape = dict(vocabulary=vocabulary, width=width, tokens=tokens, share=share, device=device)
    inputs = head_inputs(**shape)

    def timed(way):
        return lambda: seconds_of(lambda: head_step(way, *inputs))

    times = in_turn({way: timed(way) for way in ("naive", "prefkit")}, rounds)
    memory = {way: child("head_memory", way=way, **shape)["bytes"] for way in times}
    return {
        **shape,
        "cases": {way: {"seconds": spread(times[way]), "peak_bytes": memory[way]} for way in times},
        "time_ratio": statistics.median(times["prefkit"]) / statistics.median(times["naive"]),
        "memory_ratio": memory["prefkit"] / memory["naive"],
    }


USUAL = dict(batch=8, prompt=128, answer=128, k=2, vocabulary=None)
GROWTH = {
    "batch": [2, 4, 8, 16],
    "length": [64, 128, 256, 512],
    "vocabulary": [2048, 8192, 32_768, 131_072],
    "prompt_share": [0.1, 0.3, 0.5, 0.7, 0.9],
    "k": [1, 2, 4, 8],
    "shared_share": [0.0, 0.25, 0.5, 0.75, 0.95],
}


def grown(axis, value):
    """The usual batch with one thing changed.

    A length is that of prompt and answer, half and half; a share is the prompt's of 256 tokens, or
    what all prompts begin with alike of a prompt of 256.
    """
    if axis == "length":
        return {**USUAL, "prompt": value // 2, "answer": value // 2}
    if axis == "prompt_share":
        return {**USUAL, "prompt": round(256 * value), "answer": 256 - round(256 * value)}
    if axis == "shared_share":
        return {**USUAL, "prompt": 256, "answer": 64, "shared": round(256 * value)}
    return {**USUAL, axis: value}


def scaling(shape, device, quick):
    "Both ways along each axis."
    found = {}
    for axis, values in GROWTH.items():
        found[axis] = []
        for value in values[:1] if quick else values:
            asked = {"shape": shape, "device": device, **grown(axis, value)}
            ways = {way: child("grown_step", way=way, **asked) for way in ("naive", "prefkit")}
            found[axis].append({"value": value, **ways})
    return found


# Cases of DPO steps: name -> (shape, longest, batch, steps, rounds). Longer, the naive one takes an
# hour.
CPU_CASES = {
    "5m": ("5m", 512, 8, 6, 5),
    "tiny": ("tiny", 512, 8, 6, 5),
    "qwen_vocabulary": ("qwen_vocabulary", 256, 2, 4, 3),
}
GPU_CASES = {
    f"qwen2.5-0.5b {longest}": ("qwen2.5-0.5b", longest, 8, 6, 5) for longest in (512, 1024)
}
QUICK_CASES = {"tiny": ("tiny", 128, 2, 3, 1)}
METHODS = ("sft", "rloo", "dpo", "orpo", "kto", "topr")
LIMITED = "data/configs/l4/comparison.yaml"
LIMITED_STAGES = "sft_v2_6 orpo_v1_1 dpo_v2_4 dpo_v3_1 topr_v1_1 kto_v1_1 rloo_v1_2".split()
LIMITS = ((22, False), (14, True))  # GiB; LoRA


def methods(shape, device, quick):
    "Every method at each length."
    found = []
    given = {"batch": 2 if quick else 16, "steps": 3 if quick else 6}
    for longest in (96,) if quick else (512, 1024):
        for method in METHODS[:2] if quick else METHODS:
            asked = {"longest": longest, "method": method}
            product = 1024 if quick else 8192
            step = child(
                "method_step", shape=shape, device=device, product=product, **asked, **given
            )
            found.append({**asked, "batch": given["batch"], **step})
    return found


def limits(shape, device, quick):
    "Stages of a config under enforced limits of memory."
    found = []
    for stage in ("dpo_v2_4", "rloo_v1_2") if quick else LIMITED_STAGES:
        for gib, lora in LIMITS[:1] if quick else LIMITS:
            asked = {"config": LIMITED, "stage": stage, "limit": gib * GIB, "lora": lora}
            found.append(child("limited_step", shape=shape, device=device, **asked))
    return found


def parts(what, device, quick):
    "What is measured: name -> function."
    gpu = what == "gpu"
    shape = "tiny" if quick else "qwen2.5-0.5b" if gpu else "5m"
    cases = QUICK_CASES if quick else GPU_CASES if gpu else CPU_CASES
    options = (shape, 128, 2, 3, 1) if quick else (shape, 512, 8, 6, 3)
    tokens, width, rounds = (64, 64, 1) if quick else (2048, 896 if gpu else 64, 5)

    def steps():
        return {name: compare(*case, device, rivals(device)) for name, case in cases.items()}

    found = {
        "steps": steps,
        "options": lambda: compare(*options, device, OPTIONS[:2] if quick else OPTIONS),
        "head": lambda: compare_heads(tokens, rounds, device, width=width),
        "scaling": lambda: scaling(shape, device, quick),
    }
    if gpu:
        found["methods"] = lambda: methods(shape, device, quick)
        found["limits"] = lambda: limits(shape, device, quick)
    return found


def measure(what, quick, only, output):
    "Measure the parts and keep each as soon as it is there."
    import torch

    global ALONE
    ALONE = not quick
    device = "cuda" if what == "gpu" and torch.cuda.is_available() else "cpu"
    if what == "gpu" and device == "cpu" and not quick:
        sys.exit("bench gpu: there is no GPU here. --quick looks whether all of it runs.")
    torch.set_num_threads(1 if quick else os.cpu_count())
    todo = parts(what, device, quick)
    if wrong := set(only) - set(todo):
        sys.exit(
            f"bench: there is no part {', '.join(sorted(wrong))}. There are {', '.join(todo)}."
        )
    found = {"contestants": CONTESTANTS, "machines": {}}
    if only and output and output.exists():
        found = json.loads(output.read_text(encoding="utf-8"))
    for name in only or todo:
        found[name] = todo[name]()
        found["machines"][name] = machine(device)
        if output:
            output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("lengths", "cpu", "gpu", "child"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help="steps, options, head, scaling; on a GPU methods, limits",
    )
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.what == "lengths":
        return count_lengths(given.rest[0])
    if given.what == "child":
        return print(json.dumps(CHILDREN[given.rest[0]](**json.loads(given.rest[1]))))
    output = given.output
    if not (output or given.quick):
        output = RESULTS / f"{given.what}.json"
    found = measure(given.what, given.quick, given.only, output)
    if given.quick and not given.output:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
