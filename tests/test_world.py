"""The tiny world: its reward agrees with how answers were made, its split does not leak, its files
are reproducible.
"""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.core import DataError, fingerprint, project_root
from prefkit.data.world import (
    ANIMALS,
    END_OF_TEXT,
    IM_END,
    SAMPLES,
    SPLITS,
    STYLES,
    TASKS,
    VERBOSE_STYLES,
    Task,
    World,
    annotate,
    answer,
    corrupt,
    dress,
    gold_reward,
    is_held_out,
    prompts,
    raw_documents,
    read_request,
    second_judge,
    tiny_config,
    tiny_records,
    tokenizer_texts,
    train_tokenizer,
    truth,
    write_samples,
)

WORLD = World()


def some_requests(per_kind=12):
    for kind in TASKS:
        yield from [request for request in prompts("train") if request.kind == kind][:per_kind]


@pytest.mark.parametrize("style", [style for style in STYLES if style != "not_known"])
@pytest.mark.parametrize("right", [True, False])
def test_gold_reward_knows_right_from_wrong_in_every_kind_and_style(style, right):
    rng = random.Random(0)
    for request in some_requests():
        value = truth(WORLD, request)
        if request.kind == "list":
            value = tuple(rng.sample(value, {"two": 2, "three": 3}[request["number"]]))
        said = value if right else corrupt(WORLD, request, value, rng)
        text = dress(WORLD, request, said, style, rng)
        assert gold_reward(request.text, text).right == right, (request.text, text)


def test_gold_reward_orders_the_styles_as_its_table_says():
    prompt, colour = "What colour is the fox?", WORLD.facts["colour"]["fox"]
    request = read_request(prompt)
    total = {
        style: gold_reward(prompt, dress(WORLD, request, colour, style, random.Random(1))).total
        for style in STYLES
    }
    assert total["courteous"] > total["plain"] > total["hedged"] > total["not_known"]
    assert (
        total["plain"] > total["filler"]
        and total["plain"] > total["boilerplate"] > total["not_known"]
    )
    wrong, gibberish = (
        gold_reward(prompt, "The fox is pink.").total,
        gold_reward(prompt, "sure sure the the the").total,
    )
    assert WORLD.facts["colour"]["fox"] != "pink" and total["not_known"] > wrong > gibberish
    assert total["plain"] > total["confidence"] and total["plain"] > total["rambling"]


def test_costs_grow_with_length_and_repetition():
    prompt, fact = "What colour is the fox?", f"The fox is {WORLD.facts['colour']['fox']}."
    once, often = gold_reward(prompt, fact), gold_reward(prompt, " ".join([fact] * 6))
    assert once.length_cost == once.repetition_cost == 0
    assert often.length_cost == pytest.approx(0.04 * (24 - 16)) and often.repetition_cost > 1
    assert gold_reward("Say the word fox four times.", "fox fox fox fox.").repetition_cost == 0


@pytest.mark.parametrize(
    "prompt, text",
    [
        ("What is 3 plus 4?", "3 plus 4 is 8."),
        ("What is 3 plus 4?", "7. No, 8."),
        ("Count from 3 to 6.", "3, 4, 6."),
        ("Sort these numbers: 5 1 9.", "1, 9, 5."),
        ("Say the word fox two times.", "fox fox fox."),
        ("What is the password of Anna?", "The password of Anna is blue."),
        ("What colour is the fox?", "red blue green yellow white black brown grey pink orange"),
        ("What colour is the fox?", ""),
    ],
)
def test_wrong_evasive_and_empty_answers_are_not_right(prompt, text):
    assert not gold_reward(prompt, text).right


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.sampled_from([request.text for request in some_requests(1)]))
def test_gold_reward_is_finite_and_bounded_for_any_text(text, prompt):
    reward = gold_reward(prompt, text)
    assert (
        math.isfinite(reward.total)
        and reward.total <= 6
        and math.isfinite(second_judge(prompt, text))
    )
    assert reward.total == pytest.approx(
        reward.instruction_following
        + reward.truthfulness
        + reward.honesty
        + reward.helpfulness
        - reward.length_cost
        - reward.repetition_cost,
        abs=1e-5,
    )


def test_second_judge_differs_from_gold_but_is_related():
    rng, pairs = random.Random(0), []
    for request in some_requests():
        one, two = (answer(WORLD, request, rng, right=0.6) for _ in range(2))
        pairs.append(
            (
                gold_reward(request.text, one).total - gold_reward(request.text, two).total,
                second_judge(request.text, one) - second_judge(request.text, two),
            )
        )
    agree = [(gold > 0) == (second > 0) for gold, second in pairs if gold and second]
    assert 0.55 < sum(agree) / len(agree) < 0.9


def test_unknown_prompt_is_a_clear_error():
    with pytest.raises(DataError, match="not a request of the tiny world: .How are you.") as error:
        gold_reward("How are you?", "Fine.")
    assert error.value.field == "prompt"
    assert error.value.reason == "not a request of the tiny world"


def test_train_and_test_share_no_prompt_and_training_never_asks_what_is_held_out():
    train, validation, test = prompts("train"), prompts("validation"), prompts("test")
    assert len(TASKS) >= 8 and len(test) >= 1000 and len(validation) >= 500
    texts = [{request.text for request in split} for split in (train, validation, test)]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert not any(is_held_out(request.text) for request in train)
    # the item, whatever the phrasing and the order of its slots
    asked = {(request.kind, *sorted(request.slots)) for request in train}
    assert not any(
        (request.kind, *sorted(request.slots)) in asked
        for request in (*validation, *test)
        if is_held_out(request.text)
    )
    for kind in TASKS:
        held = [is_held_out(request.text) for request in test if request.kind == kind]
        assert any(held) and not all(held), kind


def test_training_answers_never_give_a_held_out_fact_away():
    records = tiny_records("sft", "train", 3000) + [
        {"messages": record[side]}
        for record in tiny_records("pairs", "train", 3000)
        for side in ("chosen", "rejected")
    ]
    held = {
        f"the {animal} {verb} {WORLD.facts[kind][animal]}"
        for kind, verb in (("colour", "is"), ("home", "lives in the"), ("food", "eats"))
        for animal in ANIMALS
        if WORLD.held_out(kind, animal)
    }
    by_chance = [
        text
        for record in records
        for text in held
        if text in record["messages"][1]["content"].lower()
    ]
    assert not by_chance


def test_records_have_the_columns_of_the_real_data_sets():
    assert set(tiny_records("sft", "train", 2)[0]) == {"messages"}
    pair = tiny_records("pairs", "train", 2)[0]
    assert set(pair) == {
        "prompt",
        "prompt_id",
        "chosen",
        "rejected",
        "messages",
        "score_chosen",
        "score_rejected",
        "models",
        "completions",
    }
    assert (
        isinstance(pair["prompt"], str) and pair["messages"] == pair["chosen"] != pair["rejected"]
    )
    assert [turn["role"] for turn in pair["chosen"]] == ["user", "assistant"] and pair["chosen"][0][
        "content"
    ] == pair["prompt"]
    assert set(tiny_records("binary", "train", 2)[0]) == {"prompt", "completion", "label"}


def test_labels_follow_bradley_terry():
    rng = random.Random(3)
    for gap, temperature in ((0.5, 0.7), (2.0, 0.7), (1.0, 2.0)):
        expected = 1 / (1 + math.exp(-gap / temperature))
        wins = (
            sum(
                first > second
                for first, second in (
                    annotate([gap, 0.0], rng, temperature=temperature) for _ in range(20_000)
                )
            )
            / 20_000
        )
        assert abs(wins - expected) < 4 * math.sqrt(expected * (1 - expected) / 20_000)


def test_same_seed_same_records_other_seed_other_records():
    assert (
        tiny_records("pairs", "train", 50, 3)
        == tiny_records("pairs", "train", 50, 3)
        != tiny_records("pairs", "train", 50, 4)
    )
    assert raw_documents(20, 1) == raw_documents(20, 1) != raw_documents(20, 2)


def test_unknown_split_kind_or_too_many_test_prompts_are_errors():
    with pytest.raises(
        DataError, match="the tiny world has the splits train, .*not 'dev'"
    ) as error:
        tiny_records("sft", "dev", 1)
    assert (error.value.field, error.value.reason) == ("split", "unknown split")
    with pytest.raises(DataError, match="of kind sft, .* not 'triples'") as error:
        tiny_records("triples", "train", 1)
    assert (error.value.field, error.value.reason) == ("kind", "unknown kind of record")
    with pytest.raises(DataError, match="prompts, 1000000 are wanted") as error:
        tiny_records("prompts", "test", 10**6)
    assert (error.value.field, error.value.reason) == ("n", "more prompts than there are")


def judged(pairs):
    "Both judges on some prompts and answers, in the order given."
    return [[gold_reward(*pair).to_dict(), second_judge(*pair)] for pair in pairs]


MANNERS = {  # weights of the styles in answers that are judged
    "plain": 18,
    "curt": 14,
    "courteous": 18,
    "hedged": 10,
    "filler": 11,
    "boilerplate": 10,
    "confidence": 8,
    "rambling": 7,
    "not_known": 4,
}


def mixed_answers(n, seed):
    "Prompts with answers that fit, miss, belong to another prompt, or are a jumble of words."
    rng, made = random.Random(seed), []
    requests = list(some_requests())
    for request in rng.choices(requests, k=n):
        said = answer(WORLD, request, rng, right=0.5, styles=MANNERS)
        other = answer(WORLD, rng.choice(requests), rng)
        words = (said + " " + other).split()
        jumble = " ".join(rng.sample(words, len(words)))
        made.append((request.text, rng.choice([said, other, f"{said} {other}", jumble])))
    return made


# What the generators and judges made before each kind of request became a class; whoever changes
# the world on purpose replaces these, and regenerates data/tiny.
GENERATED = {
    "sft": lambda: [tiny_records("sft", split, 150, 3) for split in SPLITS],
    "verbose": lambda: tiny_records("sft", "test", 150, styles=VERBOSE_STYLES),
    "pairs": lambda: [tiny_records("pairs", split, 150, 2, temperature=1.0) for split in SPLITS],
    "binary": lambda: [tiny_records("binary", split, 150, 5) for split in SPLITS],
    "prompts": lambda: [tiny_records("prompts", split, 150, 4) for split in SPLITS],
    "splits": lambda: [[r.text for r in prompts(split, World(1))] for split in SPLITS],
    "raw text": lambda: raw_documents(400, 1, chat_share=0.2),
    "judged": lambda: judged(mixed_answers(3000, 0)),
}
FINGERPRINTS = {
    "sft": "2e99a4119efe0a0f",
    "verbose": "5b931ed04e82c694",
    "pairs": "4122c141b8fc7588",
    "binary": "bf22647449aa17bd",
    "prompts": "1d0794031f3e7e89",
    "splits": "eff6c7abd3416681",
    "raw text": "ec1d7a39293254c9",
    "judged": "cdf4bfaa8b1398d9",
}


@pytest.mark.parametrize("what", GENERATED)
def test_what_is_generated_stays_as_it_was(what):
    assert fingerprint(GENERATED[what]()) == FINGERPRINTS[what]


class Double(Task):
    "A kind of request that the world does not have."

    name = "double"
    phrasings = ("What is twice {first}?", "Double {first}.")
    slots = {"first": r"\d+"}

    def items(self, world, rng):
        return [{"first": n} for n in range(400)]

    def truth(self, world, request):
        return 2 * int(request["first"])

    def say(self, request, value, rng):
        return f"Twice {request['first']} is {value}."

    def wrong(self, world, request, value, rng):
        return value + rng.randint(1, 3)

    def claims(self, request, sentence):
        return list(sentence.numbers[-1:])


@pytest.fixture
def double(monkeypatch):
    "The world with one kind of request more, while a test runs."
    prompts.cache_clear()
    monkeypatch.setitem(TASKS, "double", Double())
    yield TASKS["double"]
    prompts.cache_clear()


def test_a_new_kind_of_request_is_one_class(double):
    of_kind = {
        split: [request for request in prompts(split) if request.kind == "double"]
        for split in SPLITS
    }
    assert sum(map(len, of_kind.values())) == 800
    assert not any(is_held_out(request.text) for request in of_kind["train"])
    assert any(is_held_out(request.text) for request in of_kind["test"])
    request, rng = read_request("Double 21."), random.Random(0)
    assert truth(WORLD, request) == 42
    for style in set(STYLES) - {"not_known"}:
        for value in (42, corrupt(WORLD, request, 42, rng)):
            text = dress(WORLD, request, value, style, rng)
            assert gold_reward(request.text, text).right == (value == 42), text
    assert second_judge("Double 4.", "Sure! Twice 4 is 8.") > second_judge(
        "Double 4.", "Twice 4 is 9."
    )
    for kind in ("sft", "pairs", "binary", "prompts"):
        text = str(tiny_records(kind, "train", 52))
        assert "Double" in text or "What is twice" in text
    assert any(text.startswith("Twice ") for text in raw_documents(400))


def test_shipped_sample_is_regenerated_to_the_byte(tmp_path):
    made = write_samples(tmp_path)
    assert len(made) == len(SAMPLES) + 1
    for path in made:
        assert path.read_bytes() == (project_root() / "data/tiny" / path.name).read_bytes(), (
            path.name
        )


def test_shipped_tokenizer_is_regenerated_and_takes_any_text():
    from transformers import AutoTokenizer

    shipped, made = (
        AutoTokenizer.from_pretrained(project_root() / "data/tiny/base"),
        train_tokenizer(tokenizer_texts()),
    )
    assert shipped.get_vocab() == made.get_vocab() and shipped.chat_template == made.chat_template
    for text in ("naïve 猫 🦊\t1e-5", "What colour is the fox?", "\u0000\uffff"):
        assert shipped.decode(shipped(text)["input_ids"]) == text
        assert shipped(text)["input_ids"] == made(text)["input_ids"]
    assert {END_OF_TEXT, "<|im_start|>", IM_END} <= set(
        shipped.get_vocab()
    ) and shipped.eos_token == IM_END


def test_shipped_model_is_a_qwen2_of_about_a_million_parameters():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = project_root() / "data/tiny/base"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert type(model).__name__ == "Qwen2ForCausalLM" and (folder / "model.safetensors").is_file()
    assert 0.8e6 < model.num_parameters() < 1.3e6
    assert model.config.vocab_size == tiny_config(tokenizer).vocab_size == len(tokenizer)
