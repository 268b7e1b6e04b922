"""What an experiment will need, before anything is loaded: memory part by part, and time.

Memory is counted, not guessed: each stage's step is gone through with tensors that have shapes and
no content, and every storage that would be alive is added up. What the count cannot see (Python,
its libraries) is looked up in this process.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import cycle, islice
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from prefkit.model.batches import (
    ANSWERS,
    autocast,
    batch_logps,
    batch_rewards,
    collate,
    row_length,
)
from prefkit.runs.config import Stage, load_config
from prefkit.core import ConfigError, resolve_path
from prefkit.data.chat import use_template
from prefkit.data.records import DATASETS, encode_records, kind_to_read, load_records
from prefkit.data.rows import Row
from prefkit.model.kernels import assume_halves, use_rows
from prefkit.model.loading import load_tokenizer, model_config
from prefkit.model.rounding import LARGEST
from prefkit.data.sources import is_hub_name, is_made_by_a_stage, parse_split

GIB = 2**30
TRAINING = ("sft", "preference", "reward_model", "rollout")  # pipelines whose steps are planned
SAMPLE = 512  # rows that are looked at for their lengths


@dataclass(frozen=True)
class Machine:
    "A card by its maker's data sheet, without sparsity: operations a second of large products."

    memory: float  # bytes
    float32: float
    tf32: float  # what float32 products take with `tf32: true`
    half: float  # bf16 or fp16
    bf16: bool

    def speed(self, settings, precision: str) -> float:
        "Of a run whose products are of this precision."
        if precision != "float32":
            return self.half
        return self.tf32 if settings.tf32 else self.float32


MACHINES = {
    "T4": Machine(15.6e9, 8.1e12, 8.1e12, 65e12, bf16=False),
    "L4": Machine(24e9, 30.3e12, 60e12, 121e12, bf16=True),
    "A100": Machine(40e9, 19.5e12, 156e12, 312e12, bf16=True),
}
CONTEXT = 0.6 * GIB  # of a GPU's memory for the driver and its libraries: an assumption
# share of those operations that training reaches: an assumption; `make bench` on such a card
# measures it
USED = 0.3
# Models of the reports' own configs, so that a plan needs no network (their config.json on the
# Hub).
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": dict(
        model_type="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
}


# Rows of data sets on the Hub, as their pages say, so that a plan needs no network.
HUB_ROWS: dict[str, dict[str, int]] = {
    "HuggingFaceH4/ultrafeedback_binarized": {
        "train_prefs": 61_135,
        "test_prefs": 2000,
        "train_sft": 61_135,
        "test_sft": 1000,
    },
    "HuggingFaceTB/smol-smoltalk": {"train": 460_341, "test": 24_229},
    "Anthropic/hh-rlhf": {"train": 160_800, "test": 8552},
    "abacusai/MetaMath_DPO_FewShot": {"train": 393_999},
    "openai/gsm8k": {"train": 7473, "test": 1319},
}


class Alive(TorchDispatchMode):
    "Bytes of the storages that are alive, and the most there were."

    def __init__(self, tensors=()):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, weakref.WeakKeyDictionary()
        for tensor in tensors:
            self.see(tensor)

    def see(self, tensor):
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known[storage] = size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, size)

    def gone(self, size):
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return out


@dataclass
class StepMemory:
    "Bytes of one training step, part by part."

    weights: int
    copies: int  # of the model: the reference, and what draws its samples where that is another
    gradients: int
    optimiser: int  # AdamW's two averages
    step: int  # activations, scores, and what else lives for a moment
    trained: int  # numbers that are trained
    parameters: int  # numbers in all

    @property
    def total(self) -> int:
        return self.weights + self.copies + self.gradients + self.optimiser + self.step


def new_model(config, scalar: bool, dtype=torch.float32):
    "A model of this shape with random weights; under `torch.device('meta')` without any."
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = copy.deepcopy(config)
    if scalar:
        config.num_labels, config.pad_token_id = 1, 0
    return (AutoModelForSequenceClassification if scalar else AutoModelForCausalLM).from_config(
        config, dtype=dtype
    )


def hollow(model):
    """Under `FakeTensorMode`: every tensor of a model on the device meta becomes one that claims to
    lie in memory; what is tied stays tied.
    """
    made = {}
    for module in model.modules():
        own = dict(recurse=False, remove_duplicate=False)
        for name, old in [*module.named_parameters(**own), *module.named_buffers(**own)]:
            if id(old) not in made:
                new = torch.empty_like(old, device="cpu")
                is_weight = isinstance(old, torch.nn.Parameter)
                made[id(old)] = torch.nn.Parameter(new, old.requires_grad) if is_weight else new
            setattr(module, name, made[id(old)])


_COUNTED = {}  # what was counted already: stages of an experiment are often alike


def step_memory(
    config, lengths, answers, settings, *, precision="float32", scalar=False, copies=0
) -> StepMemory:
    "`count_memory`, once for each shape."
    key = (
        config.to_json_string(use_diff=False),
        tuple(lengths),
        answers,
        settings.lora,
        settings.lora_rank,
        str(settings.lora_targets),
        settings.base_precision,
        settings.gradient_checkpointing,
        settings.layout,
        precision,
        scalar,
    )
    if key not in _COUNTED:
        _COUNTED[key] = count_memory(
            config, batch_of(lengths, answers), answers, settings, precision, scalar
        )
    return replace(_COUNTED[key], copies=int(_COUNTED[key].weights * copies))


def count_memory(
    config,  # of the model, from transformers
    rows: list[Row],  # one batch, encoded
    answers: tuple[str, ...],  # names of their answers
    settings,  # TrainSettings: lora, gradient_checkpointing, layout
    precision: str = "float32",  # or bf16
    scalar: bool = False,  # a reward model
) -> StepMemory:
    """Go through the forward and backward pass of a step with tensors that have shapes only, and
    count; no weights, no work.
    """
    from prefkit.train.loop import add_lora

    # as train_model has them
    with torch.device("meta"):
        model = new_model(
            config,
            scalar,
            torch.bfloat16 if settings.base_precision == "bf16" else torch.float32,
        )
    if settings.lora:
        model = add_lora(model, settings)
    longest = max(row_length(row, answers) for row in rows)
    batch = collate(rows, answers, 0, settings.layout if use_rows(model, longest) else "apart")
    assume_halves(model)
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        hollow(model.train())
        batch = tree_map_only(torch.Tensor, fake.from_tensor, batch)
        weights, trained = (
            list(model.parameters()),
            [weight for weight in model.parameters() if weight.requires_grad],
        )
        with Alive(weights) as alive:
            held = alive.now
            with autocast(model, precision):
                values = (batch_rewards if scalar else batch_logps)(model, batch)
            (values**2).mean().backward()
    size = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    gradients = size(trained)
    return StepMemory(
        held,
        0,
        gradients,
        2 * gradients,
        alive.peak - held - gradients,  # AdamW's own step, fused, needs nothing besides
        sum(w.numel() for w in trained),
        sum(w.numel() for w in weights),
    )


def first_model(
    stage: Stage, stages: dict[str, Stage], name: str = ""
) -> str:  # a folder, or a name on the Hub
    "What the model that a stage starts from, or another that it names, began as."
    name = name or stage.parameters["model"]
    while name.startswith("stage:"):
        name = stages[name.removeprefix("stage:")].parameters["model"]
    return str(resolve_path(name)) if resolve_path(name).exists() else name


def known_config(name: str):  # name: from `first_model` -> a config of transformers
    "The shape of a model; raises `ConfigError` where it cannot be known."
    from transformers import AutoConfig

    return AutoConfig.for_model(**KNOWN[name]) if name in KNOWN else model_config(name)


def numbers_of(config) -> int:
    "How many weights a model of this shape has."
    with torch.device("meta"):
        return sum(weight.numel() for weight in new_model(config, False).parameters())


def data_of(stage: Stage, **changes):  # -> the data settings of its pipeline
    "What a training stage says of its data."
    from prefkit.train.settings import PIPELINES

    return PIPELINES[stage.pipeline.stem]["data"].of({**stage.parameters, **changes})


def on_this_machine(name: str) -> bool:
    "Whether a data set is generated or lies here, and is neither on the Hub nor yet to be made."
    if name in DATASETS:
        return not DATASETS[name].hub
    return not (is_hub_name(name) or is_made_by_a_stage(name))


def once(read: Callable) -> Callable:
    "`read` of data settings and other things, remembered: stages of one experiment share data."
    found = {}

    def look(data, *others):
        key = json.dumps([asdict(data), *others], default=str)
        if key not in found:
            found[key] = read(data, *others)
        return found[key]

    return look


@once
def _lengths(data, kind: str, place: str):
    """Lengths of (prompt, answers...) of the first rows of data on this machine, and the share of
    them that is kept.
    """
    records = load_records(data.dataset, kind=kind, **data.given_to(load_records))
    tokenizer, given = load_tokenizer(place), data.given_to(encode_records)
    use_template(tokenizer, data.chat_template)
    rows, _ = encode_records(records, tokenizer, kind=kind, **given)
    return [
        (len(row.prompt_ids), *(len(row.answers[name]) for name in ANSWERS.get(kind, ())))
        for row in rows
    ], len(rows) / max(1, len(records))


def batch_of(
    lengths: list[tuple], names: tuple[str, ...]
) -> list[Row]:  # of one token again and again, but for the first: no two prompts begin alike
    "Rows of these lengths."
    return [
        Row(
            [number % 2, *[3] * (prompt - 1)][:prompt],
            {name: [3] * length for name, length in zip(names, answers)},
        )
        for number, (prompt, *answers) in enumerate(lengths)
    ]


@dataclass
class StagePlan:
    "What one stage will need on one device."

    stage: str
    device: str
    memory: StepMemory
    base: float  # bytes that are there before: Python and libraries, or a GPU's context
    room: float  # bytes that the device has
    steps: int | None  # None: the number of rows is not known here
    step_seconds: float
    lengths: str  # where they come from
    advice: str = ""  # what would make it fit
    precision: str = "float32"  # of its products there
    refused: bool = False  # the card cannot compute what the settings want

    @property
    def total(self) -> float:
        return self.base + self.memory.total

    @property
    def fits(self) -> bool:
        return self.total <= self.room and not self.refused


# the lengths, the share of rows that is kept, where both are from
def stage_lengths(
    stage: Stage, kind: str, names: tuple[str, ...], place: str
) -> tuple[list[tuple], float, str]:
    """Lengths of a stage's rows: those of its first rows where they lie here, else the longest that
    its limits allow.
    """
    p, data, kept = stage.parameters, data_of(stage, limit=SAMPLE), 1.0
    prompts, longest = data.max_prompt_length or data.max_length, data.max_length
    if here := on_this_machine(data.dataset):
        found, kept = _lengths(data, kind, place)
    elif kind == "prompts":
        found = [(prompts,)]
    else:
        found = [(min(prompts, longest // 2), *[longest - min(prompts, longest // 2)] * len(names))]
    # drawn besides: like the first
    if here and names and len(names) > len(ANSWERS.get(kind, names)):
        found = [
            (prompt, *answers, *answers[:1] * (len(names) - len(answers)))
            for prompt, *answers in found
        ]
    if kind == "prompts":
        found = [(prompt, *[p["max_new_tokens"]] * len(names)) for (prompt,) in found]
    if kind == "sft" and p.get("labels") == "conversation":
        found = [(1, prompt + answer - 1) for prompt, answer in found]
    return found, kept, f"the first {len(found)} rows" if here else "the longest allowed"


# -> kind of data, names of a row's answers, settings, scalar head?, further copies of the model
def stage_job(stage: Stage):
    "What a training stage does, as far as memory and time go."
    from prefkit.train.methods import get_method
    from prefkit.train.settings import RolloutSettings, TrainSettings

    p = stage.parameters
    if stage.pipeline.stem == "rollout":
        settings = RolloutSettings.of(p)
        return (
            "prompts",
            tuple(f"s{i}" for i in range(settings.samples)),
            settings,
            False,
            (not settings.lora or bool(settings.reference_model)) + (settings.sampler in LARGEST),
        )
    method, settings = get_method(p.get("method", "sft")), TrainSettings.of(p)
    copied = int(bool(settings.kl_samples) and not settings.lora)
    return method.kind, method.answers(), settings, method.output == "rewards", copied


def rows_known(
    stage: Stage,
    kind: str,  # of its data
) -> int | None:  # None: not known here
    "Rows that a stage learns from, before any that are too long are left out."
    data = data_of(stage)
    name, given = data.dataset, getattr(data, "from_pairs", None)
    if on_this_machine(name) and not (name in DATASETS and data.limit):
        return _rows_here(data, kind)
    rows = data.limit  # so many are made
    if not on_this_machine(name):
        rows = rows_on_the_hub(name, data.split)
        rows = min(rows, data.limit) if rows and data.limit else rows
    paired = given if name not in DATASETS else kind_to_read(name, kind, given) == "pairs"
    return 2 * rows if rows and kind == "binary" and paired else rows  # two from each pair


def rows_on_the_hub(
    name: str,  # registered, or owner/name
    split: str,  # with a slice if wanted
) -> int | None:  # None: not known
    "Rows of a split of a data set whose size is known."
    source = DATASETS.get(name)
    slices, hub = [parse_split(split)], name
    if source:
        hub = source.hub
        if source.parted or slices[0][0] not in source.splits:
            return None
        slices.insert(0, parse_split(source.splits[slices[0][0]]))
    rows = HUB_ROWS.get(hub, {}).get(slices[0][0])
    if rows is None:
        return None
    for _, start, stop in slices:
        rows = len(range(rows)[start:stop])
    return rows


@once
def _rows_here(data, kind: str) -> int:
    "Rows of data on this machine that are read and not bad."
    return load_records(data.dataset, kind=kind, **data.given_to(load_records)).report.kept


def number_of_steps(
    stage: Stage, settings, kind: str, kept: float = 1.0
) -> int | None:  # kept: share of the rows
    "Optimiser steps, as far as the number of rows can be known without reading them all."
    from prefkit.train.rounds import online_steps
    from prefkit.train.settings import total_steps

    if settings.max_steps is not None:
        return settings.max_steps
    rows = rows_known(stage, kind)
    if rows is None:
        return None
    rows = round(kept * rows)
    return (
        online_steps(rows, settings)
        if stage.pipeline.stem == "rollout"
        else total_steps(rows, settings)
    )


def seconds_here(config, rows, answers, settings, scalar) -> float:
    """A probe: a step of a model of that shape with random weights, on this machine's CPU, after a
    short one that makes what is made once.
    """
    model = new_model(config, scalar)
    longest = max(row_length(row, answers) for row in rows)
    layout = settings.layout if use_rows(model, longest) else "apart"
    optimiser, start = torch.optim.AdamW(model.parameters(), lr=0.0), 0.0
    for part in (rows[:2], rows):
        batch = collate(part, answers, 0, layout)
        start = time.perf_counter()
        ((batch_rewards if scalar else batch_logps)(model, batch) ** 2).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return time.perf_counter() - start


_PROBED: dict[tuple, float] = {}  # what was timed already


def _probed(config, lengths, names, layout, scalar):
    "`seconds_here`, once for each shape."
    from prefkit.train.settings import TrainSettings

    # names differ between methods, and take no time
    key = (config.to_json_string(use_diff=False), lengths, len(names), layout, scalar)
    if key not in _PROBED:
        settings = TrainSettings(layout=layout)
        _PROBED[key] = seconds_here(config, batch_of(list(lengths), names), names, settings, scalar)
    return _PROBED[key]


def operations(config, memory: StepMemory, lengths) -> float:
    """Floating-point operations of a step: 6 for each weight and token (2 forward, 4 back), and
    attention's products.
    """
    tokens = sum(prompt + sum(answers) for prompt, *answers in lengths)
    squares = sum((prompt + answer) ** 2 for prompt, *answers in lengths for answer in answers)
    return (
        6 * memory.parameters * tokens + 6 * config.num_hidden_layers * config.hidden_size * squares
    )


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process has, or the most it has had; 0 where that cannot be asked
    (not on Linux).
    """
    if not sys.platform.startswith("linux"):
        return 0
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM" if peak else "VmRSS"))
    return int(line.split()[1]) * 1024


def machine_memory() -> int:
    "Bytes of memory of this machine."
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def advise(config, lengths, names, settings, precision, scalar, copies, fits) -> str:
    "The first change, of those a practitioner would try in turn, after which the stage fits."
    rows = len(lengths)
    left = copies
    if not getattr(settings, "reference_model", ""):
        left = max(0, copies - (not settings.lora))  # with adapters the reference needs none
    while rows > 1:
        rows //= 2
        memory = step_memory(
            config,
            lengths[:rows],
            names,
            settings,
            precision=precision,
            scalar=scalar,
            copies=copies,
        )
        if fits(memory):
            return (
                f"batch_size: {rows}, gradient_accumulation: "
                f"{settings.gradient_accumulation * settings.batch_size // rows}"
            )
    for change in (
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "lora": True},
        {"gradient_checkpointing": True, "lora": True, "base_precision": "bf16"},
    ):
        for count in dict.fromkeys((len(lengths), 1)):
            memory = step_memory(
                config,
                lengths[:count],
                names,
                replace(settings, **change),
                precision=precision,
                scalar=scalar,
                copies=left if "lora" in change else copies,
            )
            text = ", ".join(f"{name}: {json.dumps(value)}" for name, value in change.items())
            text = text.replace('"', "")
            if fits(memory):
                return text if count == len(lengths) else f"{text}, batch_size: 1"
    return "nothing known here is enough: a smaller model or a shorter max_length"


def plan_stage(
    stage: Stage, stages: dict[str, Stage], devices: tuple[str, ...], base: float
) -> list[StagePlan]:
    "Plan one training stage for some devices."
    kind, names, settings, scalar, copies = stage_job(stage)
    root = first_model(stage, stages)
    config = known_config(root)
    if layers := stage.parameters.get("layers"):
        config.num_hidden_layers = layers
    if teacher := getattr(settings, "reference_model", ""):  # stands in the place of the copy
        other = known_config(first_model(stage, stages, teacher))
        copies += numbers_of(other) / numbers_of(config) - 1
    lengths, kept, source = stage_lengths(stage, kind, names, root)
    longest = sorted(lengths, key=lambda row: -sum(row))
    # a few rows stand for more
    worst, usual = (list(islice(cycle(rows), settings.batch_size)) for rows in (longest, lengths))
    steps, plans = number_of_steps(stage, settings, kind, kept), []
    for device in devices:
        here = device == "this"
        card = None if here else MACHINES[device]
        room, precision = card.memory if card else machine_memory(), precision_on(settings, card)
        memory = step_memory(
            config,
            worst,
            names,
            settings,
            precision=sized_as(precision),
            scalar=scalar,
            copies=copies,
        )
        below = base if here else CONTEXT
        seconds = step_seconds(config, memory, usual, names, settings, precision, scalar, card)
        found = StagePlan(
            stage.name,
            device,
            memory,
            below,
            room,
            steps,
            seconds * settings.gradient_accumulation,
            source,
            precision=precision,
        )
        if card and precision == "bf16" and not card.bf16:
            found.refused, found.advice = True, "precision: fp16, for this card has no bf16"
        elif here and precision == "fp16" and not torch.cuda.is_available():
            found.refused, found.advice = True, "precision: auto, for fp16 needs a GPU"
        elif not found.fits:
            found.advice = advise(
                config,
                worst,
                names,
                settings,
                sized_as(precision),
                scalar,
                copies,
                lambda m: below + m.total <= room,
            )
        plans.append(found)
    return plans


def step_seconds(
    config, memory, lengths, names, settings, precision, scalar, card: Machine | None
) -> float:
    "Of one batch of usual length: counted, and on this machine measured for a small model."
    if card is None and memory.parameters < 5e7:
        return _probed(config, tuple(lengths), names, settings.layout, scalar)
    speed = card.speed(settings, precision) * USED if card else measured_speed()
    return operations(config, memory, lengths) / speed


def precision_on(settings, card: Machine | None) -> str:  # None: this machine's CPU
    "What `choose_precision` will choose there, or be asked for."
    if settings.precision == "auto":
        return "bf16" if card and card.bf16 else "float32"
    return settings.precision


def sized_as(precision: str) -> str:
    "The precision whose tensors take as many bytes, of those that shapes are counted in."
    return "bf16" if precision == "fp16" else precision


@lru_cache(maxsize=1)
def measured_speed() -> float:
    "Operations a second of a large product on this machine."
    x = torch.randn(1024, 1024)
    x @ x
    start = time.perf_counter()
    for _ in range(8):
        x @ x
    return 8 * 2 * 1024**3 / (time.perf_counter() - start)


def warm_memory() -> int:
    """What a training process holds before its model is loaded: a step of the smallest model, so
    that every library is there.
    """
    from transformers import Qwen2Config
    from prefkit.train.settings import TrainSettings
    from prefkit.train.loop import train_model  # noqa: F401 it loads what training loads

    small = Qwen2Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    seconds_here(small, batch_of([(2, 2)], ("response",)), ("response",), TrainSettings(), False)
    return resident()


def plan(
    config,  # a YAML file
    settings=(),  # texts of --set
    devices: tuple[str, ...] | None = None,  # of MACHINES and "this"; None: all
    # the plans, stage by stage; names of the stages that are not planned
) -> tuple[list[StagePlan], list[str]]:
    """What every training stage of an experiment needs; nothing is trained and no weights are
    loaded.
    """
    plans, others = [], []
    for stage, found in plan_stages(load_config(config, settings).stages, devices):
        plans += found
        if not found:
            others.append(stage.name)
    return plans, others


def plan_stages(
    stages: tuple[Stage, ...],  # upstream first
    devices: tuple[str, ...] | None = None,  # as for `plan`
) -> Iterator[tuple[Stage, list[StagePlan]]]:  # no plans: it does not train
    "The plans of one stage after the other."
    for name in devices or ():
        if name not in ("this", *MACHINES):
            raise ConfigError(f"device: {name!r} is none of this, {', '.join(MACHINES)}.")
    base, by_name = warm_memory(), {stage.name: stage for stage in stages}
    for stage in stages:
        trains = stage.pipeline.stem in TRAINING
        yield (
            stage,
            plan_stage(stage, by_name, devices or ("this", *MACHINES), base) if trains else [],
        )


def plan_lines(
    config,  # a YAML file
    settings=(),  # texts of --set
    devices: tuple[str, ...] | None = None,  # as for `plan`
) -> Iterator[str]:
    "The lines of `plan_text`, each as soon as it is known."
    stages = load_config(config, settings).stages
    names = [stage.name for stage in stages if stage.pipeline.stem in TRAINING]
    width = max(map(len, names), default=0)
    yield plan_head(width)
    plans, others = [], []
    for stage, found in plan_stages(stages, devices):
        yield from stage_lines(found, width)
        plans += found
        if not found:
            others.append(stage.name)
    yield from plan_notes(plans, others)


def plan_text(plans: list[StagePlan], others: list[str]) -> str:
    "The plan as a table, with what to change where a stage does not fit."
    width = max((len(one.stage) for one in plans), default=0)
    return "\n".join([plan_head(width), *stage_lines(plans, width), *plan_notes(plans, others)])


def plan_head(width: int) -> str:
    "Names of the columns; a stage's name is so wide."
    columns = ["weights", "copies", "gradients", "AdamW", "step", "base", "total", "of"]
    heads = "".join(f"{column:>11}" for column in columns)
    return f"{'stage':<{width}}  device{heads}  fits  s/step    steps      time"


def stage_lines(plans: list[StagePlan], width: int) -> Iterator[str]:
    "A line for each plan, and one where it does not fit."
    for one in plans:
        yield plan_line(one, width)
        if one.advice:
            words = "" if one.advice.startswith("nothing") else "would fit with "
            yield f"{'':<{width}}  {words}{one.advice}"


def plan_notes(plans: list[StagePlan], others: list[str]) -> Iterator[str]:
    "What is to be known of the numbers."
    for text in dict.fromkeys(one.lengths for one in plans):
        stages = ", ".join(dict.fromkeys(one.stage for one in plans if one.lengths == text))
        yield f"lengths: {text}: {stages}"
    slow = [
        one
        for one in plans
        if one.device in MACHINES and not MACHINES[one.device].bf16 and one.precision == "float32"
    ]
    for device in dict.fromkeys(one.device for one in slow):
        stages = ", ".join(one.stage for one in slow if one.device == device)
        card = MACHINES[device]
        yield (
            f"float32 on a {device}, which has no bf16; with precision: fp16 a step would take "
            f"about 1/{card.half / card.float32:.0f} of the time: {stages}"
        )
    if any(one.device in MACHINES for one in plans):
        yield (
            f"time on a GPU: {USED:.0%} of its data sheet, an assumption; sampling and validation "
            "are not in it"
        )
    if others:
        yield f"not planned, as they do not train: {', '.join(others)}"


def plan_line(one: StagePlan, width: int) -> str:
    "A stage's row of the table."
    m = one.memory
    sizes = (
        m.weights,
        m.copies,
        m.gradients,
        m.optimiser,
        m.step,
        one.base,
        one.total,
        one.room,
    )
    spent = "?" if one.steps is None else clock_text(one.steps * one.step_seconds)
    return (
        f"{one.stage:<{width}}  {one.device:<6}"
        + "".join(f"{size_text(size):>11}" for size in sizes)
        + f"  {'yes' if one.fits else 'NO':<4}{one.step_seconds:>8.2f}"
        + f"{one.steps or '?':>9}{spent:>10}"
    )


def size_text(size: float) -> str:
    "Bytes for people."
    return (
        "-" if not size else f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
    )


def clock_text(seconds: float) -> str:
    "Minutes or hours, for people."
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
