"""Decoding one token through fixed shapes: compiled where it is wanted, replayed as a CUDA graph on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.static_cache import StaticCache
from zephyra_fusion.lora import adapted_layers
from zephyra_fusion.model import ZephyraFusion


def static_cache(model: ZephyraFusion, capacity: int | None = None, *, compile: bool = False) -> StaticCache:
    """A cache for `generate` that holds `capacity` positions (default: the context) of one sequence.

    Every token costs the same work over the whole capacity, so do not take more than is needed. On CUDA the step is
    captured once as a CUDA graph and replayed, which takes away the cost of starting its kernels; `compile` fuses
    them first by torch.compile (tens of seconds at the first token, and again for every mix of adapters).
    ZephyraError: what `StaticCache` cannot hold; experts, where the step is compiled or captured.
    """
    weight = model.lm_head.weight
    if model.config.num_experts and (compile or weight.is_cuda):
        raise ZephyraError(
            f"num_experts is {model.config.num_experts}: which experts run depends on the token, a fixed step cannot",
            hint="model.new_cache() makes a growing cache",
        )
    limit = model.config.max_position_embeddings
    cache = StaticCache(model.config, limit if capacity is None else capacity, device=weight.device, dtype=weight.dtype)
    cache.step = StaticStep(model, cache, compile)
    return cache


class StaticStep:
    """Called with a token, gives the logits `[vocabulary]` after it; the cache is one longer then.

    A captured step is captured again when the adapters were changed; it looks whenever something else than itself
    has moved the cache, as reading a prompt does.
    """

    def __init__(self, model: ZephyraFusion, cache: StaticCache, compile: bool) -> None:
        self.model, self.cache = model, cache
        device = model.lm_head.weight.device
        self.ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.run = torch.compile(self.forward, fullgraph=True, dynamic=False) if compile else self.forward
        self.moved_to = -1  # where the last step left the cache
        self.captured_for: Any = None
        self.captures = 0
        self.graph: Any = None
        self.logits: Tensor | None = None

    def forward(self, ids: Tensor, place: Tensor) -> Tensor:
        """Tensors alone, no shape and no number that changes from token to token: `ids [1, 1]`, `place [1]`."""
        hidden = self.model.run(ids, place[None], self.cache.masks(place), self.cache)
        return self.model.lm_head(hidden[0, -1])

    @torch.inference_mode()
    def __call__(self, token: int) -> Tensor:
        self.cache.check(1)
        self.ids.fill_(token)
        self.place.fill_(self.cache.offset)
        logits = self._replayed() if self.ids.is_cuda else self.run(self.ids, self.place)
        self.cache.advance(1)
        self.moved_to = self.cache.offset
        return logits

    def _replayed(self) -> Tensor:
        if self.cache.offset != self.moved_to and (now := self.state()) != self.captured_for:
            self._capture()
            self.captured_for = now
        self.graph.replay()
        assert self.logits is not None
        return self.logits.clone()

    def state(self) -> tuple[object, ...]:
        """What a graph captured now would have burned in: where the weights lie, which adapters are on."""
        layers = [layer for _, layer in adapted_layers(self.model)]
        if not layers:
            return (self.model.lm_head.weight.data_ptr(),)
        mix = layers[0].mix
        numbers = tuple((name, weight) for name, weight in mix.weights.items() if isinstance(weight, float))
        return self.model.lm_head.weight.data_ptr(), len(layers), mix.version, numbers

    def _capture(self) -> None:
        self.graph = self.logits = None
        self.captures += 1
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels are chosen and compiled before the recording; they write what it will write
                self.run(self.ids, self.place)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.run(self.ids, self.place)
