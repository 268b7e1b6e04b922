"A run replayed, and runs compared: from folders with numbers known by hand, and from a real run."

import json
import re

import pandas as pd
import pytest
from helpers.widgets import cpu_seconds_an_update, moved_everywhere

from prefkit.core import ConfigError, DataError, write_json, write_jsonl
from prefkit.course.training import tiny_rows
from prefkit.model.loading import load_model
from prefkit.report.figures import check_figure
from prefkit.train.loop import train_model
from prefkit.train.settings import TrainSettings
from prefkit.widgets import examples
from prefkit.widgets.examples import keeping
from prefkit.widgets.replay import (
    SINCE,
    CheckpointTokens,
    answers_at,
    changed_words,
    draw_run,
    explore_replay,
)
from prefkit.widgets.runs import explore_runs, on_axis, read_run_folder, settings_apart

ASKED = [{"role": "user", "content": "Is <b>2</b> more?"}]


def lines():
    "Two validations around two lines of training, and what a preference method logs."
    for step, loss, chosen, rejected in ((0, 0.7, 0.0, 0.0), (4, 0.5, -1.0, -3.0)):
        logged = {"logratio_chosen": chosen, "logratio_rejected": rejected}
        yield {"step": step, "epoch": step / 4, "split": "validation", "loss": loss, **logged}
        if not step:
            for at in (2, 4):
                yield {
                    "step": at,
                    "epoch": at / 4,
                    "split": "train",
                    "loss": 0.8 - at / 10,
                    "learning_rate": 1e-4,
                    "seconds": 3.0,
                    "tokens_per_second": 100.0,
                }


def run_folder(folder, **settings):
    folder.mkdir(parents=True)
    write_jsonl(folder / "metrics.jsonl", lines())
    answers = ((0, "I think it is 2."), (4, "It is <i>2</i>."))
    write_jsonl(
        folder / "samples.jsonl",
        [{"step": step, "prompt": ASKED, "answer": answer} for step, answer in answers],
    )
    (folder / "params.yaml").write_text(json.dumps({"method": "dpo", "settings": settings}))
    return folder


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path / "dpo", learning_rate=1e-4, seed=0)


# ---- one run, step by step


def test_words_that_went_are_struck_and_words_that_came_are_underlined():
    told = changed_words("I think it is 2 .", "it is < 3 .")
    assert re.sub(r' style="[^"]*"', "", told) == (
        "<del>I think</del> it is <del>2</del> <ins>&lt; 3</ins> ."
    )
    assert changed_words("the same", "the same") == "the same"


def test_curves_mark_and_title_say_the_step(folder):
    run = read_run_folder(folder)
    figure = draw_run(run, "loss", 2)
    [ax] = figure.axes
    curves = {line.get_label(): line for line in ax.get_lines()}
    assert curves["train"].get_xydata().tolist() == [[2, 0.5], [4, 0.5]]  # means of the window
    assert curves["validation"].get_xydata().tolist() == [[0, 0.7], [4, 0.5]]
    assert ax.get_lines()[-1].get_xdata() == [2, 2]  # the mark
    assert figure.get_suptitle() == "Step 2: loss validation 0.7, train 0.5"
    assert check_figure(figure) == []
    pairs = draw_run(run, "logratio, chosen and rejected", 4)
    assert (
        " ".join(pairs.get_suptitle().split()).split("(")[1] == "validation) chosen −1, rejected −3"
    )
    assert check_figure(pairs) == []


def test_answers_move_with_the_step(folder):
    one = explore_replay(folder)
    assert "Answers at step 4, what changed since step 0" in one.html()
    shown = one.set(step=2).html()  # the validation before
    assert "Answers at step 0:" in shown and "I think it is 2." in shown
    assert "Is &lt;b&gt;2&lt;/b&gt; more?" in shown and "<b>2</b>" not in shown
    assert "&lt;i&gt;2&lt;/i&gt;" in one.set(step=4).html()
    assert "tokens" not in one.controls  # no checkpoints were kept


def test_answers_are_held_against_the_start_or_the_validation_before():
    answers = pd.DataFrame(
        [("Q", 0, "red"), ("Q", 2, "green"), ("Q", 4, "green now")],
        columns=["prompt", "step", "answer"],
    )
    told = [re.sub(r' style="[^"]*"', "", answers_at(answers, 4, since)) for since in SINCE]
    assert "since step 0" in told[0] and "<del>red</del> <ins>green now</ins>" in told[0]
    assert "since step 2" in told[1] and "green <ins>now</ins>" in told[1]
    assert "No answers before step 2" in answers_at(answers.iloc[1:], 1, SINCE[0])


def test_a_replay_takes_every_value_of_its_controls_in_time(folder):
    one = explore_replay(folder)
    moved_everywhere(one)
    states = [{"step": step} for step in (0, 2, 4, 0, 2)]
    assert cpu_seconds_an_update(one, states) < 0.3  # 0.07 on an idle core
    frames = json.loads(re.search(r"frames = (\[.*\]);", one.page())[1])
    assert len(frames) <= 60 and not any("alert" in one for one in frames)


def test_a_run_without_answers_says_how_to_get_them(folder):
    (folder / "samples.jsonl").unlink()
    one = explore_replay(folder)
    assert "sample_prompts" in one.html() and list(one.controls) == ["step", "metric"]


# ---- several runs


def test_only_settings_that_differ_are_shown(tmp_path):
    runs = [
        read_run_folder(run_folder(tmp_path / "a", learning_rate=1e-4, seed=0, lora=True)),
        read_run_folder(run_folder(tmp_path / "b", learning_rate=3e-4, seed=0)),
    ]
    apart = settings_apart(runs)
    assert apart.to_dict("index") == {
        "learning_rate": {"a": "0.0001", "b": "0.0003"},
        "lora": {"a": "True", "b": "—"},
    }


def test_runs_are_compared_in_a_metric_of_choice(tmp_path):
    folders = {name: run_folder(tmp_path / name, seed=i) for i, name in enumerate(("a", "b<"))}
    one = explore_runs(folders)
    assert "Validation loss ends: a at 0.5, b&lt; at 0.5" in one.html()
    shown = one.set(metric="logratio_rejected").html()
    assert "a at −3, " in shown and "<th>seed</th>" in shown
    assert "<th>b&lt;</th>" in shown and "b< " not in shown
    one.set(metric="learning_rate", split="validation")
    assert "nothing to draw" in one.html() and 'role="alert"' in one.html()
    one.set(metric="loss", split="train", axis="seconds", runs=("b<",))
    assert "One run" in one.html() and "seconds of training" not in one.html()


def test_a_learning_rate_is_drawn_as_it_was_and_said_with_its_digits(folder):
    lines = [
        {"step": i, "split": "train", "learning_rate": 2e-5 * i, "seconds": 1.0} for i in range(9)
    ]
    write_jsonl(folder / "metrics.jsonl", lines)
    run = read_run_folder(folder)
    assert run.curve("train", "learning_rate", "dpo")["value"].tolist() == [
        line["learning_rate"] for line in lines
    ]
    one = explore_runs([folder])
    assert "ends: dpo at 0.00016" in one.set(metric="learning_rate", split="train").html()


def test_seconds_and_passes_stand_for_steps_on_the_axis(folder):
    run = read_run_folder(folder)
    line = run.curve("validation", "loss", "dpo")
    assert on_axis(line, run, "seconds")["x"].tolist() == [0.0, 6.0]
    assert on_axis(line, run, "epoch")["x"].tolist() == [0.0, 1.0]


def test_a_comparison_takes_every_value_of_its_controls_in_time(tmp_path):
    folders = {name: run_folder(tmp_path / name, seed=i) for i, name in enumerate("ab")}
    one = explore_runs(folders)
    moved_everywhere(one, silent={"learning_rate"})  # validations log none
    states = [{"metric": name} for name in ("loss", "logratio_chosen", "loss", "logratio_chosen")]
    assert cpu_seconds_an_update(one, states) < 0.3  # 0.08 on an idle core


def test_too_many_runs_are_refused(tmp_path):
    folders = {f"run {i}": run_folder(tmp_path / str(i)) for i in range(7)}
    one = explore_runs(folders)
    assert len(one.state["runs"]) == 6
    assert "Choose fewer" in one.set(runs=tuple(folders)).html()


def test_two_runs_of_one_name_and_no_runs_are_refused(tmp_path):
    same = [run_folder(tmp_path / place / "dpo") for place in "ab"]
    with pytest.raises(ConfigError, match="two are called 'dpo'.*Give names"):
        explore_runs(same)
    with pytest.raises(ConfigError, match="none is given"):
        explore_runs([])


# ---- folders that hold no run, or a damaged one


def emptied(folder):
    (folder / "metrics.jsonl").write_text("")


def broken_line(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "spl')


def other_lines(folder):
    write_jsonl(folder / "metrics.jsonl", [{"epoch": 1}])


def only_steps(folder):
    write_jsonl(folder / "metrics.jsonl", [{"step": 1, "split": "train", "seconds": 1.0}])


def broken_samples(folder):
    (folder / "samples.jsonl").write_text("no json\n")


def broken_params(folder):
    (folder / "params.yaml").write_text("method: [dpo\n")


def broken_claim(folder):
    (folder / "params.yaml").unlink()
    write_json(folder / "training.json", {"finished": True, "sum": "0"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (emptied, r"metrics\.jsonl: no line yet\. Wait"),
        (broken_line, r"metrics\.jsonl, line 5: .*Mend or delete"),
        (other_lines, r"metrics\.jsonl, line 1: no step"),
        (only_steps, r"metrics\.jsonl: no number but"),
        (broken_samples, r"samples\.jsonl, line 1: .*Mend or delete"),
        (broken_params, r"params\.yaml: it is damaged.*delete the file"),
        (broken_claim, r"training\.json: it is damaged.*Train again"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_file(folder, damage, says):
    damage(folder)
    with pytest.raises(DataError, match=says):
        explore_replay(folder)


def test_a_folder_without_a_run_says_which_folder_is_meant(tmp_path):
    with pytest.raises(DataError, match=r"no metrics\.jsonl in it.*data/runs/EXPERIMENT/STAGE"):
        explore_replay(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        explore_replay(tmp_path / "nowhere")


# ---- what the trainer leaves


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Two steps of DPO, with a checkpoint of each kept as the examples keep them."
    model, tokenizer = load_model("data/tiny/base")
    rows, folder = tiny_rows("pairs", 8, tokenizer), tmp_path_factory.mktemp("runs") / "dpo"
    settings = TrainSettings(
        max_steps=2,
        batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        eval_steps=1,
        save_steps=1,
        keep_checkpoints=True,
        sample_tokens=6,
    )
    keep = keeping(folder / "checkpoints", folder / "kept", 2)
    given = rows[:4], rows[4:], folder, settings
    asked = [[{"role": "user", "content": "What does the fox eat?"}]]
    train_model(model, tokenizer, "dpo", *given, sample_prompts=asked, callbacks=(keep,))
    (folder / "kept/checkpoint-1").rename(folder / "checkpoints/checkpoint-1")
    return folder


def test_a_real_run_is_read_with_its_checkpoints(trained):
    run = read_run_folder(trained)
    assert set(run.checkpoints) == {1, 2} and run.params["method"] == "dpo"
    assert {"loss", "logratio, chosen and rejected"} <= set(run.named)
    one = explore_replay(run)
    assert list(one.controls) == ["step", "metric", "since", "tokens"]
    assert "log-probs from step 1 to 2 (nats)" in one.set(tokens=True, since=SINCE[1]).html()


def test_tokens_change_by_what_the_checkpoints_say(trained):
    run = read_run_folder(trained)
    tokens = CheckpointTokens(run)
    prompt, answer = next(iter(tokens.prompts)), "The fox eats."
    old, new = tokens.score(1, prompt, answer), tokens.score(2, prompt, answer)
    assert "".join(text for text, _ in old) == answer
    moved = sum(one - other for (_, one), (_, other) in zip(new, old, strict=True))
    assert abs(moved) > 1e-3  # they are two models
    shown = tokens.html(prompt, answer, 1, 2)
    assert f"from step 1 to 2 (nats): {moved:+.1f} in all".replace("-", "−") in shown
    assert "those of 1, 2" in tokens.html(prompt, answer, 0, 1)


def test_examples_that_are_whole_are_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path))
    called = []
    monkeypatch.setattr(examples, "start_model", lambda: called.append("start") or (None, None))

    def fake(name, folder, model, tokenizer):
        called.append(name)
        for step in range(examples.SAVED, examples.STEPS + 1, examples.SAVED):
            write_json(folder / f"checkpoints/checkpoint-{step}/prefkit.json", {})

    monkeypatch.setattr(examples, "_train", fake)
    first = examples.example_runs()
    assert called == ["start", "dpo", "ipo"] and list(first) == ["dpo", "ipo"]
    assert examples.example_runs() == first and len(called) == 3


@pytest.mark.slow
def test_the_examples_are_real_runs_with_answers_and_four_checkpoints():
    one = examples.example_replay()
    assert list(one.controls) == ["step", "metric", "since", "tokens"]
    assert "log-probs from step 10 to 40" in one.set(tokens=True).html()
    assert set(read_run_folder(examples.example_runs()["dpo"]).checkpoints) == {10, 20, 30, 40}
    apart = examples.example_comparison()
    assert "<th>schedule</th>" in apart.html() and "<th>seed</th>" not in apart.html()
