"""The XPO loss: DPO's part against TRL's own code, the bonus against a transcription, autograd,
finite differences, edges.
"""

import math

import pytest
import torch
from helpers.losses import (
    random_logps,
    trl_loss,
    trl_trainer,
)

from prefkit.losses import dpo_loss, xpo_loss


def five(n, dtype, seed):
    "Log-probs of pairs, and of an answer drawn from the reference."
    return [*random_logps(n, dtype, seed), random_logps(n, dtype, seed + 500)[0]]


def transcription(pc, pr, rc, rr, explore, beta, alpha):
    """The bracket of Algorithm 1 for one prompt, in Python's floats, and its derivatives with
    respect to pc, pr and explore.
    """
    z = beta * (pc - rc) - beta * (pr - rr)
    softplus = math.log1p(math.exp(-abs(z))) + max(-z, 0)  # -log sigmoid(z)
    f = beta / (1 + math.exp(z)) if z < 700 else 0.0
    return alpha * explore + softplus, -f, f, alpha


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_a_transcription_on_1000_random_batches(dtype, rtol):
    for seed in range(1000):
        beta, alpha = (0.01, 0.1, 0.5, 2.0)[seed % 4], (0.0, 1e-5, 0.01, 0.1, 1.0)[seed % 5]
        logps = five(4, dtype, seed)
        wanted = [transcription(*row, beta, alpha) for row in zip(*(x.tolist() for x in logps))]
        learned = (logps[0], logps[1], logps[4])
        for x in learned:
            x.requires_grad_()
        loss = xpo_loss(*logps, beta=beta, alpha=alpha)
        gradients = torch.autograd.grad(loss.sum(), learned)
        assert loss.dtype == dtype
        for ours, theirs in zip(gradients, zip(*[row[1:] for row in wanted])):
            torch.testing.assert_close(
                ours.double(), torch.tensor(theirs, dtype=torch.float64), rtol=rtol, atol=1e-30
            )
        # the two terms may cancel
        size = (
            torch.tensor([abs(row[0]) for row in wanted], dtype=torch.float64)
            + alpha * logps[4].detach().abs()
        )
        assert (
            (
                loss.detach().double()
                - torch.tensor([row[0] for row in wanted], dtype=torch.float64)
            ).abs()
            <= rtol * size + 1e-30
        ).all()


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_trl_s_dpo_plus_the_bonus_one_by_one(dtype, rtol):
    "TRL 1.16 has no XPO any more; its DPO and the paper's one added term are the oracle."
    for seed, (beta, alpha) in enumerate([(0.05, 0.01), (0.1, 0.1), (1.0, 0.01), (0.1, 1e-5)]):
        logps = five(250, dtype, seed)
        trainer = trl_trainer(beta=beta)
        theirs = torch.stack(
            [trl_loss(trainer, *(x[i : i + 1] for x in logps[:4])) for i in range(250)]
        )
        torch.testing.assert_close(
            xpo_loss(*logps, beta=beta, alpha=alpha),
            theirs + alpha * logps[4],
            rtol=rtol,
            atol=1e-6 * rtol,
        )


def test_gradient_passes_gradcheck_in_float64():
    logps = [x.requires_grad_() for x in five(5, torch.float64, 1)]
    assert torch.autograd.gradcheck(lambda *x: xpo_loss(*x, beta=0.1, alpha=0.05), logps)


def test_the_bonus_pushes_the_reference_sample_down_with_constant_force():
    logps = [x.requires_grad_() for x in five(20, torch.float64, 2)]
    gradients = torch.autograd.grad(xpo_loss(*logps, beta=0.3, alpha=0.07).sum(), logps)
    # positive: descent lowers the log-prob
    assert torch.equal(gradients[4], torch.full((20,), 0.07, dtype=torch.float64))
    for ours, theirs in zip(
        gradients, torch.autograd.grad(dpo_loss(*logps[:4], beta=0.3).sum(), logps[:4])
    ):
        assert torch.equal(ours, theirs)


def test_alpha_0_is_dpo_and_the_bonus_is_alpha_times_the_log_prob():
    logps = five(50, torch.float64, 3)
    assert torch.equal(xpo_loss(*logps, beta=0.2, alpha=0.0), dpo_loss(*logps[:4], beta=0.2))
    torch.testing.assert_close(
        xpo_loss(*logps, beta=0.2, alpha=0.1) - dpo_loss(*logps[:4], beta=0.2),
        0.1 * logps[4],
        rtol=1e-9,
        atol=1e-12,
    )


def test_the_loss_is_negative_and_unbounded_below():
    "Unlike DPO's: nothing in the term itself stops it."
    zero = torch.zeros(3)
    loss = xpo_loss(zero, zero, zero, zero, torch.tensor([-10.0, -100.0, -1000.0]), alpha=0.1)
    torch.testing.assert_close(loss, math.log(2) + torch.tensor([-1.0, -10.0, -100.0]))


def test_samples_of_the_policy_itself_make_a_bonus_without_a_mean_gradient():
    """Why the paper draws them from the reference: the average of grad log pi over pi's own samples
    is zero.
    """
    torch.manual_seed(0)
    scores, reference = (
        torch.randn(6, dtype=torch.float64, requires_grad=True),
        torch.randn(6, dtype=torch.float64).softmax(-1),
    )
    logps, zeros = scores.log_softmax(-1), torch.zeros(6, dtype=torch.float64)

    def mean_gradient(samples_from):  # by enumeration
        return torch.autograd.grad(
            (samples_from.detach() * xpo_loss(zeros, zeros, zeros, zeros, logps, alpha=0.1)).sum(),
            scores,
            retain_graph=True,
        )[0]

    torch.testing.assert_close(mean_gradient(logps.exp()), zeros, atol=1e-15, rtol=0)
    torch.testing.assert_close(
        mean_gradient(reference), 0.1 * (reference - logps.exp().detach()), rtol=1e-10, atol=1e-15
    )


def test_with_lora_the_reference_is_the_model_with_its_adapter_off():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False))
    before = base(torch.eye(6)).detach()
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, lora_alpha=16, target_modules=["0"], init_lora_weights=False)
    )
    with torch.no_grad():
        assert not torch.allclose(model(torch.eye(6)), before, atol=0.1)
        with model.disable_adapter():
            assert torch.equal(model(torch.eye(6)), before)
