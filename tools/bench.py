"""`make bench`: a step of training beside the naive one and TRL's, and what it costs as things
grow.

    python tools/bench.py lengths PAIRS.jsonl    the lengths of real pairs, counted once, into
    data/results/bench/pair_lengths.json python tools/bench.py cpu                    into
    data/results/bench/cpu.json python tools/bench.py gpu                    the same at the shape
    of Qwen2.5-0.5B, and memory limits, into data/results/bench/gpu.json

Contestants (tools/contestants.py) train in one process, in turn (A B C A B C ...), on the same
batches of random tokens with the lengths of real pairs. Memory is measured in a process for each. A
part that is done is written at once. --only PART measures it anew.
--quick: a look whether everything runs, on any machine; writes nothing unless --output says where.
"""

import argparse, importlib.metadata, json, os, platform, statistics, subprocess, sys, tempfile, time, warnings
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


# --- measuring
# -------------------------------------------------------------------------------------------------------------------


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
    import gc, torch

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
    from prefkit.train import loop as train  # noqa: F401 what is imported is not counted

    if name.startswith("trl"):
        from trl import DPOTrainer  # noqa: F401
    rows = sorted(
        draw_pairs(32 * batch, longest, SHAPES[shape]["vocab_size"]),
        key=lambda row: (
            -len(row["prompt_ids"]) - max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        ),
    )[: 2 * batch]
    with tempfile.TemporaryDirectory() as folder:
        return {
            "bytes": peak_of(
                lambda: contestant(name, shape, rows, 2, batch, device, Path(folder))(), device
            )
        }


def head_inputs(vocabulary, width, tokens, share, device):
    "A head, hidden states and labels of which all but `share` are not scored; bf16 on a GPU."
    import torch

    torch.manual_seed(0)
    with torch.device(device):
        head = torch.nn.Linear(
            width,
            vocabulary,
            bias=False,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        )
        hidden, ids = (
            torch.randn(1, tokens, width, requires_grad=True, dtype=head.weight.dtype),
            torch.randint(vocabulary, (1, tokens)),
        )
        return (
            head,
            hidden,
            ids.masked_fill(torch.arange(tokens) < round((1 - share) * tokens), -100),
        )


def head_step(way, head, hidden, labels):
    "Forward and backward of the log-probs alone."
    from prefkit.model.kernels import head_logps
    from prefkit.model.logps import sequence_logps

    if way == "naive":
        return sequence_logps(head(hidden), labels).sum().backward()
    rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    head_logps(head, hidden[rows, columns], labels[rows, columns + 1]).sum().backward()


def head_memory(way, **shape):
    import prefkit.model.kernels, prefkit.model.logps  # noqa: F401

    inputs = head_inputs(**shape)
    inputs[0].weight.grad = inputs[0].weight * 0  # it is there in any case
    return {"bytes": peak_of(lambda: head_step(way, *inputs), shape["device"])}


def grown_step(way, shape, batch, prompt, answer, k, vocabulary, device):
    """Log-probs of k answers to each prompt, forward and backward: seconds (best of three) and peak
    memory.
    """
    import torch
    from prefkit.model.batches import autocast, batch_logps, collate, to_device
    from prefkit.model.kernels import use_rows
    from prefkit.model.logps import sequence_logps

    vocabulary = vocabulary or SHAPES[shape]["vocab_size"]
    model, names = (
        make_model(shape, device, vocab_size=vocabulary),
        tuple(f"a{i}" for i in range(k)),
    )
    ids = lambda n: torch.randint(3, vocabulary, (n,)).tolist()
    rows = [
        {"prompt_ids": ids(prompt), **{f"{name}_ids": ids(answer) for name in names}}
        for _ in range(batch)
    ]
    use_rows(model)

    def step():
        model.zero_grad(set_to_none=False)
        with autocast(model, "bf16" if device == "cuda" else "float32"):
            if way == "naive":
                made = torch.tensor(
                    [row["prompt_ids"] + row[f"{name}_ids"] for name in names for row in rows],
                    device=device,
                )
                found = sequence_logps(
                    model(input_ids=made).logits,
                    made.masked_fill(torch.arange(prompt + answer, device=device) < prompt, -100),
                )
            else:
                found = batch_logps(model, to_device(collate(rows, names, 0, "packed"), device))
        found.sum().backward()
        wait()

    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    memory, spent = peak_of(step, device), []
    for _ in range(3):
        start = time.perf_counter()
        step()
        spent.append(time.perf_counter() - start)
    return {"bytes": memory, "seconds": min(spent)}


def useful_operations(model, lengths):
    """Of a step on (prompt, answer) pairs of lengths: 6 for each weight and token (2 forward, 4
    back), attention as a triangle, the head for the answers alone.
    """
    import torch

    head, config = model.get_output_embeddings().weight.numel(), model.config
    body = (
        sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear))
        - head
    )
    return sum(
        6 * body * (p + a)
        + 6 * config.num_hidden_layers * config.hidden_size * (p + a) ** 2
        + 6 * head * a
        for p, a in lengths
    )


def product_speed(device, size):
    "Operations a second of a large matrix product, best of five; bf16 on a GPU."
    import torch

    x, spent = (
        torch.randn(
            size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32
        ),
        [],
    )
    for _ in range(5):
        wait()
        start = time.perf_counter()
        x @ x
        wait()
        spent.append(time.perf_counter() - start)
    return 2 * size**3 / min(spent)


def method_step(method, shape, longest, batch, steps, device, product):
    """A method's step: how long it takes, how many real tokens go through, how much memory it
    needs, and how much of the device's speed it uses.
    """
    from prefkit.train.methods import get_method

    pairs = draw_pairs(steps * batch, longest, SHAPES[shape]["vocab_size"])
    speed = product_speed(device, product)
    with tempfile.TemporaryDirectory() as folder:
        if method == "rloo":
            found, tokens = {}, longest // 2
            pairs = [{**row, "prompt_ids": row["prompt_ids"][: longest - tokens]} for row in pairs]
            peak = peak_of(
                lambda: found.update(
                    rloo_trainer(shape, pairs, steps, batch, device, folder, tokens)()
                ),
                device,
            )
            lengths = [(len(row["prompt_ids"]), tokens) for row in pairs[batch:] for _ in range(4)]
        else:
            rows, found = rows_of(get_method(method).kind, pairs), {}

            def run():
                found["seconds"] = contestant(
                    "prefkit", shape, rows, steps, batch, device, Path(folder), method
                )()

            peak = peak_of(run, device)
            lengths = [
                (len(row["prompt_ids"]), len(row[name]))
                for row in rows[batch:]
                for name in ("chosen_ids", "rejected_ids", "response_ids")
                if name in row
            ]
    seconds, learning = found["seconds"], found.get("seconds_learning", found["seconds"])
    done = useful_operations(make_model(shape, "meta"), lengths) / (steps - 1)
    return {
        **found,
        "iterations_per_second": 1 / seconds,
        "tokens_per_second": sum(p + a for p, a in lengths) / (steps - 1) / seconds,
        "peak_bytes": peak,
        "product_operations_per_second": speed,
        "utilisation": done / learning / speed,
    }


def limited_step(config, stage, shape, limit, device, lora):
    """Two steps of a stage of a config, all answers as long as they may be, under an enforced limit
    of memory; and what `prefkit plan` says of them.
    """
    import torch
    from prefkit.runs.config import load_config
    from prefkit.runs.plan import step_memory as planned, stage_job

    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            limit / torch.cuda.get_device_properties(0).total_memory
        )
    stage = next(one for one in load_config(config).stages if one.name == stage)
    kind, names, settings, _, _ = stage_job(stage)
    batch, longest, precision = (
        settings.batch_size,
        stage.parameters["max_length"],
        "bf16" if device == "cuda" else "float32",
    )
    prompt = stage.parameters.get("max_prompt_length") or longest // 2
    answer = stage.parameters.get("max_new_tokens") or longest - prompt
    pairs = [
        {"prompt_ids": [5] * prompt, "chosen_ids": [6] * answer, "rejected_ids": [7] * answer}
    ] * (2 * batch)
    model = make_model(shape, "meta")
    estimate = planned(
        model.config,
        [(prompt, *[answer] * len(names))] * batch,
        names,
        replace(settings, lora=lora),
        precision=precision,
        reference=kind == "prompts" and not lora,
    ).total
    method = stage.parameters.get("method", "sft")
    with tempfile.TemporaryDirectory() as folder:
        if method == "rloo":
            run = rloo_trainer(
                shape, pairs, 2, batch, device, folder, answer, settings.samples, lora=lora
            )
        else:
            run = lambda: contestant(
                "prefkit",
                shape,
                rows_of(kind, pairs),
                2,
                batch,
                device,
                Path(folder),
                method,
                lora=lora,
            )()
        try:
            peak, fits = peak_of(run, device), True
        except torch.OutOfMemoryError:
            peak, fits = None, False
    return {
        "stage": stage.name,
        "method": method,
        "lora": lora,
        "batch": batch,
        "prompt": prompt,
        "answer": answer,
        "limit_bytes": limit,
        "fits": fits,
        "peak_bytes": peak,
        "planned_bytes": estimate,
    }


CHILDREN = {
    one.__name__: one for one in (step_memory, head_memory, grown_step, method_step, limited_step)
}


# --- the benchmark
# ---------------------------------------------------------------------------------------------------------------


def machine(device):
    import torch

    name = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = {
        package: importlib.metadata.version(package)
        for package in ("torch", "transformers", "trl", "peft", "prefkit")
    }
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": date.today().isoformat(),
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit,
    }


def compare(shape, longest, batch, steps, rounds, device, names):
    "DPO steps of every contestant, in turn, and their memory."
    rows = draw_pairs(steps * batch, longest, SHAPES[shape]["vocab_size"])
    tokens = [
        sum(
            2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"])
            for r in rows[i * batch : (i + 1) * batch]
        )
        for i in range(steps)
    ]
    with tempfile.TemporaryDirectory() as folder:
        times = in_turn(
            {
                name: contestant(name, shape, rows, steps, batch, device, Path(folder) / name)
                for name in names
            },
            rounds,
        )
    memory = {
        name: child(
            "step_memory", name=name, shape=shape, longest=longest, batch=batch, device=device
        )["bytes"]
        for name in names
    }
    base = statistics.median(times["prefkit"])
    print(
        shape,
        longest,
        {
            name: f"{statistics.median(times[name]) / base:.2f} x, {memory[name] / 2**20:.0f} MiB"
            for name in names
        },
        flush=True,
    )
    return {
        "shape": shape,
        "longest": longest,
        "batch": batch,
        "steps": steps,
        "tokens_per_step": sum(tokens[1:]) / (steps - 1),
        "cases": {
            name: {
                "step_seconds": spread(times[name]),
                "times_prefkit": statistics.median(times[name]) / base,
                "peak_bytes": memory[name],
            }
            for name in names
        },
    }


def compare_heads(tokens, rounds, device, vocabulary=151_936, width=64, share=0.2):
    "Log-probs alone, every position against responses in pieces."
    shape = dict(vocabulary=vocabulary, width=width, tokens=tokens, share=share, device=device)
    inputs = head_inputs(**shape)

    def timed(way):
        wait()
        start = time.perf_counter()
        head_step(way, *inputs)
        wait()
        return time.perf_counter() - start

    times = in_turn({way: lambda way=way: timed(way) for way in ("naive", "prefkit")}, rounds)
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
}


def grown(axis, value):
    """The usual batch with one thing changed.

    A length is that of prompt and answer, half and half; a share is the prompt's of 256 tokens.
    """
    if axis == "length":
        return {**USUAL, "prompt": value // 2, "answer": value // 2}
    if axis == "prompt_share":
        return {**USUAL, "prompt": round(256 * value), "answer": 256 - round(256 * value)}
    return {**USUAL, axis: value}


def scaling(shape, device, quick):
    return {
        axis: [
            {
                "value": value,
                **{
                    way: child(
                        "grown_step", way=way, shape=shape, device=device, **grown(axis, value)
                    )
                    for way in ("naive", "prefkit")
                },
            }
            for value in (values[:1] if quick else values)
        ]
        for axis, values in GROWTH.items()
    }


METHODS = ("sft", "rloo", "dpo", "orpo", "kto", "topr")
LIMITS = ((22, False), (14, True))  # GiB; LoRA


def parts(what, device, quick):
    "What is measured: name -> function."
    gpu = what == "gpu"
    steps, rounds = (3, 1) if quick else (6, 5)
    own = "tiny" if quick else "qwen2.5-0.5b" if gpu else "5m"
    # longer, the naive one takes an hour
    cases = (
        {"tiny": ("tiny", 128, 2, steps, rounds)}
        if quick
        else {f"{own} {longest}": (own, longest, 8, steps, rounds) for longest in (512, 1024)}
        if gpu
        else {
            "5m": ("5m", 512, 8, steps, rounds),
            "tiny": ("tiny", 512, 8, steps, rounds),
            "qwen_vocabulary": ("qwen_vocabulary", 256, 2, 4, 3),
        }
    )
    lengths, batch, methods, limits = (
        ((96,), 2, METHODS[:2], LIMITS[:1]) if quick else ((512, 1024), 16, METHODS, LIMITS)
    )
    found = {
        "steps": lambda: {
            name: compare(*case, device, rivals(device)) for name, case in cases.items()
        },
        "options": lambda: compare(
            own,
            128 if quick else 512,
            2 if quick else 8,
            steps,
            min(rounds, 3),
            device,
            OPTIONS[:2] if quick else OPTIONS,
        ),
        "head": lambda: compare_heads(
            64 if quick else 2048, rounds, device, width=896 if gpu and not quick else 64
        ),
        "scaling": lambda: scaling(own, device, quick),
    }
    if gpu:
        config = "data/configs/l4/comparison.yaml"
        stages = (
            ("dpo_v2_4", "rloo_v1_2")
            if quick
            else (
                "sft_v2_6",
                "orpo_v1_1",
                "dpo_v2_4",
                "dpo_v3_1",
                "topr_v1_1",
                "kto_v1_1",
                "rloo_v1_2",
            )
        )
        found["methods"] = lambda: [
            {
                "longest": longest,
                "batch": batch,
                "method": method,
                **child(
                    "method_step",
                    method=method,
                    shape=own,
                    longest=longest,
                    batch=batch,
                    steps=steps,
                    device=device,
                    product=1024 if quick else 8192,
                ),
            }
            for longest in lengths
            for method in methods
        ]
        found["limits"] = lambda: [
            child(
                "limited_step",
                config=config,
                stage=stage,
                shape=own,
                limit=limit * GIB,
                device=device,
                lora=lora,
            )
            for stage in stages
            for limit, lora in limits
        ]
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
    found = (
        json.loads(output.read_text(encoding="utf-8"))
        if only and output and output.exists()
        else {"contestants": CONTESTANTS, "machines": {}}
    )
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
    found = measure(
        given.what,
        given.quick,
        given.only,
        given.output or (None if given.quick else RESULTS / f"{given.what}.json"),
    )
    if given.quick and not given.output:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
