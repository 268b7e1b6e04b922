"""A run has some thirty numbers besides its model and data.

They stand in one place, each with a type, a range and a sentence, and a wrong one is found before
anything is loaded.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin


from prefkit.model.batches import LAYOUTS
from prefkit.core import ConfigError
from prefkit.losses import varied_temperatures
from prefkit.train.rollout import check_draws
from prefkit.train.schedule import SCHEDULES


@dataclass
class StepSettings:
    "How steps are taken: the first part of `TrainSettings`."

    learning_rate: float = 1e-4  # at the top of the schedule
    schedule: str = "linear"  # constant, linear, cosine or step_decay
    warmup_ratio: float = 0.0  # share of all steps over which the rate rises from 0 ...
    warmup_steps: int = 0  # ... or their number
    decay_factor: float = 0.9  # step_decay: the rate is multiplied by this ...
    decay_every: int = 1500  # ... every so many steps
    batch_size: int = 32  # rows (or pairs) in one forward pass
    gradient_accumulation: int = 1  # forward passes in one optimiser step
    epochs: float = 1.0  # passes over the data, unless max_steps is given
    max_steps: int | None = None  # optimiser steps
    weight_decay: float = 0.0  # AdamW's, on matrices only: not on biases and norms
    max_grad_norm: float = 1.0  # gradients longer than this are cut to it; 0: never
    adam_beta1: float = 0.9  # AdamW: memory of the gradient
    adam_beta2: float = 0.999  # AdamW: memory of its square
    adam_epsilon: float = 1e-8  # AdamW: added to the denominator


@dataclass
class TrainSettings(StepSettings):
    """Everything about a run that is neither model, data nor the loss's own hyper-parameters;
    checked when made.
    """

    logging_steps: int = 10  # a line in metrics.jsonl every so many steps
    eval_steps: int | None = None  # validation every so many steps, besides the start and the end
    save_steps: int | None = None  # a checkpoint every so many steps, besides the end
    # stop after so many validations in a row without a new best loss
    early_stopping_patience: int | None = None
    # end with the weights of the best validation loss instead of the last ones
    keep_best: bool = False
    keep_checkpoints: bool = False  # leave checkpoints/ there when the run is over
    lora: bool = False  # train low-rank adapters instead of all weights
    lora_rank: int = 16  # rank of the adapters
    lora_alpha: int = 32  # their output is scaled by alpha / rank
    lora_dropout: float = 0.0  # on their input, while training only
    lora_targets: str | list[str] = "all-linear"  # names of the layers that get one
    seed: int = 0  # order of the data, adapters, dropout
    # float32, bf16 (autocast; weights stay float32) or auto: bf16 where a GPU has it
    precision: str = "auto"
    device: str = "auto"  # auto: the GPU if there is one; cpu
    group_by_length: bool = False  # batches of like length: less padding
    # keep each layer's input only and compute the rest again: less memory, a third more time
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile: minutes before the first steps, faster ones afterwards
    tf32: bool = False  # float32 products on a GPU with 10 bits of precision, several times as fast
    # of batches: packed, shared or apart; the same numbers, in ever more time; a model that cannot
    # read one gets the next
    layout: str = "packed"
    tracker: str = "none"  # where the numbers go besides metrics.jsonl: trackio, wandb, tensorboard
    processes: int = 1  # on this machine, each with its share of every batch
    sharding: str = "ddp"  # of several: ddp, or fsdp on GPUs
    sample_tokens: int = 64  # longest sampled answer
    show_samples: int = 2  # sampled answers printed at each validation

    def __post_init__(self):
        check_settings(self)


RANGES = {
    "learning_rate": (0, 1),
    "warmup_ratio": (0, 1),
    "warmup_steps": (0, None),
    "decay_factor": (0, 1),
    "decay_every": (1, None),
    "batch_size": (1, None),
    "gradient_accumulation": (1, None),
    "epochs": (0, None),
    "max_steps": (1, None),
    "weight_decay": (0, None),
    "max_grad_norm": (0, None),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, 1),
    "logging_steps": (1, None),
    "eval_steps": (1, None),
    "save_steps": (1, None),
    "early_stopping_patience": (1, None),
    "lora_rank": (1, None),
    "lora_alpha": (1, None),
    "lora_dropout": (0, 1),
    "seed": (0, None),
    "sample_tokens": (1, None),
    "processes": (1, None),
    "show_samples": (0, None),
}
CHOICES = {
    "schedule": SCHEDULES,
    "layout": LAYOUTS,
    "precision": ("float32", "bf16", "fp16", "auto"),
    "tracker": ("none", "trackio", "wandb", "tensorboard"),
    "sharding": ("ddp", "fsdp"),
    "device": ("auto", "cpu"),
}


def check_settings(
    settings: TrainSettings,  # to be checked; whole numbers given for floats become floats
):
    "Raise `ConfigError` at the first setting of a wrong type or out of its range."
    for f in fields(settings):
        name, value = f.name, getattr(settings, f.name)
        kinds = [
            get_origin(kind) or kind
            for kind in (get_args(f.type) if isinstance(f.type, UnionType) else [f.type])
        ]
        if float in kinds and type(value) is int:
            setattr(settings, name, value := float(value))
        if value is None and type(None) in kinds:
            continue
        if type(value) not in kinds:
            hint = (
                " YAML reads 1e-5 as text: write 1.0e-5."
                if isinstance(value, str) and float in kinds
                else ""
            )
            raise ConfigError(
                f"{name}: {value!r} is {type(value).__name__}; "
                f"{getattr(f.type, '__name__', f.type)} is needed.{hint}"
            )
        low, high = RANGES.get(name, (None, None))
        if name in ("adam_beta1", "adam_beta2") and value == 1:
            raise ConfigError(f"{name}: {value} must be below 1, such as 0.999.")
        if low is not None and not (low <= value and (high is None or value <= high)):
            raise ConfigError(
                f"{name}: "
                f"{value} "
                f"is not {f'between {low} and {high}' if high is not None else f'at least {low}'}."
            )
        if name in CHOICES and value not in CHOICES[name]:
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(CHOICES[name])}.")
    if settings.warmup_ratio and settings.warmup_steps:
        raise ConfigError("warmup_ratio and warmup_steps are both set. Set one.")
    if settings.epochs == 0 and settings.max_steps is None:
        raise ConfigError("epochs: 0 would train nothing. Set epochs or max_steps.")


def total_steps(
    rows: int,  # rows to train on
    settings: TrainSettings,  # batch size, accumulation, epochs or max_steps
) -> int:  # optimiser steps of the whole run
    "Number of optimiser steps; the last one of an epoch may see fewer rows."
    if settings.max_steps is not None:
        return settings.max_steps
    batches = -(-rows // settings.batch_size)
    return math.ceil(settings.epochs * -(-batches // settings.gradient_accumulation))


@dataclass
class RolloutSettings(TrainSettings):
    """Settings of a run that learns from its own samples: those of `TrainSettings`, and how samples
    are drawn and used.
    """

    batch_size: int = 16  # prompts in one forward pass, each with its samples
    samples: int = 4  # answers to each prompt
    temperature: float = 1.0  # they are drawn at; ...
    # ... where given, the samples of a prompt go from `temperature` to this in even steps
    temperature_high: float | None = None
    # log-probs of samples are those they were drawn with; False: the model's own, as if the
    # temperature had been 1
    correct_temperature: bool = True
    top_p: float = 1.0  # 1: nothing is cut off
    max_new_tokens: int = 64  # answers are cut off there
    minibatches: int = 1  # optimiser steps in one pass over a round's samples
    passes: int = 1  # passes over a round's samples before new ones are drawn
    # of the answers at each validation; KL is measured on them, so 1 unless there is a reason
    eval_temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_draws(self.samples, self.temperatures(), self.top_p, self.max_new_tokens)
        if min(self.temperatures()) == 0:
            raise ConfigError(
                "temperature: at 0 all samples of a prompt are the same answer, of which nothing "
                "can be learned. Write 1.0."
            )

    def temperatures(self) -> list[float]:  # one for each sample of a prompt
        "From `temperature` to `temperature_high`."
        if self.temperature_high is None:
            return [self.temperature] * self.samples
        try:
            return varied_temperatures(self.samples, self.temperature, self.temperature_high)
        except ValueError as error:
            raise ConfigError(f"temperature_high: {error}") from error

    def prompts_per_round(self) -> int:
        return self.batch_size * self.gradient_accumulation * self.minibatches

    def steps_per_round(self) -> int:
        return self.minibatches * self.passes


RANGES |= {
    "samples": (1, None),
    "temperature": (0, None),
    "temperature_high": (0, None),
    "max_new_tokens": (1, None),
    "minibatches": (1, None),
    "passes": (1, None),
    "eval_temperature": (0, None),
    "top_p": (0, 1),
}
