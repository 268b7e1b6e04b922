"""Other people's rows: what their columns and keys mean, and what is refused.

Each row of the tables goes through `load_records` and `encode_records` with the tiny tokenizer; in
the text of an answer the stretches that are learned stand in square brackets.
"""

import datetime
import json
from decimal import Decimal
from itertools import groupby

import datasets
import pyarrow
import pytest
from helpers.records import assistant, user
from pyarrow import parquet
from transformers import AutoTokenizer

from prefkit.core import ConfigError, DataError, project_root, write_text
from prefkit.data.records import encode_records, load_records, normalise
from prefkit.judging.rewards import register_reward
from prefkit.model.loading import hub_commit, check_model, load_tokenizer, pinned
from prefkit.runs.pipelines import (
    check_dataset,
    check_part,
    check_rewards,
    encode_once,
    evaluation_prompts,
    label_tokens,
    rows_of,
)
from prefkit.train.settings import PromptData, SftData


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")


# as Qwen's: tools in the system's turn, calls as JSON between tags, thoughts of the last turn only
KNOWS_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.reasoning_content and loop.last %}"
    "{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}"
    "{{- message.content }}{%- for call in message.tool_calls or [] %}"
    "{{- '<tool_call>' + call.function.name + ' ' + (call.function.arguments | tojson) }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def jsonl(folder, rows, name="rows.jsonl"):
    return write_text(folder / name, "".join(json.dumps(row) + "\n" for row in rows))


def learned_text(tokenizer, row, answer):
    "An answer's text with brackets around what is learned, ends of turns as a stroke."
    pairs = zip(row[f"{answer}_ids"], row.learned_of(answer))
    text = ""
    for learned, group in groupby(pairs, key=lambda pair: pair[1]):
        part = tokenizer.decode([token for token, _ in group])
        text += f"[{part}]" if learned else part
    return turns(text)


def turns(text):
    return text.replace("<|im_end|>", "|").replace("<|im_start|>", "")


def texts(tokenizer, folder, kind, record):
    "Prompt and answers of a row, as texts."
    records = load_records(jsonl(folder, [record]), kind=kind)
    [row], _ = encode_records(records, tokenizer, kind=kind)
    names = ("chosen", "rejected") if kind == "pairs" else ("response",)
    prompt = turns(tokenizer.decode(row["prompt_ids"])).removesuffix("assistant\n")
    prompt = prompt.removeprefix(DEFAULT_SYSTEM)
    return prompt, *(learned_text(tokenizer, row, name) for name in names if f"{name}_ids" in row)


# what the tiny tokenizer's template writes where a conversation has no system turn
DEFAULT_SYSTEM = "system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.|\n"
TEXT = [assistant("b1"), user("c"), assistant("d0")]
OTHER = [assistant("b2"), user("c"), assistant("e0")]
PIRATE = "system\nBe a pirate.|\n"
HI = [user("Hi"), assistant("Ho")]
SAID = {"from": "human", "value": "Hi"}

USED = {
    "system column": (
        "pairs",
        {"system": "Be a pirate.", "prompt": "Hi", "chosen": "Arr", "rejected": "No"},
        (f"{PIRATE}user\nHi|\n", "[Arr|]", "[No|]"),
    ),
    "system_prompt column": (
        "sft",
        {"system_prompt": "Be a pirate.", "prompt": "Hi", "response": "Arr"},
        (f"{PIRATE}user\nHi|\n", "[Arr|]"),
    ),
    "empty system column": (
        "sft",
        {"system": "", "prompt": "Hi", "response": "Arr"},
        ("user\nHi|\n", "[Arr|]"),
    ),
    "system of ShareGPT, no tools": (
        "pairs",
        {
            "system": "Be a pirate.",
            "tools": "[]",
            "conversations": [SAID],
            "chosen": {"from": "gpt", "value": "Arr"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        (f"{PIRATE}user\nHi|\n", "[Arr|]", "[No|]"),
    ),
    "the same system text twice": (
        "sft",
        {
            "system": "Be a pirate.",
            "messages": [{"role": "system", "content": "Be a pirate."}, *HI],
        },
        (f"{PIRATE}user\nHi|\n", "[Ho|]"),
    ),
    "history of pairs": (
        "sft",
        {"prompt": "And?", "completion": "three", "history": [["one?", "1"], ["two?", "2"]]},
        (
            "user\none?|\nassistant\n1|\nuser\ntwo?|\nassistant\n2|\nuser\nAnd?|\n",
            "[three|]",
        ),
    ),
    "history of Alpaca with its system text": (
        "sft",
        {
            "instruction": "Add",
            "input": "2 and 3",
            "output": "5",
            "system": "Be a pirate.",
            "history": '[["one?", "1"]]',
        },
        (f"{PIRATE}user\none?|\nassistant\n1|\nuser\nAdd\n2 and 3|\n", "[5|]"),
    ),
    "Alpaca without input": (
        "sft",
        {"instruction": "Say hi", "input": "", "output": "Hi", "history": []},
        ("user\nSay hi|\n", "[Hi|]"),
    ),
    "Alpaca's input and system text that begin like JSON": (
        "sft",
        {"instruction": "Sort", "input": "[3,1]", "output": "[1,3]", "system": "[INST] Sort."},
        ("system\n[INST] Sort.|\nuser\nSort\n[3,1]|\n", "[[1,3]|]"),
    ),
    "Alpaca's pairs": (
        "pairs",
        {"instruction": "Say", "input": "hi", "chosen": "Hi", "rejected": "No"},
        ("user\nSay\nhi|\n", "[Hi|]", "[No|]"),
    ),
    "prompts of Alpaca": ("prompts", {"instruction": "Say", "input": "hi"}, ("user\nSay\nhi|\n",)),
    "texts of JSON": (
        "pairs",
        {
            "prompt": json.dumps([user("Hi")]),
            "chosen": json.dumps([assistant("Red")]),
            "rejected": json.dumps([assistant("Dog")]),
        },
        ("user\nHi|\n", "[Red|]", "[Dog|]"),
    ),
    "messages as a text of JSON": ("sft", {"messages": json.dumps(HI)}, ("user\nHi|\n", "[Ho|]")),
    "ShareGPT as a text of JSON": (
        "sft",
        {"conversations": json.dumps([SAID, {"from": "gpt", "value": "Ho"}])},
        ("user\nHi|\n", "[Ho|]"),
    ),
    "an answer that is JSON stays a text": (
        "sft",
        {"prompt": '{"role": "baker"}', "completion": '[{"value": 3}]'},
        ('user\n{"role": "baker"}|\n', '[[{"value": 3}]|]'),
    ),
    "parts of text": (
        "sft",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi", "image_url": None}]},
                {"role": "assistant", "content": ["H", {"type": "text", "text": "o"}]},
            ]
        },
        ("user\nHi|\n", "[Ho|]"),
    ),
    "null keys": (
        "sft",
        {"messages": [{**turn, "tool_calls": None, "name": None} for turn in HI]},
        ("user\nHi|\n", "[Ho|]"),
    ),
    "weight 1": (
        "sft",
        {"messages": [user("Hi"), {**assistant("Ho"), "weight": 1.0}], "weight": 1},
        ("user\nHi|\n", "[Ho|]"),
    ),
    "weight 0 on the way": (
        "sft",
        {
            "messages": [
                user("a"),
                assistant("b"),
                user("c"),
                {**assistant("d"), "weight": 0},
                user("e"),
                assistant("f"),
            ]
        },
        ("user\na|\n", "[b|]\nuser\nc|\nassistant\nd|\nuser\ne|\nassistant\n[f|]"),
    ),
    "OpenAI's and Gemini's names of roles": (
        "sft",
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                user("sun?"),
                {"role": "function", "name": "w", "content": "yes"},
                {"role": "model", "content": "Yes."},
            ]
        },
        ("system\nBe brief.|\nuser\nsun?|\ntool\nyes|\n", "[Yes.|]"),
    ),
    "Axolotl's mark on a turn on the way": (
        "sft",
        {
            "messages": [
                user("a"),
                {**assistant("b"), "train_on_turn": True},
                user("c"),
                {**assistant("d"), "train_on_turn": False},
                user("e"),
                {**assistant("f"), "train_on_turn": True},
            ]
        },
        ("user\na|\n", "[b|]\nuser\nc|\nassistant\nd|\nuser\ne|\nassistant\n[f|]"),
    ),
    "the last turn masked": (
        "sft",
        {
            "conversations": [
                SAID,
                {"from": "gpt", "value": "Ho", "masked": False},
                SAID,
                {"from": "gpt", "value": "bad", "masked": True},
            ]
        },
        ("user\nHi|\n", "[Ho|]"),
    ),
    "an answer of a pair partly of weight 0": (
        "pairs",
        {
            "prompt": "a",
            "chosen": [{**assistant("b"), "loss": False}, user("c"), assistant("d")],
            "rejected": OTHER,
        },
        ("user\na|\n", "b|\nuser\nc|\nassistant\n[d|]", "[b2|]\nuser\nc|\nassistant\n[e0|]"),
    ),
    "pairs that part in the middle": (
        "pairs",
        {"chosen": [user("a"), *TEXT], "rejected": [user("a"), *OTHER]},
        (
            "user\na|\n",
            "[b1|]\nuser\nc|\nassistant\n[d0|]",
            "[b2|]\nuser\nc|\nassistant\n[e0|]",
        ),
    ),
    "pairs that part in the middle, with a prompt": (
        "pairs",
        {"prompt": "a", "chosen": TEXT, "rejected": OTHER},
        (
            "user\na|\n",
            "[b1|]\nuser\nc|\nassistant\n[d0|]",
            "[b2|]\nuser\nc|\nassistant\n[e0|]",
        ),
    ),
    "pairs with common turns": (
        "pairs",
        {"prompt": "a", "chosen": TEXT, "rejected": [*TEXT[:2], assistant("e")]},
        ("user\na|\nassistant\nb1|\nuser\nc|\n", "[d0|]", "[e|]"),
    ),
    "pairs of which one goes on": (
        "pairs",
        {"chosen": [user("a"), *TEXT], "rejected": [user("a"), TEXT[0]]},
        ("user\na|\n", "[b1|]\nuser\nc|\nassistant\n[d0|]", "[b1|]"),
    ),
    "a completion of several turns": (
        "sft",
        {"prompt": [user("a")], "completion": TEXT},
        ("user\na|\n", "[b1|]\nuser\nc|\nassistant\n[d0|]"),
    ),
    "an answer begun": (
        "pairs",
        {
            "prompt": [user("a"), assistant("Sure:")],
            "chosen": [assistant("yes")],
            "rejected": [assistant("no")],
        },
        ("user\na|\nassistant\nSure:", "[yes|]", "[no|]"),
    ),
    "an answer begun, of labelled rows": (
        "binary",
        {"prompt": [user("a"), assistant("Sure,")], "completion": " yes", "label": "true"},
        ("user\na|\nassistant\nSure,", "[ yes|]"),
    ),
}


@pytest.mark.parametrize("case", USED)
def test_a_row_is_used_as_it_is_meant(tmp_path, tokenizer, case):
    kind, record, expected = USED[case]
    assert texts(tokenizer, tmp_path, kind, record) == expected


def picture(kind="pairs"):
    return {"prompt": "<image>What?", "chosen": "cat", "rejected": "dog", "images": ["a.png"]}


REFUSED = {  # kind, row, column or key, reason
    "images": ("pairs", picture(), "images", "pictures or sound"),
    "audio of a prompt": ("prompts", {"prompt": "What?", "audio": "a.wav"}, "audio", None),
    "videos as a text of JSON": (
        "sft",
        {"prompt": "What?", "response": "x", "videos": '["a.mp4"]'},
        "videos",
        "pictures or sound",
    ),
    "a part that is a picture": (
        "sft",
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, assistant("x")]},
        "messages",
        "content that is not text",
    ),
    "messages in Python's words": (
        "sft",
        {"messages": str(HI)},
        "messages",
        "messages in a text that is no JSON",
    ),
    "a text of JSON cut off": (
        "pairs",
        {"prompt": json.dumps([user("Hi")])[:-2], "chosen": "a", "rejected": "b"},
        "prompt",
        "messages in a text that is no JSON",
    ),
    "two system texts": (
        "sft",
        {"system": "A", "messages": [{"role": "system", "content": "B"}, *HI]},
        "system",
        "two system texts that disagree",
    ),
    "history that is a text": (
        "sft",
        {"prompt": "a", "response": "b", "history": "before"},
        "history",
        "history is not a list of pairs",
    ),
    "history of numbers": (
        "sft",
        {"prompt": "a", "response": "b", "history": [[1, 2]]},
        "history",
        "history is not a list of pairs",
    ),
    "a system text that is none": (
        "sft",
        {"prompt": "a", "response": "b", "system": {"role": "x"}},
        "system",
        "column is not text",
    ),
    "history beside a conversation": (
        "sft",
        {"messages": [*HI, *HI], "history": [["a", "b"]]},
        "history",
        "history beside a conversation",
    ),
    "weight between": (
        "sft",
        {"messages": [user("Hi"), {**assistant("Ho"), "weight": 0.5}]},
        "messages",
        "weight is neither 0 nor 1",
    ),
    "weight of a row": (
        "pairs",
        {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 2},
        "weight",
        "weight is neither 0 nor 1",
    ),
    "marks that disagree": (
        "sft",
        {"messages": [user("Hi"), {**assistant("Ho"), "weight": 1, "train": False}]},
        "messages",
        "weights that disagree",
    ),
    "all of weight 0": (
        "sft",
        {"messages": [user("Hi"), {**assistant("bad"), "weight": 0}]},
        "messages",
        "marked as not to be learned",
    ),
    "train: false": (
        "sft",
        {"conversations": [SAID, {"from": "gpt", "value": "bad", "train": False}]},
        "conversations",
        "marked as not to be learned",
    ),
    "Axolotl's mark on a turn": (
        "sft",
        {"messages": [user("Hi"), {**assistant("bad"), "train_on_turn": False}]},
        "messages",
        "marked as not to be learned",
    ),
    "a mark on a row, as a table of text has it": (
        "sft",
        {"prompt": "Hi", "completion": "bad", "train": "False"},
        "weight",
        "marked as not to be learned",
    ),
    "a mark on a row as a number": (
        "binary",
        {"prompt": "Hi", "completion": "bad", "label": False, "masked": 1},
        "weight",
        "marked as not to be learned",
    ),
    "marks within a turn": (
        "sft",
        {"messages": [user("Hi"), {**assistant("bad"), "train_detail": [{"train": False}]}]},
        "messages",
        "a mark of what is learned that is not known",
    ),
    "a weight of a loss": (
        "sft",
        {"messages": [user("Hi"), {**assistant("Ho"), "loss_weight": 0.5}]},
        "messages",
        "a mark of what is learned that is not known",
    ),
    "a row of weight 0": (
        "pairs",
        {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 0},
        "weight",
        "marked as not to be learned",
    ),
    "a rejected answer of weight 0": (
        "pairs",
        {"prompt": "a", "chosen": "b", "rejected": [{**assistant("c"), "trainable": False}]},
        "rejected",
        "marked as not to be learned",
    ),
    "wrong role": (
        "pairs",
        {"prompt": [user("a")], "chosen": [assistant("y")], "rejected": [user("n")]},
        "rejected",
        "no answer at the end",
    ),
    "pairs that part at a question": (
        "pairs",
        {"prompt": "a", "chosen": TEXT, "rejected": [TEXT[0], user("other"), TEXT[2]]},
        "rejected",
        "answers to two prompts",
    ),
    "two answers in a row": (
        "sft",
        {"messages": [user("a"), assistant("b"), assistant("c")]},
        "messages",
        "no question before the answer",
    ),
    "a prompt that begins its answer": (
        "prompts",
        {"prompt": [user("a"), assistant("Sure:")]},
        "prompt",
        "an answer already begun",
    ),
    "tools that are no list": (
        "sft",
        {"prompt": "a", "response": "b", "tools": "weather"},
        "tools",
        "tools are not a list of descriptions",
    ),
    "a call without a name": (
        "sft",
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [{"arguments": {}}]}]},
        "messages",
        "tool call without name and arguments",
    ),
    "thoughts that disagree": (
        "sft",
        {"messages": [user("a"), {**assistant("b"), "thinking": "x", "reasoning_content": "y"}]},
        "messages",
        "thoughts are not one text",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_row_column_and_reason(tmp_path, case):
    kind, record, column, reason = REFUSED[case]
    with pytest.raises(DataError) as caught:
        normalise(record, kind)
    reason = reason or "pictures or sound"
    assert (caught.value.field, caught.value.reason) == (column, reason)
    rows = [record, *[{"prompt": "Hi", "chosen": "a", "rejected": "b"}] * 19]
    report = load_records(jsonl(tmp_path, rows), kind=kind if kind != "binary" else "sft").report
    entry = report.dropped[reason]
    assert entry["rows"] == 1 and entry["examples"][0].startswith("row 1 of rows.jsonl: ")
    assert entry["asked"] == (reason == "marked as not to be learned")


def test_rows_that_are_not_to_be_learned_are_no_fault_however_many(tmp_path):
    bad = {"messages": [user("Hi"), {**assistant("bad"), "weight": 0}]}
    rows = [bad] * 15 + [{"messages": HI}] * 5
    report = load_records(jsonl(tmp_path, rows), kind="sft", on_bad_rows="error").report
    assert (report.kept, report.bad_rows) == (5, 0)
    with pytest.raises(DataError) as caught:
        load_records(jsonl(tmp_path, [bad] * 5), kind="sft")
    assert caught.value.reason == "no row is left" and "as asked" in str(caught.value)


# ---- tools and thoughts, through templates that know them or do not

CALL = {"type": "function", "function": {"name": "w", "arguments": {"c": "x"}}}
ASKED = [user("weather?"), {"role": "assistant", "content": "", "tool_calls": [CALL]}]
SUNNY = [*ASKED, {"role": "tool", "content": "sun"}, assistant("It is sunny.")]
THOUGHT = [user("Hi"), {**assistant("Ho"), "reasoning_content": "be brief"}]
COMMIT = "0123456789abcdef" * 2 + "01234567"
TOOL = {"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}
BEFORE = 'user\nweather?|\nassistant\n<tool_call>w {"c": "x"}|\ntool\nsun|\n'


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"messages": SUNNY}, (BEFORE, "[It is sunny.|]")),
        ({"messages": ASKED}, ("user\nweather?|\n", '[<tool_call>w {"c": "x"}|]')),
        # arguments as a text, as OpenAI writes them, and a key that a table has put there
        (
            {
                "messages": [
                    ASKED[0],
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"function": {"name": "w", "arguments": '{"c": "x", "unit": null}'}}
                        ],
                    },
                ]
            },
            ("user\nweather?|\n", '[<tool_call>w {"c": "x"}|]'),
        ),
        (  # ShareGPT's
            {
                "conversations": [
                    {"from": "human", "value": "weather?"},
                    {"from": "function_call", "value": '{"name": "w", "arguments": {"c": "x"}}'},
                    {"from": "observation", "value": "sun"},
                    {"from": "gpt", "value": "It is sunny."},
                ]
            },
            (BEFORE, "[It is sunny.|]"),
        ),
        (
            {"messages": HI, "tools": json.dumps([TOOL])},
            (f"system\n{json.dumps([TOOL])}|\nuser\nHi|\n", "[Ho|]"),
        ),
        ({"messages": THOUGHT}, ("user\nHi|\n", "[<think>be brief</think>Ho|]")),
    ],
    ids=["turns", "a call learned", "OpenAI's", "ShareGPT's", "tools", "thoughts"],
)
def test_tools_and_thoughts_go_through_templates_that_know_them(
    tmp_path, tokenizer, record, expected
):
    knowing = AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")
    knowing.chat_template = KNOWS_TOOLS
    assert texts(knowing, tmp_path, "sft", record) == expected


@pytest.mark.parametrize(
    "record, what",
    [
        ({"messages": SUNNY}, "a tool call"),
        ({"messages": ASKED}, "a tool call"),
        ({"messages": HI, "tools": [TOOL]}, "the tools"),
        ({"messages": THOUGHT}, "the thoughts of an answer"),
    ],
)
def test_a_template_that_hides_tools_or_thoughts_is_found_out(tmp_path, tokenizer, record, what):
    records = load_records(jsonl(tmp_path, [record]), kind="sft")
    with pytest.raises(DataError) as caught:
        encode_records(records, tokenizer, kind="sft", on_bad_rows="error")
    assert caught.value.reason == f"{what} left out by the chat template"
    assert "row 1 of rows.jsonl" in str(caught.value)


def test_thoughts_of_earlier_turns_and_names_that_a_template_leaves_out_are_told(tmp_path):
    knowing = AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")
    knowing.chat_template = KNOWS_TOOLS
    turns = [*THOUGHT, {**user("And?"), "name": "Ann"}, assistant("So.")]
    records = load_records(jsonl(tmp_path, [{"messages": turns}]), kind="sft")
    _, report = encode_records(records, knowing, kind="sft")
    assert report.changed == {
        "thoughts of earlier turns left out by the chat template": 1,
        "name of a message left out by the chat template": 1,
    }


def test_an_answer_begun_within_a_token_is_refused(tmp_path, tokenizer):
    row = {"prompt": [user("a"), assistant("Sure ")], "completion": "thing"}
    records = load_records(jsonl(tmp_path, [row]), kind="sft")
    with pytest.raises(DataError) as caught:
        encode_records(records, tokenizer, kind="sft", on_bad_rows="error")
    assert caught.value.reason == "answer begun within a token"


def test_a_cut_that_leaves_only_turns_that_are_read_is_a_bad_row(tmp_path, tokenizer):
    marked = [{**assistant("word " * 60), "weight": 0}, user("c"), assistant("d")]
    row = {"prompt": "a", "chosen": marked, "rejected": OTHER}
    records = load_records(jsonl(tmp_path, [row]), kind="pairs")
    with pytest.raises(DataError) as caught:
        encode_records(records, tokenizer, kind="pairs", max_length=60, on_bad_rows="error")
    assert caught.value.reason == "nothing that is learned is left"
    assert len(encode_records(records, tokenizer, kind="pairs", max_length=400)[0]) == 1


def test_constructions_of_labels_know_what_is_learned():
    row = {
        "prompt_ids": [1, 2],
        "response_ids": [3, 9, 4, 5, 9],
        "response_learned": [True, True, False, True, True],
    }
    [whole] = label_tokens([row], "conversation", end=9)
    assert whole["response_ids"] == [2, 3, 9, 4, 5, 9]
    assert whole["response_learned"] == [True, True, True, False, True, True]
    [bare] = label_tokens([row], "response_without_end", end=9)
    assert bare["response_ids"] == [3, 9, 4, 5]
    assert bare["response_learned"] == [True, False, False, True]


# ---- the account


def test_the_account_lists_every_column_once_with_what_became_of_it(tmp_path):
    rows = [
        {
            "question": f"q {i}",
            "chosen": f"yes {i}",
            "rejected": "no",
            "system": "Be brief." if i else "",
            "id": i,
            "meta": {"a": i},
            "note": None,
            "tools": "[]",
            "\ud800": [1],
        }
        for i in range(3)
    ]
    path = jsonl(tmp_path, rows)
    report = load_records(path, kind="pairs", columns={"prompt": "question"}).report
    assert report.columns == {
        "question": {"used as prompt": 3},
        "chosen": {"used as chosen": 3},
        "rejected": {"used as rejected": 3},
        "system": {"empty": 1, "used as system": 2},
        "id": {"carried along": 3},
        "meta": {"ignored": 3},
        "note": {"empty": 3},
        "tools": {"empty": 3},
        "\\ud800": {"ignored": 3},
    }
    assert (
        "Columns: question used as prompt; chosen, rejected used; "
        "system empty in 1 row and used as system in 2 rows; id carried along; "
        "meta, \\ud800 ignored; note, tools empty."
    ) in str(report)
    assert report.to_dict()["columns"] == report.columns
    assert "<td>column</td>" in report._repr_html_()


def test_keys_of_messages_that_mean_nothing_here_are_named(tmp_path):
    turns = [{**user("Hi"), "weight": 1}, {**assistant("Ho"), "timestamp": 3, "id": "x"}]
    report = load_records(jsonl(tmp_path, [{"messages": turns}] * 2), kind="sft").report
    assert report.changed == {
        "mark that a turn of the user is learned ignored": 2,
        "key timestamp of a message ignored": 2,
        "key id of a message ignored": 2,
    }


def test_other_names_of_roles_are_told(tmp_path):
    turns = [{"role": "developer", "content": "S"}, user("Hi"), {"role": "model", "content": "Ho"}]
    report = load_records(jsonl(tmp_path, [{"messages": turns}] * 2), kind="sft").report
    assert report.changed == {
        "role developer read as system": 2,
        "role model read as assistant": 2,
    }


@pytest.mark.parametrize("value", [0.0, 1, 2.3, "low"])
def test_a_loss_that_was_measured_is_no_mark(tmp_path, value):
    row = {"prompt": "Hi", "completion": "Ho", "loss": value}
    report = load_records(jsonl(tmp_path, [row] * 2), kind="sft").report
    assert report.kept == 2 and report.columns["loss"] == {"carried along": 2}


def test_a_column_that_stands_twice_is_refused_where_it_is_used(tmp_path):
    used = '{"prompt": "a", "prompt": "b", "response": "c"}\n'
    other = '{"prompt": "a", "response": "c", "id": 1, "id": 2}\n'
    path = write_text(tmp_path / "twice.jsonl", used + other * 19)
    report = load_records(path, kind="sft").report
    assert report.kept == 19 and report.dropped["column twice"]["rows"] == 1
    listed = write_text(tmp_path / "twice.json", f"[{used}, {','.join([other] * 19)}]")
    assert load_records(listed, kind="sft").report.dropped["column twice"]["rows"] == 1


# ---- columns that nobody uses, and those that somebody does

DEEP = json.loads("[" * 200 + "]" * 200)
EXTRAS = {
    "empty structs": [{}, {}],
    "other types": ["x", 1],
    "half a surrogate pair": ["cut \ud83d", {"\ud83d": "\udc00"}],
    "NaN and infinity": [float("nan"), float("inf")],
    "large numbers": [10**40, 1e300],
    "nested deep": [DEEP, {"a": DEEP}],
    "lists of anything": [[1, "a", None, {}], []],
    "nothing": [None, "x"],
}


@pytest.mark.parametrize("kind", ["prompts", "sft", "pairs"])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_column_of_any_shape_ends_no_run(tmp_path, tokenizer, extra, kind, ending):
    answers = {"pairs": {"chosen": "a", "rejected": "b"}, "sft": {"response": "a"}, "prompts": {}}
    rows = [
        {"prompt": f"q {i}", **answers[kind], "x": value} for i, value in enumerate(EXTRAS[extra])
    ]
    path = jsonl(tmp_path, rows)
    if ending == "json":
        path = write_text(tmp_path / "rows.json", json.dumps(rows))
    records = load_records(path, kind=kind, on_bad_rows="error")
    for _ in range(2):  # the second time perhaps from the file
        encoded, report = encode_once(records, tokenizer, tmp_path, kind=kind)
        assert report.kept == 2 and "x" in report.columns
        for row in encoded:  # as the pipelines write them
            json.dumps(row.get("record", {}), ensure_ascii=False).encode()


def test_numbers_of_thousands_of_digits_and_deep_columns_are_read(tmp_path):
    line = f'{{"prompt": "a", "n": {"9" * 5000}, "deep": {json.dumps(DEEP)}}}\n'
    records = load_records(write_text(tmp_path / "a.jsonl", line), kind="prompts")
    assert records[0]["record"] == {"prompt": "a", "n": "9" * 5000}
    assert "deep left out, for it holds a value nested more than 64 deep" in str(records.report)


TABLE = {
    "when": [datetime.datetime(2024, 1, 2, 3), None],
    "day": [datetime.date(2024, 1, 2), None],
    "price": [Decimal("1.50"), Decimal("2")],
    "raw": [b"\xff\x00", None],
    "pairs": pyarrow.array([[("a", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    "empty": pyarrow.array([{}, {}], pyarrow.struct([])),
    "far": pyarrow.array([10**15, 0], pyarrow.timestamp("s")),  # no year of Python's
}


@pytest.mark.parametrize("ending", ["parquet", "folder"])
def test_columns_of_tables_that_json_cannot_hold(tmp_path, tokenizer, ending):
    lacks = {"parquet": ("empty",), "folder": ("far", "pairs")}[ending]  # which it cannot write
    columns = {name: values for name, values in TABLE.items() if name not in lacks}
    table = pyarrow.table({"prompt": ["a", "b"], **columns})
    path = tmp_path / "rows.parquet"
    if ending == "parquet":
        parquet.write_table(table, path)
    else:
        path = tmp_path / "rows"
        datasets.Dataset(table).save_to_disk(path)
    records = load_records(path, kind="prompts", on_bad_rows="error")
    held = records[0]["record"]
    assert (held["when"], held["price"], records[1]["record"]["price"]) == (
        "2024-01-02T03:00:00",
        1.5,
        2,
    )
    assert "dates written as text in the column when in 1 row." in str(records.report)
    row, field = f"row 1 of {path.name}", "raw"
    with pytest.raises(DataError, match=f"^{row}: column {field} holds bytes") as caught:
        held["raw"]
    assert (caught.value.field, caught.value.reason) == (field, "column cannot be stored")
    encoded, _ = encode_once(records, tokenizer, tmp_path, kind="prompts")
    json.dumps([row["record"] for row in encoded], allow_nan=False)
    assert "raw" in encoded[0]["record"] and "raw" not in encoded[1]["record"].left_out


def test_a_used_column_that_cannot_be_stored_is_named_before_anything_is_generated(tmp_path):
    "By a reward with a check of its own, and by a function of rows alone."
    table = {"prompt": ["a"] * 3, "nums": [[1, 2]] * 3, "target": [3] * 3}
    path, settings = tmp_path / "rows.parquet", {"validation_split": ""}
    parquet.write_table(pyarrow.table({**table, "nums": [b"\xff", b"", None]}), path)
    data = PromptData(dataset=str(path), **settings)
    with pytest.raises(DataError, match="row 1 of rows.parquet: column nums holds bytes"):
        check_rewards(data, [("countdown", {})])
    lengths = lambda: lambda rows, answers: [float(len(row["record"]["key"])) for row in rows]
    register_reward("reads_key", lengths)
    parquet.write_table(pyarrow.table({**table, "key": ["x", None, "y"]}), path)
    check_rewards(data, [("text", {})])
    keys = pyarrow.array([None, None, b"\xff"], pyarrow.binary())
    parquet.write_table(pyarrow.table({**table, "key": keys}), path)
    with pytest.raises(DataError, match="row 3 of rows.parquet: column key holds bytes") as caught:
        check_rewards(data, [("reads_key", {})])
    assert caught.value.reason == "column cannot be stored"


def test_a_reward_looks_at_every_row_before_anything_is_generated(tmp_path):
    rows = [{"prompt": "a", "nums": [1, 2], "target": 3 if i < 7 else "three"} for i in range(8)]
    data = PromptData(dataset=str(jsonl(tmp_path, rows)), validation_split="")
    with pytest.raises(DataError, match="^reward countdown, row 8 of rows.jsonl: nums"):
        check_rewards(data, [("countdown", {})])
    with pytest.raises(ConfigError, match="^reward gold, row 1 of rows.jsonl: .*tiny world only"):
        check_rewards(data, [("gold", {})])


# ---- tables of text


def table(folder, text, name="rows.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", 'prompt,chosen,rejected,note\n"Say ""hi"", now",Hi,"No\nno",\n'),
        ("a.csv", '\ufeffprompt;chosen;rejected;note\n"Say ""hi"", now";Hi;"No\nno";\n'),
        ("a.csv", 'prompt\tchosen\trejected\tnote\r\n"Say ""hi"", now"\tHi\t"No\nno"\t\r\n'),
        ("a.tsv", 'prompt\tchosen\trejected\tnote\n"Say ""hi"", now"\tHi\t"No\nno"\t\n\n'),
    ],
    ids=["comma", "semicolon and byte order mark", "tab", "tsv"],
)
def test_tables_of_text_are_read(tmp_path, name, text):
    [row] = load_records(table(tmp_path, text, name), kind="pairs")
    assert (row["prompt"], row["chosen"], row["rejected"]) == (
        [user('Say "hi", now')],
        [assistant("Hi")],
        [assistant("No\nno")],
    )
    assert row["row"] == f"row 2 of {name}" and "note" not in row


def test_cells_that_mean_numbers_truth_or_messages(tmp_path):
    messages = json.dumps(HI).replace('"', '""')
    path = table(tmp_path, f'messages,label,reward\n"{messages}",False,0.5\n"{messages}",1,-2\n')
    rows = load_records(path, kind="binary")
    assert [(row["label"], row["reward"]) for row in rows] == [(False, 0.5), (True, -2.0)]
    assert rows[0]["prompt"] == HI[:1]
    puzzles = load_records(table(tmp_path, 'nums,target\n"[3, 4]",7\n'), kind="prompts")
    assert (puzzles[0]["record"]["nums"], puzzles[0]["record"]["target"]) == ([3, 4], 7)


@pytest.mark.parametrize(
    "line, words",
    [
        (b"only one", "line 4 is of 1 cells, and line 1 names 2 columns"),
        (b"a,b,c", "line 4 is of 3 cells"),
        (b"a,\xff", "line 4 is not UTF-8 text"),
        (b'"a"x,b', "line 4 is not valid CSV"),
    ],
)
def test_a_broken_line_of_a_table_is_named(tmp_path, line, words):
    good = [b'"two\nlines",b', *[b"a,b"] * 17]
    path = table(tmp_path, b"\n".join([b"prompt,response", good[0], line, *good[1:]]) + b"\n")
    report = load_records(path, kind="sft").report
    assert (report.read, report.kept) == (19, 18) and words in str(report)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("prompt,prompt\na,b\n", "faulty header"),
        (b"pr\xffmpt,response\na,b\n", "faulty header"),
        ("", "no rows to read"),
        ("prompt,response\n", "no rows to read"),
        ('prompt,response\na,"never closed\n', "no row is left"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, text, reason):
    with pytest.raises(DataError) as caught:
        load_records(table(tmp_path, text), kind="sft")
    assert caught.value.reason == reason


# ---- columns by other names, and revisions


def test_columns_are_mapped_in_every_part_of_the_data(tmp_path, tokenizer):
    rows = [
        {"q": f"Is {i}?", "a": "Yes.", "b": "No.", "prompt": "other", "images": ["x"]}
        for i in "123"
    ]
    path = str(jsonl(tmp_path, rows))
    mapping = {"prompt": "q", "chosen": "a", "rejected": "b", "images": None}
    data = SftData(dataset=path, columns=mapping, validation_split="train", probe_dataset=path)
    data.probe_split = "train"
    for part in ("train", "validation", "probe"):
        check_part(data.part(part), "pairs")
        found = rows_of(data, part, tokenizer, seed=0, kind="pairs")
        assert found.records[0]["prompt"] == [user("Is 1?")]
    assert found.report.columns == {
        "q": {"used as prompt": 3},
        "a": {"used as chosen": 3},
        "b": {"used as rejected": 3},
        "prompt": {"ignored for q, which is mapped to it": 3},
        "images": {"not read, as asked": 3},
    }
    found = load_records(path, kind="binary", columns=mapping)
    assert len(found) == 6 and found[0]["completion"] == [assistant("Yes.")]


def test_columns_may_change_places(tmp_path):
    path = jsonl(tmp_path, [{"prompt": "answer", "response": "question"}])
    swapped = {"prompt": "response", "response": "prompt"}
    [row] = load_records(path, kind="sft", columns=swapped)
    assert (row["prompt"], row["response"]) == ([user("question")], [assistant("answer")])


@pytest.mark.parametrize(
    "mapping, reason, words",
    [
        ({"prompt": "questoin"}, "no such column", "no column 'questoin'. Did you mean `question`"),
        ({"images": None}, "no such column", "no column 'images'.*Known: question, answer"),
        ({"prompt": 3}, "wrong type", "no pair of names"),
    ],
)
def test_a_mapping_that_does_not_fit_is_an_error(tmp_path, mapping, reason, words):
    path = str(jsonl(tmp_path, [{"question": "a", "answer": "b"}]))
    with pytest.raises(ConfigError, match=words) as caught:
        load_records(path, kind="sft", columns=mapping)
    assert (caught.value.field, caught.value.reason) == ("columns", reason)
    with pytest.raises(ConfigError, match="^validation_dataset: columns: "):
        check_part(SftData(dataset=path, columns=mapping), "sft", "validation_")


def test_a_revision_is_asked_of_the_hub_and_stands_in_the_account(monkeypatch):
    asked = []

    def load_dataset(path, name=None, *, split, revision=None):
        asked.append((path, split, revision))
        return datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    report = load_records("someone/pairs", kind="pairs", dataset_revision="v1.0").report
    assert report.source == "someone/pairs@v1.0"
    report = load_records("hh-rlhf", kind="pairs", split="test", dataset_revision="abc").report
    assert report.source == "Anthropic/hh-rlhf@abc (test)"
    assert asked == [("someone/pairs", "train", "v1.0"), ("Anthropic/hh-rlhf", "test", "abc")]


@pytest.mark.parametrize(
    "revision, source",
    [
        ("", f"someone/pairs@{COMMIT}"),
        ("v1.0", f"someone/pairs@v1.0, commit {COMMIT}"),
        (COMMIT, f"someone/pairs@{COMMIT}"),
    ],
)
def test_the_commit_that_was_read_stands_in_the_account(monkeypatch, revision, source):
    def load_dataset(path, name=None, *, split, revision=None):
        data = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        file = f"hf://datasets/{path}@{COMMIT}/data/train.parquet"
        data.info.download_checksums = {file: {"num_bytes": 9, "checksum": None}}
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_records("someone/pairs", kind="pairs", dataset_revision=revision)
    assert found.report.source == source


@pytest.mark.parametrize("name", ["rows.jsonl", "tiny-world"])
def test_a_revision_of_what_is_not_on_the_hub_is_an_error(tmp_path, name):
    jsonl(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    name = str(tmp_path / name) if "." in name else name
    for call in (
        lambda: load_records(name, kind="pairs", dataset_revision="v1"),
        lambda: check_part(SftData(dataset=name, dataset_revision="v1"), "pairs"),
    ):
        with pytest.raises(ConfigError, match="only for the Hub") as caught:
            call()
        assert (caught.value.field, caught.value.reason) == ("dataset_revision", "only for the Hub")


def test_an_evaluation_maps_columns_and_refuses_tools(tmp_path):
    rows = [{"question": f"Is {i}?", "tools": [TOOL] if i else None} for i in range(2)]
    path = str(jsonl(tmp_path, rows))
    mapping = {"prompt": "question", "tools": None}
    [first, second] = evaluation_prompts(path, "train", 2, columns=mapping)
    assert second["prompt"] == [user("Is 1?")] and second["record"] == {"prompt": "Is 1?"}
    with pytest.raises(
        DataError, match="row 2 of rows.jsonl: the prompt comes with tools"
    ) as caught:
        evaluation_prompts(path, "train", 2, columns={"prompt": "question"})
    assert (caught.value.field, caught.value.reason) == ("tools", "tools in an evaluation")
    with pytest.raises(ConfigError, match="^dataset: columns: tiny-world .* no column 'question'"):
        check_dataset("tiny-world", kind="prompts", columns=mapping)


def test_the_commit_of_a_model_is_that_of_the_folder_it_lies_in(monkeypatch, tmp_path):
    folder = tmp_path / "models--someone--model"
    for file in ("refs/main", f"snapshots/{COMMIT}/config.json"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(COMMIT if file == "refs/main" else "{}")
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hub_commit("someone/model") == hub_commit("someone/model@main") == COMMIT
    assert hub_commit("someone/other") == hub_commit("data/tiny/base") == ""


def test_a_model_of_the_hub_is_read_at_its_revision(monkeypatch):
    asked = []

    def from_pretrained(*given, **options):
        asked.append((given or options["pretrained_model_name_or_path"], options["revision"]))
        return "found"

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    name = pinned("someone/model", "refs/pr/1")
    check_model(name)
    assert load_tokenizer(name) == "found" and asked == [("someone/model", "refs/pr/1")]
    assert pinned("data/tiny/base", "") == "data/tiny/base"
    for local in ("data/tiny/base", "stage:sft"):
        with pytest.raises(ConfigError, match="only for the Hub") as caught:
            pinned(local, "v1")
        assert (caught.value.field, caught.value.reason) == ("revision", "only for the Hub")
