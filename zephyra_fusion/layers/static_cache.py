"""A key/value cache of fixed shapes: what torch.compile and CUDA graphs need, who cannot follow a growing one."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.cache import KVCache, LayerCache


class StaticLayerCache(LayerCache):
    """Keys and values of one layer, `[B, kv_heads, capacity, head_dim]`, written at the owner's `places`."""

    def __init__(self, owner: StaticCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.owner, self.keys, self.values = owner, keys, values

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[B, H, T, D]` and return the whole buffers; the mask hides what was not written yet."""
        held = cast(Tensor, self.keys), cast(Tensor, self.values)
        held[0].index_copy_(2, self.owner.places, keys)
        held[1].index_copy_(2, self.owner.places, values)
        return held


class StaticCache(KVCache):
    """Buffers for `capacity` positions, all memory taken at once; where the next tokens go is a tensor.

    A layer with a sliding window holds the whole capacity too, and its mask does the rest. Any `trim` is possible.
    ZephyraError: a capacity beyond the context, attention `frequency` (it counts from the last key), padding by id.
    """

    def __init__(
        self, config: FusionConfig, capacity: int, *, device: torch.device, dtype: torch.dtype, batch: int = 1
    ) -> None:
        wrong = []
        if not 1 <= capacity <= config.max_position_embeddings:
            wrong.append(f"capacity is {capacity}, must be from 1 to the context of {config.max_position_embeddings}")
        if config.attention == "frequency":
            wrong.append("attention 'frequency' counts positions from the last key, a fixed buffer has none")
        if config.mask_padding:
            wrong.append("mask_padding is on, a fixed buffer takes no padding")
        if wrong:
            raise ZephyraError("no static cache: " + "; ".join(wrong), hint="model.new_cache() makes a growing one")
        self.limit, self.length = capacity, 0
        self.padding = None
        self.windows = {config.window(index) for index in range(config.num_hidden_layers)}
        self.slots = torch.arange(capacity, device=device)
        self.places = self.slots[:1]
        heads = config.num_key_value_heads or 1

        def buffer(width: int | None) -> Tensor:  # zeros: what is masked must still be finite
            return torch.zeros(batch, heads, capacity, width or 1, device=device, dtype=dtype)

        self.layers = [
            StaticLayerCache(self, buffer(config.head_dim), buffer(config.value_head_dim))
            for _ in range(config.num_hidden_layers)
        ]
        self.step: Callable[[int], Tensor] | None = None  # how `generate` decodes one token with it; None: eagerly

    @property
    def offset(self) -> int:
        return self.length

    def advance(self, new: int) -> None:
        self.length += new

    def masks(self, places: Tensor) -> dict[int | None, Tensor]:
        """Send the next tokens to `places [T]`; by window, what they may look at, `[T, capacity]`."""
        self.places = places
        distance = places[:, None] - self.slots
        return {w: distance >= 0 if w is None else (distance >= 0) & (distance < w) for w in self.windows}

    def trim(self, offset: int) -> None:
        if not 0 <= offset <= self.length:
            raise ZephyraError(f"cannot rewind the cache to {offset}, it holds {self.length} positions")
        self.length = offset
