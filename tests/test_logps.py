"""Token and sequence log-probs: against loops in float64, other libraries, and the laws of
probability.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.model.logps import (
    response_lengths,
    sequence_logps,
    token_logps,
)


def random_batch(seed, dtype=torch.float64, batch=3, length=9, vocabulary=11):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, length, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (batch, length), generator=generator)
    hidden = torch.rand(batch, length, generator=generator) < 0.4
    return logits.to(dtype), labels.masked_fill(hidden, -100)


def by_loop(logits, labels):
    "The definition, one token at a time, with Python's floats."
    rows = []
    for scores, row in zip(logits.double().tolist(), labels.tolist()):
        rows.append(
            [
                0.0
                if token == -100
                else scores[t][token]
                - max(scores[t])
                - math.log(math.fsum(math.exp(s - max(scores[t])) for s in scores[t]))
                for t, token in enumerate(row[1:])
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_token_logps_are_the_definition(seed):
    logits, labels = random_batch(seed)
    torch.testing.assert_close(
        token_logps(logits, labels), by_loop(logits, labels), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_trl(dtype, rtol):
    utils = pytest.importorskip(
        "trl.trainer.utils", reason="TRL, the outside oracle, is not installed (extra `dev`)"
    )
    logits, labels = random_batch(0, dtype)
    labels = labels.clamp(min=0)  # TRL's function knows no ignored label
    theirs = utils.selective_log_softmax(logits[:, :-1], labels[:, 1:])
    torch.testing.assert_close(
        token_logps(logits, labels),
        theirs,
        rtol=rtol,
        atol=1e-6 if dtype == torch.float32 else 1e-12,
    )


def test_sum_is_minus_the_cross_entropy_of_the_whole_batch():
    logits, labels = random_batch(1)
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(-sequence_logps(logits, labels).sum(), total)


def test_probabilities_of_all_answers_add_up_to_one():
    # scores given the last token
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    texts = torch.tensor([[2, *answer] for answer in itertools.product(range(5), repeat=4)])
    labels = texts.clone()
    labels[:, 0] = -100
    torch.testing.assert_close(
        sequence_logps(table[texts], labels).exp().sum(), torch.tensor(1.0, dtype=torch.float64)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_padding_on_the_right_changes_nothing(seed, extra):
    logits, labels = random_batch(seed)
    noise = 1e4 * torch.randn(3, extra, 11, dtype=torch.float64)
    padded = torch.cat([logits, noise], 1), F.pad(labels, (0, extra), value=-100)
    torch.testing.assert_close(sequence_logps(*padded), sequence_logps(logits, labels))
    assert torch.equal(response_lengths(padded[1]), response_lengths(labels))


def test_first_label_never_counts_and_is_not_counted():
    "Nothing predicts the first token: it must be left out of the sum and of the length alike."
    logits, labels = random_batch(2)
    labels[:, 0] = 3
    hidden = labels.clone()
    hidden[:, 0] = -100
    assert torch.equal(sequence_logps(logits, labels), sequence_logps(logits, hidden))
    assert torch.equal(response_lengths(labels), response_lengths(hidden))
    assert torch.equal(response_lengths(labels), (token_logps(logits, labels) != 0).sum(-1))


def test_shift_scores_the_next_token():
    logits = 50.0 * F.one_hot(torch.tensor([[1, 2, 3, 0]]), 5).float()  # sure that 1, 2, 3 follow
    sure, wrong = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1, 2, 3, 0]])
    assert (
        sequence_logps(logits, sure).item() > -1e-3 and sequence_logps(logits, wrong).item() < -100
    )


def test_gradient_passes_gradcheck_and_is_one_hot_minus_softmax():
    logits, labels = random_batch(3)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sequence_logps(x, labels), logits)
    (gradient,) = torch.autograd.grad(sequence_logps(logits, labels).sum(), logits)
    scored = (labels[:, 1:] != -100)[..., None]
    expected = torch.where(
        scored, F.one_hot(labels[:, 1:].clamp(min=0), 11) - logits.detach()[:, :-1].softmax(-1), 0.0
    )
    torch.testing.assert_close(gradient[:, :-1], expected)
    assert (gradient[:, -1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_scores_are_lifted_before_the_softmax(dtype):
    logits, labels = random_batch(4, dtype, length=200, vocabulary=1000)
    result = sequence_logps(logits, labels)
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result.double(), sequence_logps(logits.double(), labels), rtol=1e-5, atol=1e-3
    )


def test_huge_scores_stay_finite():
    logits = torch.tensor([[[1e30, -1e30, 0.0], [3e38, 3e38, -3e38]]])
    labels = torch.tensor([[0, 0]])
    result = sequence_logps(logits.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(result.sum(), logits)
    assert result.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize(
    "logits, labels, name",
    [
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), "logits"),
        (torch.zeros(2, 3, 5), torch.zeros(2, 2, dtype=torch.long), "labels"),
        (torch.zeros(2, 3, 5), torch.zeros(2, dtype=torch.long), "labels"),
    ],
)
def test_wrong_shape_is_refused_by_name(logits, labels, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        token_logps(logits, labels)
