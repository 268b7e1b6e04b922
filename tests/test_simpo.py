"""The SimPO loss: against TRL's own code, the formula in 50 digits, autograd, and at its edges."""

import math, os, types
from decimal import Decimal, localcontext

import pytest, torch
from hypothesis import example, given, settings, strategies as st

from loss_checks import (
    averages,
    finite_loss_and_gradients,
    input_dtypes,
    random_lengths,
    random_logps,
    refuses_wrong_shapes,
    runs_without_reading_values,
    token_counts,
)
from prefkit.losses import simpo_loss

ARGUMENTS = ("policy_chosen_logps", "policy_rejected_logps", "chosen_lengths", "rejected_lengths")
# (beta, gamma), among them some of the paper's
SETTINGS = ((2.0, 1.0), (2.5, 0.3), (2.0, 0.0), (10.0, 5.0))


def random_batch(n, dtype, seed):
    "Policy sums of both answers and their lengths, as training sees them."
    return [*random_logps(n, dtype, seed)[:2], *(x.to(dtype) for x in random_lengths(n, seed))]


def trl_simpo(beta, gamma):
    "TRL 1.16's own SimPO: a branch of `CPOTrainer.cpo_loss`, which wants per-token means."
    trl = pytest.importorskip(
        "trl", reason="TRL, the outside oracle, is not installed (extra `dev`)"
    )
    if not trl.__version__.startswith("1.16."):
        pytest.skip(f"the oracle is pinned to TRL 1.16, found {trl.__version__}")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = object.__new__(CPOTrainer)
    trainer.alpha, trainer.loss_type, trainer.beta, trainer.simpo_gamma, trainer.label_smoothing = (
        0.0,
        "simpo",
        beta,
        gamma,
        0.0,
    )
    trainer.accelerator = types.SimpleNamespace(device=torch.device("cpu"))
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
        batch = random_batch(250, dtype, seed)
        for x in batch[:2]:
            x.requires_grad_()
        ours, theirs = simpo_loss(*batch, beta=beta, gamma=gamma), trl_simpo(beta, gamma)(*batch)
        assert ours.dtype == theirs.dtype == dtype and theirs.unique().numel() > 200
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
        for mine, other in zip(
            torch.autograd.grad(ours.sum(), batch[:2]), torch.autograd.grad(theirs.sum(), batch[:2])
        ):
            torch.testing.assert_close(mine, other, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_the_formula_in_50_digits_on_1000_random_pairs(dtype, rtol):
    for seed, (beta, gamma) in enumerate(SETTINGS):
        batch = random_batch(250, dtype, seed)
        for x in batch[:2]:
            x.requires_grad_()
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


@settings(max_examples=200, deadline=None)
@given(
    averages,
    averages,
    token_counts,
    token_counts,
    input_dtypes,
    st.sampled_from([0.1, 2.0, 10.0, 100.0]),
    st.sampled_from([0.0, 1.0, 20.0]),
)
@example(-50.0, 0.0, 8192, 8192, torch.float32, 100.0, 20.0)
@example(0.0, -50.0, 1, 8192, torch.bfloat16, 100.0, 0.0)
@example(0.0, 0.0, 1, 1, torch.bfloat16, 2.0, 1.0)
def test_loss_and_gradient_are_finite_at_the_edges(
    chosen_mean, rejected_mean, chosen_length, rejected_length, dtype, beta, gamma
):
    logps = [
        torch.tensor([m * n], dtype=dtype, requires_grad=True)
        for m, n in ((chosen_mean, chosen_length), (rejected_mean, rejected_length))
    ]
    lengths = [torch.tensor([n]) for n in (chosen_length, rejected_length)]
    assert (
        finite_loss_and_gradients(simpo_loss, [*logps, *lengths], beta=beta, gamma=gamma) >= 0
    ).all()


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


def test_bfloat16_input_is_computed_in_float32_and_integer_lengths_will_do():
    pc, pr, nc, nr = random_batch(50, torch.bfloat16, 5)
    floats = simpo_loss(pc.float(), pr.float(), nc.float(), nr.float())
    torch.testing.assert_close(simpo_loss(pc, pr, nc.long(), nr.long()), floats, rtol=0, atol=0)


def test_loss_is_one_number_per_pair_and_not_reduced():
    batch = random_batch(6, torch.float32, 6)
    whole = simpo_loss(*batch)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], simpo_loss(*(x[2:3] for x in batch)))


def test_wrong_shape_is_refused_by_name():
    refuses_wrong_shapes(simpo_loss, ARGUMENTS)


def test_a_missing_length_is_refused():
    with pytest.raises(TypeError, match="lengths"):
        simpo_loss(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    "name, value",
    [
        ("beta", 0.0),
        ("beta", -2.0),
        ("beta", math.inf),
        ("beta", math.nan),
        ("beta", "2"),
        ("beta", True),
        ("gamma", -0.1),
        ("gamma", math.inf),
        ("gamma", math.nan),
        ("gamma", None),
        ("gamma", True),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        simpo_loss(*[torch.ones(2)] * 4, **{name: value})


def test_hyperparameters_are_keyword_only():
    with pytest.raises(TypeError):
        simpo_loss(*[torch.ones(2)] * 4, 2.0)


def test_values_are_never_looked_at():
    runs_without_reading_values(simpo_loss, ARGUMENTS)
    # not hidden either: the trainer watches for it
    assert simpo_loss(*[torch.full((1,), math.nan)] * 4).isnan().all()
