"""The win rates: `prefkit.stats.win_rate` and `prefkit.stats.length_control`."""

from prefkit.stats.length_control import length_controlled_win_rate
from prefkit.stats.win_rate import win_rate

__all__ = ["length_controlled_win_rate", "win_rate"]
