"""Settings: what a run is told is checked when it is said, and put into the words of torch."""

import pytest
import torch

from prefkit.core import ConfigError
from prefkit.train.devices import choose_precision
from prefkit.train.loop import learning_rate_at
from prefkit.train.schedule import learning_rate_factor
from prefkit.train.settings import TrainSettings, total_steps

# ---- what is refused


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"learning_rate": "1e-5"}, "write 1.0e-5"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"lora": 1}, "lora"),
        ({"schedule": "cosin"}, "schedule"),
        ({"epochs": -1.0}, "epochs"),
        ({"eval_steps": 0}, "eval_steps"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "Set one"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"epochs": 0.0}, "epochs"),
        ({"device": "gpu"}, "auto, cpu"),
        ({"layout": "padded"}, "packed"),
        ({"precision": "fp8"}, "bf16"),
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
    "The learning rate of each step."
    return [learning_rate_at(step, total, settings) for step in range(total)]


def test_the_rate_warms_up_and_falls_as_worked_out_by_hand():
    by_hand = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert rates(TrainSettings(learning_rate=1.0, schedule="linear", warmup_steps=2), 6) == by_hand
    assert (
        rates(TrainSettings(learning_rate=1.0, schedule="linear", warmup_ratio=0.3), 6) == by_hand
    )  # 1.8, so 2


def test_the_rate_takes_the_settings_of_its_decay():
    settings = TrainSettings(
        learning_rate=1.0, schedule="step_decay", decay_factor=0.5, decay_every=2
    )
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


def test_a_cpu_computes_bf16_by_autocast_and_refuses_fp16_which_it_would_ignore():
    assert choose_precision(TrainSettings(precision="bf16"), "cpu") == "bf16"
    with pytest.raises(ConfigError) as error:
        choose_precision(TrainSettings(precision="fp16"), "cpu")
    assert (error.value.field, error.value.reason) == ("precision", "needs a GPU")
