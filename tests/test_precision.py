"""bf16 by autocast beside float32, and the arithmetic of fp16: what every GPU run computes with, on
the CPU.
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from helpers.precision import FILE, base_texts, measure
from prefkit.core import NotFinite
from prefkit.train.log import Log
from prefkit.train.loop import clip, gradient
from prefkit.train.methods import METHODS
from prefkit.train.settings import TrainSettings


# ---- bf16

QUICK = ("sft", "dpo", "rloo")
OTHERS = [name for name in METHODS if name not in QUICK]
# How far apart each method was; the lesson on the loop shows these numbers and says where they come
# from. Another CPU rounds elsewhere and is as far apart, not equal: hence a margin.
RECORD = json.loads(FILE.read_text())


def test_every_method_has_been_measured():
    "A new one is: PYTHONPATH=.:tests python -m helpers.precision"
    assert sorted(RECORD["methods"]) == sorted(METHODS)


def beside_float32(method: str):
    "Loss and norm of the step in the middle, and tokens, are as near to float32's as they were."
    measured, shares = RECORD["methods"][method], measure(method, base_texts())
    for name in RECORD["least"].keys() & shares.keys():
        allowed = max(RECORD["margin"] * measured[name], RECORD["least"][name])
        assert shares[name] <= allowed, f"{name}: {shares[name]:.2g} apart, {measured[name]} then"


@pytest.mark.parametrize("method", QUICK)
def test_twenty_steps_in_bf16_are_those_of_float32(method):
    beside_float32(method)


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_every_other_method_in_bf16_is_as_in_float32(method):
    beside_float32(method)


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
