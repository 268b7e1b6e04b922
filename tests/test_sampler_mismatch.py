"""A sampler that is not the policy: the weights against loops, an enumerated world and TRL's own
code; the trainer asks the policy about what was drawn, weighs, logs, and goes on after a kill.
"""

import copy
import itertools
import json
import math

import pytest
import torch
from helpers.encoded import BASE, prompts
from helpers.losses import trl_grpo_loss
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from prefkit.core import ConfigError
from prefkit.judging.rewards import reward_source
from prefkit.losses import (
    effective_share,
    grpo_loss,
    policy_gradient_loss,
    sampler_ratios,
    sampler_weights,
    weighted_gradient,
)
from prefkit.model.rounding import LARGEST, round_rows, rounded_copy
from prefkit.train.methods import get_method
from prefkit.train.rollout import Reference
from prefkit.train.rounds import Rounds, round_inputs, train_online
from prefkit.train.settings import RolloutSettings

QUESTIONS = ["What colour is the fox?", "How much is 7 plus 5?", "What does the owl eat?"]
QUESTIONS += ["Where does the bear live?", "Count from 3 to 7.", "Say the word ant two times."]


def drawn(seed, size=6, length=7, spread=0.8):
    "Log-probs under policy and sampler, a mask with gaps and an empty answer, advantages."
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    sampler = -2 * normal(size, length).abs()
    mask = torch.rand(size, length, generator=draw) < 0.7
    mask[0], mask[1] = False, True
    return sampler + spread * normal(size, length), sampler, mask, normal(size)


# -- the functions


@pytest.mark.parametrize("beyond", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "answer"])
def test_weights_equal_loops(beyond, level):
    for seed, (low, high) in itertools.product(range(20), ((0.0, 2.0), (0.5, 1.2), (1.0, 1.0))):
        policy, sampler, mask, _ = drawn(seed)
        found = sampler_weights(
            policy, sampler, mask, beyond=beyond, level=level, low=low, high=high
        )
        for i, t in itertools.product(*map(range, mask.shape)):
            moved = [policy[i, s] - sampler[i, s] for s in range(7) if mask[i, s]]
            log = policy[i, t] - sampler[i, t] if level == "token" else math.fsum(moved)
            ratio = math.exp(log)
            outside = not low <= ratio <= high
            wanted = 0.0 if outside and beyond == "mask" else min(max(ratio, low), high)
            wanted = wanted if mask[i, t] else 0.0
            assert math.isclose(found[i, t], wanted, rel_tol=1e-12), (i, t)


def test_the_weighted_gradient_is_the_policys_own_counted_out():
    "Two tokens of three kinds, all nine answers, a sampler of its own: Eq. 1, to the last digit."
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    other = (logits + torch.randn(2, 3, generator=draw, dtype=torch.float64)).detach()
    answers = torch.tensor(list(itertools.product(range(3), repeat=2)))
    worth = torch.randn(9, generator=draw, dtype=torch.float64)

    def token_logps(of):
        return of.log_softmax(-1)[torch.arange(2), answers]

    policy, sampler = token_logps(logits), token_logps(other)
    (right,) = torch.autograd.grad((policy.sum(-1).exp() * worth).sum(), logits, retain_graph=True)
    ones, found = torch.ones(9, 2), {}
    for high in (1e6, 1.2):
        options = dict(level="answer", high=high)
        weights = sampler_weights(policy, sampler, ones, **options)
        passed = weighted_gradient(policy, weights)
        assert torch.equal(passed, policy)
        often = sampler.sum(-1).exp()  # how often the sampler draws each answer
        total = (often * worth * passed.sum(-1)).sum()
        (found[high],) = torch.autograd.grad(total, logits, retain_graph=True)
    assert_close(found[1e6], right, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(found[1.2], right, rtol=1e-2)


POINTS = {
    "grpo": {},
    "dr_grpo": {"aggregation": "constant"},
    "dapo": {"clip_high": 0.28, "aggregation": "tokens"},
    "cispo": {"clip": "weight", "clip_low": 1.0, "clip_high": 4.0, "aggregation": "tokens"},
}


@pytest.mark.parametrize("name", POINTS)
def test_the_gradient_is_trls_with_its_weights(name):
    choices = POINTS[name]
    high = choices.get("clip_high", 0.2)
    theirs = dict(loss_type=name, clip_low=choices.get("clip_low", 0.2), longest=16)
    theirs |= dict(clip_high=1 + high if name == "cispo" else high)
    for seed, beyond in itertools.product(range(10), ("truncate", "mask")):
        asked, sampler, mask, advantages = drawn(seed)
        mask[:, 0] = True  # TRL's shares of an empty answer are NaN
        weights = sampler_weights(asked, sampler, mask, beyond=beyond)
        draw = torch.Generator().manual_seed(seed)
        policy = asked + 0.2 * torch.randn(6, 7, generator=draw, dtype=torch.float64)
        policy.requires_grad_()
        expected, _ = trl_grpo_loss(
            policy, asked, None, mask, advantages, weights=weights, **theirs
        )
        ones = torch.ones(6).double()
        rest = ones, mask.sum(-1).double().mean() * ones, 16 * ones
        passed = weighted_gradient(policy, weights)
        given = passed, asked, None, mask, advantages, *rest
        ours = policy_gradient_loss(**dict(zip(policy_gradient_names(), given)), **choices)
        pair = [torch.autograd.grad(x, policy)[0] for x in (ours.mean(), expected)]
        assert_close(*pair, rtol=1e-7, atol=1e-9)


def policy_gradient_names():
    names = ["token_logps", "old_token_logps", "ref_token_logps", "mask", "advantages"]
    return [*names, "weights", "mean_length", "longest"]


def test_padding_is_not_looked_at_and_gets_no_weight():
    policy, sampler, mask, _ = drawn(5)
    for rubbish in (math.nan, math.inf, -math.inf):
        spoilt = [torch.where(mask, x, rubbish) for x in (policy, sampler)]
        for level, beyond in itertools.product(("token", "answer"), ("truncate", "mask")):
            options = dict(level=level, beyond=beyond, low=0.5)
            found = sampler_weights(*spoilt, mask, **options)
            assert_close(found, sampler_weights(policy, sampler, mask, **options))
            assert (found[~mask] == 0).all()
        assert_close(effective_share(*spoilt, mask), effective_share(policy, sampler, mask))


def test_effective_share_is_one_where_all_weigh_alike_and_one_answers_where_one_weighs_all():
    policy, sampler, mask, _ = drawn(1)
    assert effective_share(sampler, sampler, mask) == 1
    far = sampler.clone()
    far[1] += 900  # beyond what a float64 holds, as a ratio
    assert math.isclose(effective_share(far, sampler, mask), 1 / 6, rel_tol=1e-9)
    weights = sampler_ratios(policy, sampler, mask, level="answer").max(-1).values
    weights[~mask.any(-1)] = 1  # of an answer without tokens
    kish = weights.sum() ** 2 / weights.square().sum() / 6
    assert_close(effective_share(policy, sampler, mask), kish)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(beyond="cut"), "beyond must be one of truncate, mask, not 'cut'"),
        (dict(level="word"), "level must be one of token, answer, not 'word'"),
        (dict(low=-1.0), "low"),
        (dict(low=2.0, high=1.0), "high"),
    ],
)
def test_what_is_no_choice_is_an_error(options, words):
    policy, sampler, mask, _ = drawn(0)
    with pytest.raises(ValueError, match=words):
        sampler_weights(policy, sampler, mask, **options)
    with pytest.raises(ValueError, match="sampler_token_logps has shape"):
        sampler_weights(policy, sampler[:, :3], mask)


# -- rounding


def test_rounded_weights_are_whole_steps_of_their_row():
    weight = torch.tensor([[0.7, -0.32, 0.0], [0.0, 0.0, 0.0], [1e-3, 2e-3, -7e-3]])
    found = round_rows(weight, LARGEST["int4"])
    wanted = torch.tensor([[0.7, -0.3, 0.0], [0.0, 0.0, 0.0], [1e-3, 2e-3, -7e-3]])
    assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_weights_held_in_bf16_are_rounded_as_exactly_as_bf16_can_hold_them():
    weight = torch.linspace(-1, 1, 512).reshape(4, 128).bfloat16()
    found, exact = (round_rows(x, LARGEST["int8"]) for x in (weight, weight.float()))
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


def test_a_rounded_copy_leaves_the_model_and_its_output_layer_alone():
    model = base()
    before = copy.deepcopy(model.state_dict())
    found = rounded_copy(model, "int4")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    layer = found.model.layers[0].mlp.up_proj.weight
    step = layer.abs().amax(1, keepdim=True) / 7
    assert_close((layer / step).round(), layer / step, rtol=0, atol=1e-4)
    assert not torch.equal(layer, model.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)
    assert not any(weight.requires_grad for weight in found.parameters())
    with pytest.raises(ConfigError, match="int3"):
        rounded_copy(model, "int3")


def test_layers_of_another_kind_are_rounded_adapters_merged_and_experts_refused():
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

    small = dict(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    found = rounded_copy(GPT2LMHeadModel(GPT2Config(**small)), "int4")
    layer = found.transformer.h[0].mlp.c_fc.weight.T  # (outputs, inputs)
    step = layer.abs().amax(1, keepdim=True) / 7
    assert_close((layer / step).round(), layer / step, rtol=0, atol=1e-4)

    adapted = get_peft_model(base(), LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    found = rounded_copy(adapted, "int8")
    assert not any("lora" in name for name, _ in found.named_parameters())
    merged = copy.deepcopy(adapted).merge_and_unload()
    place = "model.layers.0.mlp.up_proj.weight"
    wanted = round_rows(merged.state_dict()[place], LARGEST["int8"])
    assert_close(found.state_dict()[place], wanted)
    assert any("lora" in name for name, _ in adapted.named_parameters())

    small = dict(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    small |= dict(num_key_value_heads=2, moe_intermediate_size=8, num_experts=2, head_dim=4)
    experts = Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts_per_tok=1, **small))
    with pytest.raises(ConfigError, match="int4 rounds linear layers; this model keeps weights"):
        rounded_copy(experts, "int4")


# -- the trainer


def base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prompts(tokenizer, QUESTIONS)


SMALL = dict(batch_size=3, samples=3, max_new_tokens=12, max_steps=4, learning_rate=1e-3)
SMALL |= dict(logging_steps=1, show_samples=0, schedule="constant", device="cpu")


def source_for(tokenizer, rows, method="rloo", **changes):
    row, model = get_method(method), base()
    s = RolloutSettings(**SMALL | changes)
    given = row.hyperparameters(None), s, rows, reward_source("gold"), Reference(model)
    return Rounds(model, tokenizer, row, *given)


def fit(folder, tokenizer, rows, method="rloo", **changes):
    settings = RolloutSettings(**SMALL | changes)
    given = base(), tokenizer, method, rows, rows[:2], folder, reward_source("gold"), settings
    return train_online(*given)


def lines_of(result):
    return [line for line in result.metrics if line["split"] == "train"]


@pytest.mark.parametrize("sampler", ["bf16", "int8", "int4"])
def test_the_policy_is_asked_about_what_another_sampler_drew(tokenizer, rows, sampler):
    source = source_for(tokenizer, rows, sampler=sampler)
    (batch,) = source.batches(0)
    samples = [s for group in source.rollouts.samples for s in group]
    assert all(len(s.sampler_logps) == len(s.model_logps) == len(s.ids) for s in samples)
    assert any(s.sampler_logps != s.model_logps for s in samples)
    assert all(s.logps == s.sampler_logps for s in samples)  # at temperature 1
    logps, _ = source.learner(batch)
    assert_close(logps[batch.mask], batch.model_token_logps[batch.mask], rtol=1e-4, atol=1e-4)
    wanted = sampler_weights(batch.model_token_logps, drawn_by(source, batch), batch.mask)
    assert torch.equal(batch.weights, wanted) and (batch.weights[batch.mask] != 1).any()


def drawn_by(source, batch):
    "What the sampler drew the tokens of the first prompts with, by answer."
    found = torch.zeros(batch.mask.shape)
    order = [group[k] for k in range(3) for group in in_batch(source, batch)]
    for place, sample in enumerate(order):
        found[place, : len(sample.ids)] = torch.tensor(sample.logps)
    return found


def in_batch(source, batch):
    "The groups of a batch, in its order: known by what the policy said of their tokens."
    told = [tuple(row[: int(n)].tolist()) for row, n in zip(batch.model_token_logps, batch.lengths)]
    key = lambda group: tuple(torch.tensor(group[0].model_logps).tolist())
    groups = {key(group): group for group in source.rollouts.samples}
    return [groups[name] for name in told[:3]]


@pytest.mark.parametrize("correction", ["none", "ratio", "truncate", "mask"])
def test_each_correction_is_what_it_is_called(tokenizer, rows, correction):
    source = source_for(
        tokenizer, rows, "policy_gradient", sampler="int4", sampler_correction=correction
    )
    (batch,) = source.batches(0)
    logps, _ = source.learner(batch)
    logps = logps.detach().requires_grad_()
    inputs = round_inputs(batch, logps)
    sampler, mine = drawn_by(source, batch), batch.model_token_logps
    assert_close(inputs.old_token_logps, sampler if correction == "ratio" else mine)
    (gradient,) = torch.autograd.grad(inputs.token_logps.sum(), logps)
    weights = torch.ones_like(gradient)
    if correction in ("truncate", "mask"):
        weights = sampler_weights(mine, sampler, batch.mask, beyond=correction)
    assert_close(gradient[batch.mask], weights[batch.mask])


def test_a_round_says_how_far_the_sampler_was(tokenizer, rows, tmp_path):
    gaps = {}
    for sampler in ("same", "bf16", "int4"):
        (line, *_) = lines_of(fit(tmp_path / sampler, tokenizer, rows, sampler=sampler))
        gaps[sampler] = {name: x for name, x in line.items() if name.startswith("sampler_")}
    assert not gaps["same"]
    assert set(gaps["int4"]) == {f"sampler_{x}" for x in ("gap", "kl", "effective", "bounded")}
    assert gaps["int4"]["sampler_gap"] > 3 * gaps["bf16"]["sampler_gap"] > 0
    assert gaps["int4"]["sampler_effective"] < gaps["bf16"]["sampler_effective"] <= 1
    tight = fit(tmp_path / "tight", tokenizer, rows, sampler="int4", sampler_high=1.0)
    assert lines_of(tight)[0]["sampler_bounded"] > 0.2


def test_weights_change_what_is_learned_and_bounds_of_one_do_so_too(tokenizer, rows, tmp_path):
    ends = {}
    for name, changes in {
        "none": dict(sampler_correction="none"),
        "token": {},
        "answer": dict(sampler_level="answer"),
        "masked": dict(sampler_correction="mask", sampler_high=1.01),
    }.items():
        result = fit(tmp_path / name, tokenizer, rows, sampler="int4", max_steps=2, **changes)
        ends[name] = torch.cat([x.flatten() for x in result.model.state_dict().values()])
    pairs = itertools.combinations(ends.values(), 2)
    assert all(not torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("method", ["grpo", "ppo", "online_topr", "rloo_kl", "gspo"])
def test_other_methods_take_it_as_well(tokenizer, rows, tmp_path, method):
    lines = lines_of(fit(tmp_path, tokenizer, rows, method, sampler="int4", max_steps=2))
    assert all(math.isfinite(line["loss"]) for line in lines) and "sampler_gap" in lines[0]
    assert lines[0]["logps_gap"] < 1e-3  # of the policy with itself, not with the sampler


def test_a_run_broken_off_goes_on_with_the_same_weights(tokenizer, rows, tmp_path):
    options = dict(sampler="int4", passes=2, save_steps=1, keep_checkpoints=True)
    whole = fit(tmp_path / "whole", tokenizer, rows, **options)
    settings = RolloutSettings(**SMALL | options)
    broken = (base(), tokenizer, "rloo", rows, rows[:2], tmp_path / "broken")
    broken += (reward_source("gold"), settings)

    class Broken(Exception):
        pass

    def break_off(line):
        if line["step"] == 3 and line["split"] == "train":  # in the middle of a round
            raise Broken

    with pytest.raises(Broken):
        train_online(*broken, callbacks=(break_off,))
    again = train_online(base(), *broken[1:])
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)
    held = [json.dumps(timed(line)) for line in lines_of(whole)]
    assert held == [json.dumps(timed(line)) for line in lines_of(again)]


def timed(line):
    return {name: x for name, x in line.items() if "second" not in name}


def test_what_does_not_go_with_it_is_refused(tokenizer, rows, tmp_path):
    with pytest.raises(ConfigError, match="sampler: online_xpo compares answers of policy and"):
        fit(tmp_path / "xpo", tokenizer, rows, "online_xpo", sampler="int4", samples=2)
    with pytest.raises(ConfigError, match="sampler: int8 rounds a copy of the whole model"):
        fit(tmp_path / "fsdp", tokenizer, rows, sampler="int8", sharding="fsdp")
    with pytest.raises(ConfigError, match="sampler_correction: none takes answers"):
        options = dict(sampler="bf16", sampler_correction="none", temperature=0.7)
        fit(tmp_path / "tempered", tokenizer, rows, **options)
    with pytest.raises(ConfigError, match="sampler: 'int3' is none of same, bf16, int8, int4"):
        RolloutSettings(sampler="int3")


def test_grpos_own_ratio_stays_beside_the_weights():
    "The loss's clip looks at policy over old policy, whatever the sampler was."
    asked, sampler, mask, advantages = drawn(2)
    policy = (asked + 0.5).requires_grad_()  # every ratio 1.65: cut for good answers
    weights = sampler_weights(asked, sampler, mask)
    loss = grpo_loss(weighted_gradient(policy, weights), asked, None, mask, advantages.abs())
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert (gradient == 0).all()
