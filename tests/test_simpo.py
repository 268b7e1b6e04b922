"""The SimPO loss: against TRL's own code, the formula in 50 digits, autograd, and at its edges."""

import math
import os
from decimal import Decimal, localcontext

import pytest
import torch
from helpers.losses import (
    assert_equal_gradients,
    bare_trainer,
    pinned_trl,
    random_lengths,
    random_logps,
    token_counts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.losses import simpo_loss

ARGUMENTS = ("policy_chosen_logps", "policy_rejected_logps", "chosen_lengths", "rejected_lengths")
# (beta, gamma), among them some of the paper's
SETTINGS = ((2.0, 1.0), (2.5, 0.3), (2.0, 0.0), (10.0, 5.0))


def random_batch(n, dtype, seed, learned=0):
    "Policy sums of both answers and their lengths, as training sees them."
    return [
        *random_logps(n, dtype, seed, learned)[:2],
        *(x.to(dtype) for x in random_lengths(n, seed)),
    ]


def trl_simpo(beta, gamma):
    "TRL 1.16's own SimPO: a branch of `CPOTrainer.cpo_loss`, which wants per-token means."
    pinned_trl()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = bare_trainer(
        CPOTrainer, alpha=0.0, loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=0.0
    )
    return lambda pc, pr, nc, nr: trainer.cpo_loss(pc / nc, pr / nr)[0]


def exact(pc, pr, nc, nr, beta, gamma):
    "Eq. 6 as it stands, with 50 digits: (loss, d loss / d pc, d loss / d pr)."
    with localcontext(prec=50):
        pc, pr, nc, nr, beta, gamma = map(Decimal, (pc, pr, nc, nr, beta, gamma))
        odds = (gamma - beta / nc * pc + beta / nr * pr).exp()  # e^-z
        wrong = odds / (1 + odds)  # sigmoid(-z)
        return tuple(map(float, ((1 + odds).ln(), -beta * wrong / nc, beta * wrong / nr)))


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_trl_on_1000_random_pairs(dtype, rtol):
    for seed, (beta, gamma) in enumerate(SETTINGS):
        batch = random_batch(250, dtype, seed, learned=2)
        ours, theirs = simpo_loss(*batch, beta=beta, gamma=gamma), trl_simpo(beta, gamma)(*batch)
        assert ours.dtype == theirs.dtype == dtype and theirs.unique().numel() > 200
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
        assert_equal_gradients(ours, theirs, batch[:2], rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_the_formula_in_50_digits_on_1000_random_pairs(dtype, rtol):
    for seed, (beta, gamma) in enumerate(SETTINGS):
        batch = random_batch(250, dtype, seed, learned=2)
        loss = simpo_loss(*batch, beta=beta, gamma=gamma)
        found = (loss, *torch.autograd.grad(loss.sum(), batch[:2]))
        wanted = zip(*(exact(*row, beta, gamma) for row in zip(*(x.tolist() for x in batch))))
        for mine, other in zip(found, wanted):
            torch.testing.assert_close(mine, torch.tensor(other, dtype=dtype), rtol=rtol, atol=0)


def test_gradient_passes_gradcheck_in_float64():
    pc, pr, nc, nr = random_batch(5, torch.float64, 1)
    assert torch.autograd.gradcheck(
        lambda a, b: simpo_loss(a, b, nc, nr), (pc.requires_grad_(), pr.requires_grad_())
    )


def test_no_longer_an_answer_no_longer_a_reward():
    """The same tokens twice over: sum and length double, the loss stays.

    A sum would not (that is what length does to DPO).
    """
    pc, pr, nc, nr = random_batch(50, torch.float64, 3)
    for k in (2, 7):
        torch.testing.assert_close(
            simpo_loss(k * pc, pr, k * nc, nr), simpo_loss(pc, pr, nc, nr), rtol=1e-10, atol=0
        )


def test_gamma_is_the_margin_at_which_the_loss_is_ln_2():
    mean_gap, beta, gamma = 0.35, 2.0, 0.7  # gamma / beta nats per token
    loss = simpo_loss(
        torch.tensor([-10.0], dtype=torch.float64),
        torch.tensor([-20 * (1 + mean_gap)], dtype=torch.float64),
        torch.tensor([10]),
        torch.tensor([20]),
        beta=beta,
        gamma=gamma,
    )
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)


def test_smaller_gamma_is_content_sooner():
    batch = random_batch(50, torch.float64, 4)
    losses = torch.stack([simpo_loss(*batch, gamma=gamma) for gamma in (0.0, 0.5, 1.0, 1.6)])
    assert (losses.diff(dim=0) > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.floats(-8, 0), st.floats(-8, 0), token_counts, token_counts, st.floats(0.1, 5))
def test_swapping_the_answers_without_gamma_costs_the_reward_difference(
    chosen_mean, rejected_mean, nc, nr, beta
):
    "-log s(z) and -log s(-z) differ by z."
    pc, pr, nc, nr = (
        torch.tensor([v], dtype=torch.float64)
        for v in (chosen_mean * nc, rejected_mean * nr, nc, nr)
    )
    difference = simpo_loss(pr, pc, nr, nc, beta=beta, gamma=0.0) - simpo_loss(
        pc, pr, nc, nr, beta=beta, gamma=0.0
    )
    torch.testing.assert_close(difference, beta * (pc / nc - pr / nr), rtol=1e-9, atol=1e-9)


def test_a_missing_length_is_refused():
    with pytest.raises(TypeError, match="lengths"):
        simpo_loss(torch.zeros(2), torch.zeros(2))
