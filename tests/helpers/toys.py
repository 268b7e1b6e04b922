"""A toy experiment of two stages, for tests of configs and run folders that start no kernel."""

from pathlib import Path

from prefkit.runs.config import write_pipeline
from prefkit.core import write_json, write_text

PARAMETERS = """steps: int = 40 # how many
learning_rate: float = 0.1 # step size
dataset: str = "tiny-world" # a file, or a name
start: str = "" # a folder to start from
extra: dict = {} # whatever the method takes
seed: int = 0 # of the noise
output_dir: str = "" # given by the runner"""
CONFIG = """experiment: toy
seed: 0
stages:
  second: {pipeline: train.ipynb, parameters: {start: "stage:first"}}
  first:  {pipeline: train.ipynb, parameters: {steps: 20}}
"""


def write_toy(folder: Path, config: str = CONFIG) -> Path:
    "The config of an experiment whose second stage reads the first one's checkpoint."
    write_pipeline(folder / "train.ipynb", PARAMETERS, "import prefkit.core")
    return write_text(folder / "toy.yaml", config)


def write_run(folder: Path, prints: dict, name: str = "") -> Path:
    "A finished run as far as the runner looks: run.json, and a checkpoint with a file."
    write_text(folder / "checkpoint" / "value.json", name)
    write_json(folder / "run.json", {"status": "done", "fingerprints": prints})
    return folder
