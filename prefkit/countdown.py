"""Countdown's verifier and reward: `prefkit.data.countdown`."""

from prefkit.data.countdown import shaped_reward, verify

__all__ = ["shaped_reward", "verify"]
