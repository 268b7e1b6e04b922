"""The reward model's loss: against TRL's own code, SciPy, autograd and finite differences, and at
its edges.
"""

import math
import types

import numpy as np
import pytest
import torch
from helpers.losses import (
    assert_equal_gradients,
    bare_trainer,
    finite_loss_and_gradients,
    input_dtypes,
    pinned_trl,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_expit

from prefkit.losses import reward_model_loss

REWARDS = ("chosen_rewards", "rejected_rewards")
# a head is not bounded; averages of -50 over eight tokens, say
rewards = st.floats(-400, 400, allow_nan=False)


def random_rewards(n, dtype, seed):
    "Scores with a scale and a zero point of their own in each batch, and margins of both signs."
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, generator=generator, dtype=torch.float64)
    scale, zero = (
        10 ** torch.rand((), generator=generator, dtype=torch.float64),
        20 * torch.randn((), generator=generator, dtype=torch.float64),
    )
    return [x.to(dtype) for x in (zero + scale * draw(), zero + scale * draw(), draw())]


def trl_reward_trainer():
    """TRL's RewardTrainer with just what `compute_loss` reads; its model is a function that answers
    with the given scores.
    """
    pinned_trl()
    from trl.trainer.reward_trainer import RewardTrainer

    arguments = types.SimpleNamespace(center_rewards_coefficient=None)
    return bare_trainer(RewardTrainer, args=arguments)


def trl_loss(trainer, chosen, rejected, margin=None):
    "TRL's loss of a batch, a scalar (the mean)."
    model = lambda **inputs: types.SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    return trainer.compute_loss(model, {} if margin is None else {"margin": margin})


def transcription(chosen, rejected, margin=0.0):
    "SciPy's log of the logistic function, in float64 and without torch."
    return -log_expit(
        chosen.detach().double().numpy() - rejected.detach().double().numpy() - np.asarray(margin)
    )


@pytest.mark.parametrize("with_margin", [False, True])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_trl_on_1000_random_batches(dtype, rtol, with_margin):
    trainer = trl_reward_trainer()
    for seed in range(1000):
        chosen, rejected, margin = random_rewards(1 + seed % 8, dtype, seed)
        inputs = [chosen.requires_grad_(), rejected.requires_grad_()]
        ours = reward_model_loss(*inputs, margin=margin if with_margin else None).mean()
        theirs = trl_loss(trainer, *inputs, margin if with_margin else None)
        assert theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-30)
        assert_equal_gradients(ours, theirs, inputs, rtol=rtol, atol=1e-30)
    # it is TRL's own function that has run
    assert len(trainer._metrics["eval"]["accuracy"]) == 1000


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_each_pair_equals_scipy_and_its_gradient_is_the_closed_form(dtype, rtol):
    for seed in range(1000):
        chosen, rejected, margin = random_rewards(4, dtype, seed)
        inputs = [chosen.requires_grad_(), rejected.requires_grad_()]
        loss = reward_model_loss(*inputs, margin=margin)
        # rounded as the function rounds it: near 0 a relative error would be the subtraction's
        difference = chosen.detach() - rejected.detach()
        expected = torch.from_numpy(transcription(difference - margin, torch.zeros(4)))
        torch.testing.assert_close(loss.detach().double(), expected, rtol=rtol, atol=1e-30)
        # how wrong the score is about this pair
        weight = 1 / (1 + (difference - margin).double().exp())
        for gradient, sign in zip(torch.autograd.grad(loss.sum(), inputs), (-1, 1)):
            torch.testing.assert_close(gradient.double(), sign * weight, rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("with_margin", [False, True])
def test_gradient_passes_gradcheck_in_float64(with_margin):
    chosen, rejected, margin = (x.requires_grad_() for x in random_rewards(6, torch.float64, 3))
    inputs = (chosen, rejected, margin) if with_margin else (chosen, rejected)
    assert torch.autograd.gradcheck(lambda c, r, m=None: reward_model_loss(c, r, margin=m), inputs)


@settings(max_examples=200, deadline=None)
@given(rewards, rewards, st.none() | rewards, input_dtypes)
@example(-50.0 * 8192, 0.0, None, torch.float32)
@example(0.0, -50.0 * 8192, 3.0, torch.bfloat16)
@example(0.0, 0.0, None, torch.float32)
def test_loss_and_gradient_are_finite_at_the_edges(chosen, rejected, margin, dtype):
    inputs = [torch.tensor([x], dtype=dtype, requires_grad=True) for x in (chosen, rejected)]
    margin = None if margin is None else torch.tensor([margin], dtype=dtype)
    assert (finite_loss_and_gradients(reward_model_loss, inputs, margin=margin) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-1000, 1000))
def test_only_the_difference_counts(chosen, rejected, zero):
    """Another zero point changes nothing; swapping the two answers changes the loss by their
    difference; a margin is a shift of the chosen score.
    """
    c, r = (torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected))
    torch.testing.assert_close(
        reward_model_loss(c + zero, r + zero), reward_model_loss(c, r), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        reward_model_loss(r, c) - reward_model_loss(c, r), c - r, rtol=1e-9, atol=1e-9
    )
    margin = torch.tensor([zero / 100], dtype=torch.float64)
    torch.testing.assert_close(
        reward_model_loss(c, r, margin=margin),
        reward_model_loss(c - margin, r),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exactly_ln_2_for_equal_scores(dtype):
    scores = random_rewards(20, dtype, 4)[0]
    loss = reward_model_loss(scores, scores.clone())
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))
