"""GRPO: against loops in NumPy, TRL's own code, closed forms and finite differences, with rubbish
in the padding, and at the edges.
"""

import ast
import inspect
import math
import textwrap
import types
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.losses import (
    averages,
    finite_loss_and_gradients,
    input_dtypes,
    pinned_trl,
    trl_grpo_loss,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch.testing import assert_close

from prefkit.losses import (
    clipped_share,
    grpo_advantages,
    grpo_loss,
    ranked_rewards,
    varied_temperatures,
)
from prefkit.losses.topr import MAX_LOG_RATIO

TOKENS = ("token_logps", "old_token_logps", "ref_token_logps", "mask")
RUBBISH = (math.nan, math.inf, -math.inf, 1e30)


def groups(seed, prompts=3):
    "Rewards of groups of 2 to 8: 0 or 1, or any numbers of any size; some groups all equal."
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 9))
    rewards = (
        rng.integers(0, 2, (prompts, k)).astype(float)
        if seed % 2
        else rng.normal(rng.normal() * 10, 10.0 ** rng.integers(-3, 4), (prompts, k))
    )
    if seed % 3 == 0:
        rewards[0] = rewards[0, 0]
    return rewards


def answers(seed, batch=4, length=7, dtype=torch.float64, spread=0.3):
    """Token log-probs under policy, sampler and reference, a mask with gaps, advantages of both
    signs and now and then 0.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    old = -2 * normal(batch, length).abs()
    policy, reference = (
        old + spread * normal(batch, length),
        old + 2 * spread * normal(batch, length),
    )
    mask = torch.rand(batch, length, generator=generator) < 0.7
    mask[0], mask[1] = False, True  # an answer without tokens, one without padding
    advantages = normal(batch)
    advantages[::3] *= -1
    if seed % 4 == 0:
        advantages[2] = 0
    return [x.to(dtype) for x in (policy, old, reference)], mask, advantages.to(dtype)


def loops(policy, old, reference, mask, advantages, clip, beta):
    """Equation 3 with a minus, one token after the other; its derivative by the policy's log-probs;
    the share of tokens that are cut.
    """
    losses, gradient, shares = np.zeros(len(policy)), np.zeros(policy.shape), np.zeros(len(policy))
    for i in range(len(policy)):
        tokens, total, cut = [t for t in range(policy.shape[1]) if mask[i, t]], 0.0, 0
        for t in tokens:
            ratio, advantage = math.exp(policy[i, t] - old[i, t]), advantages[i]
            held = min(max(ratio, 1 - clip), 1 + clip)
            is_cut = held * advantage < ratio * advantage
            value, slope = (
                (held * advantage, 0.0) if is_cut else (ratio * advantage, ratio * advantage)
            )
            if beta:
                other = math.exp(reference[i, t] - policy[i, t])
                value, slope = (
                    value - beta * (other - math.log(other) - 1),
                    slope - beta * (1 - other),
                )
            total, cut = total + value, cut + is_cut
            gradient[i, t] = -slope / len(tokens)
        if tokens:
            losses[i], shares[i] = -total / len(tokens), cut / len(tokens)
    return losses, gradient, shares


def tensors(*arrays):
    return [torch.as_tensor(x) for x in arrays]


# advantages


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_equal_loops_on_400_random_batches(scale):
    for seed in range(400):
        rewards, eps = groups(seed), (1e-4, 1e-8, 0.5)[seed % 3]
        wanted = np.zeros_like(rewards)
        for i, row in enumerate(rewards):
            mean = math.fsum(row) / len(row)
            deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in row) / (len(row) - 1))
            for j, r in enumerate(row):
                wanted[i, j] = (r - mean) / (deviation + eps) if scale else r - mean
        if seed % 3 == 0:
            wanted[0] = 0
        assert_close(
            grpo_advantages(torch.tensor(rewards), scale=scale, eps=eps),
            torch.tensor(wanted),
            rtol=1e-10,
            atol=1e-10,
        )


def trl_advantages(rewards, scale_rewards):
    """The lines of TRL's GRPOTrainer that turn rewards into advantages, cut out of the long method
    in which they stand, and run.
    """
    trainer_module = trl_module()
    method = ast.parse(
        textwrap.dedent(
            inspect.getsource(trainer_module.GRPOTrainer._generate_and_score_completions)
        )
    )
    branch = next(
        node
        for node in ast.walk(method)
        if isinstance(node, ast.If)
        and ast.unparse(node.test).startswith("self.multi_objective_aggregation ==")
    )
    names = {
        "torch": torch,
        "nanstd": trainer_module.nanstd,
        "rewards_per_func": rewards.flatten()[:, None],
        "device": "cpu",
        "num_generations": rewards.shape[1],
        "unscorable_mask": torch.zeros(rewards.numel(), dtype=torch.bool),
        "self": types.SimpleNamespace(
            multi_objective_aggregation="sum_then_normalize",
            scale_rewards=scale_rewards,
            reward_weights=torch.ones(1, dtype=rewards.dtype),
        ),
    }
    exec(compile(ast.Module(branch.body, []), "trl", "exec"), names)
    return names["advantages"].reshape(rewards.shape)


def trl_module():
    pinned_trl()
    from trl.trainer import grpo_trainer

    return grpo_trainer


@pytest.mark.parametrize("scale, theirs", [(True, "group"), (False, "none")])
def test_advantages_equal_trl(scale, theirs):
    for seed in range(40):
        rewards = torch.tensor(groups(seed))
        # TRL's k/(k-1) is a float32
        assert_close(
            grpo_advantages(rewards, scale=scale),
            trl_advantages(rewards, theirs),
            rtol=1e-7 if scale else 1e-10,
            atol=1e-9,
        )


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    half = 0.5 + 1e-4  # one in four: variance 1/4 with ddof 1
    assert_close(
        grpo_advantages(rewards),
        torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]], dtype=torch.float64)
        / half,
    )
    assert_close(
        grpo_advantages(rewards, scale=False)[0],
        torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64),
    )


def test_without_scale_they_are_the_leave_one_out_advantages_times_a_constant_in_exact_arithmetic():
    for seed in range(1, 40, 2):
        rewards = groups(seed)
        k = rewards.shape[1]
        exact = [[Fraction(int(r)) for r in row] for row in rewards]
        loo = torch.tensor(
            [
                [float((r - (sum(row) - r) / (k - 1)) * Fraction(k - 1, k)) for r in row]
                for row in exact
            ],
            dtype=torch.float64,
        )
        assert_close(
            grpo_advantages(torch.tensor(rewards), scale=False), loo, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, -7.3, 1e6 + 0.3, 1e15, 0.0])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_equal_rewards_give_exactly_0_however_large(dtype, value, k):
    rewards = torch.full((2, k), value, dtype=dtype)
    for scale in (True, False):
        assert (grpo_advantages(rewards, scale=scale) == 0).all()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 9).flatmap(
        lambda k: st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=k, max_size=k)
    ),
    input_dtypes,
)
@example([1e-30, 0.0], torch.float32)
@example([1e6 + 0.0625, 1e6], torch.float32)
def test_advantages_are_finite_centred_and_bounded(rewards, dtype):
    rewards = torch.tensor([rewards], dtype=dtype)
    scaled, plain = grpo_advantages(rewards), grpo_advantages(rewards, scale=False)
    k = rewards.shape[1]
    assert scaled.dtype == torch.float32 and scaled.isfinite().all() and plain.isfinite().all()
    assert scaled.abs().max() <= (k - 1) / math.sqrt(k) + 1e-4  # Samuelson's inequality
    assert abs(scaled.sum().item()) <= 1e-5 * k and (scaled * plain >= 0).all()


def test_advantages_do_not_change_when_rewards_are_shifted_or_stretched():
    rewards = torch.tensor(groups(4))
    assert_close(grpo_advantages(rewards + 100, eps=1e-8), grpo_advantages(rewards, eps=1e-8))
    assert_close(grpo_advantages(rewards * 50, eps=1e-12), grpo_advantages(rewards, eps=1e-12))
    assert_close(
        grpo_advantages(torch.tensor([[1, 0, 1]])), grpo_advantages(torch.tensor([[1.0, 0.0, 1.0]]))
    )


# loss


@pytest.mark.parametrize("beta", [0.0, 0.04, 1.5])
def test_loss_gradient_and_share_equal_loops_on_300_random_batches(beta):
    kinds = set()
    for seed in range(300):
        clip = (0.2, 0.05, 0.9, 3.0)[seed % 4]
        (policy, old, reference), mask, advantages = answers(
            seed, spread=(0.05, 0.3, 2.0)[seed % 3]
        )
        losses, gradient, shares = tensors(
            *loops(*(x.numpy() for x in (policy, old, reference, mask, advantages)), clip, beta)
        )
        policy.requires_grad_()
        ours = grpo_loss(policy, old, reference, mask, advantages, clip=clip, beta=beta)
        assert_close(ours.detach(), losses, rtol=1e-10, atol=1e-10)
        assert_close(torch.autograd.grad(ours.sum(), policy)[0], gradient, rtol=1e-10, atol=1e-10)
        assert_close(
            clipped_share(policy, old, mask, advantages, clip=clip), shares, rtol=1e-12, atol=0
        )
        ratio = (policy.detach() - old).exp()
        for sign, zone in ((a, z) for a in (-1, 0, 1) for z in (-1, 0, 1)):
            here = (
                (advantages.sign() == sign)[:, None]
                & mask
                & ((ratio > 1 + clip).int() - (ratio < 1 - clip).int() == zone)
            )
            if here.any():
                kinds.add((sign, zone))
    assert len(kinds) == 9  # every sign of the advantage with a ratio below, inside and above


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_gradient_and_share_equal_trl(beta):
    for seed in range(60):
        # no empty answers: TRL's shares are NaN there
        (policy, old, reference), mask, advantages = (
            x[1:] if torch.is_tensor(x) else [y[1:] for y in x] for x in answers(seed, batch=6)
        )
        mask[:, 0] = True
        policy.requires_grad_()
        theirs, metrics = trl_grpo_loss(policy, old, reference, mask, advantages, beta=beta)
        ours = grpo_loss(policy, old, reference, mask, advantages, beta=beta)
        assert_close(ours.mean(), theirs, rtol=1e-10, atol=1e-12)
        assert_close(
            torch.autograd.grad(ours.mean(), policy),
            torch.autograd.grad(theirs, policy),
            rtol=1e-10,
            atol=1e-14,
        )
        share = (
            clipped_share(policy, old, mask, advantages, clip=0.2) * mask.sum(-1)
        ).sum() / mask.sum()
        assert math.isclose(share, metrics["clip_ratio/region_mean"][0], rel_tol=1e-6)


def test_times_the_tokens_over_a_constant_it_is_trls_dr_grpo():
    (policy, old, reference), mask, advantages = answers(5, batch=8)
    options = dict(beta=0.04, loss_type="dr_grpo", longest=50)
    theirs, _ = trl_grpo_loss(policy, old, reference, mask, advantages, **options)
    ours = grpo_loss(policy, old, reference, mask, advantages, beta=0.04) * mask.sum(-1) / 50
    assert_close(ours.mean(), theirs, rtol=1e-12, atol=0)


def test_on_policy_the_gradient_is_that_of_reinforce_averaged_over_tokens():
    for seed in range(20):
        (policy, _, _), mask, advantages = answers(seed)
        policy.requires_grad_()
        # nothing flows through the sampler's log-probs
        loss = grpo_loss(policy, policy, None, mask, advantages)
        reinforce = -(advantages[:, None] * policy * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        assert_close(
            *(torch.autograd.grad(x.sum(), policy)[0] for x in (loss, reinforce)),
            rtol=1e-12,
            atol=1e-14,
        )
        assert_close(loss.detach(), -advantages * mask.any(-1), rtol=1e-12, atol=1e-14)
        assert (clipped_share(policy, policy, mask, advantages, clip=0.2) == 0).all()


def test_first_step_has_loss_0_and_a_gradient():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    logits = torch.randn(
        4, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    policy = logits.log_softmax(-1)[:, :, 0]
    loss = grpo_loss(
        policy,
        policy.detach(),
        policy.detach(),
        torch.ones(4, 5),
        grpo_advantages(rewards).flatten(),
        beta=0.1,
    ).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(loss.item()) < 1e-14 and gradient.norm() > 0.1


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_passes_gradcheck(beta):
    (policy, old, reference), mask, advantages = answers(11)
    # finite differences would step over the kink
    policy = torch.where(
        ((policy - old).exp() - 1).abs().sub(0.2).abs() < 1e-3, old, policy
    ).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: grpo_loss(x, old, reference, mask, advantages, beta=beta), (policy,)
    )


@pytest.mark.parametrize(
    "sign, ratio, flows",
    [
        (1, 1.21, False),
        (1, 1.19, True),
        (1, 0.5, True),
        (1, 0.0, True),
        (-1, 0.79, False),
        (-1, 0.81, True),
        (-1, 5.0, True),
        (0, 1.5, False),
    ],
)
def test_which_ratios_have_a_gradient(sign, ratio, flows):
    policy = torch.tensor(
        [[math.log(ratio) if ratio else -30.0]], dtype=torch.float64, requires_grad=True
    )
    arguments = policy, torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([2.0 * sign])
    (gradient,) = torch.autograd.grad(grpo_loss(*arguments[:2], None, *arguments[2:]).sum(), policy)
    assert_close(gradient.item(), -2.0 * sign * policy.exp().item() if flows else 0.0)
    assert clipped_share(*arguments, clip=0.2).item() == float(not flows and sign != 0)


def test_cut_means_no_gradient_at_the_very_bounds_in_float32():
    """Ratios of exactly 1 - clip and 1 + clip, and their neighbours: the share counts just the
    tokens without gradient.
    """
    bounds = torch.tensor([0.75, 1.25]).log()
    steps = torch.arange(-3, 4) * 2.0**-24
    policy = (bounds[:, None] + steps).flatten().repeat(2, 1).requires_grad_()
    advantages, mask = torch.tensor([1.0, -1.0]), torch.ones_like(policy)
    (gradient,) = torch.autograd.grad(
        grpo_loss(policy, torch.zeros_like(policy), None, mask, advantages, clip=0.25).sum(), policy
    )
    assert_close(
        clipped_share(policy, torch.zeros_like(policy), mask, advantages, clip=0.25),
        (gradient == 0).float().mean(-1),
    )
    assert 0 < (gradient == 0).sum() < gradient.numel()


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32])
def test_padding_never_leaks(rubbish, beta, kind):
    (policy, old, reference), mask, advantages = answers(2, batch=6)

    def result(*logps):
        leaf = logps[0].clone().requires_grad_()
        loss = grpo_loss(leaf, *logps[1:], mask.to(kind), advantages, beta=beta)
        share = clipped_share(leaf, logps[1], mask.to(kind), advantages, clip=0.2)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0], share

    clean = result(policy, old, reference)
    assert (clean[1][~mask] == 0).all() and all(x.isfinite().all() for x in clean)
    dirty = [x.masked_fill(~mask, rubbish) for x in (policy, old, reference)]
    for position in range(3):  # alone, and all three at once (inf - inf is NaN, too)
        for logps in (
            [dirty[i] if i == position else x for i, x in enumerate((policy, old, reference))],
            dirty,
        ):
            for a, b in zip(result(*logps), clean):
                assert torch.equal(a, b)


def test_padding_does_not_leak_through_a_model_either():
    """Where a padded position's log-prob is -inf because of a masked vocabulary, its gradient must
    be 0 all the way down.
    """
    logits = torch.randn(
        2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    masked = logits.masked_fill(torch.tensor([True, False, False, False]), -math.inf).log_softmax(
        -1
    )
    policy = torch.stack([masked[:, 0, 1], masked[:, 1, 2], masked[:, 2, 0]], 1)  # the last is -inf
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    (gradient,) = torch.autograd.grad(
        grpo_loss(
            policy, policy.detach(), policy.detach(), mask, torch.tensor([1.0, -1.0]), beta=0.1
        ).sum(),
        logits,
    )
    assert gradient.isfinite().all() and (gradient[:, 2] == 0).all() and (gradient[0, 0] != 0).any()


def test_reference_is_not_touched_at_beta_0_and_wanted_otherwise():
    (policy, old, reference), mask, advantages = answers(3)
    plain = grpo_loss(policy, old, reference, mask, advantages)
    for anything in (None, torch.full_like(policy, math.nan), torch.zeros(1), "nothing"):
        assert torch.equal(grpo_loss(policy, old, anything, mask, advantages), plain)
    with pytest.raises(ValueError, match="ref_token_logps"):
        grpo_loss(policy, old, None, mask, advantages, beta=0.1)
    reference.requires_grad_()
    old.requires_grad_()
    policy.requires_grad_()
    advantages.requires_grad_()
    grpo_loss(policy, old, reference, mask, advantages, beta=0.1).sum().backward()
    assert (
        policy.grad is not None
        and reference.grad is None
        and old.grad is None
        and advantages.grad is None
    )


def test_the_penalty_is_0_at_the_reference_and_never_negative():
    (policy, old, reference), mask, advantages = answers(6)
    zero = torch.zeros_like(advantages)
    assert (grpo_loss(policy, policy, policy, mask, zero, beta=1.0) == 0).all()
    penalty = grpo_loss(policy, policy, reference, mask, zero, beta=1.0)
    assert (penalty[1:] > 0).all() and penalty[0] == 0
    near = torch.full((1, 1), 1e-4)  # float32: exp(d) - d - 1 would be lost in rounding
    assert_close(
        grpo_loss(
            torch.zeros(1, 1), torch.zeros(1, 1), near, torch.ones(1, 1), torch.zeros(1), beta=1.0
        ).item(),
        5e-9,
        rtol=2e-3,
        atol=0,
    )


def test_expected_penalty_is_the_kl_divergence():
    "k3 averaged over tokens drawn from the policy is KL(policy, reference), by enumeration."
    policy, reference = torch.randn(
        2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8)
    ).log_softmax(-1)
    column = lambda x: x[:, None]
    penalty = grpo_loss(
        column(policy),
        column(policy),
        column(reference),
        torch.ones(6, 1),
        torch.zeros(6),
        beta=1.0,
    )
    assert_close((policy.exp() * penalty).sum(), (policy.exp() * (policy - reference)).sum())


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(averages, averages, averages),
    st.sampled_from([1, 7, 8192]),
    input_dtypes,
    st.sampled_from([1.0, -1.0, 0.0, 1000.0, -1000.0]),
    st.sampled_from([1e-3, 0.2, 1.0, 1e6]),
    st.sampled_from([0.0, 0.1, 10.0]),
)
@example((-50.0, 0.0, 0.0), 8192, torch.float32, 1000.0, 0.2, 10.0)
@example((0.0, -50.0, -50.0), 8192, torch.bfloat16, -1000.0, 1e6, 10.0)
def test_loss_and_gradient_are_finite_at_the_edges(logps, length, dtype, advantage, clip, beta):
    policy, old, reference = (torch.full((1, length), x, dtype=dtype) for x in logps)
    finite_loss_and_gradients(
        grpo_loss,
        [policy.requires_grad_(), old, reference, torch.ones(1, length), torch.tensor([advantage])],
        clip=clip,
        beta=beta,
    )
    share = clipped_share(policy, old, torch.ones(1, length), torch.tensor([advantage]), clip=clip)
    assert share.isfinite().all() and 0 <= share <= 1


def test_exponents_are_clamped_at_the_documented_bound():
    far = torch.tensor([[500.0]])
    policy, zero, one = far.clone().requires_grad_(), torch.zeros(1, 1), torch.ones(1, 1)
    # a bad answer's ratio is not cut above
    loss = grpo_loss(policy, zero, None, one, -torch.ones(1))
    assert_close(loss.item(), math.exp(MAX_LOG_RATIO), rtol=1e-5, atol=0)
    assert_close(
        grpo_loss(zero, zero, far, one, torch.zeros(1), beta=1.0).item(),
        math.exp(MAX_LOG_RATIO),
        rtol=1e-5,
        atol=0,
    )
    for difference in (10.0, 59.0):  # below it nothing is changed
        assert_close(
            grpo_loss(one.double() * difference, zero, None, one, -torch.ones(1)).item(),
            math.exp(difference),
        )


def test_low_precision_and_integers_are_computed_in_float32_and_a_mask_widens_nothing():
    (policy, old, reference), mask, advantages = answers(7, dtype=torch.bfloat16)
    ours = grpo_loss(policy, old, reference, mask, advantages, beta=0.1)
    assert ours.dtype == torch.float32
    assert torch.equal(
        ours,
        grpo_loss(
            policy.float(), old.float(), reference.float(), mask, advantages.float(), beta=0.1
        ),
    )
    assert torch.equal(ours, grpo_loss(policy, old, reference, mask.double(), advantages, beta=0.1))
    assert (
        grpo_loss(policy, old, None, mask, torch.ones(4, dtype=torch.long)).dtype == torch.float32
    )


# temperatures


def test_temperatures_are_evenly_spaced():
    assert_close(torch.tensor(varied_temperatures(4, 0.7, 1.3)), torch.tensor([0.7, 0.9, 1.1, 1.3]))
    assert (
        varied_temperatures(5, 1.0, 1.0) == [1.0] * 5
        and varied_temperatures(2, 0.1, 0.7) == [0.1, 0.7]
        and varied_temperatures(1, 0.5, 1.5) == [1.5]
    )


@given(st.integers(1, 64), st.floats(0.01, 3), st.floats(0, 3))
def test_temperatures_start_low_end_high_and_never_fall(k, low, more):
    found = varied_temperatures(k, low, low + more)
    assert (
        len(found) == k
        and found[-1] == low + more
        and (k == 1 or found[0] == low)
        and all(isinstance(x, float) for x in found)
    )
    assert all(b >= a - 1e-12 for a, b in zip(found, found[1:]))


# refusals


def test_wrong_shapes_are_refused_by_name():
    good = lambda: [*[torch.zeros(3, 5) for _ in TOKENS], torch.zeros(3)]
    for position, name in enumerate((*TOKENS, "advantages")):
        for bad in (
            torch.zeros(3, 4),
            torch.zeros(3, 5, 1),
            torch.zeros(()),
            torch.zeros(2, 5),
            torch.zeros(5),
            torch.zeros(3, 1),
        ):
            inputs = good()
            inputs[position] = bad
            with pytest.raises(ValueError) as error:
                grpo_loss(*inputs, beta=0.1)
            assert name in str(error.value)
            if name == "ref_token_logps":
                continue
            with pytest.raises(ValueError) as error:
                clipped_share(*inputs[:2], *inputs[3:], clip=0.2)
            assert name in str(error.value)
    for bad in (torch.zeros(4), torch.zeros(4, 1), torch.zeros(2, 2, 2), torch.zeros(4, 0)):
        with pytest.raises(ValueError, match="rewards"):
            grpo_advantages(bad)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.2", None, True])
def test_hyperparameters_out_of_range_are_refused_by_name(value):
    inputs = [torch.zeros(2, 3)] * 4 + [torch.zeros(2)]
    for name in ("clip", "beta"):
        with pytest.raises(ValueError, match=name):
            grpo_loss(*inputs, **{name: value})
    with pytest.raises(ValueError, match="clip"):
        clipped_share(*inputs[:2], *inputs[3:], clip=value)
    with pytest.raises(ValueError, match="eps"):
        grpo_advantages(torch.zeros(2, 3), eps=value)
    for name, arguments in (
        ("low", (2, value, 1.0)),
        ("high", (2, 1.0, value)),
        ("k", (value, 0.5, 1.0)),
    ):
        with pytest.raises(ValueError, match=name):
            varied_temperatures(*arguments)


def test_zero_where_it_makes_no_sense_is_refused_by_name():
    inputs = [torch.zeros(2, 3)] * 4 + [torch.zeros(2)]
    with pytest.raises(ValueError, match="clip"):
        grpo_loss(*inputs, clip=0)
    with pytest.raises(ValueError, match="clip"):
        clipped_share(*inputs[:2], *inputs[3:], clip=0.0)
    with pytest.raises(ValueError, match="eps"):
        grpo_advantages(torch.zeros(2, 3), eps=0)
    with pytest.raises(ValueError, match="scale"):
        grpo_advantages(torch.zeros(2, 3), scale="none")
    for arguments in ((0, 0.5, 1.0), (2, 0.0, 1.0), (2, 1.0, 0.9), (2.0, 0.5, 1.0)):
        with pytest.raises(ValueError):
            varied_temperatures(*arguments)


def test_hyperparameters_are_keyword_only():
    inputs = [torch.zeros(2, 3)] * 4 + [torch.zeros(2)]
    for call in (
        lambda: grpo_loss(*inputs, 0.2),
        lambda: clipped_share(*inputs[:2], *inputs[3:], 0.2),
        lambda: grpo_advantages(torch.zeros(2, 3), True),
    ):
        with pytest.raises(TypeError):
            call()


def test_values_are_never_looked_at():
    meta = lambda *shape: torch.zeros(*shape, device="meta")
    inputs = [meta(3, 5) for _ in TOKENS] + [meta(3)]
    for beta in (0.0, 0.1):
        assert grpo_loss(*inputs, beta=beta).shape == (3,)
    assert clipped_share(*inputs[:2], *inputs[3:], clip=0.2).shape == (3,)
    for scale in (True, False):
        assert grpo_advantages(meta(3, 4), scale=scale).shape == (3, 4)
    # inside the mask it is not hidden: the trainer watches for it
    assert (
        grpo_loss(
            torch.full((1, 1), math.nan), *[torch.zeros(1, 1)] * 2, torch.ones(1, 1), torch.ones(1)
        )
        .isnan()
        .all()
    )


@given(st.integers(0, 10_000))
def test_ranks_are_scipys_less_one(seed):
    rewards = groups(seed)
    ours = ranked_rewards(torch.from_numpy(rewards)).double()
    np.testing.assert_array_equal(ours, rankdata(rewards, axis=1) - 1)
    assert_close(ranked_rewards(torch.from_numpy(3 * rewards)).double(), ours)


def test_ranks_are_of_groups():
    with pytest.raises(ValueError, match=r"shape \(prompts, k\), not \(4,\)"):
        ranked_rewards(torch.zeros(4))
