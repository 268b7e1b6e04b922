"""The losses: plain functions of log-probs, one per method; importing them drags in torch and nothing else."""
from .dpo import dpo_loss
from .sft import sft_loss

__all__ = ["dpo_loss", "sft_loss"]
