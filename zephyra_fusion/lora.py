"""LoRA: low-rank adapters over one shared base, any number resident, any weights (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.field_types import at_least_one, wrong_types
from zephyra_fusion.layers.adapter_fusion import AdapterFusion
from zephyra_fusion.layers.lora import AdapterMix, LoRALinear, Weight
from zephyra_fusion.types import check_weights

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
        for name in ("target_modules", "layers_to_transform"):  # JSON has no tuples
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if wrong := list(wrong_types(self).values()):
            raise ZephyraError("; ".join(wrong))
        for name, rank in (("r", self.r), *(("rank_pattern", rank) for rank in self.rank_pattern.values())):
            if not at_least_one(rank):
                wrong.append(f"{name} is {rank!r}, a rank is at least 1")
        for alpha in self.alpha_pattern.values():
            if not isinstance(alpha, int | float) or not math.isfinite(alpha):
                wrong.append(f"alpha_pattern has {alpha!r}, must be a finite number")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                wrong.append(f"'{pattern}' is no regular expression: {error}")
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


def adapted_layers(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, LoRALinear]]:
    """Every layer that carries adapters (or the adapter of that name), with its module name."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear) and (name is None or name in module.lora_A):
            yield path, module


def _mixes(model: nn.Module) -> set[AdapterMix]:
    """Usually one; parts that were adapted before they were joined have their own."""
    return {layer.mix for _, layer in adapted_layers(model)}


def add_adapter(model: nn.Module, name: str, config: LoraConfig) -> None:
    """Put a fresh adapter into every linear layer that `config.target_modules` names."""
    check_new_name(model, name)
    layers = dict(adapted_layers(model))
    mix = next(iter(layers.values())).mix if layers else AdapterMix()
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and config.targets(n)]
    missing = [t for t in config.target_modules if not any(n == t or n.endswith("." + t) for n, _ in found)]
    if missing or not found:
        linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        where = "" if config.layers_to_transform is None else f" of layers_to_transform {config.layers_to_transform}"
        raise ZephyraError(
            f"target_modules {', '.join(missing)} match no layer{where}", hint=f"known: {', '.join(sorted(linear))}"
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
    for mix in _mixes(model):
        mix.choose({n: w for n, w in mix.weights.items() if n != name})


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
    layers = list(adapted_layers(model))  # the one walk over the model: a batch may be switched at every prompt
    _check(chosen, {name for _, layer in layers for name in layer.lora_A})
    tensors = {n: w for n, w in chosen.items() if isinstance(w, Tensor)}
    wrong = [f"weight of '{n}' is {list(w.shape)}, must be [batch]" for n, w in tensors.items() if w.dim() != 1]
    wrong += [f"weight of '{n}' is not finite" for n, w in tensors.items() if not bool(w.isfinite().all())]
    experts = [path for path, _ in layers if ".experts." in path] if tensors else []
    wrong += [f"'{p}' is an expert: it sees tokens of all sequences, weights [B] cannot reach it" for p in experts[:1]]
    if wrong:
        raise ZephyraError("; ".join(wrong))
    for mix in {layer.mix for _, layer in layers}:
        mix.choose(chosen)


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
    for mix in _mixes(model):
        mix.choose({}, fused=names)
    for _, layer in adapted_layers(model):
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


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """ZephyraError: one of them is not resident."""
    _check(names, adapter_names(model))


def _check(names: Iterable[str], known: Collection[str]) -> None:
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
