"""Twenty steps of a method in bf16 beside float32: how far apart losses, gradient norms and tokens
are. What was measured lies in `data/results/lessons/precision.json`; the lesson on the loop shows
it and the test allows a multiple of it. To measure all anew (six minutes), or methods
that have come since:

    PYTHONPATH=.:tests python -m helpers.precision [METHOD ...]
"""

import copy
import json
import sys
import tempfile
from itertools import chain
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.encoded import BASE, QUESTIONS, encoded_rows
from helpers.processes import train
from prefkit.core import project_root, write_json
from prefkit.judging.reward_model import scalar_head
from prefkit.model.batches import autocast, batch_logps, collate
from prefkit.model.sampling import generate
from prefkit.runs.runner import git_state
from prefkit.runs.stage import versions
from prefkit.train.methods import METHODS
from prefkit.train.rollout import sample_answers

FILE = project_root() / "data/results/lessons/precision.json"
SEEDS, STEPS = (0, 1, 2), 20


class Replay:
    """Draws answers; after `again` draws anew, counts the tokens that fall out differently, and
    gives the answers of the first time.
    """

    def __init__(self):
        self.drawn, self.next, self.tokens, self.other = [], None, 0, 0

    def again(self):
        self.next = iter(self.drawn)

    def __call__(self, *given, **options):
        made = sample_answers(*given, **options)
        if self.next is None:
            self.drawn.append(copy.deepcopy(made))
            return made
        first = copy.deepcopy(next(self.next))
        for one, other in zip(chain(*first), chain(*made), strict=True):
            same = [x == y for x, y in zip(one.ids, other.ids)]
            # behind the first other token stands another text, which says nothing
            self.tokens += same.index(False) + 1 if False in same else len(same)
            self.other += False in same
        return first


def both(method: str, folder: Path, seed: int = 0) -> tuple[dict, Replay]:
    """A run in each precision. An online method learns in both from the samples of the first, and
    at a rate that leaves the model where it is: one token that falls out differently makes another
    text and another model, and hides what rounding does to a step.
    """
    found, replay = {}, Replay()
    rate = {"learning_rate": 1e-6} if METHODS[method].online else {}
    with mock.patch("prefkit.train.rounds.sample_answers", replay):
        for precision in ("float32", "bf16"):
            model = scalar_head(str(BASE)) if METHODS[method].output == "rewards" else None
            options = {"max_steps": STEPS, "gradient_accumulation": 1, "seed": seed, **rate}
            options |= {"precision": precision, "model": model}
            found[precision] = train(method, folder / precision, **options)
            replay.again()
    return found, replay


def apart(found: dict) -> dict[str, float]:
    """How far apart a step is, as a share of the number's own root mean square (a loss that is next
    to nothing is held against 0.1): the root mean square of the steps' differences, and the one in
    the middle, which no single step of twenty decides whose samples nearly cancel.
    """
    shares = {}
    for name, least in (("loss", 0.1), ("grad_norm", 0.0)):
        exact, rounded = (
            torch.tensor([line[name] for line in found[which].metrics if line["split"] == "train"])
            for which in ("float32", "bf16")
        )
        gaps = (rounded - exact).abs() / max(exact.square().mean().sqrt().item(), least)
        shares[name] = gaps.square().mean().sqrt().item()
        shares[f"{name}_middle"] = gaps.median().item()
    return shares


def base_texts() -> list[list[int]]:
    "Prompts with the answers of the tiny base."
    model = AutoModelForCausalLM.from_pretrained(BASE)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    asked = [[{"role": "user", "content": text}] for text in QUESTIONS]
    made = generate(model, tokenizer, asked, max_new_tokens=24)
    answers = [{"role": "assistant", "content": one["text"]} for one in made]
    chats = [[*prompt, answer] for prompt, answer in zip(asked, answers)]
    return [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in chats]


def other_tokens(found: dict, texts: list[list[int]]) -> float:
    "Share of places in some texts at which the two models hold another token for the likeliest."
    with torch.no_grad():
        likeliest = [
            torch.cat(
                [found[which].model(torch.tensor([ids])).logits[0].argmax(-1) for ids in texts]
            )
            for which in ("float32", "bf16")
        ]
    return (likeliest[0] != likeliest[1]).float().mean().item()


def at_the_start() -> dict[str, float]:
    "Of the answers of the rows: tokens, log-prob, and what rounding does to it, root mean squares."
    model = AutoModelForCausalLM.from_pretrained(BASE)
    batch = collate(encoded_rows(13, "pairs"), ("chosen", "rejected"), 0)
    found = {}
    with torch.no_grad():
        for precision in ("float32", "bf16"):
            with autocast(model, precision):
                found[precision] = batch_logps(model, batch)
    parts = {"logp": found["float32"], "error": found["bf16"] - found["float32"]}
    parts["tokens"] = batch.lengths.float()
    return {name: float(f"{part.square().mean().sqrt():.3g}") for name, part in parts.items()}


def measure(method: str, texts: list[list[int]], seed: int = 0) -> dict[str, float]:
    "How far apart the two are in all that is compared."
    with tempfile.TemporaryDirectory() as folder:
        found, replay = both(method, Path(folder), seed)
    shares = apart(found)
    assert shares["loss"] > 0, "bf16 was not used"
    assert {p.dtype for p in found["bf16"].model.parameters()} == {torch.float32}
    if METHODS[method].online:
        shares["tokens"] = replay.other / replay.tokens
    elif METHODS[method].output == "logps":
        shares["tokens"] = other_tokens(found, texts)
    return shares


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = sys.argv[1:] or list(METHODS)
    whole = len(asked) == len(METHODS)
    texts, methods = base_texts(), {} if whole else json.loads(FILE.read_text())["methods"]
    for method in asked:
        runs = [measure(method, texts, seed) for seed in SEEDS]
        methods[method] = {name: float(f"{max(run[name] for run in runs):.2g}") for name in runs[0]}
        print(method, methods[method])
    record = {} if whole else json.loads(FILE.read_text())
    made = {"git": git_state(), "versions": versions()}
    if not whole:  # methods that came later, each with what it was measured with
        made = {"later": record.get("later", {}) | dict.fromkeys(asked, made)}
    record |= {
        "about": "bf16 beside float32, 20 steps: gaps of that seed where each was largest",
        "command": "PYTHONPATH=.:tests python -m helpers.precision [METHOD ...]",
        **made,
        "seeds": SEEDS,
        # what the test allows: so many times what was measured, and never less than one rounding or
        # two or three tokens
        "margin": 2.0,
        "least": {"loss_middle": 2.0**-8, "grad_norm_middle": 2.0**-8, "tokens": 0.03},
        "start": record.get("start") or at_the_start(),
        "methods": methods,
    }
    write_json(FILE, record)
