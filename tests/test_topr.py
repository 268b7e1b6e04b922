"""The TOPR loss: against a transcription in plain Python, autograd, finite differences, and at its
edges.
"""

import math

import pytest
import torch
from helpers.losses import (
    averages,
    finite_loss_and_gradients,
    input_dtypes,
    random_lengths,
    random_logps,
    token_counts,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit.losses import topr_loss, topr_weight
from prefkit.losses.topr import MAX_LOG_RATIO

CLIPS = [(0.0, 1.0), (0.1, 0.8), (1.0, 1.0), (0.0, 3.0), (0.0, 1e38)]


def answers(n, dtype, seed):
    """Policy and behaviour log-probs a few nats apart, rewards of both signs (some exactly 0, some
    +1 or -1), lengths.
    """
    policy, _, behaviour, _ = random_logps(n, torch.float64, seed)
    generator = torch.Generator().manual_seed(seed + 7)
    policy = (behaviour + 6 * torch.randn(n, generator=generator, dtype=torch.float64)).clamp(max=0)
    rewards = torch.randn(n, generator=generator, dtype=torch.float64)
    rewards[::4], rewards[1::4], rewards[2::16] = 1, -1, 0
    return [x.to(dtype) for x in (policy, behaviour, rewards)], random_lengths(n, seed)[0]


def transcription(policy, behaviour, reward, low, high, length=None):
    """Eq. 8 for one answer, in Python's floats: its loss, and its derivative with respect to the
    policy's log-prob.
    """
    difference = policy - behaviour
    # mu is the data's own distribution, so it is not multiplied in
    ratio = math.inf if difference > 700 else math.exp(difference)
    weight = 1.0 if reward >= 0 else low if ratio < low else high if ratio > high else ratio
    divisor = 1.0 if length is None else length
    return -weight * reward * policy / divisor, -weight * reward / divisor, weight


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("divide", [False, True])
def test_value_and_gradient_equal_a_transcription_on_1000_random_batches(dtype, rtol, divide):
    for seed in range(1000):
        low, high = CLIPS[seed % 5]
        (policy, behaviour, rewards), lengths = answers(4, dtype, seed)
        rows = zip(policy.tolist(), behaviour.tolist(), rewards.tolist(), lengths.tolist())
        wanted = [transcription(p, b, r, low, high, n if divide else None) for p, b, r, n in rows]
        policy.requires_grad_()
        loss = topr_loss(
            policy,
            behaviour,
            rewards,
            ratio_low=low,
            ratio_high=high,
            lengths=lengths.to(dtype) if divide else None,
        )
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        assert loss.dtype == dtype
        for ours, theirs in zip(
            (
                loss,
                gradient,
                topr_weight(policy, behaviour, rewards, ratio_low=low, ratio_high=high),
            ),
            zip(*wanted),
        ):
            torch.testing.assert_close(
                ours.detach().double(), torch.tensor(theirs, dtype=torch.float64), rtol=rtol, atol=0
            )


def test_the_oracle_meets_all_branches():
    (policy, behaviour, rewards), _ = answers(4000, torch.float64, 0)
    ratio = (policy - behaviour).exp()
    bad = rewards < 0
    assert (
        (rewards == 0).sum() > 50
        and (bad & (ratio > 1)).sum() > 500
        and (bad & (ratio < 0.1)).sum() > 500
        and (bad & (ratio < 1) & (ratio > 0.1)).sum() > 100
    )


@pytest.mark.parametrize("divide", [False, True])
def test_gradient_passes_gradcheck_with_the_weight_frozen(divide):
    "Finite differences would move the weight too, the gradient must not: so it is held."
    (policy, behaviour, rewards), lengths = answers(8, torch.float64, 3)
    policy.requires_grad_()
    lengths = lengths if divide else None
    weight = topr_weight(policy, behaviour, rewards)
    frozen = lambda x: -weight * rewards * x / (1 if lengths is None else lengths)
    assert torch.autograd.gradcheck(frozen, (policy,))
    (ours,) = torch.autograd.grad(
        topr_loss(policy, behaviour, rewards, lengths=lengths).sum(), policy
    )
    (theirs,) = torch.autograd.grad(frozen(policy).sum(), policy)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for value in (0.25, 1.0):  # low = high: a constant weight, and the exported loss itself passes
        assert torch.autograd.gradcheck(
            lambda x: topr_loss(
                x, behaviour, rewards, ratio_low=value, ratio_high=value, lengths=lengths
            ),
            (policy,),
        )


def test_gradient_is_that_of_a_bounded_objective_without_a_stop_gradient():
    """ratio for ratio <= 1, 1 + log ratio above: its derivative is min(ratio, 1) times that of the
    log-prob.
    """
    (policy, behaviour, rewards), _ = answers(200, torch.float64, 9)
    policy.requires_grad_()
    ratio = (policy - behaviour).exp()
    objective = rewards * torch.where(
        rewards >= 0, policy - behaviour, torch.where(ratio <= 1, ratio, 1 + policy - behaviour)
    )
    (theirs,) = torch.autograd.grad(-objective.sum(), policy)
    (ours,) = torch.autograd.grad(topr_loss(policy, behaviour, rewards).sum(), policy)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_the_weight_is_not_differentiated():
    (policy, behaviour, rewards), _ = answers(40, torch.float64, 4)
    for x in (policy, behaviour, rewards):
        x.requires_grad_()
    assert not topr_weight(policy, behaviour, rewards).requires_grad
    loss = topr_loss(policy, behaviour, rewards.detach()).sum()
    by_policy, by_behaviour = torch.autograd.grad(loss, (policy, behaviour), allow_unused=True)
    assert by_behaviour is None
    # what forgetting `detach` would give
    leaked = -((policy - behaviour).exp().clamp(0, 1) * rewards * policy)[rewards < 0].sum()
    assert not torch.allclose(
        torch.autograd.grad(leaked, policy)[0], torch.where(rewards < 0, by_policy, 0)
    )


def test_positive_answers_are_weighted_1_whatever_the_ratio():
    far = torch.tensor([-1.0, -400000.0, -1.0])
    other = torch.tensor([-400000.0, -1.0, -1.0])
    weight = topr_weight(far, other, torch.tensor([1.0, 0.5, 0.0]), ratio_low=0.1, ratio_high=0.2)
    assert torch.equal(weight, torch.ones(3))
    weight = topr_weight(far, other, -torch.ones(3), ratio_low=0.1, ratio_high=0.2)
    torch.testing.assert_close(weight, torch.tensor([0.2, 0.1, 0.2]))


def test_the_ratio_is_that_of_the_whole_answer_and_so_an_importance_weight():
    """Two-token answers by enumeration: only the product of token ratios turns an average over mu
    into one over pi.
    """
    torch.manual_seed(1)
    tokens = torch.stack(
        [
            torch.randn(2, 3, 1, dtype=torch.float64).log_softmax(1).expand(2, 3, 3),
            torch.randn(2, 3, 3, dtype=torch.float64).log_softmax(-1),
        ],
        -1,
    )
    (policy, behaviour), reward = tokens.sum(-1).flatten(1), -torch.rand(9, dtype=torch.float64)
    truth = (policy.exp() * reward).sum()
    torch.testing.assert_close(
        (behaviour.exp() * topr_weight(policy, behaviour, reward, ratio_high=1e6) * reward).sum(),
        truth,
        rtol=1e-12,
        atol=0,
    )
    by_length = (
        behaviour.exp() * topr_weight(policy / 2, behaviour / 2, reward, ratio_high=1e6) * reward
    ).sum()
    assert abs(by_length - truth) > 0.005 * abs(truth)


def test_ratio_low_1_is_untapered_reinforce_and_lengths_divide_the_loss_only():
    (policy, behaviour, rewards), lengths = answers(50, torch.float64, 5)
    torch.testing.assert_close(
        topr_loss(policy, behaviour, rewards, ratio_low=1.0), -rewards * policy, rtol=0, atol=0
    )
    whole = topr_loss(policy, behaviour, rewards)
    torch.testing.assert_close(
        topr_loss(policy, behaviour, rewards, lengths=lengths) * lengths, whole, rtol=1e-12, atol=0
    )
    # token counts are integers
    counted = topr_loss(policy, behaviour, rewards, lengths=lengths.long())
    torch.testing.assert_close(counted * lengths, whole, rtol=1e-12, atol=0)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(averages, averages),
    token_counts,
    input_dtypes,
    st.sampled_from([-1.0, 1.0, 0.0, -1000.0]),
    st.sampled_from(CLIPS),
    st.booleans(),
)
@example((0.0, -50.0), 8192, torch.float32, -1.0, (0.0, 1.0), False)
@example((0.0, -50.0), 8192, torch.float32, -1000.0, (0.0, 1e38), False)
@example((-50.0, 0.0), 8192, torch.bfloat16, -1000.0, (0.0, 1e38), True)
def test_loss_and_gradient_are_finite_at_the_edges(mean_logps, length, dtype, reward, clip, divide):
    logps = [torch.tensor([m * length], dtype=dtype, requires_grad=True) for m in mean_logps]
    finite_loss_and_gradients(
        lambda *x: topr_loss(
            *x,
            ratio_low=clip[0],
            ratio_high=clip[1],
            lengths=torch.tensor([length]) if divide else None,
        ),
        [*logps, torch.tensor([reward])],
    )


def test_exponent_is_clamped_at_the_documented_bound():
    policy, behaviour = torch.tensor([-1.0, -1.0]), torch.tensor([-400000.0, -2.0])
    assert (policy - behaviour).exp().isinf().any()  # the naive ratio
    weight = topr_weight(policy, behaviour, -torch.ones(2), ratio_high=1e38)
    torch.testing.assert_close(weight, torch.tensor([math.exp(MAX_LOG_RATIO), math.e]))
    assert (torch.tensor(1e38) * 400000).isinf() and topr_loss(
        torch.tensor([-400000.0]), torch.tensor([-800000.0]), -torch.ones(1), ratio_high=1e38
    ).isfinite()
    # the other way it fades to nothing
    assert topr_loss(torch.tensor([-400000.0]), torch.zeros(1), -torch.ones(1)) == 0


def test_low_precision_and_integer_rewards_are_computed_in_float32():
    (policy, behaviour, rewards), _ = answers(50, torch.bfloat16, 6)
    ours = topr_loss(policy, behaviour, rewards)
    torch.testing.assert_close(
        ours, topr_loss(policy.float(), behaviour.float(), rewards.float()), rtol=0, atol=0
    )
    signs = torch.where(rewards >= 0, 1, -1)
    torch.testing.assert_close(
        topr_loss(policy, behaviour, signs),
        topr_loss(policy, behaviour, signs.float()),
        rtol=0,
        atol=0,
    )


def test_a_baseline_shifts_the_effective_share_of_positives_and_nothing_else():
    """Sum over rewards +1, -1 with baseline b, untapered: the gradient of other weights on the same
    two groups.
    """
    policy = torch.full((10,), -3.0, dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0] * 3 + [-1.0] * 7, dtype=torch.float64)
    for baseline in (-0.5, 0.0, 0.5):
        (gradient,) = torch.autograd.grad(
            topr_loss(policy, policy.detach(), rewards - baseline).sum(), policy
        )
        share = -gradient[:3].sum() / (-gradient[:3].sum() + gradient[3:].sum())
        p = 0.3
        assert math.isclose(
            share,
            p * (1 - baseline) / (p * (1 - baseline) + (1 - p) * (1 + baseline)),
            rel_tol=1e-12,
        )
