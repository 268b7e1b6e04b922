"""The losses: plain functions of log-probs, one file a method; torch is all that they import."""

from .distillation import distillation_advantages, distillation_loss
from .dpo import dpo_loss
from .dpop import dpop_loss
from .grpo import (
    clipped_share,
    grpo_advantages,
    grpo_loss,
    ranked_rewards,
    varied_temperatures,
)
from .ipo import ipo_loss
from .kl import kl_penalty, rloo_kl_loss, shaped_rewards
from .kto import derangement, kto_kl, kto_loss, kto_weights
from .length_penalty import length_penalty, sft_length_loss
from .minor_dpo import minor_dpo_loss
from .orpo import log_odds_ratio, orpo_loss, probability_ratio_loss
from .policy_gradients import (
    bounded_share,
    group_advantages,
    group_weights,
    overlong_penalty,
    policy_gradient_loss,
)
from .ppo import adapt_kl, gae, ppo_clipped_share, ppo_loss, token_rewards, whiten
from .reward_model import reward_model_loss
from .rloo import reinforce_loss, rloo_advantages, rloo_loss
from .sampler_mismatch import (
    effective_share,
    sampler_ratios,
    sampler_weights,
    weighted_gradient,
)
from .sft import sft_loss
from .simpo import simpo_loss
from .sppo import group_win_rates, sppo_loss, sppo_pair_loss
from .topr import topr_loss, topr_weight
from .xpo import xpo_loss

__all__ = [
    "adapt_kl",
    "bounded_share",
    "clipped_share",
    "derangement",
    "distillation_advantages",
    "distillation_loss",
    "dpo_loss",
    "dpop_loss",
    "effective_share",
    "gae",
    "group_advantages",
    "group_weights",
    "group_win_rates",
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
    "overlong_penalty",
    "policy_gradient_loss",
    "ppo_clipped_share",
    "ppo_loss",
    "probability_ratio_loss",
    "ranked_rewards",
    "reinforce_loss",
    "reward_model_loss",
    "rloo_advantages",
    "rloo_kl_loss",
    "rloo_loss",
    "sampler_ratios",
    "sampler_weights",
    "sft_length_loss",
    "sft_loss",
    "shaped_rewards",
    "simpo_loss",
    "sppo_loss",
    "sppo_pair_loss",
    "token_rewards",
    "topr_loss",
    "topr_weight",
    "varied_temperatures",
    "weighted_gradient",
    "whiten",
    "xpo_loss",
]
