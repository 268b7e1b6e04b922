"""Countdown: the verifier against oracles from outside, hostile and real answers; solver,
generator, worked solutions, shaped reward.
"""

import ast
import json
import os
import random
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

from prefkit.core import DataError, project_root
from prefkit.data.countdown import (
    REASONS,
    SHAPED_WEIGHTS,
    STRATEGIES,
    answer_text,
    countdown_records,
    problems,
    prompt_text,
    random_expression,
    read_prompt,
    shaped_reward,
    solve,
    split_of,
    steps,
    tiny_problems,
    verify,
    worked_solution,
)
from prefkit.data.splits import SPLITS

NUMS, TARGET = [79, 17, 60], 36


def tag(text):
    return f"<answer>{text}</answer>"


def reason(answer, nums=NUMS, target=TARGET):
    return verify(tag(answer), nums, target).reason


# ---- an oracle: Python's own grammar, with Fractions for the numbers


def oracle(expression):
    "The exact value of a well-formed expression by Python's parser."

    def value(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        left, right = value(node.left), value(node.right)
        return {
            ast.Add: lambda: left + right,
            ast.Sub: lambda: left - right,
            ast.Mult: lambda: left * right,
            ast.Div: lambda: left / right,
        }[type(node.op)]()

    return value(ast.parse(expression, mode="eval").body)


blank = st.sampled_from(["", " ", "  ", "\n", "\t"])


def joined(part):
    return st.builds(
        lambda a, s, b, x, y: f"{a}{x}{s}{y}{b}", part, st.sampled_from("+-*/"), part, blank, blank
    )


expressions = st.recursive(
    st.integers(0, 120).map(str),
    lambda part: joined(part) | part.map(lambda text: f"({text})"),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(expressions)
def test_every_expression_has_the_value_that_pythons_parser_gives_it(expression):
    nums = [int(token) for token in "".join(c if c.isdigit() else " " for c in expression).split()]
    try:
        value = oracle(expression.replace("\n", " ").replace("\t", " ").strip())
    except ZeroDivisionError:
        value = None
    verdict = verify(tag(expression), nums[::-1], 24)
    assert verdict.value == value and verdict.correct == (value == 24)
    assert verdict.reason == (
        "division by zero" if value is None else "correct" if value == 24 else "wrong value"
    )
    if value is not None:
        assert verify(tag(expression), nums, value).correct
    assert verify(tag(expression), [*nums, 1], 24).reason == "number left out"
    assert verify(tag(expression), nums[1:], 24).reason in (
        "number used too often",
        "number that was not given",
    )


pieces = st.sampled_from(
    [
        *"0123456789+-*/()=. \n×÷−²٣１[]{}$\\^_<>&;",
        "<answer>",
        "</answer>",
        "<think>",
        "**",
        "79",
        "17",
        "60",
        "1e9",
        "import",
        "ans",
        "\u200b",
        "\ud800",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(pieces, max_size=60).map("".join) | st.text(max_size=200), st.booleans())
def test_no_text_makes_it_raise_and_each_refusal_is_quick_and_named(text, tagged):
    start = time.perf_counter()
    verdict, reward = (
        verify(tag(text) if tagged else text, NUMS, TARGET),
        shaped_reward(tag(text) if tagged else text, NUMS, TARGET),
    )
    assert time.perf_counter() - start < 0.05
    assert (
        verdict.reason in REASONS
        and verdict.correct == (verdict.reason == "correct")
        and -0.5 <= reward.total <= 1
    )
    if verdict.correct:
        assert oracle(verdict.expression.replace("\n", " ")) == TARGET


def test_exact_arithmetic_where_floats_are_off():
    for _ in range(3):
        assert verify(tag("(1 / 49) * 49 * 1"), [1, 49, 49, 1], 1).correct
    assert 1 / 49 * 49 != 1
    assert (
        verify(tag("8 / (3 - 8 / 3)"), [3, 3, 8, 8], 24).correct
        and not verify(tag("1000000000000 / 1"), [10**12, 1], 10**12 - 1).correct
    )


# ---- one reason for each fault

FAULTS = {
    "79 − 60 + 17": "typographic sign",
    "(40 ÷ 20)": "typographic sign",
    "21 × 1": "typographic sign",
    "79 – 60": "typographic sign",
    "79\u00a0- 60": "typographic sign",
    "79 - 60 + 17 = 36": "equals sign",
    "36 = 79 - 60 + 17": "equals sign",
    "=": "equals sign",
    "-17 + 79": "unary sign",
    "79 + -17": "unary sign",
    "--5": "unary sign",
    "+5": "unary sign",
    "79 - -17": "unary sign",
    "79 - (-17)": "unary sign",
    "٧٩ + 1": "digit that is not ASCII",
    "７９ - 60": "digit that is not ASCII",
    "2² + 1": "digit that is not ASCII",
    "½": "digit that is not ASCII",
    "Ⅻ": "digit that is not ASCII",
    "1e9": "number that is not written as a whole number",
    "7.5 + 1": "number that is not written as a whole number",
    "1_000": "number that is not written as a whole number",
    "0x1F": "number that is not written as a whole number",
    "0x15": "number that is not written as a whole number",
    "1,000": "number that is not written as a whole number",
    "079 - 60 + 17": "leading zero",
    "00": "leading zero",
    "9**9**9": "power",
    "9^9": "power",
    "(9)**2": "power",
    "9 // 3": "operand missing",
    "**79 - 60 + 17**": "markdown or LaTeX",
    "$79 - 60 + 17$": "markdown or LaTeX",
    r"\boxed{79}": "markdown or LaTeX",
    "79 \\times 17": "markdown or LaTeX",
    "`79 - 60 + 17`": "markdown or LaTeX",
    "79 - 60 + 17.": "full stop or other punctuation",
    "79 - 60; 17": "full stop or other punctuation",
    "__import__('os').system('true')": "words or names",
    "x + 17": "words or names",
    "seventy-nine": "words or names",
    "79 x 17": "words or names",
    "lambda: 0": "words or names",
    "<b>79 - 60 + 17</b>": "tag inside the answer",
    "79 - 60 + 17<|im_end|>": "tag inside the answer",
    "79 < 60": "unknown sign",
    "79 % 60": "unknown sign",
    "[79 - 60] + 17": "unknown sign",
    "79 - 60 + 17 ✅": "unknown sign",
    "79 60": "operator missing",
    "79(17)": "operator missing",
    "(79)(17)": "operator missing",
    "79 (+ 17)": "operator missing",
    "7 9 - 60 + 17": "operator missing",
    "79 +": "operand missing",
    "()": "operand missing",
    "* 79": "operand missing",
    "79 * / 17": "operand missing",
    "(79 +) 17": "operand missing",
    "(79 - 60 + 17": "brackets do not match",
    "79 - 60) + 17": "brackets do not match",
    ")(": "brackets do not match",
    "(" * 900: "brackets do not match",
    "": "empty answer",
    " \n ": "empty answer",
    "(" * 100_000: "answer too long",
    "9" * 5000: "answer too long",
    "1+" * 600 + "1": "answer too long",
    "9" * 900: "number too long",
    "1" + "0" * 12: "number too long",
    "79 - 60 + 18": "number that was not given",
    "6 * 6": "number that was not given",
    "36": "number that was not given",
    "79 - 60 + 17 + 17": "number used too often",
    "79 - 60": "number left out",
    "79": "number left out",
    "79 / (17 - 60 / 60)": "number used too often",
    "(79 + 60) * 17": "wrong value",
    "79 - 60 + 17": "correct",
    "((79)) -\n60 + 17": "correct",
}


@pytest.mark.parametrize("answer", FAULTS, ids=lambda text: repr(text[:24]))
def test_every_fault_is_refused_with_its_own_reason_in_milliseconds(answer):
    start = time.perf_counter()
    verdict = verify(tag(answer), NUMS, TARGET)
    assert time.perf_counter() - start < 0.02
    assert (
        verdict.reason == FAULTS[answer]
        and verdict.reason in REASONS
        and verdict.correct == (verdict.reason == "correct")
    )
    assert verdict.expression is None or len(verdict.expression) <= 1000


def test_every_reason_occurs_and_no_other():
    others = {
        verify(text, NUMS, TARGET).reason for text in ("79 - 60 + 17", "<answer>79 - 60", None)
    } | {reason("5 / (3 - 3)", [5, 3, 3], 1)}
    assert set(REASONS) == set(FAULTS.values()) | others


@pytest.mark.parametrize(
    "completion, expected",
    [
        ("79 - 60 + 17", "no answer tag"),
        ("", "no answer tag"),
        ("79 - 60 + 17</answer>", "no answer tag"),
        ("</answer><answer>", "answer tag not closed"),
        ("<Answer>79 - 60 + 17</Answer>", "no answer tag"),
        ("< answer>79 - 60 + 17</ answer>", "no answer tag"),
        ("<answer>79 - 60 + 17", "answer tag not closed"),
        ("<answer>79 - 60 + 17</answer", "answer tag not closed"),
        (None, "not a text"),
        (b"<answer>1</answer>", "not a text"),
        (36, "not a text"),
        (tag("79") + tag("79 - 60 + 17"), "correct"),
        (tag("79 - 60 + 17") + tag("79"), "number left out"),
        (tag("79 - 60 + 17") + "\nor <answer> 1 + ", "correct"),
        ("I write <answer> tags. " + tag("79 - 60 + 17"), "correct"),
        (tag(tag("79 - 60 + 17")), "correct"),
        (tag("79 - 60 + 17") + "</answer>", "correct"),
        (tag("\n79 - 60 + 17\n") + "<|im_end|>", "correct"),
        ("<think>" + tag("79 - 60 + 17") + "</think>", "correct"),
        ("<answer>" * 20_000 + "</answer>" * 20_000, "empty answer"),
        ("<answer>" * 100_000, "answer tag not closed"),
    ],
)
def test_the_last_complete_tag_counts(completion, expected):
    start = time.perf_counter()
    assert verify(completion, NUMS, TARGET).reason == expected
    assert time.perf_counter() - start < 0.05


def test_verdict_says_what_was_read_and_what_it_is_worth():
    verdict = verify("so <answer> 79 / 60 + 17 </answer>", NUMS, TARGET)
    assert (verdict.expression, verdict.value, verdict.correct) == (
        "79 / 60 + 17",
        Fraction(1099, 60),
        False,
    )
    with pytest.raises(AttributeError):
        verdict.correct = True
    assert (
        verify(tag("46 - 46 / 46"), [46, 46, 46], 45).correct
        and verify(tag("46 - 46"), [46, 46, 46], 0).reason == "number left out"
    )


@pytest.mark.skipif(
    not os.environ.get("PREFKIT_REAL_DATA"),
    reason="PREFKIT_REAL_DATA names no folder of real samples",
)
@pytest.mark.parametrize("name, rows", [("generations_base_8b", 93), ("generations_sft_lora", 77)])
def test_real_generations_have_the_verdicts_that_others_gave_them(name, rows):
    records = [
        json.loads(line)
        for line in (Path(os.environ["PREFKIT_REAL_DATA"]) / f"countdown/{name}.jsonl").open(
            encoding="utf-8"
        )
    ]
    verdicts = [
        verify(record["generation"], record["nums"], record["target"]) for record in records
    ]
    assert len(records) == rows and [verdict.correct for verdict in verdicts] == [
        record["correct"] for record in records
    ]
    assert [verdict.expression for verdict in verdicts] == [
        record["extracted_expr"].strip() for record in records
    ]
    for record, verdict in zip(records, verdicts):
        assert (record["error"] == "wrong_value") == (verdict.reason == "wrong value")
        # the first sign that has no place in an expression
        if record["error"] == "invalid_expression":
            first = next(sign for sign in verdict.expression if sign not in "0123456789+-*/() ")
            assert verdict.reason == {"=": "equals sign"}.get(first, "typographic sign")
        assert (
            shaped_reward(record["generation"], record["nums"], record["target"]).total == 1
        ) == verdict.correct


@pytest.mark.skipif(
    not os.environ.get("PREFKIT_REAL_DATA"),
    reason="PREFKIT_REAL_DATA names no folder of real samples",
)
def test_real_puzzles_are_solved_and_their_gold_expressions_verified():
    records = [
        json.loads(line)
        for line in (Path(os.environ["PREFKIT_REAL_DATA"]) / "countdown/puzzles.jsonl").open(
            encoding="utf-8"
        )
    ]
    assert len(records) == 200
    for record in records:
        assert verify(tag(record["gold_expr"]), record["nums"], record["target"]).correct
        assert verify(
            tag(solve(record["nums"], record["target"])[0]), record["nums"], record["target"]
        ).correct


# ---- solver


def test_solver_finds_what_brute_force_over_all_texts_finds():
    rng, solvable = random.Random(0), 0
    for _ in range(40):
        nums, target = [rng.randint(1, 9) for _ in range(3)], rng.randint(0, 30)
        a = [
            [nums[i] for i in order]
            for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        ]
        texts = [
            form.format(x, s, y, t, z)
            for x, y, z in a
            for s in "+-*/"
            for t in "+-*/"
            for form in ("({} {} {}) {} {}", "{} {} ({} {} {})")
        ]

        def worth(text):
            try:
                return oracle(text)
            except ZeroDivisionError:
                return None

        possible = any(worth(text) == target for text in texts)
        found = solve(nums, target, limit=100)
        assert (
            bool(found) == possible
            and len(set(found)) == len(found)
            and all(verify(tag(text), nums, target).correct for text in found)
        )
        solvable += possible
    assert 5 < solvable < 40


def test_solver_needs_fractions_obeys_its_limit_and_refuses_what_it_cannot_take():
    assert (
        solve([3, 3, 8, 8], 24) == ["8 / (3 - 8 / 3)"]
        and solve([1, 1], 5) == []
        and solve([7], 7) == ["7"]
        and solve([0, 3], 3)
    )
    assert len(solve([1, 2, 3, 4], 24, limit=5)) == 5 and solve([2, 3], 6, limit=9) == ["3 * 2"]
    for nums, reason, words in (
        ([], "not 1 to 6 numbers", "0 numbers"),
        ([1] * 7, "not 1 to 6 numbers", "7 numbers"),
        ([-1, 2], "not whole numbers from 0", "not negative"),
        ([1.5], "not whole numbers from 0", "whole"),
    ):
        with pytest.raises(DataError, match=words) as error:
            solve(nums, 1)
        assert (error.value.field, error.value.reason) == ("nums", reason)


# ---- generator


def test_tiny_puzzles_keep_their_promises():
    every = {split: tiny_problems(split) for split in SPLITS}
    keys = [(nums, target) for split in SPLITS for nums, target, _ in every[split]]
    assert len(keys) == len(set(keys)) and [len(every[split]) for split in SPLITS] == [
        2847,
        183,
        563,
    ]
    for split, rows in every.items():
        for nums, target, text in rows:
            assert (
                len(nums) == 3
                and all(1 <= n <= 20 for n in nums)
                and 10 <= target <= 60
                and target not in nums
                and split_of(nums, target) == split
            )
            assert verify(tag(text), nums, target).correct
            for step in steps(text):
                assert step.sign in "+-" and step.value > 0


@pytest.mark.parametrize("size", ["tiny", "public"])
def test_splits_share_no_puzzle_whatever_the_seed(size):
    found = {
        split: {
            (*sorted(p["nums"]), p["target"])
            for seed in (0, 1, 2)
            for p in problems(split, 110, seed, size)
        }
        for split in SPLITS
    }
    assert not any(
        found[a] & found[b]
        for a, b in (("train", "validation"), ("train", "test"), ("validation", "test"))
    )
    assert split_of([3, 7, 5], 26) == split_of([7, 5, 3], 26)


@pytest.mark.parametrize("size", ["tiny", "public"])
def test_problems_are_the_same_for_a_seed_and_begin_alike_for_any_number(size):
    assert (
        problems("train", 50, 3, size)
        == problems("train", 80, 3, size)[:50]
        != problems("train", 50, 4, size)
    )
    kept = problems("train", 5, 3, size)
    kept[0]["nums"].append(1)
    assert problems("train", 5, 3, size) != kept  # what a caller does to them does no harm


def test_public_puzzles_are_as_in_the_public_set_and_can_be_solved():
    rows = problems("train", 400, size="public")
    assert {len(p["nums"]) for p in rows} == {3, 4} and 150 < sum(
        len(p["nums"]) == 3 for p in rows
    ) < 320
    assert all(1 <= n <= 99 for p in rows for n in p["nums"]) and all(
        10 <= p["target"] <= 100 and type(p["target"]) is int for p in rows
    )
    assert (
        all(verify(tag(p["solution"]), p["nums"], p["target"]).correct for p in rows)
        and len({(*sorted(p["nums"]), p["target"]) for p in rows}) == 400
    )


def test_ten_thousand_tiny_puzzles_take_about_a_second_and_come_again_only_in_train():
    start = time.process_time()
    rows = problems("train", 10_000)
    assert time.process_time() - start < 2
    assert (
        len({(*sorted(p["nums"]), p["target"]) for p in rows})
        == len({(*sorted(p["nums"]), p["target"]) for p in rows[:2847]})
        == 2847
    )
    assert len(problems("test", 563)) == 563
    for arguments, field, words in (
        (("test", 564), "n", "has 563 puzzles, 564 are wanted"),
        (("dev", 1), "split", "countdown has the splits train, validation, test, not 'dev'"),
        (("train", 1, 0, "big"), "size", "sizes tiny, public, not 'big'"),
    ):
        with pytest.raises(DataError, match=words) as error:
            problems(*arguments)
        assert error.value.field == field


# ---- prompts and records


def test_prompts_are_read_back():
    for p in [*problems("train", 50), *problems("train", 50, size="public")]:
        assert (
            read_prompt(prompt_text(p["nums"], p["target"], "tiny"))
            == read_prompt(prompt_text(p["nums"], p["target"]))
            == (p["nums"], p["target"])
        )
    assert prompt_text([3, 7, 5], 26, "tiny") == "Make 26 from 3, 7 and 5."
    assert prompt_text((79, 17, 60), 36).startswith(
        "Using the numbers [79, 17, 60], create an equation that equals 36. You can use"
    ) and "(1 + 2) / 3" in prompt_text([1], 1)
    with pytest.raises(DataError, match="not a countdown puzzle") as error:
        read_prompt("What colour is the fox?")
    assert error.value.field == "prompt"


@pytest.mark.parametrize("style, most, mean", [("answer", 20, 17), ("worked", 40, 36)])
def test_tiny_records_are_short_and_right(style, most, mean):
    tokenizer = AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")
    records = countdown_records("sft", "train", 2847, styles=(style,))
    lengths = []
    for record in records:
        user, assistant = (turn["content"] for turn in record["messages"])
        assert (
            verify(assistant, record["nums"], record["target"]).correct
            and read_prompt(user) == (record["nums"], record["target"])
            and record["style"] == style
        )
        assert len(tokenizer(user)["input_ids"]) <= 18
        lengths.append(len(tokenizer(assistant)["input_ids"]) + 1)  # and the end of the turn
    assert max(lengths) <= most and sum(lengths) / len(lengths) < mean


def test_records_of_both_kinds_ask_the_same_puzzles_and_wrong_arguments_are_refused():
    for size in ("tiny", "public"):
        asked, shown = (countdown_records(kind, "test", 60, 5, size) for kind in ("prompts", "sft"))
        assert [r["prompt"] for r in asked] == [r["messages"][0]["content"] for r in shown] and set(
            asked[0]
        ) == {"prompt", "prompt_id", "nums", "target"}
        assert {r["style"] for r in shown} == ({"answer"} if size == "tiny" else set(STRATEGIES))
    both = countdown_records("sft", "train", 200, styles=("answer", "worked"))
    assert 60 < Counter(r["style"] for r in both)["worked"] < 140 and both == countdown_records(
        "sft", "train", 200, styles=("answer", "worked")
    )
    for arguments, field, words in (
        (dict(kind="pairs"), "kind", "sft and prompts, not 'pairs'"),
        (dict(styles=("verbose",)), "style", "styles are answer, worked, trying"),
        (dict(split="dev"), "split", "splits"),
    ):
        with pytest.raises(DataError, match=words) as error:
            countdown_records(**{"kind": "sft", "split": "train", "n": 2, **arguments})
        assert error.value.field == field


# ---- worked solutions


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_worked_solution_is_right_in_its_answer_and_in_each_sum_it_says(strategy):
    for number, p in enumerate(problems("train", 120, size="public")):
        text = worked_solution(
            p["nums"],
            p["target"],
            strategy,
            random.Random(number),
            p["solution"] if number % 2 else None,
        )
        assert (
            verify(text, p["nums"], p["target"]).correct
            and text.startswith("<think>\n")
            and text.count("<answer>") == 1
            and "\n</think>\n<answer>" in text
        )
        for line in (
            text.split("</think>")[0]
            .replace(". ", "\n")
            .replace(", ", "\n")
            .replace(": ", "\n")
            .splitlines()
        ):
            left, equals, right = line.partition(" = ")
            said = left[next((i for i, sign in enumerate(left) if sign in "0123456789("), 0) :]
            if equals and said:
                assert signed(said) == signed(
                    right.split(" will")[0].split(" instead")[0].rstrip(".")
                )


def signed(text):  # intermediate values may be negative or fractions: (-2), 7/3
    def value(node):
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        left, right = value(node.left), value(node.right)
        return (
            left + right
            if isinstance(node.op, ast.Add)
            else left - right
            if isinstance(node.op, ast.Sub)
            else left * right
            if isinstance(node.op, ast.Mult)
            else left / right
        )

    return value(ast.parse(text.strip(), mode="eval").body)


def test_strategies_show_what_they_are_named_for():
    texts = {
        s: [
            worked_solution(p["nums"], p["target"], s, random.Random(1), p["solution"])
            for p in problems("test", 60, size="public")
        ]
        for s in STRATEGIES
    }
    shares = {
        s: sum(word in text for text in texts[s]) / 60
        for s, word in (
            ("trying", "That is not"),
            ("verifying", "so it is wrong"),
            ("backtracking", "Go back"),
            ("subgoals", "still to be made"),
        )
    }
    assert (
        min(shares.values()) > 0.9
        and len(
            {worked_solution([26, 92, 12, 3], 62, "trying", random.Random(i)) for i in range(5)}
        )
        > 1
    )
    with pytest.raises(DataError, match="strategies are trying") as error:
        worked_solution(NUMS, TARGET, "guessing", random.Random(0))
    assert error.value.field == "strategy"
    with pytest.raises(DataError, match="cannot be made") as error:
        worked_solution([1, 1], 50, "trying", random.Random(0))
    assert error.value.reason == "no solution"
    with pytest.raises(DataError, match="not an expression") as error:
        steps("1 +")
    assert error.value.reason == "not an expression"


# ---- shaped reward


def shaped(text, nums=NUMS, target=TARGET):
    return shaped_reward(text, nums, target)


@pytest.mark.parametrize(
    "completion, terms",
    [
        (
            tag("79 - 60 + 17"),
            dict(
                artifacts=0,
                phrases=0.1,
                operators=0.1,
                numbers=0.2,
                all_once=0.2,
                format=0.1,
                closeness=0.3,
            ),
        ),
        (
            "79 - 60 + 17",
            dict(phrases=0.1, operators=0.1, numbers=0.2, all_once=0.2, closeness=0.3),
        ),
        (
            tag("79 - 60 + 18"),
            dict(
                phrases=0.1, operators=0.1, numbers=0.2 * 2 / 3, format=0.1, closeness=0.3 * 35 / 36
            ),
        ),
        (
            tag("60 - 79 + 17"),
            dict(phrases=0.1, operators=0.1, numbers=0.2, all_once=0.2, format=0.1),
        ),
        (tag("79 + 17"), dict(phrases=0.1, operators=0.1, numbers=0.2 * 2 / 3, format=0.1)),
        (tag("36"), dict(phrases=0.1, format=0.1, closeness=0.3)),
        (tag("79 − 60 + 17"), dict(phrases=0.1, numbers=0.2, format=0.1)),
        (tag("take 79"), dict(numbers=0.2 / 3, format=0.1)),
        (
            "<b>" + tag("79 - 60 + 17") + "</b>",
            dict(
                artifacts=-0.5,
                phrases=0.1,
                operators=0.1,
                numbers=0.2,
                all_once=0.2,
                format=0.1,
                closeness=0.3,
            ),
        ),
        (
            "&nbsp;",
            dict(
                artifacts=-0.5,
            ),
        ),
        ("<think>I try 79 - 60 + 17.</think>", {}),
        ("", {}),
        (None, {}),
        (tag("79 / (17 - 17) * 60"), dict(phrases=0.1, operators=0.1, numbers=0.2, format=0.1)),
    ],
)
def test_each_term_by_hand(completion, terms):
    reward = shaped(completion)
    expected = {name: terms.get(name, 0) for name in SHAPED_WEIGHTS}
    assert {name: pytest.approx(value, abs=1e-12) for name, value in expected.items()} == {
        name: value for name, value in reward.to_dict().items() if name != "total"
    }
    assert reward.total == pytest.approx(sum(expected.values()), abs=1e-8)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6))
def test_a_perfect_answer_has_one_and_no_other_has(seed):
    rng = random.Random(seed)
    nums = [rng.randint(1, 99) for _ in range(rng.choice((3, 4)))]
    text, value = random_expression(nums, rng)
    assert shaped(tag(text), nums, value).total == 1
    for other, target in (
        (text, value + 1),
        (text, value - Fraction(1, 3)),
        (text + " + 1", value + 1),
        (text.replace(" + ", " − "), value),
    ):
        assert (shaped(tag(other), nums, target).total == 1) == verify(
            tag(other), nums, target
        ).correct


def test_nearer_is_better_and_the_sum_of_the_weights_is_one():
    totals = [shaped(tag("79 - 60 + 17"), NUMS, target).total for target in (36, 37, 40, 60, 90)]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 5
    assert sum(
        weight for name, weight in SHAPED_WEIGHTS.items() if name != "artifacts"
    ) == pytest.approx(1)
    # no float is too small for it
    assert (
        shaped(tag("9" * 5000)).total < 0.3
        and shaped(tag(" * ".join(["999999999999"] * 60))).closeness == 0
    )


def test_answer_text_of_the_public_size_has_blanks():
    problem = {"nums": [3, 7, 5], "target": 26, "solution": "7 * 3 + 5"}
    rng = random.Random(0)
    assert (
        answer_text(problem, "worked", rng, "public")
        == "7 * 3 = 21, 21 + 5 = 26. <answer>7 * 3 + 5</answer>"
    )
    assert (
        answer_text(problem, "worked", rng) == "7*3=21,21+5=26.<answer>7*3+5</answer>"
        and answer_text(problem, "answer", rng) == "<answer>7*3+5</answer>"
    )


def test_noisy_demonstrations_miss_as_often_as_asked_and_leave_the_others_as_they_are():
    noisy = countdown_records("sft", "train", 2000, right=0.6)
    verdicts = [verify(r["messages"][1]["content"], r["nums"], r["target"]) for r in noisy]
    assert abs(sum(v.correct for v in verdicts) / 2000 - 0.6) < 0.04
    assert all(
        v.correct == (r["style"] != "missed") and (v.correct or v.reason == "wrong value")
        for v, r in zip(verdicts, noisy)
    )
    assert noisy == countdown_records("sft", "train", 2000, right=0.6) and [
        r["nums"] for r in noisy
    ] == [r["nums"] for r in countdown_records("sft", "train", 2000)]
