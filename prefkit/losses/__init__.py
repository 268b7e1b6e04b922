"""The losses: plain functions of log-probs, one per method; importing them drags in torch and nothing else."""
from .dpo import dpo_loss
from .dpop import dpop_loss
from .ipo import ipo_loss
from .kto import derangement, kto_kl, kto_loss, kto_weights
from .minor_dpo import minor_dpo_loss
from .orpo import log_odds_ratio, orpo_loss, probability_ratio_loss
from .reward_model import reward_model_loss
from .sft import sft_loss
from .simpo import simpo_loss
from .topr import topr_loss, topr_weight
from .xpo import xpo_loss

__all__ = ["derangement", "dpo_loss", "dpop_loss", "ipo_loss", "kto_kl", "kto_loss", "kto_weights", "log_odds_ratio", "minor_dpo_loss",
           "orpo_loss", "probability_ratio_loss", "reward_model_loss", "sft_loss", "simpo_loss", "topr_loss", "topr_weight", "xpo_loss"]
