"""Normalization layers, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zephyra_fusion.registry import Registry

NORMS: Registry[Callable[[int, float], nn.Module]] = Registry("norm")


@NORMS.register("rms")
class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 (Zhang & Sennrich, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., dim]
        # Normalize in float32, scale in x's own type: the order of transformers' LlamaRMSNorm.
        return self.weight * nn.functional.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype)


@NORMS.register("layer")
class LayerNorm(nn.LayerNorm):
    """Mean and variance normalization with gain and bias (Ba et al., arXiv:1607.06450)."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(dim, eps=eps, bias=bias)


@NORMS.register("adaptive")
class AdaptiveNorm(nn.Module):
    """Learns from the input how much of its mean to take away: between RMSNorm (g = 0) and LayerNorm (g = 1).

    g = sigmoid(mix . x / rms(x) + offset), one number a position; c = x - g * mean(x);
    y = c / sqrt(mean(c^2) + eps) * weight + bias. In float32, like `RMSNorm`.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.mix = nn.Parameter(torch.zeros(dim))
        self.offset = nn.Parameter(torch.zeros(1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., dim]
        wide = x.float()
        scaled = nn.functional.rms_norm(wide, (x.shape[-1],), eps=self.eps)
        gate = torch.sigmoid((scaled * self.mix).sum(-1, keepdim=True) + self.offset)
        centred = wide - gate * wide.mean(-1, keepdim=True)
        normal = nn.functional.rms_norm(centred, (x.shape[-1],), eps=self.eps)
        return self.weight * normal.to(x.dtype) + self.bias
