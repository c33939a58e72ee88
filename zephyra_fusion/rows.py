"""Sequences side by side, each at a position of its own: continuous batching in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.cache import KVCache, LayerCache
from zephyra_fusion.model import ZephyraFusion

_LEAST = 64  # positions of the first buffers


class _RowsOfLayer(LayerCache):
    """Keys and values of one layer, `[rows, kv_heads, capacity, head_dim]`; `update` writes where the owner says."""

    def __init__(self, owner: Rows, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.owner, self.keys, self.values = owner, keys, values

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        owner, batch = self.owner, keys.shape[0]
        assert self.keys is not None and self.values is not None
        rows = slice(owner.first, owner.first + batch)
        numbers = torch.arange(batch, device=keys.device)[:, None]
        held = self.keys[rows], self.values[rows]
        held[0][numbers, :, owner.places] = keys.transpose(1, 2)
        held[1][numbers, :, owner.places] = values.transpose(1, 2)
        return held[0][:, :, : owner.seen], held[1][:, :, : owner.seen]


class Rows(KVCache):
    """A model with room for `count` sequences, which grows as they do; a new one may begin in any row at any time.

    Whoever batches keeps the running sequences in the first rows (`move`), so that nothing has to be gathered.
    ZephyraError: attention `frequency` (it counts from the last key), padding by id, no memory.
    """

    def __init__(self, model: ZephyraFusion, count: int) -> None:
        super().__init__(config := model.config)
        if config.attention == "frequency" or config.mask_padding:
            raise ZephyraError("attention 'frequency' and mask_padding cannot run sequences side by side")
        self.model, self.count, self.capacity = model, count, 0
        self.windows = {config.window(index) for index in range(config.num_hidden_layers)}
        self.first = self.seen = 0
        self.places: Tensor
        self.weight = model.lm_head.weight.detach()
        self._reserve(_LEAST)

    @torch.inference_mode()
    def read(self, row: int, tokens: Sequence[int], *, chunk: int = 512) -> Tensor:
        """Logits `[vocabulary]` after a whole prompt, which takes the place of what the row held."""
        hidden = None
        for start in range(0, len(tokens), chunk):
            part = list(tokens[start : start + chunk])
            places = torch.arange(start, start + len(part), device=self.weight.device)
            hidden = self._run(row, torch.tensor([part], device=self.weight.device), places[None])
        if hidden is None:
            raise ZephyraError("the prompt is empty", hint="give at least one token")
        return self.model.lm_head(hidden[0, -1])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], places: Sequence[int]) -> Tensor:
        """Logits `[B, vocabulary]` after one more token in each of the first B rows, at these positions."""
        both = torch.tensor([tokens, places], device=self.weight.device)[:, :, None]
        return self.model.lm_head(self._run(0, both[0], both[1], max(places) + 1)[:, -1])

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Row `source` takes the place of row `target`."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                assert buffer is not None
                buffer[target] = buffer[source]

    def _run(self, first: int, ids: Tensor, places: Tensor, end: int = 0) -> Tensor:
        """What the head reads, `[B, T, hidden]`, of `ids [B, T]` at `places [B, T]` in the rows from `first` on."""
        end = end or int(places[0, -1]) + 1
        self._reserve(end)
        self.first, self.seen, self.places = first, end, places
        distance = places[:, None, :, None] - torch.arange(end, device=ids.device)
        masks: dict[int | None, Tensor | None] = {
            w: distance >= 0 if w is None else (distance >= 0) & (distance < w) for w in self.windows
        }
        return self.model.run(ids, places, masks, self)

    def _reserve(self, capacity: int) -> None:
        if capacity <= self.capacity:
            return
        config = self.model.config
        capacity = min(max(_LEAST, 1 << (capacity - 1).bit_length()), config.max_position_embeddings)
        heads = config.num_key_value_heads or 1
        old, self.layers = self.layers if self.capacity else [], []
        layers = []
        try:
            for index in range(config.num_hidden_layers):
                buffers = [  # zeros: what is masked must still be finite
                    self.weight.new_zeros(self.count, heads, capacity, width or 1)
                    for width in (config.head_dim, config.value_head_dim)
                ]
                if old:
                    for buffer, grown in zip(buffers, (old[index].keys, old[index].values), strict=True):
                        assert grown is not None
                        buffer[:, :, : self.capacity] = grown
                layers.append(_RowsOfLayer(self, *buffers))
        except torch.OutOfMemoryError:
            raise ZephyraError(
                f"{self.weight.device} has no memory for {self.count} times {capacity} tokens",
                hint="a smaller --context or --max-tokens needs less",
            ) from None
        self.layers, self.capacity = layers, capacity
