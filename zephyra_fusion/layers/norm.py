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

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)
