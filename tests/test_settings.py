"""Settings: what a run is told is checked when it is said, and put into the words of torch."""

import pytest
import torch
from prefkit.core import ConfigError
from prefkit.schedules import learning_rate_factor
from prefkit.train.settings import (
    TrainSettings,
    choose_precision,
    make_scheduler,
    total_steps,
    training_arguments,
)

# ---- what is refused (tests/test_train.py has the common mistakes)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"device": "gpu"}, "auto, cpu"),
        ({"layout": "padded"}, "packed"),
        ({"precision": "fp16"}, "bf16"),
        ({"adam_beta1": 1.0}, "adam_beta1: .*below 1"),
        ({"adam_beta2": 1}, "adam_beta2: .*below 1"),
        ({"batch_size": None}, "batch_size"),
        ({"lora_targets": 3}, "lora_targets"),
        ({"lora": "false"}, "lora"),
        ({"learning_rate": 1.5}, "between 0 and 1"),
        ({"gradient_accumulation": 0}, "at least 1"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_may_be(changes, match):
    with pytest.raises(ConfigError, match=match):
        TrainSettings(**changes)


def test_what_may_be_none_or_one_of_two_types_may():
    settings = TrainSettings(max_steps=None, lora_targets=["q_proj"], eval_steps=5)
    assert settings.lora_targets == ["q_proj"] and settings.eval_steps == 5
    assert TrainSettings(epochs=0, max_steps=3).epochs == 0.0  # max_steps decides


# ---- how many steps


@pytest.mark.parametrize(
    "epochs, steps",
    [(1, 3), (2, 6), (0.5, 2)],  # 10 rows in batches of 2 are 5; two of them are a step
)
def test_the_last_step_of_an_epoch_sees_what_is_left(epochs, steps):
    settings = TrainSettings(batch_size=2, gradient_accumulation=2, epochs=epochs)
    assert total_steps(10, settings) == steps


def test_a_number_of_steps_goes_before_epochs():
    assert total_steps(10, TrainSettings(batch_size=2, epochs=7, max_steps=4)) == 4


# ---- the learning rate


def rates(settings, total):
    "The learning rate of each step, as torch's scheduler has it."
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = make_scheduler(optimizer, settings, total), []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_the_scheduler_warms_up_and_falls_as_worked_out_by_hand():
    by_hand = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert rates(TrainSettings(schedule="linear", warmup_steps=2), 6) == by_hand
    assert rates(TrainSettings(schedule="linear", warmup_ratio=0.3), 6) == by_hand  # 1.8, so 2


def test_the_scheduler_takes_the_settings_of_its_decay():
    settings = TrainSettings(schedule="step_decay", decay_factor=0.5, decay_every=2)
    assert rates(settings, 5) == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_a_short_run_can_have_the_relative_schedule_of_a_long_one():
    "700 of 15,000 steps: a decay every 70 ends where one every 1,500 does."
    last = [
        learning_rate_factor(total - 1, total, schedule="step_decay", decay_every=every)
        for total, every in ((700, 70), (15_000, 1_500))
    ]
    assert last[0] == last[1] == 0.9**9


# ---- precision: why weights are trained as float32


def walk(dtype, learning_rate=1e-5, steps=200):
    "A weight of 1.0 after steps whose gradient always says `down`."
    weight = torch.ones(1, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return weight.item()


def test_a_bf16_weight_does_not_move_where_a_float32_weight_does():
    assert walk(torch.float32) == pytest.approx(1 - 200 * 1e-5, abs=1e-4)
    assert walk(torch.bfloat16) == 1.0


def test_a_bf16_weight_moves_when_a_step_is_half_of_its_spacing():
    "Just below 1 the values of bf16 are 1/256 apart."
    assert walk(torch.bfloat16, 0.0019, steps=1) == 1.0
    assert walk(torch.bfloat16, 0.0021, steps=1) < 1.0


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_cpu_computes_in_float32(precision):
    assert choose_precision(TrainSettings(precision=precision), "cpu") == "float32"


def test_bf16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision(TrainSettings(precision="bf16"), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which tf32 may be asked")
def test_tf32_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="tf32"):
        training_arguments(TrainSettings(tf32=True), tmp_path, total=1)


# ---- the words of transformers


def test_transformers_is_told_what_we_were_told(tmp_path):
    settings = TrainSettings(device="cpu", eval_steps=50, batch_size=4, gradient_accumulation=3)
    arguments = training_arguments(settings, tmp_path, total=200)
    assert arguments.max_steps == 200 and arguments.eval_steps == 50
    assert arguments.save_steps == 200  # no save_steps given: at the end only
    assert arguments.per_device_train_batch_size == 4
    assert arguments.gradient_accumulation_steps == 3


def test_transformers_hides_no_loss_and_leaves_the_saved_models_cache_on(tmp_path):
    arguments = training_arguments(TrainSettings(device="cpu"), tmp_path, total=1)
    assert not arguments.logging_nan_inf_filter  # it would show the last finite loss instead
    assert arguments.use_cache  # else the saved model would generate slowly for ever after
    assert arguments.report_to == [] and arguments.disable_tqdm
