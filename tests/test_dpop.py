"""The DPOP loss: against a transcription in NumPy and TRL's DPO with the penalty folded in,
autograd, finite differences, at its kink and edges.
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

from prefkit.losses import dpo_loss, dpop_loss

SETTINGS = [(0.3, 50.0), (0.1, 5.0), (0.02, 50.0), (0.3, 0.0), (0.1, 0.5)]


def transcription(pc, pr, rc, rr, *, beta, lam):
    """Eq. 5 of the MinorDPO report, term by term in float64, and its gradients with respect to the
    policy's two columns.
    """
    chosen, rejected = numpy.subtract(pc, rc), numpy.subtract(pr, rr)
    below = rc > pc
    penalty = numpy.zeros_like(chosen)
    penalty[below] = (rc - pc)[below]
    inside = beta * chosen - beta * rejected - beta * lam * penalty
    weight = beta * numpy.exp(-numpy.logaddexp(0, inside))  # beta * sigmoid(-inside)
    return numpy.logaddexp(0, -inside), -weight * numpy.where(below, 1 + lam, 1), weight


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradients_equal_the_transcription_on_1000_batches(dtype, rtol):
    settings = [{"beta": beta, "lam": lam} for beta, lam in SETTINGS]
    equals_transcription(dpop_loss, transcription, settings, rtol, dtype, sides=(0, 2))


@pytest.mark.parametrize("beta, lam", SETTINGS)
def test_equals_trls_dpo_of_a_chosen_answer_that_has_paid_the_penalty(beta, lam):
    pc, pr, rc, rr = random_logps(64, torch.float64, 1, learned=2)
    zero = torch.zeros_like(rc)
    paid = (pc - rc) - lam * torch.where(pc < rc, rc - pc, zero)
    theirs = trl_loss(trl_trainer(beta=beta), paid, pr - rr, zero, zero)
    ours = dpop_loss(pc, pr, rc, rr, beta=beta, lam=lam).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    assert_equal_gradients(ours, theirs, (pc, pr), rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_gradient_passes_gradcheck_off_the_kink(side):
    logps = [x / 50 for x in random_logps(5, torch.float64, 1)]
    logps[0] = logps[2] + side * torch.linspace(0.1, 1, 5, dtype=torch.float64)
    logps = [x.requires_grad_() for x in logps]
    assert torch.autograd.gradcheck(lambda *x: dpop_loss(*x, beta=0.3, lam=5.0), logps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_the_start_the_loss_is_ln_2_and_the_gradient_is_that_of_dpo(dtype):
    """Policy = reference is the kink. relu's subgradient there is 0; clamp's would be 1, and the
    first step 1 + lam times as large.
    """
    chosen, rejected = random_logps(20, dtype, 4)[:2]
    logps = [x.clone().requires_grad_() for x in (chosen, rejected, chosen, rejected)]
    loss = dpop_loss(*logps, beta=0.3, lam=50.0)
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))
    for gradient, sign in zip(torch.autograd.grad(loss.sum(), logps), (-1, 1, 1, -1)):
        torch.testing.assert_close(gradient, torch.full_like(gradient, sign * 0.15))


def test_without_penalty_it_is_dpo():
    pc, pr, rc, rr = random_logps(200, torch.float64, 2)
    assert torch.equal(
        dpop_loss(pc, pr, rc, rr, beta=0.2, lam=0.0), dpo_loss(pc, pr, rc, rr, beta=0.2)
    )
    above = torch.maximum(pc, rc)  # a chosen answer that has lost nothing pays nothing
    torch.testing.assert_close(
        dpop_loss(above, pr, rc, rr, beta=0.2, lam=50.0),
        dpo_loss(above, pr, rc, rr, beta=0.2),
        rtol=0,
        atol=0,
    )


def test_the_penalty_is_under_beta_and_inside_the_sigmoid():
    """One nat lost, nothing else: -log s(-beta (1 + lam)).

    Outside the sigmoid it would be -log s(-beta) + lam.
    """
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for beta, lam in SETTINGS:
        expected = math.log1p(math.exp(beta * (1 + lam)))
        torch.testing.assert_close(
            dpop_loss(-one, zero, zero, zero, beta=beta, lam=lam).item(),
            expected,
            rtol=1e-12,
            atol=0,
        )


def test_a_falling_chosen_answer_always_costs_more_and_the_loss_is_never_negative():
    """With the penalty's sign turned the loss would fall here; outside the sigmoid with its sign
    turned it would go to minus infinity.
    """
    chosen = torch.linspace(0, -1000, 2001, dtype=torch.float64)
    zero = torch.zeros_like(chosen)
    loss = dpop_loss(chosen, zero, zero, zero, beta=0.3, lam=50.0)
    assert (loss > 0).all() and (loss.diff() > 0).all()
    # the margin grows all the same
    both_fall = dpop_loss(chosen, 2 * chosen, zero, zero, beta=0.3, lam=50.0)
    assert (both_fall.diff() > 0).all() and (
        dpo_loss(chosen, 2 * chosen, zero, zero, beta=0.3).diff() < 0
    ).any()


def test_defaults_are_those_of_the_papers():
    logps = random_logps(20, torch.float64, 8)
    assert torch.equal(dpop_loss(*logps), dpop_loss(*logps, beta=0.3, lam=50.0))
