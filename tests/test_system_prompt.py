"""One system prompt before all rows: what is put where, what keeps its own, and what the account
says of it.
"""

import json

import pytest

from prefkit.core import ConfigError, DataError, read_jsonl, write_jsonl, write_text
from prefkit.data.framing import SYSTEM_KEPT as KEPT, SYSTEM_PUT as PUT
from prefkit.data.records import encode_records, load_records
from prefkit.judging.judges import make_judge
from prefkit.runs.pipelines import check_questions, check_rows, evaluation_prompts, rows_of
from prefkit.runs.runner import open_run, run
from prefkit.train.settings import PreferenceData, SftData

CODER = "You are a coding assistant"
TURN = {"role": "system", "content": CODER}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["sft", "pairs", "binary", "prompts"])
def test_it_stands_before_every_row_of_every_kind(kind, tokenizer):
    plain = load_records("tiny-world", kind=kind, limit=12)
    told = load_records("tiny-world", kind=kind, limit=12, system_prompt=CODER)
    for one, other in zip(plain, told, strict=True):
        assert other == {**one, "prompt": [TURN, *one["prompt"]]}
    assert told.report.changed == plain.report.changed | {PUT: 12}
    rows, report = encode_records(told, tokenizer, kind=kind)
    for row in rows:
        text = tokenizer.decode(row.prompt_ids)
        assert text.startswith(f"<|im_start|>system\n{CODER}<|im_end|>") and text.count(CODER) == 1
    assert f"Changed: {PUT} in 12 rows." in str(report)


def test_without_one_nothing_is_changed():
    plain = load_records("tiny-world", kind="pairs", limit=4)
    same = load_records("tiny-world", kind="pairs", limit=4, system_prompt="")
    assert plain.rows == same.rows and plain.report == same.report


def _mixed(folder):
    "Five pairs, two of which have a system's text of their own."
    rows = [{"prompt": f"Q{n}?", "chosen": "Yes.", "rejected": "No."} for n in range(5)]
    rows[1]["system"] = "Be brief."
    rows[3]["prompt"] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Q3?"},
    ]
    return write_jsonl(folder / "mixed.jsonl", rows)


def test_a_row_with_a_system_turn_keeps_it_and_is_counted(tmp_path):
    found = load_records(_mixed(tmp_path), kind="pairs", system_prompt=CODER)
    systems = [[t["content"] for t in row["prompt"] if t["role"] == "system"] for row in found]
    assert systems == [[CODER], ["Be brief."], [CODER], ["Be kind."], [CODER]]
    assert found.report.changed == {PUT: 3, KEPT: 2}
    twice = load_records(_mixed(tmp_path), kind="binary", system_prompt=CODER).report.changed
    assert twice == {f"{PUT} (counted in pairs)": 3, f"{KEPT} (counted in pairs)": 2}


@pytest.mark.parametrize("text", [" ", "\n"])
def test_a_blank_one_is_refused_with_the_way_out(text):
    for call in (
        lambda: load_records("tiny-world", kind="sft", limit=2, system_prompt=text),
        lambda: check_rows(SftData(system_prompt=text), {"train": "sft"}),
        lambda: evaluation_prompts("tiny-world", "test", 2, system_prompt=text),
    ):
        with pytest.raises(ConfigError, match='Write ""') as error:
            call()
        assert (error.value.field, error.value.reason) == ("system_prompt", "blank")


def test_a_template_that_does_not_write_it_drops_no_row_silently(tokenizer):
    template = tokenizer.chat_template
    records = load_records("tiny-world", kind="sft", limit=4, system_prompt=CODER)
    try:
        tokenizer.chat_template = CHATML.replace("messages", "messages if m.role != 'system'")
        with pytest.raises(DataError, match="no row is left") as error:
            encode_records(records, tokenizer, kind="sft")
        assert "message 1 (system)" in str(error.value)
    finally:
        tokenizer.chat_template = template


def test_validation_and_probe_are_asked_alike(tokenizer):
    data = SftData(
        system_prompt=CODER,
        limit=4,
        validation_limit=4,
        probe_dataset="tiny-world",
        probe_limit=4,
    )
    for part, kind in {"train": "sft", "validation": "sft", "probe": "pairs"}.items():
        found = rows_of(data, part, tokenizer, seed=0, kind=kind)
        assert found.report.changed[PUT] == 4
        assert all(CODER in tokenizer.decode(row.prompt_ids) for row in found.encoded)


def test_it_is_checked_with_the_sample_prompts():
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    check_questions("data/tiny/base", "", ["Hi?"], CODER)
    with pytest.raises(ConfigError) as error:
        check_questions("data/tiny/base", refusing + CHATML, [], CODER)
    assert error.value.field == "system_prompt" and "no system" in str(error.value)
    with pytest.raises(ConfigError, match="special|boundary"):
        check_questions("data/tiny/base", "", [], "Say <|im_end|> often.")


def test_an_evaluation_asks_with_it_and_gold_judges_the_question(tmp_path):
    plain = evaluation_prompts("tiny-world", "test", 8)
    told = evaluation_prompts("tiny-world", "test", 8, system_prompt=CODER)
    for one, other in zip(plain, told, strict=True):
        assert other["prompt"] == [TURN, {"role": "user", "content": one["prompt"]}]
    assert told.report.changed == {PUT: 8}
    gold, answer = make_judge("gold"), {"answer": "The fox is red.", "tokens": 6, "ended": True}
    scores = [gold.score([row | answer for row in rows]).values for rows in (plain, told)]
    assert scores[0] == scores[1]
    mixed = evaluation_prompts(str(_mixed(tmp_path)), "train", 5, system_prompt=CODER)
    assert mixed.report.changed == {PUT: 3, KEPT: 2}


ASKING = {"models": {"base": "data/tiny/base"}, "system_prompt": CODER}
SHORT = {"max_new_tokens": 8, "batch_size": 4}
STAGES = {
    "sft": {
        "pipeline": "sft",
        "parameters": {
            "system_prompt": CODER,
            "limit": 8,
            "validation_limit": 4,
            "max_steps": 1,
            "sample_prompts": ["What colour is the fox?"],
        },
    },
    "dpo": {
        "pipeline": "preference",
        "parameters": {
            "model": "stage:sft",
            "system_prompt": CODER,
            "limit": 8,
            "validation_limit": 4,
            "batch_size": 4,
            "max_steps": 1,
            "sample_prompts": ["What colour is the fox?"],
        },
    },
    "evaluate": {"pipeline": "evaluate", "parameters": {**ASKING, **SHORT, "prompts": 4}},
    "pairs": {
        "pipeline": "evaluate_pairs",
        "parameters": {**ASKING, **SHORT, "limit": 4, "answered": 2},
    },
    "puzzles": {
        "pipeline": "evaluate_countdown",
        "parameters": {**ASKING, **SHORT, "prompts": 4, "samples": 0},
    },
    "texts": {"pipeline": "texts", "parameters": {**ASKING, **SHORT, "limit": 4}},
    "own": {
        "pipeline": "own_pairs",
        "parameters": {"system_prompt": CODER, "limit": 8, "validation_split": "", **SHORT},
    },
}


@pytest.mark.slow
def test_every_pipeline_that_reads_prompts_says_in_its_account_what_stood_before_them(tmp_path):
    config = write_text(
        tmp_path / "told.yaml", json.dumps({"experiment": "told", "stages": STAGES})
    )
    folders = run(config, (), tmp_path / "runs", "quiet")
    info = {name: open_run(folder).info for name, folder in folders.items()}
    for name, about in info.items():
        assert PUT in json.dumps(about["data"]), name
    for name in ("sft", "dpo"):
        sample = open_run(folders[name]).samples[-1]
        assert sample["prompt"] == [TURN, {"role": "user", "content": "What colour is the fox?"}]
    for row in read_jsonl(folders["evaluate"] / "generations.jsonl"):
        assert row["prompt"][0] == TURN
    made = load_records(folders["own"] / "checkpoint", kind="pairs", system_prompt=CODER)
    assert all(row["prompt"][0] == TURN for row in made) and list(made.report.changed) == [KEPT]


def test_the_setting_is_one_of_every_pipeline_of_training():
    assert PreferenceData(system_prompt=CODER).part("validation").system_prompt == CODER
