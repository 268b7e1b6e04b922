"""Where a run computes: device, precision, and how many processes share its batches.

Everything that differs between one CPU, a GPU and several processes comes from `accelerate` and
stands here or in one line of the loop. Precision is torch's own autocast and gradient scaler:
accelerate fixes one precision for the life of a process, and a notebook may train in two.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    FullyShardedDataParallelPlugin,
    KwargsHandler,
    LoggerType,
    broadcast_object_list,
    gather_object,
)

from prefkit.core import ConfigError, PrefkitError
from prefkit.train.settings import TrainSettings


def make_accelerator(
    settings: TrainSettings,  # device, tracker, sharding
    folder: Path,  # of the run: trackers that write files write there
) -> Accelerator:
    "The processes and devices of a run; raises `ConfigError` for what this machine cannot do."
    options: dict[str, Any] = {}
    if settings.sharding == "fsdp":
        options["fsdp_plugin"] = _fsdp_plugin(settings)
    if settings.tracker != "none":
        if (
            LoggerType(settings.tracker) not in get_available_trackers()
        ):  # it would be left out in silence
            raise ConfigError(
                f"tracker: {settings.tracker} is not installed. Run: pip install 'prefkit[track]'.",
                field="tracker",
                reason="not installed",
            )
        options |= {"log_with": settings.tracker, "project_dir": folder}
    # without a GPU accelerate would start several processes as so many single ones
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    on_cpu = settings.device == "cpu" or (launched and not torch.cuda.is_available())
    # a buffer of a language model is a table of positions, the same everywhere
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    try:
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=handlers, **options)
    except ValueError as error:  # one process has one device for its life
        raise ConfigError(
            f"device: {settings.device} cannot be had any more, because this process has used "
            f"another one ({error}). Start a new process, or leave device as it was.",
            field="device",
            reason="another one is in use",
        ) from error
    if settings.processes not in (1, accelerator.num_processes):
        raise ConfigError(
            f"processes: {settings.processes} are wanted, and this is one of "
            f"{accelerator.num_processes}. Run the config with `prefkit run`, which starts them, "
            f"or start them yourself: accelerate launch --num_processes {settings.processes}.",
            field="processes",
            reason="not started",
        )
    if settings.tf32:
        if accelerator.device.type != "cuda":
            raise ConfigError("tf32: needs a GPU. Write false.", field="tf32", reason="needs a GPU")
        torch.set_float32_matmul_precision("high")
    return accelerator


def _fsdp_plugin(settings: TrainSettings) -> FullyShardedDataParallelPlugin:
    """Weights, gradients and optimiser states cut up among GPUs (FSDP2); refused where it would be
    ignored.
    """
    if settings.device == "cpu" or not torch.cuda.is_available():
        raise ConfigError(
            "sharding: fsdp needs GPUs; on a CPU it would be ignored without a word. Write ddp.",
            field="sharding",
            reason="needs a GPU",
        )
    if settings.precision == "fp16":
        raise ConfigError(
            "sharding: fsdp does not go with precision: fp16, whose scaler does not know it. "
            "Write precision: bf16, or sharding: ddp.",
            field="sharding",
            reason="not with fp16",
        )
    return FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")


def choose_precision(settings: TrainSettings, device: torch.device | str) -> str:
    """float32, bf16 or fp16. `auto` is bf16 on a GPU that has it, else float32. A CPU computes bf16
    by autocast, slowly; raises `ConfigError` for what a device cannot compute.
    """
    on_gpu = torch.device(device).type == "cuda"
    able = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.precision == "auto":
        return "bf16" if able else "float32"
    if settings.precision == "bf16" and on_gpu and not able:
        raise ConfigError(
            "precision: this GPU has no bf16. Write fp16, float32, or auto.",
            field="precision",
            reason="not on this GPU",
        )
    if settings.precision == "fp16" and not on_gpu:
        raise ConfigError(
            "precision: fp16 needs a GPU; on a CPU it would be computed in float32 without a word. "
            "Write bf16, float32 or auto.",
            field="precision",
            reason="needs a GPU",
        )
    return settings.precision


@dataclass(frozen=True)
class Share:
    "This process's part of what all processes do together."

    rank: int = 0  # which process, from 0
    of: int = 1  # how many
    counts: bool = True  # False: it takes part with rows that are counted elsewhere

    @classmethod
    def of_process(cls, accelerator: Accelerator) -> "Share":
        return cls(accelerator.process_index, accelerator.num_processes)

    def mine(self, items: list) -> list:
        "Every `of`-th item, beginning with the `rank`-th."
        return items[self.rank :: self.of]

    def gather(self, items: list) -> list:
        "The parts of all processes in the order from which `mine` took them."
        if self.of == 1:
            return items
        parts = gather_object([items])
        whole = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.of] = part
        return whole

    def each(self, value) -> list:
        "The value of every process, by rank; what JSON can hold."
        return [value] if self.of == 1 else gather_object([value])

    def from_main(self, value):
        "The main process's value."
        if self.of == 1:
            return value
        return broadcast_object_list([value])[0]

    def wait(self):
        "Go on when all processes have come here."
        if self.of > 1:
            torch.distributed.barrier()

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        "Sum of a tensor over all processes, without gradient."
        if self.of == 1:
            return sums
        sums = sums.detach().clone()
        torch.distributed.all_reduce(sums)
        return sums

    def main_does(self, action: Callable):
        "What the main process's `action` returns, or raises, for all processes."
        if self.of == 1:
            return action()
        found, error = None, None
        if self.rank == 0:
            try:
                found = action()
            except PrefkitError as raised:
                error = raised
        found, error = self.from_main((found, error))
        if error:
            raise error
        return found
