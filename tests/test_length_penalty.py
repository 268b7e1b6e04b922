"""The length penalty: against exact rational arithmetic, by enumeration of everything a tiny model
can say, in closed form, and at its edges.
"""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from helpers.losses import (
    averages,
    finite_loss_and_gradients,
    input_dtypes,
    random_lengths,
    random_logps,
    refuses_wrong_shapes,
    runs_without_reading_values,
    token_counts,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit.losses import length_penalty, sft_length_loss, sft_loss


def examples(n, k, dtype, seed):
    """Log-probs and lengths of n demonstrations and of k samples for each, some longer and some
    shorter than theirs.
    """
    logps, lengths = random_logps(n, torch.float64, seed)[0], random_lengths(n, seed)[0]
    generator = torch.Generator().manual_seed(seed + 11)
    sampled_lengths = (
        1 + 2 * lengths[:, None] * torch.rand(n, k, generator=generator, dtype=torch.float64)
    ).floor()
    sampled_logps = (
        -4 * sampled_lengths * torch.rand(n, k, generator=generator, dtype=torch.float64)
    )
    return logps.to(dtype), lengths, sampled_logps.to(dtype), sampled_lengths


def rational(logp, length, sampled_logps, sampled_lengths, lam):
    """One example in fractions, the others' mean taken literally: value, derivative by the
    demonstration, derivatives by the samples.
    """
    logp, length, lam = Fraction(logp), Fraction(length), Fraction(lam)
    costs = [lam * max(Fraction(0), Fraction(n) - length) ** 2 for n in sampled_lengths]
    k, slopes = len(costs), []
    for i, cost in enumerate(costs):
        others = costs[:i] + costs[i + 1 :]
        slopes.append((cost - (sum(others) / len(others) if others else 0)) / k)
    return (
        -logp / length + sum(a * Fraction(x) for a, x in zip(slopes, sampled_logps)),
        -1 / length,
        slopes,
    )


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_value_and_gradient_equal_rational_arithmetic_on_300_random_batches(dtype, rtol):
    for seed in range(300):
        k, lam = 1 + seed % 5, (1e-3, 0.5, 0.0)[seed % 3]
        logps, lengths, sampled_logps, sampled_lengths = examples(4, k, dtype, seed)
        wanted = [
            rational(*row, lam)
            for row in zip(
                logps.tolist(), lengths.tolist(), sampled_logps.tolist(), sampled_lengths.tolist()
            )
        ]
        logps.requires_grad_()
        sampled_logps.requires_grad_()
        counts = (
            (lengths.long(), sampled_lengths.long())
            if seed % 2
            else (lengths.to(dtype), sampled_lengths.to(dtype))
        )
        loss = sft_length_loss(logps, counts[0], sampled_logps, counts[1], lam=lam)
        gradients = torch.autograd.grad(loss.sum(), (logps, sampled_logps))
        assert loss.dtype == dtype and loss.shape == (4,)
        for ours, theirs in zip((loss, *gradients), zip(*wanted)):
            theirs = torch.tensor(
                [[float(y) for y in x] if isinstance(x, list) else float(x) for x in theirs],
                dtype=torch.float64,
            )
            torch.testing.assert_close(
                ours.detach().double(), theirs, rtol=rtol, atol=rtol * float(theirs.abs().max())
            )


def test_the_penalty_alone_equals_rational_arithmetic():
    torch.manual_seed(0)
    sampled, reference = torch.randint(1, 600, (2, 2000))
    for lam in (1e-3, 0.0, 7.0):
        wanted = [
            float(Fraction(lam) * max(0, n - m) ** 2)
            for n, m in zip(sampled.tolist(), reference.tolist())
        ]
        torch.testing.assert_close(
            length_penalty(sampled.double(), reference, lam=lam),
            torch.tensor(wanted, dtype=torch.float64),
            rtol=1e-12,
            atol=0,
        )
        torch.testing.assert_close(
            length_penalty(sampled, reference, lam=lam), torch.tensor(wanted), rtol=1e-6, atol=0
        )
    assert length_penalty(
        torch.tensor([5, 10, 13]), torch.tensor([10, 10, 10])
    ).tolist() == pytest.approx([0, 0, 0.009])


END, CAP = 2, 3  # a vocabulary of two words and the end; at most three tokens


def everything(theta):
    """Each answer that the tiny model can give: log-prob (differentiable), number of tokens. theta:
    (1 + 2 + 4, 3) logits by history.
    """
    histories = [h for n in range(CAP) for h in itertools.product(range(END), repeat=n)]
    table = dict(zip(histories, theta.log_softmax(-1)))
    # ended, and cut off
    answers = [(*h, END) for h in histories] + list(itertools.product(range(END), repeat=CAP))
    logps = torch.stack([sum(table[a[:i]][token] for i, token in enumerate(a)) for a in answers])
    return logps, torch.tensor([len(a) for a in answers])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_expected_gradient_is_exact_by_enumeration_of_all_k_tuples(k):
    torch.manual_seed(k)
    theta = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    lam, demonstration = 0.3, 0  # the answer that ends at once: one token
    logps, counts = everything(theta)
    assert len(logps) == 15 and torch.isclose(
        logps.exp().sum(), torch.tensor(1.0, dtype=torch.float64)
    )
    cost = lam * (counts - 1).double() ** 2  # against a reference of one token
    exact = logps.exp() @ cost
    (wanted,) = torch.autograd.grad(-logps[demonstration] + exact, theta, retain_graph=True)
    tuples = torch.tensor(list(itertools.product(range(15), repeat=k)))
    chance = logps.detach()[tuples].sum(-1).exp()
    n = len(tuples)
    loss = sft_length_loss(
        logps[demonstration].expand(n), torch.ones(n), logps[tuples], counts[tuples], lam=lam
    )
    (ours,) = torch.autograd.grad((chance * loss).sum(), theta)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)


def test_enumeration_tells_a_baseline_with_the_own_sample_apart():
    """The mean over all k costs, own one included, shrinks the penalty's gradient to (k - 1)/k: the
    test above would see it.
    """
    torch.manual_seed(2)
    theta = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    logps, counts = everything(theta)
    cost = (counts - 1).double() ** 2
    pairs = torch.tensor(list(itertools.product(range(15), repeat=2)))
    chance, costs = logps.detach()[pairs].sum(-1).exp(), cost[pairs]
    (biased,) = torch.autograd.grad(
        (chance * ((costs - costs.mean(-1, keepdim=True)) * logps[pairs]).mean(-1)).sum(),
        theta,
        retain_graph=True,
    )
    (exact,) = torch.autograd.grad(logps.exp() @ cost, theta)
    torch.testing.assert_close(biased, exact / 2, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stop_logit, reference", [(-2.0, 4), (0.5, 1), (-1.0, 12)])
def test_geometric_lengths_in_closed_form(stop_logit, reference):
    """Stop with probability p = sigmoid(theta) at each step: E[cost] = lam (1-p)^r (2-p)/p^2, its
    derivative by hand.
    """
    lam, p = 0.01, 1 / (1 + math.exp(-stop_logit))
    value = lam * (1 - p) ** reference * (2 - p) / p**2
    slope = value * (-reference / (1 - p) - 1 / (2 - p) - 2 / p) * p * (1 - p)
    theta = torch.tensor(stop_logit, dtype=torch.float64, requires_grad=True)
    counts = torch.arange(1, 601)
    logps = torch.nn.functional.logsigmoid(theta) + (counts - 1) * torch.nn.functional.logsigmoid(
        -theta
    )
    chance, r = logps.detach().exp(), torch.full((600,), reference)
    assert math.isclose((chance * length_penalty(counts, r, lam=lam)).sum(), value, rel_tol=1e-6)
    loss = sft_length_loss(
        torch.zeros(600, dtype=torch.float64), r, logps[:, None], counts[:, None], lam=lam
    )
    (gradient,) = torch.autograd.grad((chance * loss).sum(), theta)
    assert math.isclose(gradient, slope, rel_tol=1e-9)


def test_added_as_printed_the_penalty_changes_the_loss_and_not_the_gradient():
    logps = torch.tensor([-30.0, -12.0], requires_grad=True)
    lengths, sampled = (
        torch.tensor([10.0, 5.0], requires_grad=True),
        torch.tensor([40.0, 90.0], requires_grad=True),
    )
    cost = length_penalty(sampled, lengths)
    assert not cost.requires_grad and (cost > 0).all()
    plain = sft_loss(logps, lengths=lengths.detach())
    for loss in (plain, plain + cost):
        torch.testing.assert_close(
            torch.autograd.grad(loss.sum(), logps, retain_graph=True)[0], torch.tensor([-0.1, -0.2])
        )
    assert (plain + cost > plain).all()


def test_without_excess_or_price_it_is_sft_and_equal_samples_say_nothing():
    logps, lengths, sampled_logps, sampled_lengths = examples(20, 4, torch.float64, 3)
    plain = sft_loss(logps, lengths=lengths)
    sampled_logps.requires_grad_()
    for counts, lam in (
        (sampled_lengths, 0.0),
        (torch.minimum(sampled_lengths, lengths[:, None]), 1.0),
        (lengths[:, None].expand(-1, 4) + 50, 1.0),
    ):
        loss = sft_length_loss(logps, lengths, sampled_logps, counts, lam=lam)
        torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
        assert torch.autograd.grad(loss.sum(), sampled_logps)[0].abs().max() == 0
    # k = 1: no baseline, so it does push
    alone = sft_length_loss(logps, lengths, sampled_logps[:, :1], lengths[:, None] + 10, lam=1.0)
    torch.testing.assert_close(
        torch.autograd.grad(alone.sum(), sampled_logps)[0][:, 0],
        torch.full((20,), 100.0, dtype=torch.float64),
    )


def test_advantages_of_a_prompt_add_up_to_zero_and_the_longest_is_pushed_down():
    logps, lengths, sampled_logps, _ = examples(6, 3, torch.float64, 5)
    sampled_logps.requires_grad_()
    counts = lengths[:, None] + torch.tensor([0.0, 10.0, 30.0])
    (slope,) = torch.autograd.grad(
        sft_length_loss(logps, lengths, sampled_logps, counts).sum(), sampled_logps
    )
    torch.testing.assert_close(
        slope.sum(-1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert (slope[:, 2] > 0).all() and (slope[:, 0] < 0).all()  # descent: minus the slope


def test_gradient_passes_gradcheck():
    logps, lengths, sampled_logps, sampled_lengths = examples(5, 3, torch.float64, 8)
    assert torch.autograd.gradcheck(
        lambda x, y: sft_length_loss(x, lengths, y, sampled_lengths),
        (logps.requires_grad_(), sampled_logps.requires_grad_()),
    )


def test_no_gradient_through_the_sampled_lengths():
    logps, lengths, sampled_logps, sampled_lengths = examples(5, 3, torch.float64, 8)
    sampled_lengths.requires_grad_()
    sampled_logps.requires_grad_()
    loss = sft_length_loss(logps, lengths, sampled_logps, sampled_lengths).sum()
    assert torch.autograd.grad(loss, (sampled_logps, sampled_lengths), allow_unused=True)[1] is None


def looped(logps, lengths, sampled_logps, sampled_lengths, lam):
    "The report's Eq. 4 for each example, with Eq. 2's sum: the NLL of the whole demonstration."
    losses = []
    for row, length in enumerate(lengths.tolist()):
        costs = [lam * max(0.0, n - length) ** 2 for n in sampled_lengths[row].tolist()]
        total = -logps[row]
        for i, cost in enumerate(costs):
            others = costs[:i] + costs[i + 1 :]
            baseline = sum(others) / len(others) if others else 0.0
            total = total + (cost - baseline) * sampled_logps[row, i] / len(costs)
        losses.append(total)
    return torch.stack(losses)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_sum_over_tokens_equals_a_loop_in_value_and_gradient(k):
    logps, lengths, sampled_logps, counts = examples(16, k, torch.float64, 20 + k)
    given = logps.requires_grad_(), sampled_logps.requires_grad_()
    summed = sft_length_loss(logps, lengths, sampled_logps, counts, lam=0.02, per_token=False)
    wanted = looped(logps, lengths, sampled_logps, counts, 0.02)
    torch.testing.assert_close(summed, wanted, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(summed.sum(), given), torch.autograd.grad(wanted.sum(), given)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    # a demonstration of n tokens: n times the mean-token loss at an n-th of the price
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        mean = sft_length_loss(
            logps[one], lengths[one], sampled_logps[one], counts[one], lam=0.02 / length
        )
        torch.testing.assert_close(summed[one], length * mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", ["no", 0, None])
def test_whether_tokens_are_summed_is_true_or_false(value):
    with pytest.raises(ValueError, match="per_token must be True or False"):
        sft_length_loss(*[torch.ones(2)] * 2, *[torch.ones(2, 1)] * 2, per_token=value)


@settings(max_examples=200, deadline=None)
@given(
    averages,
    averages,
    token_counts,
    token_counts,
    input_dtypes,
    st.sampled_from([0.0, 1e-3, 10.0]),
    st.integers(1, 4),
)
@example(-50.0, -50.0, 1, 8192, torch.float32, 10.0, 1)
@example(0.0, 0.0, 8192, 8192, torch.bfloat16, 10.0, 4)
def test_loss_and_gradient_are_finite_at_the_edges(
    mean, sampled_mean, length, sampled_length, dtype, lam, k
):
    logps = torch.tensor([mean * length], dtype=dtype, requires_grad=True)
    sampled_logps = torch.full(
        (1, k), sampled_mean * sampled_length, dtype=dtype, requires_grad=True
    )
    counts = torch.tensor([[sampled_length, 1, 8192, 77][:k]])
    finite_loss_and_gradients(
        lambda x, y: sft_length_loss(x, torch.tensor([length]), y, counts, lam=lam),
        [logps, sampled_logps],
    )


def test_low_precision_is_computed_in_float32():
    logps, lengths, sampled_logps, sampled_lengths = examples(30, 2, torch.bfloat16, 6)
    ours = sft_length_loss(logps, lengths.long(), sampled_logps, sampled_lengths.long())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours,
        sft_length_loss(
            logps.float(), lengths.float(), sampled_logps.float(), sampled_lengths.float()
        ),
        rtol=0,
        atol=0,
    )
    assert length_penalty(torch.tensor([5]), torch.tensor([3])).dtype == torch.float32


def test_wrong_shape_is_refused_by_name():
    refuses_wrong_shapes(length_penalty, ("sampled_lengths", "reference_lengths"))
    refuses_wrong_shapes(
        lambda policy_logps, lengths: sft_length_loss(
            policy_logps, lengths, torch.ones(3, 2), torch.ones(3, 2)
        ),
        ("policy_logps", "lengths"),
    )
    names, good = (
        ("policy_logps", "lengths", "sampled_logps", "sampled_lengths"),
        [torch.ones(3), torch.ones(3), torch.ones(3, 2), torch.ones(3, 2)],
    )
    for place in (2, 3):
        for bad in (
            torch.ones(3),
            torch.ones(2, 2),
            torch.ones(3, 0),
            torch.ones(3, 2, 1),
            torch.ones(()),
        ):
            with pytest.raises(ValueError, match=names[place]):
                sft_length_loss(*[bad if i == place else x for i, x in enumerate(good)])
    # would broadcast
    with pytest.raises(ValueError, match="sampled_lengths"):
        sft_length_loss(*good[:3], torch.ones(3, 1))


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, "0.1", None, True])
def test_price_out_of_range_is_refused_by_name(value):
    with pytest.raises(ValueError, match="lam"):
        length_penalty(torch.ones(2), torch.ones(2), lam=value)
    with pytest.raises(ValueError, match="lam"):
        sft_length_loss(torch.ones(2), torch.ones(2), torch.ones(2, 1), torch.ones(2, 1), lam=value)


def test_price_is_keyword_only():
    with pytest.raises(TypeError):
        length_penalty(torch.ones(2), torch.ones(2), 0.1)
    with pytest.raises(TypeError):
        sft_length_loss(torch.ones(2), torch.ones(2), torch.ones(2, 1), torch.ones(2, 1), 0.1)


def test_values_are_never_looked_at():
    runs_without_reading_values(length_penalty, ("sampled_lengths", "reference_lengths"))
    runs_without_reading_values(
        lambda x, n: sft_length_loss(
            x,
            n,
            torch.zeros(4, 3, device="meta"),
            torch.zeros(4, 3, device="meta", dtype=torch.long),
        ),
        ("a", "b"),
    )
    # not hidden
    assert (
        sft_length_loss(
            torch.full((1,), math.nan), torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2)
        )
        .isnan()
        .all()
    )
