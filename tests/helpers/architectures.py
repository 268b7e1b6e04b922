"""Small random models of many architectures, with the tiny tokenizer; what each can do."""

from dataclasses import dataclass

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.core import project_root

BASE = project_root() / "data/tiny/base"
TOKENIZER = AutoTokenizer.from_pretrained(BASE)
COMMON = {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **COMMON}
SIZE |= {"max_position_embeddings": 512}
GROUPED = {"num_key_value_heads": 1, "intermediate_size": 64, **SIZE}
HEADED = {"head_dim": 16, **GROUPED}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass
class Architecture:
    "What to build, and what is expected of it."

    config: str  # a class of transformers
    options: dict
    layout: str = "packed"  # the fastest that it reads rightly
    way: str = "padded"  # in which it reads prompts
    reward: bool = True  # whether transformers has a classifier of it


ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", GROUPED),
    "qwen2": Architecture("Qwen2Config", GROUPED),
    "qwen3": Architecture("Qwen3Config", HEADED),
    "qwen2_moe": Architecture(
        "Qwen2MoeConfig", {"shared_expert_intermediate_size": 32, **EXPERTS, **GROUPED}
    ),
    "gemma2": Architecture("Gemma2Config", {"sliding_window": 16, **HEADED}, "apart"),
    "gemma3": Architecture("Gemma3TextConfig", {"sliding_window": 16, **HEADED}, "apart"),
    "gemma3_wide": Architecture("Gemma3TextConfig", {"sliding_window": 256, **HEADED}),
    "mistral": Architecture("MistralConfig", {"sliding_window": 16, **GROUPED}, "apart"),
    "mistral_wide": Architecture("MistralConfig", {"sliding_window": 256, **GROUPED}),
    "phi3": Architecture("Phi3Config", GROUPED),
    "olmo2": Architecture("Olmo2Config", GROUPED),
    "gpt2": Architecture(
        "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512, **COMMON}
    ),
    "neox": Architecture("GPTNeoXConfig", {"intermediate_size": 64, "hidden_dropout": 0.1, **SIZE}),
    "opt": Architecture("OPTConfig", {"word_embed_proj_dim": 32, "ffn_dim": 64, **SIZE}),
    "falcon": Architecture(
        "FalconConfig", {"alibi": False, "hidden_dropout": 0.1, **SIZE}, "shared"
    ),
    "falcon_alibi": Architecture("FalconConfig", {"alibi": True, **SIZE}, "apart"),
    "bloom": Architecture(
        "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 2, **COMMON}, "apart"
    ),
    "mamba": Architecture(
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **COMMON},
        "apart",
        "alike",
        reward=False,
    ),
    "lfm2": Architecture(
        "Lfm2Config", {"layer_types": ["conv", "full_attention"], **GROUPED}, "apart", reward=False
    ),
    "cohere": Architecture("CohereConfig", GROUPED, reward=False),
    "granite": Architecture("GraniteConfig", GROUPED, reward=False),
    "llama4": Architecture(
        "Llama4TextConfig",
        {
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 16,
            "num_local_experts": 2,
            **HEADED,
        },
        "apart",
        reward=False,
    ),
    "bamba": Architecture(
        "BambaConfig",
        {
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
            "attn_layer_indices": [1],
            **GROUPED,
        },
        "apart",
        reward=False,
    ),
    "recurrent_gemma": Architecture(
        "RecurrentGemmaConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "lru_width": 32,
            "attention_window_size": 16,
            **COMMON,
        },
        "apart",
        "anew",
        reward=False,
    ),
}


def build(name: str, **changes):
    "A model whose random weights are large enough that every token before counts; in eval mode."
    kind = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind.config)(**{**kind.options, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)
    return model


def saved(folder, model, tokenizer=TOKENIZER) -> str:
    "A model's folder."
    for each in (model, tokenizer):
        each.save_pretrained(folder)
    return str(folder)
