"""KTO: loss, reference point, partners and weights, against TRL's own code, a transcription of the
paper, autograd, and at the edges.
"""

import math
import types
from collections import Counter

import pytest
import torch
from helpers.losses import (
    averages,
    bare_trainer,
    finite_loss_and_gradients,
    input_dtypes,
    pinned_trl,
    random_logps,
    token_counts,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit.losses import derangement, kto_kl, kto_loss, kto_weights


def random_batch(n, dtype, seed):
    "Log-probs of n answers and n mismatched ones, policy and reference, and labels: (n,) each."
    policy, policy_mismatched, ref, ref_mismatched = random_logps(n, dtype, seed)
    desirable = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
    return policy, ref, desirable, policy_mismatched, ref_mismatched


def trl_kto(*, beta, weight_desirable=1.0, weight_undesirable=1.0):
    "TRL's KTOTrainer with just what `_compute_loss` reads; its model answers with given log-probs."
    pinned_trl()
    from trl.trainer.kto_trainer import KTOTrainer

    return bare_trainer(
        KTOTrainer,
        beta=beta,
        desirable_weight=weight_desirable,
        undesirable_weight=weight_undesirable,
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
    )


def trl_kto_loss(trainer, policy, ref, desirable, policy_mismatched, ref_mismatched):
    """TRL's loss of a batch, a scalar (the mean).

    Every answer is one token long and that token's log-prob is the sum.
    """
    n = len(policy)

    def model(*, input_ids, **inputs):  # the mismatched sequences are marked by ids of 1
        log_probs = (policy_mismatched if input_ids[0, 0] else policy)[:, None]
        zeros = torch.zeros_like(log_probs)
        return types.SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros)

    mask, completion = torch.ones(n, 2, dtype=torch.long), torch.tensor([[0, 1]] * n)
    inputs = {
        "input_ids": torch.zeros(n, 2, dtype=torch.long),
        "attention_mask": mask,
        "completion_mask": completion,
        "label": desirable,
        "KL_input_ids": mask,
        "KL_attention_mask": mask,
        "KL_completion_mask": completion,
        "ref_logps": ref,
        "ref_KL_logps": ref_mismatched,
    }
    return trainer._compute_loss(model, inputs, return_outputs=False)


def transcription(
    policy,
    ref,
    desirable,
    policy_mismatched,
    ref_mismatched,
    beta,
    weight_desirable,
    weight_undesirable,
):
    "The paper's Eq. 8 word for word, answer by answer, in Python numbers."
    mismatched = [p - r for p, r in zip(policy_mismatched.tolist(), ref_mismatched.tolist())]
    z0 = max(0.0, sum(mismatched) / len(mismatched))
    losses = []
    for p, r, good in zip(policy.tolist(), ref.tolist(), desirable.tolist()):
        weight, x = (
            (weight_desirable, beta * (p - r - z0))
            if good
            else (weight_undesirable, beta * (z0 - (p - r)))
        )
        value = weight / (1 + math.exp(-x)) if x > -700 else 0.0
        losses.append(weight - value)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_trl_over_1000_random_batches(dtype, rtol):
    generator, above = torch.Generator().manual_seed(0), 0
    for seed in range(1000):
        weights = dict(weight_desirable=1 + (seed % 3) / 3, weight_undesirable=1 + (seed % 2) / 2)
        beta, n = (0.01, 0.1, 0.5, 2.0)[seed % 4], int(torch.randint(2, 9, (), generator=generator))
        policy, ref, desirable, policy_mismatched, ref_mismatched = random_batch(n, dtype, seed)
        policy, policy_mismatched = policy.requires_grad_(), policy_mismatched.requires_grad_()
        kl = kto_kl(policy_mismatched, ref_mismatched)
        above += kl.item() > 0
        ours = kto_loss(policy, ref, desirable, kl, beta=beta, **weights).mean()
        theirs = trl_kto_loss(
            trl_kto(beta=beta, **weights), policy, ref, desirable, policy_mismatched, ref_mismatched
        )
        assert theirs.dtype == dtype
        # TRL's 1 - s(z) is rounded at 1
        torch.testing.assert_close(
            ours, theirs, rtol=rtol, atol=1e-15 if dtype == torch.float64 else 2e-7
        )
        (mine,), (other,) = (torch.autograd.grad(loss, policy) for loss in (ours, theirs))
        torch.testing.assert_close(
            mine, other, rtol=10 * rtol, atol=1e-15 if dtype == torch.float64 else 1e-7
        )
    assert 300 < above < 700  # the clamp was met, and so was what lies above it


def test_each_answer_equals_the_transcription_in_float64_and_float32():
    for seed in range(1000):
        batch, weights = (
            random_batch(6, torch.float64, seed),
            (1 + (seed % 3) / 3, 1 + (seed % 2) / 2),
        )
        expected = transcription(*batch, 0.1, *weights)
        # float32 rounds sums of hundreds of nats
        for dtype, rtol, atol in ((torch.float64, 1e-10, 1e-14), (torch.float32, 1e-4, 1e-6)):
            policy, ref, desirable, *mismatched = [
                x if x.dtype == torch.bool else x.to(dtype) for x in batch
            ]
            loss = kto_loss(
                policy,
                ref,
                desirable,
                kto_kl(*mismatched),
                beta=0.1,
                weight_desirable=weights[0],
                weight_undesirable=weights[1],
            )
            torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=atol)


def test_float32_holds_to_1e_5_against_float64_of_the_same_numbers():
    policy, ref, desirable, *mismatched = random_batch(1000, torch.float32, 3)
    half, exact = [
        kto_loss(
            policy.to(t), ref.to(t), desirable, kto_kl(*(x.to(t) for x in mismatched)), beta=0.1
        )
        for t in (torch.float32, torch.float64)
    ]
    # also where the loss is 1e-9: no 1 - s(z)
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-30)
    assert exact.min() < 1e-3


def test_gradient_passes_gradcheck_in_float64_with_and_without_mismatched_answers():
    policy, ref, desirable, policy_mismatched, ref_mismatched = random_batch(6, torch.float64, 1)
    policy, ref = policy.requires_grad_(), ref.requires_grad_()
    kl = kto_kl(policy_mismatched, ref_mismatched)
    assert torch.autograd.gradcheck(
        lambda p, r, z: kto_loss(p, r, desirable, z, beta=0.1, weight_undesirable=1.5),
        (policy, ref, kl.clone().requires_grad_()),
    )


def test_gradient_is_the_closed_form():
    policy, ref, desirable, *mismatched = random_batch(50, torch.float64, 2)
    policy, kl = policy.requires_grad_(), kto_kl(*mismatched)
    (gradient,) = torch.autograd.grad(
        kto_loss(
            policy, ref, desirable, kl, beta=0.3, weight_desirable=1.2, weight_undesirable=0.7
        ).sum(),
        policy,
    )
    z = 0.3 * (policy.detach() - ref - kl)
    # no 1 - s(z): s'(z) keeps all its digits however far out
    slope = 0.3 * torch.sigmoid(z) * torch.sigmoid(-z)
    torch.testing.assert_close(
        gradient, torch.where(desirable, -1.2 * slope, 0.7 * slope), rtol=1e-10, atol=1e-300
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exactly_half_of_the_weight_where_policy_equals_reference(dtype):
    policy, _, desirable, *_ = random_batch(20, dtype, 4)
    kl = kto_kl(policy.roll(1), policy.roll(1))
    assert kl.item() == 0
    loss = kto_loss(policy, policy.clone(), desirable, kl, beta=0.7, weight_desirable=1.5)
    assert torch.equal(loss, torch.where(desirable, 0.75, 0.5))


@settings(max_examples=200, deadline=None)
@given(
    averages,
    averages,
    averages,
    averages,
    token_counts,
    token_counts,
    input_dtypes,
    st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    st.booleans(),
)
@example(-50.0, 0.0, 0.0, -50.0, 8192, 8192, torch.float32, 10.0, True)
@example(0.0, -50.0, -50.0, 0.0, 8192, 8192, torch.bfloat16, 10.0, False)
def test_loss_and_gradient_are_finite_at_the_edges(
    policy, ref, other_policy, other_ref, length, other_length, dtype, beta, good
):
    sums = [
        torch.tensor([m * n], dtype=dtype, requires_grad=True)
        for m, n in ((policy, length), (ref, length))
    ]
    kl = kto_kl(*(torch.tensor([m * other_length], dtype=dtype) for m in (other_policy, other_ref)))
    assert kl.isfinite() and kl >= 0 and kl.dtype == torch.float32
    desirable = torch.tensor([good])
    loss = finite_loss_and_gradients(lambda p, r: kto_loss(p, r, desirable, kl, beta=beta), sums)
    assert 0 <= loss.item() <= 1


@settings(max_examples=100, deadline=None)
@given(st.floats(-400, 0), st.floats(-400, 0), st.floats(0, 50), st.floats(0.01, 2))
def test_the_losses_of_both_labels_add_up_to_one(policy, ref, kl, beta):
    policy, ref = (torch.tensor([x, x], dtype=torch.float64) for x in (policy, ref))
    loss = kto_loss(
        policy, ref, torch.tensor([True, False]), torch.tensor(kl, dtype=torch.float64), beta=beta
    )
    torch.testing.assert_close(
        loss.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_bfloat16_input_is_computed_in_float32():
    policy, ref, desirable, *mismatched = random_batch(50, torch.bfloat16, 5)
    up = kto_loss(policy.float(), ref.float(), desirable, kto_kl(*(x.float() for x in mismatched)))
    torch.testing.assert_close(
        kto_loss(policy, ref, desirable, kto_kl(*mismatched)), up, rtol=0, atol=0
    )


def test_loss_is_one_number_per_answer_and_not_reduced():
    policy, ref, desirable, *mismatched = random_batch(6, torch.float32, 6)
    kl = kto_kl(*mismatched)
    whole = kto_loss(policy, ref, desirable, kl)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], kto_loss(policy[2:3], ref[2:3], desirable[2:3], kl))


# ---- the reference point


def test_reference_point_is_a_mean_detached_and_never_below_zero():
    policy = torch.tensor([-10.0, -20.0], requires_grad=True)
    kl = kto_kl(policy, torch.tensor([-11.0, -24.0]))
    assert kl.shape == () and kl.item() == 2.5 and not kl.requires_grad
    assert kto_kl(policy, torch.tensor([-9.0, -18.0])).item() == 0


def test_gradient_of_a_training_step_does_not_see_the_mismatched_answers():
    policy, ref, desirable, policy_mismatched, ref_mismatched = random_batch(8, torch.float64, 11)
    policy_mismatched = policy_mismatched.requires_grad_()
    loss = kto_loss(
        policy.requires_grad_(), ref, desirable, kto_kl(policy_mismatched, ref_mismatched - 100)
    ).sum()
    ours, none = torch.autograd.grad(loss, (policy, policy_mismatched), allow_unused=True)
    assert none is None and ours.abs().max() > 0


def test_rolling_finished_log_ratios_is_the_mean_of_the_matched_ones():
    "A mean does not see the order: mismatching must happen before the forward pass, not after it."
    policy, ref, *_ = random_batch(16, torch.float64, 8)
    torch.testing.assert_close(
        kto_kl(policy.roll(1), ref.roll(1)), kto_kl(policy, ref), rtol=1e-12, atol=1e-12
    )


def test_one_pair_that_is_its_own_partner_never_lets_go():
    """Why a batch of one is refused: z0 is then the answer's own log-ratio, and a gain has no
    effect.
    """
    losses, slopes = [], []
    for gain in (0.5, 5.0, 500.0):
        policy, ref = torch.tensor([-100.0 + gain], requires_grad=True), torch.tensor([-100.0])
        loss = kto_loss(policy, ref, torch.tensor([True]), kto_kl(policy, ref))
        losses.append(loss.item())
        slopes.append(torch.autograd.grad(loss.sum(), policy)[0].item())
    assert losses == [0.5] * 3 and slopes == pytest.approx([-0.025] * 3)


# ---- partners


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(0, 5))
def test_partners_are_a_permutation_without_a_prompt_of_ones_own_or_an_error(groups, seed):
    if 2 * max(Counter(groups).values()) > len(groups):
        with pytest.raises(ValueError, match="groups: .* more than half"):
            derangement(groups, seed=seed)
        return
    partners = derangement(groups, seed=seed)
    assert sorted(partners) == list(range(len(groups)))
    assert all(groups[row] != groups[partner] for row, partner in enumerate(partners))
    assert partners == derangement(groups, seed=seed)


def test_partners_of_the_hardest_case_and_of_the_impossible_one():
    # half of the rows have one prompt
    assert sorted(derangement([0, 0, 0, 1, 2, 3], seed=0)) == list(range(6))
    for groups in ([], [0], [0, 0], [0, 0, 0, 1, 2]):
        with pytest.raises(ValueError, match="groups"):
            derangement(groups, seed=0)


def test_partners_change_with_the_seed_and_have_no_favourites():
    groups = [i // 2 for i in range(12)]
    assert len({tuple(derangement(groups, seed=seed)) for seed in range(20)}) > 15
    counts = torch.zeros(12, 12)
    for seed in range(4000):
        for row, partner in enumerate(derangement(groups, seed=seed)):
            counts[row, partner] += 1
    allowed = torch.tensor(groups)[:, None] != torch.tensor(groups)
    # 4,000 draws over 10 partners each
    assert not counts[~allowed].any() and (counts[allowed] / 400 - 1).abs().max() < 0.25


def test_prompts_may_be_told_apart_by_anything_hashable():
    assert derangement([(1, 2), "a", (1, 2), 7], seed=0) == derangement([0, 1, 0, 2], seed=0)


def test_partners_of_a_hundred_thousand_rows_come_at_once():
    groups = [i // 2 for i in range(100_000)]
    assert all(
        groups[row] != groups[partner] for row, partner in enumerate(derangement(groups, seed=0))
    )


def test_pairs_written_one_label_after_the_other_give_one_label_batches():
    """What TRL's own function makes of 2,500 pairs, read in order (its trainer refuses to shuffle
    for KTO): 624 batches of 625 have one label.
    """
    data_utils, datasets = pytest.importorskip("trl.data_utils"), pytest.importorskip("datasets")
    pairs = datasets.Dataset.from_list(
        [{"prompt": str(i), "chosen": "good", "rejected": "bad"} for i in range(2500)]
    )
    rows = data_utils.unpair_preference_dataset(pairs)

    def one_label(labels):
        return sum(len(set(labels[start : start + 8])) == 1 for start in range(0, len(labels), 8))

    assert (len(rows) // 8, one_label(rows["label"][:])) == (625, 624)
    shuffled = rows.shuffle(seed=0)
    assert one_label(shuffled["label"][:]) < 20
    for data in (rows, shuffled):
        prompts = data["prompt"][:]
        assert all(
            prompts[row] != prompts[partner]
            for row, partner in enumerate(derangement(prompts, seed=0))
        )


# ---- weights


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(1, 4 / 3))
def test_weights_give_the_ratio_and_the_smaller_is_one(desirable, undesirable, ratio):
    weight_desirable, weight_undesirable = kto_weights(desirable, undesirable, ratio=ratio)
    assert min(weight_desirable, weight_undesirable) == 1
    assert weight_desirable * desirable / (weight_undesirable * undesirable) == pytest.approx(ratio)


def test_weights_of_balanced_and_of_lopsided_data():
    assert kto_weights(500, 500) == (1.0, 1.0)
    assert kto_weights(100, 400) == (4.0, 1.0) and kto_weights(400, 100) == (1.0, 4.0)


def test_weights_lie_in_the_range_that_trl_recommends():
    for desirable, undesirable in ((100, 400), (400, 100), (7, 9)):
        for ratio in (1.0, 1.2, 1.33):
            wd, wu = kto_weights(desirable, undesirable, ratio=ratio)
            assert 1 <= round(wd * desirable / (wu * undesirable), 6) <= 1.33


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((0, 5), "undesirable|desirable"),
        ((5, 0), "undesirable"),
        ((2.5, 5), "desirable"),
        ((True, 5), "desirable"),
    ],
)
def test_counts_that_are_no_counts_are_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=name):
        kto_weights(*arguments)


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf, "1", True])
def test_a_ratio_out_of_range_is_refused_by_name(ratio):
    with pytest.raises(ValueError, match="ratio"):
        kto_weights(3, 4, ratio=ratio)


# ---- refusals


def batch_of(n):
    return dict(
        policy_logps=torch.zeros(n),
        ref_logps=torch.zeros(n),
        desirable=torch.ones(n, dtype=torch.bool),
        kl=torch.tensor(0.0),
    )


@pytest.mark.parametrize("name", ["policy_logps", "ref_logps", "desirable"])
@pytest.mark.parametrize("shape", [(3, 1), (), (2,)])
def test_wrong_shape_is_refused_by_name(name, shape):
    inputs = batch_of(3)
    inputs[name] = torch.zeros(shape, dtype=inputs[name].dtype)
    with pytest.raises(ValueError, match=name):
        kto_loss(**inputs)


@pytest.mark.parametrize("shape", [(1,), (3,)])
def test_a_reference_point_that_is_no_single_number_is_refused(shape):
    with pytest.raises(ValueError, match="kl must have shape"):
        kto_loss(**{**batch_of(3), "kl": torch.zeros(shape)})


@pytest.mark.parametrize("labels", [torch.tensor([1, -1, 1]), torch.ones(3)])
def test_labels_that_are_not_bool_are_refused(labels):
    with pytest.raises(ValueError, match="desirable must be of type bool"):
        kto_loss(**{**batch_of(3), "desirable": labels})


@pytest.mark.parametrize("name", ["policy_mismatched_logps", "ref_mismatched_logps"])
@pytest.mark.parametrize("shape", [(3, 1), (), (2,)])
def test_wrong_shape_of_mismatched_answers_is_refused_by_name(name, shape):
    inputs = dict(policy_mismatched_logps=torch.zeros(3), ref_mismatched_logps=torch.zeros(3))
    inputs[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=name):
        kto_kl(**inputs)


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
        ("weight_desirable", -1.0),
        ("weight_desirable", math.nan),
        ("weight_undesirable", -0.1),
        ("weight_undesirable", math.inf),
        ("weight_undesirable", "1"),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        kto_loss(**batch_of(3), **{name: value})


def test_hyperparameters_are_keyword_only():
    with pytest.raises(TypeError):
        kto_loss(*batch_of(2).values(), 0.1)
    with pytest.raises(TypeError):
        derangement([0, 1], 0)
    with pytest.raises(TypeError):
        kto_weights(3, 4, 1.0)


def test_values_are_never_looked_at():
    meta = [
        torch.zeros(4, device="meta"),
        torch.zeros(4, device="meta"),
        torch.zeros(4, dtype=torch.bool, device="meta"),
    ]
    assert kto_loss(*meta, kto_kl(*meta[:2]), weight_undesirable=2.0).shape == (4,)
    # not hidden either: the trainer watches for it
    assert kto_loss(**{**batch_of(1), "policy_logps": torch.full((1,), math.nan)}).isnan().all()
