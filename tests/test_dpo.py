"""The DPO loss: against TRL's own code, autograd, finite differences, and at its edges."""

import math

import pytest, torch
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
    logps = random_logps(64, dtype, 7)
    for x in logps[:2]:
        x.requires_grad_()
    ours, theirs = dpo_loss(*logps, beta=0.1).mean(), trl_loss(trl_trainer(beta=0.1), *logps)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
    for mine, other in zip(
        torch.autograd.grad(ours, logps[:2]), torch.autograd.grad(theirs, logps[:2])
    ):
        torch.testing.assert_close(mine, other, rtol=10 * rtol, atol=1e-12)


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


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(averages, averages, averages, averages),
    token_counts,
    token_counts,
    input_dtypes,
    st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    st.sampled_from([0.0, 0.1]),
)
@example((-50.0, 0.0, 0.0, -50.0), 8192, 8192, torch.float32, 10.0, 0.0)
@example((0.0, -50.0, -50.0, 0.0), 8192, 8192, torch.bfloat16, 10.0, 0.1)
def test_loss_and_gradient_are_finite_at_the_edges(
    mean_logps, chosen_length, rejected_length, dtype, beta, label_smoothing
):
    lengths = (chosen_length, rejected_length, chosen_length, rejected_length)
    logps = [
        torch.tensor([m * n], dtype=dtype, requires_grad=True) for m, n in zip(mean_logps, lengths)
    ]
    assert (
        finite_loss_and_gradients(dpo_loss, logps, beta=beta, label_smoothing=label_smoothing) >= 0
    ).all()


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


def test_bfloat16_input_is_computed_in_float32():
    logps = random_logps(50, torch.bfloat16, 5)
    torch.testing.assert_close(
        dpo_loss(*logps), dpo_loss(*(x.float() for x in logps)), rtol=0, atol=0
    )


def test_smoothed_loss_is_least_at_the_log_odds_of_its_smoothing():
    margin = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    zero = torch.zeros_like(margin)
    best = margin[dpo_loss(margin, zero, zero, zero, beta=1.0, label_smoothing=0.1).argmin()]
    assert abs(best.item() - math.log(0.9 / 0.1)) < 1e-3


def test_loss_is_one_number_per_pair_and_not_reduced():
    logps = random_logps(6, torch.float32, 6)
    whole = dpo_loss(*logps)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], dpo_loss(*(x[2:3] for x in logps)))


def test_wrong_shape_is_refused_by_name():
    refuses_wrong_shapes(dpo_loss, PAIRS)


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
        ("label_smoothing", -0.1),
        ("label_smoothing", 0.5),
        ("label_smoothing", math.nan),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        dpo_loss(*[torch.zeros(2)] * 4, **{name: value})


def test_hyperparameters_are_keyword_only():
    with pytest.raises(TypeError):
        dpo_loss(*[torch.zeros(2)] * 4, 0.1)


def test_values_are_never_looked_at():
    runs_without_reading_values(dpo_loss, PAIRS, label_smoothing=0.1)
    # not hidden either: the trainer watches for it
    assert dpo_loss(*[torch.full((1,), math.nan)] * 4).isnan().all()
