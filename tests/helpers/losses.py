"""What the losses' tests share: random log-probs as training sees them, TRL's own code, a loss that
must be finite.
"""

import types
from collections import defaultdict

import pytest
import torch
from hypothesis import strategies as st

averages = st.floats(-50, 0, allow_nan=False)  # log-prob per token
token_counts = st.integers(1, 8192)
input_dtypes = st.sampled_from([torch.float32, torch.bfloat16])


def random_lengths(n, seed, answers=2):
    "Lengths of 1 to 512 tokens, (n,) float64, one column for each answer."
    generator = torch.Generator().manual_seed(seed)
    return [
        (1 + 511 * torch.rand(n, generator=generator, dtype=torch.float64)).floor()
        for _ in range(answers)
    ]


def random_logps(n, dtype, seed, learned=0):
    """Four columns of sums as training sees them: lengths 1 to 512, a few nats a token, the policy
    near the reference. The first so many ask for gradients.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_000)

    def draw():
        return torch.rand(n, generator=generator, dtype=torch.float64)

    lengths = random_lengths(n, seed)
    reference = [-4 * draw() * length for length in lengths]
    policy = [ref + (draw() - 0.5) * 0.4 * length for ref, length in zip(reference, lengths)]
    columns = [x.clamp(max=0).to(dtype) for x in (*policy, *reference)]
    return [x.requires_grad_(place < learned) for place, x in enumerate(columns)]


def assert_equal_gradients(ours, theirs, learned, **tolerances):
    "Two scalars, or sums of two columns, have the same gradients."
    found = [torch.autograd.grad(loss.sum(), learned) for loss in (ours, theirs)]
    torch.testing.assert_close(*found, **tolerances)


def equals_transcription(loss_function, transcription, settings, rtol, dtype, sides):
    """Value and gradients of 1000 batches are those of a transcription in NumPy; of the two columns
    `sides`, between which the loss has a kink, either is the smaller one more than 1000 times.
    """
    below = above = 0
    for seed in range(1000):
        options = settings[seed % len(settings)]
        logps = random_logps(1 + seed % 8, dtype, seed, learned=2)
        loss = loss_function(*logps, **options)
        found = (loss.detach(), *torch.autograd.grad(loss.sum(), logps[:2]))
        numbers = [x.detach().double().numpy() for x in logps]
        least = 1e-300 if dtype == torch.float64 else 1e-35
        for ours, theirs in zip(found, transcription(*numbers, **options)):
            theirs = torch.from_numpy(theirs)
            torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=least)
        one, other = (numbers[side] for side in sides)
        below, above = below + (one < other).sum(), above + (one > other).sum()
    assert min(below, above) > 1000


def finite_loss_and_gradients(loss_function, inputs, **hyperparameters):
    """Loss in at least float32, finite, with finite gradients with respect to each input that
    floats and requires one.
    """
    loss = loss_function(*inputs, **hyperparameters)
    assert loss.dtype in (torch.float32, torch.float64) and loss.isfinite().all(), loss
    wanted = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad(loss.sum(), wanted, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients), gradients
    return loss


def refuses_wrong_shapes(loss_function, names, **hyperparameters):
    """(batch, 1) against (batch,) would broadcast to (batch, batch) without a word: each argument
    is refused by its name. One that stands alone may have any number of examples.
    """
    wrong = [torch.zeros(3, 1), torch.zeros(())]
    if len(names) > 1:
        wrong.append(torch.zeros(2))
    for position, name in enumerate(names):
        for bad in wrong:
            inputs = [torch.ones(3) for _ in names]
            inputs[position] = bad
            with pytest.raises(ValueError) as error:
                loss_function(*inputs, **hyperparameters)
            assert name in str(error.value)


def runs_without_reading_values(loss_function, names, **hyperparameters):
    """On the meta device there are no values: any `.item()`, comparison or print of them would
    fail, as it would make a GPU wait.
    """
    inputs = [torch.zeros(4, device="meta") for _ in names]
    assert loss_function(*inputs, **hyperparameters).shape == (4,)


def same(x, *_, **__):
    "What gathering from all processes is where there is one."
    return x


def answers_with(*values):
    "A function that gives these, whatever it is asked."
    return lambda *_, **__: values[0] if len(values) == 1 else values


def pinned_trl():
    "Skip the test unless TRL is there in the version whose code is the oracle."
    trl = pytest.importorskip("trl", reason="TRL, the outside oracle, is not installed")
    if not trl.__version__.startswith("1.16."):
        pytest.skip(f"the oracle is pinned to TRL 1.16, found {trl.__version__}")


def bare_trainer(trainer_class, **attributes):
    "One of TRL's trainers that was never built: it has just what its loss reads."
    trainer = object.__new__(trainer_class)
    trainer.model = types.SimpleNamespace(training=False)
    trainer.accelerator = types.SimpleNamespace(
        device=torch.device("cpu"),
        gather=same,
        gather_for_metrics=same,
        reduce=same,
        num_processes=1,
        process_index=0,
    )
    trainer.aux_loss_enabled = False
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    vars(trainer).update(attributes)
    return trainer


def trl_trainer(*, beta, loss_type="sigmoid", label_smoothing=0.0):
    """TRL's DPOTrainer with just what `_compute_loss` reads.

    Its loss is a method that wants a model: ours answers with given log-probs.
    """
    pinned_trl()
    from trl.trainer.dpo_trainer import DPOTrainer

    return bare_trainer(
        DPOTrainer,
        beta=beta,
        label_smoothing=label_smoothing,
        loss_types=[loss_type],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
    )


def trl_loss(trainer, pc, pr, rc, rr, lengths=None):
    """TRL's loss of a batch of pairs, a scalar (the mean). An answer's first token carries the
    whole sum; it has as many tokens as `lengths` (chosen, rejected) say, one where nothing is said.
    """
    n = len(pc)
    counts = torch.ones(2 * n) if lengths is None else torch.cat(tuple(lengths))
    longest = int(counts.max())
    log_probs = torch.nn.functional.pad(torch.cat([pc, pr])[:, None], (0, longest - 1))
    mask = (torch.arange(-1, longest) < counts[:, None]).long()
    mask[:, 0] = 0  # the prompt: one token

    def model(**inputs):
        zeros = torch.zeros_like(log_probs)
        return types.SimpleNamespace(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": rc,
        "ref_rejected_logps": rr,
    }
    return trainer._compute_loss(model, inputs, return_outputs=False)


def trl_grpo_loss(
    policy,  # (answers, longest) log-probs of tokens, with gradient
    old,  # of the policy that sampled
    reference,
    mask,
    advantages,  # (answers,)
    *,
    loss_type="grpo",
    level="token",
    clip_low=0.2,
    clip_high=0.2,
    beta=0.0,
    longest=None,  # most tokens of an answer
    weights=None,  # (answers, longest) of the tokens, where a server drew them
):
    """TRL's `GRPOTrainer._compute_loss`, a scalar, and its metrics: it wants a model, ours answers
    with given log-probs.
    """
    pinned_trl()
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = bare_trainer(
        GRPOTrainer,
        args=types.SimpleNamespace(delta=None, use_bias_correction_kl=False),
        beta=beta,
        epsilon_low=clip_low,
        epsilon_high=clip_high,
        loss_type=loss_type,
        importance_sampling_level=level,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=weights is not None,
        _entropy_bonus_enabled=False,
        max_completion_length=longest,
        _get_per_token_logps_and_entropies=answers_with(policy, torch.zeros_like(policy), None),
    )
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
        **({} if weights is None else {"importance_sampling_ratio": weights}),
    }
    return trainer._compute_loss(None, inputs), trainer._metrics["eval"]
