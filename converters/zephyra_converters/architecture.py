"""Which llama.cpp architecture computes exactly what a FusionConfig says; what none expresses is refused by name.

Verified against llama-cpp-python 0.3.36; re-run the parity tests on every bump.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from zephyra_converters.rope_scaling import rope_type
from zephyra_fusion.config import SLIDING, FusionConfig
from zephyra_fusion.errors import ZephyraError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What llama.cpp's graph of that name can and wants."""

    name: str
    interleaved: bool = False  # RoPE turns neighbours, not halves: rows of q and k are stored permuted
    qk_norm: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    rope_factors: bool = False  # loads rope_freqs.weight (llama3 scaling)
    attention_scale: bool = False
    experts: bool = False
    window: bool = False
    sinks: bool = False  # wants attn_sinks.weight: filled so low that they take no part
    untied: bool = False  # wants output.weight even where it is the embedding table


_NORM_ROPE = {"interleaved": True, "out_bias": True, "mlp_bias": True, "rope_factors": True, "experts": True}
ARCHITECTURES = {
    arch.name: arch
    for arch in (
        Architecture(name="llama", **_NORM_ROPE),
        Architecture(name="qwen2"),
        Architecture(name="qwen3", qk_norm=True),
        Architecture(name="qwen3moe", qk_norm=True, experts=True),
        Architecture(name="granite", attention_scale=True, **_NORM_ROPE),
        Architecture(name="granite_swa", attention_scale=True, window=True, sinks=True, **_NORM_ROPE),
        Architecture(name="step35", qk_norm=True, window=True, untied=True),
    )
}


def arch_for(config: FusionConfig) -> Architecture:
    """The architecture for `config`; ZephyraError names everything that none can express, at once."""
    arch = ARCHITECTURES[_name_for(config)]
    if wrong := [*_inexpressible(config, arch), *_inexpressible_rope(config, arch)]:
        raise ZephyraError(
            f"llama.cpp cannot express this model: {'; '.join(wrong)}",
            hint="run it with --backend torch, or train without what is named",
        )
    return arch


def own_scale(config: FusionConfig) -> float | None:
    """The attention scale, where it is not the usual head_dim ** -0.5."""
    usual = (config.head_dim or 1) ** -0.5
    scale = config.attention_scale
    return None if scale is None or math.isclose(scale, usual, rel_tol=1e-6) else scale


def _name_for(config: FusionConfig) -> str:
    if SLIDING in (config.layer_types or ()):
        return "step35" if config.qk_norm else "granite_swa"
    if config.qk_norm:
        return "qwen3moe" if config.num_experts else "qwen3"
    if own_scale(config) is not None:
        return "granite"
    # qwen2's q and o are hidden x hidden; other shapes with biases on q, k, v fit llama as well.
    square = config.num_attention_heads * (config.head_dim or 0) == config.hidden_size
    plain = not (config.attention_out_bias or config.mlp_bias or config.num_experts)
    return "qwen2" if config.attention_bias and square and plain else "llama"


def _inexpressible(config: FusionConfig, arch: Architecture) -> Iterator[str]:
    wanted: dict[str, object] = {"position": "rope", "attention": "sdpa", "norm": "rms", "norm_placement": "pre"}
    wanted["feed_forward"] = "moe" if config.num_experts else "swiglu"
    wanted |= {"final_norm": True, "mask_padding": False}
    wanted |= {"expert_feed_forward": "swiglu", "shared_expert_intermediate_size": 0}
    for key, value in wanted.items():
        if getattr(config, key) != value:
            yield f"{key} '{getattr(config, key)}' (only '{value}')"
    if config.hidden_act not in ("silu", "swish"):
        yield f"hidden_act '{config.hidden_act}' (only 'silu')"
    if config.value_head_dim != config.head_dim:
        yield f"value_head_dim {config.value_head_dim} other than head_dim {config.head_dim}"
    if config.embedding_size != config.hidden_size:
        yield f"embedding_size {config.embedding_size} other than hidden_size {config.hidden_size}"
    if config.cutoffs:
        yield f"adaptive input with cutoffs {list(config.cutoffs)}"
    why = f"together with what needs architecture '{arch.name}'"
    if own_scale(config) is not None and not arch.attention_scale:
        yield f"attention_scale {config.attention_scale} {why}"
    if config.attention_out_bias and not arch.out_bias:
        yield f"attention_out_bias {why}"
    if config.mlp_bias and (not arch.mlp_bias or config.num_experts):
        yield f"mlp_bias {why}"
    if config.num_experts and not arch.experts:
        yield f"num_experts {config.num_experts} {why}"
    if config.num_experts and not config.norm_topk_prob:
        yield "norm_topk_prob false"


def _inexpressible_rope(config: FusionConfig, arch: Architecture) -> Iterator[str]:
    kind = rope_type(config)
    known: dict[str, set[str]] = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"},
    }
    if kind not in known:
        yield f"rope_scaling of type '{kind}' (only {', '.join(known)})"
        return
    given = {key for key, value in (config.rope_scaling or {}).items() if value is not None}
    if extra := sorted(given - known[kind] - {"rope_type", "type"}):
        yield f"rope_scaling {kind} with {', '.join(extra)}"
    if kind != "default" and (arch.window or kind == "llama3" and not arch.rope_factors):
        yield f"rope_scaling {kind} together with what needs architecture '{arch.name}'"
