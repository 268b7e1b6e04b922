"""Checkpoints: whole or not there, of one run only, and followed by the same lines again."""

import json
import shutil

import prefkit.train.saves
import pytest
import torch
from prefkit.model.batches import ANSWERS
from prefkit.train.saves import (
    STATE_FILE,
    OtherRun,
    clear_leftovers,
    cut_lines,
    discard,
    find_checkpoints,
    open_folder,
    rows_fingerprint,
    save_folder,
    with_reference,
    write_claim,
)
from prefkit.model.loading import model_fingerprint
from prefkit.core import ConfigError, write_text
from transformers import Qwen2Config, Qwen2ForCausalLM

from helpers.kills import instants

# ---- why Adam's averages are saved


def test_a_resume_without_adams_averages_takes_another_step():
    "The first step of a fresh Adam is as long as the learning rate, whatever the gradient."

    def last_step(gradients):
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=1.0)
        for gradient in gradients:
            before = weight.item()
            weight.grad = torch.tensor([gradient])
            optimizer.step()
        return weight.item() - before

    assert last_step([0.1]) == pytest.approx(-1, abs=1e-4)
    assert abs(last_step([1.0, 0.1, 0.1])) < 0.7


# ---- rule 1: a folder is whole, or it is not there


def saver(number):
    "Writes two files, one after the other."

    def save(folder):
        write_text(folder / "model.safetensors", f"model {number}")
        write_text(folder / STATE_FILE, str(number))

    return save


def content(folder):
    "None, or the number that both files agree on."
    if not folder.exists():
        return None
    number = (folder / STATE_FILE).read_text()
    assert (folder / "model.safetensors").read_text() == f"model {number}"
    return int(number)


def test_what_stands_under_the_name_is_whole_at_every_instant_of_a_save(tmp_path):
    def start(instant):
        folder = tmp_path / str(instant) / "checkpoint"
        save_folder(folder, saver(1))
        return folder

    left = [
        content(folder) for folder in instants(start, lambda folder: save_folder(folder, saver(2)))
    ]
    assert set(left) <= {None, 1, 2}
    assert left[0] == 1 and left[-1] == 2 and len(left) > 5


def test_after_every_kill_the_leftovers_are_cleared_and_the_save_is_made_again(tmp_path):
    def start(instant):
        return tmp_path / str(instant) / "checkpoint"

    for folder in instants(start, lambda folder: save_folder(folder, saver(1))):
        clear_leftovers(folder.parent)
        assert [path.name for path in folder.parent.glob("*")] in ([], ["checkpoint"])
        save_folder(folder, saver(2))
        assert content(folder) == 2
        assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_saver_that_fails_leaves_the_folder_as_it_was(tmp_path):
    def broken(folder):
        write_text(folder / "model.safetensors", "half a mod")
        raise OSError("no space left")

    save_folder(tmp_path / "checkpoint", saver(1))
    with pytest.raises(OSError):
        save_folder(tmp_path / "checkpoint", broken)
    assert content(tmp_path / "checkpoint") == 1


def test_a_folder_that_is_being_deleted_is_never_half_there(tmp_path):
    def start(instant):
        folder = tmp_path / str(instant) / "checkpoint-50"
        saver(1)(folder)
        return folder

    left = [content(folder) for folder in instants(start, discard)]
    assert left[0] == 1 and left[-1] is None
    discard(tmp_path / "nowhere")  # nothing to do is no error


def test_only_whole_checkpoints_are_found_in_the_order_of_their_steps(tmp_path):
    for step in (100, 50, 9):
        write_text(tmp_path / f"checkpoint-{step}" / STATE_FILE, "{}")
    write_text(tmp_path / "checkpoint-150" / "model.safetensors", "half a mod")  # killed here
    found = find_checkpoints(tmp_path)
    assert list(found) == [9, 50, 100]
    assert found[50] == tmp_path / "checkpoint-50"
    assert find_checkpoints(tmp_path / "nowhere") == {}


def test_clearing_takes_leftovers_and_nothing_of_a_persons(tmp_path):
    kept = ("metrics.jsonl", "notes.txt", ".hidden", "checkpoints/checkpoint-50/prefkit.json")
    gone = (".metrics.jsonl.x1", ".old-checkpoint/a", "checkpoints/.checkpoint-60.partial/a")
    for name in (*kept, *gone):
        write_text(tmp_path / name, "")
    clear_leftovers(tmp_path)
    files = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert files == set(kept)


# ---- rule 2: what was written after the checkpoint is written again


@pytest.mark.parametrize(
    "text, kept",
    [
        (
            '{"step": 40}\n{"step": 50}\n{"step": 57}\n{"step": 58, "lo',
            '{"step": 40}\n{"step": 50}\n',
        ),
        ('{"step": 50}\n{"st', '{"step": 50}\n'),
        ('{"step": 51}\n', ""),
    ],
    ids=["lines after the step", "a line broken off", "nothing is left"],
)
def test_lines_after_the_checkpoint_are_cut(tmp_path, text, kept):
    path = write_text(tmp_path / "metrics.jsonl", text)
    cut_lines(path, 50)
    assert path.read_text() == kept


def test_a_new_start_keeps_no_line_and_makes_the_file(tmp_path):
    path = write_text(tmp_path / "metrics.jsonl", '{"step": 0}\n')
    cut_lines(path, -1)
    assert path.read_text() == ""
    cut_lines(tmp_path / "samples.jsonl", -1)
    assert (tmp_path / "samples.jsonl").read_text() == ""


# ---- rule 3: only the same run is continued


def claim(folder, **settings):
    return open_folder(folder, {"method": "dpo", "settings": settings, "pair": (1, 2)})


def test_a_folder_is_claimed_once_and_continued_by_the_same_run(tmp_path):
    assert claim(tmp_path, learning_rate=1e-4) is False
    assert claim(tmp_path, learning_rate=1e-4) is False  # not finished yet
    stored = json.loads((tmp_path / "training.json").read_text())
    stored.pop("sum")
    write_claim(tmp_path / "training.json", {**stored, "finished": True})
    assert claim(tmp_path, learning_rate=1e-4) is True


def test_another_run_is_refused_by_the_names_of_what_differs(tmp_path):
    claim(tmp_path, learning_rate=1e-4, seed=0)
    with pytest.raises(OtherRun) as error:
        claim(tmp_path, learning_rate=1e-5, seed=0)
    assert isinstance(error.value, ConfigError)
    assert "settings.learning_rate" in str(error.value) and "seed" not in str(error.value)
    with pytest.raises(OtherRun, match="settings.epochs"):
        claim(tmp_path, learning_rate=1e-4, seed=0, epochs=1)  # a setting that it did not have


def small_model():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
        )
    )


def test_two_rows_of_an_embedding_exchanged_are_another_model():
    "The sum of all weights would not see it."
    model = small_model()
    assert model_fingerprint(small_model()) == model_fingerprint(model)
    rows = model.model.embed_tokens.weight
    with torch.no_grad():
        rows.copy_(torch.arange(rows.numel()).view_as(rows))  # whole numbers: sums are exact
        before, total = model_fingerprint(model), rows.sum()
        rows[[3, 4]] = rows[[4, 3]]
    assert rows.sum() == total
    assert model_fingerprint(model) != before


def test_the_same_bytes_of_another_type_are_another_model():
    zeros = torch.nn.Linear(2, 2)
    with torch.no_grad():
        for weight in zeros.parameters():
            weight.zero_()
    assert model_fingerprint(zeros.half()) != model_fingerprint(zeros.bfloat16())


def test_rows_are_told_apart_by_tokens_and_columns():
    rows = [{"prompt_ids": [1, 2], "answer_ids": [3], "label": True}]
    assert rows_fingerprint(rows) == rows_fingerprint([dict(reversed(rows[0].items()))])
    different = [
        rows,
        [{**rows[0], "prompt_ids": [2, 1]}],
        [{**rows[0], "prompt_ids": [1], "answer_ids": [2, 3]}],
        [{**rows[0], "label": False}],
        [*rows, *rows],
        [],
    ]
    assert len({rows_fingerprint(each) for each in different}) == len(different)


# ---- rule 4: what is expensive and fixed is stored once

PAIRS = [
    {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 0], "rejected_ids": [5, 0]},
    {"prompt_ids": [6], "chosen_ids": [7, 0], "rejected_ids": [8, 9, 0]},
]


@pytest.fixture
def computed(monkeypatch):
    "A list with an entry for each time that the reference was computed."
    calls, original = [], prefkit.train.saves.reference_logps

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(prefkit.train.saves, "reference_logps", counted)
    return calls


def reference(folder, model=None, rows=PAIRS, **options):
    "The training rows with their reference, as a run in a folder gets them."
    model = model or small_model()
    return with_reference(model, {"train": rows}, ANSWERS["pairs"], 0, folder, **options)["train"]


def test_the_reference_is_computed_once_and_read_again(tmp_path, computed):
    first, again = reference(tmp_path), reference(tmp_path)
    assert first == again and len(computed) == 1
    assert first[0]["chosen_ids"] == [3, 4, 0]
    assert first[0]["ref_chosen_logps"] < 0 and first[0]["ref_rejected_logps"] < 0


def test_another_run_on_the_same_model_and_rows_finds_it_in_the_cache(tmp_path, computed):
    first = reference(tmp_path / "one", cache=tmp_path / "cache")
    again = reference(tmp_path / "other", cache=tmp_path / "cache")
    assert first == again and len(computed) == 1
    assert (tmp_path / "other" / "reference.json").exists()


def test_other_weights_rows_or_settings_of_the_model_compute_it_anew(tmp_path, computed):
    def turned(model):
        model.config.rope_theta = 77.0
        return model

    def moved(model):
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 0.5
        return model

    options = {"folder": tmp_path / "run", "cache": tmp_path / "cache"}
    reference(**options)
    for count, change in enumerate(
        [
            {"rows": PAIRS[:1]},
            {"model": moved(small_model())},
            {"model": turned(small_model())},
            {"batch_size": 1},
        ],
        start=2,
    ):
        reference(**options, **change)
        assert len(computed) == count, change
    assert len(list((tmp_path / "cache").iterdir())) == 5  # each under a name of its own


def test_a_stored_reference_that_cannot_be_read_is_made_anew(tmp_path, computed):
    first = reference(tmp_path)
    text = (tmp_path / "reference.json").read_text()
    (tmp_path / "reference.json").write_text(text[: len(text) // 2])
    assert reference(tmp_path) == first and len(computed) == 2
    assert (tmp_path / "reference.json").read_text() == text


def test_answers_that_the_model_adds_are_stored_with_their_reference(tmp_path, computed):
    "A method may want answers of the model before training; they cannot be drawn again later."
    drawn = []

    def draw(model, rows):
        drawn.append(len(rows))
        return [[9, 0] for _ in rows]

    answers = (*ANSWERS["pairs"], "sampled")
    given = dict(extra={"sampled": draw}, cache=tmp_path / "cache")
    first, again = (
        with_reference(small_model(), {"train": PAIRS}, answers, 0, tmp_path / "run", **given)
        for _ in range(2)
    )
    assert first == again and drawn == [2] and len(computed) == 1
    assert first["train"][0]["sampled_ids"] == [9, 0]
    assert not (tmp_path / "cache").exists()  # drawn answers are this run's alone
    shutil.rmtree(tmp_path / "run")
    with_reference(small_model(), {"train": PAIRS}, answers, 0, tmp_path / "run", **given)
    assert drawn == [2, 2]
