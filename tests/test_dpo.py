"""The DPO loss: against TRL's own code, autograd, finite differences, and at its edges."""

import math

import pytest
import torch
from helpers.losses import (
    assert_equal_gradients,
    random_logps,
    trl_loss,
    trl_trainer,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.losses import dpo_loss


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_trl_on_1000_random_pairs_one_by_one(dtype, rtol):
    betas = (0.01, 0.1, 0.5, 2.0)
    for seed, beta in enumerate(betas):
        logps = random_logps(1000 // len(betas), dtype, seed)
        trainer = trl_trainer(beta=beta)
        theirs = torch.stack(
            [trl_loss(trainer, *(x[i : i + 1] for x in logps)) for i in range(len(logps[0]))]
        )
        # the oracle did compute something
        assert theirs.dtype == dtype and theirs.unique().numel() > 100
        torch.testing.assert_close(
            dpo_loss(*logps, beta=beta),
            theirs,
            rtol=rtol,
            atol=0 if dtype == torch.float64 else 1e-30,
        )


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_mean_over_a_batch_and_its_gradient_equal_trl(dtype, rtol):
    logps = random_logps(64, dtype, 7, learned=2)
    ours, theirs = dpo_loss(*logps, beta=0.1).mean(), trl_loss(trl_trainer(beta=0.1), *logps)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
    assert_equal_gradients(ours, theirs, logps[:2], rtol=10 * rtol, atol=1e-12)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_label_smoothing_equals_trl_where_trl_has_it(dtype, rtol):
    """TRL 1.16 smooths in `aot`, which for a batch of one pair has nothing to sort and is cDPO; its
    `sigmoid` ignores the parameter.
    """
    logps = random_logps(200, dtype, 3)
    trainer = trl_trainer(beta=0.2, loss_type="aot", label_smoothing=0.15)
    theirs = torch.stack([trl_loss(trainer, *(x[i : i + 1] for x in logps)) for i in range(200)])
    torch.testing.assert_close(
        dpo_loss(*logps, beta=0.2, label_smoothing=0.15), theirs, rtol=rtol, atol=0
    )
    plain, ignored = (
        trl_loss(trl_trainer(beta=0.2), *logps),
        trl_loss(trl_trainer(beta=0.2, label_smoothing=0.15), *logps),
    )
    assert plain.item() == ignored.item()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradient_passes_gradcheck_in_float64(label_smoothing):
    logps = [x.requires_grad_() for x in random_logps(5, torch.float64, 1)]
    assert torch.autograd.gradcheck(
        lambda *x: dpo_loss(*x, beta=0.1, label_smoothing=label_smoothing), logps
    )


def test_gradient_is_the_closed_form():
    logps = [x.requires_grad_() for x in random_logps(50, torch.float64, 2)]
    gradients = torch.autograd.grad(dpo_loss(*logps, beta=0.3).sum(), logps)
    pc, pr, rc, rr = (x.detach() for x in logps)
    weight = 0.3 * torch.sigmoid(-0.3 * ((pc - rc) - (pr - rr)))
    for gradient, sign in zip(gradients, (-1, 1, 1, -1)):
        torch.testing.assert_close(gradient, sign * weight, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exactly_ln_2_where_policy_equals_reference(dtype):
    chosen, rejected = random_logps(20, dtype, 4)[:2]
    loss = dpo_loss(chosen, rejected, chosen.clone(), rejected.clone(), beta=0.7)
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-400, 0), min_size=4, max_size=4), st.floats(0.01, 2), st.floats(0, 0.45))
def test_swapping_the_answers_of_a_pair_is_smoothing_turned_round(values, beta, label_smoothing):
    "-log s(z) and -log s(-z) differ by z: a relation that no single-sided oracle shows."
    pc, pr, rc, rr = (torch.tensor([v], dtype=torch.float64) for v in values)
    difference = dpo_loss(pr, pc, rr, rc, beta=beta, label_smoothing=label_smoothing) - dpo_loss(
        pc, pr, rc, rr, beta=beta, label_smoothing=label_smoothing
    )
    z = beta * ((pc - rc) - (pr - rr))
    torch.testing.assert_close(difference, (1 - 2 * label_smoothing) * z, rtol=1e-9, atol=1e-9)


def test_smoothed_loss_is_least_at_the_log_odds_of_its_smoothing():
    margin = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    zero = torch.zeros_like(margin)
    best = margin[dpo_loss(margin, zero, zero, zero, beta=1.0, label_smoothing=0.1).argmin()]
    assert abs(best.item() - math.log(0.9 / 0.1)) < 1e-3
