"""Tiny models of the family for tests: one config a part of every registry, weights large enough to tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from zephyra_fusion.config import FULL, SLIDING, FusionConfig
from zephyra_fusion.layers.feed_forward import ACTIVATIONS, FEED_FORWARDS
from zephyra_fusion.layers.norm import NORMS
from zephyra_fusion.layers.position import POSITIONS
from zephyra_fusion.layers.rope_scaling import ROPE_SCALINGS
from zephyra_fusion.layers.scaled_dot_product import ATTENTIONS
from zephyra_fusion.lora import LoraConfig, adapted_layers, add_adapter
from zephyra_fusion.model import ZephyraFusion

VOCABULARY, CONTEXT = 61, 256

TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
EXPERTS = {"feed_forward": "moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# What a part needs beside its name.
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("attention", "frequency"): {"position": "sinusoidal", "frequency_modes": 5},
    ("feed_forward", "moe"): EXPERTS,
    ("rope_scaling", "linear"): {"factor": 4.0},
    ("rope_scaling", "llama3"): {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    ("rope_scaling", "yarn"): {"factor": 4.0, "original_max_position_embeddings": 64},
}

# Numbers, not names: they have no registry, and every contract all the same.
NUMBERS: dict[str, dict[str, Any]] = {
    "multi-query": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": 4},
    "qk norm": {"qk_norm": True},
    "biases": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "wide values": {"value_head_dim": 12, "attention_scale": 0.2},
    "window of 1": {"sliding_window": 1},
    "window of 5": {"sliding_window": 5},
    "window of 40": {"sliding_window": 40},
    "window pattern": {"num_hidden_layers": 3, "sliding_window": 4, "layer_types": [SLIDING, SLIDING, FULL]},
    "window of frequencies": {"attention": "frequency", "position": "none", "sliding_window": 6},
    "post-norm": {"norm_placement": "post", "final_norm": False},
    "shared expert": {**EXPERTS, "shared_expert_intermediate_size": 16, "expert_feed_forward": "mlp"},
    "adaptive input": {"cutoffs": [10, 30], "cutoff_factor": 2, "tie_word_embeddings": False},
    "narrow input": {"embedding_size": 12, "tie_word_embeddings": False},
    "untied": {"tie_word_embeddings": False},
}


def configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of every registry that a config can name, by a readable name."""
    registries = {
        "attention": ATTENTIONS,
        "position": POSITIONS,
        "norm": NORMS,
        "feed_forward": FEED_FORWARDS,
        "hidden_act": ACTIVATIONS,
    }
    for key, registry in registries.items():
        for name in registry:
            yield f"{key} {name}", {**TINY, **NEEDS.get((key, name), {}), key: name}
    for name in ROPE_SCALINGS:
        yield f"rope {name}", {**TINY, "rope_scaling": {"rope_type": name, **NEEDS.get(("rope_scaling", name), {})}}
    for name, changed in NUMBERS.items():
        yield name, {**TINY, **changed}


FAMILY = dict(configs())


def build(values: dict[str, Any], seed: int = 0) -> ZephyraFusion:
    """The model in evaluation mode, random weights of a size at which every part shows in the logits."""
    torch.manual_seed(seed)
    model = ZephyraFusion(FusionConfig(**values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or "layernorm.weight" in name:
                parameter.uniform_(0.7, 1.3)
            elif "kernel." not in name:
                parameter.normal_(std=0.25)
    return model.eval()


def some_ids(length: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def adapted() -> ZephyraFusion:
    """Three adapters of different ranks and reach, all trained a little."""
    model = build({**TINY, "qk_norm": True})
    add_adapter(model, "code", LoraConfig(r=2, lora_alpha=4))
    add_adapter(model, "law", LoraConfig(r=3, lora_alpha=3, use_rslora=True, target_modules=("q_proj", "down_proj")))
    add_adapter(model, "math", LoraConfig(r=4, lora_alpha=2, layers_to_transform=(1,)))
    torch.manual_seed(7)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            for name in layer.lora_A:
                layer.factors(name)[1].normal_(std=0.3)
    return model
