"""Generation: equal to transformers when greedy, drawn from the right distribution, independent of
the batch, without side effects; records that are made once.
"""

import itertools, json

import pytest
import torch
from transformers import (
    AutoTokenizer,
    DynamicCache,
    Qwen2Config,
    Qwen2ForCausalLM,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

import prefkit.judging.asking
from prefkit.core import ConfigError, DataError, derive_seed, project_root, read_jsonl
from prefkit.model.sampling import (
    choose_tokens,
    beam_ids,
    generate,
    next_token_probs,
    reading_way,
    sample_ids,
    stop_tokens,
)
from prefkit.judging.asking import (
    DECODING,
    TOKEN_LIMITS,
    decoding,
    generate_records,
    prompt_records,
    request_body,
    write_alpaca_eval,
    write_leaderboard,
)
from prefkit.judging.served import ENGINES, Served
from prefkit.data.world import tiny_config, tiny_records

TOKENIZER = AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")
CHATS = [
    [{"role": "user", "content": record["prompt"]}] for record in tiny_records("prompts", "test", 6)
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(
        tiny_config(TOKENIZER, hidden_size=64, num_hidden_layers=2, initializer_range=0.2)
    )
    return made.train()  # a training model, so that a mode that is not put back is seen


def test_greedy_equals_transformers(model):
    ours = generate(model, TOKENIZER, CHATS, max_new_tokens=12, batch_size=3)
    model.eval()
    for chat, answer in zip(CHATS, ours):
        ids = TOKENIZER.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        made = model.generate(
            **ids,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=[TOKENIZER.eos_token_id, TOKENIZER.pad_token_id],
        )
        assert (
            answer["text"]
            == TOKENIZER.decode(
                made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
            ).strip()
        )
    model.train()


def test_draws_do_not_depend_on_the_batch_nor_touch_global_state(model):
    before = torch.get_rng_state()
    one, six = (
        generate(
            model, TOKENIZER, CHATS, max_new_tokens=8, temperature=0.9, top_p=0.9, batch_size=size
        )
        for size in (1, 6)
    )
    assert one == six and torch.equal(before, torch.get_rng_state()) and model.training
    assert one != generate(
        model, TOKENIZER, CHATS, max_new_tokens=8, temperature=0.9, top_p=0.9, seed=1
    )


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 0.95), (1.5, 0.5), (0.6, 0.05)])
def test_probabilities_equal_those_of_transformers(temperature, top_p):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    warped = (
        TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))
        if top_p < 1
        else logits / temperature
    )
    torch.testing.assert_close(
        next_token_probs(logits, temperature=temperature, top_p=top_p),
        warped.softmax(-1),
        atol=1e-6,
        rtol=1e-5,
    )


def test_draws_follow_the_distribution_and_never_fall_outside_top_p():
    logits, n = torch.tensor([[2.0, 1.0, 0.0, -3.0]]), 40_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(0))
    tokens, _ = choose_tokens(logits.expand(n, 4), uniforms, torch.ones(n), 0.9)
    drawn = tokens.bincount(minlength=4) / n
    torch.testing.assert_close(drawn, next_token_probs(logits, top_p=0.9)[0], atol=0.01, rtol=0)
    assert drawn[3] == 0
    largest = torch.full((1,), 1 - 2.0**-24)  # the largest number that torch.rand gives
    assert choose_tokens(logits, largest, torch.ones(1), 0.9)[0].item() < 3
    assert choose_tokens(logits, torch.zeros(1), torch.ones(1), 0.9)[0].item() == 0


def test_says_which_answers_were_cut_off(model):
    answers = generate(model, TOKENIZER, CHATS, max_new_tokens=3)
    assert all(answer["tokens"] <= 3 for answer in answers)
    assert all(answer["ended"] or answer["tokens"] == 3 for answer in answers)


def test_stops_at_the_end_of_turn(model):
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")

    class Ends(Qwen2ForCausalLM):  # says one word, then ends
        def forward(self, input_ids, past_key_values=None, **_):
            logits = torch.zeros(*input_ids.shape, len(TOKENIZER))
            logits[..., 300], logits[..., end] = 9.0, 10.0 * (input_ids == 300)
            return CausalLMOutputWithPast(logits=logits, past_key_values=DynamicCache())

    config = Qwen2Config(vocab_size=len(TOKENIZER), hidden_size=64, num_hidden_layers=1)
    answers = generate(Ends(config), TOKENIZER, CHATS, max_new_tokens=10)
    assert all(
        answer == {"text": TOKENIZER.decode([300]).strip(), "tokens": 2, "ended": True}
        for answer in answers
    )


def test_refuses_settings_out_of_range(model):
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError, match="must be"):
            generate(model, TOKENIZER, CHATS, **wrong)


# Rows that have ended leave the batch.


def by_hand(model, prompt, seed, position, max_new_tokens, temperature, top_p):
    "One answer without batch or cache: the whole text is read anew for every token."
    stop, answer = stop_tokens(TOKENIZER, model), []
    draws = torch.rand(
        max_new_tokens,
        generator=torch.Generator().manual_seed(derive_seed(seed, position, *prompt)),
    )
    for draw in draws:
        with torch.no_grad():
            probs = next_token_probs(
                model(torch.tensor([prompt + answer])).logits[:, -1],
                temperature=temperature,
                top_p=top_p,
            )[0].double()
        answer.append(int((probs.cumsum(-1) <= draw.double() * probs.sum()).sum()))
        if answer[-1] in stop:
            return answer, True
    return answer, False


def test_answers_equal_those_made_one_token_at_a_time_without_a_cache():
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(
        tiny_config(TOKENIZER, hidden_size=32, num_hidden_layers=2, initializer_range=0.3)
    ).eval()
    # so that answers end, one sooner than another
    with torch.no_grad():
        model.lm_head.weight[stop_tokens(TOKENIZER, model)] *= 3
    prompts = [[5 + row] * (1 + row % 4) for row in range(24)]
    made = sample_ids(
        model,
        prompts,
        stop_ids=stop_tokens(TOKENIZER, model),
        pad_token_id=TOKENIZER.pad_token_id,
        max_new_tokens=20,
        temperature=1.0,
        top_p=0.95,
        seed=3,
        batch_size=24,
    )
    assert made == [
        by_hand(model, prompt, 3, row, 20, 1.0, 0.95) for row, prompt in enumerate(prompts)
    ]
    assert len({len(ids) for ids, _ in made}) > 5 and {ended for _, ended in made} == {True, False}


def test_the_model_reads_no_more_rows_than_are_running(model, monkeypatch):
    prompts = [[5, 6 + row] for row in range(24)]
    assert reading_way(model, prompts, 0) == "padded"  # so that it is not tried below
    sizes, forward = [], model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda *args, **kwargs: (sizes.append(len(kwargs["input_ids"])), forward(*args, **kwargs))[
            1
        ],
    )
    made = sample_ids(
        model,
        prompts,
        stop_ids=list(range(0, 1000, 12)),
        pad_token_id=0,
        max_new_tokens=60,
        temperature=3.0,
        batch_size=24,
    )
    running = [sum(len(ids) > step for ids, _ in made) for step in range(len(sizes))]
    assert min(sizes) < 24, "some rows left"
    assert all(now <= size < max(now / 0.75 + 1, 2) for now, size in zip(running, sizes))


def test_streams_name_the_draws(model):
    options = {
        "stop_ids": stop_tokens(TOKENIZER, model),
        "pad_token_id": TOKENIZER.pad_token_id,
        "max_new_tokens": 6,
    }
    one, two = [5, 6, 7], [8, 9]
    plain = sample_ids(model, [one, two], **options)
    assert (
        sample_ids(model, [two, one], streams=["1", "0"], **options)
        == plain[::-1]
        != sample_ids(model, [two, one], **options)
    )


def test_an_error_puts_the_mode_back(model):
    def stop(made):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_ids(model, [[5]], stop_ids=[2], pad_token_id=0, max_new_tokens=2, keep=stop)
    assert model.training


# Beam search.


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=6,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    ).eval()


@pytest.mark.parametrize("length_penalty", [0.0, 0.9, 2.0])
def test_wide_beams_find_the_best_of_all_answers(small, length_penalty):
    steps, end = 3, 1
    words = [token for token in range(6) if token != end]
    every = [
        [*start, end] for n in range(steps) for start in itertools.product(words, repeat=n)
    ] + [list(answer) for answer in itertools.product(words, repeat=steps)]
    prompts = [[2], [3, 4], [5, 2, 2], [4, 4, 3, 2], [2, 2, 2, 2, 2], [3]]

    def best_of(prompt):
        scores = []
        for n in range(1, steps + 1):  # all answers of one length at once
            answers = torch.tensor([answer for answer in every if len(answer) == n])
            with torch.no_grad():
                logps = small(
                    torch.cat([torch.tensor([prompt] * len(answers)), answers], 1)
                ).logits.log_softmax(-1)
            total = sum(
                logps[range(len(answers)), len(prompt) - 1 + place, answers[:, place]]
                for place in range(n)
            )
            scores += zip((total / n**length_penalty).tolist(), answers.tolist())
        return max(scores)[1]

    made = beam_ids(
        small,
        prompts,
        stop_ids=[end],
        pad_token_id=0,
        max_new_tokens=steps,
        beams=36,
        length_penalty=length_penalty,
        batch_size=500,
    )
    best = [best_of(prompt) for prompt in prompts]
    assert [ids for ids, _ in made] == best and [ended for _, ended in made] == [
        answer[-1] == end for answer in best
    ]


def test_beams_do_not_depend_on_the_batch_nor_on_the_models_own_settings(model):
    rows = [
        TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        for chat in CHATS
    ]
    options = {
        "stop_ids": stop_tokens(TOKENIZER, model),
        "pad_token_id": TOKENIZER.pad_token_id,
        "max_new_tokens": 10,
    }
    one = beam_ids(model, rows, batch_size=1, **options)
    before = model.generation_config.to_dict()
    try:
        model.generation_config.update(
            repetition_penalty=5.0,
            no_repeat_ngram_size=1,
            do_sample=True,
            temperature=9.0,
            early_stopping=True,
            length_penalty=-5.0,
        )
        assert beam_ids(model, rows, batch_size=24, **options) == one and model.training
    finally:
        model.generation_config.update(**before)
    greedy = sample_ids(model, rows, temperature=0.0, **options)

    def logp(prompt, ids):
        with torch.no_grad():
            return (
                model.eval()(torch.tensor([prompt + ids]))
                .logits[0, len(prompt) - 1 : -1]
                .log_softmax(-1)
                .gather(-1, torch.tensor(ids)[:, None])
                .sum()
                .item()
                / len(ids) ** 0.9
            )

    gains = [
        logp(row, ids) - logp(row, other) for row, (ids, _), (other, _) in zip(rows, one, greedy)
    ]
    model.train()
    assert sum(gain > 1e-4 for gain in gains) > len(gains) / 2, (
        "four beams find likelier answers than greedy"
    )


# Records.


def test_presets_are_those_of_the_reports():
    assert decoding({**DECODING["reports"], "max_new_tokens": 350}) == {
        "temperature": 0.6,
        "top_p": 0.95,
        "max_new_tokens": 350,
        "seed": 0,
    }
    assert decoding({**DECODING["beam"], "max_new_tokens": 256, "seed": 4}) == {
        "beams": 4,
        "length_penalty": 0.9,
        "max_new_tokens": 256,
    }, "a seed has no influence here"
    assert decoding({**DECODING["greedy"], "max_new_tokens": 512, "seed": 4}) == {
        "temperature": 0.0,
        "max_new_tokens": 512,
    }
    assert list(TOKEN_LIMITS) == [256, 350, 512, 1024]


@pytest.mark.parametrize(
    "wrong, field, reason",
    [
        ({"max_new_tokens": None}, "max_new_tokens", "missing"),
        ({"top_k": 5}, "top_k", "unknown setting"),
        ({"temperature": -1}, "temperature", "out of range"),
        ({"temperature": "0.6"}, "temperature", "out of range"),
        ({"top_p": 0}, "top_p", "out of range"),
        ({"beams": 0}, "beams", "out of range"),
        ({"beams": 2.0}, "beams", "out of range"),
        ({"beams": 4, "temperature": 0.6}, "beams", "contradiction"),
        ({"max_new_tokens": 0}, "max_new_tokens", "out of range"),
        ({"max_new_tokens": True}, "max_new_tokens", "out of range"),
        ({"seed": -1}, "seed", "out of range"),
    ],
)
def test_refuses_settings_that_mean_nothing(wrong, field, reason):
    with pytest.raises(ConfigError) as error:
        decoding({"max_new_tokens": 8, **wrong})
    assert (error.value.field, error.value.reason) == (field, reason)


def test_what_is_said_of_a_setting():
    for wrong, message in (
        ({"max_new_tokens": None}, "max_new_tokens is missing. It changes every result"),
        ({"top_k": 5}, "top_k: no such setting. There are temperature, top_p"),
        ({"top_p": 1.5}, "top_p is 1.5, but must be a finite number above 0 and of at most 1."),
        ({"beams": 4, "temperature": 0.6}, "beam search does not draw"),
    ):
        with pytest.raises(ConfigError) as error:
            decoding({"max_new_tokens": 8, **wrong})
        assert message in str(error.value)


def test_prompts_in_every_form():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    records, chats = prompt_records(
        ["u", chat, {"prompt": "u", "prompt_id": "x", "kind": "k"}, {"prompt": chat}]
    )
    assert [record["prompt_id"] for record in records] == ["0", "1", "x", "3"] and records[2][
        "kind"
    ] == "k"
    assert chats == [[chat[1]], chat, [chat[1]], chat]
    for wrong in (
        [],
        [{"role": "assistant", "content": "a"}],
        3,
        None,
        {"text": "u"},
        [{"role": "user"}],
        {"prompt": "u", "prompt_id": 3},
    ):
        with pytest.raises(DataError, match="prompt 0"):
            prompt_records([wrong])
    with pytest.raises(DataError) as error:
        prompt_records([{"prompt": "u", "prompt_id": "x"}] * 2)
    assert (error.value.field, error.value.reason) == ("prompt_id", "twice")


RECORDS, SETTINGS = (
    tiny_records("prompts", "test", 10),
    {**DECODING["reports"], "max_new_tokens": 8},
)


def test_records_do_not_depend_on_which_others_are_asked(model):
    whole = generate_records(model, RECORDS, SETTINGS, tokenizer=TOKENIZER, name="m")
    assert (
        generate_records(
            model, RECORDS[::-1][3:7], SETTINGS, tokenizer=TOKENIZER, name="m", batch_size=3
        )
        == whole[::-1][3:7]
    )
    plain = generate(model, TOKENIZER, CHATS, temperature=0.6, top_p=0.95, max_new_tokens=8)
    records = generate_records(model, CHATS, SETTINGS, tokenizer=TOKENIZER)
    assert [(record["answer"], record["tokens"], record["ended"]) for record in records] == [
        (one["text"], one["tokens"], one["ended"]) for one in plain
    ]
    assert (
        generate_records(
            model, [chat[0]["content"] for chat in CHATS], SETTINGS, tokenizer=TOKENIZER
        )[2]["answer"]
        == records[2]["answer"]
    )


@pytest.mark.parametrize("preset", ["reports", "beam"])
def test_killed_half_way_it_goes_on_and_makes_nothing_twice(model, tmp_path, monkeypatch, preset):
    settings, made = {**DECODING[preset], "max_new_tokens": 8}, []
    whole = generate_records(
        model,
        RECORDS,
        settings,
        tokenizer=TOKENIZER,
        output=tmp_path / "whole.jsonl",
        name="m",
        batch_size=8,
    )
    original = prefkit.judging.asking.decode_answer

    def dies(*args):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(args)
        return original(*args)

    monkeypatch.setattr(prefkit.judging.asking, "decode_answer", dies)
    with pytest.raises(KeyboardInterrupt):
        generate_records(
            model,
            RECORDS,
            settings,
            tokenizer=TOKENIZER,
            output=tmp_path / "a.jsonl",
            name="m",
            batch_size=2,
        )
    kept = read_jsonl(tmp_path / "a.jsonl")
    assert 0 < len(kept) < 6 and all(record in whole for record in kept)
    count = []
    monkeypatch.setattr(
        prefkit.judging.asking, "decode_answer", lambda *args: (count.append(1), original(*args))[1]
    )
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"prompt_id": "torn')
    again = generate_records(
        model,
        RECORDS,
        settings,
        tokenizer=TOKENIZER,
        output=tmp_path / "a.jsonl",
        name="m",
        batch_size=8,
    )
    assert again == whole == read_jsonl(tmp_path / "a.jsonl") and len(count) == len(RECORDS) - len(
        kept
    )
    assert generate_records(
        model, RECORDS, settings, tokenizer=TOKENIZER, output=tmp_path / "a.jsonl", name="m"
    ) == whole and len(count) == len(RECORDS) - len(kept)


def test_a_changed_prompt_is_answered_anew_and_changed_settings_or_weights_are_refused(
    model, tmp_path
):
    output = tmp_path / "a.jsonl"
    whole = generate_records(model, RECORDS, SETTINGS, tokenizer=TOKENIZER, output=output, name="m")
    changed = [{**RECORDS[0], "prompt": "What is a cow?"}, *RECORDS[1:4]]
    some = generate_records(model, changed, SETTINGS, tokenizer=TOKENIZER, output=output, name="m")
    assert (
        some[0]["prompt"] == "What is a cow?"
        and some[1:] == whole[1:4]
        and read_jsonl(output) == [*some, *whole[4:]]
    ), "what was not asked this time stays"
    before = output.read_bytes()
    for settings, name, words in (
        ({**SETTINGS, "seed": 1}, "m", "settings"),
        ({**SETTINGS, "max_new_tokens": 9}, "m", "settings"),
        ({**DECODING["greedy"], "max_new_tokens": 8}, "other", "model m, not other and settings"),
    ):
        with pytest.raises(ConfigError, match=words):
            generate_records(
                model, RECORDS, settings, tokenizer=TOKENIZER, output=output, name=name
            )
    weight = model.lm_head.weight
    with torch.no_grad():
        weight += 1e-3
    try:
        with pytest.raises(ConfigError, match="other weights"):
            generate_records(model, RECORDS, SETTINGS, tokenizer=TOKENIZER, output=output, name="m")
    finally:
        with torch.no_grad():
            weight -= 1e-3
    assert output.read_bytes() == before


def test_files_for_others(tmp_path):
    records = [
        {"prompt_id": "0", "prompt": "Why?\n", "answer": "So \u2028 é", "model": "m"},
        {
            "prompt_id": "1",
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "How?"}],
            "answer": "",
            "model": "m",
            "dataset": "koala",
        },
    ]
    lines = [
        json.loads(line)
        for line in write_leaderboard(tmp_path / "board.jsonl", records)
        .read_text(encoding="utf-8")
        .split("\n")[:-1]
    ]
    assert lines == [
        {"prompt": "Why?\n", "response": "So \u2028 é"},
        {"prompt": "How?", "response": ""},
    ]
    outputs = json.loads(
        write_alpaca_eval(
            tmp_path / "outputs.json", records, generator="tiny", dataset="world"
        ).read_text(encoding="utf-8")
    )
    assert outputs == [
        {"instruction": "Why?\n", "output": "So \u2028 é", "generator": "tiny", "dataset": "world"},
        {"instruction": "How?", "output": "", "generator": "tiny", "dataset": "koala"},
    ]
    assert (
        json.loads(
            write_alpaca_eval(tmp_path / "outputs.json", records).read_text(encoding="utf-8")
        )[0]["generator"]
        == "m"
    )
    talk = {
        "prompt_id": "7",
        "prompt": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")],
        "answer": "y",
        "model": "m",
    }
    for write in (write_leaderboard, write_alpaca_eval):
        with pytest.raises(DataError, match="7: a conversation of 3 turns"):
            write(tmp_path / "no", [talk])


@pytest.mark.parametrize("engine", ENGINES)
def test_requests_say_all_settings(engine):
    chat = [{"role": "user", "content": "u"}]
    drawn, greedy = (
        request_body(engine, chat, decoding({**DECODING[preset], "max_new_tokens": 512}), "p")
        for preset in ("reports", "greedy")
    )
    flat = lambda body: {**body, **json.loads(body.get("generation_config", "{}"))}
    assert (
        flat(drawn)["temperature"] == 0.6
        and flat(drawn)["top_p"] == 0.95
        and drawn["max_tokens"] == greedy["max_tokens"] == 512
        and drawn["seed"] == derive_seed(0, "p")
    )
    assert "seed" not in greedy and (
        flat(greedy).get("do_sample") is False
        if engine == "transformers"
        else greedy["temperature"] == 0
    )
    if engine:
        assert (
            flat(drawn)["top_k"] in (0, -1)
            and (flat(drawn).get("repetition_penalty") or flat(drawn).get("repeat_penalty")) == 1.0
        )
    else:
        assert set(drawn) == {"messages", "max_tokens", "temperature", "top_p", "seed"}, (
            "nothing that OpenAI's interface does not know"
        )
    if engine not in ("vllm", "transformers"):
        with pytest.raises(ConfigError, match="no beam search"):
            request_body(engine, chat, decoding({**DECODING["beam"], "max_new_tokens": 512}), "p")


def test_says_what_is_missing(model, tmp_path):
    for answerer, field in ((model, "tokenizer"), (Served("m", "http://localhost:1/v1"), "output")):
        with pytest.raises(ConfigError) as error:
            generate_records(answerer, ["a"], SETTINGS)
        assert (error.value.field, error.value.reason) == (field, "missing")
    with pytest.raises(ConfigError, match="beams 1"):
        beam_ids(model, [[5]], stop_ids=[2], pad_token_id=0, beams=1)
