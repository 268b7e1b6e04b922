"""bf16 by autocast beside float32, and the arithmetic of fp16: what every GPU run computes with, on
the CPU.

bf16 keeps 8 bits of a number, a rounding of 0.4 % at most. What log-ratios of answers are made of,
differences of large sums, is off by more, and a loss with a steep slope (dpop) multiplies that.
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.processes import BASE, QUESTIONS, train
from prefkit.core import NotFinite
from prefkit.judging.reward_model import scalar_head
from prefkit.model.sampling import generate
from prefkit.train.log import Log
from prefkit.train.loop import clip, gradient
from prefkit.train.methods import METHODS
from prefkit.train.settings import TrainSettings

torch.set_num_threads(1)

# ---- bf16

QUICK = ("sft", "dpo", "rloo")
OTHERS = [name for name in METHODS if name not in QUICK]
# the largest relative gaps of the mean loss and the mean gradient norm of all steps; online the two
# runs see other samples as soon as a token that is drawn falls out differently
OFFLINE, ONLINE = (0.08, 0.15), (0.15, 0.25)
# dpop's hinge, max(0, ref - policy) times 50, makes gradients of what is rounding near the start;
# reinforce has no baseline, so that other samples are other gradients
WIDER = {"dpop": (0.08, 0.3), "reinforce": (0.15, 0.3)}
AGREE = 0.9  # of greedy tokens


def means(result) -> dict[str, float]:
    "Mean loss and gradient norm of the steps."
    lines = [line for line in result.metrics if line["split"] == "train"]
    return {
        "loss": sum(line["loss"] for line in lines) / len(lines),
        "size": sum(abs(line["loss"]) for line in lines) / len(lines),
        "norm": sum(line["grad_norm"] for line in lines) / len(lines),
    }


def next_tokens(model, rows: list[list[int]]) -> list[int]:
    "The likeliest token after every token of some texts."
    with torch.no_grad():
        return [token for ids in rows for token in model(torch.tensor([ids])).logits[0].argmax(-1)]


def greedy_texts() -> list[list[int]]:
    "Prompts with the answers of the tiny base."
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(BASE),
        AutoTokenizer.from_pretrained(BASE),
    )
    asked = [[{"role": "user", "content": text}] for text in QUESTIONS]
    made = generate(model, tokenizer, asked, max_new_tokens=24)
    return [
        tokenizer.apply_chat_template(
            [*prompt, {"role": "assistant", "content": x["text"]}], return_dict=True
        )["input_ids"]
        for prompt, x in zip(asked, made)
    ]


def beside_float32(method: str, folder, steps: int):
    "Losses, norms and greedy tokens of a run in bf16 are those of one in float32, or nearly."
    found = {}
    for precision in ("float32", "bf16"):
        model = scalar_head(str(BASE)) if METHODS[method].output == "rewards" else None
        options = {"precision": precision, "max_steps": steps, "gradient_accumulation": 1}
        found[precision] = train(method, folder / precision, model=model, **options)
    exact, rough = (means(found[precision]) for precision in ("float32", "bf16"))
    assert rough != exact, "bf16 was not used"
    loss, norm = WIDER.get(method, ONLINE if METHODS[method].online else OFFLINE)
    assert abs(rough["loss"] - exact["loss"]) < loss * max(exact["size"], 0.1)
    assert abs(rough["norm"] - exact["norm"]) < norm * exact["norm"]
    weights = {p.dtype for p in found["bf16"].model.parameters()}
    assert weights == {torch.float32}
    if METHODS[method].output == "rewards":
        return
    texts = greedy_texts()
    pairs = zip(*(next_tokens(found[precision].model, texts) for precision in found))
    same = [a == b for a, b in pairs]
    assert sum(same) >= AGREE * len(same), f"{sum(same)} of {len(same)}"


@pytest.mark.parametrize("method", QUICK)
def test_twenty_steps_in_bf16_are_those_of_float32(method, tmp_path):
    beside_float32(method, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_every_other_method_in_bf16_is_as_in_float32(method, tmp_path):
    beside_float32(method, tmp_path, 20)


# ---- fp16's scaler


class Line:
    "A source: the loss of each of two rows is weight * row, times a factor."

    steps = 8

    def __init__(self, factor: float = 1.0):
        self.learner, self.factor = torch.nn.Linear(1, 1, bias=False), factor
        torch.nn.init.ones_(self.learner.weight)

    def batches(self, step: int):
        return [SimpleNamespace(items=1, tokens=1) for _ in range(2)]

    def losses(self, learner, batch):
        losses = learner(torch.tensor([[3.0]])).flatten() * self.factor
        return losses, {"loss": (losses.detach().sum(), 1)}

    def passes(self, step: int) -> float:
        return float(step)

    def check(self, means, step):
        pass

    def times(self, seconds: float) -> dict:
        return {}

    def origin(self) -> str:
        return ""


@pytest.fixture
def step(tmp_path):
    "Takes a step with a scaler of the given scale; gives scaler, norm, weight and log."
    accelerator = Accelerator(cpu=True)

    def take(scale: float, factor: float = 1.0, longest: float = 0.0):
        source = Line(factor)
        scaler = torch.amp.GradScaler(device="cpu", init_scale=scale)
        optimizer = torch.optim.SGD(source.learner.parameters(), lr=0.5)
        log = Log(tmp_path, TrainSettings(device="cpu"), accelerator)
        loss = gradient(source, source.learner, 0, scaler, accelerator, log)
        scaled = source.learner.weight.grad.item()
        norm = clip(source.learner, optimizer, scaler, accelerator, longest)
        log.step(1, loss, norm, source.origin, scaler.is_enabled())
        scaler.step(optimizer)
        scaler.update()
        log.line(1, 0.5, source)
        line = json.loads((tmp_path / "metrics.jsonl").read_text())
        return SimpleNamespace(
            scaled=scaled,
            norm=norm.item(),
            weight=source.learner.weight.item(),
            scale=scaler.get_scale(),
            line=line,
        )

    return take


def test_a_scaled_gradient_is_clipped_by_its_unscaled_norm(step):
    taken = step(1024.0, longest=1.0)
    assert taken.scaled == pytest.approx(3 * 1024) and taken.norm == pytest.approx(3)
    assert taken.weight == pytest.approx(1 - 0.5 * 1.0, rel=1e-5)
    assert taken.line["grad_norm"] == pytest.approx(3) and taken.line["skipped_steps"] == 0


def test_an_overflow_skips_the_step_is_counted_and_halves_the_scale(step):
    taken = step(2.0**127, factor=100.0)
    assert math.isinf(taken.scaled) and taken.weight == 1.0 and taken.scale == 2.0**126
    assert taken.line["skipped_steps"] == 1 and "grad_norm" not in taken.line
    assert taken.line["loss"] == pytest.approx(300)


def test_a_loss_that_is_not_finite_is_an_error_with_a_scaler_too(step):
    with pytest.raises(NotFinite, match="the loss is inf"):
        step(1.0, factor=math.inf)
