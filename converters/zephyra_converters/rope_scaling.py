"""RoPE scalings as both formats say them: which kind a config has, and Llama 3's factors there and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError


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


def recognise_llama3(head_dim: int, theta: float, factors: list[float]) -> dict[str, Any]:
    """rope_freqs.weight holds only the outcome of llama3's four numbers: try those that are in use."""
    for factor in (8.0, 32.0, 4.0, 16.0):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        computed = llama3_factors(head_dim, theta, scaling)
        if len(computed) == len(factors) and all(
            math.isclose(a, b, rel_tol=1e-5) for a, b in zip(computed, factors, strict=True)
        ):
            return scaling
    raise ZephyraError("rope_freqs.weight is not Llama 3's rule for any factor in use: it cannot be read back")
