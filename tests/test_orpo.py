"""ORPO and its probability-ratio ablation: against TRL's own code, a transcription in
probabilities, autograd, and at the edges.
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
    pinned_trl,
    random_lengths,
    random_logps,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.losses import log_odds_ratio, orpo_loss, probability_ratio_loss

LOSSES = (orpo_loss, probability_ratio_loss)
EDGES = (0.0, -1e-12, -1e-8, -1e-6, -1e-4, -math.log(2), -20.0, -50.0)
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def random_pairs(n, dtype, seed, requires_grad=False):
    """Sums and lengths of n pairs, averages at most -0.001 (where the oracles hold); the lengths
    whole numbers, as the trainer has them.
    """
    lengths = [x.long() for x in random_lengths(n, seed)]
    sums = [
        torch.minimum(x, -1e-3 * length)
        for x, length in zip(random_logps(n, torch.float64, seed), lengths)
    ]
    return [x.to(dtype).requires_grad_(requires_grad) for x in sums] + lengths


def at_average(chosen, rejected, length=64, dtype=torch.float32):
    "One pair with given averages."
    logps = [
        torch.tensor([x * length], dtype=dtype, requires_grad=True) for x in (chosen, rejected)
    ]
    return logps + [torch.tensor([length])] * 2


def trl_orpo(lam=0.1):
    "TRL's ORPOTrainer with just what its loss reads, and its module."
    pinned_trl()
    from trl.experimental.orpo import orpo_trainer

    trainer = bare_trainer(
        orpo_trainer.ORPOTrainer, beta=lam, is_encoder_decoder=False, padding_value=0
    )
    return trainer, orpo_trainer


@pytest.mark.parametrize("dtype, rtol", PRECISIONS)
def test_equals_trl_on_1000_random_pairs_in_value_and_gradient(dtype, rtol, monkeypatch):
    """TRL casts to float32; for the float64 comparison that cast is made one to float64, its
    arithmetic being the same.
    """
    if dtype == torch.float64:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for seed, lam in enumerate((0.1, 0.5, 1.0, 0.25)):
        inputs = random_pairs(250, dtype, seed, requires_grad=True)
        pc, pr, nc, nr = inputs
        trainer, _ = trl_orpo(lam)
        # nll - losses, before TRL's mean over the batch
        theirs = -pc / nc - trainer.odds_ratio_loss(pc / nc, pr / nr)[0]
        assert theirs.dtype == dtype and theirs.detach().unique().numel() > 200
        ours = orpo_loss(*inputs, lam=lam)
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
        assert_equal_gradients(ours, theirs, inputs[:2], rtol=rtol, atol=0)


def transcription(pc, pr, nc, nr, lam, nll_weight, odds):
    """Equations 3 to 7 and 16 in probabilities, with numpy, and derivatives by the chain rule: -log
    s(log r) = log(1 + 1/r).
    """
    pc, pr, nc, nr = (x.detach().numpy().astype(np.longdouble) for x in (pc, pr, nc, nr))
    Pw, Pl = np.exp(pc / nc), np.exp(pr / nr)
    ratio = (Pw / (1 - Pw)) / (Pl / (1 - Pl)) if odds else Pw / Pl
    loss = -nll_weight * np.log(Pw) + lam * np.log1p(1 / ratio)
    delta = 1 / (1 + ratio)
    dw, dl = (
        (-lam * delta / (1 - Pw), lam * delta / (1 - Pl)) if odds else (-lam * delta, lam * delta)
    )
    return [torch.from_numpy(x.astype(np.float64)) for x in (loss, (dw - nll_weight) / nc, dl / nr)]


@pytest.mark.parametrize("dtype, rtol", PRECISIONS)
@pytest.mark.parametrize(
    "loss_function, odds", [(orpo_loss, True), (probability_ratio_loss, False)]
)
@pytest.mark.parametrize("nll_weight", [1.0, 0.0])
def test_equals_a_transcription_in_probabilities(loss_function, odds, nll_weight, dtype, rtol):
    inputs = random_pairs(1000, dtype, 11, requires_grad=True)
    ours = loss_function(*inputs, lam=0.3, nll_weight=nll_weight)
    loss, *gradients = transcription(*inputs, 0.3, nll_weight, odds)
    torch.testing.assert_close(ours.double(), loss, rtol=rtol, atol=0)
    for mine, other in zip(torch.autograd.grad(ours.sum(), inputs[:2]), gradients):
        torch.testing.assert_close(mine.double(), other, rtol=rtol, atol=0)


def test_the_log_odds_ratio_is_that_of_equation_5():
    inputs = random_pairs(1000, torch.float64, 12)
    Pw, Pl = (inputs[0] / inputs[2]).exp().numpy(), (inputs[1] / inputs[3]).exp().numpy()
    expected = np.log(Pw / (1 - Pw) / (Pl / (1 - Pl)))
    torch.testing.assert_close(
        log_odds_ratio(*inputs), torch.from_numpy(expected), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(
        orpo_loss(*inputs, lam=1.0, nll_weight=0.0),
        torch.from_numpy(np.log1p(np.exp(-expected))),
        rtol=1e-10,
        atol=0,
    )


@pytest.mark.parametrize("loss_function", LOSSES)
@pytest.mark.parametrize("nll_weight", [1.0, 0.0])
def test_gradient_passes_gradcheck_in_float64(loss_function, nll_weight):
    pc, pr, nc, nr = random_pairs(6, torch.float64, 1, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda pc, pr: loss_function(pc, pr, nc, nr, lam=0.7, nll_weight=nll_weight), (pc, pr)
    )


def test_the_gradient_is_minus_delta_times_h_where_equation_8_prints_plus():
    pc, pr = (-torch.rand(50, dtype=torch.float64) * 3 - 0.01 for _ in range(2))
    one = torch.ones(50)
    pc.requires_grad_()
    pr.requires_grad_()
    gradients = torch.autograd.grad(
        orpo_loss(pc, pr, one, one, lam=1.0, nll_weight=0.0).sum(), (pc, pr)
    )
    Pw, Pl = pc.detach().exp(), pr.detach().exp()
    delta = 1 / (1 + Pw / (1 - Pw) * (1 - Pl) / Pl)
    torch.testing.assert_close(gradients[0], -delta / (1 - Pw), rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients[1], +delta / (1 - Pl), rtol=1e-10, atol=0)
    # descent raises the chosen answer and lowers the rejected one
    assert (gradients[0] < 0).all() and (gradients[1] > 0).all()


def test_equation_29_lacks_a_minus_too():
    average = torch.linspace(-5, -0.01, 50, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((1 - average.exp()).log().sum(), average)
    odds = (average.exp() / (1 - average.exp())).detach()
    torch.testing.assert_close(gradient, -odds, rtol=1e-10, atol=0)


def test_the_amplifier_grows_with_the_probability():
    """1 / (1 - P): small for an unlikely answer, large for a likely one; the log odds' slope by
    autograd is it.
    """
    average = torch.linspace(-8, -1e-3, 400, dtype=torch.float64).requires_grad_()
    zero = torch.full((400,), -1.0, dtype=torch.float64)
    (slope,) = torch.autograd.grad(
        log_odds_ratio(average, zero, torch.ones(400), torch.ones(400)).sum(), average
    )
    assert (slope.diff() > 0).all() and slope[0] < 1.001 and slope[-1] > 900


@pytest.mark.parametrize("chosen", EDGES)
@pytest.mark.parametrize("rejected", EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_pair_of_edges_is_finite(chosen, rejected, dtype):
    for length in (1, 64, 8192):
        inputs = at_average(chosen, rejected, length, dtype)
        finite_loss_and_gradients(orpo_loss, inputs, lam=1.0)
        finite_loss_and_gradients(lambda *x: log_odds_ratio(*x), inputs)


def test_the_usual_log1mexp_has_nan_gradients_where_ours_has_none():
    """The branch of `where` that was not taken is differentiated all the same: 0 times infinity.

    TRL 1.16 has this form.
    """
    _, module = trl_orpo()
    for average in (-1e-8, 0.0):
        x = torch.tensor([average], requires_grad=True)
        assert torch.autograd.grad(module.log1mexp(x).sum(), x)[0].isnan().all()
        inputs = at_average(average, -1.0)
        gradients = torch.autograd.grad(orpo_loss(*inputs, lam=1.0).sum(), inputs[:2])
        assert all(g.isfinite().all() for g in gradients)


def test_averages_above_minus_one_millionth_count_as_that():
    lengths = torch.tensor([1, 1, 1], dtype=torch.long)
    chosen = torch.tensor([0.0, -1e-8, -1e-6], dtype=torch.float64, requires_grad=True)
    z = log_odds_ratio(
        chosen, torch.full((3,), -math.log(2), dtype=torch.float64), lengths, lengths
    )
    torch.testing.assert_close(
        z, torch.full((3,), math.log(1 / math.expm1(1e-6)), dtype=torch.float64), rtol=1e-9, atol=0
    )
    # the odds-ratio term asks for no more; the supervised term still does
    assert torch.autograd.grad(z.sum(), chosen)[0][:2].eq(0).all()


def test_the_supervised_term_is_sft_on_the_response_and_trl_adds_the_prompt():
    """TRL's `concatenated_forward` driven with given logits: its NLL covers prompt and response of
    the chosen answer, ours the response.
    """
    trainer, _ = trl_orpo()
    torch.manual_seed(0)
    ids = torch.randint(1, 11, (4, 9))  # two chosen rows, then two rejected; no padding
    labels = ids.masked_fill(torch.arange(9) < 5, -100)  # five prompt tokens, four response tokens
    logits = torch.randn(4, 9, 11)
    batch = {"chosen_labels": labels[:2]}
    trainer.concatenated_inputs = lambda *a, **k: {
        "concatenated_input_ids": ids,
        "concatenated_attention_mask": torch.ones_like(ids),
        "concatenated_labels": labels,
    }
    chosen, rejected, *_, nll = trainer.concatenated_forward(
        lambda *a, **k: types.SimpleNamespace(logits=logits), batch
    )
    token_logps = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    lengths = torch.tensor([4, 4])
    ours = orpo_loss(
        token_logps[:2, 4:].sum(1), token_logps[2:, 4:].sum(1), lengths, lengths, lam=0.0
    )
    torch.testing.assert_close(ours, -chosen)
    torch.testing.assert_close(nll, -token_logps[:2].mean())
    assert abs((nll - ours.mean()).item()) > 0.01


@pytest.mark.parametrize("loss_function", LOSSES)
def test_weights_scale_their_terms(loss_function):
    inputs = random_pairs(20, torch.float64, 5)
    nll, term = loss_function(*inputs, lam=0.0), loss_function(*inputs, lam=1.0, nll_weight=0.0)
    torch.testing.assert_close(nll, -inputs[0] / inputs[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        loss_function(*inputs, lam=0.4, nll_weight=0.7), 0.7 * nll + 0.4 * term, rtol=1e-12, atol=0
    )
    torch.testing.assert_close(loss_function(*inputs), nll + 0.1 * term, rtol=1e-12, atol=0)


@settings(max_examples=100, deadline=None)
@given(st.floats(-20, -1e-3), st.floats(-20, -1e-3))
def test_swapping_the_answers_turns_the_ratio_round(chosen, rejected):
    pc, pr, one = (torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected, 1.0))
    for loss_function, z in (
        (orpo_loss, log_odds_ratio(pc, pr, one, one)),
        (probability_ratio_loss, pc - pr),
    ):
        difference = loss_function(pr, pc, one, one, lam=1.0, nll_weight=0.0) - loss_function(
            pc, pr, one, one, lam=1.0, nll_weight=0.0
        )
        torch.testing.assert_close(difference, z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss_function", LOSSES)
def test_equal_averages_give_ln_2_whatever_the_lengths(loss_function):
    loss = loss_function(
        torch.tensor([-8.0]),
        torch.tensor([-32.0]),
        torch.tensor([4]),
        torch.tensor([16]),
        lam=1.0,
        nll_weight=0.0,
    )
    torch.testing.assert_close(loss, torch.tensor([math.log(2)]))
