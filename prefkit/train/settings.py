"""A run has some thirty numbers besides its model and data.

They stand in one place, each with a type, a range and a sentence, and a wrong one is found before
anything is loaded.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import torch
from transformers import TrainingArguments

from prefkit.model.batches import LAYOUTS
from prefkit.core import ConfigError
from prefkit.train.schedule import SCHEDULES, learning_rate_factor


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
    "show_samples": (0, None),
}
CHOICES = {
    "schedule": SCHEDULES,
    "layout": LAYOUTS,
    "precision": ("float32", "bf16", "auto"),
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


def make_scheduler(
    optimizer: torch.optim.Optimizer,  # whose learning rate follows the schedule
    settings: TrainSettings,  # schedule, warm-up, decay
    total: int,  # optimiser steps of the whole run
) -> torch.optim.lr_scheduler.LambdaLR:  # step it once after each optimiser step
    "The schedule as an object of torch."
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * total)
    factor = lambda step: learning_rate_factor(
        step,
        total,
        schedule=settings.schedule,
        warmup=warmup,
        decay_factor=settings.decay_factor,
        decay_every=settings.decay_every,
    )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def choose_precision(settings: TrainSettings, device) -> str:
    "float32 or bf16; raises `ConfigError` where bf16 was asked for and there is no GPU for it."
    able = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    if settings.precision == "bf16" and not able:
        raise ConfigError("precision: bf16 needs a GPU that has it. Write auto or float32.")
    return "bf16" if able and settings.precision != "float32" else "float32"


def _saving(settings: TrainSettings) -> dict:
    "Options that save memory or time, in the words of the transformers version at hand."
    if settings.tf32 and not torch.cuda.is_available():
        raise ConfigError("tf32: needs a GPU. Write false.")
    found = {"tf32": True} if settings.tf32 else {}
    names = {f.name for f in fields(TrainingArguments)}
    if settings.gradient_checkpointing:
        found[
            "activation_checkpointing"
            if "activation_checkpointing" in names
            else "gradient_checkpointing"
        ] = True
    return found


def training_arguments(
    settings: TrainSettings,  # ours
    folder: str | Path,  # for checkpoints
    total: int,  # optimiser steps of the whole run
) -> TrainingArguments:  # what transformers needs to know of them
    """Our settings in the words of transformers; raises `ConfigError` under a launcher with several
    processes.
    """
    s = settings
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=total,
        per_device_train_batch_size=s.batch_size,
        gradient_accumulation_steps=s.gradient_accumulation,
        learning_rate=s.learning_rate,
        weight_decay=s.weight_decay,
        max_grad_norm=s.max_grad_norm,
        adam_beta1=s.adam_beta1,
        adam_beta2=s.adam_beta2,
        adam_epsilon=s.adam_epsilon,
        logging_steps=s.logging_steps,
        save_strategy="steps",
        save_steps=s.save_steps or total,
        eval_strategy="steps",
        eval_steps=s.eval_steps or total,
        seed=s.seed,
        use_cpu=s.device == "cpu",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        use_cache=True,
        dataloader_pin_memory=False,
        **_saving(s),
    )
    if arguments.world_size > 1:
        raise ConfigError(
            "train_model runs in one process. Start it without a distributed launcher."
        )
    arguments._n_gpu = min(1, arguments.n_gpu)  # or several GPUs would be used by DataParallel
    return arguments
