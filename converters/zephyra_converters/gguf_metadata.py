"""A FusionConfig as the keys of its GGUF architecture, and back."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from zephyra_converters.architecture import ARCHITECTURES, Architecture, own_scale
from zephyra_converters.rope_scaling import recognise_llama3, rope_type
from zephyra_fusion.config import FULL, SLIDING, FusionConfig
from zephyra_fusion.errors import ZephyraError, did_you_mean

TIED = "zephyra.tie_word_embeddings"  # where the architecture wants the head written out although it is shared


def metadata_for(config: FusionConfig, arch: Architecture) -> dict[str, Any]:
    """The architecture's own keys, prefixed; ints become u32 in the file, floats f32."""
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
        own = "expert_feed_forward_length" if arch.name == "qwen3moe" else "feed_forward_length"
        keys[own] = config.moe_intermediate_size
    if arch.attention_scale:
        keys["logit_scale"] = 1.0  # these architectures insist on it; logits are divided by it
        if (scale := own_scale(config)) is not None:
            keys["attention.scale"] = float(scale)
    if arch.window:
        keys["attention.sliding_window"] = config.sliding_window
        keys["attention.sliding_window_pattern"] = [kind == SLIDING for kind in config.layer_types or ()]
    if arch.name == "step35":
        keys["rope.dimension_count"] = 2 * (head_dim or 0)  # it halves the number for its full layers
        keys["rope.dimension_count_swa"] = head_dim
        keys["rope.freq_base_swa"] = float(config.rope_theta)
        keys["expert_feed_forward_length"] = 0
    result = {f"{arch.name}.{key}": value for key, value in (keys | _scaling_keys(config)).items()}
    if arch.untied:
        result[TIED] = config.tie_word_embeddings
    return result


def _scaling_keys(config: FusionConfig) -> dict[str, Any]:
    scaling, kind = config.rope_scaling or {}, rope_type(config)
    if kind not in ("linear", "yarn"):
        return {}
    keys: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
        keys["rope.scaling.original_context_length"] = int(original)
        for key in ("beta_fast", "beta_slow"):
            if scaling.get(key) is not None:
                keys[f"rope.scaling.yarn_{key}"] = float(scaling[key])
    return keys


def config_from_metadata(
    metadata: Mapping[str, Any], vocab_size: int, tensors: frozenset[str], factors: list[float] | None
) -> FusionConfig:
    """The config that `metadata_for` wrote; `tensors` are the GGUF's names (tied, biases), `factors` rope_freqs.

    A key of the architecture that is not understood is an error: it may change what the model computes.
    """
    name = str(metadata.get("general.architecture", ""))
    if name not in ARCHITECTURES:
        raise ZephyraError(f"cannot read back architecture '{name}'", hint=did_you_mean(name, ARCHITECTURES))
    keys = _Keys(metadata, ARCHITECTURES[name])
    hidden, heads = keys.take("embedding_length"), keys.take("attention.head_count")
    head_dim = keys.take("attention.key_length", hidden // heads)
    inner, experts = keys.take("feed_forward_length"), keys.take("expert_count", 0)
    layers, theta = keys.take("block_count"), shortest(keys.take("rope.freq_base", 10000.0))
    config = FusionConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys.take("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=inner,
        max_position_embeddings=keys.take("context_length"),
        rms_norm_eps=shortest(keys.take("attention.layer_norm_rms_epsilon")),
        rope_theta=theta,
        rope_scaling=recognise_llama3(head_dim, theta, factors) if factors is not None else _scaling(keys),
        tie_word_embeddings=bool(metadata.get(TIED, "output.weight" not in tensors)),
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_out_bias="blk.0.attn_output.bias" in tensors,
        attention_scale=_attention_scale(keys),
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        feed_forward="moe" if experts else "swiglu",
        num_experts=experts,
        num_experts_per_tok=keys.take("expert_used_count", 2),
        moe_intermediate_size=keys.take("expert_feed_forward_length", inner) or inner if experts else None,
        **_window(keys, layers),
    )
    keys.check_rest(head_dim, theta)
    return config


class _Keys:
    """The architecture's keys without their prefix, and which of them have been understood."""

    def __init__(self, metadata: Mapping[str, Any], arch: Architecture) -> None:
        self.arch, prefix = arch, arch.name + "."
        self.values = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
        self.taken: set[str] = set()

    def take(self, key: str, *default: Any) -> Any:
        self.taken.add(key)
        if key not in self.values and not default:
            raise ZephyraError(f"the file lacks the key '{self.arch.name}.{key}'", hint="fetch it again")
        return self.values.get(key, *default)

    def check_rest(self, head_dim: int, theta: float) -> None:
        """Keys that must repeat what others say; whatever is left then is an error."""
        doubled = 2 if self.arch.name == "step35" else 1
        same = {
            "attention.value_length": head_dim,
            "rope.dimension_count": doubled * head_dim,
            "rope.dimension_count_swa": head_dim,
            "rope.freq_base_swa": theta,
            "expert_feed_forward_length": 0,
            "logit_scale": 1.0,
            "vocab_size": None,
        }
        wrong = []
        for key in sorted(set(self.values) - self.taken):
            if key not in same:
                wrong.append(f"unknown key {self.arch.name}.{key}")
            elif same[key] is not None and self.values[key] != same[key]:
                wrong.append(f"{self.arch.name}.{key} is {self.values[key]}, only {same[key]} is understood")
        if wrong:
            raise ZephyraError(f"cannot read back: {'; '.join(wrong)}")


def shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-06, where the file's own bits say 9.999999974752427e-07."""
    single = struct.unpack("<f", struct.pack("<f", value))[0]
    for digits in range(1, 10):
        candidate = float(f"{single:.{digits}g}")
        if struct.unpack("<f", struct.pack("<f", candidate))[0] == single:
            return candidate
    return float(single)


def _attention_scale(keys: _Keys) -> float | None:
    scale = keys.take("attention.scale", None)
    return shortest(scale) if scale else None


def _window(keys: _Keys, layers: int) -> dict[str, Any]:
    if not keys.arch.window:
        return {}
    pattern = keys.take("attention.sliding_window_pattern")
    kinds = [SLIDING if windowed else FULL for windowed in pattern][:layers]
    return {"sliding_window": keys.take("attention.sliding_window"), "layer_types": tuple(kinds)}


def _scaling(keys: _Keys) -> dict[str, Any] | None:
    kind, factor = keys.take("rope.scaling.type", None), keys.take("rope.scaling.factor", None)
    given = {
        "original_max_position_embeddings": keys.take("rope.scaling.original_context_length", None),
        "beta_fast": keys.take("rope.scaling.yarn_beta_fast", None),
        "beta_slow": keys.take("rope.scaling.yarn_beta_slow", None),
    }
    if kind in (None, "none") or factor is None:
        return None
    scaling = {"rope_type": kind, "factor": shortest(factor)}
    return scaling | ({k: v for k, v in given.items() if v is not None} if kind == "yarn" else {})
