"""SPPO: against loops, TRL's own code, the rule of multiplicative weights in a counted game, and at
the edges; its two rows train.
"""

import itertools
import math

import pytest
import torch
from helpers.encoded import BASE, prompts
from helpers.losses import trl_loss, trl_trainer
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from prefkit.core import ConfigError
from prefkit.judging.rewards import FunctionReward
from prefkit.losses import group_win_rates, sppo_loss, sppo_pair_loss
from prefkit.train.methods import get_method, prepare_win_rates
from prefkit.train.rounds import train_online
from prefkit.train.settings import RolloutSettings


def logps(seed, n=6, spread=3.0):
    draw = torch.Generator().manual_seed(seed)
    normal = lambda: torch.randn(n, generator=draw, dtype=torch.float64)
    old = -20 * normal().abs()
    return old + spread * normal(), old, torch.rand(n, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.5, 10.0, 1000.0])
def test_loss_and_gradient_equal_loops(eta):
    for seed in range(40):
        policy, old, rates = logps(seed)
        policy.requires_grad_()
        found = sppo_loss(policy, old, rates, eta=eta)
        (gradient,) = torch.autograd.grad(found.sum(), policy)
        for i in range(6):
            off = (policy[i] - old[i]).item() - eta * (rates[i].item() - 0.5)
            assert math.isclose(found[i].item(), off * off, rel_tol=1e-9, abs_tol=1e-12)
            assert math.isclose(gradient[i].item(), 2 * off, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("beta", [0.001, 0.1, 2.0])
def test_pairs_equal_trls_sppo_hard(beta):
    trainer = trl_trainer(beta=beta, loss_type="sppo_hard")
    for seed in range(40):
        (pc, rc, _), (pr, rr, _) = logps(seed), logps(seed + 100)
        pc.requires_grad_(), pr.requires_grad_()
        ours = sppo_pair_loss(pc, pr, rc, rr, eta=1 / beta).mean()
        theirs = trl_loss(trainer, pc, pr, rc, rr)
        assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
        pairs = zip(*(torch.autograd.grad(x, (pc, pr)) for x in (ours, theirs)))
        for one, other in pairs:
            assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_win_rates_equal_counts_of_who_beats_whom():
    for seed, temperature in itertools.product(range(20), (0.0, 0.5)):
        draw = torch.Generator().manual_seed(seed)
        rewards = torch.randint(0, 4, (3, 5), generator=draw).double()  # with ties
        found = group_win_rates(rewards, temperature=temperature)
        assert_close(found.mean(-1), torch.full((3,), 0.5).double())
        for g, i in itertools.product(range(3), range(5)):
            apart = [rewards[g, i] - rewards[g, j] for j in range(5) if j != i]
            if temperature:
                wins = [1 / (1 + math.exp(-x / temperature)) for x in apart]
            else:
                wins = [1.0 if x > 0 else 0.5 if x == 0 else 0.0 for x in apart]
            assert math.isclose(found[g, i], sum(wins) / 4, rel_tol=1e-9)


def test_the_best_of_a_small_step_is_the_rule_of_multiplicative_weights():
    wins = torch.tensor([[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]]).double()
    policy, eta = torch.tensor([0.5, 0.2, 0.3]).double(), 0.1
    logits = policy.log().requires_grad_()
    for _ in range(2000):
        loss = policy @ sppo_loss(logits.log_softmax(0), policy.log(), wins @ policy, eta=eta)
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - 0.5 * slope).detach().requires_grad_()
    wanted = (policy.log() + eta * (wins @ policy)).softmax(0)
    assert_close(logits.softmax(0).detach(), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_flows_through_the_old_policy_or_the_win_rates():
    policy, old, rates = (x.requires_grad_() for x in logps(0))
    loss = sppo_loss(policy, old, rates).sum()
    found = torch.autograd.grad(loss, (policy, old, rates), allow_unused=True)
    assert found[0] is not None and found[1] is None and found[2] is None


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: sppo_loss(torch.zeros(2), torch.zeros(3), torch.zeros(2)), "old_logps has 3"),
        (lambda: sppo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), eta=0), "eta"),
        (
            lambda: sppo_pair_loss(*(torch.zeros(n) for n in (4, 1, 4, 1))),
            "policy_rejected_logps has 1 examples but policy_chosen_logps has 4",
        ),
        (lambda: group_win_rates(torch.zeros(3, 1)), r"k >= 2; not \(3, 1\)"),
        (lambda: group_win_rates(torch.zeros(3, 2), temperature=-1), "temperature"),
    ],
)
def test_what_cannot_be_is_an_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_trainer_gives_the_loss_centred_win_rates():
    rewards = torch.tensor([[3.0, 1.0, 1.0, 0.0]]).double()
    found = prepare_win_rates({"rewards": rewards})["advantages"]
    assert_close(found, torch.tensor([[0.5, 0.0, 0.0, -0.5]]).double())
    assert get_method("online_sppo", online=True).inputs() == [
        "policy_logps",
        "asked_logps",
        "advantages",
    ]


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_p": 0.8}, {"sampler": "int4"}])
def test_where_all_answers_are_alike_it_stays_however_they_were_drawn(tmp_path, tokenizer, options):
    "The target begins at the policy itself, not at what the answers were drawn with."
    source = FunctionReward("same", lambda rows, answers: [1.0] * len(answers))
    rows = prompts(tokenizer, ["What colour is the fox?", "Where does the bear live?"])
    small = dict(batch_size=2, samples=3, max_new_tokens=12, max_steps=1, learning_rate=1e-3)
    small |= dict(logging_steps=1, show_samples=0, schedule="constant", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    given = model, tokenizer, "online_sppo", rows, None, tmp_path, source
    (line,) = train_online(*given, RolloutSettings(**small | options)).metrics
    assert line["loss"] < 1e-6 and line["grad_norm"] < 1e-2, line


def test_one_answer_to_a_prompt_is_refused_before_anything_is_drawn(tmp_path, tokenizer):
    rows = prompts(tokenizer, ["What colour is the fox?"])
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    given = model, tokenizer, "online_sppo", rows, None, tmp_path, FunctionReward("no", len)
    with pytest.raises(ConfigError, match="samples: online_sppo compares the answers"):
        train_online(*given, RolloutSettings(samples=1, device="cpu"))


def test_on_its_own_samples_it_learns_what_is_preferred(tmp_path, tokenizer):
    "Short answers are preferred: after some rounds they are shorter."
    source = FunctionReward(
        "short", lambda rows, answers: [-answer["tokens"] for answer in answers]
    )
    rows = prompts(tokenizer, ["What colour is the fox?", "Where does the bear live?"] * 4)
    options = dict(batch_size=8, samples=6, max_new_tokens=24, max_steps=12, learning_rate=1e-3)
    options |= dict(logging_steps=1, show_samples=0, schedule="constant", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    given = model, tokenizer, "online_sppo", rows, None, tmp_path, source
    lines = train_online(*given, RolloutSettings(**options)).metrics
    first, last = (sum(line["length"] for line in part) / 3 for part in (lines[:3], lines[-3:]))
    assert last < 0.7 * first, (first, last)
    assert lines[0]["loss"] > 0
