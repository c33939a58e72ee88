"""Key/value caches: they hold the state, modules do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

SPARE = 64  # positions that a window's cache keeps beyond the window, to rewind over


class LayerCache:
    """Keys and values of one layer, `[B, kv_heads, capacity, head_dim]`, grown by doubling."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.offset = 0

    @property
    def earliest(self) -> int:
        """The earliest position to which `trim` can go back."""
        return 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append `[B, H, T, D]` and return all that the new positions may look at, oldest first."""
        end = self.offset + keys.shape[2]
        if self.keys is None or self.values is None or end > self.keys.shape[2]:
            capacity = max(64, 1 << (end - 1).bit_length())
            self.keys = _moved(self.keys, keys, capacity, 0, self.offset)
            self.values = _moved(self.values, values, capacity, 0, self.offset)
        self.keys[:, :, self.offset : end] = keys
        self.values[:, :, self.offset : end] = values
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def trim(self, offset: int) -> None:
        """Forget everything from position `offset` on."""
        self.offset = offset


class WindowCache(LayerCache):
    """Keys and values of a sliding window: memory stays constant past the window.

    It holds the last `window - 1` positions and at least `SPARE` before them, in order, in a buffer of twice that;
    when the buffer is full, they move to its front. `trim` goes back as far as a whole window is still held.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.kept = window - 1 + SPARE
        self.fill = 0

    @property
    def earliest(self) -> int:
        oldest = self.offset - self.fill
        return oldest + self.window - 1 if oldest else 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        new, seen = keys.shape[2], min(self.fill, self.window - 1)
        if self.keys is None or self.values is None:
            self.keys, self.values = (_moved(None, x, 2 * self.kept, 0, 0) for x in (keys, values))
        self.offset += new
        if new > self.kept:  # a long prompt: it looks at itself, only its end stays
            seen_keys = torch.cat((self.keys[:, :, self.fill - seen : self.fill], keys), dim=2)
            seen_values = torch.cat((self.values[:, :, self.fill - seen : self.fill], values), dim=2)
            self.fill = self.kept
            self.keys[:, :, : self.fill] = keys[:, :, -self.kept :]
            self.values[:, :, : self.fill] = values[:, :, -self.kept :]
            return seen_keys, seen_values
        if self.fill + new > self.keys.shape[2]:
            start = self.fill - self.kept
            self.keys = _moved(self.keys, keys, 2 * self.kept, start, self.fill)
            self.values = _moved(self.values, values, 2 * self.kept, start, self.fill)
            self.fill = self.kept
        first, end = self.fill - seen, self.fill + new
        self.keys[:, :, self.fill : end] = keys
        self.values[:, :, self.fill : end] = values
        self.fill = end
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def trim(self, offset: int) -> None:
        self.fill = max(self.fill - (self.offset - offset), 0)
        self.offset = offset


def _moved(old: Tensor | None, like: Tensor, capacity: int, start: int, end: int) -> Tensor:
    """A new buffer for tensors like `like`, with `old[start:end]` at its front."""
    buffer = like.new_empty(like.shape[0], like.shape[1], capacity, like.shape[3])
    if old is not None:
        buffer[:, :, : end - start] = old[:, :, start:end]
    return buffer


class KVCache:
    """One cache for the whole model: `offset` positions are filled in every layer."""

    def __init__(self, config: FusionConfig) -> None:
        windows = [config.window(index) for index in range(config.num_hidden_layers)]
        self.layers: Sequence[LayerCache] = [
            LayerCache() if window is None else WindowCache(window) for window in windows
        ]
        self.limit = config.max_position_embeddings
        self.padding: Tensor | None = None  # [B, offset], True = keep; only where the model masks padding by its id

    @property
    def offset(self) -> int:
        return self.layers[0].offset

    @property
    def earliest(self) -> int:
        """The earliest offset to which `trim` can go back: 0, unless a sliding window has moved on."""
        return max(layer.earliest for layer in self.layers)

    def advance(self, new: int) -> None:
        """`new` positions were written in every layer; these layers count by themselves."""

    def check(self, new: int, batch: int = 1) -> None:
        """ZephyraError: no room for `new` tokens, or of another batch than those that it holds."""
        held = self.layers[0].keys
        if held is not None and held.shape[0] != batch:
            raise ZephyraError(f"the cache is of {held.shape[0]} sequences, the batch has {batch}")
        if self.offset + new > self.limit:
            raise ZephyraError(
                f"{self.offset} cached and {new} new tokens exceed the context of {self.limit}",
                hint="shorten the prompt or generate fewer tokens",
            )

    def keep(self, padding: Tensor) -> Tensor:
        """Append `[B, T]`, True = keep, and return it for all positions up to now."""
        earlier = [] if self.padding is None else [self.padding[:, : self.offset]]
        self.padding = torch.cat((*earlier, padding), dim=1)
        return self.padding

    def trim(self, offset: int) -> None:
        """Forget everything from position `offset` on.

        ZephyraError: the offset lies ahead, or behind what a sliding window still holds (`earliest`).
        """
        if not 0 <= offset <= self.offset:
            raise ZephyraError(f"cannot rewind the cache to {offset}, it holds {self.offset} positions")
        if offset < self.earliest and offset not in (0, self.offset):
            raise ZephyraError(
                f"cannot rewind the cache to {offset}, a sliding window forgot what lies before {self.earliest}",
                hint="start again with a new cache",
            )
        for layer in self.layers:
            layer.trim(offset)


def causal_mask(
    queries: int, keys: int, *, window: int | None, device: torch.device, padding: Tensor | None = None
) -> Tensor | None:
    """True where a query may look: `[queries, keys]`, with `padding [B, keys]` (True = keep) `[B, 1, queries, keys]`.

    The last query stands at the last key. A query sees `window` positions, its own too. None where nothing is hidden.
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
