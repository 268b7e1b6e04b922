"""On-policy distillation: against loops, against TRL's GKD in expectation, at the edges; a student
learns from a teacher, and a teacher of other tokens is refused.
"""

import math

import pytest
import torch
from helpers.encoded import BASE
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from prefkit.core import ConfigError, PrefkitError
from prefkit.course.training import tiny_rows
from prefkit.judging.rewards import FunctionReward
from prefkit.losses import distillation_advantages, distillation_loss
from prefkit.train.methods import get_method
from prefkit.train.rounds import train_online
from prefkit.train.settings import RolloutSettings

INSTRUCT = BASE.parent / "instruct"
NOTHING = FunctionReward("nothing", lambda rows, answers: [0.0] * len(answers))


def drawn(seed, n=5, length=6):
    draw = torch.Generator().manual_seed(seed)
    policy, teacher = -3 * torch.rand(2, n, length, generator=draw, dtype=torch.float64)
    lengths = torch.randint(0, length + 1, (n, 1), generator=draw)
    return policy, teacher, torch.arange(length) < lengths


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_advantages_equal_loops(discount):
    for seed in range(40):
        policy, teacher, mask = drawn(seed)
        found = distillation_advantages(policy, teacher, mask, discount=discount)
        for i, length in enumerate(mask.sum(1).tolist()):
            for t in range(policy.shape[1]):
                later = [
                    discount ** (s - t) * (teacher[i, s] - policy[i, s]).item()
                    for s in range(t, length)
                ]
                assert math.isclose(found[i, t], math.fsum(later), abs_tol=1e-12), (i, t)


def test_loss_and_gradient_equal_loops():
    for seed in range(40):
        policy, old, mask = drawn(seed)
        marks = drawn(seed + 100)[0] + 1.5
        policy.requires_grad_()
        found = distillation_loss(policy, old, marks, mask)
        (gradient,) = torch.autograd.grad(found.sum(), policy)
        for i, length in enumerate(mask.sum(1).tolist()):
            pushes = [
                math.exp(policy[i, t].item() - old[i, t].item()) * marks[i, t].item()
                for t in range(length)
            ]
            assert math.isclose(found[i].item(), -math.fsum(pushes), rel_tol=1e-9, abs_tol=1e-12)
            wanted = [-push for push in pushes] + [0.0] * (policy.shape[1] - length)
            assert_close(gradient[i], torch.tensor(wanted, dtype=torch.float64))


def test_its_expectation_has_the_gradient_of_trls_reverse_kl():
    "One place, every token that may be drawn there, against GKD's loss at beta = 1."
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        mine, other = torch.randn(2, 4, 9, generator=draw, dtype=torch.float64)  # places, tokens
        mine.requires_grad_()
        logps, teacher = mine.log_softmax(-1), other.log_softmax(-1)
        ones = torch.ones_like(logps)
        marks = distillation_advantages(
            logps.reshape(-1, 1), teacher.reshape(-1, 1), ones.reshape(-1, 1)
        )
        losses = distillation_loss(
            logps.reshape(-1, 1), logps.reshape(-1, 1), marks, ones.reshape(-1, 1)
        )
        chance = logps.detach().exp().flatten()
        labels = torch.zeros(1, 4, dtype=torch.long)
        theirs = gkd(mine[None], other[None], labels=labels, beta=1, reduction="sum")
        pair = [
            torch.autograd.grad(x, mine, retain_graph=True)[0]
            for x in ((chance * losses).sum(), theirs)
        ]
        assert_close(*pair, rtol=1e-7, atol=1e-10)


def test_nothing_flows_through_marks_old_or_teacher():
    policy, teacher, mask = drawn(0)
    policy.requires_grad_(), teacher.requires_grad_()
    marks = distillation_advantages(policy, teacher, mask)
    assert not marks.requires_grad
    (gradient,) = torch.autograd.grad(distillation_loss(policy, policy, marks, mask).sum(), policy)
    assert_close(gradient, -marks)  # the ratio's, and nothing of the old log-probs


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_padding_is_not_looked_at(rubbish):
    policy, teacher, mask = drawn(3)
    spoilt = [torch.where(mask, x, rubbish) for x in (policy, teacher)]
    marks = distillation_advantages(*spoilt, mask, discount=1.0)
    assert_close(marks, distillation_advantages(policy, teacher, mask, discount=1.0))
    x = spoilt[0].requires_grad_()
    loss = distillation_loss(x, spoilt[1], torch.where(mask, marks, rubbish), mask)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.isfinite().all() and gradient.isfinite().all() and (gradient[~mask] == 0).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda a: distillation_advantages(a, a, a, discount=1.5), "discount"),
        (lambda a: distillation_advantages(a, a[:1], a), "teacher_token_logps"),
        (lambda a: distillation_advantages(a[0], a[0], a[0]), "token_logps"),
        (lambda a: distillation_loss(a, a, a[0], a), "advantages"),
        (lambda a: distillation_loss(a, a, a, a[:, :1]), "mask"),
    ],
)
def test_what_cannot_be_is_an_error(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(3, 4))


def taught(folder, tokenizer, method="distill", **changes):
    settings = dict(max_steps=8, eval_steps=8, batch_size=8, samples=4, learning_rate=3e-4)
    settings |= dict(max_new_tokens=24, schedule="constant", reference_model=str(INSTRUCT))
    rows = tiny_rows("prompts", 24, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(changes.pop("start", BASE))
    given = rows, rows[:16], folder, NOTHING, RolloutSettings(**settings | changes)
    result = train_online(model, tokenizer, method, *given)
    return [line["kl_k1"] for line in result.metrics if line["split"] == "validation"], result


def test_a_student_comes_nearer_to_its_teacher(tmp_path, tokenizer):
    (before, after), result = taught(tmp_path / "other", tokenizer)
    assert after < 0.8 * before
    (same, _), itself = taught(
        tmp_path / "itself", tokenizer, start=INSTRUCT, max_steps=1, eval_steps=1
    )
    assert abs(same) < 1e-4  # and is nearest where it begins as the teacher


def test_any_method_takes_another_reference(tmp_path, tokenizer):
    "RLOO with a reward of nothing and a KL in it: the group pulls towards the teacher."
    (before, after), _ = taught(
        tmp_path, tokenizer, "rloo", max_steps=12, eval_steps=12, learning_rate=1e-3
    )
    assert after < before


def test_a_teacher_is_needed_and_is_one_of_the_same_tokens(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="reference_model: distill .* Name a teacher"):
        taught(tmp_path / "none", tokenizer, reference_model="")
    other = AutoTokenizer.from_pretrained(BASE)
    other.add_tokens(["zyzzyva"])
    strange = tmp_path / "strange"
    AutoModelForCausalLM.from_pretrained(BASE).save_pretrained(strange)
    other.save_pretrained(strange)
    with pytest.raises(ConfigError, match=r"reference_model: .*vocabulary of 1,\d+ tokens"):
        taught(tmp_path / "another", tokenizer, reference_model=str(strange))
    assert not list(tmp_path.glob("*/metrics.jsonl"))  # before any training


def test_a_teacher_that_reads_no_such_answers_is_refused(tmp_path, tokenizer):
    "One that counts its places: 30 of them hold no prompt with its answer."
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=30, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(PrefkitError, match="^reference_model.*30"):
        taught(tmp_path / "run", tokenizer, reference_model=str(tmp_path / "short"))


def test_where_the_reference_writes_answers_it_is_the_start(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="reference_model: half of the answers of online_xpo"):
        taught(tmp_path, tokenizer, "online_xpo", samples=2)


def test_the_row_says_what_it_needs():
    row = get_method("distill", online=True)
    assert row.teacher and row.reference and row.hyperparameters()["discount"] == 0.0
