"""What the five reports say, as data: whole, unchanged, and cell by cell as their texts have it."""

import os
import re
from pathlib import Path

import pytest
import yaml

from prefkit.core import fingerprint, project_root

REPORTED = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((project_root() / "data/reported").glob("*.yaml"))
    if path.stem != "ultrafeedback"  # a data set, no report
}
TEXTS = {
    "comparison": "rl-finetuning-comparison",
    "xpo_ipo": "xpo-ipo-synthetic-data",
    "length_penalty": "length-penalty-grpo",
    "orpo": "orpo",
    "minor_dpo": "minor-dpo",
}
PAPERS = Path(os.environ.get("PREFKIT_REAL_DATA", "nowhere")).parent / "papers"
with_texts = pytest.mark.skipif(
    not PAPERS.is_dir(), reason="needs the reports' texts beside PREFKIT_REAL_DATA"
)

# of each table and of the scores: a digit that is changed by mistake is seen without the texts, too
PRINTS = {
    "comparison table_1": "6b79143e",
    "comparison table_2": "8f3f04f7",
    "comparison table_3": "335654b3",
    "comparison table_4": "6e6e79fa",
    "length_penalty table_1": "5c801a36",
    "orpo table_1": "280e24e0",
    "orpo table_2": "043fc1bf",
    "orpo table_3": "e582c820",
    "orpo table_4": "67f80e6f",
    "orpo table_5": "d80f9fd1",
    "orpo table_6": "79b413a6",
    "orpo table_7": "dd9ba4d8",
    "orpo scores": "cd32d83a",
    "xpo_ipo table_1": "70362468",
    "xpo_ipo table_2": "a559f164",
    "xpo_ipo scores": "b7c903e2",
}


def tables(name):
    return [key for key in REPORTED[name] if key.startswith("table_")]


def squeezed(text):
    "Without white space and marks of code: the texts' line ends are not the reports'."
    return re.sub(r"[\s`]+", "", text)


def text_of(name):
    return (PAPERS / f"{TEXTS[name]}.txt").read_text(encoding="utf-8")


def test_there_are_five_reports_each_named_by_title_and_authors():
    assert set(REPORTED) == set(TEXTS)
    assert all(one["report"] and one["authors"] for one in REPORTED.values())
    assert len({one["report"] for one in REPORTED.values()}) == 5
    # no path of a file that a reader has not
    assert not any("papers/" in str(one) for one in REPORTED.values())


def test_every_table_is_what_was_transcribed():
    found = {
        f"{name} {part}": fingerprint(one[part] if part == "scores" else one[part]["rows"])[:8]
        for name, one in REPORTED.items()
        for part in (*tables(name), *(["scores"] if "scores" in one else []))
    }
    assert found == PRINTS


@pytest.mark.parametrize("name", TEXTS)
def test_all_that_is_said_has_its_place_in_the_report(name):
    one = REPORTED[name]
    for part in tables(name):
        table = one[part]
        number = part.removeprefix("table_")
        assert re.search(rf"table {number}, (section|appendix) ", table["source"])
        assert table["caption"] and len({frozenset(row) for row in table["rows"]}) == 1
        assert set(table.get("units", {})) <= set(table["rows"][0])
    for entry in (*one["figures"].values(), *one["settings"].values(), *one.get("scores", [])):
        assert re.search("section|appendix|abstract|table|figure", entry["source"]), entry
    assert all("value" in setting for setting in one["settings"].values())
    needed = ("about", "source", "says", "found")
    assert len(one["slips"]) >= 4 and all(slip[key] for slip in one["slips"] for key in needed)


@with_texts
@pytest.mark.parametrize("name", TEXTS)
def test_captions_sayings_and_scores_are_in_the_text(name):
    text = squeezed(text_of(name).replace("-\n", ""))
    plain = squeezed(text_of(name))
    one = REPORTED[name]
    said = [one[part]["caption"] for part in tables(name)]
    said += [
        figure[key]
        for figure in one["figures"].values()
        for key in ("caption", "says")
        if figure.get(key)
    ]
    said += [one["report"], *one["authors"].split(", ")]
    if name != "comparison":  # its slips are checked in test_comparison.py
        said += [slip["says"] for slip in one["slips"]]
    missing = [each for each in said if squeezed(each) not in text and squeezed(each) not in plain]
    assert not missing
    for score in one.get("scores", []):
        assert f"{score['score']:g}" in plain


@with_texts
def test_the_tables_of_settings_equal_the_texts_cell_by_cell():
    text = text_of("xpo_ipo")
    for part in ("table_1", "table_2"):
        rows = REPORTED["xpo_ipo"][part]["rows"]
        start = text.index(rows[0]["value"])
        block = text[start - len("Algorithm/Dataset\t") :].splitlines()[: len(rows)]
        assert block == [f"{row['parameter']}\t{row['value']}" for row in rows]
    lines = text_of("orpo").splitlines()
    rows = REPORTED["orpo"]["table_5"]["rows"]
    start = lines.index("ppo_epoch 4")
    assert lines[start : start + len(rows)] == [f"{r['parameter']} {r['value']}" for r in rows]
    rows, start = REPORTED["orpo"]["table_7"]["rows"], lines.index("# Succinctness Verboseness") + 1
    for line, row in zip(lines[start : start + 5], rows, strict=True):
        assert squeezed(line) == squeezed(
            f"{row['number']}{row['succinctness']}{row['verboseness']}"
        )


@with_texts
def test_the_table_of_the_length_penalty_report_equals_its_text_cell_by_cell():
    lines = [line.split("\t") for line in text_of("length_penalty").splitlines() if "\t" in line]
    assert lines[0] == ["Method", "Win Rate (%)", "BLEU-4", "Perplexity"]
    for line, row in zip(lines[1:], REPORTED["length_penalty"]["table_1"]["rows"], strict=True):
        assert line[0] == row["method"]
        assert list(map(float, line[1:])) == [row["win_rate"], row["bleu_4"], row["perplexity"]]


def numbers(line):
    return [float(each) for each in re.findall(r"\d+\.\d+", line)]


@with_texts
def test_the_tables_of_the_orpo_paper_equal_its_text_cell_by_cell():
    lines, one = text_of("orpo").splitlines(), REPORTED["orpo"]
    # each block begins behind its head
    heads = {
        "table_1": "Model Name Size AlpacaEval1.0 AlpacaEval2.0",
        "table_2": "ORPO vs SFT +DPO +PPO",
        "table_3": "reward shifts for each algorithm differs.ORPO vs SFT +DPO +PPO",
        "table_4": "Per Input ↓Across Input ↓",
        "table_6": "Model Type Prompt-Strict Prompt-Loose Inst-Strict Inst-Loose",
    }
    for part, head in heads.items():
        rows = one[part]["rows"]
        start = next(n for n, line in enumerate(lines) if squeezed(line).endswith(squeezed(head)))
        for line, row in zip(lines[start + 1 : start + 1 + len(rows)], rows, strict=True):
            plain = squeezed(line).replace("*", "")
            assert plain.startswith(squeezed(row["model"])), (part, line)
            values = [value for value in row.values() if isinstance(value, float)]
            assert numbers(line)[-len(values) :] == values, (part, line)
            assert ("*" in line) == row.get("official", False)
