"""What identifies a mix of adapters: the key that every cache of keys and values has, beside its tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import check_weights

Mix = tuple[tuple[str, float], ...]
"""Adapter names and weights, sorted: () is the bare base."""
GRID = 0.01
"""Weights of a blend are multiples of it, so that blends which hardly differ share a cache."""


def mix_of(weights: Mapping[str, float]) -> Mix:
    """The mix of these weights: adapters of weight 0 left out, blends on the grid. ZephyraError: as `check_weights`."""
    checked = check_weights(weights)
    if len(checked) > 1:  # what was asked for stays in the blend, however little of it
        checked = {name: round(max(1, round(weight / GRID)) * GRID, 6) for name, weight in checked.items()}
    return tuple(sorted(checked.items()))


def resident_mix(weights: Mapping[str, float], resident: Collection[str]) -> Mix:
    """As `mix_of`. ZephyraError: a name that is not among the `resident`, too."""
    mix = mix_of(weights)
    for name in weights:
        if name not in resident:
            raise ZephyraError(f"unknown adapter '{name}'", hint=did_you_mean(name, resident))
    return mix
