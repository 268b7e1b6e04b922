"""Held-out pairs as a stage, and the report on a real model, on results whose numbers are invented
by a seed, only to test the drawing.
"""

import json
import math

import numpy as np
import pytest
import torch
import yaml

from helpers.pages import check_page, draw_report, sections_of, words_of
from prefkit.core import (
    ConfigError,
    project_root,
    read_jsonl,
    resolve_path,
    write_json,
    write_jsonl,
    write_text,
)
from prefkit.data.records import encode_records, load_records
from prefkit.judging.pairs import margins, pair_summary, prompts_here, score_pairs
from prefkit.model.loading import load_model
from prefkit.model.logps import sequence_logps
from prefkit.report.pairs import Pairs, draw_measure, rows_words
from prefkit.report.words import weights_words
from prefkit.runs.config import load_config
from prefkit.runs.runner import open_run, run
from prefkit.runs.seeds import over_seeds, run_seeds

ROOT = project_root()
ROUNDED = "weights were rounded to four bits (Q4_1)"
ABOUT = {
    "date": "2026-01-01",
    "git": {"revision": "0" * 40, "dirty": False},
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "device": "cpu",
    "threads": 1,
}
BASE = "data/tiny/base"


@pytest.fixture(scope="module")
def scored():
    "The tiny base model, eight pairs, and what it makes of them."
    model, tokenizer = load_model(BASE)
    records = load_records("tiny-world", kind="pairs", split="test", limit=8)
    rows, _ = encode_records(records, tokenizer, kind="pairs")
    return model, tokenizer, rows, score_pairs(model, rows, tokenizer.pad_token_id, batch_size=3)


def test_scores_are_sums_of_log_probs_one_answer_at_a_time(scored):
    model, _, rows, scores = scored
    for row, score in zip(rows, scores):
        for side in ("chosen", "rejected"):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            labels = torch.full_like(ids, -100)
            labels[0, len(row["prompt_ids"]) :] = torch.tensor(row[f"{side}_ids"])
            with torch.no_grad():
                expected = sequence_logps(model(ids).logits, labels).item()
            assert score[side] == pytest.approx(expected, abs=1e-3)


def test_a_summary_counts_pairs_whose_margin_is_above_zero(scored):
    *_, rows, scores = scored
    moved = [{"chosen": one["chosen"] + 1, "rejected": one["rejected"] - 2} for one in scores]
    moved[0] = {"chosen": scores[0]["chosen"] - 5, "rejected": scores[0]["rejected"]}
    assert margins(moved, scores) == pytest.approx([-5.0, *[3.0] * 7])
    found = pair_summary(moved, scores, rows)
    assert found["accuracy"] == 7 / 8 and found["accuracy_low"] < 7 / 8 < found["accuracy_high"]
    assert found["margin"] == pytest.approx(2.0)
    assert found["logratio_chosen"] == pytest.approx(2 / 8)
    assert found["logratio_rejected"] == pytest.approx(-14 / 8)
    first = pair_summary(scores, None, rows)
    assert first["margin"] is first["accuracy"] is None and 0 <= first["likelier"] <= 1


def test_seeds_gather_held_out_pairs_answers_and_accounts(tmp_path):
    config = write_text(
        tmp_path / "pairs.yaml",
        """experiment: pairs
stages:
  dpo: {pipeline: preference, parameters: {max_steps: 2, limit: 16, validation_limit: 8}}
  evaluate:
    pipeline: evaluate_pairs
    parameters: {models: {base: data/tiny/base, dpo: "stage:dpo"}, limit: 12, answered: 2}
""",
    )
    file = run_seeds(config, [3], tmp_path / "found.json", (), tmp_path / "runs", "quiet")
    found = json.loads(file.read_text())["seeds"]["3"]
    base, dpo = found["scores"]
    assert base["margin"] is None and dpo["n"] == 12 and dpo["margin_low"] < dpo["margin_high"]
    folder = tmp_path / "runs/pairs-seed3/evaluate"
    (kept,) = [path for path in (folder / "scores").iterdir() if "text" not in read_jsonl(path)[5]][
        :1
    ]
    assert len(read_jsonl(kept)) == 12
    assert [set(one["answers"]) for one in found["answers"]["evaluate"]] == [{"base", "dpo"}] * 2
    assert "kept 16" in found["rows"]["dpo"]["train"] and "weights" not in found
    assert open_run(folder).info["data"]["pairs"] == 12
    again = run(config, ("experiment=pairs-seed3", "seed=3"), tmp_path / "runs", "quiet")
    assert again["evaluate"] == folder


def test_a_path_may_begin_with_a_variable_which_must_be_set(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFKIT_HERE", str(tmp_path))
    assert resolve_path("$PREFKIT_HERE/pairs/a.jsonl") == tmp_path / "pairs/a.jsonl"
    assert resolve_path("a$PREFKIT_HERE").name == "a$PREFKIT_HERE", "only at the start"
    monkeypatch.delenv("PREFKIT_HERE")
    with pytest.raises(ConfigError, match="no variable PREFKIT_HERE") as error:
        resolve_path("$PREFKIT_HERE/pairs/a.jsonl")
    assert error.value.field == "PREFKIT_HERE"


def test_the_configs_name_the_report_and_every_stage_stands_alone():
    for name in ("smollm2_pairs", "smollm2_pairs_once", "smollm2_countdown"):
        config = load_config(ROOT / f"data/configs/real/{name}.yaml")
        assert config.report == "real_model" and config.experiment == name
        text = (ROOT / f"data/configs/real/{name}.yaml").read_text()
        assert f"--output data/results/real/{name}.json" in text, "the report reads it there"
        models = config.stages[-1].parameters["models"]
        assert models.pop("base") == "data/models/smollm2"
        assert set(models) == {stage.name for stage in config.stages} - {"evaluate"}


def results(name, found):
    return {
        "command": f"prefkit seeds data/configs/real/{name}.yaml --seeds 0 --lines",
        **ABOUT,
        "over_seeds": over_seeds(found),
        "seeds": {str(seed): one for seed, one in found.items()},
    }


def estimate(name, value, half):
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def of_pairs(seed, models):
    "One seed of an experiment on pairs: margin and accuracy by a seeded draw."
    rng = np.random.default_rng(seed)
    nothing = {name: None for name in (*estimate("margin", 0, 0), *estimate("accuracy", 0, 0))}
    scores = [{"model": "base", "n": 59, **nothing}]
    for model, margin in models.items():
        value = margin + rng.normal(0, 0.1)
        share = 1 / (1 + math.exp(-value / 3))
        line = estimate("margin", value, 1.5) | estimate("accuracy", share, 0.1)
        scores.append({"model": model, "n": 59, **line})
    said = {"text": "Good day.", "tokens": 4, "ended": False}
    answers = [{"prompt": "Hello?", "answers": {name: said for name in ("base", *models)}}]
    return {
        "scores": scores,
        "answers": {"evaluate": answers},
        "rows": {"dpo": {"train": "pairs.jsonl: read 240 rows,\nkept 240."}},
        "weights": {"evaluate": {"base": ROUNDED}},
        "curves": {},
        "wall_seconds": {"evaluate": 1.0},
    }


def of_countdown():
    models = {"base": 0.0, "sft": 0.2, "rloo": 0.4}
    scores = [
        {"model": name, "n": 300, "tokens": 20.0, "ended": 1.0, "any": share, "entropy": 0.5}
        | {"right": share, "right_low": max(0.0, share - 0.05), "right_high": share + 0.05}
        | {"sampled": share, "sampled_low": max(0.0, share - 0.04), "sampled_high": share + 0.04}
        for name, share in models.items()
    ]
    differences = [
        {"model": model, "reference": reference, "n": 300}
        | estimate("right_difference", 0.2, 0.05)
        | estimate("sampled_difference", 0.2, 0.04)
        for model, reference in (("sft", "base"), ("rloo", "base"), ("rloo", "sft"))
    ]
    walk = [{"step": step, "reward": share} for step, share in ((0, 0.2), (30, 0.3), (60, 0.4))]
    return {
        "scores": scores,
        "differences": differences,
        "curves": {"rloo": walk},
        "weights": {"sft": ROUNDED, "rloo": ROUNDED},
        "wall_seconds": {"sft": 600.0, "rloo": 1800.0, "evaluate": 900.0},
    }


SEVERAL = {"dpo_lora": 2.0, "orpo_lora": 0.3, "dpo": 4.0}


def test_what_was_done_to_weights_is_found_in_runs_and_results():
    assert weights_words({"model": {"start": "x"}}) == weights_words({}) == ""
    assert weights_words({"model": {"weights": ROUNDED}}) == ROUNDED
    found = {seed: of_pairs(seed, SEVERAL) for seed in (0, 1)}
    assert weights_words(results("smollm2_pairs", found)) == ROUNDED


def test_a_measure_is_drawn_over_seeds_and_one_seed_is_marked():
    several = Pairs(results("smollm2_pairs", {s: of_pairs(s, SEVERAL) for s in (0, 1, 2)}))
    alone = Pairs(results("smollm2_pairs_once", {0: of_pairs(0, {"kto_lora": 1.0})}))
    fig, caption = draw_measure([several, alone], "accuracy")
    assert "KTO LoRA, one seed" in set(fig.data["row"]) and "59 held-out pairs" in caption
    assert set(fig.data[fig.data["row"] == "DPO"]["group"]) == {
        "seed 0",
        "seed 1",
        "seed 2",
        "over seeds",
    }
    assert "over 3 seeds" in several.say("dpo")
    assert "above zero in 3 of 3 seeds by their own intervals over pairs" in several.say("dpo")
    assert "apart from zero in none of 3 seeds" in several.say("orpo_lora")
    assert "not apart from zero" in alone.say("kto_lora") and "over pairs" in alone.say("kto_lora")
    assert rows_words(several.results) == ["Rows to train: pairs.jsonl: read 240 rows, kept 240."]


def test_the_page_opens_with_its_picture_and_says_that_weights_were_rounded(tmp_path):
    found = {
        "pairs": results("smollm2_pairs", {seed: of_pairs(seed, SEVERAL) for seed in (0, 1, 2)}),
        "once": results("smollm2_pairs_once", {0: of_pairs(0, {"kto_lora": 1.0})}),
        "countdown": results("smollm2_countdown", {0: of_countdown()}),
    }
    given = {name: str(write_json(tmp_path / f"{name}.json", one)) for name, one in found.items()}
    draw_report("real_model", **given, output_dir=str(tmp_path / "out"))
    words, out = words_of(tmp_path / "out"), tmp_path / "out"
    names = ["margin", "accuracy", "countdown_greedy", "countdown_sampled", "validation"]
    check_page(out, names)
    page = (out / "report.html").read_text()
    assert page.index("<figure>") < page.index("<h2 "), "the picture first"
    assert words.count(ROUNDED) >= 1 and "one seed" in words and "cut off" in words
    assert "What has not been run yet" not in words and "Good day." in words
    assert "kept 240" in words


def test_prompts_of_a_file_elsewhere_are_not_quoted_in_results_and_read_for_the_page(
    tmp_path, monkeypatch
):
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(4)
    ]
    folder = tmp_path / "elsewhere"
    path = write_jsonl(folder / "pairs.jsonl", rows)
    pairs = {"dataset": str(path), "split": "train", "limit": None, "answered": 2}
    models = {"base": BASE, "same": BASE}
    stage = {"pipeline": "evaluate_pairs", "parameters": {**pairs, "models": models}}
    config = {"experiment": "quoted", "stages": {"evaluate": stage}}
    made = run_seeds(
        write_text(tmp_path / "quoted.yaml", yaml.safe_dump(config)),
        [0],
        tmp_path / "out.json",
        output_root=tmp_path / "runs",
        progress="quiet",
    )
    assert "Question" not in made.read_text()
    told = json.loads(made.read_text())["seeds"]["0"]["answers"]["evaluate"]
    assert [one["row"] for one in told] == [f"row {n} of pairs.jsonl" for n in (1, 2)]
    kept = read_jsonl(tmp_path / "runs/quoted-seed0/evaluate/answers.jsonl")
    assert kept[0]["prompt"] == "Question 0?"  # in the user's own run folder

    results = Pairs(json.loads(made.read_text()))
    monkeypatch.setenv("MINE", str(folder))
    here = prompts_here("$MINE/pairs.jsonl", "train[:1]")
    assert here == {"row 1 of pairs.jsonl": "Question 0?"}
    shown = [prompt for prompt, _ in results.examples(here)]
    assert shown == ["Question 0?", "row 2 of pairs.jsonl"]
    monkeypatch.delenv("MINE")
    assert prompts_here("$MINE/pairs.jsonl", "train") == prompts_here("no/where.jsonl", "") == {}


def test_what_was_not_run_is_named_by_its_command_and_not_drawn(tmp_path):
    none = {name: str(tmp_path / "none.json") for name in ("pairs", "once", "countdown")}
    draw_report("real_model", **none, output_dir=str(tmp_path / "out"))
    check_page(tmp_path / "out", [])
    words = words_of(tmp_path / "out")
    assert words.count("prefkit seeds data/configs/real/smollm2_pairs.yaml --seeds 0,1,2") == 1
    assert sections_of(tmp_path / "out") == ["The model", "What has not been run yet"]
    assert "four bits" in words and "Nothing of it has been run yet." in words
    one = results("smollm2_countdown", {0: of_countdown()})
    some = {**none, "countdown": str(write_json(tmp_path / "countdown.json", one))}
    draw_report("real_model", **some, output_dir=str(tmp_path / "some"))
    sections = sections_of(tmp_path / "some")
    assert "Countdown" in sections and "Held-out pairs" not in sections
    assert "smollm2_pairs_once.yaml" in words_of(tmp_path / "some")
