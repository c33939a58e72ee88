"""Adapters made smaller: directions, or whole adapters, that matter least.

The measure, both times, is how far the weights move: singular values of scaling * B A. A direction matters as its
singular value does; an adapter matters by the root of the sum of ||delta||^2 over that of ||W||^2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.lora import LoRALinear
from zephyra_fusion.lora import adapted_layers, adapter_names, check_names, remove_adapter
from zephyra_fusion.merge import put


@torch.no_grad()
def importance(model: nn.Module) -> dict[str, float]:
    """By adapter: Frobenius norm of all that it adds over that of the weights it adds to (0.01 = 1 %)."""
    shares = {}
    for name in adapter_names(model):
        layers = [layer for _, layer in adapted_layers(model, name)]
        moved = sum(float(_singular_values(layer, name).square().sum()) for layer in layers)
        there = sum(float(layer.weight.float().square().sum()) for layer in layers)
        shares[name] = (moved / there) ** 0.5
    return shares


@torch.no_grad()
def prune_directions(model: nn.Module, name: str, *, rank: int | None = None, energy: float | None = None) -> float:
    """Cut the adapter to its strongest directions, in every layer; returns the share of squared norm that is lost.

    Give `rank`, the most that stay, or `energy`, the share of every layer's squared norm that must stay.
    """
    check_names(model, [name])
    if (rank is None) == (energy is None):
        raise ZephyraError("give either rank or energy", hint="rank=8, or energy=0.95")
    if (rank is not None and rank < 1) or (energy is not None and not 0.0 < energy <= 1.0):
        raise ZephyraError(f"rank is {rank} (at least 1), energy is {energy} (above 0, at most 1)")
    lost = total = 0.0
    for _, layer in adapted_layers(model, name):
        u, s, v = _decomposed(layer, name)
        power = s.square()
        kept = rank or 1 + int((power.cumsum(0) < (energy or 1.0) * power.sum() * (1 - 1e-6)).sum())
        kept = min(kept, s.numel())
        lost, total = lost + float(power[kept:].sum()), total + float(power.sum())
        root = s[:kept].sqrt()
        put(layer, name, root[:, None] * v[:kept], u[:, :kept] * root)
    return lost / total if total else 0.0


def prune_adapters(model: nn.Module, least: float) -> list[str]:
    """Remove every adapter whose `importance` is below `least`; returns their names."""
    weak = [name for name, share in importance(model).items() if share < least]
    for name in weak:
        remove_adapter(model, name)
    return weak


def _decomposed(layer: LoRALinear, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of the adapter's delta through its factors: r x r instead of out x in."""
    a, b = layer.factors(name)
    left, upper = torch.linalg.qr(b.float() * layer.scaling[name])
    right, lower = torch.linalg.qr(a.float().T)
    u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return left @ u, s, v @ right.T


def _singular_values(layer: LoRALinear, name: str) -> Tensor:
    return _decomposed(layer, name)[1]
