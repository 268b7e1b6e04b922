"""Bad input, odd files and broken machines, kind by kind: each is refused in a sentence that names
it, or outlived. Runs that are killed and robbed of files stand in tests/test_damaged.py.
"""

import json
import math
import os
import re
import signal
from contextlib import contextmanager
from uuid import uuid4

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from helpers.toys import write_run, write_toy
from helpers.tools import tool
from prefkit.cli import app
from prefkit.core import (
    ConfigError,
    DataError,
    PrefkitError,
    project_root,
    resolve_path,
    write_json,
    write_text,
)
from prefkit.data.records import load_records
from prefkit.judging.judges import read_verdict
from prefkit.judging.rewards import REWARDS, register_reward, reward_source
from prefkit.judging.served import MOST_LEVELS, JsonLinesFile, Reply, Secret, _is_deep, retry_after
from prefkit.report.faults import fault_count, fault_table
from prefkit.runs.config import load_config, read_yaml
from prefkit.runs.fingerprints import code_fingerprint, fingerprints
from prefkit.runs.pipelines import check_questions, encode_once
from prefkit.runs.runner import (
    files_of_run,
    folder_state,
    is_done,
    open_run,
    prepare,
    to_do,
)
from prefkit.runs.stage import as_written, way_out
from prefkit.runs.study_config import load_study
from prefkit.stats.rankings import bradley_terry
from prefkit.stats.win_rate import preference_rate, score_difference, win_rate
from prefkit.train.saves import with_reference
from prefkit.train.settings import TrainSettings

BASE = "data/tiny/base"


@contextmanager
def within(seconds: int):
    "What takes longer is a failure, not a test that hangs."

    def late(*_):
        raise TimeoutError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- YAML that is no config

NINE = ", ".join(["*{0}"] * 9)
DEEP = 1500
BAD_YAML = {
    "no whole number": "x: !!int abc",
    "no number": "x: !!float abc",
    "no truth": "x: !!bool maybe",
    "no date": "x: !!timestamp abc",
    "a date by its tag": "x: !!timestamp 2020-01-01",
    "bytes": "x: !!binary aGVsbG8=",
    "a set": "x: !!set {a, b}",
    "an ordered map": "x: !!omap [a: 1]",
    "5,000 digits": f"x: {'9' * 5000}",
    "5,000 digits in a key": f"{'9' * 5000}: x\n",
    "50,000 digits of sixteen": f"x: 0x{'f' * 50_000}",
    "a clock of 3,000 parts": f"x: 1{':59' * 3000}",
    "deep brackets": f"x: {'[' * DEEP}{']' * DEEP}",
    "deep braces": f"x: {'{a: ' * DEEP}1{'}' * DEEP}",
    "open brackets": f"x: {'[' * DEEP}",
    "deep lines": "\n".join(f"{' ' * i}a{i}:" for i in range(DEEP)),
    "an anchor in itself": "x: &a [*a]",
    "an anchor in itself, as a map": "x: &a {b: *a}",
    "an anchor merged into itself": "x: &a\n  <<: *a\n  b: 1",
    "a bomb of lists": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{NINE.format(f'a{i - 1}')}]\n" for i in range(1, 9)),
    "a bomb of maps": "a0: &a0 {k: 1}\n"
    + "".join(
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 9)
    ),
    "a bomb of merges": "a0: &a0 {k: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{NINE.format(f'a{i - 1}')}]}}\n" for i in range(1, 9)),
    "half a character": 'x: "\\uD800"',
    "a zero byte": 'x: "a\\0b"',
    "code": "x: !!python/object/apply:os.getcwd []",
}


@pytest.mark.parametrize("what", BAD_YAML)
def test_yaml_that_is_no_plain_value_is_refused_soon(what):
    with within(30), pytest.raises(ConfigError, match="^some.yaml") as error:
        read_yaml(BAD_YAML[what], "some.yaml")
    assert len(str(error.value)) < 400


def test_dates_are_text_and_anchors_may_still_be_used():
    text = "a: 2020-13-45\n2020-01-01: &x {b: 1}\nc: {<<: *x, d: [*x, *x]}"
    one = {"b": 1}
    found = read_yaml(text, "x")
    assert found == {"a": "2020-13-45", "2020-01-01": one, "c": {**one, "d": [one, one]}}


# ---- notebooks that are none

CELL = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "x: int = 1"}
BAD_NOTEBOOKS = {
    "nothing": "",
    "a list": "[]",
    "a word": '"x"',
    "null": "null",
    "no cells": "{}",
    "no list of cells": '{"cells": null}',
    "a cell that is a word": '{"cells": ["a"]}',
    "a cell of no kind": '{"cells": [{}]}',
    "no source": '{"cells": [{"cell_type": "code", "metadata": {}}]}',
    "a source that is a number": json.dumps({"cells": [{**CELL, "source": 3}]}),
    "a source of numbers": json.dumps({"cells": [{**CELL, "source": [3]}]}),
    "no metadata": json.dumps({"cells": [{**CELL, "metadata": None}]}),
    "no list of tags": json.dumps({"cells": [{**CELL, "metadata": {"tags": None}}]}),
    "deep": "[" * 100_000,
    "parameters that are no Python": json.dumps({"cells": [{**CELL, "source": "x = ="}]}),
    "a text without an end": json.dumps({"cells": [{**CELL, "source": "x: str = ('a"}]}),
    "a very deep sum": json.dumps({"cells": [{**CELL, "source": f"x: int = {'-' * 5000}1"}]}),
}


@pytest.mark.parametrize("what", BAD_NOTEBOOKS)
def test_a_pipeline_that_is_no_notebook_is_named(what, tmp_path):
    write_text(tmp_path / "odd.ipynb", BAD_NOTEBOOKS[what])
    config = write_text(tmp_path / "c.yaml", "experiment: a\nstages: {s: {pipeline: odd.ipynb}}")
    with pytest.raises(ConfigError, match="odd.ipynb") as error:
        load_config(config)
    assert error.value.field == "pipeline"


@pytest.mark.parametrize("name", ["folder.ipynb", "x" * 300 + ".ipynb", "a/" * 3000 + "b.ipynb"])
def test_a_pipeline_that_no_file_system_has_is_named(name, tmp_path):
    (tmp_path / "folder.ipynb").mkdir()
    text = f"experiment: a\nstages: {{s: {{pipeline: {name}}}}}"
    with pytest.raises(ConfigError):
        load_config(write_text(tmp_path / "c.yaml", text))


def test_a_long_question_with_a_slash_in_it_is_no_path(tmp_path):
    assert resolve_path("and/or " + "x" * 600)
    asked = json.dumps("Say this and/or that: " + "x" * 600)
    stage = f"{{pipeline: sft, parameters: {{sample_prompts: [{asked}]}}}}"
    text = f"experiment: a\nstages: {{s: {stage}}}"
    fingerprints(load_config(write_text(tmp_path / "c.yaml", text)))


# ---- names

BAD_NAMES = ["x" * 300, "a.partial", "a.old", "a.lock", "a.aside-b", "report", "..", "a/b", ""]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("of", ["stage", "experiment"])
def test_names_that_the_runner_needs_or_cannot_make_are_refused(name, of, tmp_path):
    stage, experiment = (name, "e") if of == "stage" else ("s", name)
    text = json.dumps({"experiment": experiment, "stages": {stage: {"pipeline": "sft"}}})
    with pytest.raises(ConfigError) as error:
        load_config(write_text(tmp_path / "c.yaml", text))
    assert len(str(error.value)) < 400


def test_two_stages_that_differ_in_capitals_alone_are_one_folder_on_some_machines(tmp_path):
    text = "experiment: e\nstages: {dpo: {pipeline: sft}, DPO: {pipeline: sft}}"
    with pytest.raises(ConfigError, match="one folder"):
        load_config(write_text(tmp_path / "c.yaml", text))


STUDY = {"study": "toy", "start": {"model": BASE}}


@pytest.mark.parametrize(
    "name", ["..", ".", "...", "_start", " start", "", "/", "../../up", "a.partial", "x" * 300]
)
def test_a_run_of_a_study_stays_in_its_folder_and_takes_nobody_elses(name, tmp_path):
    study = {**STUDY, "runs": [{"method": "dpo", "name": "good"}, {"method": "dpo", "name": name}]}
    with pytest.raises(ConfigError, match="cannot name the folder") as error:
        load_study(write_text(tmp_path / "toy.yaml", json.dumps(study)))
    assert error.value.field == "name"


def test_the_shipped_studies_have_names_that_can_be():
    for path in sorted((project_root() / "data/configs/lessons").glob("*.yaml")):
        if "study:" in path.read_text():
            load_study(path)


# ---- the command line


@pytest.mark.parametrize("seeds", ["\u00b2", "\u0663", "1,", "-1", "9" * 30, "1.0", "1e3"])
def test_seeds_are_whole_numbers_in_plain_digits(seeds):
    done = CliRunner().invoke(app, ["seeds", "data/configs/tiny/demo.yaml", "--seeds", seeds])
    assert done.exit_code == 2 and "commas" in done.output


@pytest.mark.parametrize("command", ["run", "report", "study", "search", "demo", "seeds"])
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_of_an_output_folder_is_refused(command, name):
    config = [] if command == "demo" else ["data/configs/tiny/demo.yaml"]
    done = CliRunner().invoke(app, [command, *config, "--output-root", name])
    assert done.exit_code == 2 and "name is empty" in done.output


@pytest.mark.parametrize(
    "error, says",
    [
        (OSError(28, "No space left on device", "x"), "no room left"),
        (OSError(24, "Too many open files"), "ulimit"),
        (OSError(30, "Read-only file system", "x"), "--output-root"),
        (PermissionError(13, "Permission denied", "x"), "PREFKIT_CACHE"),
        (MemoryError(), "batch_size"),
    ],
)
def test_what_a_machine_lacks_is_one_sentence_with_the_way_out(error, says, monkeypatch):
    def lacks(*_):
        raise error

    monkeypatch.setattr("prefkit.runs.runner.run", lacks)
    done = CliRunner().invoke(app, ["run", "data/configs/tiny/demo.yaml"])
    assert done.exit_code == 1 and says in done.stderr and done.stderr.startswith("error: ")


def test_an_error_of_the_program_stays_one():
    assert way_out("KeyError: 'x'") == ""


# ---- settings


@pytest.mark.parametrize(
    "name", ["batch_size", "gradient_accumulation", "logging_steps", "save_steps", "processes"]
)
def test_a_whole_number_that_no_machine_counts_to_is_refused(name):
    with pytest.raises(ConfigError) as error:
        TrainSettings(**{name: 10**30})
    assert (error.value.field, error.value.reason) == (name, "out of range")


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<|im_start|>", "<|endoftext|>", "", " \n"])
def test_a_question_that_cannot_be_put_is_refused_before_training(text):
    with pytest.raises(ConfigError, match="sample_prompts, 2") as error:
        check_questions(BASE, "", ["What is red?", text])
    assert error.value.field == "sample_prompts"


def test_of_a_model_that_is_not_here_yet_an_empty_question_is_refused():
    check_questions("stage:sft", "", ["a <|im_end|> b"])
    with pytest.raises(ConfigError, match="sample_prompts, 1"):
        check_questions("stage:sft", "", [""])


@pytest.mark.parametrize("tag", ["mine", "remove-cell", "skip-execution"])
def test_a_cell_with_a_tag_of_ones_own_counts(tag, tmp_path):
    def code(source):
        cells = [CELL, {**CELL, "metadata": {"tags": [tag]}, "source": source}]
        return code_fingerprint(write_json(tmp_path / "a.ipynb", {"cells": cells}))

    assert code("x + 1") != code("x + 2")


# ---- columns of numbers

NO_NUMBERS = {
    "text": ["1", "2"],
    "words": ["a", "b"],
    "a huge number": [10**400, 1],
    "a number of 5,000 digits": [10**5000, 1],
    "objects": [{}, 1],
    "complex numbers": [1j, 1],
    "bytes": [b"1", b"2"],
    "dates": np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
    "rows of unequal lengths": [[1, 2], [3]],
    "a mapping": {0: 1, 1: 2},
    "a set": {1, 2},
    "a word": "ab",
    "a number": 5,
    "nothing": None,
}


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_columns_that_are_no_numbers_are_refused(what):
    for rate in (win_rate, score_difference):
        with pytest.raises(DataError) as error:
            rate(NO_NUMBERS[what], [0, 0])
        assert error.value.field == "model_scores"
    with pytest.raises(DataError):
        preference_rate(NO_NUMBERS[what])


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0], requires_grad=True),
        np.array([1, 2], dtype=object),
        [np.float32(1), torch.tensor(2.0)],
        (True, 2),
        iter([1, 2]),
    ],
    ids=["bfloat16", "with a gradient", "objects", "mixed", "a truth", "an iterator"],
)
def test_numbers_of_every_make_are_numbers(scores):
    assert win_rate(scores, [0, 0]).wins == 2


def test_a_ranking_reads_text_as_no_number():
    with pytest.raises(DataError):
        bradley_terry(["a", "a"], ["b", "b"], ["1", "0"])


NO_REWARDS = [10**400, -(10**400), 10**5000, {"reward": 10**400}, "x", None]


@pytest.mark.parametrize("value", NO_REWARDS, ids=range(len(NO_REWARDS)))
def test_a_reward_that_no_float_holds_is_named(value):
    register_reward("odd", lambda prompts, answers: [value for _ in answers])
    row = {"prompt": [{"role": "user", "content": "q"}], "row": "row 1", "record": {}}
    try:
        with pytest.raises(PrefkitError, match="reward odd") as error:
            reward_source("odd")([row], [{"text": "a", "prompt": 0, "ended": True}])
    finally:
        del REWARDS["odd"]
    assert error.value.field == "reward" and len(str(error.value)) < 400


# ---- rows

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
ODD = [None, [], {}, 0, True, math.nan, [[]], [None], 10**400, "\ud800", [{"from": [], "value": 1}]]


@pytest.mark.parametrize("key", ["from", "value"])
@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_one_odd_turn_ends_no_load(odd, key, tmp_path):
    bad = [{**TURNS[0], key: odd}, TURNS[1]]
    rows = [{"conversations": turns} for turns in [TURNS] * 12 + [bad]]
    text = "\n".join(json.dumps(row) for row in rows)
    records = load_records(
        write_text(tmp_path / "r.jsonl", text), kind="sft", on_bad_rows="drop", split="train"
    )
    assert len(records) == 12


# ---- servers


@pytest.mark.parametrize(
    "text",
    [
        "Fri, 31 Dec 19999999999 23:59:59 GMT",
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 31 Dec 2030 23:59:59 +9999999",
        "\u00b2",
    ],
)
def test_a_wait_that_is_no_time_is_not_there(text):
    assert retry_after({"retry-after": text}, 0.0) is None


def nested(levels):
    value = "a"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [MOST_LEVELS + 2, 600, 100_000])
def test_json_that_is_nested_deep_is_told(levels):
    assert _is_deep(nested(levels)) and _is_deep({"a": nested(levels)})
    assert not _is_deep(nested(MOST_LEVELS - 2))


@pytest.mark.parametrize(
    "text", ["\n" * 200_000, "\n " * 100_000, "\t\n" * 100_000, "> \n" * 70_000]
)
def test_a_verdict_is_looked_for_in_one_go(text):
    with within(10), pytest.raises(DataError):
        read_verdict(Reply.of_text(text))
    assert read_verdict(Reply.of_text("I thought.\n\n  **Verdict:** A\n\n")) == "A"


KEY = "sk-proj-0123456789abcdefXYZ"


@pytest.mark.parametrize(
    "text, hidden",
    [
        (f"Incorrect API key provided: {KEY}.", "0123456789"),
        ("Incorrect API key provided: sk-proj-01234*****", "01234"),
        ("Incorrect API key provided: sk-p****fXYZ.", "fXYZ"),
        ("bad key ...6789abcdefXYZ", "6789"),
        ("bad key sk-proj-0123456789 (cut)", "sk-proj"),
        ("bad key 456789abcdef", "6789"),
    ],
)
def test_no_part_of_a_key_is_shown(text, hidden, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    shown = Secret("SOME_KEY").hide(text)
    assert hidden not in shown and "[key]" in shown and "key" in shown
    assert Secret("SOME_KEY").hide("status 404: no model") == "status 404: no model"


def test_nothing_lies_beside_a_store_and_a_second_writer_is_refused(tmp_path):
    with JsonLinesFile(tmp_path / "a.jsonl", {}) as file:
        file.append({"id": "1"})
        with pytest.raises(ConfigError, match="another process"):
            JsonLinesFile(tmp_path / "a.jsonl", {})
    assert os.listdir(tmp_path) == ["a.jsonl"]
    with JsonLinesFile(tmp_path / "a.jsonl", {}) as file:
        assert file.records == [{"id": "1"}]


# ---- caches


def encoded(cache, runs):
    "Rows that a cache of encoded rows is asked for."
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    records = load_records("tiny-world", kind="sft", limit=8)
    return encode_once(records, tokenizer, cache, kind="sft", max_length=256)[0]


def referenced(cache, runs):
    "Rows with their reference, which a cache is asked for; each time for another run."
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3, 4, 0], "rejected_ids": [5, 0]}]
    model, folder = AutoModelForCausalLM.from_pretrained(BASE), runs / uuid4().hex
    answers = ("chosen", "rejected")
    return with_reference(model, {"train": rows}, answers, 0, folder, cache=cache)["train"]


def halved(file):
    os.truncate(file, file.stat().st_size // 2)


def changed(file):
    text = bytearray(file.read_bytes())
    text[len(text) // 2] ^= 1
    file.write_bytes(text)


def emptied(file):
    os.truncate(file, 0)


def nonsense(file):
    file.write_text('{"key": [[[')


@pytest.mark.parametrize("damage", [halved, changed, emptied, nonsense])
@pytest.mark.parametrize("ask", [encoded, referenced])
def test_a_damaged_cache_is_said_and_made_anew(ask, damage, tmp_path, capsys):
    cache = tmp_path / "cache"
    first = ask(cache, tmp_path)
    (file,) = cache.iterdir()
    damage(file)
    assert ask(cache, tmp_path) == first and f"{file} is damaged" in capsys.readouterr().out
    assert ask(cache, tmp_path) == first and "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["a file", "below a file", "where a folder has the name"])
@pytest.mark.parametrize("ask", [encoded, referenced])
def test_a_cache_that_cannot_be_written_to_is_done_without(ask, place, tmp_path, capsys):
    "A read-only one is among the faults of `tools/faults.py`: to root every folder is open."
    first = ask(tmp_path / "whole", tmp_path)
    cache = tmp_path / "cache"
    if place == "where a folder has the name":
        (cache / next((tmp_path / "whole").iterdir()).name / "x").mkdir(parents=True)
    else:
        write_text(cache, "")
    where = cache / "none" if place == "below a file" else cache
    assert ask(where, tmp_path) == first
    assert "PREFKIT_CACHE names another folder" in capsys.readouterr().out


# ---- the runner's own files

PRINTS = {"stage": "1", "parameters": "x"}
ODD_STATES = [
    "[]",
    "null",
    '"done"',
    "",
    '{"status": "do',
    '{"status": "done"}',
    '{"status": "done", "fingerprints": null}',
    '{"status": "done", "fingerprints": []}',
    '{"status": "done", "fingerprints": {"stage": 1}}',
    '{"status": "done", "fingerprints": {"stage": "1", "read": [1]}}',
    '{"status": "done", "fingerprints": {"stage": "1"}, "sum": "not its sum"}',
    "[" * 100_000,
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("text", ODD_STATES, ids=lambda text: ascii(text[:60]))
def test_a_run_json_in_an_odd_state_is_no_finished_run(text, tmp_path):
    write_run(tmp_path / "a", PRINTS)
    (tmp_path / "a/run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert folder_state(tmp_path / "a") == {} and not is_done(tmp_path / "a", "1")
    assert prepare(tmp_path, "a", PRINTS) == "runs"


@pytest.mark.parametrize(
    "text",
    [
        *ODD_STATES,
        '{"fingerprints": {"stage": "1"}, "attempts": "2"}',
        '{"fingerprints": {"stage": "1"}, "attempts": 1, "seconds": null}',
    ],
    ids=lambda text: ascii(text[:60]),
)
def test_a_half_finished_run_with_an_odd_stage_json_starts_anew(text, tmp_path):
    prepare(tmp_path, "a", PRINTS)
    write_text(tmp_path / ".a.partial/left.txt", "x")
    place = tmp_path / ".a.partial/stage.json"
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "damaged (stage.json)" in prepare(tmp_path, "a", PRINTS)
    assert os.listdir(tmp_path / ".a.partial") == ["stage.json"]


def finished(tmp_path):
    "A toy experiment whose stages are finished, with the sums of their files."
    config = load_config(write_toy(tmp_path))
    prints, home = fingerprints(config), tmp_path / "toy"
    for name in prints:
        folder = write_run(home / name, prints[name])
        write_text(folder / "metrics.jsonl", '{"step": 1, "loss": 0.5}\n')
        write_text(folder / "params.yaml", "steps: 20\n")
        state = {"status": "done", "fingerprints": prints[name], "files": files_of_run(folder)}
        write_json(folder / "run.json", state)
    return config, home, prints


@pytest.mark.parametrize("file", ["checkpoint/value.json", "metrics.jsonl", "params.yaml"])
@pytest.mark.parametrize("change", ["changed", "deleted"])
def test_a_file_of_a_finished_run_that_is_not_as_it_was_makes_it_run_again(file, change, tmp_path):
    config, home, prints = finished(tmp_path)
    assert to_do(config, home, prints)[0] == []
    place = home / "second" / file
    write_text(place, "other") if change == "changed" else place.unlink()
    assert [stage.name for stage in to_do(config, home, prints)[0]] == ["second"]
    assert prepare(home, "second", prints["second"]) == f"runs again ({file} changed)"
    if "/" not in file:
        with pytest.raises(DataError, match=f"{file} is not what its run has written"):
            open_run(home / "second")


@pytest.mark.parametrize("name", ["{x}", "{}", "{value}", "a}b", "{{x}}", "{x!r:>9}"])
def test_papermill_reads_a_path_with_braces_as_it_is_written(name, tmp_path):
    from papermill.parameterize import parameterize_path

    path = tmp_path / name
    assert parameterize_path(as_written(path), {"x": 1, "value": 2}) == str(path)


# ---- the table of the docs


def test_the_table_has_kinds_enough_and_every_fault_says_what_was_promised():
    faults = tool("faults").FAULTS
    assert len(faults) >= 40
    assert len({kind for kind, *_ in faults.values()}) >= 14
    assert all(promise for _, promise, _ in faults.values())


def test_the_page_draws_what_the_results_say():
    told = {"fault": "a", "kind": "kill", "promised": "p", "happened": "h", "code": 1, "said": "s"}
    told |= {"seconds": 1.5, "revision": "0" * 40}
    for held, shown in ((True, "held"), (False, "NOT HELD"), (None, "not done")):
        table = fault_table({"faults": [{**told, "held": held, "happened": "it broke"}]})
        assert table.loc["a", "held"] == shown and table.loc["a", "happened"] == "it broke"
    rows = [{**told, "fault": name, "held": name != "c"} for name in "abc"]
    assert fault_count({"faults": rows}) == "2 of 3 faults held (of 1 kind); not: c."


@pytest.mark.parametrize(
    "name", ["two processes on one store of replies", "an anchor inside of itself in a config"]
)
def test_quick_faults_are_really_inflicted(name, tmp_path, monkeypatch):
    faults = tool("faults")
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    [row] = faults.table(name, results=tmp_path / "faults.json")
    assert row["fault"] == name and row["held"] is True, row
    written = (tmp_path / "faults.json").read_text()
    assert json.loads(written)["faults"] == [row]
    assert not re.search(r"/tmp/|/home/|/root/", written)
