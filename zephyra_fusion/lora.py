"""LoRA: low-rank adapters over one shared base, any number resident, any weights (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.layers.adapter_fusion import AdapterFusion
from zephyra_fusion.types import check_weights

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Weight = float | Tensor  # a tensor `[B]` gives every sequence of the batch its own weight


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """PEFT's keys. The matrix becomes W + w * scaling * B A, scaling = alpha / r (rsLoRA: alpha / sqrt(r))."""

    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    target_modules: tuple[str, ...] = TARGETS
    lora_dropout: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        wrong = [f"r is {r}, a rank is at least 1" for r in (self.r, *self.rank_pattern.values()) if r < 1]
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            if not math.isfinite(alpha):
                wrong.append(f"lora_alpha is {alpha}, must be a finite number")
        if not 0.0 <= self.lora_dropout < 1.0:
            wrong.append(f"lora_dropout is {self.lora_dropout}, must be from 0 to below 1")
        if wrong:
            raise ZephyraError("; ".join(wrong))

    def targets(self, module: str) -> bool:
        """Whether the module of this name gets an adapter; names match whole or after a dot, as in PEFT."""
        if not any(module == t or module.endswith("." + t) for t in self.target_modules):
            return False
        layer = re.search(r"\.layers\.(\d+)\.", module)
        return self.layers_to_transform is None or (layer is not None and int(layer[1]) in self.layers_to_transform)

    def rank(self, module: str) -> int:
        return int(_patterned(self.rank_pattern, module, self.r))

    def scaling(self, module: str) -> float:
        alpha, rank = _patterned(self.alpha_pattern, module, self.lora_alpha), self.rank(module)
        return float(alpha / math.sqrt(rank) if self.use_rslora else alpha / rank)


def _patterned(pattern: Mapping[str, float], module: str, default: float) -> float:
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


class AdapterMix:
    """Which adapters are on, with what weight: one object shared by every adapted layer of a model."""

    def __init__(self) -> None:
        self.weights: dict[str, Weight] = {}
        self.rows: dict[str, Tensor] = {}  # the sequences of the batch that an adapter is for; absent: all
        self.fused: tuple[str, ...] = ()  # adapters that the layers' own AdapterFusion weighs

    def choose(self, weights: Mapping[str, Weight]) -> None:
        self.weights, self.rows, self.fused = dict(weights), {}, ()
        for name, weight in weights.items():
            # A weight that is being learned needs its gradient where it is zero, too.
            if isinstance(weight, Tensor) and not weight.requires_grad and bool((weight == 0).any()):
                self.rows[name] = weight.nonzero().squeeze(-1)


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

    def remove(self, name: str) -> None:
        for parts in (self.lora_A, self.lora_B):
            if name in parts:
                del parts[name]
        self.scaling.pop(name, None)
        self.lora_dropout.pop(name, None)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A `[r, in]` and B `[out, r]`."""
        return cast(nn.Linear, self.lora_A[name]).weight, cast(nn.Linear, self.lora_B[name]).weight

    def delta(self, name: str) -> Tensor:
        """What the adapter adds to the weight at weight 1, `[out, in]`."""
        a, b = self.factors(name)
        return b @ a * self.scaling[name]

    def forward(self, x: Tensor) -> Tensor:  # [B, T, in]
        y = nn.functional.linear(x, self.weight, self.bias)
        for name, weight in self.mix.weights.items():
            if name not in self.lora_A:
                continue
            if isinstance(weight, float):
                y = y + self._adapted(name, x) * weight
            elif (rows := self.mix.rows.get(name)) is None:
                y = y + self._adapted(name, x) * weight.view(-1, 1, 1).to(y.dtype)
            else:
                y.index_add_(0, rows, self._adapted(name, x[rows]) * weight[rows].view(-1, 1, 1).to(y.dtype))
        if self.lora_fusion is not None and self.mix.fused:
            y = y + self.lora_fusion(x, [self._adapted(name, x) for name in self.mix.fused])
        return y

    def _adapted(self, name: str, x: Tensor) -> Tensor:
        inner = nn.functional.dropout(x, self.lora_dropout[name], self.training)
        return self.lora_B[name](self.lora_A[name](inner)) * self.scaling[name]


def adapted_layers(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, LoRALinear]]:
    """Every layer that carries adapters (or the adapter of that name), with its module name."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear) and (name is None or name in module.lora_A):
            yield path, module


def add_adapter(model: nn.Module, name: str, config: LoraConfig) -> None:
    """Put a fresh adapter into every linear layer that `config.target_modules` names."""
    check_new_name(model, name)
    layers = dict(adapted_layers(model))
    mix = next(iter(layers.values())).mix if layers else AdapterMix()
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and config.targets(n)]
    missing = [t for t in config.target_modules if not any(n == t or n.endswith("." + t) for n, _ in found)]
    if missing or not found:
        linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        raise ZephyraError(
            f"target_modules {', '.join(missing)} match no layer", hint=f"known: {', '.join(sorted(linear))}"
        )
    for module_name, module in found:
        if not isinstance(module, LoRALinear):
            module = LoRALinear(module, mix)
            parent, _, leaf = module_name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module)
        module.add(name, config.rank(module_name), config.scaling(module_name), config.lora_dropout)


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take the adapter out of every layer; the others stay."""
    check_names(model, [name])
    for _, layer in adapted_layers(model):
        layer.remove(name)
        layer.mix.choose({n: w for n, w in layer.mix.weights.items() if n != name})


def set_adapters(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Switch on exactly these adapters: {} is the base; a tensor `[B]` weighs every sequence by itself.

    Sequences at weight 0 cost nothing: a batch of specialists, one a row, does the work of one adapter.
    """
    numbers = check_weights({n: w for n, w in weights.items() if not isinstance(w, Tensor)})
    chosen: dict[str, Weight] = {
        n: w if isinstance(w, Tensor) else numbers[n]
        for n, w in weights.items()
        if isinstance(w, Tensor) or n in numbers
    }
    check_names(model, chosen)
    for path, layer in adapted_layers(model):
        if ".experts." in path and any(isinstance(w, Tensor) for w in chosen.values()):
            raise ZephyraError(f"'{path}' is an expert: it sees tokens of all sequences, weights [B] cannot reach it")
        layer.mix.choose(chosen)


def route_adapters(model: nn.Module, names: Sequence[str], probabilities: Tensor) -> None:
    """A router's output as adapter weights: `probabilities [B, len(names)]`, a gradient flows back through them.

    Further columns than names (the router's `none`) stay with the base.
    """
    if probabilities.dim() != 2 or probabilities.shape[1] < len(names):
        raise ZephyraError(f"probabilities are {list(probabilities.shape)}, must be [batch, {len(names)} or more]")
    set_adapters(model, {name: probabilities[:, index] for index, name in enumerate(names)})


def fuse_adapters(model: nn.Module, names: Sequence[str], *, size: int = 16) -> list[nn.Parameter]:
    """Let every adapted layer weigh these adapters itself (AdapterFusion); returns what is to be trained.

    The fusion layers stay and are used again by the next call; `set_adapters` switches fusion off. Layers that
    lack one of the adapters keep to the base.
    """
    check_names(model, names)
    parameters: list[nn.Parameter] = []
    for _, layer in adapted_layers(model):
        layer.mix.choose({})
        layer.mix.fused = tuple(names)
        if all(name in layer.lora_A for name in names):
            if layer.lora_fusion is None:
                fusion = AdapterFusion(layer.in_features, layer.out_features, size)
                layer.lora_fusion = fusion.to(layer.weight.device, layer.weight.dtype)
            parameters.extend(layer.lora_fusion.parameters())
        else:
            layer.lora_fusion = None
    return parameters


def adapter_config(model: nn.Module, name: str) -> LoraConfig:
    """What `save_adapter` needs for an adapter whose config is not at hand (merged, pruned): read off its layers."""
    check_names(model, [name])
    ranks = {path: layer.factors(name)[0].shape[0] for path, layer in adapted_layers(model, name)}
    alphas = {path: layer.scaling[name] * ranks[path] for path, layer in adapted_layers(model, name)}
    r, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=tuple(ranks),
        rank_pattern={path: value for path, value in ranks.items() if value != r},
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha},
    )


def adapter_names(model: nn.Module) -> list[str]:
    return sorted({name for _, layer in adapted_layers(model) for name in layer.lora_A})


def check_names(model: nn.Module, names: Iterator[str] | Sequence[str] | Mapping[str, Weight]) -> None:
    """ZephyraError: one of them is not resident."""
    known = adapter_names(model)
    for name in names:
        if name not in known:
            raise ZephyraError(f"adapter '{name}' is not loaded", hint=did_you_mean(name, known))


def check_new_name(model: nn.Module, name: str) -> None:
    """ZephyraError: no name for an adapter, or taken."""
    if not re.fullmatch(r"[\w-]+", name):
        raise ZephyraError(f"adapter name '{name}' has characters outside letters, digits, - and _")
    if name in adapter_names(model):
        raise ZephyraError(f"adapter '{name}' is there already")


@torch.no_grad()
def merge_adapters(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Add the blend into the base's own weights for good: W + sum of w_i * scaling_i * B_i A_i."""
    chosen = check_weights(weights)
    check_names(model, chosen)
    for _, layer in adapted_layers(model):
        for name, weight in chosen.items():
            if name in layer.lora_A:
                layer.weight += weight * layer.delta(name)
