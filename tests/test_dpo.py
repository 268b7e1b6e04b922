"""The DPO loss: against TRL's own code, autograd, finite differences, and at its edges."""
import math, types
from collections import defaultdict

import pytest, torch
from hypothesis import example, given, settings, strategies as st

from prefkit.losses import dpo_loss

NAMES = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def random_logps(n, dtype, seed):
    "Four columns of sums as training sees them: lengths 1 to 512, a few nats a token, the policy near the reference."
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.rand(n, generator=generator, dtype=torch.float64)
    lengths = [(1 + 511 * draw()).floor() for _ in range(2)]
    reference = [-4 * draw() * length for length in lengths]
    policy = [ref + (draw() - 0.5) * 0.4 * length for ref, length in zip(reference, lengths)]
    return [x.clamp(max=0).to(dtype) for x in (*policy, *reference)]


def trl_trainer(*, beta, loss_type="sigmoid", label_smoothing=0.0):
    "TRL's DPOTrainer with just what `_compute_loss` reads. Its loss is a method that wants a model: ours answers with given log-probs."
    trl = pytest.importorskip("trl", reason="TRL, the outside oracle, is not installed (extra `dev`)")
    if not trl.__version__.startswith("1.16."): pytest.skip(f"the oracle is pinned to TRL 1.16, found {trl.__version__}")
    from trl.trainer.dpo_trainer import DPOTrainer
    trainer = object.__new__(DPOTrainer)
    trainer.model = types.SimpleNamespace(training=False)
    trainer.accelerator = types.SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer.beta, trainer.label_smoothing = beta, label_smoothing
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer.f_divergence_type, trainer.ld_alpha = "reverse_kl", None
    trainer.precompute_ref_logps, trainer.use_weighting, trainer.aux_loss_enabled = True, False, False
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = {"eval": defaultdict(list)}, 0, 1
    return trainer


def trl_loss(trainer, pc, pr, rc, rr):
    "TRL's loss of a batch of pairs, a scalar (the mean). Every answer is one token long and that token's log-prob is the sum."
    n = len(pc)
    log_probs = torch.cat([pc, pr])[:, None]
    def model(**inputs):
        zeros = torch.zeros_like(log_probs)
        return types.SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    inputs = {"input_ids": torch.zeros(2 * n, 2, dtype=torch.long), "attention_mask": torch.ones(2 * n, 2, dtype=torch.long),
              "completion_mask": torch.tensor([[0, 1]] * (2 * n)), "ref_chosen_logps": rc, "ref_rejected_logps": rr}
    return trainer._compute_loss(model, inputs, return_outputs=False)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_trl_on_1000_random_pairs_one_by_one(dtype, rtol):
    betas = (0.01, 0.1, 0.5, 2.0)
    for seed, beta in enumerate(betas):
        logps = random_logps(1000 // len(betas), dtype, seed)
        trainer = trl_trainer(beta=beta)
        theirs = torch.stack([trl_loss(trainer, *(x[i:i + 1] for x in logps)) for i in range(len(logps[0]))])
        assert theirs.dtype == dtype and theirs.unique().numel() > 100 # the oracle did compute something
        torch.testing.assert_close(dpo_loss(*logps, beta=beta), theirs, rtol=rtol, atol=0 if dtype == torch.float64 else 1e-30)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_mean_over_a_batch_and_its_gradient_equal_trl(dtype, rtol):
    logps = random_logps(64, dtype, 7)
    for x in logps[:2]: x.requires_grad_()
    ours, theirs = dpo_loss(*logps, beta=0.1).mean(), trl_loss(trl_trainer(beta=0.1), *logps)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, logps[:2]), torch.autograd.grad(theirs, logps[:2])):
        torch.testing.assert_close(mine, other, rtol=10 * rtol, atol=1e-12)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_label_smoothing_equals_trl_where_trl_has_it(dtype, rtol):
    "TRL 1.16 smooths in `aot`, which for a batch of one pair has nothing to sort and is cDPO; its `sigmoid` ignores the parameter."
    logps = random_logps(200, dtype, 3)
    trainer = trl_trainer(beta=0.2, loss_type="aot", label_smoothing=0.15)
    theirs = torch.stack([trl_loss(trainer, *(x[i:i + 1] for x in logps)) for i in range(200)])
    torch.testing.assert_close(dpo_loss(*logps, beta=0.2, label_smoothing=0.15), theirs, rtol=rtol, atol=0)
    plain, ignored = trl_loss(trl_trainer(beta=0.2), *logps), trl_loss(trl_trainer(beta=0.2, label_smoothing=0.15), *logps)
    assert plain.item() == ignored.item()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradient_passes_gradcheck_in_float64(label_smoothing):
    logps = [x.requires_grad_() for x in random_logps(5, torch.float64, 1)]
    assert torch.autograd.gradcheck(lambda *x: dpo_loss(*x, beta=0.1, label_smoothing=label_smoothing), logps)


def test_gradient_is_the_closed_form():
    logps = [x.requires_grad_() for x in random_logps(50, torch.float64, 2)]
    gradients = torch.autograd.grad(dpo_loss(*logps, beta=0.3).sum(), logps)
    pc, pr, rc, rr = (x.detach() for x in logps)
    weight = 0.3 * torch.sigmoid(-0.3 * ((pc - rc) - (pr - rr)))
    for gradient, sign in zip(gradients, (-1, 1, 1, -1)):
        torch.testing.assert_close(gradient, sign * weight, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exactly_ln_2_where_policy_equals_reference(dtype):
    chosen, rejected = random_logps(20, dtype, 4)[:2]
    loss = dpo_loss(chosen, rejected, chosen.clone(), rejected.clone(), beta=0.7)
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))


averages = st.floats(-50, 0, allow_nan=False)
lengths = st.integers(1, 8192)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])

@settings(max_examples=200, deadline=None)
@given(st.tuples(averages, averages, averages, averages), lengths, lengths, dtypes, st.sampled_from([0.01, 0.1, 1.0, 10.0]),
       st.sampled_from([0.0, 0.1]))
@example((-50.0, 0.0, 0.0, -50.0), 8192, 8192, torch.float32, 10.0, 0.0)
@example((0.0, -50.0, -50.0, 0.0), 8192, 8192, torch.bfloat16, 10.0, 0.1)
def test_loss_and_gradient_are_finite_at_the_edges(mean_logps, chosen_length, rejected_length, dtype, beta, label_smoothing):
    lengths = (chosen_length, rejected_length, chosen_length, rejected_length)
    logps = [torch.tensor([m * n], dtype=dtype, requires_grad=True) for m, n in zip(mean_logps, lengths)]
    loss = dpo_loss(*logps, beta=beta, label_smoothing=label_smoothing)
    assert loss.dtype == torch.float32 and loss.isfinite().all() and (loss >= 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.sum(), logps))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-400, 0), min_size=4, max_size=4), st.floats(0.01, 2), st.floats(0, 0.45))
def test_swapping_the_answers_of_a_pair_is_smoothing_turned_round(values, beta, label_smoothing):
    "-log s(z) and -log s(-z) differ by z: a relation that no single-sided oracle shows."
    pc, pr, rc, rr = (torch.tensor([v], dtype=torch.float64) for v in values)
    difference = dpo_loss(pr, pc, rr, rc, beta=beta, label_smoothing=label_smoothing) \
        - dpo_loss(pc, pr, rc, rr, beta=beta, label_smoothing=label_smoothing)
    z = beta * ((pc - rc) - (pr - rr))
    torch.testing.assert_close(difference, (1 - 2 * label_smoothing) * z, rtol=1e-9, atol=1e-9)


def test_bfloat16_input_is_computed_in_float32():
    logps = random_logps(50, torch.bfloat16, 5)
    torch.testing.assert_close(dpo_loss(*logps), dpo_loss(*(x.float() for x in logps)), rtol=0, atol=0)


def test_smoothed_loss_is_least_at_the_log_odds_of_its_smoothing():
    margin = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    zero = torch.zeros_like(margin)
    best = margin[dpo_loss(margin, zero, zero, zero, beta=1.0, label_smoothing=0.1).argmin()]
    assert abs(best.item() - math.log(0.9 / 0.1)) < 1e-3


def test_loss_is_one_number_per_pair_and_not_reduced():
    logps = random_logps(6, torch.float32, 6)
    whole = dpo_loss(*logps)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], dpo_loss(*(x[2:3] for x in logps)))


@pytest.mark.parametrize("position, name", list(enumerate(NAMES)))
def test_wrong_shape_is_refused_by_name(position, name):
    "(batch, 1) against (batch,) would broadcast to (batch, batch) without a word."
    for bad in (torch.zeros(3, 1), torch.zeros(()), torch.zeros(2)):
        logps = [torch.zeros(3) for _ in NAMES]
        logps[position] = bad
        with pytest.raises(ValueError) as error: dpo_loss(*logps)
        assert name in str(error.value)


@pytest.mark.parametrize("name, value", [("beta", 0.0), ("beta", -0.1), ("beta", math.inf), ("beta", math.nan), ("beta", "0.1"),
    ("beta", True), ("beta", None), ("label_smoothing", -0.1), ("label_smoothing", 0.5), ("label_smoothing", math.nan)])
def test_hyperparameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name): dpo_loss(*[torch.zeros(2)] * 4, **{name: value})


def test_hyperparameters_are_keyword_only():
    with pytest.raises(TypeError): dpo_loss(*[torch.zeros(2)] * 4, 0.1)


def test_values_are_never_looked_at():
    "On the meta device there are no values: any `.item()`, comparison or print of them would fail, as it would make a GPU wait."
    logps = [torch.zeros(4, device="meta") for _ in NAMES]
    assert dpo_loss(*logps, label_smoothing=0.1).shape == (4,)
    assert dpo_loss(*[torch.full((1,), math.nan)] * 4).isnan().all() # not hidden either: the trainer watches for it
