"""PPO: token rewards, advantages, whitening, the clipped loss and the KL controller, against loops
in plain Python, SciPy's filter, closed forms, and at their edges.
"""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch.testing import assert_close

from prefkit.losses import adapt_kl, gae, ppo_clipped_share, ppo_loss, token_rewards, whiten
from prefkit.losses.topr import MAX_LOG_RATIO

NAMES = ("token_logps", "old_token_logps", "values", "old_values", "returns", "advantages", "mask")
SHAPES = ["right", "left", "gaps"]  # where the padding is: behind, in front, anywhere
CLIPS = [(0.2, 0.2, 0.1), (0.1, 1.0, 0.5), (0.5, 0.05, 0.0), (1.5, 3.0, 2.0)]


def random_mask(batch, length, seed):
    """Answers of 1 token to `length`, every other batch with gaps, and now and then an answer
    without any token.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, length + 1, (batch, 1), generator=generator)
    mask = torch.arange(length).expand(batch, length) < counts
    layout = SHAPES[seed % 3]
    if layout == "left":
        mask = mask.flip(-1)
    if layout == "gaps":
        mask = torch.rand(batch, length, generator=generator) < 0.6
    if seed % 7 == 0:
        mask[0] = False
    return mask


def draw(seed, batch=5, length=9, dtype=torch.float64):
    """Arguments of `ppo_loss`: ratios and values inside and outside both clips; NaN or infinity in
    padding.
    """
    generator = torch.Generator().manual_seed(seed + 5000)
    normal = lambda: torch.randn(batch, length, generator=generator, dtype=torch.float64)
    mask, old, old_values, returns = (
        random_mask(batch, length, seed),
        -3 * normal().abs(),
        normal(),
        normal(),
    )
    x = [old + 0.4 * normal(), old, old_values + 0.4 * normal(), old_values, returns, normal()]
    rubbish = [math.nan, math.inf, -math.inf, 1e30][seed % 4]
    return [torch.where(mask, each, rubbish).to(dtype) for each in x], mask


def loss_in_words(new, old, value, old_value, target, advantage, clip, value_clip, value_weight):
    "One token in Python's floats: its loss and its derivatives by the log-prob and by the value."
    ratio = math.exp(new - old)
    bounded = min(max(ratio, 1 - clip), 1 + clip)
    flat = ratio * advantage > bounded * advantage  # outside, on the side that would pay
    near = min(max(value, old_value - value_clip), old_value + value_clip)
    worse = max((value - target) ** 2, (near - target) ** 2)
    stuck = near != value and (near - target) ** 2 > (value - target) ** 2
    return (
        -min(ratio * advantage, bounded * advantage) + value_weight * worse / 2,
        0.0 if flat else -advantage * ratio,
        0.0 if stuck else value_weight * (value - target),
    )


@pytest.mark.parametrize(
    "dtype, rtol, atol", [(torch.float64, 1e-10, 1e-12), (torch.float32, 1e-4, 1e-5)]
)
def test_loss_and_gradients_equal_a_transcription_on_300_random_batches(dtype, rtol, atol):
    met = {"flat": 0, "stuck": 0, "free": 0}
    for seed in range(300):
        clip, value_clip, weight = CLIPS[seed % 4]
        x, mask = draw(seed, dtype=dtype)
        x[0].requires_grad_(), x[2].requires_grad_()
        loss = ppo_loss(*x, mask, clip=clip, value_clip=value_clip, value_weight=weight)
        gradients = torch.autograd.grad(loss.sum(), (x[0], x[2]))
        wanted, by_logp, by_value = [], np.zeros(mask.shape), np.zeros(mask.shape)
        for i, row in enumerate(mask):
            tokens = row.nonzero().flatten().tolist()
            words = [
                loss_in_words(*(each[i, t].item() for each in x), clip, value_clip, weight)
                for t in tokens
            ]
            wanted.append(sum(w[0] for w in words) / max(len(words), 1))
            for t, (_, a, b) in zip(tokens, words):
                by_logp[i, t], by_value[i, t] = a / len(tokens), b / len(tokens)
            met["flat"] += sum(w[1] == 0 for w in words)
            met["stuck"] += sum(w[2] == 0 for w in words) * (weight > 0)
            met["free"] += sum(w[1] != 0 != w[2] for w in words)
        assert loss.dtype == dtype
        for ours, theirs in ((loss, wanted), (gradients[0], by_logp), (gradients[1], by_value)):
            assert_close(
                ours.detach().double(), torch.tensor(np.array(theirs)), rtol=rtol, atol=atol
            )
    assert min(met.values()) > 200, met  # each branch was met


def gae_in_words(rewards, values, gamma, lam):
    "Of one answer without padding, by the definition: a double loop over one-step errors."
    values, count = [*values, 0.0], len(rewards)
    return [
        sum(
            (gamma * lam) ** (k - t) * (rewards[k] + gamma * values[k + 1] - values[k])
            for k in range(t, count)
        )
        for t in range(count)
    ]


@pytest.mark.parametrize(
    "gamma, lam", [(1.0, 0.95), (0.99, 0.95), (1.0, 1.0), (1.0, 0.0), (0.9, 0.5), (0.0, 0.7)]
)
def test_advantages_equal_a_double_loop_and_a_recursive_filter_on_250_random_batches(gamma, lam):
    for seed in range(250):
        (rewards, _, values, *_), mask = draw(seed)
        advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
        assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()
        for i, row in enumerate(mask):
            r, v = rewards[i, row].numpy(), values[i, row].numpy()
            wanted = np.array(gae_in_words(r, v, gamma, lam))
            delta = r + gamma * np.append(v[1:], 0.0)[: len(v)] - v
            filtered = lfilter([1.0], [1.0, -gamma * lam], delta[::-1])[::-1] if len(v) else delta
            for theirs in (wanted, filtered):
                np.testing.assert_allclose(
                    advantages[i, row].numpy(), theirs, rtol=1e-10, atol=1e-12
                )
                np.testing.assert_allclose(
                    returns[i, row].numpy(), theirs + v, rtol=1e-10, atol=1e-12
                )


def test_the_two_ends_of_lam_are_return_minus_value_and_the_one_step_error():
    (rewards, _, values, *_), mask = draw(1)
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = rewards.flip(-1).cumsum(-1).flip(-1)
    assert_close(advantages, torch.where(mask, to_come - values, 0), rtol=1e-12, atol=1e-12)
    assert_close(returns, torch.where(mask, to_come, 0), rtol=1e-12, atol=1e-12)
    full = torch.ones_like(mask)
    advantages, returns = gae(rewards, values, full, gamma=0.9, lam=0.0)
    ahead = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], -1)
    assert_close(returns, rewards + 0.9 * ahead, rtol=1e-12, atol=1e-12)
    assert_close(advantages, rewards + 0.9 * ahead - values, rtol=1e-12, atol=1e-12)


def test_more_padding_changes_nothing():
    for seed in range(12):
        x, mask = draw(seed)
        pad = lambda y, fill: torch.cat(
            [torch.full((5, 2), fill, dtype=y.dtype), y, torch.full((5, 3), fill, dtype=y.dtype)],
            -1,
        )
        wide, more = [pad(y, math.nan) for y in x], pad(mask, False)
        assert_close(ppo_loss(*wide, more), ppo_loss(*x, mask), rtol=1e-12, atol=1e-14)
        for ours, theirs in zip(gae(wide[0], wide[2], more), gae(x[0], x[2], mask)):
            assert_close(ours[:, 2:-3], theirs, rtol=0, atol=0)
        assert_close(whiten(wide[0], more)[:, 2:-3], whiten(x[0], mask), rtol=1e-12, atol=1e-14)
        score = torch.arange(5.0)
        assert_close(
            token_rewards(score, wide[0], wide[1], more, kl_coef=0.1)[:, 2:-3],
            token_rewards(score, x[0], x[1], mask, kl_coef=0.1),
            rtol=0,
            atol=0,
        )
        assert_close(
            ppo_clipped_share(wide[0], wide[1], more, wide[5], clip=0.2),
            ppo_clipped_share(x[0], x[1], mask, x[5], clip=0.2),
        )


def test_masks_may_be_whole_numbers_or_floats():
    x, mask = draw(1)
    for other in (mask.long(), mask.float()):
        assert torch.equal(ppo_loss(*x, other), ppo_loss(*x, mask)) and torch.equal(
            whiten(x[0], other), whiten(x[0], mask)
        )
        assert torch.equal(gae(x[0], x[2], other)[0], gae(x[0], x[2], mask)[0])
        assert torch.equal(
            token_rewards(torch.ones(5), x[0], x[1], other, kl_coef=1.0),
            token_rewards(torch.ones(5), x[0], x[1], mask, kl_coef=1.0),
        )


def test_token_rewards_equal_a_loop_on_250_random_batches():
    for seed in range(250):
        (logps, reference, *_), mask = draw(seed)
        score, kl_coef = (
            torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
            [0.0, 0.1, 1.0][seed % 3],
        )
        wanted = torch.zeros_like(logps)
        for i, row in enumerate(mask):
            tokens = row.nonzero().flatten().tolist()
            for t in tokens:
                wanted[i, t] = -kl_coef * (logps[i, t] - reference[i, t])
            if tokens:
                wanted[i, tokens[-1]] += score[i]
        rewards = token_rewards(score, logps, reference, mask, kl_coef=kl_coef)
        assert_close(rewards, wanted, rtol=1e-10, atol=1e-14)
        log_ratio = torch.where(mask, logps - reference, 0).sum(-1)
        assert_close(
            rewards.sum(-1),
            torch.where(mask.any(-1), score - kl_coef * log_ratio, 0),
            rtol=1e-10,
            atol=1e-12,
        )


def test_no_gradient_flows_through_rewards_advantages_or_what_was_sampled():
    x, mask = draw(1)
    x, score = (
        [each.requires_grad_() for each in x],
        torch.ones(5, dtype=torch.float64, requires_grad=True),
    )
    assert not token_rewards(score, x[0], x[1], mask, kl_coef=0.1).requires_grad
    assert (
        not any(each.requires_grad for each in gae(x[0], x[2], mask))
        and not ppo_clipped_share(x[0], x[1], mask, x[5], clip=0.2).requires_grad
    )
    gradients = torch.autograd.grad(ppo_loss(*x, mask).sum(), x, allow_unused=True)
    assert [g is not None for g in gradients] == [True, False, True, False, False, False]


def test_padding_leaks_into_no_gradient():
    for seed in range(4):  # NaN, two infinities, a huge number
        x, mask = draw(seed)
        for position in (0, 2):
            x[position].requires_grad_()
        for gradient in torch.autograd.grad(ppo_loss(*x, mask).sum(), (x[0], x[2])):
            assert gradient.isfinite().all() and (gradient[~mask] == 0).all()
        y = x[4].clone().requires_grad_()
        (gradient,) = torch.autograd.grad((whiten(y, mask) ** 3).sum(), y)
        assert gradient.isfinite().all() and (gradient[~mask] == 0).all()


def test_whitened_tokens_have_mean_0_and_variance_1():
    for seed in range(200):
        (x, *_), mask = draw(seed)
        x = torch.where(mask, 3 * x + 7, x)
        kept = x[mask].numpy()
        ours = whiten(x, mask)
        np.testing.assert_allclose(
            ours[mask].numpy(),
            (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8),
            rtol=1e-10,
            atol=1e-10,
        )
        assert (
            abs(ours[mask].mean()) < 1e-10
            and abs(ours[mask].var(correction=0) - 1) < 1e-6
            and (ours[~mask] == 0).all()
        )
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(whiten(torch.full((2, 3), math.nan), nothing), torch.zeros(2, 3))
    # nobody better than anybody else
    assert torch.equal(whiten(torch.full((2, 3), 5.0), ~nothing), torch.zeros(2, 3))


def test_gradcheck():
    for seed in range(1, 6):
        x, mask = draw(seed)
        x = [torch.where(mask, each, 0) for each in x]
        new, values = x[0].requires_grad_(), x[2].requires_grad_()
        assert torch.autograd.gradcheck(
            lambda a, b: ppo_loss(a, x[1], b, *x[3:], mask), (new, values)
        )
        assert torch.autograd.gradcheck(lambda a: whiten(a, mask), (x[4].requires_grad_(),))


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    "Ratio 1, nothing clipped: minus advantage times gradient of the log-prob, over the length."
    x, mask = draw(2)
    new = x[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ppo_loss(new, *x[1:], mask, value_weight=0.0).sum(), new)
    wanted = torch.where(mask, -x[5], 0) / mask.sum(-1, keepdim=True).clamp(min=1)
    assert_close(gradient, wanted, rtol=1e-12, atol=0)


def test_the_flat_regions_of_the_surrogate():
    """One token, advantage +1 and -1: flat beyond 1.2 for the good one, below 0.8 for the bad one,
    and nowhere else.
    """
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0], dtype=torch.float64)
    zeros, one = torch.zeros(7, 1, dtype=torch.float64), torch.ones(7, 1, dtype=torch.bool)
    for sign, flat in ((1.0, ratio > 1.2), (-1.0, ratio < 0.8)):
        new = ratio.log()[:, None].requires_grad_()
        loss = ppo_loss(new, zeros, zeros, zeros, zeros, zeros + sign, one)
        (gradient,) = torch.autograd.grad(loss.sum(), new)
        assert_close(gradient[:, 0], torch.where(flat, 0, -sign * ratio))
        assert torch.equal(
            ppo_clipped_share(new, zeros, one, zeros + sign, clip=0.2), flat.double()
        )
    assert torch.equal(
        ppo_clipped_share(ratio.log()[:, None], zeros, one, zeros, clip=0.2), zeros[:, 0]
    )


def test_clipped_share_is_the_share_of_tokens_without_a_policy_gradient():
    for seed in range(200):
        x, mask = draw(seed)
        x[0].requires_grad_()
        (gradient,) = torch.autograd.grad(ppo_loss(*x, mask, value_weight=0.0).sum(), x[0])
        wanted = ((gradient == 0) & mask).sum(-1).double() / mask.sum(-1).clamp(min=1)
        assert_close(
            ppo_clipped_share(x[0], x[1], mask, x[5], clip=0.2), wanted, rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 1000.0, -1000.0, 0.0])
def test_loss_and_gradient_are_finite_at_the_edges(dtype, advantage):
    far = torch.tensor([-400000.0, -50.0, -1e-6, 0.0])
    new, old = (y.reshape(1, -1).to(dtype) for y in torch.meshgrid(far, far, indexing="ij"))
    values = torch.linspace(-1e4, 1e4, 16).reshape(1, -1).to(dtype)
    new.requires_grad_(), values.requires_grad_()
    loss = ppo_loss(
        new,
        old,
        values,
        values.detach().flip(-1),
        -values.detach(),
        torch.full_like(old, advantage),
        torch.ones(1, 16),
    )
    assert loss.dtype == torch.float32 and loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), (new, values)):
        assert gradient.isfinite().all()
    rewards = token_rewards(torch.tensor([1e6]), new, old, torch.ones(1, 16), kl_coef=10.0)
    assert all(
        y.isfinite().all()
        for y in (
            rewards,
            *gae(rewards, values, torch.ones(1, 16)),
            whiten(rewards, torch.ones(1, 16)),
        )
    )


def test_exponent_is_clamped_at_the_documented_bound():
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    loss = ppo_loss(zero, zero - 400000.0, zero, zero, zero, -one, one)
    assert_close(loss, torch.tensor([math.exp(MAX_LOG_RATIO)]))
    # the other way it fades to nothing
    assert ppo_loss(zero - 400000.0, zero, zero, zero, zero, one, one) == 0


def test_low_precision_is_computed_in_float32():
    x, mask = draw(1, dtype=torch.bfloat16)
    wide = [each.float() for each in x]
    assert torch.equal(ppo_loss(*x, mask), ppo_loss(*wide, mask)) and torch.equal(
        whiten(x[4], mask), whiten(wide[4], mask)
    )
    assert torch.equal(gae(x[4], x[2], mask)[0], gae(wide[4], wide[2], mask)[0])
    assert ppo_clipped_share(x[0], x[1], mask, x[5], clip=0.2).dtype == torch.float32
    assert (
        token_rewards(torch.ones(5, dtype=torch.long), x[0], x[1], mask, kl_coef=0.1).dtype
        == torch.float32
    )


def test_controller_equals_its_formula_and_turns_the_right_way():
    for kl in (-3.0, 0.0, 4.0, 5.5, 6.0, 6.5, 8.0, 1e6):
        error = float(np.clip(kl / 6.0 - 1, -0.2, 0.2))
        assert adapt_kl(0.1, kl, steps=64) == pytest.approx(
            0.1 * (1 + error * 64 / 2000), rel=1e-14
        )
    assert adapt_kl(0.1, 6.0, steps=64) == 0.1 and adapt_kl(0.1, 60.0, steps=64) > 0.1 > adapt_kl(
        0.1, 1.0, steps=64
    )
    assert adapt_kl(0.1, 9.0, target=3.0, horizon=1000, steps=0) == 0.1
    assert isinstance(adapt_kl(1, 6, steps=1), float)


@pytest.mark.parametrize(
    "name, value",
    [
        ("coefficient", -0.1),
        ("coefficient", math.inf),
        ("kl", math.nan),
        ("kl", math.inf),
        ("kl", -math.inf),
        ("kl", torch.zeros(())),
        ("target", 0.0),
        ("target", math.nan),
        ("horizon", 0),
        ("horizon", -1),
        ("steps", -1),
        ("steps", 10000),
        ("steps", None),
        ("steps", True),
    ],
)
def test_controller_refuses_by_name(name, value):
    arguments = {"coefficient": 0.1, "kl": 5.0, "steps": 64, name: value}
    coefficient, kl = arguments.pop("coefficient"), arguments.pop("kl")
    with pytest.raises(ValueError, match=name):
        adapt_kl(coefficient, kl, **arguments)


def calls():
    "Each function with arguments of a good shape, by name."
    tokens = lambda *names: {name: torch.ones(3, 4) for name in names}
    return [
        (ppo_loss, tokens(*NAMES), {}),
        (gae, tokens("rewards", "values", "mask"), {}),
        (whiten, tokens("x", "mask"), {}),
        (
            token_rewards,
            {"rewards": torch.ones(3), **tokens("token_logps", "ref_token_logps", "mask")},
            {"kl_coef": 0.1},
        ),
        (
            ppo_clipped_share,
            tokens("token_logps", "old_token_logps", "mask", "advantages"),
            {"clip": 0.2},
        ),
    ]


@pytest.mark.parametrize(
    "function, arguments, settings", calls(), ids=lambda x: getattr(x, "__name__", "")
)
def test_wrong_shape_is_refused_by_name(function, arguments, settings):
    function(**arguments, **settings)
    for name in arguments:
        for bad in (
            torch.ones(3, 4, 1),
            torch.ones(()),
            torch.ones(3, 5),
            torch.ones(3, 1),
            torch.ones(1, 4),
            torch.ones(4),
        ):
            with pytest.raises(ValueError) as error:
                function(**{**arguments, name: bad}, **settings)
            assert name in str(error.value)


@pytest.mark.parametrize(
    "index, name, value",
    [
        *(
            (0, name, bad)
            for name in ("clip", "value_clip")
            for bad in (0, -0.1, math.nan, math.inf, "0.2", None, True)
        ),
        (0, "value_weight", -1),
        (0, "value_weight", math.inf),
        *((1, name, bad) for name in ("gamma", "lam") for bad in (-0.1, 1.1, math.nan, None, True)),
        (2, "eps", 0),
        (2, "eps", math.nan),
        (3, "kl_coef", -1),
        (3, "kl_coef", math.nan),
        (4, "clip", 0),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(index, name, value):
    function, arguments, settings = calls()[index]
    with pytest.raises(ValueError, match=name):
        function(**arguments, **{**settings, name: value})


def test_hyperparameters_are_keyword_only_and_values_are_never_looked_at():
    for function, arguments, settings in calls():
        with pytest.raises(TypeError):
            function(*arguments.values(), 0.1)
        result = function(**{name: x.to("meta") for name, x in arguments.items()}, **settings)
        for each in result if isinstance(result, tuple) else (result,):
            assert each.device.type == "meta" and each.shape[0] == 3
    with pytest.raises(TypeError):
        adapt_kl(0.1, 5.0, 6.0, 2000, 64)
    x, mask = draw(1)
    x[5][mask] = math.nan
    # inside the answer it is not hidden: the trainer watches for it
    assert ppo_loss(*x, mask).isnan().all()
