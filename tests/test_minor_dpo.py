"""The MinorDPO loss: against a transcription in NumPy and TRL's DPO of capped answers, autograd,
finite differences, at its kink and edges.
"""

import math

import numpy
import pytest
import torch
from helpers.losses import (
    assert_equal_gradients,
    equals_transcription,
    random_logps,
    trl_loss,
    trl_trainer,
)

from prefkit.losses import dpo_loss, minor_dpo_loss

BETAS = (0.02, 0.04, 0.1, 0.2)


def transcription(pc, pr, rc, rr, *, beta):
    """Eq. 6 of the report, term by term in float64, and its gradients with respect to the policy's
    two columns.
    """
    above = pr > rr
    penalty = numpy.zeros_like(pr)
    penalty[above] = (pr - rr)[above]
    inside = beta * numpy.subtract(pc, rc) - beta * penalty
    weight = beta * numpy.exp(-numpy.logaddexp(0, inside))  # beta * sigmoid(-inside)
    return numpy.logaddexp(0, -inside), -weight, weight * above


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradients_equal_the_transcription_on_1000_batches(dtype, rtol):
    settings = [{"beta": beta} for beta in BETAS]
    equals_transcription(minor_dpo_loss, transcription, settings, rtol, dtype, sides=(1, 3))


@pytest.mark.parametrize("beta", BETAS)
def test_equals_trls_dpo_of_rejected_answers_that_never_fall_below_the_reference(beta):
    pc, pr, rc, rr = random_logps(64, torch.float64, 1, learned=2)
    theirs = trl_loss(trl_trainer(beta=beta), pc, torch.where(pr > rr, pr, rr), rc, rr)
    ours = minor_dpo_loss(pc, pr, rc, rr, beta=beta).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    assert_equal_gradients(ours, theirs, (pc, pr), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_gradient_passes_gradcheck_off_the_kink(side):
    logps = random_logps(5, torch.float64, 1)
    logps[1] = logps[3] + side * torch.linspace(0.1, 5, 5, dtype=torch.float64)
    logps = [x.requires_grad_() for x in logps]
    assert torch.autograd.gradcheck(lambda *x: minor_dpo_loss(*x, beta=0.1), logps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_the_start_the_loss_is_ln_2_and_the_rejected_answer_is_not_pushed(dtype):
    """Policy = reference is the kink. relu's subgradient there is 0; clamp's would be 1, and the
    first step that of DPO.
    """
    chosen, rejected = random_logps(20, dtype, 4)[:2]
    logps = [x.clone().requires_grad_() for x in (chosen, rejected, chosen, rejected)]
    loss = minor_dpo_loss(*logps, beta=0.1)
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))
    for gradient, wanted in zip(torch.autograd.grad(loss.sum(), logps), (-0.05, 0.0, 0.05, 0.0)):
        torch.testing.assert_close(gradient, torch.full_like(gradient, wanted))


def test_a_rejected_answer_below_the_reference_has_exactly_no_gradient_and_no_influence():
    pc, pr, rc, rr = random_logps(200, torch.float64, 2)
    fallen = (
        rr
        - 30 * torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        - 1e-9
    ).requires_grad_()
    loss = minor_dpo_loss(pc, fallen, rc, rr)
    assert torch.equal(
        torch.autograd.grad(loss.sum(), fallen)[0], torch.zeros(200, dtype=torch.float64)
    )
    assert torch.equal(loss, minor_dpo_loss(pc, fallen - 1000, rc, rr))


def test_above_the_reference_it_is_dpo_and_never_less_than_dpo():
    pc, pr, rc, rr = random_logps(200, torch.float64, 3)
    risen = torch.maximum(pr, rr)
    torch.testing.assert_close(
        minor_dpo_loss(pc, risen, rc, rr), dpo_loss(pc, risen, rc, rr), rtol=1e-12, atol=0
    )
    # a fallen rejected answer earns nothing
    assert (minor_dpo_loss(pc, pr, rc, rr) >= dpo_loss(pc, pr, rc, rr)).all()


def test_when_both_fall_the_loss_grows():
    "Where DPO is content with a growing margin, MinorDPO sees the chosen answer only."
    fall = torch.linspace(0, -100, 201, dtype=torch.float64)
    zero = torch.zeros_like(fall)
    assert (minor_dpo_loss(fall, 2 * fall, zero, zero).diff() > 0).all() and (
        dpo_loss(fall, 2 * fall, zero, zero).diff() < 0
    ).all()


def test_the_default_beta():
    logps = random_logps(20, torch.float64, 8)
    assert torch.equal(minor_dpo_loss(*logps), minor_dpo_loss(*logps, beta=0.1))
