"""What a run left behind, as tests compare it."""

from pathlib import Path

from prefkit.core import read_jsonl
from prefkit.train.log import TIME_FIELDS


def timeless(lines: list[dict]) -> list[dict]:
    "Lines of metrics.jsonl without what differs from one run to the next."
    return [{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in lines]


def without_times(folder: Path) -> list[dict]:
    "The metrics of a run's folder."
    return timeless(read_jsonl(folder / "metrics.jsonl"))


def weights(folder: Path) -> bytes:
    "The weights that a run's folder holds."
    return (folder / "checkpoint" / "model.safetensors").read_bytes()
