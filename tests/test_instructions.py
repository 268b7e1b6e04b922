"""Models asked with instructions, such as to be brief or verbose: what they are asked, what judges
see, and how far lengths follow.
"""

import json
import math
from collections import Counter

import numpy as np
import pytest

from prefkit.core import ConfigError, read_jsonl, shipped, write_text
from prefkit.judging.instructions import (
    instructed,
    length_against,
    read_instructions,
)
from prefkit.runs.config import load_config
from prefkit.runs.fingerprints import check_stage
from prefkit.runs.pipelines import (
    check_evaluation,
    decoding_ways,
    evaluation_prompts,
    prompts_that_fit,
)
from prefkit.runs.runner import open_run, run
from prefkit.stats.intervals import ratio_interval
from prefkit.stats.text_metrics import VERBOSITY

SAMPLING = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8}
ROWS = [{"prompt_id": f"q{n}", "prompt": f"Question {n}?"} for n in range(300)]


def test_an_instruction_is_a_name_a_text_several_texts_or_none():
    given = {"plain": "", "brief": "succinct"}
    given |= {"mine": "Answer in verse.", "two": ["Be A.", "Be B."]}
    assert read_instructions(given) == {
        "plain": (),
        "brief": VERBOSITY["succinct"],
        "mine": ("Answer in verse.",),
        "two": ("Be A.", "Be B."),
    }


@pytest.mark.parametrize(
    "given, field, reason, says",
    [
        ({"x": "sucinct"}, "instructions.x", "unknown", "Did you mean `succinct`"),
        ({"x": 3}, "instructions.x", "wrong type", "a text"),
        ({"x": []}, "instructions.x", "empty", "at least one"),
        ({"x": ["Be A.", " "]}, "instructions.x", "empty", "at least one"),
        ({"x": ["Be A.", 2]}, "instructions.x", "wrong type", "a text"),
        ({"x": " "}, "instructions.x", "empty", "at least one"),
    ],
)
def test_what_is_no_instruction_is_refused_by_name(given, field, reason, says):
    with pytest.raises(ConfigError, match=says) as error:
        read_instructions(given)
    assert (error.value.field, error.value.reason) == (field, reason)


def test_wordings_are_drawn_by_prompt_whoever_else_is_asked():
    words = VERBOSITY["verbose"]
    asked = instructed(ROWS, "verbose", words, seed=1)
    for row, one in zip(ROWS, asked, strict=True):
        assert one == {**row, "prompt": f"{one['instruction_text']} {row['prompt']}"} | {
            "instruction_text": one["instruction_text"]
        }
    used = Counter(one["instruction_text"] for one in asked)
    assert set(used) == set(words) and min(used.values()) > 35
    assert instructed(ROWS[7:9], "verbose", words, seed=1) == asked[7:9]
    assert instructed(ROWS, "verbose", words, seed=2) != asked
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "Why?"}]
    [one] = instructed([{"prompt_id": "a", "prompt": chat}], "mine", ("In verse.",), seed=0)
    assert [turn["content"] for turn in one["prompt"]] == ["S", "In verse. Why?"]
    assert instructed(ROWS[:2], "plain", (), seed=0) == ROWS[:2]


def test_every_decoding_and_limit_is_asked_with_every_instruction():
    given = {"brief": "succinct", "plain": ""}
    ways = decoding_ways({"a": {"temperature": 0.0}, "b": "beam"}, [8], 0, given, **SAMPLING)
    assert [(way["instruction"], way["decoding"], way["token_limit"]) for way in ways] == [
        (name, decoding, 8) for name in given for decoding in "ab"
    ]
    assert decoding_ways({}, [], 0, {}, **SAMPLING) == decoding_ways({}, [], 0, **SAMPLING)


def test_a_bad_instruction_is_refused_before_anything_runs():
    good = {
        "models": {"a": "data/tiny/base"},
        "references": [],
        "judges": {"gold": {}},
        "dataset": "tiny-world",
        "split": "test",
        "prompts": 4,
        "batch_size": 4,
        "seed": 0,
        "decodings": {},
        "token_limits": [],
        **SAMPLING,
    }
    assert len(check_evaluation(**good, instructions={"x": "verbose", "y": ""})) == 2
    with pytest.raises(ConfigError, match="Did you mean `verbose`"):
        check_evaluation(**good, instructions={"x": "verbos"})


def test_a_prompt_that_an_instruction_makes_too_long_is_a_bad_row():
    asked = evaluation_prompts("tiny-world", "test", 40)
    models, limits = {"a": "data/tiny/base"}, [{"max_new_tokens": 8}]
    far = "so " * 3000 + "be brief."
    some = {"plain": (), "long": ("Be brief.",) * 30 + (far,)}
    fits = prompts_that_fit(asked, models, limits, "", "drop", some, 5)
    long = {
        row["prompt_id"]
        for row in instructed(asked.rows, "long", some["long"], 5)
        if row["instruction_text"] == far
    }
    assert long and {row["prompt_id"] for row in asked} - {row["prompt_id"] for row in fits} == long


def test_lengths_are_set_against_those_under_the_first_instruction():
    rng = np.random.default_rng(0)
    first = [{"answer": "x" * n} for n in rng.integers(1, 60, 50)]
    longer = [{"answer": one["answer"] * 2 + "xx"} for one in first]
    told = length_against(longer, first)
    counts = [[len(row["answer"]) for row in rows] for rows in (longer, first)]
    assert told["characters"] == pytest.approx(np.mean(counts[0]))
    ratio = tuple(told[name] for name in ("ratio", "ratio_low", "ratio_high"))
    assert ratio == pytest.approx(ratio_interval(*counts))
    assert 2 < told["ratio"] < 2.5 and told["ratio_low"] > 1.5
    empty = length_against(longer, [{"answer": ""}] * 50)
    assert empty["ratio"] is None and not math.isnan(empty["characters"])


@pytest.mark.parametrize("name, stage", [("l4/orpo", "verbosity"), ("tiny/verbosity", "evaluate")])
def test_configs_ask_to_be_succinct_and_to_be_verbose(name, stage):
    config = load_config(shipped(f"data/configs/{name}.yaml"))
    [found] = [one for one in config.stages if one.name == stage]
    check_stage(found)
    assert (
        found.parameters["instructions"].items()
        >= {
            "succinct": "succinct",
            "verbose": "verbose",
        }.items()
    )


@pytest.mark.slow
def test_lengths_and_win_rates_are_told_by_instruction_and_judges_see_the_question(tmp_path):
    stages = {
        "evaluate": {
            "pipeline": "evaluate",
            "parameters": {
                "models": {"base": "data/tiny/base", "instruct": "data/tiny/instruct"},
                "instructions": {"plain": "", "succinct": "succinct", "verbose": "verbose"},
                "prompts": 12,
                "temperature": 0.0,
                "max_new_tokens": 24,
            },
        }
    }
    config = write_text(tmp_path / "a.yaml", json.dumps({"experiment": "a", "stages": stages}))
    folder = run(config, (), tmp_path / "runs", "quiet")["evaluate"]
    rows, found = read_jsonl(folder / "generations.jsonl"), open_run(folder).info["metrics"]
    questions = {row["prompt"] for row in evaluation_prompts("tiny-world", "test", 12)}
    assert {row["prompt"] for row in rows} == questions  # and so gold can judge them
    told = {name: [r for r in rows if r["instruction"] == name] for name in stages_of(found)}
    assert all(row["instruction_text"] in VERBOSITY["verbose"] for row in told["verbose"])
    assert not any("instruction_text" in row for row in told["plain"])
    assert [row["answer"] for row in told["plain"]] != [row["answer"] for row in told["verbose"]]
    for line in found["instructions"]:
        mine = [r for r in told[line["instruction"]] if r["model"] == line["model"]]
        first = [r for r in told["plain"] if r["model"] == line["model"]]
        assert line["against"] == "plain" and line | length_against(mine, first) == line
    assert {(row["instruction"], row["judge"]) for row in found["win_rates"]} == {
        (name, judge) for name in told for judge in ("gold", "second")
    }
    asked = read_jsonl(next((folder / "generations").glob("*.jsonl")))
    assert len(asked) == 12


def stages_of(found):
    "The instructions of an evaluation's scores."
    return dict.fromkeys(row["instruction"] for row in found["scores"])
