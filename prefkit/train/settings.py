"""The one place of every setting of training: its name, type, range, default and what it does.

Configs, the pipelines' cells of parameters, their checks and tables, and the command line follow
what stands here. A setting that is added here is accepted by every training pipeline.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin

from prefkit.core import ConfigError
from prefkit.losses import varied_temperatures
from prefkit.losses.sampler_mismatch import BEYOND, LEVELS
from prefkit.model.batches import LAYOUTS
from prefkit.train.schedule import SCHEDULES

PRECISIONS = ("float32", "bf16", "fp16", "auto")
BASE_PRECISIONS = ("float32", "bf16")
DEVICES = ("auto", "cpu")
TRACKERS = ("none", "trackio", "wandb", "tensorboard")
SHARDINGS = ("ddp", "fsdp")
DRAWN_BY = ("same", "bf16", "int8", "int4")
CORRECTIONS = ("none", "ratio", *BEYOND)
MOST = 10**9  # of a whole number whose setting names no other limit


def setting(
    default,  # the value where nothing is said; lists and dicts are copied
    words: str,  # what it does, in a line
    *,
    low=None,  # the smallest value that it can have ...
    high=None,  # ... and the largest
    above=None,  # every value is greater than this ...
    below=None,  # ... and smaller than this
    choices: tuple[str, ...] = (),  # the only values, where they can be listed
    hint: str = "",  # the way out of a value that is out of range
) -> Any:  # a dataclass's field
    "One line of a specification."
    limits = {"low": low, "high": high, "above": above, "below": below}
    about = {"words": words, "choices": choices, "hint": hint, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=about)
    return field(default=default, metadata=about)


def type_name(kind) -> str:  # such as `int | None`
    "A type as it is written."
    return kind.__name__ if isinstance(kind, type) else str(kind)


def default_of(one: Field):
    "The value of a setting where nothing is said."
    return one.default if one.default_factory is MISSING else one.default_factory()


def of_type(one: Field, value):
    """The value, whole numbers for floats as floats; raises `ConfigError` where it is of another
    type than the setting.
    """
    options = get_args(one.type) if isinstance(one.type, UnionType) else [one.type]
    kinds = [get_origin(kind) or kind for kind in options]
    if type(value) is int and float in kinds:
        return float(value)
    if type(value) in kinds:
        return value
    text_for_number = isinstance(value, str) and float in kinds
    hint = " YAML reads 1e-5 as text: write 1.0e-5." if text_for_number else ""
    raise ConfigError(
        f"{one.name}: {value!r} is {type(value).__name__}; {type_name(one.type)} is needed.{hint}",
        field=one.name,
        reason="wrong type",
    )


def range_in_words(low, high, above, below) -> str:  # such as `at least 0 and below 1`
    "What a number has to be."
    if low is not None and high is not None:
        return f"between {low} and {high}"
    words = {"at least": low, "above": above, "at most": high, "below": below}
    return " and ".join(f"{word} {limit}" for word, limit in words.items() if limit is not None)


def check_range(one: Field, value):
    "Raise `ConfigError` for a value that the setting cannot have; None is always one it can."
    if value is None or not one.metadata:
        return
    choices = one.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(
            f"{one.name}: {value!r} is none of {', '.join(choices)}.",
            field=one.name,
            reason="no such choice",
        )
    low, high, above, below = (one.metadata[name] for name in ("low", "high", "above", "below"))
    if type(value) is int and value > MOST and high is None:
        high = MOST  # more than any machine does, and than its counters hold
    inside = (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if inside and not (isinstance(value, float) and math.isinf(value)):
        return
    hint = f" {one.metadata['hint']}" if one.metadata["hint"] else ""
    raise ConfigError(
        f"{one.name}: {value} is not {range_in_words(low, high, above, below)}.{hint}",
        field=one.name,
        reason="out of range",
    )


@dataclass
class Settings:
    "A specification: fields made by `setting`, checked when an object is made."

    def __post_init__(self):
        for one in fields(self):
            value = of_type(one, getattr(self, one.name))
            check_range(one, value)
            setattr(self, one.name, value)

    @classmethod
    def of(cls, names: dict):  # among others, such as all parameters of a stage
        "Those of some named values that are settings; raises `ConfigError`."
        return cls(**{one.name: names[one.name] for one in fields(cls) if one.name in names})

    def given_to(self, function: Callable) -> dict:  # name -> value
        "Those of the settings that a function takes, by the names in its signature."
        taken = inspect.signature(function).parameters
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name in taken}


@dataclass
class TrainSettings(Settings):
    "Everything about a run that is neither model, data nor the loss's own hyper-parameters."

    UNIT: ClassVar[str] = "rows"  # what a step is made of

    learning_rate: float = setting(1e-4, "at the top of the schedule", low=0, high=1)
    schedule: str = setting("linear", ", ".join(SCHEDULES), choices=SCHEDULES)
    warmup_ratio: float = setting(
        0.0, "share of all steps over which the rate rises from 0", low=0, high=1
    )
    warmup_steps: int = setting(0, "steps over which it rises, in place of warmup_ratio", low=0)
    decay_factor: float = setting(0.9, "step_decay: the rate is multiplied by this", low=0, high=1)
    decay_every: int = setting(1500, "step_decay: every so many steps", low=1)
    batch_size: int = setting(32, "rows (or pairs) in one forward pass", low=1)
    gradient_accumulation: int = setting(1, "forward passes in one optimiser step", low=1)
    epochs: float = setting(
        1.0, "passes over the data; does not count where max_steps is given", low=0, high=1_000_000
    )
    max_steps: int | None = setting(
        None, "optimiser steps, whatever epochs says; null: what the epochs take", low=1, high=10**9
    )
    weight_decay: float = setting(0.0, "AdamW's, on matrices only: not on biases and norms", low=0)
    max_grad_norm: float = setting(1.0, "longer gradients are cut to it; 0: never", low=0)
    adam_beta1: float = setting(
        0.9, "AdamW: memory of the gradient", low=0, below=1, hint="Write 0.9, for example."
    )
    adam_beta2: float = setting(
        0.999, "AdamW: memory of its square", low=0, below=1, hint="Write 0.999, for example."
    )
    adam_epsilon: float = setting(1e-8, "AdamW: added to the denominator", low=0, high=1)
    logging_steps: int = setting(10, "a line in metrics.jsonl every so many steps", low=1)
    eval_steps: int | None = setting(
        None, "validation every so many steps, besides the start and the end", low=1
    )
    save_steps: int | None = setting(
        None, "a checkpoint every so many steps, besides the end", low=1
    )
    early_stopping_patience: int | None = setting(
        None, "stop after so many validations in a row without a new best", low=1
    )
    keep_best: bool = setting(False, "end with the weights of the best validation, not the last")
    keep_checkpoints: bool = setting(False, "leave checkpoints/ there when the run is over")
    lora: bool = setting(False, "train low-rank adapters instead of all weights")
    lora_rank: int = setting(16, "rank of the adapters", low=1)
    lora_alpha: int = setting(32, "the adapters' output is scaled by alpha / rank", low=1)
    lora_dropout: float = setting(0.0, "on the adapters' input, while training only", low=0, high=1)
    lora_targets: str | list[str] = setting(
        "all-linear", "names of the layers that get one, such as [q_proj, v_proj]"
    )
    dropout: bool | float = setting(
        False,
        "of the start model, while training: false: none; true: its own; or a probability",
        low=0,
        high=1,
    )
    base_precision: str = setting(
        "float32",
        "LoRA: how the frozen weights are held; bf16: half the memory, the adapters stay float32",
        choices=BASE_PRECISIONS,
    )
    seed: int = setting(0, "order of the data, adapters, dropout", low=0, high=2**32 - 1)
    precision: str = setting(
        "auto",
        "float32; bf16, fp16 (autocast, weights stay float32); auto: bf16 where a GPU has it",
        choices=PRECISIONS,
    )
    device: str = setting("auto", "auto: the GPU if there is one; cpu", choices=DEVICES)
    processes: int = setting(1, "that share the work of each step", low=1, high=256)
    sharding: str = setting(
        "ddp",
        "several processes: each holds the model (ddp) or a part of it (fsdp)",
        choices=SHARDINGS,
    )
    tracker: str = setting(
        "none", f"where metrics go besides metrics.jsonl: {', '.join(TRACKERS)}", choices=TRACKERS
    )
    group_by_length: bool = setting(False, "batches of like length: less padding")
    gradient_checkpointing: bool = setting(
        False, "keep each layer's input only and compute the rest again: less memory, more time"
    )
    compile: bool = setting(
        False, "torch.compile: minutes before the first steps, faster ones afterwards"
    )
    tf32: bool = setting(
        False, "float32 products on a GPU with 10 bits of precision, several times as fast"
    )
    layout: str = setting(
        "packed",
        "of batches: packed, shared or apart; the same numbers, in ever more time",
        choices=LAYOUTS,
    )
    sample_tokens: int = setting(64, "longest answer that is sampled at a validation", low=1)
    sample_steps: int | None = setting(
        None,
        "sample_prompts are answered every so many steps, a multiple of eval_steps; null: at every "
        "validation",
        low=1,
    )
    show_samples: int = setting(2, "sampled answers printed at each validation", low=0)
    kl_samples: int = setting(
        0,
        "answers drawn at each validation to as many of its prompts, for the KL from the start in "
        "nats an answer; a copy of the start is kept for it",
        low=0,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_ratio and self.warmup_steps:
            raise ConfigError(
                "warmup_ratio and warmup_steps are both set. Set one.",
                field="warmup_ratio",
                reason="given twice",
            )
        every = self.eval_steps or self.sample_steps or 1
        if self.sample_steps and self.sample_steps % every:
            raise ConfigError(
                f"sample_steps: {self.sample_steps} is no multiple of eval_steps ({every}), and "
                "answers are sampled at validations. Take "
                f"{every * max(1, round(self.sample_steps / every))}.",
                field="sample_steps",
                reason="no multiple",
            )
        if self.base_precision == "bf16" and not self.lora:
            raise ConfigError(
                "base_precision: bf16 is for weights that do not move. Train all of them in "
                "float32 (precision: bf16 computes in bf16), or set lora: true.",
                field="base_precision",
                reason="without lora",
            )
        if self.epochs == 0 and self.max_steps is None:
            raise ConfigError(
                "epochs: 0 would train nothing. Set epochs or max_steps.",
                field="epochs",
                reason="out of range",
            )

    def rows_per_step(self) -> float:
        return self.batch_size * self.gradient_accumulation


@dataclass
class RolloutSettings(TrainSettings):
    """Settings of a run that learns from its own samples: those of `TrainSettings`, and how samples
    are drawn and used.
    """

    UNIT: ClassVar[str] = "prompts"

    batch_size: int = setting(16, "prompts in one forward pass, each with its samples", low=1)
    samples: int = setting(4, "answers to each prompt", low=1)
    temperature: float = setting(1.0, "at which answers are drawn", low=0)
    temperature_high: float | None = setting(
        None,
        "the samples of a prompt go from temperature to this in even steps; null: all at it",
        low=0,
    )
    correct_temperature: bool = setting(
        True, "log-probs of samples are those they were drawn with; false: as if at 1"
    )
    top_p: float = setting(
        1.0, "nucleus; 1 cuts nothing off", above=0, high=1, hint="Write 1 to keep every token."
    )
    max_new_tokens: int = setting(64, "answers are cut off there", low=1)
    min_new_tokens: int = setting(
        0,
        "tokens before the end of an answer may be drawn; not at validations (ORPO paper: 128)",
        low=0,
    )
    redraw: int = setting(
        0,
        "other prompts are asked so many times at most in place of those whose answers all have "
        "one reward (DAPO's dynamic sampling)",
        low=0,
        high=32,
    )
    sampler: str = setting(
        "same",
        "what draws the answers: the policy as it is trained (same), it in bf16, or a copy with "
        "weights rounded to 8 or 4 bits",
        choices=DRAWN_BY,
    )
    sampler_correction: str = setting(
        "truncate",
        "where another sampler draws, gradients are weighted by policy / sampler: outside of the "
        "bounds cut to them (truncate) or to 0 (mask); ratio: by the loss's own ratio; none. PPO's "
        "value loss is never weighted",
        choices=CORRECTIONS,
    )
    sampler_level: str = setting(
        "token", "whose weight: each token's, or one of the whole answer", choices=LEVELS
    )
    sampler_low: float = setting(0.0, "the smallest weight", low=0, high=1)
    sampler_high: float = setting(2.0, "the largest weight", low=1)
    reference_model: str = setting(
        "",
        "whose log-probs the policy's are held against, such as a teacher: a folder, stage:NAME "
        'or a name on the Hub; "": the model as it is before training',
    )
    minibatches: int = setting(1, "optimiser steps in one pass over a round's samples", low=1)
    passes: int = setting(1, "passes over a round's samples before new ones are drawn", low=1)
    eval_temperature: float = setting(
        1.0, "of the answers at each validation; KL is measured on them, so best 1", low=0
    )

    def __post_init__(self):
        super().__post_init__()
        if self.kl_samples:
            raise ConfigError(
                "kl_samples: a method that learns from its own samples measures KL(model || start) "
                "at every validation as it is (kl_k1). Leave it out.",
                field="kl_samples",
                reason="measured already",
            )
        if self.sample_steps:
            raise ConfigError(
                "sample_steps: a method that learns from its own samples keeps some of them at "
                "every validation (sample_table). Leave it out.",
                field="sample_steps",
                reason="not used",
            )
        if self.min_new_tokens >= self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens: {self.min_new_tokens} leaves no room below max_new_tokens "
                f"({self.max_new_tokens}): every answer would be cut off. Raise max_new_tokens.",
                field="min_new_tokens",
                reason="out of range",
            )
        if min(self.temperatures()) == 0:
            raise ConfigError(
                "temperature: at 0 all samples of a prompt are the same answer, of which nothing "
                "can be learned. Write 1.0.",
                field="temperature",
                reason="out of range",
            )

    def temperatures(self) -> list[float]:  # one for each sample of a prompt
        "From `temperature` to `temperature_high`."
        if self.temperature_high is None:
            return [self.temperature] * self.samples
        try:
            return varied_temperatures(self.samples, self.temperature, self.temperature_high)
        except ValueError as error:
            raise ConfigError(
                f"temperature_high: {error}", field="temperature_high", reason="out of range"
            ) from error

    def rows_per_step(self) -> float:
        return self.prompts_per_round() / self.steps_per_round()

    def prompts_per_round(self) -> int:
        return self.batch_size * self.gradient_accumulation * self.minibatches

    def steps_per_round(self) -> int:
        return self.minibatches * self.passes


@dataclass
class DataSettings(Settings):
    "Which rows a training pipeline reads, and how: what all of them have in common."

    dataset: str = setting(
        "tiny-world",
        "a registered name, a name on the Hub, a datasets folder, or a .jsonl, .json, .parquet, "
        ".csv or .tsv file",
    )
    columns: dict = setting(
        {},
        "the name here: the one in the data, such as {prompt: question}; {images: null}: do not "
        "read that column",
    )
    dataset_revision: str = setting("", 'on the Hub: a branch, tag or commit; "": the newest')
    dataset_options: dict = setting(
        {}, "of the pairs of tiny-world: truth and manner (0 to 1), temperature"
    )
    split: str = setting("train", "of the data set, with a slice if wanted: train[:9000]")
    limit: int | None = setting(None, "rows to read; null: all (the tiny world: 1,000)")
    validation_dataset: str = setting("", "where it is another than dataset")
    validation_columns: dict | None = setting(None, "null: as columns")
    validation_revision: str = setting(
        "", 'of validation_dataset; "": where it is the same data set, as dataset_revision'
    )
    validation_split: str = setting("validation", '"": no validation')
    validation_limit: int | None = setting(None, "rows to read; null: all")
    data_seed: int | None = setting(None, "of the tiny world's draw; null: as seed")
    revision: str = setting("", 'of the model on the Hub: a branch, tag or commit; "": the newest')
    chat_template: str = setting(
        "",
        "in place of the tokenizer's own: the name of a shipped template or of one of the "
        "tokenizer's, a file or its text; saved with the model",
    )
    system_prompt: str = setting(
        "",
        "a system turn before every row's prompt and every sample prompt; a row with one of its "
        'own keeps it, and the account counts both; "": none',
    )
    max_length: int = setting(512, "most tokens of prompt and answer together")
    max_prompt_length: int | None = setting(None, "most tokens of the prompt; null: max_length")
    min_response_tokens: int = setting(16, "an answer that is cut must keep so many")
    max_prompt_tokens: int | None = setting(
        None, "leave out rows with a longer prompt (ORPO: 1024)"
    )
    on_bad_rows: str = setting(
        "drop",
        "drop: leave bad rows out, a tenth at most, and count them; error: stop at the first",
        choices=("drop", "error"),
    )

    def part(self, name: str) -> "DataSettings | None":  # None: there is no such part
        "The settings of a part of the data: train, validation, or one of a subclass."
        if name == "train":
            return self
        if name == "validation" and self.validation_split:
            return self.of_validation(self.validation_split, self.validation_limit)
        return None

    def of_validation(self, split: str, limit: int | None):
        "These settings for rows of the validation's data set."
        where = self.validation_dataset, self.validation_columns, self.validation_revision
        return self.elsewhere(*where, split, limit)

    def elsewhere(self, dataset, columns, revision, split, limit):
        "These settings for other rows; what is not given of a data set is that of the train part."
        same = dataset in ("", self.dataset)
        return replace(
            self,
            dataset=dataset or self.dataset,
            columns=self.columns if columns is None else columns,
            dataset_revision=revision or (self.dataset_revision if same else ""),
            dataset_options=self.dataset_options if same else {},
            split=split,
            limit=limit,
        )


@dataclass
class SftData(DataSettings):
    "Rows to imitate, and a probe: pairs whose log-probs are only watched."

    probe_dataset: str = setting("", "pairs whose log-probs are watched at every validation")
    probe_split: str = setting("validation", "of the probe")
    probe_limit: int | None = setting(64, "pairs in the probe")
    probe_columns: dict | None = setting(None, "null: as columns")
    probe_revision: str = setting(
        "", 'of probe_dataset; "": where it is the same data set, as dataset_revision'
    )
    sample_prompts: list[str] = setting([], "questions answered at every validation")

    def part(self, name: str) -> DataSettings | None:
        if name == "probe" and self.probe_dataset:
            where = self.probe_dataset, self.probe_columns, self.probe_revision
            return self.elsewhere(*where, self.probe_split, self.probe_limit)
        return super().part(name)


@dataclass
class PreferenceData(DataSettings):
    "Pairs, or single answers with labels."

    from_pairs: bool | None = setting(
        None,
        "methods of single answers: two rows from each pair; null: only where the data have no "
        "labelled answers",
    )
    sample_prompts: list[str] = setting([], "questions answered at every validation")


@dataclass
class RewardModelData(DataSettings):
    "Pairs, and further ones that are looked at once, after training."

    test_split: str = setting("test", 'of validation_dataset, looked at once; "": none')
    test_limit: int | None = setting(None, "pairs to read; null: all")

    def part(self, name: str) -> DataSettings | None:
        if name == "test" and self.test_split:
            return self.of_validation(self.test_split, self.test_limit)
        return super().part(name)


@dataclass
class PromptData(DataSettings):
    "Prompts, which the model answers itself."

    sample_table: int = setting(
        8, "validation answers kept at each validation, with their rewards", low=0
    )


# what may stand in the parameters `settings` and `data` of a pipeline, and flat among the others
PIPELINES: dict[str, dict[str, type[Settings]]] = {
    "pretrain": {"settings": TrainSettings},
    "sft": {"settings": TrainSettings, "data": SftData},
    "preference": {"settings": TrainSettings, "data": PreferenceData},
    "reward_model": {"settings": TrainSettings, "data": RewardModelData},
    "rollout": {"settings": RolloutSettings, "data": PromptData},
}

# What a config starts from where a pipeline's cell of parameters holds less: the cell's values cut
# data and steps, so that the notebook runs by hand in some seconds. Every other parameter that is
# not given has the value of the cell.
FULL: dict[str, Any] = {
    "limit": None,
    "validation_limit": None,
    "test_limit": None,
    "max_steps": None,
    "prompts": None,  # of an evaluation
    "documents": 40_000,  # of pretraining
}


def run_line(
    what: str,  # such as the method
    rows: int,  # to train on
    steps: int,  # optimiser steps
    settings: TrainSettings,
    folder: str | Path,  # that is written to
) -> str:
    "The first line of a run: how much it learns from, for how long, and where it writes."
    unit, each = settings.UNIT, settings.rows_per_step()
    times, why = settings.epochs, ""
    if settings.max_steps is not None:
        times = steps * each / rows
        why = f" (max_steps holds; epochs: {settings.epochs:g} does not count)"
    passes = f"{times:.3g} epoch{'' if times == 1 else 's'}{why}"
    work = f"{steps:,} step{'' if steps == 1 else 's'} of {each:g} {unit}"
    return f"{what}: {rows:,} {unit}, {passes}, {work}; writes to {told_folder(folder)}"


def told_folder(folder: str | Path) -> str:
    "A run's folder as it will be called: the runner works in `.NAME.partial`."
    folder = Path(folder).absolute()
    name = folder.name
    if name.startswith(".") and name.endswith(".partial"):
        folder = folder.with_name(name.removeprefix(".").removesuffix(".partial"))
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def total_steps(
    rows: int,  # rows to train on
    settings: TrainSettings,  # batch size, accumulation, epochs or max_steps
) -> int:  # optimiser steps of the whole run
    "Number of optimiser steps; the last one of an epoch may see fewer rows."
    if settings.max_steps is not None:
        return settings.max_steps
    batches = -(-rows // settings.batch_size)
    return math.ceil(settings.epochs * -(-batches // settings.gradient_accumulation))
