"""Promises of prefkit.train.loop and prefkit.train.schedule, on models so small that a step takes
milliseconds.
"""

import copy, json, math, os, random, shutil, subprocess, sys, time, weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, get_scheduler

import prefkit.train.saves, prefkit.model.sampling
from helpers.runs import timeless
import prefkit.train.loop as train
from prefkit.data.chat import pad_batch
from prefkit.core import ConfigError, DataError, PrefkitError, read_jsonl
from prefkit.model.logps import sequence_logps
from prefkit.losses import dpo_loss, sft_loss
from prefkit.train.schedule import epoch_batches, learning_rate_factor
from prefkit.model.batches import ANSWERS
from prefkit.train.methods import METHODS, Method, add_method, get_method, measure
from prefkit.train.log import TIME_FIELDS
from prefkit.train.loop import train_model
from prefkit.train.settings import TrainSettings
from prefkit.model.batches import batch_logps, collate, reference_logps
from prefkit.train.saves import find_checkpoints

VOCABULARY, END = 60, 0


class StubTokenizer:
    "All that training asks of a tokenizer."

    pad_token_id = eos_token_id = END

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.txt").write_text("stub")


def small_model(seed=0):
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            tie_word_embeddings=True,
        )
    )


def encoded_rows(n, kind, seed=0, longest=20):
    draw = random.Random(seed)
    # it ends with pad == eos
    ids = lambda: [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(2, longest))] + [END]
    names = (
        ("prompt_ids", "response_ids")
        if kind == "sft"
        else ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    return [{name: ids() for name in names} for _ in range(n)]


def settings(**changes):
    return TrainSettings(
        **{
            "learning_rate": 3e-3,
            "batch_size": 4,
            "logging_steps": 1,
            "show_samples": 0,
            "device": "cpu",
            **changes,
        }
    )


def fit(
    folder,
    method="sft",
    rows=None,
    validation=None,
    model=None,
    hyperparameters=None,
    sample_prompts=None,
    probe=None,
    **changes,
):
    kind = get_method(method).kind
    rows = encoded_rows(24, kind) if rows is None else rows
    return train_model(
        model or small_model(),
        StubTokenizer(),
        method,
        rows,
        validation,
        folder,
        settings(**changes),
        hyperparameters,
        sample_prompts,
        probe,
    )


def steps_of(result, split="train"):
    return [line for line in result.metrics if line["split"] == split]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def full_logps(model, prompts, answers):
    batch = pad_batch(prompts, answers, END)
    return sequence_logps(
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
        batch["labels"],
    )


def loop_by_hand(model, method, rows, s, total, reference=None):
    "Plain torch; -> (losses, gradient norms before clipping)."
    optimizer, losses, norms, step = (
        torch.optim.AdamW(model.parameters(), lr=s.learning_rate, weight_decay=0.0),
        [],
        [],
        0,
    )
    lengths = [train.row_length(row, get_method(method).answers()) for row in rows]
    for epoch in range(99):
        for numbers in epoch_batches(
            lengths, s.batch_size, seed=s.seed, epoch=epoch, group_by_length=s.group_by_length
        ):
            if step == total:
                return losses, norms
            picked = [rows[i] for i in numbers]
            prompts = [row["prompt_ids"] for row in picked]
            if method == "sft":
                answers = [row["response_ids"] for row in picked]
                loss = -full_logps(model, prompts, answers).sum() / sum(map(len, answers))
            else:
                chosen, rejected = (
                    full_logps(model, prompts, [row[f"{side}_ids"] for row in picked])
                    for side in ("chosen", "rejected")
                )
                ref = [
                    torch.tensor([reference[i][f"ref_{side}_logps"] for i in numbers])
                    for side in ("chosen", "rejected")
                ]
                loss = -F.logsigmoid(0.1 * ((chosen - ref[0]) - (rejected - ref[1]))).mean()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), s.max_grad_norm).item())
            for group in optimizer.param_groups:
                group["lr"] = s.learning_rate * learning_rate_factor(
                    step, total, schedule=s.schedule, warmup=s.warmup_steps
                )
            optimizer.step(), optimizer.zero_grad()
            losses.append(loss.item())
            step += 1


# ---- the loop
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_trainer_walks_through_the_losses_of_the_loop_by_hand(tmp_path, method):
    kind, changes = (
        get_method(method).kind,
        dict(schedule="cosine", warmup_steps=3, epochs=2.0, max_grad_norm=0.5),
    )
    rows = encoded_rows(30, kind)  # 30 rows in batches of 4: the last batch of an epoch is smaller
    reference = reference_logps(small_model(), rows, ANSWERS[kind], END)
    result = fit(tmp_path / "run", method, rows, **changes)
    losses, norms = loop_by_hand(small_model(), method, rows, settings(**changes), 16, reference)
    lines = steps_of(result)
    assert [line["step"] for line in lines] == list(range(1, 17))
    torch.testing.assert_close([line["loss"] for line in lines], losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close([line["grad_norm"] for line in lines], norms, rtol=1e-3, atol=1e-4)
    assert max(norms) > 0.5  # clipping was at work, so what is logged is the norm before it


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_accumulated_micro_batches_equal_the_big_batch(tmp_path, method):
    # lengths from 3 to 21: a mean of means would differ
    rows = encoded_rows(24, get_method(method).kind)
    big = fit(tmp_path / "big", method, rows, batch_size=12)
    small = fit(tmp_path / "small", method, rows, batch_size=3, gradient_accumulation=4)
    for one, other in zip(steps_of(big), steps_of(small), strict=True):
        # policy = reference: which reward is the larger one is rounding
        rounding = {"reward_accuracy"} if one["step"] == 1 else set()
        for name in set(one) - set(TIME_FIELDS) - {"split"} - rounding:
            assert one[name] == pytest.approx(other[name], rel=2e-4, abs=1e-5), name
    for name, value in weights(big.model).items():
        torch.testing.assert_close(value, weights(small.model)[name], rtol=1e-3, atol=2e-5)


def test_gradient_of_micro_batches_equals_that_of_the_big_batch_and_naive_averaging_does_not():
    rows = [{"prompt_ids": [5, 6], "response_ids": [7] * n} for n in (1, 2, 18, 19)]

    def gradient(parts, naive):
        model, total = small_model(), sum(len(row["response_ids"]) for row in rows)
        for part in parts:
            batch = collate(part, ANSWERS["sft"], END)
            (
                sft_loss(batch_logps(model, batch)).sum()
                / (batch.response_tokens * len(parts) if naive else total)
            ).backward()
        return model.model.embed_tokens.weight.grad

    whole = gradient([rows], naive=False)
    torch.testing.assert_close(
        gradient([rows[:2], rows[2:]], naive=False), whole, rtol=1e-4, atol=1e-6
    )
    assert (gradient([rows[:2], rows[2:]], naive=True) - whole).norm() > 0.05 * whole.norm()


def test_logps_of_a_batch_equal_a_plain_forward_pass_with_a_mask():
    for kind in ("sft", "pairs"):
        rows, model = encoded_rows(9, kind), small_model()
        found = batch_logps(model, collate(rows, ANSWERS[kind], END))
        wanted = torch.cat(
            [
                full_logps(
                    model, [row["prompt_ids"] for row in rows], [row[f"{side}_ids"] for row in rows]
                )
                for side in ANSWERS[kind]
            ]
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_a_row_is_padded_with_does_not_matter():
    rows = encoded_rows(6, "pairs")
    ours, other = (
        batch_logps(small_model(), collate(rows, ANSWERS["pairs"], pad)) for pad in (END, 17)
    )
    assert torch.equal(ours, other)


def test_a_line_averages_over_all_micro_batches_since_the_last_one(tmp_path):
    rows = encoded_rows(20, "sft")
    single = steps_of(fit(tmp_path / "single", rows=rows, batch_size=2))
    window = steps_of(fit(tmp_path / "window", rows=rows, batch_size=2, logging_steps=4))
    assert [line["step"] for line in window] == [4, 8, 10]
    lengths = [
        len(rows[i]["response_ids"])
        for i in sum(epoch_batches([train.row_length(row, ANSWERS["sft"]) for row in rows], 2), [])
    ]
    tokens = [sum(lengths[i : i + 2]) for i in range(0, 20, 2)]
    loss = sum(line["loss"] * n for line, n in zip(single[:4], tokens)) / sum(tokens[:4])
    assert window[0]["loss"] == pytest.approx(loss, rel=1e-6)
    for name in ("grad_norm", "logps", "length"):
        assert window[0][name] == pytest.approx(
            sum(line[name] for line in single[:4]) / 4, rel=1e-6
        )


def test_dpo_starts_at_ln_2_and_logs_ratios_without_and_rewards_with_beta(tmp_path):
    result = fit(
        tmp_path / "run",
        "dpo",
        validation=encoded_rows(6, "pairs", 1),
        hyperparameters={"beta": 0.25},
    )
    start = steps_of(result, "validation")[0]
    assert (
        start["step"] == 0
        and start["loss"] == pytest.approx(math.log(2), abs=1e-6)
        and start["reward_accuracy"] == 0.5
    )
    for line in result.metrics:
        for side in ("chosen", "rejected"):
            assert line[f"reward_{side}"] == pytest.approx(
                0.25 * line[f"logratio_{side}"], abs=1e-6
            )
        assert line["reward_margin"] == pytest.approx(
            line["reward_chosen"] - line["reward_rejected"], abs=1e-6
        )
    assert set(steps_of(result)[0]) == {
        "step",
        "epoch",
        "split",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "seconds",
        "logps_chosen",
        "logps_rejected",
        "logratio_chosen",
        "logratio_rejected",
        "reward_chosen",
        "reward_rejected",
        "reward_margin",
        "reward_accuracy",
        "length_chosen",
        "length_rejected",
    }


def test_probe_pairs_are_watched_during_sft(tmp_path):
    probe = encoded_rows(5, "pairs", 7)
    result = fit(tmp_path / "run", probe=probe)
    logps = batch_logps(result.model, collate(probe, ANSWERS["pairs"], END)).chunk(2)
    last = steps_of(result, "validation")[-1]
    assert last["logps_chosen"] == pytest.approx(logps[0].mean().item(), rel=1e-5)
    assert last["logps_rejected"] == pytest.approx(logps[1].mean().item(), rel=1e-5)


# ---- reference and memory
# ----------------------------------------------------------------------------------------------


def all_random_states():
    return (
        random.getstate(),
        torch.get_rng_state().tolist(),
        __import__("numpy").random.get_state()[1].tolist(),
    )


def test_reference_log_probs_are_right_and_touch_neither_random_state_nor_mode():
    rows, model = encoded_rows(11, "pairs"), small_model().train()
    before = all_random_states()
    found = reference_logps(model, rows, ANSWERS["pairs"], END, batch_size=4)
    assert all_random_states() == before and model.training
    wanted = full_logps(
        model, [row["prompt_ids"] for row in rows], [row["rejected_ids"] for row in rows]
    )
    torch.testing.assert_close(
        torch.tensor([row["ref_rejected_logps"] for row in found]),
        wanted.detach(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_reference_of_a_model_with_adapters_is_the_model_without_them():
    rows, plain = encoded_rows(6, "sft"), small_model()
    wanted = reference_logps(plain, rows, ANSWERS["sft"], END)
    adapted = train.add_lora(small_model(), settings(lora=True, lora_dropout=0.5))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert reference_logps(adapted, rows, ANSWERS["sft"], END) == wanted


def test_weights_stored_as_bf16_are_trained_as_float32(tmp_path):
    stored = small_model().bfloat16()
    plain = copy.deepcopy(stored).float()
    runs = [
        fit(tmp_path / name, "dpo", model=model, learning_rate=1e-5)
        for name, model in (("stored", stored), ("plain", plain))
    ]
    assert timeless(runs[0].metrics) == timeless(runs[1].metrics) and stored.dtype == torch.float32


def test_reference_is_computed_once_and_kept_for_a_resume(tmp_path, monkeypatch):
    calls, original = [], reference_logps
    monkeypatch.setattr(
        prefkit.train.saves, "reference_logps", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    crash_at(monkeypatch, 4)
    with pytest.raises(Crash):
        fit(tmp_path / "run", "dpo", save_steps=2)
    monkeypatch.undo()
    monkeypatch.setattr(
        prefkit.train.saves, "reference_logps", lambda *a, **k: pytest.fail("computed again")
    )
    # train and validation
    assert len(calls) == 2 and fit(tmp_path / "run", "dpo", save_steps=2).resumed_from == 4


def test_validation_keeps_no_logits_and_leaves_the_training_untouched(tmp_path):
    seen, alive, model = [], [], small_model()
    model.lm_head.register_forward_hook(
        lambda module, args, out: (
            seen.append(weakref.ref(out)) or alive.append(sum(r() is not None for r in seen))
        )
    )
    measure(model, encoded_rows(40, "sft"), get_method("sft"), {}, END, batch_size=4)
    # the look whether the head is one, then this batch's and at most the last one's
    assert len(seen) == 11 and max(alive) <= 2
    often = fit(
        tmp_path / "often",
        validation=encoded_rows(8, "sft", 1),
        eval_steps=2,
        lora=True,
        lora_dropout=0.3,
    )
    never = fit(tmp_path / "never", lora=True, lora_dropout=0.3)
    assert timeless(steps_of(often)) == timeless(steps_of(never))


# ---- stopping and going on
# -----------------------------------------------------------------------------------------------


class Crash(BaseException):
    pass


def crash_at(monkeypatch, step):
    original = train.learning_rate_at

    def stop(number, *args):
        if number == step:
            raise Crash
        return original(number, *args)

    monkeypatch.setattr(train, "learning_rate_at", stop)


KILLED = dict(
    method="dpo",
    epochs=5.0,
    logging_steps=3,
    eval_steps=5,
    save_steps=4,
    warmup_steps=4,
    keep_best=True,
    keep_checkpoints=True,
)


def killed_run(folder):
    "30 steps whose lines, validations and checkpoints do not fall together."
    # an answer that depends on every weight
    train.generate = lambda model, tokenizer, prompts, **kwargs: [
        {
            "text": repr(sum(p.double().sum().item() for p in model.parameters())),
            "tokens": 1,
            "ended": True,
        }
        for _ in prompts
    ]
    return fit(
        folder,
        validation=encoded_rows(8, "pairs", 1),
        sample_prompts=[[{"role": "user", "content": "hello"}]],
        **KILLED,
    )


def test_answers_are_sampled_at_their_own_interval(tmp_path, monkeypatch):
    told = [{"text": "yes", "tokens": 1, "ended": True}]
    monkeypatch.setattr(train, "generate", lambda *given, **options: told)
    asked = dict(validation=encoded_rows(4, "pairs", 1), max_steps=6, eval_steps=2)
    asked |= dict(sample_prompts=[[{"role": "user", "content": "hello"}]])
    for every, steps in ((None, [0, 2, 4, 6]), (4, [0, 4])):
        result = fit(tmp_path / str(every), "dpo", sample_steps=every, **asked)
        lines = read_jsonl(tmp_path / str(every) / "samples.jsonl")
        assert [line["step"] for line in lines] == steps
        assert [line["step"] for line in steps_of(result, "validation")] == [0, 2, 4, 6]
    with pytest.raises(ConfigError, match=r"sample_steps: 3 is no multiple .* \(2\).* Take 4"):
        settings(sample_steps=3, eval_steps=2)


CHILD = """
import sys, time; sys.path.insert(0, sys.argv[1])
import test_train, prefkit.train.methods
forward = prefkit.train.methods.batch_logps
def slow(*args): time.sleep(0.02); return forward(*args)
prefkit.train.methods.batch_logps = slow
result = test_train.killed_run(sys.argv[2])
print("resumed from", result.resumed_from)
"""


@pytest.mark.slow
def test_a_run_killed_at_three_random_points_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    # put back afterwards
    monkeypatch.setattr(train, "generate", train.generate)
    whole = killed_run(tmp_path / "whole")
    folder, points, resumed = (
        tmp_path / "killed",
        sorted(random.Random().sample(range(2, 30), 3)),
        "",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for point in [*points, None]:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        path, end = folder / "metrics.jsonl", time.monotonic() + 60
        while point and child.poll() is None and time.monotonic() < end:
            lines = path.read_text().splitlines() if path.exists() else []
            if any(f'"step": {step},' in line for line in lines for step in range(point, 31)):
                break
            time.sleep(0.005)
        if point:
            time.sleep(random.uniform(0, 0.1))
            assert child.poll() is None, f"it was over before it could be killed at {points}"
            child.kill()
        resumed = child.communicate(timeout=60)[0] or resumed
    assert child.returncode == 0 and resumed.split()[-1] != "None", points
    for name in ("metrics.jsonl", "samples.jsonl"):
        read = lambda run: timeless(
            json.loads(line) for line in (tmp_path / run / name).read_text().splitlines()
        )
        assert read("killed") == read("whole"), (name, points)
    for file in ("checkpoint/model.safetensors", "checkpoints/checkpoint-30/model.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (
            file,
            points,
        )
    assert whole.steps == 30


@pytest.mark.parametrize(
    "changes",
    [
        dict(lora=True, lora_dropout=0.2),
        dict(gradient_accumulation=2, group_by_length=True, epochs=3.0),
    ],
)
def test_adapters_dropout_and_accumulation_resume_bit_for_bit(tmp_path, monkeypatch, changes):
    changes = dict(
        save_steps=2, eval_steps=3, logging_steps=5, validation=encoded_rows(4, "sft", 1), **changes
    )
    whole = fit(tmp_path / "whole", **changes)
    for step in (3, 5):
        with monkeypatch.context() as patch:
            crash_at(patch, step)
            with pytest.raises(Crash):
                fit(tmp_path / "broken", **changes)
    broken = fit(tmp_path / "broken", **changes)
    assert broken.resumed_from == 4 and timeless(broken.metrics) == timeless(whole.metrics)
    assert_same_weights(weights(broken.model), weights(whole.model))


def test_a_checkpoint_that_was_broken_off_is_not_taken(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole")
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(Crash):
            fit(tmp_path / "run", save_steps=2)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert list(find_checkpoints(checkpoints)) == [4]
    half = checkpoints / "checkpoint-5"  # everything but the last file that is written
    shutil.copytree(checkpoints / "checkpoint-4", half)
    (half / prefkit.train.saves.STATE_FILE).unlink()
    (checkpoints / ".writing" / "checkpoint-6").mkdir(parents=True)
    # a broken line
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    # a temporary file of an atomic write
    (tmp_path / "run" / ".reference.json.x1y2").write_text("{")
    again = fit(tmp_path / "run", save_steps=2)
    assert sorted(os.listdir(tmp_path / "run")) == [
        "checkpoint",
        "metrics.jsonl",
        "samples.jsonl",
        "training.json",
    ]
    assert again.resumed_from == 4 and timeless(again.metrics) == timeless(whole.metrics)


def test_a_kill_between_the_last_step_and_the_end_only_finishes(tmp_path, monkeypatch):
    whole = fit(
        tmp_path / "whole", validation=encoded_rows(4, "sft", 1), keep_best=True, eval_steps=2
    )
    with monkeypatch.context() as patch:
        patch.setattr(train.TrainingRun, "finish", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            fit(
                tmp_path / "run", validation=encoded_rows(4, "sft", 1), keep_best=True, eval_steps=2
            )
    again = fit(
        tmp_path / "run", validation=encoded_rows(4, "sft", 1), keep_best=True, eval_steps=2
    )
    assert (
        again.steps == whole.steps
        and again.best_step == whole.best_step
        and timeless(again.metrics) == timeless(whole.metrics)
    )
    assert_same_weights(weights(again.model), weights(whole.model))


def test_a_finished_run_is_read_and_not_run_again(tmp_path, monkeypatch):
    first = fit(tmp_path / "run")
    monkeypatch.setattr(train, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = fit(tmp_path / "run")
    assert again.metrics == first.metrics
    assert_same_weights(weights(again.model), weights(first.model))


def test_the_same_seed_twice_gives_the_same_lines_and_another_seed_others(tmp_path):
    runs = [
        fit(tmp_path / str(i), "dpo", validation=encoded_rows(4, "pairs", 1), seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert timeless(runs[0].metrics) == timeless(runs[1].metrics) != timeless(runs[2].metrics)
    assert_same_weights(weights(runs[0].model), weights(runs[1].model))


def test_a_folder_with_another_run_in_it_is_refused(tmp_path):
    fit(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"other settings\.learning_rate"):
        fit(tmp_path / "run", learning_rate=1e-3)
    with pytest.raises(ConfigError, match=r"other data\.train"):
        fit(tmp_path / "run", rows=encoded_rows(24, "sft", 5))


def test_an_output_folder_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        fit(tmp_path / "file" / "run")


# ---- schedules, stopping early, the best
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, theirs",
    [("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine")],
)
def test_schedules_equal_those_of_transformers(ours, theirs):
    for warmup in (0, 7):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=50)
        for step in range(50):
            assert learning_rate_factor(step, 50, schedule=ours, warmup=warmup) == pytest.approx(
                scheduler.get_last_lr()[0], abs=1e-12
            )
            optimizer.step(), scheduler.step()


def test_step_decay_multiplies_by_0_9_every_1500_steps_as_torchs_step_lr():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1500, gamma=0.9)
    for step in range(4600):
        assert learning_rate_factor(step, 9999, schedule="step_decay") == pytest.approx(
            scheduler.get_last_lr()[0], rel=1e-9
        )
        optimizer.step(), scheduler.step()


def test_logged_learning_rate_is_the_one_the_step_was_taken_with(tmp_path):
    lines = steps_of(
        fit(tmp_path / "run", schedule="step_decay", decay_every=2, learning_rate=1e-3)
    )
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [1e-3, 1e-3, 9e-4, 9e-4, 8.1e-4, 8.1e-4]
    )


def test_early_stopping_ends_with_the_weights_of_the_best_validation(tmp_path):
    validation = encoded_rows(8, "sft", 99)  # nothing to be learned for: random tokens
    changes = dict(
        rows=encoded_rows(8, "sft"),
        validation=validation,
        epochs=40.0,
        eval_steps=2,
        learning_rate=1e-2,
        schedule="constant",
    )
    result = fit(tmp_path / "run", early_stopping_patience=3, keep_best=True, **changes)
    losses = {line["step"]: line["loss"] for line in steps_of(result, "validation") if line["step"]}
    assert (
        result.best_step == min(losses, key=losses.get)
        and result.steps == result.best_step + 6 < 80
    )
    assert measure(result.model, validation, get_method("sft"), {}, END)["loss"] == pytest.approx(
        result.best_loss, rel=1e-6
    )
    last = fit(tmp_path / "last", early_stopping_patience=3, **changes)
    assert measure(last.model, validation, get_method("sft"), {}, END)["loss"] == pytest.approx(
        losses[result.steps], rel=1e-6
    )


def test_patience_is_remembered_over_a_resume(tmp_path, monkeypatch):
    changes = dict(
        rows=encoded_rows(8, "sft"),
        validation=encoded_rows(8, "sft", 99),
        epochs=40.0,
        eval_steps=2,
        save_steps=2,
        learning_rate=1e-2,
        schedule="constant",
        early_stopping_patience=3,
        keep_best=True,
    )
    whole = fit(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        crash_at(patch, whole.best_step + 4)  # two validations without gain
        with pytest.raises(Crash):
            fit(tmp_path / "run", **changes)
    again = fit(tmp_path / "run", **changes)
    assert (
        again.resumed_from == whole.best_step + 4
        and again.steps == whole.steps
        and timeless(again.metrics) == timeless(whole.metrics)
    )
    assert_same_weights(weights(again.model), weights(whole.model))


def test_keep_best_without_validation_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="validation_rows"):
        fit(tmp_path / "run", keep_best=True)


@pytest.mark.parametrize("group_by_length", [False, True])
def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(group_by_length):
    lengths = [random.Random(i).randint(1, 90) for i in range(1003)]
    epochs = [
        epoch_batches(lengths, 8, seed=3, epoch=e, group_by_length=group_by_length, group=2)
        for e in (0, 0, 1)
    ]
    for batches in epochs:
        assert sorted(sum(batches, [])) == list(range(1003)) and [len(b) for b in batches] == [
            8
        ] * 125 + [3]
    assert epochs[0] == epochs[1] != epochs[2]
    width = lambda batches: sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    if group_by_length:
        assert width(epochs[0]) < 0.7 * width(epoch_batches(lengths, 8, seed=3))


# ---- what goes wrong
# --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_and_the_way_out(tmp_path):
    add_method(
        Method(
            "broken", lambda policy_logps: policy_logps / (policy_logps > 0), "sft", reference=False
        )
    )
    try:
        with pytest.raises(
            PrefkitError, match=r"step 1: the loss is (-inf|nan).*Lower learning_rate"
        ):
            fit(tmp_path / "run", "broken")
    finally:
        del METHODS["broken"]
    model = small_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(PrefkitError, match="step 1"):
        fit(tmp_path / "nan", model=model)


def test_a_method_is_one_row(tmp_path):
    def loss(
        policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, *, lam=0.1
    ):
        chosen = policy_chosen_logps / chosen_lengths
        rejected = policy_rejected_logps / rejected_lengths
        return -chosen - lam * F.logsigmoid(chosen - rejected)

    add_method(Method("orpo_like", loss, "pairs", reference=False, defaults={"lam": 0.2}))
    add_method(
        Method("sft_per_example", sft_loss, "sft", reference=False, optional_inputs=("lengths",))
    )
    try:
        result = fit(tmp_path / "orpo", "orpo_like", hyperparameters={"lam": 0.3})
        assert (
            not (tmp_path / "orpo" / "reference.json").exists()
            and "logratio_chosen" not in result.metrics[-1]
        )
        rows = encoded_rows(4, "sft")
        line = steps_of(fit(tmp_path / "mean", "sft_per_example", rows))[0]
        logps = full_logps(
            small_model(),
            [row["prompt_ids"] for row in rows],
            [row["response_ids"] for row in rows],
        )
        assert line["loss"] == pytest.approx(
            (-logps / torch.tensor([len(row["response_ids"]) for row in rows])).mean().item(),
            rel=1e-5,
        )
    finally:
        del METHODS["orpo_like"], METHODS["sft_per_example"]


def test_rows_of_the_table_that_cannot_work_are_refused():
    for row, match in (
        (Method("x", dpo_loss, "pairs", reference=False), "reference"),
        (Method("x", dpo_loss, "sft", reference=True), "policy_chosen"),
        (Method("x", sft_loss, "sft", reference=False, defaults={"beta": 1}), "beta"),
        (Method("x", sft_loss, "triples", reference=False), "triples"),
    ):
        with pytest.raises(ConfigError, match=match):
            add_method(row)
    assert "x" not in METHODS


def test_unknown_methods_and_hyperparameters_are_named_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean `dpo`"):
        get_method("dpoo")
    with pytest.raises(ConfigError, match="Did you mean `beta`"):
        get_method("dpo").hyperparameters({"betta": 1.0})
    with pytest.raises(ConfigError, match=r"beta is -1\.0, but must be"):
        get_method("dpo").hyperparameters({"beta": -1.0})


def test_rows_of_another_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match="train_rows, row 0: chosen_ids, rejected_ids missing"):
        fit(tmp_path / "kind", "dpo", encoded_rows(4, "sft"))
    with pytest.raises(DataError, match="no rows"):
        fit(tmp_path / "none", rows=[])


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"precision": "fp16"}, "precision"),
        ({"sharding": "fsdp"}, "sharding"),
        ({"tf32": True}, "tf32"),
        ({"processes": 2}, "processes"),
        ({"tracker": "wandb_"}, "tracker"),
    ],
)
def test_what_a_cpu_would_ignore_is_refused_by_name(tmp_path, changes, field):
    with pytest.raises(ConfigError) as error:
        fit(tmp_path / "run", **changes)
    assert field in str(error.value) and not (tmp_path / "run" / "training.json").exists()


# ---- LoRA
# --------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_no_number(tmp_path):
    plain, spared = (
        fit(tmp_path / str(on), "dpo", max_steps=5, gradient_checkpointing=on)
        for on in (False, True)
    )
    assert [line["loss"] for line in steps_of(spared)] == pytest.approx(
        [line["loss"] for line in steps_of(plain)], abs=1e-6
    )
    for name, weight in weights(plain.model).items():
        torch.testing.assert_close(weights(spared.model)[name], weight, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_compiled_body_learns_the_same_and_its_checkpoint_has_the_same_names(
    tmp_path, monkeypatch
):
    asked, compiled = [], torch.nn.Module.compile

    # the graphs are caught and differentiated; generating C++ from them would take minutes
    def compile_eagerly(self, **given):
        asked.append((type(self).__name__, given))
        return compiled(self, backend="aot_eager", **given)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    plain, fast = (fit(tmp_path / str(on), "dpo", max_steps=3, compile=on) for on in (False, True))
    assert asked == [("Qwen2Model", {"dynamic": True})]
    assert [line["loss"] for line in steps_of(fast)] == pytest.approx(
        [line["loss"] for line in steps_of(plain)], abs=1e-5
    )
    saved = Qwen2ForCausalLM.from_pretrained(tmp_path / "True" / "checkpoint")
    for name, weight in weights(plain.model).items():
        torch.testing.assert_close(saved.state_dict()[name], weight, atol=1e-4, rtol=1e-4)


def test_lora_trains_adapters_alone_and_merges_them(tmp_path):
    from peft import PeftModel

    rows = encoded_rows(24, "pairs")
    result = fit(tmp_path / "run", "dpo", rows, lora=True, lora_rank=4, learning_rate=1e-2)
    assert steps_of(result)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and result.metrics[
        -1
    ]["loss"] < math.log(2)
    adapted = PeftModel.from_pretrained(small_model(), tmp_path / "run" / "adapter")
    ids = torch.tensor([rows[0]["prompt_ids"]])
    torch.testing.assert_close(
        adapted(input_ids=ids).logits, result.model(input_ids=ids).logits, rtol=1e-4, atol=1e-4
    )
    stored = Qwen2ForCausalLM.from_pretrained(result.path)
    assert_same_weights(weights(stored), weights(result.model))
    assert torch.equal(stored.model.embed_tokens.weight, small_model().model.embed_tokens.weight)
    # transformers' trainer would have stored False, and generation would have been slow
    assert stored.config.use_cache
    assert (result.path / "tokenizer.txt").exists()
