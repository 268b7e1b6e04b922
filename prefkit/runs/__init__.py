"""Experiments: configs, stages, run folders."""

from prefkit.runs.runner import Run, open_run, report, run
from prefkit.runs.stage import finish, output_folder

__all__ = ["Run", "finish", "open_run", "output_folder", "report", "run"]
