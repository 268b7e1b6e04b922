"""The MinorDPO loss: against a transcription in NumPy and TRL's DPO of capped answers, autograd,
finite differences, at its kink and edges.
"""

import math

import numpy, pytest, torch
from hypothesis import example, given, settings, strategies as st

from loss_checks import (
    PAIRS,
    averages,
    finite_loss_and_gradients,
    input_dtypes,
    random_logps,
    refuses_wrong_shapes,
    runs_without_reading_values,
    token_counts,
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
    below = above = 0
    for seed in range(1000):
        beta = BETAS[seed % len(BETAS)]
        logps = random_logps(1 + seed % 8, dtype, seed)
        for x in logps[:2]:
            x.requires_grad_()
        loss = minor_dpo_loss(*logps, beta=beta)
        gradients = torch.autograd.grad(loss.sum(), logps[:2])
        numbers = [x.detach().double().numpy() for x in logps]
        for ours, theirs in zip((loss.detach(), *gradients), transcription(*numbers, beta=beta)):
            torch.testing.assert_close(
                ours.double(),
                torch.from_numpy(theirs),
                rtol=rtol,
                atol=1e-300 if dtype == torch.float64 else 1e-35,
            )
        below, above = (
            below + (numbers[1] < numbers[3]).sum(),
            above + (numbers[1] > numbers[3]).sum(),
        )
    assert min(below, above) > 1000  # both sides of the kink were visited


@pytest.mark.parametrize("beta", BETAS)
def test_equals_trls_dpo_of_rejected_answers_that_never_fall_below_the_reference(beta):
    pc, pr, rc, rr = random_logps(64, torch.float64, 1)
    for x in (pc, pr):
        x.requires_grad_()
    theirs = trl_loss(trl_trainer(beta=beta), pc, torch.where(pr > rr, pr, rr), rc, rr)
    ours = minor_dpo_loss(pc, pr, rc, rr, beta=beta).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    for mine, other in zip(
        torch.autograd.grad(ours, (pc, pr)), torch.autograd.grad(theirs, (pc, pr))
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-300)


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


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(averages, averages, averages, averages),
    token_counts,
    token_counts,
    input_dtypes,
    st.sampled_from([0.01, 0.1, 1.0, 10.0]),
)
@example((-50.0, 0.0, 0.0, -50.0), 8192, 8192, torch.float32, 10.0)
@example((0.0, -50.0, -50.0, 0.0), 8192, 8192, torch.bfloat16, 10.0)
def test_loss_and_gradient_are_finite_at_the_edges(
    mean_logps, chosen_length, rejected_length, dtype, beta
):
    lengths = (chosen_length, rejected_length, chosen_length, rejected_length)
    logps = [
        torch.tensor([m * n], dtype=dtype, requires_grad=True) for m, n in zip(mean_logps, lengths)
    ]
    assert (finite_loss_and_gradients(minor_dpo_loss, logps, beta=beta) >= 0).all()


def test_bfloat16_input_is_computed_in_float32():
    logps = random_logps(50, torch.bfloat16, 5)
    torch.testing.assert_close(
        minor_dpo_loss(*logps), minor_dpo_loss(*(x.float() for x in logps)), rtol=0, atol=0
    )


def test_the_default_beta():
    logps = random_logps(20, torch.float64, 8)
    assert torch.equal(minor_dpo_loss(*logps), minor_dpo_loss(*logps, beta=0.1))


def test_loss_is_one_number_per_pair_and_not_reduced():
    logps = random_logps(6, torch.float32, 6)
    whole = minor_dpo_loss(*logps)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], minor_dpo_loss(*(x[2:3] for x in logps)))


def test_wrong_shape_is_refused_by_name():
    refuses_wrong_shapes(minor_dpo_loss, PAIRS)


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan, "0.1", True, None])
def test_hyperparameter_out_of_range_is_refused_by_name(value):
    with pytest.raises(ValueError, match="beta"):
        minor_dpo_loss(*[torch.zeros(2)] * 4, beta=value)


def test_hyperparameters_are_keyword_only():
    with pytest.raises(TypeError):
        minor_dpo_loss(*[torch.zeros(2)] * 4, 0.1)


def test_values_are_never_looked_at():
    runs_without_reading_values(minor_dpo_loss, PAIRS)
    # not hidden either: the trainer watches for it
    assert minor_dpo_loss(*[torch.full((1,), math.nan)] * 4).isnan().all()
