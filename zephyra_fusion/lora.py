"""LoRA: low-rank adapters over one shared base, any number resident, any weights (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError, did_you_mean
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
        if self.r < 1:
            raise ZephyraError(f"r is {self.r}, a rank is at least 1")
        if not math.isfinite(self.lora_alpha):
            raise ZephyraError(f"lora_alpha is {self.lora_alpha}, must be a finite number")

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


class LoRALinear(nn.Linear):
    """A linear layer with resident adapters; its own weight keeps its name, so base checkpoints fit unchanged."""

    def __init__(self, base: nn.Linear, mix: AdapterMix) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.mix = mix
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.lora_dropout: dict[str, float] = {}

    def add(self, name: str, rank: int, scaling: float, dropout: float) -> None:
        """A fresh adapter: A random, B zero, so that it changes nothing until it is trained."""
        place = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.lora_A[name] = nn.Linear(self.in_features, rank, bias=False, **place)
        self.lora_B[name] = nn.Linear(rank, self.out_features, bias=False, **place)
        nn.init.kaiming_uniform_(self.lora_A[name].weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B[name].weight)
        self.scaling[name] = scaling
        self.lora_dropout[name] = dropout

    def forward(self, x: Tensor) -> Tensor:  # [B, T, in]
        y = nn.functional.linear(x, self.weight, self.bias)
        for name, weight in self.mix.weights.items():
            if name not in self.lora_A:
                continue
            inner = nn.functional.dropout(x, self.lora_dropout[name], self.training)
            delta = self.lora_B[name](self.lora_A[name](inner)) * self.scaling[name]
            y = y + delta * (weight if isinstance(weight, float) else weight.view(-1, 1, 1).to(delta.dtype))
        return y

    def delta(self, name: str) -> Tensor:
        """What the adapter adds to the weight at weight 1, `[out, in]`."""
        return self.lora_B[name].weight @ self.lora_A[name].weight * self.scaling[name]


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every layer that carries adapters, with its module name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def add_adapter(model: nn.Module, name: str, config: LoraConfig) -> None:
    """Put a fresh adapter into every linear layer that `config.target_modules` names."""
    if not re.fullmatch(r"[\w-]+", name):
        raise ZephyraError(f"adapter name '{name}' has characters outside letters, digits, - and _")
    layers = dict(adapted_layers(model))
    mix = next(iter(layers.values())).mix if layers else AdapterMix()
    if any(name in layer.lora_A for layer in layers.values()):
        raise ZephyraError(f"adapter '{name}' is there already")
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and config.targets(n)]
    missing = [t for t in config.target_modules if not any(n == t or n.endswith("." + t) for n, _ in found)]
    if missing or not found:
        linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        raise ZephyraError(f"target_modules {', '.join(missing)} match no layer", hint=f"known: {', '.join(sorted(linear))}")
    for module_name, module in found:
        if not isinstance(module, LoRALinear):
            module = LoRALinear(module, mix)
            parent, _, leaf = module_name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module)
        module.add(name, config.rank(module_name), config.scaling(module_name), config.lora_dropout)


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take the adapter out of every layer; the others stay."""
    _check_names(model, {name: 1.0})
    for _, layer in adapted_layers(model):
        for parts in (layer.lora_A, layer.lora_B):
            if name in parts:
                del parts[name]
        layer.scaling.pop(name, None)
        layer.lora_dropout.pop(name, None)
        layer.mix.weights.pop(name, None)


def set_adapters(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Switch on exactly these adapters: {} is the base; a tensor `[B]` weighs every sequence by itself."""
    numbers = check_weights({n: w for n, w in weights.items() if not isinstance(w, Tensor)})
    chosen: dict[str, Weight] = {n: w if isinstance(w, Tensor) else numbers[n] for n, w in weights.items() if isinstance(w, Tensor) or n in numbers}
    _check_names(model, chosen)
    for _, layer in adapted_layers(model):
        layer.mix.weights = chosen


def adapter_names(model: nn.Module) -> list[str]:
    return sorted({name for _, layer in adapted_layers(model) for name in layer.lora_A})


def _check_names(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    known = adapter_names(model)
    for name in weights:
        if name not in known:
            raise ZephyraError(f"adapter '{name}' is not loaded", hint=did_you_mean(name, known))


@torch.no_grad()
def merge_adapters(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Add the blend into the base's own weights for good: W + sum of w_i * scaling_i * B_i A_i."""
    chosen = check_weights(weights)
    _check_names(model, chosen)
    for _, layer in adapted_layers(model):
        for name, weight in chosen.items():
            if name in layer.lora_A:
                layer.weight += weight * layer.delta(name)
