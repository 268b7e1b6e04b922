"""Configs of experiments: `prefkit.runs.config`."""

from prefkit.runs.config import load_config

__all__ = ["load_config"]
