"""Core: where things are, seeds, files that are whole or not there, fingerprints, progress."""

import json
import os
import random
import stat
from pathlib import Path

import numpy
import pytest
import torch
from prefkit.core import (
    ConfigError,
    DataError,
    PrefkitError,
    Progress,
    cache_folder,
    derive_seed,
    fingerprint,
    fingerprint_files,
    iter_jsonl,
    project_root,
    read_jsonl,
    resolve_path,
    set_seed,
    write_json,
    write_jsonl,
    write_text,
)

from helpers.kills import killed_at

# ---- where things are


def test_the_root_is_found_from_every_folder_of_the_project(root):
    assert project_root(root) == project_root(root / "nbs" / "lib") == root


def test_outside_of_the_project_the_root_is_where_the_package_stands(root, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFKIT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_root() == root


def test_the_environment_names_the_root_unless_a_start_is_given(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_ROOT", str(tmp_path))
    assert project_root() == tmp_path.resolve()
    assert project_root(root / "nbs") == root


def test_the_cache_is_where_the_environment_says_or_in_the_project(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PREFKIT_CACHE")
    assert cache_folder() == root / "data" / "cache"


def test_a_path_is_taken_from_the_current_folder_and_else_from_the_root(
    root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert resolve_path("settings.ini") == root / "settings.ini"
    write_text(tmp_path / "settings.ini", "")
    assert resolve_path("settings.ini") == tmp_path / "settings.ini"
    assert resolve_path(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert resolve_path("~/nowhere") == Path.home() / "nowhere"


def test_errors_that_a_user_can_mend_are_value_errors_of_one_family():
    assert issubclass(DataError, PrefkitError) and issubclass(ConfigError, PrefkitError)
    assert issubclass(PrefkitError, ValueError)
    assert not issubclass(DataError, ConfigError)


# ---- seeds


def test_a_derived_seed_depends_on_every_part_and_on_where_parts_end():
    assert derive_seed(0, "x") == derive_seed(0, "x")
    seeds = [
        derive_seed("a", "b"),
        derive_seed("ab"),
        derive_seed("b", "a"),
        derive_seed(0, "data order"),
        derive_seed(0, "sampling"),
        derive_seed(1, "sampling"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_derived_seeds_are_pinned():
    "A change here would change every run."
    assert derive_seed("prefkit") == 690810426


def test_a_seed_repeats_all_three_generators():
    def draw(seed):
        set_seed(seed)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    assert draw(3) == draw(3)
    assert all(one != other for one, other in zip(draw(3), draw(4)))


# ---- files that are whole or not there


def test_records_are_written_whole_into_folders_that_are_made(tmp_path):
    path = write_jsonl(tmp_path / "deep" / "records.jsonl", [{"a": 1}, {"a": "é"}])
    assert path.read_bytes() == '{"a": 1}\n{"a": "é"}\n'.encode()
    assert os.listdir(path.parent) == ["records.jsonl"]  # nothing temporary is left


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "notes.txt", "old")
    with killed_at(0) as killed:
        write_text(path, "new")
    assert killed and path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_written_file_is_as_public_as_one_that_was_opened(tmp_path):
    (tmp_path / "opened").write_text("")
    write_text(tmp_path / "written", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("opened", "written")]
    assert modes[0] == modes[1]


def test_a_folder_that_cannot_be_written_to_is_an_error_of_the_config(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(ConfigError, match="cannot write .*Choose an output folder"):
        write_text(tmp_path / "file" / "below", "")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_that_others_cannot_read_is_refused_and_the_old_file_stays(tmp_path, number):
    path = write_json(tmp_path / "numbers.json", {"loss": 0.5})
    with pytest.raises(ValueError):
        write_json(path, {"loss": number})
    assert json.loads(path.read_text()) == {"loss": 0.5}


# ---- reading lines


def test_a_broken_line_is_told_apart_from_the_good_ones(tmp_path):
    path = write_text(tmp_path / "prefs.jsonl", '{"prompt": "a"}\n\n{"prompt": \n[1]\n')
    rows = list(iter_jsonl(path))
    assert [number for number, *_ in rows] == [1, 3, 4]  # the empty line counts and is skipped
    assert [record for _, record, _ in rows] == [{"prompt": "a"}, None, None]
    assert [reason is None for *_, reason in rows] == [True, False, False]
    assert "column 12" in rows[1][2] and "list" in rows[2][2]


def test_lines_of_other_systems_are_read(tmp_path):
    "A byte-order mark at the start, and lines that end as on Windows."
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


def test_text_of_another_encoding_is_a_reason_that_names_the_byte(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"\xff": 2}\n')
    (_, _, reason) = list(iter_jsonl(tmp_path / "rows.jsonl"))[1]
    assert "byte 3" in reason


def test_reading_all_records_stops_at_the_first_broken_line_by_its_number(tmp_path):
    path = write_text(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": \n[2]\n')
    with pytest.raises(DataError, match="line 2"):
        read_jsonl(path)
    with pytest.raises(DataError, match="no such file"):
        read_jsonl(tmp_path / "nowhere.jsonl")


# ---- fingerprints


def test_a_fingerprint_sees_values_and_types_and_no_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    different = [{"a": 1}, {"a": "1"}, {"a": 1.0}, {"a": True}, {"a": None}, {"b": 1}, [1], {}]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_half_a_character_can_be_fingerprinted():
    "Text that was cut inside a surrogate pair cannot be encoded as UTF-8."
    assert fingerprint("\ud800") != fingerprint("\ud801")


def test_fingerprints_are_pinned():
    "A change here would make every stage run again."
    assert fingerprint({"learning_rate": 1e-4}) == "b7f1bba0c3d55bfe"


def test_the_fingerprint_of_a_folder_sees_bytes_names_and_files(tmp_path):
    write_text(tmp_path / "model" / "deep" / "a.txt", "1")
    seen = [fingerprint_files(tmp_path / "model")]
    assert fingerprint_files(tmp_path / "model") == seen[0]
    write_text(tmp_path / "model" / "deep" / "a.txt", "2")
    seen.append(fingerprint_files(tmp_path / "model"))
    os.rename(tmp_path / "model" / "deep" / "a.txt", tmp_path / "model" / "deep" / "b.txt")
    seen.append(fingerprint_files(tmp_path / "model"))
    write_text(tmp_path / "model" / "c.bin", "")
    seen.append(fingerprint_files(tmp_path / "model"))
    assert len(set(seen)) == 4
    assert fingerprint_files(tmp_path / "model", "*.txt") == seen[2]


def test_the_fingerprint_of_a_file_sees_its_bytes_and_not_its_name(tmp_path):
    one, other = write_text(tmp_path / "one", "text"), write_text(tmp_path / "other", "text")
    assert fingerprint_files(one) == fingerprint_files(other)
    write_text(other, "texts")
    assert fingerprint_files(one) != fingerprint_files(other)
    with pytest.raises(DataError, match="no such file"):
        fingerprint_files(tmp_path / "nowhere")


# ---- progress


def test_under_the_runner_progress_is_a_file_and_no_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PREFKIT_PROGRESS", str(tmp_path / "progress.json"))

    def seen():
        return json.loads((tmp_path / "progress.json").read_text())

    with Progress(total=5, label="steps", initial=2) as progress:
        assert seen() == {"label": "steps", "done": 2, "total": 5, "note": ""}
        for _ in range(3):
            progress.update(note="loss 0.69")
    assert seen() == {"label": "steps", "done": 5, "total": 5, "note": "loss 0.69"}
    assert capsys.readouterr().err == ""


def test_by_hand_progress_is_a_bar(monkeypatch, capsys):
    monkeypatch.delenv("PREFKIT_PROGRESS", raising=False)
    with Progress(total=3, label="walking") as progress:
        progress.update(2, note="loss 0.69")
        progress.bar.refresh()
    assert "walking" in (drawn := capsys.readouterr().err) and "2/3" in drawn
