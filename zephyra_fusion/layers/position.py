"""Rotary position tables and their scalings, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.registry import Registry

# (frequencies [head_dim / 2], scaling parameters, config) -> (scaled frequencies, factor on cos and sin)
Scaling = Callable[[Tensor, Mapping[str, Any], FusionConfig], tuple[Tensor, float]]
ROPE_SCALINGS: Registry[Scaling] = Registry("rope scaling")


@ROPE_SCALINGS.register("default")
def default_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: FusionConfig) -> tuple[Tensor, float]:
    return frequencies, 1.0


@ROPE_SCALINGS.register("linear")
def linear_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: FusionConfig) -> tuple[Tensor, float]:
    """Positions divided by `factor` (Chen et al., arXiv:2306.15595)."""
    return frequencies / float(scaling["factor"]), 1.0


@ROPE_SCALINGS.register("llama3")
def llama3_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: FusionConfig) -> tuple[Tensor, float]:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1's release)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / factor + smooth * frequencies, 1.0


@ROPE_SCALINGS.register("yarn")
def yarn_scaling(frequencies: Tensor, scaling: Mapping[str, Any], config: FusionConfig) -> tuple[Tensor, float]:
    """NTK-by-parts with an attention factor of 1 + 0.1 ln(factor) (Peng et al., arXiv:2309.00071)."""
    factor = float(scaling["factor"])
    original = float(scaling.get("original_max_position_embeddings") or config.max_position_embeddings)
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)
    dim = 2 * frequencies.numel()

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, device=frequencies.device).float() - low) / max(high - low, 1e-3)).clamp(0, 1)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return frequencies / factor * ramp + frequencies * (1 - ramp), float(attention_factor)


class RotaryEmbedding(nn.Module):
    """Rotate-half rotary positions (Su et al., arXiv:2104.09864), as transformers' Llama stores them."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        dim = config.head_dim or 0
        frequencies = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        scaling = dict(config.rope_scaling or {})
        kind = str(scaling.get("rope_type", scaling.get("type", "default")))
        try:
            scaled, self.attention_factor = ROPE_SCALINGS[kind](frequencies.float(), scaling, config)
        except KeyError as missing:
            raise ZephyraError(f"rope_scaling of type '{kind}' lacks the key {missing}") from None
        self.register_buffer("frequencies", scaled, persistent=False)
        self.frequencies: Tensor

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[B, 1, T, head_dim]` in float32 for `positions [B, T]`."""
        angles = positions[:, None, :, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x `[B, H, T, head_dim]` turned by the angles of its position."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)
