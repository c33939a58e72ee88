"""The linear layer with low-rank adapters beside its weight (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.adapter_fusion import AdapterFusion

Weight = float | Tensor  # a tensor `[B]` gives every sequence of the batch its own weight


@dataclass(frozen=True, eq=False)
class Pairs:
    """The (sequence, adapter) pairs of a batch in which every sequence has its own adapters."""

    batch: int
    rows: Tensor | None  # [P] sequences; None: every sequence once, in order
    adapters: Tensor | None  # [P] places in the list of adapters; None: every adapter once, in order
    factors: Tensor  # [P, 1, 1] weight * scaling


class AdapterMix:
    """Which adapters are on, with what weight: one object shared by every adapted layer of a model."""

    def __init__(self) -> None:
        self.weights: dict[str, Weight] = {}
        self.sparse: frozenset[str] = frozenset()  # adapters that some sequences of the batch do without
        self.fused: tuple[str, ...] = ()  # adapters that the layers' own AdapterFusion weighs
        self.version = 0  # rises when adapters come or go, and with a choice that is no plain numbers
        self._pairs: dict[tuple[tuple[str, float], ...], Pairs] = {}

    def choose(self, weights: Mapping[str, Weight], fused: Sequence[str] = ()) -> None:
        plain = not any(isinstance(w, Tensor) for w in (*weights.values(), *self.weights.values()))
        if plain and weights == self.weights and tuple(fused) == self.fused:
            return
        self.version += not plain or bool(fused or self.fused)
        self.weights, self.fused = dict(weights), tuple(fused)
        # A weight that is being learned needs its gradient where it is zero, too.
        self.sparse = frozenset(
            name
            for name, weight in weights.items()
            if isinstance(weight, Tensor) and not weight.requires_grad and bool((weight == 0).any())
        )
        self._pairs = {}

    def pairs(self, scaled: Sequence[tuple[str, float]]) -> Pairs:
        """Of these sparse adapters, each with a layer's scaling of it; computed once a mix."""
        key = tuple(scaled)
        if key not in self._pairs:
            weights = torch.stack([cast(Tensor, self.weights[name]) for name, _ in scaled])  # [N, B]
            rows, adapters = weights.T.nonzero().unbind(dim=1)  # by sequence
            scalings = torch.tensor([scaling for _, scaling in scaled], device=weights.device)
            factors = (weights[adapters, rows] * scalings[adapters])[:, None, None]
            count, batch = weights.shape
            self._pairs[key] = Pairs(batch, _unless_range(rows, batch), _unless_range(adapters, count), factors)
        return self._pairs[key]


class _ByName(nn.ModuleDict):
    """A ModuleDict whose keys are the user's: `half` and `type` are names of domains and of every module's methods."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module


class LoRALinear(nn.Linear):
    """A linear layer with resident adapters; its own weight keeps its name, so base checkpoints fit unchanged."""

    def __init__(self, base: nn.Linear, mix: AdapterMix) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.mix = mix
        self.lora_A = _ByName()
        self.lora_B = _ByName()
        self.scaling: dict[str, float] = {}
        self.lora_dropout: dict[str, float] = {}
        self.lora_fusion: AdapterFusion | None = None
        self._held: tuple[Pairs, list[tuple[int, int]], tuple[Tensor, Tensor]] | None = None

    def add(self, name: str, rank: int, scaling: float, dropout: float = 0.0) -> None:
        """A fresh adapter: A random, B zero, so that it changes nothing until it is trained."""
        place = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.lora_A[name] = nn.Linear(self.in_features, rank, bias=False, **place)
        self.lora_B[name] = nn.Linear(rank, self.out_features, bias=False, **place)
        a, b = self.factors(name)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.zeros_(b)
        self.scaling[name] = scaling
        self.lora_dropout[name] = dropout
        self.mix.version += 1

    def remove(self, name: str) -> None:
        for parts in (self.lora_A, self.lora_B):
            if name in parts:
                del parts[name]
        self.scaling.pop(name, None)
        self.lora_dropout.pop(name, None)
        self.mix.version += 1

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A `[r, in]` and B `[out, r]`."""
        return cast(nn.Linear, self.lora_A[name]).weight, cast(nn.Linear, self.lora_B[name]).weight

    def delta(self, name: str) -> Tensor:
        """What the adapter adds to the weight at weight 1, `[out, in]`."""
        a, b = self.factors(name)
        return b @ a * self.scaling[name]

    def forward(self, x: Tensor) -> Tensor:  # [B, T, in]
        y = functional.linear(x, self.weight, self.bias)
        sparse = []
        for name, weight in self.mix.weights.items():
            if name not in self.lora_A:
                continue
            if name in self.mix.sparse:
                sparse.append(name)
            elif isinstance(weight, float):
                y = torch.add(y, self._adapted(name, x), alpha=weight * self.scaling[name])
            else:
                y = y + self._adapted(name, x) * (weight * self.scaling[name]).view(-1, 1, 1).to(y.dtype)
        if sparse:
            y = self._by_sequence(y, x, sparse)
        else:
            self._held = None
        if self.lora_fusion is not None and self.mix.fused:
            y = y + self.lora_fusion(x, [self._adapted(name, x) * self.scaling[name] for name in self.mix.fused])
        return y

    def _adapted(self, name: str, x: Tensor) -> Tensor:
        inner = functional.dropout(x, self.lora_dropout[name], self.training)
        return self.lora_B[name](self.lora_A[name](inner))

    def _by_sequence(self, y: Tensor, x: Tensor, names: Sequence[str]) -> Tensor:
        """`y` with what each sequence's own adapters add: one batched product instead of one an adapter."""
        pairs = self.mix.pairs([(name, self.scaling[name]) for name in names])
        if x.shape[0] != pairs.batch:
            raise ZephyraError(f"adapter weights are for {pairs.batch} sequences, the batch has {x.shape[0]}")
        a, b = self._stacks(names, pairs)
        here = x if pairs.rows is None else x[pairs.rows]
        if self.training and any(self.lora_dropout[name] for name in names):
            keep = 1 - torch.tensor([self.lora_dropout[name] for name in names], device=x.device)
            keep = (keep if pairs.adapters is None else keep[pairs.adapters])[:, None, None].to(x.dtype)
            here = here * torch.bernoulli(keep.expand_as(here)) / keep
        inner = torch.bmm(here, a.mT)  # [P, T, r]
        if pairs.rows is None:
            return torch.baddbmm(y, inner, b)
        return y.index_add_(0, pairs.rows, torch.bmm(inner, b).to(y.dtype))

    def _stacks(self, names: Sequence[str], pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Every pair's A, weighted, `[P, r, in]` and B `[P, r, out]`; kept for the next token where nothing learns."""
        factors = [self.factors(name) for name in names]
        keep = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or factors[0][0].is_inference())
        state = [(part.data_ptr(), part._version) for pair in factors for part in pair] if keep else []
        if keep and self._held is not None and self._held[0] is pairs and self._held[1] == state:
            return self._held[2]
        a = _stacked([a for a, _ in factors], pairs.adapters)
        stacks = a * pairs.factors.to(a.dtype), _stacked([b.T for _, b in factors], pairs.adapters)
        self._held = (pairs, state, stacks) if keep else None
        return stacks


def _stacked(parts: Sequence[Tensor], chosen: Tensor | None) -> Tensor:
    """Matrices `[r, n]`, the narrower ones filled up with zero rows, as `[P, r, n]`."""
    rank = max(part.shape[0] for part in parts)
    stacked = torch.stack([functional.pad(p, (0, 0, 0, rank - p.shape[0])) if p.shape[0] < rank else p for p in parts])
    return stacked if chosen is None else stacked[chosen]


def _unless_range(places: Tensor, length: int) -> Tensor | None:
    """None where the places are 0, 1, … length - 1, so that nothing has to be gathered."""
    return None if places.tolist() == list(range(length)) else places
