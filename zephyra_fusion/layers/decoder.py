"""Document 004: the decoder of continuous sequences, whole or step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.block import CrossAttentionLayer
from zephyra_fusion.layers.cache import LayerCache, causal_mask
from zephyra_fusion.layers.sequence import SequenceTransformer, check_options, keep_mask

State = dict[str, Any]


class TransformerDecoder(SequenceTransformer):
    """`tgt [B, T, input_size]` and `memory [B, S, d_model]` to `[B, T, output_size]`. Options: `SequenceTransformer`.

    Causal, unless `informer_like`: then all steps see each other, so that a horizon of placeholders is filled in one
    pass. Without a head where `output_size == d_model`.
    """

    def __init__(
        self, input_size: int, output_size: int, informer_like: bool = False, d_model: int = 512, **options: Any
    ) -> None:
        check_options(options)
        super().__init__(CrossAttentionLayer, input_size, d_model, **options)
        if output_size < 1:
            raise ZephyraError(f"output_size is {output_size}, must be at least 1")
        self.output_size, self.informer_like = output_size, informer_like
        self.head = nn.Identity() if output_size == d_model else nn.Linear(d_model, output_size)

    def forward(
        self, tgt: Tensor, memory: Tensor, padding_mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """`padding_mask [B, T]`, `memory_mask [B, S]`: True = keep."""
        self._check(tgt, memory)
        kept, seen = keep_mask(padding_mask, tgt, "padding_mask"), keep_mask(memory_mask, memory, "memory_mask")
        length, causal = tgt.shape[1], not self.informer_like
        if causal and kept is not None:
            kept = causal_mask(length, length, window=None, device=tgt.device, padding=kept[:, 0, 0])
        x = self.embed(tgt)
        for layer in self._crossing:
            x = self.run(layer, x, layer.remember(memory), kept, causal and kept is None, seen)
        return self.head(self.final_norm(x))

    def forward_one_step(
        self,
        tgt: Tensor,
        memory: Tensor,
        incremental_state: Mapping[str, Any] | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """The next steps `tgt [B, n, input_size]` (usually n = 1): `[B, n, output_size]` and the state after them.

        Steps fed one after the other give what `forward` gives for all of them. The state is `{"position": steps so
        far, "layers": [{"self_attn": {"key", "value"}, "cross_attn": {"key", "value"}}, …]}`, one entry a depth,
        tensors `[B, T, d_model]` (`[B, S, d_model]` across); `position` may be left out. None and `{}` begin anew. The
        state given is not changed; `memory` is read in the first step alone, and only checked afterwards.
        """
        if self.informer_like:
            raise ZephyraError("an informer_like decoder is not causal, it has no single steps", hint="call it at once")
        self._check(tgt, memory)
        state = incremental_state or {"layers": [None] * self.num_layers}
        start, length = self._position(state, tgt, memory) if incremental_state else 0, tgt.shape[1]
        seen = keep_mask(memory_mask, memory, "memory_mask")
        mask = causal_mask(length, start + length, window=None, device=tgt.device)
        x = self.embed(tgt, start)
        after: list[State] = []
        for layer, held in zip(self._crossing, state["layers"], strict=True):
            cache = StateCache(held and held["self_attn"], self.config.num_attention_heads)
            across = held["cross_attn"] if held else _stored(*layer.remember(memory))
            remembered = cache.split(across["key"]), cache.split(across["value"])
            x = layer(x, remembered, mask, False, seen, cache)
            after.append({"self_attn": cache.state, "cross_attn": across})
        return self.head(self.final_norm(x)), {"position": start + length, "layers": after}

    @property
    def _crossing(self) -> list[CrossAttentionLayer]:
        return cast(list[CrossAttentionLayer], self.depth)

    def _check(self, tgt: Tensor, memory: Tensor) -> None:
        width, hidden = self.input_size, self.config.hidden_size
        if tgt.dim() == 3 and tgt.shape[2] == self.output_size != width:
            raise ZephyraError(
                f"tgt has {self.output_size} features, the decoder reads {width} and gives {self.output_size}: "
                "its output cannot be fed back as it is",
                hint="join the features that it does not forecast, or build it with output_size = input_size",
            )
        if memory.dim() != 3 or memory.shape[2] != hidden or memory.shape[0] != tgt.shape[0]:
            raise ZephyraError(f"memory is {list(memory.shape)}, must be [{tgt.shape[0]}, steps, {hidden}]")

    def _position(self, state: Mapping[str, Any], tgt: Tensor, memory: Tensor) -> int:
        """How many steps the state holds. ZephyraError: it is not in the documented layout, or of another batch."""
        layers = state.get("layers")
        if not isinstance(layers, Sequence) or len(layers) != self.num_layers:
            raise ZephyraError(f"incremental_state must hold {self.num_layers} layers, or be empty")
        hidden = self.config.hidden_size
        lengths = set()
        for index, held in enumerate(layers):
            for part, length in (("self_attn", None), ("cross_attn", memory.shape[1])):
                for name in ("key", "value"):
                    where = f"incremental_state layers[{index}][{part!r}][{name!r}]"
                    tensor = held.get(part, {}).get(name) if isinstance(held, Mapping) else None
                    if not isinstance(tensor, Tensor):
                        raise ZephyraError(f"{where} is missing", hint="give back what the last step returned")
                    expected = [tgt.shape[0], tensor.shape[1] if length is None else length, hidden]
                    if list(tensor.shape) != expected:
                        raise ZephyraError(f"{where} is {list(tensor.shape)}, must be {expected}")
                    if length is None:
                        lengths.add(tensor.shape[1])
        if len(lengths) != 1 or state.get("position", steps := min(lengths)) != steps:
            raise ZephyraError(
                f"incremental_state has position {state.get('position')} and holds {sorted(lengths)} steps"
            )
        return int(steps)


class StateCache(LayerCache):
    """Keys and values of one depth in the documented layout, `[B, T, heads * head_dim]`."""

    def __init__(self, held: Mapping[str, Tensor] | None, heads: int) -> None:
        super().__init__()
        self.held, self.heads = held, heads
        self.state: dict[str, Tensor] = {}

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.held is not None:
            keys = torch.cat((self.split(self.held["key"]), keys), dim=2)
            values = torch.cat((self.split(self.held["value"]), values), dim=2)
        self.state = _stored(keys, values)
        return keys, values


def _stored(keys: Tensor, values: Tensor) -> dict[str, Tensor]:
    return {"key": keys.transpose(1, 2).flatten(2), "value": values.transpose(1, 2).flatten(2)}
