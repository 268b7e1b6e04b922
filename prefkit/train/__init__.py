"""Training: `train_model` on rows that are there, `train_online` on the model's own samples."""

from prefkit.train.loop import train_model
from prefkit.train.rounds import train_online
from prefkit.train.settings import RolloutSettings, TrainSettings

__all__ = ["RolloutSettings", "TrainSettings", "train_model", "train_online"]
