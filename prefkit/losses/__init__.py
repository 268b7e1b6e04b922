"""The losses: plain functions of log-probs, one file a method; torch is all that they import."""

from .dpo import dpo_loss
from .dpop import dpop_loss
from .grpo import clipped_share, grpo_advantages, grpo_loss, varied_temperatures
from .ipo import ipo_loss
from .kto import derangement, kto_kl, kto_loss, kto_weights
from .length_penalty import length_penalty, sft_length_loss
from .minor_dpo import minor_dpo_loss
from .orpo import log_odds_ratio, orpo_loss, probability_ratio_loss
from .ppo import adapt_kl, gae, ppo_clipped_share, ppo_loss, token_rewards, whiten
from .reward_model import reward_model_loss
from .rloo import (
    kl_penalty,
    reinforce_loss,
    rloo_advantages,
    rloo_kl_loss,
    rloo_loss,
    shaped_rewards,
)
from .sft import sft_loss
from .simpo import simpo_loss
from .topr import topr_loss, topr_weight
from .xpo import xpo_loss

__all__ = [
    "adapt_kl",
    "clipped_share",
    "derangement",
    "dpo_loss",
    "dpop_loss",
    "gae",
    "grpo_advantages",
    "grpo_loss",
    "ipo_loss",
    "kl_penalty",
    "kto_kl",
    "kto_loss",
    "kto_weights",
    "length_penalty",
    "log_odds_ratio",
    "minor_dpo_loss",
    "orpo_loss",
    "ppo_clipped_share",
    "ppo_loss",
    "probability_ratio_loss",
    "reinforce_loss",
    "reward_model_loss",
    "rloo_advantages",
    "rloo_kl_loss",
    "rloo_loss",
    "sft_length_loss",
    "sft_loss",
    "shaped_rewards",
    "simpo_loss",
    "token_rewards",
    "topr_loss",
    "topr_weight",
    "varied_temperatures",
    "whiten",
    "xpo_loss",
]
