"""The online trainer: each method takes its step as the formula says, logs what it is watched for,
and goes on after a kill with the same samples.
"""

import json, math, os, random, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest, torch
from transformers import AutoModelForCausalLM

from helpers.encoded import BASE, prompts
from helpers.runs import timeless
from prefkit.core import ConfigError, DataError, PrefkitError, project_root
from prefkit.judging.rewards import FunctionReward, reward_source
from prefkit.model.batches import scored_logps
from prefkit.train import rounds
from prefkit.train.methods import (
    METHODS,
    Method,
    add_method,
    get_method,
    methods,
    prepare_pairs,
    prepare_ppo,
    prepare_rloo,
)
from prefkit.train.rollout import Reference, padded
from prefkit.train.rounds import Rounds, online_steps, round_inputs, train_online
from prefkit.train.saves import find_checkpoints
from prefkit.train.settings import RolloutSettings

ONLINE = methods(online=True)
QUESTIONS = [
    "What colour is the fox?",
    "How much is 7 plus 5?",
    "What does the owl eat?",
    "Where does the bear live?",
    "Count from 3 to 7.",
    "Say the word ant two times.",
    "What is 9 minus 4?",
    "Where does the mole live?",
]


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prompts(tokenizer, QUESTIONS)


def base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def settings(method="rloo", **changes):
    row = get_method(method)
    samples = len(row.writers) or 3
    if row.teacher:
        changes = {"reference_model": str(BASE.parent / "instruct"), **changes}
    return RolloutSettings(
        **{
            **dict(
                batch_size=2,
                gradient_accumulation=2,
                samples=samples,
                max_new_tokens=12,
                max_steps=3,
                learning_rate=1e-3,
                logging_steps=1,
                show_samples=0,
                schedule="constant",
                device="cpu",
            ),
            **changes,
        }
    )


def fit(
    folder,
    tokenizer,
    rows,
    method="rloo",
    model=None,
    source=None,
    hyperparameters=None,
    judges=(),
    validation=4,
    **changes,
):
    return train_online(
        model or base(),
        tokenizer,
        method,
        rows,
        rows[:validation] if validation else None,
        folder,
        source or reward_source("gold"),
        settings(method, **changes),
        hyperparameters,
        judges=judges,
    )


def train_lines(result):
    return [line for line in result.metrics if line["split"] == "train"]


def same_weights(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def source_for(tokenizer, rows, method="rloo", model=None, hyperparameters=None, **changes):
    "The source of a run that has not begun, to look at one round of."
    row, s = get_method(method), settings(method, **changes)
    model = model or base()
    return Rounds(
        model,
        tokenizer,
        row,
        row.hyperparameters(hyperparameters),
        s,
        rows,
        reward_source("gold"),
        Reference(model),
    )


# -- every method
# --------------------------------------------------------------------------------------------------

OWN = {
    "ppo": {"ratio_clipped", "value_error", "kl_coef"},
    "grpo": {"ratio_clipped"},
    "rloo": {"ratio"},
    "online_xpo": {"logratio_chosen", "logratio_rejected", "bonus"},
    "online_topr": {"ratio"},
}
EVERY = {
    "loss",
    "reward",
    "reward_spread",
    "groups_flat",
    "kl_k1",
    "kl_k3",
    "entropy",
    "length",
    "cut_off",
    "logps_gap",
    "seconds_sampling",
    "seconds_learning",
    "grad_norm",
}


def test_the_table_has_the_methods_and_each_default_a_source():
    assert set(ONLINE) >= {
        "reinforce",
        "rloo",
        "rloo_kl",
        "grpo",
        "ppo",
        "online_xpo",
        "online_topr",
        "sft_length",
    }
    for method in ONLINE.values():
        assert method.sources and set(method.sources) <= set(method.defaults), method.name


@pytest.mark.parametrize("method", list(ONLINE))
def test_every_method_trains_and_logs_what_it_is_watched_for(method, tmp_path, tokenizer, rows):
    before = base()
    result = fit(tmp_path, tokenizer, rows, method, judges=[reward_source("second")], eval_steps=2)
    train, validation = (
        [line for line in result.metrics if line["split"] == split]
        for split in ("train", "validation")
    )
    assert [line["step"] for line in train] == [1, 2, 3] and [
        line["step"] for line in validation
    ] == [0, 2, 3]
    assert set(train[0]) >= EVERY | OWN.get(method, set())
    assert all(
        math.isfinite(value)
        for line in result.metrics
        for value in line.values()
        if isinstance(value, (int, float))
    )
    assert train[0]["logps_gap"] < 1e-5 and 1e-3 < abs(train[-1]["kl_k1"])
    assert ONLINE[method].teacher or abs(train[0]["kl_k1"]) < 1e-3  # a teacher is another model
    assert all(
        {"reward", "reward_second", "kl_k1", "part_right"} <= set(line) for line in validation
    )
    assert {"prompt", "answer", "reward", "right", "ended"} <= set(result.samples[0]) and {
        s["step"] for s in result.samples
    } == {0, 2, 3}
    assert not same_weights(before, result.model)
    assert AutoModelForCausalLM.from_pretrained(result.path) and not hasattr(
        result.model, "value_head"
    )


@pytest.mark.parametrize("method", ["rloo", "grpo", "ppo"])
def test_a_reward_that_can_be_learned_is_learned(method, tmp_path, tokenizer, rows):
    "The reward is minus the number of tokens: in some steps answers become much shorter."
    short = FunctionReward(
        "short", lambda rows, answers: [-float(answer["tokens"]) for answer in answers]
    )
    result = fit(
        tmp_path,
        tokenizer,
        rows,
        method,
        source=short,
        max_steps=24,
        batch_size=4,
        samples=6,
        max_new_tokens=24,
        gradient_accumulation=1,
        hyperparameters={
            "grpo": {"beta": 0.0},
            "ppo": {"adaptive_kl": False, "kl_coef": 0.0},
            "rloo": {"kl_coef": 0.0},
        }[method],
        **({"passes": 2} if method != "rloo" else {}),
    )
    lengths = [line["length"] for line in train_lines(result) if "length" in line]
    assert np.mean(lengths[-3:]) < 0.75 * np.mean(lengths[:3]), lengths


# -- a step is what the formula says
# --------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_round_is_reinforces_with_leave_one_out_rewards(
    tmp_path, tokenizer, rows
):
    """Trainer's gradient against a plain loop: one sequence at a time, nothing shared, advantages
    in NumPy.
    """
    source = source_for(
        tokenizer,
        rows,
        hyperparameters={"kl_coef": 0.0},
        batch_size=4,
        gradient_accumulation=2,
    )
    batches = source.batches(0)
    assert sum(batch.items for batch in batches) == 8 * 3
    for batch in batches:
        losses, _ = source.losses(source.learner, batch)
        (losses.sum() / 24).backward()
    mine = {name: p.grad.clone() for name, p in source.model.named_parameters()}
    model = base()
    for row, group in zip(source.rollouts.rows, source.rollouts.samples):
        rewards = np.array([s.reward for s in group])
        for j, sample in enumerate(group):
            advantage = rewards[j] - np.delete(rewards, j).mean()
            ids = torch.tensor([row["prompt_ids"] + sample.ids])
            logps = (
                model(input_ids=ids)
                .logits[0, len(row["prompt_ids"]) - 1 : -1]
                .log_softmax(-1)
                .gather(1, ids[0, len(row["prompt_ids"]) :, None])
                .sum()
            )
            (-advantage * logps / 24).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            mine[name], p.grad, rtol=2e-3, atol=2e-5 + 1e-4 * p.grad.abs().max().item()
        )


def test_two_micro_batches_are_one_big_batch(tmp_path, tokenizer, rows):
    "At a rate at which rounding does not grow from step to step, on whichever processor."
    slow = {"learning_rate": 1e-4}
    big = fit(tmp_path / "big", tokenizer, rows, batch_size=4, gradient_accumulation=1, **slow)
    small = fit(tmp_path / "small", tokenizer, rows, batch_size=1, gradient_accumulation=4, **slow)
    assert len(train_lines(big)) == 3
    for one, other in zip(train_lines(big), train_lines(small), strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3) and one[
            "reward"
        ] == pytest.approx(other["reward"], abs=1e-6)


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_layout_of_batches_changes_nothing(tmp_path, tokenizer, rows, layout):
    one, other = (
        fit(tmp_path / each, tokenizer, rows, "ppo", layout=each) for each in (layout, "apart")
    )
    for a, b in zip(train_lines(one)[:1], train_lines(other)[:1]):
        for name in ("loss", "grad_norm", "reward", "kl_k1", "value_error"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name


def test_kl_inside_the_reward_moves_advantages_before_the_baseline():
    rewards, policy, ref = (
        torch.tensor([[1.0, 2.0, 6.0]]).double(),
        torch.tensor([[-3.0, -4.0, -5.0]]).double(),
        torch.tensor([[-4.0, -4.0, -3.0]]).double(),
    )
    made = prepare_rloo(
        {"rewards": rewards, "policy_logps": policy, "ref_logps": ref}, kl_coef=0.5
    )["advantages"][0].tolist()
    shaped = [1.0 - 0.5 * 1.0, 2.0, 6.0 + 0.5 * 2.0]
    assert made == pytest.approx(
        [
            shaped[0] - (shaped[1] + shaped[2]) / 2,
            shaped[1] - (shaped[0] + shaped[2]) / 2,
            shaped[2] - (shaped[0] + shaped[1]) / 2,
        ]
    )


def test_ranks_take_the_place_of_rewards_before_kl_and_baseline():
    two = torch.zeros(2, 4).double()
    seen = {"policy_logps": two, "ref_logps": two + 0.1}
    seen["rewards"] = torch.tensor([[2.0, 90.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0]]).double()
    made = prepare_rloo(seen, kl_coef=1.0, ranks=True)["advantages"]
    by_hand = [[0.0, 2.0, 0.0, -2.0], [0.0] * 4]  # of 1.5, 3, 1.5 and 0 above the others' means
    np.testing.assert_allclose(made, by_hand, atol=1e-12)
    with pytest.raises(ConfigError, match="ranks must be True or False, not 'no'"):
        get_method("rloo_kl").hyperparameters({"ranks": "no"})


def test_ranks_train_another_model_than_rewards(rows, tokenizer, tmp_path):
    ends = [
        fit(tmp_path / str(ranks), tokenizer, rows, "rloo_kl", hyperparameters={"ranks": ranks})
        for ranks in (False, True)
    ]
    rewards, ranks = (train_lines(end)[0] for end in ends)
    assert ranks["reward"] == rewards["reward"]
    assert ranks["grad_norm"] != pytest.approx(rewards["grad_norm"], rel=0.01)


def _imitated(rows, tokenizer):
    "Mean over rows of the base model's loss a token, by transformers."
    model, told = base().eval(), []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        labels = ids.clone()
        labels[:, : len(row["prompt_ids"])] = -100
        told.append(model(ids, labels=labels).loss.item())
    return sum(told) / len(told)


def test_the_length_penalty_acts_in_every_third_step_if_so_asked(rows, tokenizer, tmp_path):
    """In the others the loss is that of imitation alone; up to the first one the two trainings are
    the same.
    """
    penalised, plain = (
        fit(
            tmp_path / str(lam),
            tokenizer,
            rows,
            "sft_length",
            hyperparameters={"lam": lam, "penalty_every": 3},
            max_steps=4,
        )
        for lam in (1.0, 0.0)
    )
    for line in train_lines(plain):
        assert line["nll"] == pytest.approx(line["loss"], rel=1e-6)
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(train_lines(penalised), train_lines(plain))]
    assert gaps[:2] == [0, 0] and gaps[2] > 1
    start, *_, end = (line["nll"] for line in plain.metrics if line["split"] == "validation")
    assert start == pytest.approx(_imitated(rows[:4], tokenizer)) and end < start
    with pytest.raises(ConfigError, match="penalty_every is 0"):
        get_method("sft_length").hyperparameters({"penalty_every": 0})


def test_the_length_penalty_imitates_whole_demonstrations_if_so_asked(rows, tokenizer, tmp_path):
    "`per_token: false`: the loss of a step is the sum over a demonstration's tokens (Eq. 2)."
    told = {"lam": 0.0, "per_token": False}
    sizes = {"batch_size": len(rows), "gradient_accumulation": 1, "max_steps": 1}
    end = fit(tmp_path, tokenizer, rows, "sft_length", hyperparameters=told, **sizes)
    [line] = train_lines(end)
    sums = [len(row["response_ids"]) * _imitated([row], tokenizer) for row in rows]
    assert line["loss"] == pytest.approx(sum(sums) / len(rows))
    assert line["nll"] == pytest.approx(_imitated(rows, tokenizer))  # a token, as ever
    with pytest.raises(ConfigError, match="per_token must be True or False"):
        get_method("sft_length").hyperparameters({"per_token": "no"})


def test_prompts_whose_answers_are_all_alike_are_replaced(rows, tokenizer, tmp_path):
    """A reward that tells answers apart for some prompts only: after enough draws every group of a
    round is of such a prompt, and each was asked in its own right.
    """
    lively = {"How much is 7 plus 5?", "What is 9 minus 4?", "Count from 3 to 7."}
    score = lambda asked, answers: [
        float(answer["tokens"]) if row["prompt"][-1]["content"] in lively else 0.0
        for row, answer in zip(asked, answers)
    ]
    flat = {}
    for redraw in (0, 12):
        options = dict(source=FunctionReward("some", score), redraw=redraw, batch_size=4)
        result = fit(tmp_path / str(redraw), tokenizer, rows, "dapo", max_steps=2, **options)
        flat[redraw] = [line["groups_flat"] for line in train_lines(result)]
    assert min(flat[0]) > 0 and max(flat[12]) == 0
    with pytest.raises(ConfigError, match="redraw: ppo does not compare"):
        fit(tmp_path / "ppo", tokenizer, rows, "ppo", redraw=1)


def test_no_answer_ends_before_the_least_and_the_trainer_knows_its_log_probs(
    rows, tokenizer, tmp_path
):
    short, long = (
        fit(tmp_path / str(least), tokenizer, rows, min_new_tokens=least, max_steps=1)
        for least in (0, 11)
    )
    assert train_lines(short)[0]["length"] < 11 <= train_lines(long)[0]["length"]
    assert train_lines(long)[0]["logps_gap"] < 1e-4
    before = [one.metrics[0]["length"] for one in (short, long)]
    assert before[0] == before[1]  # validations are as the model is
    with pytest.raises(ConfigError, match="min_new_tokens: 12 leaves no room below max_new_tokens"):
        settings(min_new_tokens=12)
    with pytest.raises(ConfigError, match="sample_steps: .*sample_table"):
        settings(sample_steps=2)


def test_ppo_gets_the_kl_per_token_and_the_reward_at_the_end():
    """gamma = lambda = 1, a value head of zeros: the return of a token is the sum of all that
    comes, and the advantage is the same.
    """
    tokens, ref = (
        torch.tensor([[[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]]]),
        torch.tensor([[[-2.0, -2.0, -1.0], [-1.5, -1.0, 0.0]]]),
    )
    mask = torch.tensor([[[True, True, True], [True, True, False]]])
    seen = {
        "rewards": torch.tensor([[2.0, 4.0]]).double(),
        "token_logps": tokens,
        "ref_token_logps": ref,
        "mask": mask,
        "values": torch.zeros(1, 2, 3),
    }
    made = prepare_ppo(seen, kl_coef=0.1, gamma=1.0, gae_lambda=1.0, whiten_advantages=False)
    torch.testing.assert_close(
        made["returns"],
        torch.tensor([[[2.0 + 0.2 - 0.1, 2.0 + 0.2, 2.0 + 0.2], [4.0 - 0.05, 4.0, 0.0]]]),
    )
    torch.testing.assert_close(made["advantages"], made["returns"])


def test_pairs_are_made_of_rewards_and_a_tie_by_a_coin():
    generator = torch.Generator().manual_seed(0)
    made = prepare_pairs(
        {
            "rewards": torch.tensor([[1.0, 0.0], [0.0, 1.0], *[[2.0, 2.0]] * 200]).double(),
            "generator": generator,
        }
    )["first_chosen"][:, 0]
    assert made[:2].tolist() == [True, False] and 70 < made[2:].sum() < 130


def test_xpo_takes_the_second_answer_from_the_reference_and_pushes_it_away(
    tmp_path, tokenizer, rows
):
    model = base()
    source = source_for(
        tokenizer, rows, "online_xpo", model=model, batch_size=4, gradient_accumulation=1
    )
    with torch.no_grad():
        # the policy has moved
        for p in source.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    (batch,) = source.batches(0)
    assert (
        batch.items == 4
        and [[s.by for s in group] for group in source.rollouts.samples]
        == [["policy", "reference"]] * 4
    )
    for group in source.rollouts.samples:
        # drawn from the reference
        torch.testing.assert_close(
            torch.tensor(group[1].logps), torch.tensor(group[1].ref_logps), rtol=1e-4, atol=1e-4
        )
        assert abs(sum(group[0].logps) - sum(group[0].ref_logps)) > 1e-2
    logps, _ = scored_logps(source.model, batch.batch)
    inputs = round_inputs(batch, padded(logps, batch.batch))
    first, second = inputs.policy_logps.chunk(2)
    assert torch.equal(inputs.explore_logps, second)
    of_first, of_second = batch.rewards.chunk(2)  # prompts in the order of the batch
    assert (
        sorted(of_first.tolist())
        == pytest.approx(sorted(group[0].reward for group in source.rollouts.samples))
        and (of_first != of_second).any()
    )
    for i in (of_first != of_second).nonzero().flatten().tolist():
        better, worse = (first, second) if of_first[i] > of_second[i] else (second, first)
        assert (
            inputs.policy_chosen_logps[i] == better[i]
            and inputs.policy_rejected_logps[i] == worse[i]
        )


def test_temperature_is_accounted_for_unless_told_otherwise(tmp_path, tokenizer, rows):
    for correct in (True, False):
        source = source_for(
            tokenizer,
            rows,
            temperature=0.5,
            temperature_high=1.5,
            correct_temperature=correct,
        )
        batch = source.batches(0)[0]
        assert [s.temperature for s in source.rollouts.samples[0]] == [0.5, 1.0, 1.5]
        logps, _ = scored_logps(source.model, batch.batch)
        inputs = round_inputs(batch, padded(logps, batch.batch))
        ratio = (inputs.policy_logps - inputs.old_logps).exp().reshape(3, -1)
        assert torch.allclose(ratio[1], torch.ones(2), atol=1e-4) and (
            torch.allclose(ratio, torch.ones(3, 2), atol=1e-4) != correct
        )


def test_prompts_come_once_an_epoch_and_samples_of_a_round_once_a_pass(tmp_path, tokenizer, rows):
    source = source_for(
        tokenizer,
        rows,
        "grpo",
        batch_size=1,
        gradient_accumulation=2,
        minibatches=2,
        passes=2,
        max_steps=8,
    )
    s = source.settings
    assert (
        s.prompts_per_round(),
        s.steps_per_round(),
        online_steps(
            8, settings(batch_size=2, gradient_accumulation=1, passes=3, epochs=2.0, max_steps=None)
        ),
    ) == (4, 4, 24)
    orders = [source.prompt_order(number) for number in range(4)]
    assert (
        sorted(orders[0] + orders[1]) == sorted(orders[2] + orders[3]) == list(range(8))
        and orders[0] + orders[1] != orders[2] + orders[3]
    )
    seen = []
    for step in range(4):
        batches = source.batches(step)
        assert sum(b.items for b in batches) == 6
        assert [b.first for b in batches] == [step == 0] * 2
        seen.append([b.rewards.tolist() for b in batches])
    assert (
        sorted(map(str, seen[0] + seen[1])) == sorted(map(str, seen[2] + seen[3]))
        and source.rollouts.round == 0
    )


# -- checks, dropout, failures
# --------------------------------------------------------------------------------------------------


def test_with_lora_and_dropout_the_reference_has_no_adapters_and_the_check_no_dropout(
    tmp_path, tokenizer, rows
):
    start = base()
    result = fit(
        tmp_path,
        tokenizer,
        rows,
        "ppo",
        lora=True,
        lora_dropout=0.5,
        lora_targets=["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    assert (
        all(line["logps_gap"] < 1e-5 for line in train_lines(result))
        and abs(train_lines(result)[0]["kl_k1"]) < 1e-3
    )
    assert (
        (tmp_path / "adapter").is_dir()
        and not same_weights(start, result.model)
        and not hasattr(result.model, "value_head")
    )
    assert "value_head.weight" not in result.model.state_dict()


def test_a_gap_between_sampler_and_learner_ends_the_run(tmp_path, tokenizer, rows, monkeypatch):
    whole = rounds.sample_answers

    def wrong(*args, **kwargs):
        groups = whole(*args, **kwargs)
        for group in groups:
            for sample in group:
                sample.model_logps = [x - 0.5 for x in sample.model_logps]
        return groups

    monkeypatch.setattr(rounds, "sample_answers", wrong)
    with pytest.raises(PrefkitError, match="between the sampler and the forward pass"):
        fit(tmp_path, tokenizer, rows)


def test_nan_is_named(tmp_path, tokenizer, rows):
    model = base()
    with torch.no_grad():
        model.lm_head.weight[5, 0] = math.nan
    with pytest.raises(Exception, match="nan|finite|NaN"):
        fit(tmp_path, tokenizer, rows, model=model, validation=0)


def test_what_cannot_work_is_refused_before_anything_is_drawn(tmp_path, tokenizer, rows):
    for method, changes, match in (
        ("rloo", dict(samples=1), "at least 2"),
        ("online_xpo", dict(samples=3), "samples: 2"),
        ("rloo", dict(temperature=0.0), "temperature"),
        ("rloo", dict(keep_best=True, validation=0), "validation split"),
        ("rloo", dict(group_by_length=True), "group_by_length"),
        ("rloo", dict(top_p=0.0), "top_p"),
    ):
        with pytest.raises(ConfigError, match=match):
            fit(tmp_path / "x", tokenizer, rows, method, **changes)
    with pytest.raises(ConfigError, match="Did you mean `rloo`"):
        get_method("rlo")
    with pytest.raises(ConfigError, match="Did you mean `kl_coef`"):
        fit(tmp_path / "x", tokenizer, rows, hyperparameters={"kl_coeff": 0.1})
    with pytest.raises(ConfigError, match="clip"):
        fit(tmp_path / "x", tokenizer, rows, "grpo", hyperparameters={"clip": -1.0})
    with pytest.raises(DataError, match="no prompts"):
        fit(tmp_path / "x", tokenizer, [])
    with pytest.raises(DataError, match="response_ids"):
        fit(
            tmp_path / "x",
            tokenizer,
            [{k: v for k, v in row.items() if k != "response_ids"} for row in rows],
            "sft_length",
        )
    assert not (tmp_path / "x" / "training.json").exists()


def test_a_made_up_method_takes_six_lines(tmp_path, tokenizer, rows):
    def loss(policy_logps, advantages, *, strength=1.0):
        return -strength * advantages * policy_logps

    def prepare(seen, *, power=1.0):
        return {"advantages": (seen["rewards"] - seen["rewards"].mean()).sign() * power}

    try:
        defaults = {"strength": 0.5, "power": 1.0}
        add_method(Method("mine", loss, "prompts", prepare=prepare, defaults=defaults))
        assert len(train_lines(fit(tmp_path, tokenizer, rows, "mine", max_steps=1))) == 1
        with pytest.raises(ConfigError, match="asks for nothing_like_it"):
            add_method(Method("bad", lambda nothing_like_it: 0, "prompts", prepare=prepare))
        with pytest.raises(ConfigError, match="neither loss nor prepare"):
            add_method(Method("bad", loss, "prompts", prepare=prepare, defaults={"beta": 1}))
    finally:
        METHODS.pop("mine", None)


# -- the same run, whatever happens
# --------------------------------------------------------------------------------------------------


def test_the_same_seed_twice_and_another_once(tmp_path, tokenizer, rows):
    one, again, other = (
        fit(tmp_path / "1", tokenizer, rows),
        fit(tmp_path / "2", tokenizer, rows),
        fit(tmp_path / "3", tokenizer, rows, seed=1),
    )
    assert (
        same_weights(one.model, again.model)
        and timeless(one.metrics) == timeless(again.metrics)
        and one.samples == again.samples
    )
    assert not same_weights(one.model, other.model)


@pytest.mark.parametrize("method, lora", [("ppo", False), ("grpo", False), ("ppo", True)])
def test_a_run_broken_off_in_the_middle_of_a_round_goes_on_with_its_samples(
    method, lora, tmp_path, tokenizer, rows, monkeypatch
):
    options = dict(
        batch_size=2,
        gradient_accumulation=1,
        minibatches=2,
        passes=2,
        max_steps=8,
        save_steps=1,
        eval_steps=4,
        lora=lora,
        lora_dropout=0.1 if lora else 0.0,
    )
    whole = fit(tmp_path / "whole", tokenizer, rows, method, **options)

    class Stop(Exception):
        pass

    batches = Rounds.batches

    def breaking(self, step):
        if step == 6:
            raise Stop
        return batches(self, step)

    monkeypatch.setattr(Rounds, "batches", breaking)
    with pytest.raises(Stop):
        fit(tmp_path / "broken", tokenizer, rows, method, **options)
    monkeypatch.setattr(Rounds, "batches", batches)
    state = json.loads(
        (
            max(find_checkpoints(tmp_path / "broken/checkpoints").items())[1] / "prefkit.json"
        ).read_text()
    )
    assert state["source"]["rollouts"]["round"] == 1  # in the middle of the second round
    drawn = []
    draw = Rounds.draw_round
    monkeypatch.setattr(
        Rounds, "draw_round", lambda self, number: drawn.append(number) or draw(self, number)
    )
    resumed = fit(tmp_path / "broken", tokenizer, rows, method, **options)
    # the samples of round 1 were in the checkpoint
    assert resumed.resumed_from == 6 and drawn == []
    assert (
        same_weights(whole.model, resumed.model)
        and timeless(whole.metrics) == timeless(resumed.metrics)
        and whole.samples == resumed.samples
    )


@pytest.mark.slow
def test_a_run_killed_by_the_system_goes_on(tmp_path, tokenizer, rows):
    script = (
        "import sys, json, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[2]); "
        "import test_online as t; from transformers import AutoTokenizer; tok = "
        "AutoTokenizer.from_pretrained(t.BASE); rows = json.load(open(sys.argv[3])); "
        "t.fit(sys.argv[1], tok, rows, 'grpo', batch_size=2, gradient_accumulation=1, "
        "minibatches=2, passes=2, max_steps=8, save_steps=1, eval_steps=4)"
    )
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = lambda folder: [
        sys.executable,
        "-c",
        script,
        str(folder),
        str(Path(__file__).parent),
        str(tmp_path / "rows.json"),
    ]
    process = subprocess.Popen(
        words(tmp_path / "killed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=project_root(),
    )
    until = time.monotonic() + 120
    while (
        process.poll() is None
        and len(find_checkpoints(tmp_path / "killed/checkpoints")) == 0
        and time.monotonic() < until
    ):
        time.sleep(0.01)
    time.sleep(random.Random(os.environ.get("PREFKIT_KILL_SEED", "0")).uniform(0, 0.4))
    process.kill()
    process.wait()
    assert (tmp_path / "killed/checkpoints").exists()
    options = dict(
        batch_size=2,
        gradient_accumulation=1,
        minibatches=2,
        passes=2,
        max_steps=8,
        save_steps=1,
        eval_steps=4,
    )
    resumed, whole = (
        fit(tmp_path / "killed", tokenizer, rows, "grpo", **options),
        fit(tmp_path / "whole", tokenizer, rows, "grpo", **options),
    )
    assert same_weights(whole.model, resumed.model) and timeless(whole.metrics) == timeless(
        resumed.metrics
    )


def test_another_reward_is_another_run(tmp_path, tokenizer, rows):
    fit(tmp_path, tokenizer, rows, max_steps=1)
    with pytest.raises(ConfigError, match="other reward"):
        fit(tmp_path, tokenizer, rows, max_steps=1, source=reward_source("second"))
