"""The DPOP loss: against a transcription in NumPy and TRL's DPO with the penalty folded in,
autograd, finite differences, at its kink and edges.
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
    below = above = 0
    for seed in range(1000):
        beta, lam = SETTINGS[seed % len(SETTINGS)]
        logps = random_logps(1 + seed % 8, dtype, seed)
        for x in logps[:2]:
            x.requires_grad_()
        loss = dpop_loss(*logps, beta=beta, lam=lam)
        gradients = torch.autograd.grad(loss.sum(), logps[:2])
        numbers = [x.detach().double().numpy() for x in logps]
        for ours, theirs in zip(
            (loss.detach(), *gradients), transcription(*numbers, beta=beta, lam=lam)
        ):
            torch.testing.assert_close(
                ours.double(),
                torch.from_numpy(theirs),
                rtol=rtol,
                atol=1e-300 if dtype == torch.float64 else 1e-35,
            )
        below, above = (
            below + (numbers[0] < numbers[2]).sum(),
            above + (numbers[0] > numbers[2]).sum(),
        )
    assert min(below, above) > 1000  # both sides of the kink were visited


@pytest.mark.parametrize("beta, lam", SETTINGS)
def test_equals_trls_dpo_of_a_chosen_answer_that_has_paid_the_penalty(beta, lam):
    pc, pr, rc, rr = random_logps(64, torch.float64, 1)
    for x in (pc, pr):
        x.requires_grad_()
    zero = torch.zeros_like(rc)
    paid = (pc - rc) - lam * torch.where(pc < rc, rc - pc, zero)
    theirs = trl_loss(trl_trainer(beta=beta), paid, pr - rr, zero, zero)
    ours = dpop_loss(pc, pr, rc, rr, beta=beta, lam=lam).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    for mine, other in zip(
        torch.autograd.grad(ours, (pc, pr)), torch.autograd.grad(theirs, (pc, pr))
    ):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-300)


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


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(averages, averages, averages, averages),
    token_counts,
    token_counts,
    input_dtypes,
    st.sampled_from([0.01, 0.3, 10.0]),
    st.sampled_from([0.0, 50.0, 500.0]),
)
@example((-50.0, 0.0, 0.0, -50.0), 8192, 8192, torch.float32, 10.0, 500.0)
@example((0.0, -50.0, -50.0, 0.0), 8192, 8192, torch.bfloat16, 10.0, 50.0)
def test_loss_and_gradient_are_finite_at_the_edges(
    mean_logps, chosen_length, rejected_length, dtype, beta, lam
):
    lengths = (chosen_length, rejected_length, chosen_length, rejected_length)
    logps = [
        torch.tensor([m * n], dtype=dtype, requires_grad=True) for m, n in zip(mean_logps, lengths)
    ]
    assert (finite_loss_and_gradients(dpop_loss, logps, beta=beta, lam=lam) >= 0).all()


def test_bfloat16_input_is_computed_in_float32():
    logps = random_logps(50, torch.bfloat16, 5)
    torch.testing.assert_close(
        dpop_loss(*logps), dpop_loss(*(x.float() for x in logps)), rtol=0, atol=0
    )


def test_defaults_are_those_of_the_papers():
    logps = random_logps(20, torch.float64, 8)
    assert torch.equal(dpop_loss(*logps), dpop_loss(*logps, beta=0.3, lam=50.0))


def test_loss_is_one_number_per_pair_and_not_reduced():
    logps = random_logps(6, torch.float32, 6)
    whole = dpop_loss(*logps)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], dpop_loss(*(x[2:3] for x in logps)))


def test_wrong_shape_is_refused_by_name():
    refuses_wrong_shapes(dpop_loss, PAIRS)


@pytest.mark.parametrize(
    "name, value",
    [
        ("beta", 0.0),
        ("beta", -0.1),
        ("beta", math.inf),
        ("beta", math.nan),
        ("beta", "0.1"),
        ("beta", True),
        ("beta", None),
        ("lam", -1.0),
        ("lam", math.inf),
        ("lam", math.nan),
        ("lam", "50"),
        ("lam", None),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        dpop_loss(*[torch.zeros(2)] * 4, **{name: value})


def test_hyperparameters_are_keyword_only():
    with pytest.raises(TypeError):
        dpop_loss(*[torch.zeros(2)] * 4, 0.1)


def test_values_are_never_looked_at():
    runs_without_reading_values(dpop_loss, PAIRS)
    # not hidden either: the trainer watches for it
    assert dpop_loss(*[torch.full((1,), math.nan)] * 4).isnan().all()
