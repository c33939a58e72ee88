"""How rotary frequencies are stretched to longer contexts, by name (`rope_scaling.rope_type`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.registry import Registry

# (frequencies [head_dim / 2], scaling parameters, config) -> (scaled frequencies, factor on cos and sin)
Scaling = Callable[[Tensor, Mapping[str, Any], LayerConfig], tuple[Tensor, float]]
ROPE_SCALINGS: Registry[Scaling] = Registry("rope scaling")

# What each kind reads, beside rope_type and rope_theta; anything else is refused.
KEYS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"})
    | {"mscale", "mscale_all_dim", "truncate"},
}


def scaled_frequencies(frequencies: Tensor, config: LayerConfig) -> tuple[Tensor, float]:
    """The frequencies of `config.rope_scaling`, its factor on cos and sin; unknown or missing keys are errors."""
    scaling = dict(config.rope_scaling or {})
    kind = str(scaling.pop("rope_type", scaling.pop("type", "default")))
    scaling.pop("type", None)
    scaling.pop("rope_theta", None)
    scale = ROPE_SCALINGS[kind]
    if unknown := sorted(set(scaling) - KEYS[kind]):
        raise ZephyraError(f"rope_scaling of type '{kind}' has keys that are not understood: {', '.join(unknown)}")
    odd = [n for n, v in scaling.items() if n != "truncate" and v is not None and not (_number(v) and v >= 0)]
    if scaling.get("factor") == 0:
        odd.append("factor")
    if odd:
        named = "; ".join(f"{name} is {scaling[name]!r}, must be a number above 0" for name in odd)
        raise ZephyraError(f"rope_scaling of type '{kind}': {named}")
    try:
        return scale(frequencies, scaling, config)
    except KeyError as missing:
        raise ZephyraError(f"rope_scaling of type '{kind}' lacks the key {missing}") from None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@ROPE_SCALINGS.register("default")
def default_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: LayerConfig) -> tuple[Tensor, float]:
    return frequencies, 1.0


@ROPE_SCALINGS.register("linear")
def linear_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: LayerConfig) -> tuple[Tensor, float]:
    """Positions divided by `factor` (Chen et al., arXiv:2306.15595)."""
    return frequencies / float(scaling["factor"]), 1.0


@ROPE_SCALINGS.register("llama3")
def llama3_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: LayerConfig) -> tuple[Tensor, float]:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1's release)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    if high <= low:
        raise ZephyraError(f"rope_scaling: high_freq_factor is {high}, must be above low_freq_factor {low}")
    wavelengths = 2 * math.pi / frequencies
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / factor + smooth * frequencies, 1.0


@ROPE_SCALINGS.register("yarn")
def yarn_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: LayerConfig) -> tuple[Tensor, float]:
    """NTK-by-parts with an attention factor of 1 + 0.1 ln(factor) (Peng et al., arXiv:2309.00071)."""
    factor = float(scaling["factor"])
    original = float(scaling.get("original_max_position_embeddings") or config.max_position_embeddings)
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)
    dim = 2 * frequencies.numel()

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, device=frequencies.device).float() - low) / ((high - low) or 1e-3)).clamp(0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp), _yarn_attention_factor(factor, scaling)


def _yarn_attention_factor(factor: float, scaling: Mapping[str, Any]) -> float:
    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    above, below = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(above) / magnitude(below) if above and below else magnitude(1.0)
