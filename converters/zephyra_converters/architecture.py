"""Which llama.cpp architecture computes exactly what a FusionConfig says, and its metadata both ways.

What none of them expresses is refused by name. Verified against llama-cpp-python 0.3.36; re-run parity on every bump.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zephyra_fusion.config import SLIDING, FusionConfig
from zephyra_fusion.errors import ZephyraError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What llama.cpp's graph of that name can and wants."""

    name: str
    interleaved: bool = False  # RoPE turns neighbours, not halves: rows of q and k are stored permuted
    qk_norm: bool = False
    square: bool = False  # heads * head_dim must be the hidden size
    out_bias: bool = False
    mlp_bias: bool = False
    rope_factors: bool = False  # loads rope_freqs.weight (llama3 scaling)
    experts: bool = False


ARCHITECTURES = {
    arch.name: arch
    for arch in (
        Architecture(name="llama", interleaved=True, out_bias=True, mlp_bias=True, rope_factors=True, experts=True),
        Architecture(name="qwen2", square=True),
        Architecture(name="qwen3", qk_norm=True),
        Architecture(name="qwen3moe", qk_norm=True, experts=True),
    )
}


def arch_for(config: FusionConfig) -> Architecture:
    """The architecture for `config`; ZephyraError names everything that none can express, at once."""
    if config.qk_norm:
        arch = ARCHITECTURES["qwen3moe" if config.num_experts else "qwen3"]
    elif _is_qwen2(config):
        arch = ARCHITECTURES["qwen2"]
    else:
        arch = ARCHITECTURES["llama"]
    if wrong := list(_inexpressible(config, arch)):
        raise ZephyraError(
            f"llama.cpp cannot express this model: {'; '.join(wrong)}",
            hint="run it with --backend torch, or train without what is named",
        )
    return arch


def _is_qwen2(config: FusionConfig) -> bool:
    square = config.num_attention_heads * (config.head_dim or 0) == config.hidden_size
    plain = not (config.attention_out_bias or config.mlp_bias or config.num_experts)
    return config.attention_bias and square and plain


def _inexpressible(config: FusionConfig, arch: Architecture) -> Iterator[str]:
    wanted = {"position": "rope", "attention": "sdpa", "norm": "rms", "norm_placement": "pre"}
    wanted["feed_forward"] = "moe" if config.num_experts else "swiglu"
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
    if SLIDING in (config.layer_types or ()):
        yield f"sliding_window {config.sliding_window}"
    if config.attention_scale is not None and not math.isclose(config.attention_scale, (config.head_dim or 1) ** -0.5):
        yield f"attention_scale {config.attention_scale} (only head_dim ** -0.5)"
    if config.attention_out_bias and not arch.out_bias:
        yield f"attention_out_bias together with what needs architecture '{arch.name}'"
    if config.mlp_bias and (not arch.mlp_bias or config.num_experts):
        yield f"mlp_bias together with what needs architecture '{arch.name}'"
    if config.num_experts and not config.norm_topk_prob:
        yield "norm_topk_prob false"
    yield from _inexpressible_rope(config, arch)


def _inexpressible_rope(config: FusionConfig, arch: Architecture) -> Iterator[str]:
    scaling = dict(config.rope_scaling or {})
    kind = rope_type(config)
    known = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"},
    }
    if kind not in known:
        yield f"rope_scaling of type '{kind}' (only {', '.join(known)})"
        return
    if extra := sorted(
        key for key, value in scaling.items() if key not in known[kind] | {"rope_type", "type"} and value is not None
    ):
        yield f"rope_scaling {kind} with {', '.join(extra)}"
    if kind == "llama3" and not arch.rope_factors:
        yield f"rope_scaling llama3 together with what needs architecture '{arch.name}'"


def rope_type(config: FusionConfig) -> str:
    scaling = config.rope_scaling or {}
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def rope_factors(config: FusionConfig) -> list[float] | None:
    """llama3's divisor of each rotary frequency (`rope_freqs.weight`, head_dim / 2 values); None without it."""
    if rope_type(config) != "llama3" or config.rope_scaling is None:
        return None
    return llama3_factors(config.head_dim or 0, config.rope_theta, config.rope_scaling)


def llama3_factors(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> list[float]:
    """Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, a ramp between."""
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    result = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        smooth = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        result.append(1 / ((1 - smooth) / factor + smooth))
    return result


def metadata_for(config: FusionConfig, arch: Architecture) -> dict[str, Any]:
    """The architecture's own keys with the prefix; ints are u32, floats f32, in the GGUF."""
    head_dim = config.head_dim
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": head_dim,
    }
    if config.num_experts:
        keys["expert_count"] = config.num_experts
        keys["expert_used_count"] = config.num_experts_per_tok
        if arch.name == "llama":
            keys["feed_forward_length"] = config.moe_intermediate_size
        else:
            keys["expert_feed_forward_length"] = config.moe_intermediate_size
    scaling, kind = config.rope_scaling or {}, rope_type(config)
    if kind in ("linear", "yarn"):
        keys["rope.scaling.type"] = kind
        keys["rope.scaling.factor"] = float(scaling["factor"])
    if kind == "yarn":
        original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
        keys["rope.scaling.original_context_length"] = int(original)
        for key in ("beta_fast", "beta_slow"):
            if scaling.get(key) is not None:
                keys[f"rope.scaling.yarn_{key}"] = float(scaling[key])
    return {f"{arch.name}.{key}": value for key, value in keys.items()}


def config_from_metadata(
    metadata: Mapping[str, Any], vocab_size: int, tensors: frozenset[str], factors: list[float] | None
) -> FusionConfig:
    """The config that `metadata_for` wrote; `tensors` are the GGUF's names (tied, biases), `factors` rope_freqs.

    A key of the architecture that is not understood is an error: it may change what the model computes.
    """
    name = str(metadata.get("general.architecture", ""))
    if name not in ARCHITECTURES:
        raise ZephyraError(f"cannot read back architecture '{name}'", hint=did_you_mean(name, ARCHITECTURES))
    arch = ARCHITECTURES[name]
    keys = {k.removeprefix(name + "."): v for k, v in metadata.items() if k.startswith(name + ".")}
    taken: set[str] = {"vocab_size", "attention.value_length", "rope.dimension_count"}

    def take(key: str, default: Any = None, *, required: bool = False) -> Any:
        taken.add(key)
        if required and key not in keys:
            raise ZephyraError(f"the file lacks the key '{name}.{key}'", hint="it is incomplete: fetch it again")
        return keys.get(key, default)

    hidden, heads = take("embedding_length", required=True), take("attention.head_count", required=True)
    head_dim = take("attention.key_length", hidden // heads)
    inner, experts = take("feed_forward_length", required=True), take("expert_count", 0)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head_dim) != head_dim:
            raise ZephyraError(f"{name}.{key} is {keys[key]}, only the head width {head_dim} can be read back")
    config = FusionConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=take("block_count", required=True),
        num_attention_heads=heads,
        num_key_value_heads=take("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=inner,
        max_position_embeddings=take("context_length", required=True),
        rms_norm_eps=shortest(take("attention.layer_norm_rms_epsilon", required=True)),
        rope_theta=shortest(take("rope.freq_base", 10000.0)),
        rope_scaling=_scaling(take, head_dim, factors, shortest(keys.get("rope.freq_base", 10000.0))),
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm=arch.qk_norm,
        feed_forward="moe" if experts else "swiglu",
        num_experts=experts,
        num_experts_per_tok=take("expert_used_count", 2),
        moe_intermediate_size=take("expert_feed_forward_length", inner) if experts else None,
    )
    if unknown := sorted(set(keys) - taken):
        raise ZephyraError(f"cannot read back: unknown keys {', '.join(f'{name}.{key}' for key in unknown)}")
    return config


def shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-06, where the file's own bits say 9.999999974752427e-07."""
    import struct

    single = struct.unpack("<f", struct.pack("<f", value))[0]
    for digits in range(1, 10):
        candidate = float(f"{single:.{digits}g}")
        if struct.unpack("<f", struct.pack("<f", candidate))[0] == single:
            return candidate
    return float(single)


def _scaling(take: Any, head_dim: int, factors: list[float] | None, theta: float) -> dict[str, Any] | None:
    kind, factor = take("rope.scaling.type"), take("rope.scaling.factor")
    original = take("rope.scaling.original_context_length")
    fast, slow = take("rope.scaling.yarn_beta_fast"), take("rope.scaling.yarn_beta_slow")
    if factors is not None:
        return _recognise_llama3(head_dim, theta, factors)
    if kind in (None, "none") or factor is None:
        return None
    scaling = {"rope_type": kind, "factor": shortest(factor)}
    if kind == "yarn":
        given = {"original_max_position_embeddings": original, "beta_fast": fast, "beta_slow": slow}
        scaling |= {key: value for key, value in given.items() if value is not None}
    return scaling


def _recognise_llama3(head_dim: int, theta: float, factors: list[float]) -> dict[str, Any]:
    """rope_freqs.weight holds only the outcome of llama3's four numbers: try those that are in use."""
    for factor in (8.0, 32.0, 4.0, 16.0):
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192}  # fmt: skip
        computed = llama3_factors(head_dim, theta, scaling)
        if len(computed) == len(factors) and all(
            math.isclose(a, b, rel_tol=1e-5) for a, b in zip(computed, factors, strict=True)
        ):
            return scaling
    raise ZephyraError("rope_freqs.weight is not Llama 3's rule for any factor in use: it cannot be read back")
