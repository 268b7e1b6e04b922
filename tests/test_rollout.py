"Sampling with exact log-probs, the buffer, and what is measured on it."

import json, math

import pytest, torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from prefkit.core import ConfigError, DataError, NotFinite, project_root
from prefkit.model.batches import LAYOUTS, collate
from prefkit.model.kernels import use_rows
from prefkit.model import sampling
from prefkit.model.sampling import stop_tokens, draw_tokens, next_token_probs
from prefkit.train.rollout import (
    Reference,
    Rollouts,
    Sample,
    kl_estimates,
    padded,
    reward_samples,
    sample_answers,
    sample_names,
    sample_rows,
    score_tokens,
    token_mask,
    token_places,
)

BASE = project_root() / "data/tiny/base"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = [
        "What colour is the fox?",
        "Name three animals that live in the forest.",
        "How much is 7 plus 5?",
        "Tell me a short story about the bear.",
        "Count from 3 to 9.",
    ]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in texts
    ]


def one_by_one(model, prompt, ids):
    """Log-softmax of a plain forward pass over one prompt and one answer, nothing padded, no cache:
    (tokens, vocabulary).
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0]
    return logits[len(prompt) - 1 : -1].float()


@pytest.mark.parametrize(
    "temperatures, top_p", [(1.0, 1.0), ([0.5, 1.0, 1.7], 1.0), (1.0, 0.7), ([0.6, 0.6, 1.3], 0.9)]
)
def test_sampled_log_probs_are_those_of_a_fresh_forward_pass_with_temperature_and_truncation(
    model, tokenizer, prompts, temperatures, top_p
):
    samples = sample_answers(
        model,
        tokenizer,
        prompts,
        k=3,
        temperatures=temperatures,
        top_p=top_p,
        max_new_tokens=30,
        seed=3,
    )
    for prompt, group in zip(prompts, samples):
        for sample in group:
            logits = one_by_one(model, prompt, sample.ids)
            chosen = torch.tensor(sample.ids)[:, None]
            plain = logits.log_softmax(-1).gather(1, chosen).squeeze(1)
            drawn = (
                next_token_probs(logits.double(), temperature=sample.temperature, top_p=top_p)
                .gather(1, chosen)
                .squeeze(1)
                .log()
            )
            torch.testing.assert_close(
                torch.tensor(sample.model_logps), plain, rtol=1e-5, atol=1e-5
            )
            torch.testing.assert_close(
                torch.tensor(sample.logps).double(), drawn.double(), rtol=1e-5, atol=2e-5
            )
            assert sample.ended == (
                sample.ids[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id)
            ) and (sample.ended or len(sample.ids) == 30)
            assert tokenizer.eos_token_id not in sample.ids[:-1]


def test_before_the_least_number_of_tokens_the_end_is_not_among_those_drawn_from(
    model, tokenizer, prompts
):
    least, stops = 9, torch.tensor(stop_tokens(tokenizer, model))
    options = dict(k=2, temperatures=0.7, max_new_tokens=30, seed=3)
    samples = sample_answers(model, tokenizer, prompts, min_new_tokens=least, **options)
    plain = sample_answers(model, tokenizer, prompts, **options)
    assert min(len(one.ids) for group in plain for one in group) < least
    for prompt, group in zip(prompts, samples):
        for sample in group:
            assert len(sample.ids) > least and not set(sample.ids[:least]) & set(stops.tolist())
            logits = one_by_one(model, prompt, sample.ids)
            chosen = torch.tensor(sample.ids)[:, None]
            barred = logits.clone()
            barred[:least, stops] = -torch.inf
            drawn = next_token_probs(barred, temperature=0.7).gather(1, chosen).squeeze(1).log()
            own = logits.log_softmax(-1).gather(1, chosen).squeeze(1)
            for found, wanted in ((sample.logps, drawn), (sample.model_logps, own)):
                torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-4, atol=1e-4)


def test_a_wrong_position_or_mask_would_be_seen(model, tokenizer, prompts, monkeypatch, capsys):
    """The comparison above can fail: with positions that ignore the padding on the left it does;
    and where it is not forced on it, the sampler finds out and reads prompts another way.
    """
    whole = sampling.prefill

    def shifted(*args):
        cache, logits, mask, position = whole(*args)
        return cache, logits, mask, position + 1

    monkeypatch.setattr(sampling, "prefill", shifted)
    sampling._READ.pop(model, None)
    assert sampling.reading_way(model, prompts, 0) == "anew"
    assert "everything anew" in capsys.readouterr().out
    sampling._READ[model] = "padded", max(map(len, prompts))
    samples = sample_answers(model, tokenizer, prompts, k=1, max_new_tokens=12, seed=3)
    gaps = [
        abs(a - b)
        for prompt, (s,) in zip(prompts, samples)
        for a, b in zip(
            s.model_logps,
            one_by_one(model, prompt, s.ids)
            .log_softmax(-1)
            .gather(1, torch.tensor(s.ids)[:, None])
            .squeeze(1)
            .tolist(),
        )
    ]
    assert max(gaps) > 1e-3


def test_samples_depend_on_seed_and_place_alone_and_leave_mode_and_random_state(
    model, tokenizer, prompts
):
    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = sample_answers(model, tokenizer, prompts, k=2, max_new_tokens=20, seed=1)
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()
    assert first == sample_answers(model, tokenizer, prompts, k=2, max_new_tokens=20, seed=1)
    # other neighbours, other padding
    small = sample_answers(model, tokenizer, prompts, k=2, max_new_tokens=20, seed=1, batch_size=2)
    assert [[s.ids for s in group] for group in small] == [
        [s.ids for s in group] for group in first
    ]
    assert first != sample_answers(model, tokenizer, prompts, k=2, max_new_tokens=20, seed=2)
    assert first[0][0].ids != first[0][1].ids or first[1][0].ids != first[1][1].ids


def test_tokens_come_as_often_as_their_probability_says():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).expand(40_000, 4)
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (2.0, 0.9)):
        drawn = draw_tokens(logits, uniforms, torch.full((40_000,), temperature), top_p)
        wanted = next_token_probs(logits[:1], temperature=temperature, top_p=top_p)[0]
        counts = drawn["tokens"].bincount(minlength=4) / 40_000
        assert (counts - wanted).abs().max() < 4 * math.sqrt(0.25 / 40_000)
        assert (wanted[drawn["tokens"]] > 0).all()  # nothing that was cut off


def test_a_uniform_just_below_one_never_falls_upon_a_token_that_was_cut_off():
    logits = torch.tensor([[5.0, 4.0, -30.0, -30.0]])
    drawn = draw_tokens(logits, torch.tensor([1 - 2**-24]), torch.ones(1), top_p=0.9)
    assert drawn["tokens"].item() in (0, 1) and drawn["logps"].isfinite().all()


def test_greedy_draws_the_most_likely_token_and_says_that_it_was_certain(model, tokenizer, prompts):
    from prefkit.model.sampling import sample_ids, stop_tokens

    samples = sample_answers(model, tokenizer, prompts, temperatures=0.0, max_new_tokens=20)
    plain = sample_ids(
        model,
        prompts,
        stop_ids=stop_tokens(tokenizer, model),
        pad_token_id=tokenizer.pad_token_id,
        temperature=0.0,
        max_new_tokens=20,
    )
    assert [group[0].ids for group in samples] == [ids for ids, _ in plain]
    assert all(lp == 0 for group in samples for lp in group[0].logps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_of_tokens_are_those_of_plain_forward_passes(model, tokenizer, prompts, layout):
    use_rows(model)
    samples = sample_answers(model, tokenizer, prompts, k=3, max_new_tokens=20, seed=4)
    rows = sample_rows([{"prompt_ids": ids} for ids in prompts], samples)
    scored = score_tokens(
        model, rows, sample_names(3), tokenizer.pad_token_id, layout=layout, batch_size=2
    )
    for prompt, group, found in zip(prompts, samples, scored):
        for sample, logps in zip(group, found):
            wanted = (
                one_by_one(model, prompt, sample.ids)
                .log_softmax(-1)
                .gather(1, torch.tensor(sample.ids)[:, None])
                .squeeze(1)
            )
            torch.testing.assert_close(torch.tensor(logps), wanted, rtol=1e-5, atol=1e-5)


def test_a_head_reads_the_hidden_states_that_foretell_each_token(model, tokenizer, prompts):
    samples = sample_answers(model, tokenizer, prompts[:3], k=2, max_new_tokens=15, seed=4)
    rows = sample_rows([{"prompt_ids": ids} for ids in prompts[:3]], samples)
    torch.manual_seed(0)
    head = torch.nn.Linear(model.config.hidden_size, 1)
    scored = score_tokens(model, rows, sample_names(2), tokenizer.pad_token_id, head=head)
    for prompt, group, found in zip(prompts, samples, scored):
        for sample, (_, values) in zip(group, found):
            with torch.no_grad():
                hidden = model(
                    input_ids=torch.tensor([prompt + sample.ids]), output_hidden_states=True
                ).hidden_states[-1][0]
            torch.testing.assert_close(
                torch.tensor(values),
                head(hidden[len(prompt) - 1 : -1]).squeeze(-1).detach(),
                rtol=1e-4,
                atol=1e-5,
            )


def test_tokens_stand_in_a_matrix_in_the_order_of_their_answers():
    rows = [
        {"prompt_ids": [1, 2], "s0_ids": [3, 4, 5], "s1_ids": [6]},
        {"prompt_ids": [7], "s0_ids": [8, 9], "s1_ids": [10, 11, 12, 13]},
    ]
    for layout in LAYOUTS:
        batch = collate(rows, ("s0", "s1"), 0, layout)
        assert padded(batch.targets.float(), batch).tolist() == [
            [3, 4, 5, 0],
            [8, 9, 0, 0],
            [6, 0, 0, 0],
            [10, 11, 12, 13],
        ]
        assert token_mask(batch).sum(-1).tolist() == [3, 2, 1, 4]
        assert [
            place
            for owner, place in sorted(zip(batch.owners.tolist(), token_places(batch).tolist()))
        ] == [0, 1, 2, 0, 1, 0, 0, 1, 2, 3]


def test_kl_estimates_agree_with_the_divergence_by_enumeration():
    """One token from five: the mean of k1 and of k3 over many draws is the exact KL, within 4
    standard errors.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, generator=generator)
    policy, reference = (
        scores.log_softmax(-1),
        (scores + 0.4 * torch.randn(5, generator=generator)).log_softmax(-1),
    )
    exact = (policy.exp() * (policy - reference)).sum().item()
    drawn = torch.multinomial(policy.exp(), 20_000, replacement=True, generator=generator).tolist()
    samples = [
        [
            Sample(
                [t],
                "",
                True,
                [policy[t].item()],
                [policy[t].item()],
                0.0,
                1.0,
                ref_logps=[reference[t].item()],
            )
        ]
        for t in drawn
    ]
    found = kl_estimates(samples)
    k1 = (policy - reference)[drawn]
    d = -k1
    for name, values in (("kl_k1", k1), ("kl_k3", d.exp() - d - 1)):
        assert abs(found[name] - exact) < 4 * values.std().item() / math.sqrt(len(drawn))
    assert (d.exp() - d - 1).std() < k1.std()  # as long as the two are close


def test_the_buffer_survives_json_to_the_last_bit(model, tokenizer, prompts):
    samples = sample_answers(model, tokenizer, prompts[:2], k=2, max_new_tokens=10)
    rollouts = Rollouts(
        7,
        [{"prompt_ids": ids, "prompt": [{"role": "user", "content": "x"}]} for ids in prompts[:2]],
        samples,
        {"advantages": torch.randn(2, 2), "first": torch.tensor([[True], [False]])},
    )
    for group in samples:
        for number, s in enumerate(group):
            s.reward, s.ref_logps = 0.1 + number, list(s.logps)
    again = Rollouts.load(json.loads(json.dumps(rollouts.state())))
    assert again.samples == rollouts.samples and again.rows == rollouts.rows and again.round == 7
    assert all(
        torch.equal(again.tensors[name], value) and again.tensors[name].dtype == value.dtype
        for name, value in rollouts.tensors.items()
    )
    assert (
        list(rollouts.table()["reward"]) == [0.1, 1.1, 0.1, 1.1]
        and rollouts.metrics()["groups_flat"] == 0
    )
    for group in samples:
        for s in group:
            s.reward = 2.0
    found = rollouts.metrics()
    assert (
        found["groups_flat"] == 1
        and found["reward_spread"] == 0
        and found["kl_k1"] == found["kl_k3"] == 0
    )


def test_a_reference_is_a_frozen_copy_or_the_model_without_its_adapters(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    small = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
        )
    )
    ids = torch.tensor([[1, 2, 3]])
    before = small(input_ids=ids).logits.detach()
    copied = Reference(small)
    adapted = get_peft_model(
        small,
        LoraConfig(
            r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        ),
    )
    switched = Reference(None)
    assert not torch.allclose(adapted(input_ids=ids).logits, before, atol=1e-3)
    for reference in (copied, switched):
        with reference.of(adapted) as plain, torch.no_grad():
            torch.testing.assert_close(plain(input_ids=ids).logits, before)
    assert not any(p.requires_grad for p in copied.copy.parameters())
    assert not torch.allclose(adapted(input_ids=ids).logits, before, atol=1e-3)  # on again


def test_bad_settings_and_bad_rewards_are_refused(model, tokenizer, prompts):
    for bad in (
        dict(k=0),
        dict(k=2, temperatures=[1.0]),
        dict(temperatures=-1.0),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(max_new_tokens=0),
    ):
        with pytest.raises(ConfigError):
            sample_answers(model, tokenizer, prompts, **bad)

    class Source:
        name = "mine"

        def __init__(self, scores):
            self.scores = scores

        def __call__(self, rows, answers):
            return self.scores

    rollouts = Rollouts(
        0,
        [{"prompt_ids": prompts[0]}],
        sample_answers(model, tokenizer, prompts[:1], max_new_tokens=5),
    )
    with pytest.raises(DataError, match="2 scores for 1"):
        reward_samples(rollouts, Source([{"reward": 1}, {"reward": 2}]))
    with pytest.raises(NotFinite, match="mine"):
        reward_samples(rollouts, Source([{"reward": math.nan}]))
