"""Chat: template, prompt and response, truncation, masks."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st

from prefkit.data.chat import (
    check_messages,
    encode_response,
    end_of_turn_id,
    pad_batch,
    render,
    render_response,
    show_mask,
    split_response,
    truncate,
)
from prefkit.core import ConfigError, DataError

QUESTION = [{"role": "user", "content": "What colour is the fox?"}]
ANSWER = [{"role": "assistant", "content": "The fox is red."}]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "messages, field, reason, words",
    [
        ("What colour is the fox?", "messages", "messages are not a list", "of type str, not a"),
        (None, "messages", "messages are not a list", "of type NoneType, not a list"),
        (QUESTION[0], "messages", "messages are not a list", "of type dict, not a list"),
        ([], "messages", "no messages", "the list of messages is empty"),
        (["Hi"], "messages", "message without role and content", "message 1 has type str"),
        (
            [{"from": "human", "value": "Hi"}],
            "messages",
            "message without role and content",
            "the keys from, value",
        ),
        ([{"role": "user"}], "messages", "message without role and content", "the keys role"),
        ([{"role": "human", "content": "Hi"}], "role", "unknown role", "'human'"),
        (
            [*QUESTION, {"role": "assistant", "content": " \n"}],
            "content",
            "empty answer",
            r"message 2 \(assistant\) is empty",
        ),
        ([{"role": "user", "content": ""}], "content", "empty message", r"1 \(user\) is empty"),
        ([{"role": "user", "content": None}], "content", "content is not text", "NoneType"),
        (
            [{"role": "user", "content": "Hi<|im_end|>"}],
            "content",
            "special token in the text",
            r"<\|im_end\|>",
        ),
        (
            [{"role": "user", "content": "Hi \ud800 a"}],
            "content",
            "text that cannot be encoded as UTF-8",
            r"message 1 \(user\) has at character 4 half of a surrogate pair",
        ),
    ],
)
def test_bad_messages_are_refused_with_the_place_and_the_reason(messages, field, reason, words):
    with pytest.raises(DataError, match=words) as caught:
        check_messages(messages, ("<|im_start|>", "<|im_end|>"))
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_good_messages_pass_unchanged():
    messages = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        *ANSWER,
        {"role": "tool", "content": "12"},
        *QUESTION,
    ]
    assert check_messages(messages) is messages


def test_special_tokens_of_the_tokenizer_itself_are_refused(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|extra|>"]}
    )
    with pytest.raises(DataError, match=r"<\|extra\|>"):
        encode_response(other, QUESTION, [{"role": "assistant", "content": "a <|extra|> b"}])


def test_prompt_ends_with_generation_prompt_and_response_with_one_end_of_turn(tokenizer):
    prompt_ids, response_ids = encode_response(tokenizer, QUESTION, ANSWER)
    assert tokenizer.decode(prompt_ids).endswith(
        "What colour is the fox?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(response_ids) == "The fox is red.<|im_end|>"
    assert response_ids.count(end_of_turn_id(tokenizer)) == 1


def test_template_s_line_break_after_the_answer_is_outside_the_response(tokenizer):
    prompt_ids, response_ids = encode_response(tokenizer, QUESTION, ANSWER)
    whole = ids_of(tokenizer, render(tokenizer, QUESTION + ANSWER))
    assert whole[:-1] == prompt_ids + response_ids and tokenizer.decode(whole[-1:]) == "\n"


def test_default_system_prompt_stands_once_and_in_the_prompt(tokenizer):
    prompt_ids, response_ids = encode_response(tokenizer, [*QUESTION, *ANSWER, *QUESTION], ANSWER)
    assert tokenizer.decode(prompt_ids).count("<|im_start|>system") == 1
    assert "system" not in tokenizer.decode(response_ids)


def test_own_system_prompt_replaces_the_default_one(tokenizer):
    prompt_ids, _ = encode_response(
        tokenizer, [{"role": "system", "content": "Be brief."}, *QUESTION], ANSWER
    )
    text = tokenizer.decode(prompt_ids)
    assert text.count("<|im_start|>system") == 1 and "Be brief." in text and "Qwen" not in text


def test_earlier_answers_belong_to_the_prompt(tokenizer):
    prompt_ids, response_ids = encode_response(
        tokenizer,
        [*QUESTION, *ANSWER, {"role": "user", "content": "And the cat?"}],
        [{"role": "assistant", "content": "Black."}],
    )
    assert (
        "The fox is red.<|im_end|>" in tokenizer.decode(prompt_ids)
        and tokenizer.decode(response_ids) == "Black.<|im_end|>"
    )


def test_no_beginning_of_sequence_token_twice(tokenizer):
    from tokenizers.processors import TemplateProcessing

    llama_like = copy.deepcopy(tokenizer)
    llama_like.add_special_tokens({"bos_token": "<|im_start|>"})
    llama_like.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", llama_like.bos_token_id)]
    )
    assert llama_like("a")["input_ids"][0] == llama_like.bos_token_id  # it does add one of its own
    prompt_ids, _ = encode_response(llama_like, QUESTION, ANSWER)
    assert prompt_ids == encode_response(tokenizer, QUESTION, ANSWER)[0]


def test_answer_glued_to_the_prompt_by_the_tokenizer_is_an_error(tokenizer):
    joining = copy.deepcopy(tokenizer)
    joining.add_tokens("\n\n")  # as in Qwen's vocabulary
    with pytest.raises(DataError, match="not the beginning.*leading line breaks"):
        encode_response(joining, QUESTION, [{"role": "assistant", "content": "\nThe fox is red."}])
    assert encode_response(joining, QUESTION, ANSWER) == encode_response(
        tokenizer, QUESTION, ANSWER
    )


def test_template_whose_prompt_is_no_prefix_is_an_error(tokenizer):
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template += "{%- if add_generation_prompt %}{{- '<think>' }}{%- endif %}"
    with pytest.raises(DataError, match="not the beginning.*template") as error:
        encode_response(thinking, QUESTION, ANSWER)
    assert error.value.reason == "prompt is not a prefix" and error.value.field == "chat_template"


def test_template_that_refuses_the_messages_is_an_error_about_the_row(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate") as error:
        encode_response(strict, QUESTION, ANSWER)
    assert error.value.reason == "refused by the chat template"


def test_tokenizer_without_template_is_an_error(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template") as error:
        encode_response(bare, QUESTION, ANSWER)
    assert error.value.field == "chat_template"


def test_answer_that_is_not_one_assistant_message_is_an_error(tokenizer):
    for answer in (ANSWER + ANSWER, QUESTION):
        with pytest.raises(DataError, match="one message of the assistant") as error:
            render_response(tokenizer, QUESTION, answer)
        assert error.value.reason == "answer is not one assistant message"


def test_conversation_without_end_of_turn_is_an_error(tokenizer):
    with pytest.raises(DataError, match="follows the answer") as error:
        split_response(tokenizer, [1], [1] + ids_of(tokenizer, "red"))
    assert error.value.reason == "no end-of-turn token"


def test_mask_agrees_with_the_assistant_mask_of_transformers(tokenizer):
    "Outside oracle: transformers' own mask, which needs markers in the template."
    oracle = copy.deepcopy(tokenizer)
    oracle.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role "
        "== 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration "
        "%}{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}{% if "
        "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for content in (
        "The fox is red.",
        "Ein Füchslein 🦊 – 12 + 30 = 42.\n\n- one\n- two  ",
        " leading space",
    ):
        answer = [{"role": "assistant", "content": content}]
        prompt = [{"role": "system", "content": "Be brief."}, *QUESTION]
        prompt_ids, response_ids = encode_response(tokenizer, prompt, answer)
        marked = oracle.apply_chat_template(
            prompt + answer, return_dict=True, return_assistant_tokens_mask=True
        )
        assert marked["input_ids"][:-1] == prompt_ids + response_ids
        assert marked["assistant_masks"][:-1] == [0] * len(prompt_ids) + [1] * len(response_ids)


def test_response_is_found_although_transformers_mask_is_empty_for_this_template(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        marked = tokenizer.apply_chat_template(
            QUESTION + ANSWER, return_dict=True, return_assistant_tokens_mask=True
        )
    assert (
        sum(marked["assistant_masks"]) == 0
        and len(encode_response(tokenizer, QUESTION, ANSWER)[1]) > 1
    )


def test_truncation_takes_the_prompt_s_beginning_then_the_answer_s_end():
    assert truncate(
        [1, 2, 3, 4, 5, 6],
        [10, 11, 12, 13, 14, 15],
        max_length=8,
        max_prompt_length=3,
        min_response_tokens=4,
    ) == ([4, 5, 6], [10, 11, 12, 13, 14])


def test_both_answers_of_a_pair_get_the_same_prompt():
    prompt, chosen, rejected = truncate(
        [1, 2, 3, 4], [10, 11, 12], [20], max_length=5, max_prompt_length=3, min_response_tokens=2
    )
    assert (prompt, chosen, rejected) == ([2, 3, 4], [10, 11], [20])


def test_too_little_of_the_answer_is_an_error_that_says_how_much_and_the_way_out():
    with pytest.raises(DataError) as caught:
        truncate(list(range(508)), list(range(90)), max_length=512)
    assert str(caught.value) == (
        "the answer keeps 4 of its 90 tokens (prompt 508, max_length 512, min_response_tokens 16). "
        "Raise max_length, or shorten the prompts by max_prompt_length."
    )


def test_whole_answers_may_be_shorter_than_the_minimum():
    assert truncate([1] * 508, [2, 3, 4], max_length=512) == ([1] * 508, [2, 3, 4])


def test_a_cut_answer_has_no_end_of_turn(tokenizer):
    prompt_ids, response_ids = encode_response(tokenizer, QUESTION, ANSWER)
    _, cut = truncate(
        prompt_ids,
        response_ids,
        max_length=len(prompt_ids) + len(response_ids) - 1,
        min_response_tokens=1,
    )
    assert cut == response_ids[:-1] and end_of_turn_id(tokenizer) not in cut


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_length", 0),
        ("max_length", "512"),
        ("max_length", True),
        ("max_prompt_length", 0),
        ("min_response_tokens", 0),
    ],
)
def test_impossible_limits_are_config_errors(field, value):
    with pytest.raises(ConfigError, match=f"{field} is {value!r}, .* at least 1") as error:
        truncate([1], [2], **{"max_length": 8, field: value})
    assert error.value.field == field
    assert error.value.reason == "not a whole number of at least 1"


def test_a_shortest_answer_above_the_longest_row_is_a_config_error():
    with pytest.raises(
        ConfigError, match=r"min_response_tokens is 16, more than max_length \(4\)"
    ) as error:
        truncate([1], [2], max_length=4)
    assert error.value.field == "min_response_tokens"


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.integers(0, 40),
    answers=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    max_length=st.integers(1, 50),
    max_prompt=st.none() | st.integers(1, 50),
    minimum=st.integers(1, 20),
)
def test_truncation_never_empties_an_answer_nor_exceeds_the_limit(
    prompt, answers, max_length, max_prompt, minimum
):
    prompt_ids, answer_ids = list(range(prompt)), [list(range(100, 100 + n)) for n in answers]
    minimum = min(minimum, max_length)
    try:
        short, *kept = truncate(
            prompt_ids,
            *answer_ids,
            max_length=max_length,
            max_prompt_length=max_prompt,
            min_response_tokens=minimum,
        )
    except DataError:  # only where a longer answer would keep less than the minimum
        room = max_length - min(prompt, max_length, max_prompt or max_length)
        assert room < minimum and any(n > room for n in answers)
        return
    assert short == prompt_ids[prompt - len(short) :] and len(short) <= (max_prompt or max_length)
    for whole, cut in zip(answer_ids, kept):
        assert (
            cut == whole[: len(cut)]
            and len(short) + len(cut) <= max_length
            and (cut == whole or len(cut) >= minimum)
            and cut
        )


def test_batch_is_right_padded_int64_with_labels_on_the_response_only():
    batch = pad_batch([[5, 6], [7]], [[8, 9, 2], [2]], pad_token_id=0)
    expected = {
        "input_ids": [[5, 6, 8, 9, 2], [7, 2, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
        "labels": [[-100, -100, 8, 9, 2], [-100, 2, -100, -100, -100]],
    }
    assert list(batch) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], torch.tensor(value, dtype=torch.int64))


def test_padding_with_the_end_of_turn_token_keeps_that_token_in_the_loss(tokenizer):
    end = end_of_turn_id(tokenizer)
    prompt_ids, response_ids = encode_response(tokenizer, QUESTION, ANSWER)
    same, other = (
        pad_batch([prompt_ids, prompt_ids[:3]], [response_ids, response_ids[-2:]], pad_token_id=pad)
        for pad in (end, 0)
    )
    torch.testing.assert_close(same["labels"], other["labels"])
    torch.testing.assert_close(same["attention_mask"], other["attention_mask"])
    assert (same["labels"] == end).sum() == 2  # one a row
    assert same["attention_mask"].sum(-1).tolist() == [len(prompt_ids) + len(response_ids), 5]


def test_batch_of_unequal_lists_is_refused():
    for prompts, responses in (([], []), ([[1]], []), ([[1]], [[2], [3]])):
        with pytest.raises(ValueError, match="as many"):
            pad_batch(prompts, responses, 0)


def test_picture_marks_exactly_the_response(tokenizer):
    prompt_ids, response_ids = encode_response(tokenizer, QUESTION, ANSWER)
    batch = pad_batch([prompt_ids], [response_ids], 0)
    page = show_mask(tokenizer, batch["input_ids"][0], batch["labels"][0]).data
    assert (
        page.count("font-weight:bold") == len(response_ids)
        and f"{len(response_ids)} of {len(prompt_ids + response_ids)} tokens" in page
    )
    assert "&lt;|im_end|&gt;" in page and "<|im_end|>" not in page  # escaped
