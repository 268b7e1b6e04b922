"""Data: layouts, sources, filters, and the account of every row.

Hub data sets are stood in for by rows of their columns and types.
"""

import json
import os
import random
import time
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from helpers.records import assistant, metamath, smoltalk, ultrafeedback, user
from transformers import AutoTokenizer

from prefkit.data.chat import encode_response, end_of_turn_id
from prefkit.core import ConfigError, DataError, project_root, write_text
from prefkit.data.countdown import problems, prompt_text, verify, worked_solution
from prefkit.data.records import (
    DATASETS,
    encode_records,
    last_question,
    load_records,
    normalise,
    pairs_to_binary,
    parse_hh,
)
from prefkit.runs.pipelines import check_dataset


@contextmanager
def refused(error, field, reason, words=None):
    "The block raises such an error, with these words in its message."
    with pytest.raises(error, match=words) as caught:
        yield
    assert (caught.value.field, caught.value.reason) == (field, reason)


RED, BLUE = [user("Which colour?"), assistant("Red.")], [user("Which colour?"), assistant("Blue.")]
PAIR = {"prompt": RED[:1], "chosen": RED[1:], "rejected": BLUE[1:]}
HH = {
    "chosen": "\n\nHuman: Which colour?\n\nAssistant: Red.",
    "rejected": "\n\nHuman: Which colour?\n\nAssistant: Blue.",
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Which colour?"}],
    "chosen": {"from": "gpt", "value": "Red."},
    "rejected": {"from": "gpt", "value": "Blue."},
}
PLAIN = {"prompt": "Which colour?", "chosen": "Red.", "rejected": "Blue."}


def jsonl(tmp_path, rows, name="prefs.jsonl"):
    return write_text(tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows))


def good(n):
    return [
        {"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": f"It is {i}."}
        for i in range(n)
    ]


# ---- layouts


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": RED, "rejected": BLUE},
        {"prompt": "Which colour?", "chosen": RED, "rejected": BLUE},
        {"prompt": RED[:1], "chosen": RED, "rejected": BLUE},
        {"prompt": RED[:1], "chosen": RED[1:], "rejected": BLUE[1:]},
        {"prompt": RED[:1], "chosen": "Red.", "rejected": "Blue."},
        PLAIN,
        HH,
        SHAREGPT,
        {"prompt": "\n\nHuman: Which colour?\n\nAssistant:", "chosen": "Red.", "rejected": "Blue."},
        {**SHAREGPT, "chosen": assistant("Red."), "rejected": "Blue."},
    ],
    ids=[
        "implicit",
        "ultrafeedback",
        "prompt repeated",
        "explicit messages",
        "prompt messages, plain answers",
        "plain",
        "hh",
        "sharegpt",
        "hh prompt",
        "mixed",
    ],
)
def test_every_layout_of_a_pair_gives_the_same_row(record):
    assert normalise(record, "pairs") == PAIR


@pytest.mark.parametrize(
    "record",
    [
        {"messages": RED},
        {
            "conversations": [
                {"from": "human", "value": "Which colour?"},
                {"from": "gpt", "value": "Red."},
            ]
        },
        {"prompt": "Which colour?", "completion": "Red."},
        {"prompt": RED[:1], "response": RED[1:]},
        PLAIN,
        HH,
        SHAREGPT,
    ],
)
def test_every_layout_of_an_sft_row_gives_the_same_row(record):
    assert normalise(record, "sft") == {"prompt": RED[:1], "response": RED[1:]}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Which colour?", "completion": "Red.", "label": True},
        {"prompt": RED[:1], "completion": RED[1:], "label": 1},
        {"messages": RED, "label": True},
    ],
)
def test_every_layout_of_a_binary_row_gives_the_same_row(record):
    row = normalise(record, "binary")
    assert row == {"prompt": RED[:1], "completion": RED[1:], "label": True} and row["label"] is True


def test_prompts_need_no_answer():
    assert (
        normalise({"prompt": "Which colour?"}, "prompts")
        == normalise({"messages": RED}, "prompts")
        == {"prompt": RED[:1]}
    )


def test_conversations_keep_system_prompt_and_earlier_turns_in_the_prompt():
    row = normalise(smoltalk(1)[0], "sft")
    assert [turn["role"] for turn in row["prompt"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ] and row["response"] == [assistant("One to 0.")]


def test_plain_columns_beside_the_layout_are_kept():
    row = normalise(ultrafeedback(1)[0], "pairs")
    assert (row["prompt_id"], row["score_chosen"], row["score_rejected"]) == (
        "id0",
        8.5,
        3.0,
    ) and "messages" not in row


def test_hh_text_of_several_turns_is_split_into_messages():
    text = "\n\nHuman: Hi\n\nAssistant: Hello: there\n\nnext paragraph\n\nHuman: Bye\n\nAssistant:"
    assert parse_hh(text) == [user("Hi"), assistant("Hello: there\n\nnext paragraph"), user("Bye")]


# ---- bad rows: each with a reason of its own

BAD = {
    "wrong columns": {"prompt": "Hi", "good": "Hello", "bad": "What?"},
    "empty answer": {"prompt": "Hi", "chosen": " ", "rejected": "What?"},
    "chosen equals rejected": {"prompt": "Hi", "chosen": "Hello", "rejected": "Hello "},
    "messages are not a list": {"prompt": 3, "chosen": "Hello", "rejected": "What?"},
    "unknown role": {
        "chosen": [{"role": "human", "content": "Hi"}, assistant("Hello")],
        "rejected": BLUE,
    },
    "no answer at the end": {"chosen": RED[:1], "rejected": BLUE},
    "no prompt": {"chosen": "Hello", "rejected": "What?"},
    "no question before the answer": {"chosen": [*RED, assistant("Yes, red.")], "rejected": BLUE},
    "answers to two prompts": {
        "chosen": RED,
        "rejected": [user("Which size?"), assistant("Small.")],
    },
    "two prompts that disagree": {"prompt": "Which size?", "chosen": RED, "rejected": BLUE},
    "message without role and content": {"chosen": ["Hi", "Hello"], "rejected": BLUE},
    "empty message": {"prompt": "", "chosen": "Hello", "rejected": "What?"},
    "text that cannot be encoded as UTF-8": {
        "prompt": "\ud800 a",
        "chosen": "Hello",
        "rejected": "What?",
    },
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_refused_with_its_reason(reason):
    with pytest.raises(DataError) as caught:
        normalise(BAD[reason], "pairs")
    assert caught.value.reason == reason and len(str(caught.value)) > len(reason)
    assert caught.value.field


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_in_a_file_is_dropped_and_named_or_stops_the_run(tmp_path, reason):
    path = jsonl(tmp_path, [*good(16), BAD[reason], *good(3)])
    records = load_records(path, kind="pairs")
    assert (records.report.read, records.report.kept, len(records)) == (20, 19, 19)
    assert records.report.dropped[reason]["rows"] == 1 and "row 17 of prefs.jsonl" in str(
        records.report
    )
    with pytest.raises(DataError, match="^row 17 of prefs.jsonl: ") as caught:
        load_records(path, kind="pairs", on_bad_rows="error")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"prompt": "a", ', "line 17 is not valid JSON"),
        ("[1, 2]", "line 17 is a JSON list"),
        (b"\xff\xfe", "line 17 is not UTF-8"),
        ('{"prompt": "x", "chosen": ', "Expecting value at column 27"),
        ("[" * 100_000, "line 17 is nested too deeply"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, words):
    lines = [json.dumps(row).encode() for row in good(20)]
    lines[16] = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "prefs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    report = load_records(tmp_path / "prefs.jsonl", kind="pairs").report
    assert (report.read, report.kept) == (20, 19) and words in str(report)
    with refused(DataError, "row", "broken line", words):
        load_records(tmp_path / "prefs.jsonl", kind="pairs", on_bad_rows="error")


@pytest.mark.parametrize(
    "record, column, reason, words",
    [
        (
            {"prompt": "Hi", "chosen": "", "rejected": "What?"},
            "chosen",
            "empty answer",
            r"^chosen: message 1 \(assistant\) is empty",
        ),
        (
            {"prompt": "Hi", "chosen": "Hello", "rejected": ""},
            "rejected",
            "empty answer",
            r"^rejected: message 1 \(assistant\) is empty",
        ),
        (
            {"prompt": "", "chosen": "Hello", "rejected": "What?"},
            "prompt",
            "empty message",
            r"^prompt: message 1 \(user\) is empty",
        ),
        (
            {"chosen": RED, "rejected": BLUE[:1]},
            "rejected",
            "no answer at the end",
            "^rejected: the last message is the user's",
        ),
    ],
)
def test_a_bad_row_says_in_which_column(record, column, reason, words):
    with refused(DataError, column, reason, words):
        normalise(record, "pairs")


def test_names_in_a_row_that_cannot_be_encoded_do_no_harm(tmp_path):
    records = load_records(
        jsonl(tmp_path, [*[{**row, "note\ud800": "\ud800"} for row in good(19)], {"\ud800": 1}]),
        kind="pairs",
    )
    assert len(records) == 19 and len(records.fingerprint) == 16 and str(records.report).encode()


def test_a_label_that_is_no_label_is_refused():
    with refused(DataError, "label", "label is not true or false", "label is 'good'"):
        normalise({"prompt": "Hi", "completion": "Hello", "label": "good"}, "binary")


# ---- the account


def test_four_of_forty_bad_rows_pass_and_five_are_an_error_with_the_account(tmp_path):
    def load(bad):
        return load_records(
            jsonl(tmp_path, [*good(40 - bad), *[BAD["empty answer"]] * bad]), kind="pairs"
        )

    assert load(4).report.kept == 36
    words = (
        "(?s)12% of the rows are bad, more than 10%.*read 40 rows, kept 35, dropped 5.*empty answer"
    )
    with refused(DataError, "records", "too many bad rows", words):
        load(5)


def test_a_file_with_wrong_columns_says_which_it_has_and_which_it_needs(tmp_path):
    words = "columns prompt, good, bad .*which has chosen and rejected"
    with refused(DataError, "records", "no row is left", words):
        load_records(jsonl(tmp_path, [BAD["wrong columns"]] * 5), kind="pairs")


def test_an_empty_file_is_an_error(tmp_path):
    with refused(DataError, "records", "no rows to read", "empty.jsonl: there are no rows to read"):
        load_records(write_text(tmp_path / "empty.jsonl", ""), kind="pairs")


def test_kept_and_dropped_add_up_through_loading_and_encoding(tmp_path, tokenizer):
    rows = [
        *good(38),
        BAD["empty answer"],
        {"prompt": "word " * 400, "chosen": "a", "rejected": "b"},
    ]
    records = load_records(jsonl(tmp_path, rows), kind="pairs")
    before = records.report.to_dict()
    encoded, report = encode_records(records, tokenizer, kind="pairs", max_prompt_tokens=300)
    assert (
        report.read == 40 == report.kept + report.dropped_rows and report.kept == len(encoded) == 38
    )
    assert (
        set(report.dropped) == {"empty answer", "prompt over 300 tokens"} and report.bad_rows == 1
    )
    assert records.report.to_dict() == before  # the loader's own account is not touched


def test_a_filter_that_was_asked_for_is_no_fault(tokenizer):
    rows = [
        normalise(
            {"prompt": "word " * (400 if i % 2 else 1), "chosen": f"a {i}", "rejected": "b"},
            "pairs",
        )
        for i in range(10)
    ]
    encoded, report = encode_records(
        rows, tokenizer, kind="pairs", max_length=1024, max_prompt_tokens=300, on_bad_rows="error"
    )
    assert (
        len(encoded) == 5
        and report.dropped["prompt over 300 tokens"]["asked"]
        and report.bad_rows == 0
    )


def test_report_can_be_written_as_json_and_drawn_as_a_table(tmp_path):
    odd = [{"role": "<b>", "content": "Hi"}, assistant("Hello")]
    row = {"chosen": odd, "rejected": BLUE}
    report = load_records(jsonl(tmp_path, [*good(19), row]), kind="pairs").report
    assert json.loads(json.dumps(report.to_dict()))["dropped_rows"] == 1
    # escaped
    assert "<td>dropped</td>" in report._repr_html_() and "<b>" not in report._repr_html_()


def test_a_special_token_is_that_of_the_tokenizer_which_reads_the_row(tmp_path, tokenizer):
    "A row about another model's tokens is good; one that holds its own is dropped and counted."
    row = {"prompt": "Hi<|im_end|>", "chosen": "Hello", "rejected": "What?"}
    other = {"prompt": "What is <|eot_id|>?", "chosen": "A token.", "rejected": "A dog."}
    records = load_records(jsonl(tmp_path, [*good(18), row, other]), kind="pairs")
    assert records.report.kept == 20
    report = encode_records(records, tokenizer, kind="pairs")[1]
    assert report.kept == 19
    [(reason, dropped)] = report.dropped.items()
    assert reason == "special token in the text" and "row 19 of prefs.jsonl" in str(dropped)


# ---- sources


@pytest.mark.parametrize(
    "kind_of_file", ["jsonl", "json", "json lines", "parquet", "folder", "folder with splits"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind_of_file):
    rows = ultrafeedback(30)
    if kind_of_file in ("jsonl", "json lines"):
        path = jsonl(tmp_path, rows, "prefs.jsonl" if kind_of_file == "jsonl" else "prefs.json")
    elif kind_of_file == "json":
        path = write_text(tmp_path / "prefs.json", json.dumps(rows))
    else:
        data, path = datasets.Dataset.from_list(rows), tmp_path / "prefs"
        if kind_of_file == "parquet":
            data.to_parquet(path := tmp_path / "prefs.parquet")
        elif kind_of_file == "folder":
            data.save_to_disk(path)
        else:
            datasets.DatasetDict({"train": data, "test_prefs": data.select(range(7))}).save_to_disk(
                path
            )
    records = load_records(path, kind="pairs")
    expected = [
        {**normalise(row, "pairs"), "row": f"row {i} of {path.name}"}
        for i, row in enumerate(rows, 1)
    ]
    assert records.rows == expected
    if kind_of_file == "folder with splits":
        assert len(load_records(path, kind="pairs", split="test_prefs")) == 7


def test_a_row_that_is_no_object_in_a_json_list_is_a_bad_row(tmp_path):
    report = load_records(
        write_text(tmp_path / "prefs.json", json.dumps([*good(19), 3])), kind="pairs"
    ).report
    assert report.kept == 19 and "row 20 of prefs.json: line 20 is a JSON int" in str(report)


@pytest.mark.parametrize(
    "name, split, field, reason, words",
    [
        ("no/such/folder/prefs.jsonl", "train", "name", "no such file or folder", "does not exist"),
        ("./prefs", "train", "name", "no such file or folder", "does not exist"),
        ("", "train", "name", "empty", "the name of the data set is empty"),
        (
            "ultrafeedback",
            "train",
            "name",
            "unknown data set",
            "no data set 'ultrafeedback'. Did you mean `ultrafeedback_binarized`",
        ),
        ("qwertz", "train", "name", "unknown data set", "no data set 'qwertz'. Known: tiny-world"),
        (
            "ultrafeedback_binarized",
            "dev",
            "split",
            "unknown split",
            "no split 'dev'; it has train, test, validation",
        ),
        (
            "tiny-world",
            "train[:x]",
            "split",
            "neither a name nor a slice",
            "slice of whole numbers",
        ),
    ],
)
def test_a_source_that_is_not_there_is_an_error_with_the_way_out(name, split, field, reason, words):
    with refused((DataError, ConfigError), field, reason, words):
        load_records(name, kind="pairs", split=split)


@pytest.mark.parametrize(
    "name, content, reason, words",
    [
        ("a.txt", "x", "unknown type of file", "type .txt are not read"),
        ("a.parquet", "x", "cannot be read", "a.parquet: cannot be read"),
        ("a.json", '[{"a": ', "cannot be read", "line 1"),
        ("a.json", "[" * 100_000, "cannot be read", "a.json: cannot be read"),
        (
            "a.json",
            json.dumps(good(1)[0], indent=1),
            "neither a list nor an object a line",
            "a.json: begins with a JSON object over several lines, .* Write a list",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_path(
    tmp_path, name, content, reason, words
):
    with refused(DataError, "name", reason, words):
        load_records(write_text(tmp_path / name, content), kind="pairs")


def test_a_broken_page_within_a_parquet_file_is_an_error_with_its_path(tmp_path):
    path = tmp_path / "prefs.parquet"
    datasets.Dataset.from_list(good(2000)).to_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)  # the first page; the footer is whole
    path.write_bytes(content)
    with refused(DataError, "name", "cannot be read", "prefs.parquet: cannot be read"):
        load_records(path, kind="pairs")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(dataset=""), "^dataset: the name of the data set is empty"),
        (dict(split="test"), "^split: prefs.jsonl has one split, train"),
        (
            dict(split="test", prefix="validation_"),
            '^validation_split: .*train.:200.* write validation_split: ""',
        ),
        (dict(limit=-1, prefix="validation_"), "^validation_limit is -1"),
        (dict(dataset="missing.jsonl", prefix="probe_"), "^probe_dataset: .*no such file"),
        (dict(dataset="folder/missing.jsonl"), "^dataset: .*no such file"),
        (dict(max_prompt_tokens=0), "^max_prompt_tokens is 0, .* at least 1"),
        (dict(max_length=4), "^min_response_tokens is 16, more than max_length"),
        (dict(dataset="tiny-world", split="tst"), "^split: tiny-world has no split 'tst'"),
        (dict(dataset="smoltalk"), "^dataset: smoltalk has no rows of kind pairs"),
    ],
)
def test_what_is_checked_before_a_run_names_the_parameter(tmp_path, arguments, words):
    arguments = {"dataset": str(jsonl(tmp_path, good(20))), **arguments}
    with pytest.raises((ConfigError, DataError), match=words):
        check_dataset(arguments.pop("dataset"), kind="pairs", **arguments)


def test_a_folder_that_is_no_data_set_is_an_error(tmp_path):
    with refused(DataError, "name", "not a datasets folder", "save_to_disk"):
        load_records(tmp_path, kind="pairs")


def test_a_file_has_no_test_split_so_that_its_rows_do_not_come_twice(tmp_path):
    with refused(ConfigError, "split", "unknown split", "one split, train"):
        load_records(jsonl(tmp_path, good(5)), kind="pairs", split="test")


def test_slices_skip_and_limit_part_a_file_without_overlap(tmp_path):
    path = jsonl(tmp_path, good(30))

    def numbers(**arguments):
        return [int(row["row"].split()[1]) for row in load_records(path, kind="pairs", **arguments)]

    assert numbers(split="train[:20]") == numbers(limit=20) == list(range(1, 21))
    assert numbers(split="train[20:]") == numbers(skip=20) == list(range(21, 31))
    assert numbers(split="train[5:20]", skip=3, limit=4) == [9, 10, 11, 12]
    with refused(DataError, "records", "no rows to read"):
        numbers(skip=30)
    for field in ("limit", "skip"):
        with refused(ConfigError, field, "not a whole number from 0", f"{field} is -1"):
            numbers(**{field: -1})


@pytest.mark.parametrize(
    "arguments, field, reason, words",
    [
        (dict(kind="pair"), "kind", "unknown kind", "kind is 'pair'"),
        (
            dict(kind="pairs", on_bad_rows="ignore"),
            "on_bad_rows",
            "neither drop nor error",
            "drop or error",
        ),
    ],
)
def test_unknown_settings_are_config_errors(tmp_path, tokenizer, arguments, field, reason, words):
    with refused(ConfigError, field, reason, words):
        load_records(jsonl(tmp_path, good(3)), **arguments)
    with refused(ConfigError, field, reason, words):
        encode_records([], tokenizer, **arguments)


def test_a_filter_that_no_prompt_could_pass_is_a_config_error(tokenizer):
    reason = "not a whole number of at least 1"
    with refused(ConfigError, "max_prompt_tokens", reason, "max_prompt_tokens is -1"):
        encode_records([], tokenizer, kind="pairs", max_prompt_tokens=-1)


# ---- named data sets, stood in for


@pytest.fixture
def hub(monkeypatch):
    "Replace the download; returns what was asked for."
    asked, sets = [], {}

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        if (path, split) not in sets:
            raise ConnectionError("no network")
        return datasets.Dataset.from_list(sets[path, split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked, sets


def test_ultrafeedback_gives_pairs_and_sft_on_the_chosen_answers_of_the_same_rows(hub):
    asked, sets = hub
    sets["HuggingFaceH4/ultrafeedback_binarized", "train_prefs"] = ultrafeedback(6)
    pairs, sft = (load_records("ultrafeedback_binarized", kind=kind) for kind in ("pairs", "sft"))
    assert asked == [("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs")] * 2
    assert [row["chosen"] for row in pairs] == [row["response"] for row in sft] and [
        row["prompt_id"] for row in pairs
    ] == [row["prompt_id"] for row in sft]


def test_ultrafeedback_validation_is_the_first_2000_rows_and_the_rest_is_apart(hub):
    asked, sets = hub
    sets["HuggingFaceH4/ultrafeedback_binarized", "train_prefs"] = ultrafeedback(2050)
    validation, rest = (
        load_records("ultrafeedback_binarized", kind="pairs", split=split)
        for split in ("validation", "train_without_validation")
    )
    assert [row["prompt_id"] for row in validation] == [f"id{i}" for i in range(2000)]
    assert [row["prompt_id"] for row in rest] == [f"id{i}" for i in range(2000, 2050)]
    sets["HuggingFaceH4/ultrafeedback_binarized", "test_prefs"] = ultrafeedback(3)
    assert (
        len(load_records("ultrafeedback_binarized", kind="pairs", split="test")) == 3
        and asked[-1][2] == "test_prefs"
    )


@pytest.mark.parametrize(
    "name, hub_name, config",
    [
        ("smol-smoltalk", "HuggingFaceTB/smol-smoltalk", None),
        ("smoltalk", "HuggingFaceTB/smoltalk", "all"),
    ],
)
def test_smoltalk_gives_sft_rows(hub, tokenizer, name, hub_name, config):
    asked, sets = hub
    sets[hub_name, "train"] = smoltalk(5)
    records = load_records(name, kind="sft", limit=3)
    assert (
        asked == [(hub_name, config, "train")]
        and len(records) == 3
        and records[0]["source"] == "smol-magpie-ultra-short"
    )
    rows, _ = encode_records(records, tokenizer, kind="sft")
    assert tokenizer.decode(rows[2]["response_ids"]) == "One to 2.<|im_end|>"
    with refused(ConfigError, "kind", "no rows of this kind", "no rows of kind pairs"):
        load_records(name, kind="pairs")


def test_hh_rlhf_gives_pairs(hub):
    asked, sets = hub
    sets["Anthropic/hh-rlhf", "test"] = [HH] * 4
    assert load_records("hh-rlhf", kind="pairs", split="test")[0] == {
        **PAIR,
        "row": "row 1 of Anthropic/hh-rlhf (test)",
    }


def test_metamath_prompts_are_cut_to_the_last_question_and_counted(hub):
    asked, sets = hub
    sets["abacusai/MetaMath_DPO_FewShot", "eval"] = metamath(9)
    records = load_records("metamath_dpo", kind="pairs", split="test")
    assert [row["prompt"] for row in records] == [[user(f"What is {i} + 1?")] for i in range(9)]
    assert "few-shot prompt cut to its last question in 9 rows" in str(records.report)
    kept = load_records("metamath_dpo", kind="pairs", split="test", zero_shot=False)
    assert kept[2]["prompt"][0]["content"].count("Question:") == 3


@pytest.mark.parametrize(
    "prompt, question",
    [
        ("What is 3 + 5?", "What is 3 + 5?"),
        ("Question: a?\nAnswer: b\n\nQuestion: What is 3 + 5?\nAnswer:", "What is 3 + 5?"),
        ("Q: a?\nA: b\n\nQ: What is 3 + 5?\nA: Let's think step by step.", "What is 3 + 5?"),
        (
            (
                "### Problem 1:\na?\n### Solution 1:\nb\n\n### Problem 2:\nWhat is 3 + 5?\n### "
                "Solution 2:"
            ),
            "What is 3 + 5?",
        ),
        (
            "Solve these.\n\nQuestion: a?\nAnswer: b\n\nQuestion: Which?\nA: 3\nB: 5\nAnswer:",
            "Which?\nA: 3\nB: 5",
        ),
    ],
)
def test_last_question_is_found_under_several_labels(prompt, question):
    assert last_question(prompt) == question


@pytest.mark.parametrize(
    "prompt",
    [
        "Question: a?\nAnswer: b\n\nWhat is 3 + 5?",
        "a?\nb\n#### 4\n\nWhat is 3 + 5?",
        "Question: a?\nAnswer: b\n\nQuestion:\nAnswer:",
    ],
)
def test_a_few_shot_prompt_that_cannot_be_cut_cleanly_is_a_bad_row(prompt):
    with refused(DataError, "prompt", "few-shot prompt of unknown layout", "cannot be told"):
        last_question(prompt)


def test_any_name_on_the_hub_is_read_in_a_known_layout(hub):
    asked, sets = hub
    sets["someone/pairs", "validation"] = good(5)
    assert len(
        load_records("someone/pairs", kind="pairs", split="validation", limit=2)
    ) == 2 and asked == [("someone/pairs", None, "validation")]


def test_a_hub_that_cannot_be_reached_is_an_error_with_the_way_out(hub):
    words = "someone/pairs: cannot be loaded.*no network.*local file"
    with refused(DataError, "name", "cannot be loaded", words):
        load_records("someone/pairs", kind="pairs")
    with refused(DataError, "name", "cannot be loaded", "^Anthropic/hh-rlhf"):
        load_records("hh-rlhf", kind="pairs")


@pytest.mark.parametrize("kind", ["sft", "pairs", "binary"])
def test_tiny_world_comes_through_the_same_door(tokenizer, kind):
    records = load_records("tiny-world", kind=kind, limit=50)
    rows, report = encode_records(records, tokenizer, kind=kind, on_bad_rows="error")
    assert len(rows) == report.read == report.kept == 50 and report.shortened == 0
    assert (
        load_records("tiny-world", kind=kind, limit=50).fingerprint
        == records.fingerprint
        != load_records("tiny-world", kind=kind, limit=50, seed=1).fingerprint
    )


def test_tiny_world_refuses_slices_that_would_not_continue_one_another():
    reason = "generated rows have no order to continue"
    with refused(ConfigError, "skip", reason, "drawn anew"):
        load_records("tiny-world", kind="pairs", skip=10, limit=10)


def test_every_named_data_set_says_what_it_is():
    assert set(DATASETS) == {
        "tiny-world",
        "tiny-world-verbose",
        "tiny-world-long",
        "smol-smoltalk",
        "smoltalk",
        "ultrafeedback_binarized",
        "hh-rlhf",
        "metamath_dpo",
        "gsm8k",
        "gsm8k_minor_dpo",
        "countdown-tiny",
        "countdown-tiny-worked",
        "countdown-tiny-noisy",
        "countdown",
        "countdown-3to4",
        "cog_behav_all_strategies",
    }
    assert all(source.note and source.splits and source.kinds for source in DATASETS.values())


# ---- prompts, for trainers that sample their own answers


def test_prompts_carry_the_columns_of_their_record_and_an_answer_where_there_is_one(
    tmp_path, tokenizer
):
    path = jsonl(
        tmp_path,
        [
            {
                "prompt": f"What is {i} + 1?",
                "nums": [i, 1],
                "target": i + 1,
                "note": None,
                "meta": {"level": 3},
            }
            for i in range(5)
        ],
    )
    records = load_records(path, kind="prompts")
    assert records[2] == {
        "prompt": [user("What is 2 + 1?")],
        "target": 3,
        "row": "row 3 of prefs.jsonl",
        "record": {"prompt": "What is 2 + 1?", "nums": [2, 1], "target": 3, "meta": {"level": 3}},
    }
    rows, report = encode_records(records, tokenizer, kind="prompts")
    assert (
        set(rows[2]) == {"prompt_ids", "prompt", "record"}
        and rows[2]["prompt"] == [user("What is 2 + 1?")]
        and rows[2]["record"] == records[2]["record"]
    )
    assert tokenizer.decode(rows[2]["prompt_ids"]).endswith(
        "What is 2 + 1?<|im_end|>\n<|im_start|>assistant\n"
    ) and (report.read, report.kept) == (5, 5)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": RED},
        {"prompt": "Which colour?", "completion": "Red."},
        {"prompt": RED[:1], "response": RED[1:]},
        PLAIN,
        SHAREGPT,
        {"prompt": "Which colour?", "chosen": RED, "rejected": BLUE, "messages": RED},
        {
            "conversations": [
                {"from": "human", "value": "Which colour?"},
                {"from": "gpt", "value": "\nRed."},
            ]
        },
    ],
)
def test_an_answer_to_the_same_prompt_stands_beside_it(tmp_path, tokenizer, record):
    records = load_records(jsonl(tmp_path, [{**record, "source": "here"}]), kind="prompts")
    assert (
        records[0]["prompt"] == RED[:1]
        and records[0]["response"] == RED[1:]
        and records[0]["record"]["source"] == "here"
    )
    row = encode_records(records, tokenizer, kind="prompts")[0][0]
    assert (row["prompt_ids"], row["response_ids"]) == encode_response(
        tokenizer, RED[:1], RED[1:]
    ) and set(row) == {"prompt_ids", "prompt", "record", "response_ids"}


def test_an_answer_beside_a_prompt_is_neither_cut_nor_a_reason_to_drop_it(tmp_path, tokenizer):
    rows = [
        {"prompt": "word " * 80, "completion": "red " * 300},
        {"prompt": "Hi", "completion": ""},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi"},
    ]
    records = load_records(jsonl(tmp_path, rows), kind="prompts")
    assert [("response" in row) for row in records] == [True, False, True, False]
    encoded, report = encode_records(
        records, tokenizer, kind="prompts", max_length=64, max_prompt_length=50, on_bad_rows="error"
    )
    assert (
        [len(row["prompt_ids"]) <= 50 for row in encoded] == [True] * 4
        and len(encoded[0]["response_ids"]) > 300
        and encoded[0]["prompt"] == records[0]["prompt"]
    )
    assert (report.kept, report.shortened, report.shortened_prompts, report.shortened_answers) == (
        4,
        1,
        1,
        0,
    )
    assert encode_records(records, tokenizer, kind="prompts", max_prompt_tokens=60)[1].dropped[
        "prompt over 60 tokens"
    ]["asked"]


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"prompt": ""}, "empty message"),
        ({"messages": RED[1:]}, "no question in the prompt"),
        ({"good": "Hi"}, "wrong columns"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, RED[1]]},
            "no question in the prompt",
        ),
        ({"nums": [3, "7"], "target": 10}, "nums or target are no whole numbers"),
        ({"nums": [], "target": 1}, "nums or target are no whole numbers"),
    ],
)
def test_a_prompt_that_is_none_is_a_bad_row(tmp_path, record, reason):
    records = load_records(jsonl(tmp_path, [*good(19), record]), kind="prompts")
    assert records.report.dropped[reason]["rows"] == 1 and "row 20 of prefs.jsonl" in str(
        records.report
    )


def test_named_sets_give_prompts(hub, tokenizer):
    asked, sets = hub
    sets["HuggingFaceH4/ultrafeedback_binarized", "train_prefs"] = ultrafeedback(6)
    sets["HuggingFaceTB/smol-smoltalk", "train"] = smoltalk(5)
    records = load_records("ultrafeedback_binarized", kind="prompts", limit=4)
    assert (
        records[3]["prompt"] == [user("Count to 3.")]
        and records[3]["response"] == [assistant("One to 3.")]
        and records[3]["record"]["prompt_id"] == "id3"
    )
    talks, _ = encode_records(
        load_records("smol-smoltalk", kind="prompts"), tokenizer, kind="prompts"
    )
    assert [turn["role"] for turn in talks[0]["prompt"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ] and tokenizer.decode(talks[2]["response_ids"]) == "One to 2.<|im_end|>"
    tiny, _ = encode_records(
        load_records("tiny-world", kind="prompts", limit=30), tokenizer, kind="prompts"
    )
    assert (
        len(tiny) == 30
        and set(tiny[0]["record"]) == {"prompt", "prompt_id", "kind", "held_out"}
        and tiny[0]["prompt"] == [user(tiny[0]["record"]["prompt"])]
    )
    check_dataset("tiny-world", kind="prompts")


# ---- Countdown


@pytest.mark.parametrize(
    "name, style",
    [("countdown-tiny", "answer"), ("countdown-tiny-worked", "worked"), ("countdown", None)],
)
def test_generated_puzzles_come_through_the_same_door(tokenizer, name, style):
    prompts, sft = (
        load_records(name, kind=kind, split="test", limit=40) for kind in ("prompts", "sft")
    )
    assert [row["prompt"] for row in prompts] == [row["prompt"] for row in sft] and (
        style is None or {row["style"] for row in sft} == {style}
    )
    encoded, report = encode_records(prompts, tokenizer, kind="prompts", on_bad_rows="error")
    assert len(encoded) == report.kept == 40 and set(encoded[0]["record"]) == {
        "prompt",
        "prompt_id",
        "nums",
        "target",
    }
    for row, answer in zip(encoded, sft):
        assert verify(
            answer["response"][0]["content"], row["record"]["nums"], row["record"]["target"]
        ).correct
    assert (
        load_records(name, kind="sft", limit=40).fingerprint
        == load_records(name, kind="sft", limit=40).fingerprint
        != load_records(name, kind="sft", limit=40, seed=1).fingerprint
    )
    reason = "generated rows have no order to continue"
    with refused(ConfigError, "skip", reason, "drawn anew"):
        load_records(name, kind="sft", skip=1, limit=4)
    with refused(ConfigError, "kind", "no rows of this kind", "no rows of kind pairs"):
        load_records(name, kind="pairs")


def test_without_a_limit_a_small_split_gives_what_it_has():
    assert [
        len(load_records("countdown-tiny", kind="prompts", split=split))
        for split in ("train", "validation", "test")
    ] == [1000, 183, 563]
    words = "has 183 puzzles, 200 are wanted"
    with refused(DataError, "n", "more puzzles than there are", words):
        load_records("countdown-tiny", kind="prompts", split="validation", limit=200)


def tasks(n):
    return [
        {"target": p["target"], "nums": p["nums"]}
        for split in ("train", "test", "validation")
        for p in problems(split, n, size="public")
    ]


def test_countdown_tasks_are_parted_by_puzzle_whatever_the_order_of_their_numbers(hub, tokenizer):
    asked, sets = hub
    rows = tasks(40)
    sets["Jiayi-Pan/Countdown-Tasks-3to4", "train"] = [
        *rows,
        *({"target": row["target"], "nums": row["nums"][::-1]} for row in rows),
    ]
    parts = {
        split: load_records("countdown-3to4", kind="prompts", split=split)
        for split in ("train", "validation", "test")
    }
    assert asked == [("Jiayi-Pan/Countdown-Tasks-3to4", None, "train")] * 3 and [
        len(part) for part in parts.values()
    ] == [80, 80, 80]
    keys = {
        split: {(*sorted(row["record"]["nums"]), row["record"]["target"]) for row in part}
        for split, part in parts.items()
    }
    assert (
        not keys["train"] & keys["test"]
        and not keys["train"] & keys["validation"]
        and not keys["test"] & keys["validation"]
    )
    first = load_records("countdown-3to4", kind="prompts", split="test", limit=1)[0]
    assert (
        first["prompt"][0]["content"] == prompt_text(rows[40]["nums"], rows[40]["target"])
        and first["row"] == "row 41 of Jiayi-Pan/Countdown-Tasks-3to4 (train, its test part)"
    )
    # by its full name: the Hub's own split
    assert len(load_records("Jiayi-Pan/Countdown-Tasks-3to4", kind="prompts")) == 240
    encoded, _ = encode_records(parts["test"], tokenizer, kind="prompts")
    assert (
        encoded[0]["record"]["nums"] == rows[40]["nums"]
        and encoded[0]["record"]["target"] == rows[40]["target"]
    )
    with refused(ConfigError, "kind", "no rows of this kind"):
        load_records("countdown-3to4", kind="sft")


def test_tasks_in_a_file_are_read_by_their_columns(tmp_path):
    datasets.Dataset.from_list(tasks(5)).to_parquet(tmp_path / "tasks.parquet")
    records = load_records(tmp_path / "tasks.parquet", kind="prompts")
    assert len(records) == 15 and records[0]["prompt"][0]["content"].startswith(
        "Using the numbers ["
    )
    with refused(DataError, "records", "no row is left", "do not make a row of kind sft"):
        load_records(tmp_path / "tasks.parquet", kind="sft")


FRAME = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer.\nUser: {question}\nAssistant: Let me solve this step by step.\n"
)


def cog_behav(n, frame=FRAME):
    """Rows with the columns of Asap7772/cog_behav_all_strategies: a base model's frame around the
    question, and what follows it.
    """
    return [
        {
            "query": frame.format(question=prompt_text(p["nums"], p["target"])),
            "completion": worked_solution(
                p["nums"], p["target"], "trying", random.Random(0), p["solution"]
            ),
        }
        for p in problems("train", n, size="public")
    ]


def test_cog_behav_rows_become_chats_whose_prompts_know_their_puzzle(hub, tokenizer):
    asked, sets = hub
    sets["Asap7772/cog_behav_all_strategies", "test"] = cog_behav(6)
    sft, prompts = (
        load_records("cog_behav_all_strategies", kind=kind, split="test")
        for kind in ("sft", "prompts")
    )
    puzzle = problems("train", 6, size="public")[2]
    assert (
        sft[2]["prompt"]
        == prompts[2]["prompt"]
        == [user(prompt_text(puzzle["nums"], puzzle["target"]))]
    )
    assert (
        sft[2]["response"][0]["content"].startswith("Let me solve this step by step.\n<think>\n")
        and prompts[2]["response"] == sft[2]["response"]
    )
    assert (prompts[2]["record"]["nums"], prompts[2]["record"]["target"]) == (
        puzzle["nums"],
        puzzle["target"],
    )
    assert all(
        verify(
            row["response"][0]["content"], row["record"]["nums"], row["record"]["target"]
        ).correct
        for row in prompts
    )
    assert (
        len(encode_records(sft, tokenizer, kind="sft", max_length=2048, on_bad_rows="error")[0])
        == 6
    )


@pytest.mark.parametrize(
    "query, completion, prompt, answer",
    [
        (
            FRAME.format(question="Hi?") + "<think>",
            " a</think>",
            "Hi?",
            "Let me solve this step by step.\n<think> a</think>",
        ),
        ("Hi?", "Hello", "Hi?", "Hello"),
        ("User: Hi?\nAssistant:", " Hello", "Hi?", " Hello"),
        ("User: Hi?\nAssistant: So.", "Hello", "Hi?", "So.\nHello"),
    ],
)
def test_what_a_query_puts_into_the_models_mouth_belongs_to_the_answer(
    query, completion, prompt, answer
):
    assert normalise({"query": query, "completion": completion}, "sft") == {
        "prompt": [user(prompt)],
        "response": [assistant(answer)],
    }


# ---- encoding


@pytest.mark.parametrize(
    "kind, keys",
    [
        ("sft", {"prompt_ids", "response_ids"}),
        ("pairs", {"prompt_ids", "chosen_ids", "rejected_ids"}),
        ("binary", {"prompt_ids", "response_ids", "label"}),
    ],
)
def test_encoded_rows_hold_what_encode_response_gives(tokenizer, kind, keys):
    # more than one call of the tokenizer
    records = load_records("tiny-world", kind=kind, limit=600)
    rows, _ = encode_records(records, tokenizer, kind=kind)
    names = {"sft": ("response",), "pairs": ("chosen", "rejected"), "binary": ("completion",)}[kind]
    for row, record in list(zip(rows, records))[::97]:
        assert set(row) == keys
        for name, ids in zip(
            names,
            [row[key] for key in ("response_ids", "chosen_ids", "rejected_ids") if key in row],
        ):
            assert (row["prompt_ids"], ids) == encode_response(
                tokenizer, record["prompt"], record[name]
            )


def test_rows_keep_their_order_and_labels(tokenizer):
    rows = [
        {"prompt": [user("Hi")], "completion": [assistant(str(i))], "label": i % 3 == 0}
        for i in range(20)
    ]
    encoded, _ = encode_records(rows, tokenizer, kind="binary")
    assert [tokenizer.decode(row["response_ids"]) for row in encoded] == [
        f"{i}<|im_end|>" for i in range(20)
    ]
    assert [row["label"] for row in encoded] == [i % 3 == 0 for i in range(20)]


def test_shortened_rows_are_counted_by_what_was_shortened(tokenizer):
    rows = [
        {"prompt": [user("word " * prompt)], "response": [assistant("word " * answer)]}
        for prompt, answer in ((1, 1), (100, 1), (1, 400), (100, 400))
    ]
    encoded, report = encode_records(
        rows, tokenizer, kind="sft", max_length=200, max_prompt_length=90
    )
    assert (report.kept, report.shortened, report.shortened_prompts, report.shortened_answers) == (
        4,
        3,
        2,
        2,
    )
    end = end_of_turn_id(tokenizer)
    assert [row["response_ids"][-1] == end for row in encoded] == [True, True, False, False]
    assert all(
        len(row["prompt_ids"]) <= 90 and len(row["prompt_ids"]) + len(row["response_ids"]) <= 200
        for row in encoded
    )


def test_too_little_of_an_answer_is_dropped_or_stops_the_run_naming_the_row(tmp_path, tokenizer):
    path = jsonl(
        tmp_path,
        [
            *good(16),
            {"prompt": "word " * 400, "chosen": "red " * 50, "rejected": "blue " * 50},
            *good(3),
        ],
    )
    records = load_records(path, kind="pairs")
    _, report = encode_records(records, tokenizer, kind="pairs", max_length=200)
    assert report.kept == 19 and report.dropped["too little of the answer left"]["rows"] == 1
    words = (
        r"^row 17 of prefs.jsonl: the answer keeps 0 of its \d+ tokens \(prompt 200, "
        r"max_length 200, min_response_tokens 16\)"
    )
    with refused(DataError, "max_length", "too little of the answer left", words):
        encode_records(records, tokenizer, kind="pairs", max_length=200, on_bad_rows="error")


def test_too_short_a_max_length_is_an_error_that_names_the_setting(tokenizer):
    rows = load_records("tiny-world", kind="pairs", limit=30)
    words = "(?s)no row is left.*max_prompt_length below max_length.*max_length 20"
    with refused(DataError, "records", "no row is left", words):
        encode_records(rows, tokenizer, kind="pairs", max_length=20)


def test_answers_that_differ_only_beyond_the_cut_are_a_bad_row(tokenizer):
    rows = [normalise(row, "pairs") for row in good(19)] + [
        normalise(
            {"prompt": "Hi", "chosen": "word " * 200 + "red", "rejected": "word " * 200 + "blue"},
            "pairs",
        )
    ]
    _, report = encode_records(rows, tokenizer, kind="pairs", max_length=100)
    assert (
        report.dropped["chosen equals rejected after truncation"]["rows"] == 1 and report.kept == 19
    )


def test_line_breaks_before_an_answer_are_taken_off_and_counted(tmp_path, tokenizer):
    joining = AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")
    joining.add_tokens("\n\n")  # as in Qwen's vocabulary
    path = jsonl(tmp_path, [{"prompt": "Hi", "chosen": "\nHello", "rejected": " What?"}, *good(3)])
    records = load_records(path, kind="pairs")
    assert records[0]["chosen"] == [assistant("Hello")] and records[0]["rejected"] == [
        assistant(" What?")
    ]
    assert "line breaks taken off the beginning of an answer in 1 row." in str(records.report)
    assert encode_records(records, joining, kind="pairs")[1].kept == 4


def test_rows_of_another_kind_are_refused(tokenizer):
    with refused(DataError, "records", "no row is left", "wrong columns"):
        encode_records([normalise(row, "pairs") for row in good(3)], tokenizer, kind="sft")


def test_ten_thousand_tiny_rows_are_encoded_in_seconds(tokenizer):
    rows = [normalise(row, "pairs") for row in good(10000)]
    start = time.process_time()  # processor time: other work on the machine does not count
    encoded, _ = encode_records(rows, tokenizer, kind="pairs")
    assert len(encoded) == 10000 and time.process_time() - start < 30


# ---- labelled answers from pairs


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": RED, "rejected": BLUE},
        {"prompt": "Which colour?", "chosen": RED, "rejected": BLUE},
        {"prompt": RED[:1], "chosen": RED[1:], "rejected": BLUE[1:]},
        {"prompt": RED[:1], "chosen": "Red.", "rejected": "Blue."},
        PLAIN,
        HH,
        SHAREGPT,
        {**PLAIN, "label": True},
        {**PLAIN, "messages": RED},
    ],
    ids=[
        "implicit",
        "ultrafeedback",
        "explicit messages",
        "prompt messages, plain answers",
        "plain",
        "hh",
        "sharegpt",
        "label of the pair",
        "messages beside",
    ],
)
def test_every_layout_of_a_pair_gives_the_same_two_labelled_answers(tmp_path, record):
    records = load_records(jsonl(tmp_path, [record]), kind="binary")
    assert records.rows == [
        {
            "prompt": RED[:1],
            "completion": RED[1:],
            "label": True,
            "group": 0,
            "row": "row 1 of prefs.jsonl, chosen",
        },
        {
            "prompt": RED[:1],
            "completion": BLUE[1:],
            "label": False,
            "group": 0,
            "row": "row 1 of prefs.jsonl, rejected",
        },
    ]


def test_rows_from_pairs_keep_their_place_and_the_account_counts_rows(tmp_path):
    rows = [
        *good(16),
        BAD["chosen equals rejected"],
        *good(2),
        {"prompt": "Hi", "chosen": "\nHello", "rejected": "What?"},
    ]
    records = load_records(jsonl(tmp_path, rows), kind="binary")
    report = records.report
    assert (
        report.read,
        report.kept,
        report.dropped_rows,
        report.bad_rows,
        report.desirable,
        len(records),
    ) == (40, 38, 2, 2, 19, 38)
    assert [row["row"] for row in records][-4:] == [
        f"row {n} of prefs.jsonl, {side}" for n in (19, 20) for side in ("chosen", "rejected")
    ]
    for words in (
        "prefs.jsonl, two rows from each pair: read 40 rows, kept 38, dropped 2 (5.0%)",
        "Desirable: 19 of 38 (50.0%).",
        "row 17 of prefs.jsonl: ",
        "Changed: line breaks taken off the beginning of an answer (counted in pairs) in 1 row.",
    ):
        assert words in str(report)
    assert "<td>desirable</td>" in report._repr_html_() and report.to_dict()["desirable"] == 19
    with pytest.raises(DataError, match="^row 17 of prefs.jsonl: "):
        load_records(tmp_path / "prefs.jsonl", kind="binary", on_bad_rows="error")


def test_limit_skip_and_slices_count_pairs(tmp_path):
    path = jsonl(tmp_path, good(30))

    def numbers(**arguments):
        return [
            int(row["row"].split()[1]) for row in load_records(path, kind="binary", **arguments)
        ]

    assert numbers(limit=3) == [1, 1, 2, 2, 3, 3] and numbers(
        split="train[5:20]", skip=3, limit=1
    ) == [9, 9]


def test_answers_to_one_prompt_have_one_group_wherever_they_stand(tmp_path):
    records = load_records(
        jsonl(tmp_path, [*good(3), {**good(1)[0], "chosen": "One.", "rejected": "None."}]),
        kind="binary",
    )
    assert [row["group"] for row in records] == [0, 0, 1, 1, 2, 2, 0, 0]


def test_a_file_of_labelled_answers_is_read_as_it_stands(tmp_path):
    path = jsonl(
        tmp_path,
        [{"prompt": "Hi", "completion": f"Hello {i}", "label": i % 4 == 0} for i in range(8)],
    )
    records = load_records(path, kind="binary")
    assert (
        len(records) == 8
        and records.report.desirable == 2
        and "group" not in records[0]
        and records[3]["row"] == "row 4 of prefs.jsonl"
    )
    both = jsonl(tmp_path, [{**PLAIN, "completion": "Red.", "label": False}], "both.jsonl")
    assert (
        len(load_records(both, kind="binary")) == 1
        and len(load_records(both, kind="binary", from_pairs=True)) == 2
    )
    with refused(DataError, "records", "no row is left", "do not make a row of kind pairs"):
        load_records(path, kind="binary", from_pairs=True)


def test_one_bad_row_at_the_head_of_a_file_does_not_hide_that_it_holds_pairs(tmp_path):
    assert len(load_records(jsonl(tmp_path, [{"prompt": "Hi"}, *good(19)]), kind="binary")) == 38
    lines = ["{", *map(json.dumps, good(19))]
    assert (
        len(load_records(write_text(tmp_path / "broken.jsonl", "\n".join(lines)), kind="binary"))
        == 38
    )


def test_pairs_to_binary_of_plain_rows_and_of_rows_that_are_no_pairs():
    records = pairs_to_binary([normalise(row, "pairs") for row in ultrafeedback(3)])
    assert [row["row"] for row in records][:2] == [
        "row 1 of the pairs, chosen",
        "row 1 of the pairs, rejected",
    ]
    assert (
        records.report.read,
        records.report.kept,
        records[1]["prompt_id"],
        records[1]["score_rejected"],
    ) == (6, 6, "id0", 3.0)
    with refused(DataError, "columns", "wrong columns", "kind pairs"):
        pairs_to_binary([normalise(smoltalk(1)[0], "sft")])


def test_pairs_to_binary_leaves_what_it_was_given_alone(tmp_path):
    pairs = load_records(jsonl(tmp_path, [*good(19), BAD["empty answer"]]), kind="pairs")
    before = pairs.report.to_dict(), json.dumps(pairs.rows)
    pairs_to_binary(pairs)
    assert (pairs.report.to_dict(), json.dumps(pairs.rows)) == before


def test_named_sets_of_pairs_give_labelled_answers(hub):
    asked, sets = hub
    sets["HuggingFaceH4/ultrafeedback_binarized", "train_prefs"] = ultrafeedback(6)
    sets["Anthropic/hh-rlhf", "test"] = [HH] * 4
    sets["abacusai/MetaMath_DPO_FewShot", "eval"] = metamath(9)
    sets["someone/pairs", "train"] = ultrafeedback(5)
    records = load_records("ultrafeedback_binarized", kind="binary", limit=4)
    pairs = load_records("ultrafeedback_binarized", kind="pairs", limit=4)
    assert records.rows == pairs_to_binary(pairs).rows and records.report.desirable == 4
    assert (
        records[1]["row"]
        == "row 1 of HuggingFaceH4/ultrafeedback_binarized (train_prefs), rejected"
    )
    assert (
        len(load_records("hh-rlhf", kind="binary", split="test")) == 8
        and len(load_records("someone/pairs", kind="binary")) == 10
    )
    math = load_records("metamath_dpo", kind="binary", split="test")
    assert math[4]["prompt"] == [
        user("What is 2 + 1?")
    ] and "last question (counted in pairs) in 9 rows" in str(math.report)


def test_tiny_world_has_labelled_answers_of_its_own_and_gives_others_from_its_pairs():
    own, pairs, made = (
        load_records("tiny-world", kind=kind, limit=40, from_pairs=wanted)
        for kind, wanted in (("binary", None), ("pairs", None), ("binary", True))
    )
    assert (
        len(own) == 40
        and own.rows == load_records("tiny-world", kind="binary", limit=40, from_pairs=False).rows
    )
    assert len(made) == 80 and made.rows == pairs_to_binary(pairs).rows
    assert own.report.desirable == sum(row["label"] for row in own) and made.report.desirable == 40


@pytest.mark.parametrize(
    "name, kind, from_pairs, field, reason, words",
    [
        (
            "smoltalk",
            "binary",
            None,
            "kind",
            "no rows of this kind",
            "no rows of kind binary; it has sft, prompts",
        ),
        ("smoltalk", "binary", True, "kind", "no rows of this kind", "no rows of kind binary"),
        (
            "hh-rlhf",
            "binary",
            False,
            "from_pairs",
            "no labelled answers",
            "has pairs and no labelled answers of its own",
        ),
        (
            "tiny-world",
            "pairs",
            True,
            "from_pairs",
            "rows are not binary",
            "from_pairs is for rows of kind binary, not pairs",
        ),
        (
            "tiny-world",
            "binary",
            "yes",
            "from_pairs",
            "not true, false or null",
            "from_pairs is 'yes'",
        ),
    ],
)
def test_from_pairs_where_it_makes_no_sense_is_a_config_error(
    name, kind, from_pairs, field, reason, words
):
    with refused(ConfigError, field, reason, words):
        load_records(name, kind=kind, from_pairs=from_pairs)


def test_what_is_checked_before_a_run_knows_rows_from_pairs(tmp_path):
    for name in ("ultrafeedback_binarized", "tiny-world", str(jsonl(tmp_path, good(20)))):
        check_dataset(name, kind="binary")
    check_dataset("tiny-world", kind="binary", from_pairs=True)
    with pytest.raises(ConfigError, match="^dataset: hh-rlhf has pairs and no labelled"):
        check_dataset("hh-rlhf", kind="binary", from_pairs=False)
    with pytest.raises(
        ConfigError, match="^validation_dataset: smoltalk has no rows of kind binary"
    ):
        check_dataset("smoltalk", kind="binary", prefix="validation_")
    with pytest.raises(DataError, match="(?s)^dataset: .*chosen equals rejected"):
        check_dataset(str(jsonl(tmp_path, [BAD["chosen equals rejected"]] * 4)), kind="binary")


def test_encoded_rows_from_pairs_carry_label_and_group_and_are_counted(tokenizer):
    made = load_records("tiny-world", kind="binary", limit=40, from_pairs=True)
    rows, report = encode_records(made, tokenizer, kind="binary")
    assert [set(row) for row in rows] == [
        {"prompt_ids", "response_ids", "label", "group"}
    ] * 80 and [row["group"] for row in rows] == [row["group"] for row in made]
    pairs, _ = encode_records(
        load_records("tiny-world", kind="pairs", limit=40), tokenizer, kind="pairs"
    )
    assert [row["response_ids"] for row in rows] == [
        pair[name] for pair in pairs for name in ("chosen_ids", "rejected_ids")
    ]
    assert (report.read, report.kept, report.desirable) == (80, 80, 40)


def test_desirable_rows_are_counted_anew_after_encoding(tokenizer):
    rows = [
        {
            "prompt": [user("Hi")],
            "completion": [assistant("word " * (400 if i == 0 else 1))],
            "label": i < 5,
        }
        for i in range(20)
    ]
    _, report = encode_records(
        rows, tokenizer, kind="binary", max_length=60, min_response_tokens=60
    )
    assert (report.kept, report.desirable) == (19, 4) and "Desirable: 4 of 19 (21.1%)." in str(
        report
    )


def test_a_reward_is_carried_through_and_one_that_is_no_number_is_a_bad_row(tmp_path, tokenizer):
    rows = [
        {"prompt": "Hi", "completion": f"Hello {i}", "label": i % 2 == 0, "reward": i - 5}
        for i in range(19)
    ]
    records = load_records(jsonl(tmp_path, [*rows, {**rows[0], "reward": "high"}]), kind="binary")
    assert records.report.dropped["reward is not a number"][
        "rows"
    ] == 1 and "reward is 'high'" in str(records.report)
    encoded, _ = encode_records(records, tokenizer, kind="binary")
    assert [row["reward"] for row in encoded] == [float(i - 5) for i in range(19)] and all(
        isinstance(row["reward"], float) for row in encoded
    )
    for value in (True, float("nan"), float("inf"), [1]):
        with refused(DataError, "reward", "reward is not a number", "^reward is "):
            normalise({**rows[0], "reward": value}, "binary")


def test_a_group_in_the_data_is_not_taken_for_a_prompts_number():
    assert "group" not in normalise(
        {"prompt": "Hi", "completion": "Hello", "label": True, "group": "news"}, "binary"
    )


# ---- real text


@pytest.mark.skipif(
    not os.environ.get("PREFKIT_REAL_DATA"),
    reason="PREFKIT_REAL_DATA names no folder of real samples",
)
def test_real_pairs_are_all_read_and_every_shortened_row_is_counted(tokenizer):
    path = Path(os.environ["PREFKIT_REAL_DATA"]) / "pairs/dpo_en_demo.jsonl"
    records = load_records(path, kind="pairs", on_bad_rows="error")
    assert len(records) == sum(1 for line in path.open() if line.strip())
    rows, report = encode_records(
        records, tokenizer, kind="pairs", max_length=512, max_prompt_length=256
    )
    assert report.kept + report.dropped_rows == report.read == len(records) and report.kept == len(
        rows
    )
    end = end_of_turn_id(tokenizer)
    cut = sum(row["chosen_ids"][-1] != end or row["rejected_ids"][-1] != end for row in rows)
    assert cut == report.shortened_answers > 0
    for row in rows:
        for name in ("chosen_ids", "rejected_ids"):
            assert 0 < len(row[name]) <= 512 - len(row["prompt_ids"])
    sft, _ = encode_records(
        load_records(path, kind="sft"), tokenizer, kind="sft", max_length=512, max_prompt_length=256
    )
    assert [row["response_ids"] for row in sft] == [row["chosen_ids"] for row in rows]
