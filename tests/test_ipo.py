"""The IPO loss: sums against the formula in exact fractions, means against TRL's own code, and at
its edges.
"""

from fractions import Fraction

import pytest
import torch
from helpers.losses import (
    assert_equal_gradients,
    random_lengths,
    random_logps,
    trl_loss,
    trl_trainer,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.losses import ipo_loss

TAUS = (0.01, 0.1, 0.5, 2.0)
LENGTHS = ("chosen_lengths", "rejected_lengths")


def by_name(lengths):
    return dict(zip(LENGTHS, lengths))


def exact(pc, pr, rc, rr, tau):
    """Eq. 17 in rational numbers: policy against policy, reference against reference, as the paper
    groups them.
    """
    pc, pr, rc, rr = (Fraction(x) for x in (pc, pr, rc, rr))
    away = (pc - pr) - (rc - rr) - 1 / (2 * Fraction(tau))
    return float(away**2), float(2 * away)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_sums_equal_the_formula_in_fractions_on_1000_random_pairs(dtype, rtol):
    for seed, tau in enumerate(TAUS):
        logps = [x.requires_grad_() for x in random_logps(250, dtype, seed)]
        loss = ipo_loss(*logps, tau=tau)
        gradients = torch.autograd.grad(loss.sum(), logps)
        values, slopes = zip(*(exact(*row, tau) for row in zip(*(x.tolist() for x in logps))))
        values, slopes = torch.tensor(values, dtype=dtype), torch.tensor(slopes, dtype=dtype)
        # a pair at its target has lost its leading digits before the loss sees it: there h's own
        # rounding is the measure
        rounding = 1000 * torch.finfo(dtype).eps
        torch.testing.assert_close(loss, values, rtol=rtol, atol=rounding)
        for gradient, sign in zip(gradients, (1, -1, -1, 1)):
            torch.testing.assert_close(gradient, sign * slopes, rtol=rtol, atol=rounding)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_trl_on_1000_random_pairs_one_by_one(dtype, rtol, with_lengths):
    "TRL averages over tokens; where each answer is one token, its mean is the sum."
    for seed, tau in enumerate(TAUS):
        logps = [x.requires_grad_() for x in random_logps(250, dtype, seed)]
        lengths = random_lengths(250, seed) if with_lengths else None
        trainer = trl_trainer(beta=tau, loss_type="ipo")
        theirs = torch.stack(
            [
                trl_loss(
                    trainer,
                    *(x[i : i + 1] for x in logps),
                    lengths and [n[i : i + 1] for n in lengths],
                )
                for i in range(250)
            ]
        )
        ours = ipo_loss(*logps, tau=tau, **by_name([n.to(dtype) for n in lengths or []]))
        assert theirs.dtype == ours.dtype == dtype and theirs.unique().numel() > 200
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
        assert_equal_gradients(ours, theirs, logps[:2], rtol=rtol, atol=0)


@pytest.mark.parametrize("with_lengths", [False, True])
def test_gradient_passes_gradcheck_in_float64(with_lengths):
    logps = [x.requires_grad_() for x in random_logps(5, torch.float64, 1)]
    lengths = by_name(random_lengths(5, 1) if with_lengths else [])
    assert torch.autograd.gradcheck(lambda *x: ipo_loss(*x, tau=0.1, **lengths), logps)


@pytest.mark.parametrize("with_lengths", [False, True])
def test_gradient_is_the_closed_form(with_lengths):
    logps = [x.requires_grad_() for x in random_logps(50, torch.float64, 2)]
    lengths = random_lengths(50, 2) if with_lengths else [torch.ones(50, dtype=torch.float64)] * 2
    gradients = torch.autograd.grad(ipo_loss(*logps, tau=0.3, **by_name(lengths)).sum(), logps)
    (pc, pr, rc, rr), (nc, nr) = (x.detach() for x in logps), lengths
    slope = 2 * ((pc - rc) / nc - (pr - rr) / nr - 1 / 0.6)
    for gradient, sign, n in zip(gradients, (1, -1, -1, 1), (nc, nr, nc, nr)):
        torch.testing.assert_close(gradient, sign * slope / n, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tau, start", [(0.01, 2500.0), (0.1, 25.0), (0.5, 1.0)])
def test_starts_at_1_over_4_tau_squared_where_policy_equals_reference(dtype, tau, start):
    chosen, rejected = random_logps(20, dtype, 4)[:2]
    for lengths in ([], random_lengths(20, 4)):
        loss = ipo_loss(
            chosen,
            rejected,
            chosen.clone(),
            rejected.clone(),
            tau=tau,
            **by_name([n.float() for n in lengths]),
        )
        torch.testing.assert_close(loss, torch.full_like(loss, start), rtol=1e-7, atol=0)
        assert start == pytest.approx(1 / (4 * tau**2))


def test_least_exactly_at_the_target_and_pulls_back_beyond_it():
    "What DPO never does: the gradient changes its sign at h = 1 / (2 tau)."
    h = torch.tensor([4.9, 5.0, 5.1], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(h)
    loss = ipo_loss(h, zero, zero, zero, tau=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    assert loss[1] == 0 and gradient[0] < 0 and gradient[1] == 0 and gradient[2] > 0


def test_means_are_sums_with_another_tau_only_where_the_lengths_agree():
    """(h/n - 1/(2 tau))^2 = (h - 1/(2 tau/n))^2 / n^2: per-token tau is n times the sequence's.

    Unequal lengths can turn the sign.
    """
    logps = random_logps(50, torch.float64, 8)
    n = torch.full((50,), 16.0, dtype=torch.float64)
    means, sums = (
        ipo_loss(*logps, tau=0.1, chosen_lengths=n, rejected_lengths=n),
        ipo_loss(*logps, tau=0.1 / 16),
    )
    torch.testing.assert_close(means, sums / 16**2, rtol=1e-10, atol=1e-12)
    # by the sum the chosen answer leads ...
    gains = [torch.tensor([x], dtype=torch.float64) for x in (5.0, 4.0, 0.0, 0.0)]
    # ... per token the rejected one does
    lengths = by_name([torch.tensor([60]), torch.tensor([10])])
    start = 1 / (2 * 0.5) ** 2
    assert ipo_loss(*gains, tau=0.5).item() < start < ipo_loss(*gains, tau=0.5, **lengths).item()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-400, 0), min_size=4, max_size=4), st.floats(0.01, 2))
def test_swapping_the_answers_of_a_pair_costs_2_h_over_tau(values, tau):
    pc, pr, rc, rr = (torch.tensor([v], dtype=torch.float64) for v in values)
    difference = ipo_loss(pr, pc, rr, rc, tau=tau) - ipo_loss(pc, pr, rc, rr, tau=tau)
    torch.testing.assert_close(difference, 2 * ((pc - rc) - (pr - rr)) / tau, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("given, missing", [LENGTHS, LENGTHS[::-1]])
def test_one_length_without_the_other_is_refused_by_name(given, missing):
    with pytest.raises(ValueError, match=missing):
        ipo_loss(*[torch.zeros(2)] * 4, **{given: torch.ones(2)})
