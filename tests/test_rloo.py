"""RLOO: against loops in NumPy, sums over all samples, autograd and TRL's trainer, and at its
edges.
"""

import contextlib
import itertools
import math
import types
from collections import defaultdict

import numpy as np
import pytest
import torch
from helpers.losses import (
    answers_with,
    averages,
    bare_trainer,
    finite_loss_and_gradients,
    input_dtypes,
    pinned_trl,
    random_logps,
    refuses_wrong_shapes,
    runs_without_reading_values,
    same,
    token_counts,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit.losses import (
    kl_penalty,
    reinforce_loss,
    rloo_advantages,
    rloo_kl_loss,
    rloo_loss,
    shaped_rewards,
)
from prefkit.losses.kl import ESTIMATORS
from prefkit.losses.topr import MAX_LOG_RATIO

KINDS = tuple(ESTIMATORS)
CLIPS = (None, 0.2, 0.05, 3.0)
CLOSE = dict(rtol=1e-10, atol=1e-10)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def sequences(n, seed):
    "Log-probs of policy, of the policy a few nats ago, and advantages, some of them exactly 0."
    _, _, old, _ = random_logps(n, torch.float64, seed)
    spread = (0.05, 1.0, 6.0)[seed % 3]
    advantages = normal(n, seed=seed + 2)
    advantages[::7] = 0
    return (old + normal(n, seed=seed + 1, scale=spread)).clamp(max=0), old, advantages


def tokens(batch, length, seed):
    """Token log-probs of policy, old policy and reference, and a mask of ragged answers, one of
    them empty now and then.
    """
    reference = -3 * torch.rand(batch, length, generator=generator(seed), dtype=torch.float64)
    old = reference + normal(batch, length, seed=seed + 1, scale=0.3)
    policy = old + normal(batch, length, seed=seed + 2, scale=0.1)
    lengths = torch.randint(0, length + 1, (batch,), generator=generator(seed + 3))
    return policy, old, reference, torch.arange(length) < lengths[:, None]


def loop_advantages(rewards):
    wanted = np.zeros_like(rewards)
    for p, group in enumerate(rewards):
        for i in range(len(group)):
            wanted[p, i] = group[i] - np.mean([group[j] for j in range(len(group)) if j != i])
    return wanted


def loop_rloo(policy, old, advantages, clip):
    "Loss and derivative, answer by answer."
    losses, slopes = [], []
    for p, o, a in zip(policy, old, advantages):
        ratio = math.exp(min(p - o, MAX_LOG_RATIO))
        gain, slope = a * ratio, a * ratio if p - o <= MAX_LOG_RATIO else 0.0
        if clip is not None:
            clipped = a * min(max(ratio, 1 - clip), 1 + clip)
            if clipped < gain:
                gain, slope = clipped, 0.0
        losses.append(-gain)
        slopes.append(-slope)
    return np.array(losses), np.array(slopes)


def loop_kl(policy, reference, mask, kind):
    """Schulman's estimators with r = reference / policy, and their derivatives with respect to the
    policy's token log-prob.
    """
    value, slope = np.zeros(len(policy)), np.zeros_like(policy)
    for i, t in np.argwhere(mask):
        log_r = reference[i, t] - policy[i, t]
        r = math.exp(log_r)
        value[i] += {"k1": -log_r, "k2": 0.5 * log_r**2, "k3": (r - 1) - log_r}[kind]
        slope[i, t] = {"k1": 1.0, "k2": -log_r, "k3": 1 - r}[kind]
    return value, slope


# advantages


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, CLOSE), (torch.float32, dict(rtol=1e-5, atol=1e-5))]
)
def test_advantages_equal_a_loop_on_300_random_batches(dtype, tolerance):
    for seed in range(300):
        prompts, k = 1 + seed % 5, 2 + seed % 7
        rewards = normal(prompts, k, seed=seed, scale=10.0 ** (seed % 4 - 2)).to(dtype)
        ours = rloo_advantages(rewards)
        assert ours.shape == (prompts, k) and ours.dtype == dtype
        torch.testing.assert_close(
            ours.double(), torch.from_numpy(loop_advantages(rewards.double().numpy())), **tolerance
        )
        torch.testing.assert_close(
            ours.sum(1), torch.zeros(prompts, dtype=dtype), rtol=0, atol=tolerance["atol"] * 100
        )
        torch.testing.assert_close(
            ours, k / (k - 1) * (rewards - rewards.mean(1, keepdim=True)), **tolerance
        )


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.integers(2, 64),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@example(0.1, 3, torch.float32)
def test_equal_rewards_teach_exactly_nothing(value, k, dtype):
    assert torch.equal(
        rloo_advantages(torch.full((2, k), value, dtype=dtype)),
        torch.zeros(2, k, dtype=torch.promote_types(dtype, torch.float32)),
    )


def test_a_constant_changes_nothing_and_costs_no_digits():
    rewards = torch.randint(-8, 8, (20, 5), generator=generator(0)).float()
    assert torch.equal(rloo_advantages(rewards + 2**23), rloo_advantages(rewards))
    naive = rewards + 2**23
    naive = naive - (naive.sum(1, keepdim=True) - naive) / 4
    assert not torch.equal(naive, rloo_advantages(rewards))  # the formula as printed rounds


def test_advantages_of_integers_bools_and_bfloat16_are_float32():
    for rewards in (
        torch.tensor([[1, 0, 0]]),
        torch.tensor([[True, False, False]]),
        torch.tensor([[1.0, 0, 0]], dtype=torch.bfloat16),
    ):
        assert torch.equal(rloo_advantages(rewards), torch.tensor([[1.0, -0.5, -0.5]]))
    with pytest.raises(ValueError, match="rewards"):
        rloo_advantages(torch.zeros(3, 1))
    for shape in ((3,), (), (2, 2, 2), (3, 0)):
        with pytest.raises(ValueError, match="rewards"):
            rloo_advantages(torch.zeros(shape))
    assert rloo_advantages(torch.zeros(3, 4, device="meta")).shape == (3, 4)
    # not hidden
    assert rloo_advantages(torch.tensor([[0.0, math.nan], [0.0, 1.0]])).isnan().tolist() == [
        [True, True],
        [False, False],
    ]


# the estimator, over all samples that there are


def bandit(arms, seed):
    logits, rewards = (
        normal(arms, seed=seed).requires_grad_(),
        normal(arms, seed=seed + 1, scale=2.0),
    )
    (truth,) = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)
    return logits, rewards, truth


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_leave_one_out_is_unbiased_and_the_mean_baseline_shrinks_by_k_minus_1_over_k(k, seed):
    logits, rewards, truth = bandit(5, seed)
    groups = torch.tensor(list(itertools.product(range(5), repeat=k)))
    logps = logits.log_softmax(0)
    chance = logps.detach()[groups].sum(1).exp()  # of this group of k answers
    expectation = lambda loss: (
        -torch.autograd.grad((chance * loss.view(-1, k).mean(1)).sum(), logits, retain_graph=True)[
            0
        ]
    )
    advantages, picked = rloo_advantages(rewards[groups]), logps[groups].flatten()
    torch.testing.assert_close(
        expectation(reinforce_loss(picked, advantages.flatten())), truth, **CLOSE
    )
    torch.testing.assert_close(
        expectation(rloo_loss(picked, picked.detach(), advantages.flatten(), clip=0.2)),
        truth,
        **CLOSE,
    )
    torch.testing.assert_close(
        expectation(reinforce_loss(picked, rewards[groups].flatten())), truth, **CLOSE
    )
    including = rewards[groups] - rewards[groups].mean(1, keepdim=True)
    torch.testing.assert_close(
        expectation(reinforce_loss(picked, including.flatten())), (k - 1) / k * truth, **CLOSE
    )


@pytest.mark.parametrize("seed", range(5))
def test_kl_in_the_reward_has_the_gradient_of_the_penalised_objective(seed):
    logits, rewards, _ = bandit(5, seed)
    reference, beta = normal(5, seed=seed + 9).log_softmax(0), 0.3
    logps = logits.log_softmax(0)
    objective = (logps.exp() * (rewards - beta * (logps - reference))).sum()
    (truth,) = torch.autograd.grad(objective, logits, retain_graph=True)
    shaped = shaped_rewards(rewards, logps, reference, kl_coef=beta)
    assert not shaped.requires_grad
    groups = torch.tensor(list(itertools.product(range(5), repeat=2)))
    loss = (
        reinforce_loss(logps[groups].flatten(), rloo_advantages(shaped[groups]).flatten())
        .view(-1, 2)
        .mean(1)
    )
    (ours,) = torch.autograd.grad(-(logps.detach()[groups].sum(1).exp() * loss).sum(), logits)
    torch.testing.assert_close(ours, truth, **CLOSE)


@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_the_three_estimators_on_one_token(seed):
    """k1: nothing; k2: that of KL(policy || reference); k3: that of KL(reference || policy).

    Their values: all but k2's are KL(policy || reference).
    """
    logits = normal(6, seed=seed).requires_grad_()
    logps, reference = logits.log_softmax(0), normal(6, seed=seed + 50).log_softmax(0)
    (forward,) = torch.autograd.grad(
        (reference.exp() * (reference - logps)).sum(), logits, retain_graph=True
    )
    kl = (logps.exp() * (logps - reference)).sum()
    (backward,) = torch.autograd.grad(kl, logits, retain_graph=True)
    wanted = {"k1": torch.zeros(6, dtype=torch.float64), "k2": backward, "k3": forward}
    for kind in KINDS:
        estimates = kl_penalty(logps[:, None], reference[:, None], torch.ones(6, 1), estimator=kind)
        assert torch.allclose((logps.exp() * estimates).sum(), kl, rtol=1e-12) == (kind != "k2")
        (ours,) = torch.autograd.grad(
            (logps.detach().exp() * estimates).sum(), logits, retain_graph=True
        )
        torch.testing.assert_close(ours, wanted[kind], **CLOSE)


def test_sum_of_token_log_probs_has_the_gradient_of_the_expected_reward_and_a_mean_has_not():
    "Answers of one to three tokens over {a, b, end}, all of them enumerated."
    first, later = normal(3, seed=1).requires_grad_(), normal(3, 3, seed=2).requires_grad_()
    answers = [a for n in range(3) for a in itertools.product(range(2), repeat=n)]
    rows = [
        [(first if t == 0 else later[a[t - 1]]).log_softmax(0)[x] for t, x in enumerate((*a, 2))]
        for a in answers
        if len(a) < 2
    ]
    rows += [
        [(first if t == 0 else later[a[t - 1]]).log_softmax(0)[x] for t, x in enumerate(a)]
        for a in answers
        if len(a) == 2
    ]
    summed, lengths = (
        torch.stack([sum(row) for row in rows]),
        torch.tensor([float(len(row)) for row in rows]),
    )
    torch.testing.assert_close(summed.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    rewards = normal(len(rows), seed=3)
    truth = torch.autograd.grad((summed.exp() * rewards).sum(), (first, later), retain_graph=True)
    chance = summed.detach().exp()
    ours = torch.autograd.grad(
        -(chance * reinforce_loss(summed, rewards)).sum(), (first, later), retain_graph=True
    )
    per_token = torch.autograd.grad(
        -(chance * reinforce_loss(summed / lengths, rewards)).sum(), (first, later)
    )
    torch.testing.assert_close(ours, truth, **CLOSE)
    cosine = torch.nn.functional.cosine_similarity(
        torch.cat([x.flatten() for x in per_token]), torch.cat([x.flatten() for x in truth]), dim=0
    )
    assert cosine < 0.999  # not even the direction


# losses


@pytest.mark.parametrize("clip", CLIPS)
def test_loss_and_gradient_equal_a_loop_on_300_random_batches(clip):
    met = 0
    for seed in range(300):
        policy, old, advantages = sequences(8, seed)
        policy.requires_grad_()
        loss = rloo_loss(policy, old, advantages, clip=clip)
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        values, slopes = loop_rloo(policy.tolist(), old.tolist(), advantages.tolist(), clip)
        torch.testing.assert_close(loss.detach(), torch.from_numpy(values), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, torch.from_numpy(slopes), rtol=1e-10, atol=1e-12)
        met += ((slopes == 0) & (advantages.numpy() != 0)).sum()
        (plain,) = torch.autograd.grad(reinforce_loss(policy, advantages).sum(), policy)
        torch.testing.assert_close(plain, -advantages, rtol=0, atol=0)
        torch.testing.assert_close(
            reinforce_loss(policy, advantages), -advantages * policy, rtol=0, atol=0
        )
    assert (met > 100) == (clip is not None)


@pytest.mark.parametrize("clip", CLIPS)
def test_on_policy_its_gradient_is_reinforces_also_where_nobody_detached_the_old_ones(clip):
    policy, _, advantages = sequences(50, 3)
    policy.requires_grad_()
    (reinforce,) = torch.autograd.grad(reinforce_loss(policy, advantages).sum(), policy)
    for old in (policy.detach(), policy):
        (ours,) = torch.autograd.grad(rloo_loss(policy, old, advantages, clip=clip).sum(), policy)
        assert torch.equal(ours, reinforce)


def test_old_log_probs_and_advantages_are_not_differentiated():
    inputs = [x.requires_grad_() for x in sequences(10, 4)]
    for loss, wanted in (
        (rloo_loss(*inputs), [True, False, False]),
        (reinforce_loss(inputs[0], inputs[2]), [True, False, False]),
    ):
        gradients = torch.autograd.grad(loss.sum(), inputs, allow_unused=True)
        assert [g is not None for g in gradients] == wanted


def test_gradcheck():
    policy, old, advantages = sequences(8, 6)
    policy.requires_grad_()
    for clip in CLIPS:
        assert torch.autograd.gradcheck(
            lambda x: rloo_loss(x, old, advantages, clip=clip), (policy,)
        )
    assert torch.autograd.gradcheck(lambda x: reinforce_loss(x, advantages), (policy,))
    now, before, reference, mask = tokens(4, 5, 7)
    now.requires_grad_()
    for kind in KINDS:
        assert torch.autograd.gradcheck(
            lambda x: kl_penalty(x, reference, mask, estimator=kind), (now,)
        )
        assert torch.autograd.gradcheck(
            lambda x: rloo_kl_loss(
                x, before, reference, mask, advantages[:4], lam=0.3, clip=0.2, estimator=kind
            ),
            (now,),
        )


def test_clip_stops_what_has_been_earned_and_never_what_must_be_mended():
    # log-ratios, as old = 0
    policy = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        rloo_loss(policy, torch.zeros(4, dtype=torch.float64), advantages, clip=0.2).sum(), policy
    )
    torch.testing.assert_close(
        gradient, torch.tensor([0.0, 0.0, math.e, -1 / math.e], dtype=torch.float64)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kl_penalty_equals_a_loop_on_200_random_batches(kind):
    for seed in range(200):
        policy, _, reference, mask = tokens(3, 6, seed)
        policy.requires_grad_()
        ours = kl_penalty(policy, reference, mask, estimator=kind)
        (gradient,) = torch.autograd.grad(ours.sum(), policy)
        value, slope = loop_kl(policy.detach().numpy(), reference.numpy(), mask.numpy(), kind)
        torch.testing.assert_close(ours.detach(), torch.from_numpy(value), **CLOSE)
        torch.testing.assert_close(gradient, torch.from_numpy(slope), **CLOSE)
        if kind != "k1":
            assert (ours >= -1e-15).all()


@pytest.mark.parametrize(
    "kind, clip, lam", [("k1", None, 0.1), ("k2", 0.2, 0.5), ("k3", 0.05, 0.1), ("k3", None, 0.0)]
)
def test_equation_6_equals_loops_on_200_random_batches(kind, clip, lam):
    for seed in range(200):
        policy, old, reference, mask = tokens(4, 6, seed)
        policy.requires_grad_()
        advantages = rloo_advantages(normal(2, 2, seed=seed)).flatten()
        ours = rloo_kl_loss(
            policy, old, reference, mask, advantages, lam=lam, clip=clip, estimator=kind
        )
        (gradient,) = torch.autograd.grad(ours.sum(), policy)
        now, before = ((x.detach() * mask).sum(1).tolist() for x in (policy, old))
        values, slopes = loop_rloo(now, before, advantages.tolist(), clip)
        kl, kl_slopes = loop_kl(policy.detach().numpy(), reference.numpy(), mask.numpy(), kind)
        torch.testing.assert_close(ours.detach(), torch.from_numpy(values + lam * kl), **CLOSE)
        torch.testing.assert_close(
            gradient, torch.from_numpy(slopes[:, None] * mask.numpy() + lam * kl_slopes), **CLOSE
        )
    assert torch.equal(
        rloo_kl_loss(policy, old, reference, mask, advantages),
        rloo_kl_loss(policy, old, reference, mask, advantages, lam=0.1, clip=None, estimator="k3"),
    )


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_leak(garbage, kind):
    policy, old, reference, mask = tokens(6, 5, 11)
    advantages = normal(6, seed=1)

    def both(fill, kind_of_mask):
        filled = [
            torch.where(mask, x, torch.tensor(fill, dtype=x.dtype))
            for x in (policy, old, reference)
        ]
        filled[0].requires_grad_()
        m = mask.to(kind_of_mask)
        kl, loss = (
            kl_penalty(filled[0], filled[2], m, estimator=kind),
            rloo_kl_loss(*filled, m, advantages, clip=0.2, estimator=kind),
        )
        gradients = torch.autograd.grad(kl.sum(), filled[0]) + torch.autograd.grad(
            loss.sum(), filled[0]
        )
        assert all((g[~mask] == 0).all() for g in gradients)
        return [kl.detach(), loss.detach(), *gradients]

    for kind_of_mask in (torch.bool, torch.long, torch.float32):
        for clean, dirty in zip(both(0.0, torch.bool), both(garbage, kind_of_mask)):
            assert torch.equal(clean, dirty)
    filled = [torch.where(mask, x, garbage) for x in (policy, old)]
    # on one side only
    assert torch.equal(
        kl_penalty(filled[0], reference, mask, estimator=kind),
        kl_penalty(policy, reference, mask, estimator=kind),
    )


def test_shaped_rewards_by_hand():
    shaped = shaped_rewards(
        torch.tensor([1.0, 0.0]),
        torch.tensor([-3.0, -3.0], requires_grad=True),
        torch.tensor([-5.0, -2.0]),
        kl_coef=0.1,
    )
    torch.testing.assert_close(shaped, torch.tensor([0.8, 0.1]))
    assert not shaped.requires_grad
    assert (
        shaped_rewards(
            torch.tensor([1, 0]), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2), kl_coef=0
        ).dtype
        == torch.float32
    )


# TRL


def trl_trainer(**attributes):
    """TRL's RLOOTrainer with just what its two methods read; sampling, model and rewards answer
    with given numbers.
    """
    pinned_trl()
    from trl.trainer.rloo_trainer import RLOOTrainer

    trainer = bare_trainer(
        RLOOTrainer,
        ref_model=object(),
        args=types.SimpleNamespace(
            per_device_train_batch_size=4, gradient_checkpointing_kwargs=None
        ),
        _tokenizer=types.SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        reward_clip_range=None,
        normalize_advantages=False,
        reward_weights=torch.ones(1),
        reward_func_names=["r"],
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        epsilon_low=0.2,
        epsilon_high=0.2,
        **attributes,
    )
    trainer.model.training = True
    return trainer


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5])
def test_trl_has_the_same_advantages_and_loss(beta, monkeypatch):
    pinned_trl()
    import trl.trainer.rloo_trainer as module

    monkeypatch.setattr(module, "gather", same)
    monkeypatch.setattr(module, "gather_object", same)
    monkeypatch.setattr(
        module, "disable_gradient_checkpointing", lambda *_: contextlib.nullcontext(), raising=False
    )
    for seed in range(20):
        prompts, k = 3, 2 + seed % 3
        policy, old, reference, mask = tokens(prompts * k, 5, seed)
        # TRL's answers have at least one token
        mask = torch.arange(5) < mask.sum(1, keepdim=True).clamp(min=1)
        width = int(mask.sum(1).max())
        policy, old, reference, mask = (x[:, :width] for x in (policy, old, reference, mask))
        answers = [[1] * int(n) for n in mask.sum(1)]
        rewards = normal(prompts * k, seed=seed + 99)
        trainer = trl_trainer(beta=beta, num_generations=k, num_generations_eval=k)
        trainer._generate = lambda p: ([[1]] * len(p), answers, ["x"] * len(p))
        trainer._calculate_rewards = answers_with(rewards[:, None])
        trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (
            (reference if model is trainer.ref_model else old),
            None,
            None,
        )
        output = trainer._generate_and_score_completions([{"prompt": "x"}] * (prompts * k))
        now, before, base = ((x * mask).sum(1) for x in (policy, old, reference))
        shaped = shaped_rewards(rewards, before, base, kl_coef=beta)
        advantages = rloo_advantages(shaped.view(prompts, k)).flatten()
        torch.testing.assert_close(output["advantages"], advantages, **CLOSE)
        torch.testing.assert_close(output["old_logps"], before, **CLOSE)
        policy.requires_grad_()
        trainer._get_per_token_logps_and_entropies = answers_with(
            policy, torch.zeros_like(policy), None
        )
        theirs = trainer._compute_loss(trainer.model, output)
        ours = rloo_loss((policy * mask).sum(1), before, advantages, clip=0.2).mean()
        torch.testing.assert_close(ours, theirs, **CLOSE)
        torch.testing.assert_close(
            torch.autograd.grad(ours, policy)[0], torch.autograd.grad(theirs, policy)[0], **CLOSE
        )


# edges


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(averages, averages),
    token_counts,
    input_dtypes,
    st.sampled_from([-1000.0, -1.0, 0.0, 1.0, 1000.0]),
    st.sampled_from(CLIPS),
)
@example((0.0, -50.0), 8192, torch.float32, -1000.0, None)
@example((0.0, -50.0), 8192, torch.bfloat16, 1000.0, 0.2)
@example((-50.0, 0.0), 8192, torch.float32, -1000.0, 0.2)
def test_sequence_losses_are_finite_at_the_edges(mean_logps, length, dtype, advantage, clip):
    policy, old = (torch.tensor([m * length], dtype=dtype, requires_grad=True) for m in mean_logps)
    advantages = torch.tensor([advantage])
    finite_loss_and_gradients(lambda *x: rloo_loss(*x, clip=clip), [policy, old, advantages])
    finite_loss_and_gradients(reinforce_loss, [policy, advantages])
    assert shaped_rewards(advantages, policy, old, kl_coef=0.1).isfinite().all()


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(averages, averages, averages),
    st.integers(1, 64),
    input_dtypes,
    st.sampled_from(KINDS),
    st.sampled_from(CLIPS),
)
@example((-50.0, 0.0, 0.0), 64, torch.float32, "k3", None)
@example((0.0, -50.0, -50.0), 64, torch.bfloat16, "k2", 0.2)
def test_token_losses_are_finite_at_the_edges(levels, length, dtype, kind, clip):
    policy, old, reference = (
        torch.full((2, length), x, dtype=dtype, requires_grad=i == 0) for i, x in enumerate(levels)
    )
    mask = torch.ones(2, length)
    finite_loss_and_gradients(
        lambda *x: rloo_kl_loss(*x, torch.tensor([5.0, -5.0]), clip=clip, estimator=kind),
        [policy, old, reference, mask],
    )
    finite_loss_and_gradients(lambda *x: kl_penalty(*x, estimator=kind), [policy, reference, mask])


def test_exponents_are_clamped_at_the_documented_bound():
    ratio = -rloo_loss(torch.tensor([0.0, -1.0]), torch.tensor([-400000.0, -2.0]), torch.ones(2))
    torch.testing.assert_close(ratio, torch.tensor([math.exp(MAX_LOG_RATIO), math.e]))
    # the other way it fades to nothing
    assert rloo_loss(torch.tensor([-400000.0]), torch.zeros(1), torch.ones(1)) == 0
    far = kl_penalty(torch.tensor([[-100.0]]), torch.zeros(1, 1), torch.ones(1, 1))
    torch.testing.assert_close(far, torch.tensor([math.exp(MAX_LOG_RATIO)]))
    assert torch.tensor(100.0).exp().isinf()  # what it would be


def test_low_precision_is_computed_in_float32():
    policy, old, reference, mask = (
        x.to(torch.bfloat16) if x.is_floating_point() else x for x in tokens(6, 5, 2)
    )
    advantages = normal(6, seed=5).bfloat16()
    sums = [policy.float().sum(1).bfloat16(), old.float().sum(1).bfloat16(), advantages]
    torch.testing.assert_close(
        rloo_loss(*sums), rloo_loss(*(x.float() for x in sums)), rtol=0, atol=0
    )
    torch.testing.assert_close(
        kl_penalty(policy, reference, mask),
        kl_penalty(policy.float(), reference.float(), mask),
        rtol=0,
        atol=0,
    )
    whole = rloo_kl_loss(policy, old, reference, mask, advantages)
    torch.testing.assert_close(
        whole,
        rloo_kl_loss(*(x.float() for x in (policy, old, reference)), mask, advantages.float()),
        rtol=0,
        atol=0,
    )
    assert whole.dtype == torch.float32


SEQUENCE = {
    rloo_loss: ("policy_logps", "old_logps", "advantages"),
    reinforce_loss: ("policy_logps", "advantages"),
}


def shaping(*x):
    return shaped_rewards(*x, kl_coef=0.1)


def test_wrong_shape_is_refused_by_name():
    for function, names in SEQUENCE.items():
        refuses_wrong_shapes(function, names)
    refuses_wrong_shapes(shaping, ("rewards", "policy_logps", "ref_logps"))
    good = dict(
        token_logps=torch.zeros(3, 4),
        old_token_logps=torch.zeros(3, 4),
        ref_token_logps=torch.zeros(3, 4),
        mask=torch.ones(3, 4),
    )
    for name in good:
        for bad in (torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, 4, 1), torch.zeros(4, 3)):
            with pytest.raises(ValueError, match=name):
                rloo_kl_loss(**good | {name: bad}, advantages=torch.zeros(3))
            if name != "old_token_logps":
                with pytest.raises(ValueError, match=name):
                    kl_penalty(
                        *(
                            {k: v for k, v in good.items() if k != "old_token_logps"} | {name: bad}
                        ).values()
                    )
    for bad in (torch.zeros(3, 4), torch.zeros(2), torch.zeros(())):
        with pytest.raises(ValueError, match="advantages"):
            rloo_kl_loss(**good, advantages=bad)


@pytest.mark.parametrize(
    "name, value",
    [
        ("clip", 0),
        ("clip", -0.1),
        ("clip", math.nan),
        ("clip", math.inf),
        ("clip", "0.2"),
        ("clip", True),
        ("lam", -1.0),
        ("lam", math.inf),
        ("lam", None),
        ("estimator", "k4"),
        ("estimator", None),
        ("kl_coef", -0.1),
        ("kl_coef", math.nan),
        ("kl_coef", None),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(name, value):
    two, four = [torch.zeros(2)] * 3, [torch.zeros(2, 3)] * 4
    with pytest.raises(ValueError, match=name):
        if name == "kl_coef":
            shaped_rewards(*two, kl_coef=value)
        else:
            rloo_kl_loss(*four, two[0], **{name: value})
    if name == "clip":
        with pytest.raises(ValueError, match=name):
            rloo_loss(*two, clip=value)
    if name == "estimator":
        with pytest.raises(ValueError, match=name):
            kl_penalty(*four[:3], estimator=value)


def test_hyperparameters_are_keyword_only():
    two, four = [torch.zeros(2)] * 3, [torch.zeros(2, 3)] * 4
    for function, inputs in (
        (rloo_loss, two),
        (shaped_rewards, two),
        (kl_penalty, four[:3]),
        (rloo_kl_loss, [*four, two[0]]),
    ):
        with pytest.raises(TypeError):
            function(*inputs, 0.1)


def test_values_are_never_looked_at():
    for function, names in SEQUENCE.items():
        runs_without_reading_values(function, names)
    for clip in CLIPS:
        runs_without_reading_values(rloo_loss, SEQUENCE[rloo_loss], clip=clip)
    runs_without_reading_values(shaping, ("rewards", "policy_logps", "ref_logps"))
    four = [torch.zeros(3, 4, device="meta")] * 4
    for kind in KINDS:
        assert kl_penalty(*four[:3], estimator=kind).shape == (3,)
        assert rloo_kl_loss(
            *four, torch.zeros(3, device="meta"), clip=0.2, estimator=kind
        ).shape == (3,)
    # not hidden: the trainer watches for it
    assert rloo_loss(torch.full((1,), math.nan), torch.zeros(1), torch.ones(1)).isnan().all()
