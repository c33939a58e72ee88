"""Key/value caches: they hold the state, modules do not."""

from __future__ import annotations

import torch
from torch import Tensor

from zephyra_fusion.config import SLIDING, FusionConfig
from zephyra_fusion.errors import ZephyraError


class LayerCache:
    """Keys and values of one layer, `[B, kv_heads, capacity, head_dim]`, grown by doubling."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.offset = 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append `[B, H, T, D]` and return everything up to now."""
        end = self.offset + keys.shape[2]
        if self.keys is None or self.values is None or end > self.keys.shape[2]:
            self.keys = self._grown(self.keys, keys, end)
            self.values = self._grown(self.values, values, end)
        self.keys[:, :, self.offset : end] = keys
        self.values[:, :, self.offset : end] = values
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: Tensor | None, new: Tensor, end: int) -> Tensor:
        capacity = max(64, 1 << (end - 1).bit_length())
        grown = new.new_empty(new.shape[0], new.shape[1], capacity, new.shape[3])
        if old is not None:
            grown[:, :, : self.offset] = old[:, :, : self.offset]
        return grown

    def trim(self, offset: int) -> None:
        """Forget everything from position `offset` on."""
        if not 0 <= offset <= self.offset:
            raise ValueError(f"cannot trim to {offset}, the cache holds {self.offset}")
        self.offset = offset


class KVCache:
    """One cache for the whole model: `offset` positions are filled in every layer."""

    def __init__(self, config: FusionConfig) -> None:
        self.layers = [LayerCache() for _ in range(config.num_hidden_layers)]
        self.limit = config.max_position_embeddings
        self.windows = [
            config.sliding_window if kind == SLIDING else None for kind in config.layer_types or ()
        ]

    @property
    def offset(self) -> int:
        return self.layers[0].offset

    def check(self, new: int) -> None:
        if self.offset + new > self.limit:
            raise ZephyraError(
                f"{self.offset} cached and {new} new tokens exceed the context of {self.limit}",
                hint="shorten the prompt or generate fewer tokens",
            )

    def trim(self, offset: int) -> None:
        for layer in self.layers:
            layer.trim(offset)


def causal_mask(
    queries: int, keys: int, *, window: int | None, device: torch.device, padding: Tensor | None = None
) -> Tensor | None:
    """True where a query may look: `[queries, keys]`, or `[B, 1, queries, keys]` with `padding [B, keys]` (True = keep).

    The last query stands at the last key. A query sees `window` positions, itself included. None where nothing is hidden.
    """
    if queries == 1 and padding is None and (window is None or keys <= window):
        return None
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    other = torch.arange(keys, device=device)[None, :]
    mask = other <= position
    if window is not None:
        mask &= position - other < window
    if padding is not None:
        # A padding query may see itself, so that its row is not empty (softmax of nothing is NaN).
        mask = (mask & padding[:, None, None, :]) | (position == other)
    return mask
