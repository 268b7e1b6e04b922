"""The tiny world: `prefkit.data.world`."""

from prefkit.data.world import gold_reward, second_judge, tiny_records

__all__ = ["gold_reward", "second_judge", "tiny_records"]
