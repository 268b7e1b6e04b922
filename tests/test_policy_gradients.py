"""GRPO's family: against loops in NumPy, the losses whose points it holds, TRL's own code at five
points, with rubbish in the padding, and at the edges; its rows train.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.losses import trl_grpo_loss
from scipy.stats import zscore
from torch.testing import assert_close

from prefkit.losses import (
    bounded_share,
    clipped_share,
    grpo_advantages,
    grpo_loss,
    group_advantages,
    group_weights,
    overlong_penalty,
    policy_gradient_loss,
    rloo_advantages,
    rloo_loss,
)
from prefkit.train.methods import FAMILY, METHODS, get_method

LEVELS, CLIPS = ("token", "answer", "product"), ("ratio", "weight", "none")
AGGREGATIONS = ("answers", "tokens", "constant")
LONGEST = 16


def batch(seed, size=6, length=7, spread=0.3):
    """Log-probs under policy, sampler and reference, a mask with gaps and an empty answer,
    advantages of both signs and a 0, weights.
    """
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    old = -2 * normal(size, length).abs()
    policy, reference = old + spread * normal(size, length), old + spread * normal(size, length)
    mask = torch.rand(size, length, generator=draw) < 0.7
    mask[0], mask[1] = False, True
    advantages = normal(size)
    advantages[2] = 0
    weights = torch.tensor([0.0, 2, 1, 1, 2, 0][:size]).double()
    return policy, old, reference, mask, advantages, weights


def loss_of(policy, old, reference, mask, advantages, weights, **choices):
    sizes = mask.sum(-1).double()
    mean = (weights * sizes).sum() / weights.sum() * torch.ones_like(weights)
    longest = LONGEST * torch.ones_like(weights)
    given = policy, old, reference, mask, advantages, weights, mean, longest
    return policy_gradient_loss(*given, **choices)


def loops(policy, old, reference, mask, advantages, weights, **choices):
    "The loss of each answer and its gradient by the policy's log-probs, one token at a time."
    level, clip, aggregation = (choices[name] for name in ("level", "clip", "aggregation"))
    low, high, beta = 1 - choices["clip_low"], 1 + choices["clip_high"], choices["beta"]
    sizes = mask.sum(-1)
    mean = (weights * sizes).sum() / weights.sum()
    losses, gradient = np.zeros(len(mask)), np.zeros(mask.shape)
    for i, t in itertools.product(*map(range, mask.shape)):
        if not mask[i, t]:
            continue
        moved = [policy[i, s] - old[i, s] for s in range(mask.shape[1]) if mask[i, s]]
        count = len(moved)
        log = {"token": policy[i, t] - old[i, t], "answer": math.fsum(moved) / count}
        ratio = math.exp(log[level] if level in log else math.fsum(moved))
        held, gain = min(max(ratio, low), high), advantages[i] * weights[i]
        divisor = {"answers": count, "tokens": mean, "constant": LONGEST}[aggregation]
        if clip == "weight":
            value, own, shared = held * gain * policy[i, t], held * gain, 0.0
        else:
            cut = clip == "ratio" and held * gain < ratio * gain
            value, slope = (held * gain, 0.0) if cut else (ratio * gain, ratio * gain)
            own = slope if level == "token" else 0.0
            shared = {"token": 0.0, "answer": slope / count, "product": slope}[level]
        if beta:
            other = math.exp(reference[i, t] - policy[i, t])
            value -= beta * weights[i] * (other - math.log(other) - 1)
            own -= beta * weights[i] * (1 - other)
        losses[i] -= value / divisor
        gradient[i, t] -= own / divisor
        for s in range(mask.shape[1]):
            gradient[i, s] -= mask[i, s] * shared / divisor
    return torch.from_numpy(losses), torch.from_numpy(gradient)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_point_equals_loops_on_random_batches(level, clip, aggregation):
    for seed in range(24):
        beta, low, high = (0.0, 0.3)[seed % 2], (0.2, 1.0)[seed % 3 > 0], (0.2, 0.28, 4.0)[seed % 3]
        choices = dict(level=level, clip=clip, aggregation=aggregation, beta=beta)
        choices |= dict(clip_low=low, clip_high=high)
        given = batch(seed, spread=(0.05, 0.4)[seed % 2])
        losses, gradient = loops(*(x.numpy() for x in given), **choices)
        policy = given[0].requires_grad_()
        found = loss_of(*given, **choices)
        assert_close(found.detach(), losses, rtol=1e-10, atol=1e-10)
        assert_close(torch.autograd.grad(found.sum(), policy)[0], gradient, rtol=1e-9, atol=1e-10)


def test_two_of_its_points_are_losses_that_were_there_before():
    policy, old, reference, mask, advantages, _ = batch(3)
    ones = torch.ones(len(mask)).double()
    found = loss_of(policy, old, reference, mask, advantages, ones, beta=0.04)
    assert_close(found, grpo_loss(policy, old, reference, mask, advantages, beta=0.04))
    product = loss_of(policy, old, None, mask, advantages, ones, level="product", clip="none")
    sums = [torch.where(mask, x, 0).sum(-1) for x in (policy, old)]
    some = mask.any(-1)  # of an answer without tokens the sum is 0, and RLOO's ratio 1
    assert_close(product[some], rloo_loss(*sums, advantages)[some])
    share = bounded_share(policy, old, mask, advantages)
    assert_close(share, clipped_share(policy, old, mask, advantages, clip=0.2).float())


TRL = {
    "grpo": ("grpo", "token", {}),
    "dr_grpo": ("dr_grpo", "token", {"aggregation": "constant"}),
    "dapo": ("dapo", "token", {"clip_high": 0.28, "aggregation": "tokens"}),
    "gspo": ("grpo", "sequence", {"level": "answer", "clip_low": 3e-4, "clip_high": 4e-4}),
    "cispo": (
        "cispo",
        "token",
        {"clip": "weight", "clip_low": 1.0, "clip_high": 4.0, "aggregation": "tokens"},
    ),
}


@pytest.mark.parametrize("name", TRL)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_five_points_equal_trl(name, beta):
    loss_type, level, choices = TRL[name]
    high = choices.get("clip_high", 0.2)
    options = dict(loss_type=loss_type, level=level, beta=beta, longest=LONGEST)
    options |= dict(clip_low=choices.get("clip_low", 0.2))
    options |= dict(clip_high=1 + high if name == "cispo" else high)
    for seed in range(20):
        policy, old, reference, mask, advantages, _ = batch(seed)
        mask[:, 0] = True  # TRL's shares of an empty answer are NaN
        policy.requires_grad_()
        theirs, _ = trl_grpo_loss(policy, old, reference, mask, advantages, **options)
        ones = torch.ones(len(mask)).double()
        ours = loss_of(policy, old, reference, mask, advantages, ones, beta=beta, **choices).mean()
        assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert_close(
            torch.autograd.grad(ours, policy),
            torch.autograd.grad(theirs, policy),
            rtol=1e-7,
            atol=1e-9,
        )


def test_what_stands_in_the_padding_is_not_looked_at():
    policy, old, reference, mask, advantages, weights = batch(5)
    clean = [torch.where(mask, x, 0.0) for x in (policy, old, reference)]
    for rubbish in (math.nan, math.inf, -math.inf):
        dirty = [torch.where(mask, x, rubbish).requires_grad_() for x in clean]
        for clip, level in itertools.product(CLIPS, LEVELS):
            choices = dict(clip=clip, level=level, beta=0.1)
            found = loss_of(*dirty, mask, advantages, weights, **choices)
            assert_close(found, loss_of(*clean, mask, advantages, weights, **choices))
            (gradient,) = torch.autograd.grad(found.sum(), dirty[0])
            assert gradient.isfinite().all() and (gradient[~mask] == 0).all()


def test_advantages_by_baseline_and_scale():
    rewards = torch.tensor([[1.0, 0.0, 0.5], [3.0, 3.0, 3.0]]).double()
    assert_close(group_advantages(rewards), grpo_advantages(rewards))
    others = group_advantages(rewards, baseline="others", scale="none")
    assert_close(others, rloo_advantages(rewards))
    whole = group_advantages(rewards, baseline="batch", scale="batch", eps=1e-12)
    assert_close(whole.flatten().numpy(), zscore(rewards.flatten().numpy(), ddof=1))
    assert torch.equal(group_advantages(rewards, baseline="none", scale="none"), rewards)
    by_batch = group_advantages(rewards, scale="batch", eps=1e-12)
    centred = rewards - rewards.mean(1, keepdim=True)
    assert_close(by_batch, centred / rewards.flatten().std())
    one = torch.tensor([[2.0], [4.0]])  # no groups are needed where the batch is the yardstick
    assert_close(group_advantages(one, baseline="batch", scale="none"), torch.tensor([[-1.0], [1]]))


@pytest.mark.parametrize("value", [0.1, 1000.3, 1e15])
def test_equal_rewards_are_worth_exactly_nothing(value):
    rewards = torch.full((3, 7), value)
    for baseline, scale in itertools.product(("group", "others", "batch"), ("group", "batch")):
        assert (group_advantages(rewards, baseline=baseline, scale=scale) == 0).all()


def test_weights_leave_groups_of_equals_out_and_keep_the_mean():
    rewards = torch.tensor([[1.0, 0], [1, 1], [0, 0], [0, 1]])
    weights = group_weights(rewards)
    assert weights.tolist() == [[2, 2], [0, 0], [0, 0], [2, 2]] and weights.mean() == 1
    assert (group_weights(torch.zeros(2, 3)) == 1).all()


def test_the_cost_of_length_begins_at_the_buffer():
    lengths = torch.tensor([[1, 80], [90, 100]])
    found = overlong_penalty(lengths, longest=100, buffer=20)
    assert found.tolist() == [[0, 0], [-0.5, -1]]
    assert (overlong_penalty(lengths, longest=100, buffer=0) == 0).all()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: group_advantages(torch.ones(4)), "k >= 2"),
        (lambda: group_advantages(torch.ones(4, 1)), "k >= 2"),
        (lambda: group_advantages(torch.ones(2, 2), baseline="mean"), "baseline must be one of"),
        (lambda: group_advantages(torch.ones(2, 2), scale="std"), "scale must be one of"),
        (lambda: group_weights(torch.ones(4)), "shape"),
        (lambda: overlong_penalty(torch.ones(2), longest=4, buffer=5), "buffer is 5"),
        (lambda: loss_of(*batch(0), level="sequence"), "level must be one of token, answer"),
        (lambda: loss_of(*batch(0), clip="both"), "clip must be one of"),
        (lambda: loss_of(*batch(0), aggregation="mean"), "aggregation must be one of"),
        (lambda: loss_of(*batch(0), clip_high=-0.1), "clip_high is -0.1"),
        (
            lambda: loss_of(*batch(0)[:2], None, *batch(0)[3:], beta=0.1),
            "ref_token_logps must be given",
        ),
        (lambda: policy_gradient_loss(*batch(0)[:4], *[torch.ones(3)] * 4), "3 answers but mask"),
    ],
)
def test_what_cannot_be_is_refused(call, said):
    with pytest.raises((ValueError, RuntimeError), match=said):
        call()


def test_every_row_of_the_family_is_a_method_with_its_choices_as_defaults():
    whole = set(METHODS["policy_gradient"].defaults)
    for name, (choices, source) in FAMILY.items():
        row = get_method(name)
        assert row.online and set(row.defaults) == whole and source
        assert choices.items() <= row.defaults.items()
    assert get_method("gspo").hyperparameters({"clip_high": 1e-3})["level"] == "answer"
    with pytest.raises(ValueError, match="level must be one of"):
        get_method("policy_gradient").hyperparameters({"level": "word"})
