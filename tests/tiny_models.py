"""Tiny random models of every architecture, saved as Hugging Face does: no download, a few hundred kilobytes each.

Nothing in them is a default that hides an error: multipliers are not one, biases and norms are random, and windows are
shorter than the prompts of tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

LAYERS = 6
VOCABULARY = 101
# set where the config of the family has such a field
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 6,
    "sliding_window_size": 6,
    "attention_chunk_size": 6,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # attention through small ranks
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    # attention to a few chosen columns
    "index_topk": 4,
    "index_n_heads": 32,
    "index_block_size": 2,
    "index_topk_blocks": 2,
    "keep_window_size": 4,
    "index_head_dim": 16,
    # linear attention
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # what scales embeddings, residuals and logits
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.4,
    "logits_scaling": 2.0,
    "logit_scale": 0.5,
}
# what single families need besides
# small ranks keep as many heads for keys as for queries
FULL_HEADS = {"num_key_value_heads": 4}
LARGE_OF_GEMMA4 = {"hidden_size_per_layer_input": 0, "global_head_dim": 16}
PARTIAL_ROTARY = {"rotary_dim": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "sarvam_mla", "youtu"), FULL_HEADS),
    **dict.fromkeys(("axk2", "bailing_hybrid", "deepseek_v32", "kimi_linear", "minicpm3"), FULL_HEADS),
    "codegen": PARTIAL_ROTARY,
    "gptj": PARTIAL_ROTARY,
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        "num_key_value_heads": 4,
        **{f"swa_num_{heads}": 4 for heads in ("attention_heads", "key_value_heads")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "head_dim")},
        **{f"swa_{name}": 8 for name in ("qk_nope_head_dim", "v_head_dim")},
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": LARGE_OF_GEMMA4,
    "gemma4_unified_text": LARGE_OF_GEMMA4,
    # eyes and ears, of which text needs nothing
    "phi4_multimodal": {
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 2, "num_attention_heads": 2},
    },
}


def families() -> list[str]:
    """Every causal language model of transformers that declares a pipeline plan."""
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(name for name in names if getattr(CONFIG_MAPPING[name], "base_model_pp_plan", None))


def tiny_config(family: str, **overrides: Any) -> Any:
    kind = CONFIG_MAPPING[family]
    default = kind()
    sizes = {name: value for name, value in SIZES.items() if _has(default, name)}
    return kind(**sizes | FAMILIES.get(family, {}) | overrides)


def _has(config: Any, name: str) -> bool:
    """Whether this config can be told ``name``: not where it works it out by itself."""
    if isinstance(getattr(type(config), name, None), property):
        return False
    try:
        return hasattr(config, name)
    except RuntimeError:
        return True  # it differs by layer


def tiny_model(family: str, directory: Path, **overrides: Any) -> Path:
    """A random float32 model of this family; ``overrides`` go to its config. Gives the directory it was saved to."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, **overrides), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.07)
    model.save_pretrained(directory)
    return directory
