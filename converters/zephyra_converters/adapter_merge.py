"""Adapters of a pack merged, cut and weighed by the torch side's own rules (`zephyra_fusion.merge`, `.prune`).

Only the adapters' matrices are needed for that, so they hang on empty layers: the base is never loaded whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.adapter import Adapter, LoraPair
from zephyra_converters.checkpoint import Checkpoint, LazyTensor
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from torch import Tensor, nn


def merge_adapters(
    adapters: Mapping[str, Adapter], name: str, weights: Mapping[str, float], method: str, **options: Any
) -> Adapter:
    """One adapter of the weighted ones; `options` are those of `zephyra_fusion.merge.merge` (rank, keep, seed)."""
    _need_torch()
    from zephyra_fusion.merge import merge

    inside = {given: f"part-{number}" for number, given in enumerate(adapters)}  # its names are stricter than a pack's
    modules = list(dict.fromkeys(module for adapter in adapters.values() for module in adapter.pairs))
    model = _model({inside[given]: adapter for given, adapter in adapters.items()}, modules)
    merge(model, "merged", {inside[given]: weight for given, weight in weights.items()}, method, **options)
    return _adapter(model, modules, "merged", name)


def prune_adapter(adapter: Adapter, *, rank: int | None = None, energy: float | None = None) -> tuple[Adapter, float]:
    """The adapter cut to its strongest directions, and the share of its squared norm that was lost."""
    _need_torch()
    from zephyra_fusion.prune import prune_directions

    modules = list(adapter.pairs)
    model = _model({"part": adapter}, modules)
    lost = prune_directions(model, "part", rank=rank, energy=energy)
    return _adapter(model, modules, "part", adapter.name), lost


def importances(adapters: Mapping[str, Adapter], base: Checkpoint) -> dict[str, float]:
    """By adapter: how far it moves the weights that it touches (`zephyra_fusion.prune.importance`), layer by layer."""
    _need_torch()
    import torch

    from zephyra_fusion.prune import importance

    moved, there = dict.fromkeys(adapters, 0.0), dict.fromkeys(adapters, 0.0)
    for module in dict.fromkeys(module for adapter in adapters.values() for module in adapter.pairs):
        weight = torch.from_numpy(base.tensors[f"{module}.weight"].read())
        size = float(weight.square().sum())
        for name, adapter in adapters.items():
            if module in adapter.pairs:
                share = importance(_model({"part": adapter}, [module], weight))["part"]
                moved[name], there[name] = moved[name] + share**2 * size, there[name] + size
    return {name: (moved[name] / there[name]) ** 0.5 for name in adapters}


def _need_torch() -> None:
    if find_spec("torch") is None:
        raise ZephyraError(
            "merging and pruning adapters needs PyTorch, which is not installed", hint="pip install 'zephyra[torch]'"
        )


def _model(adapters: Mapping[str, Adapter], modules: list[str], weight: Tensor | None = None) -> nn.Module:
    """Layers of the right shapes with these adapters; their own weights are `weight`, or memory that nobody reads."""
    import torch
    from torch.nn.utils import skip_init

    from zephyra_fusion.lora import AdapterMix, LoRALinear

    mix, layers = AdapterMix(), torch.nn.ModuleList()
    for module in modules:
        pair = next(adapter.pairs[module] for adapter in adapters.values() if module in adapter.pairs)
        linear = skip_init(torch.nn.Linear, pair.a.shape[1], pair.b.shape[0], bias=False)
        layer = LoRALinear(linear, mix)
        if weight is not None:
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        for name, adapter in adapters.items():
            if (here := adapter.pairs.get(module)) is not None:
                layer.add(name, here.rank, here.scale)
                with torch.no_grad():
                    for factor, tensor in zip(layer.factors(name), (here.a, here.b), strict=True):
                        factor.copy_(torch.from_numpy(tensor.read()))
        layers.append(layer)
    return layers


def _adapter(model: nn.Module, modules: list[str], inside: str, name: str) -> Adapter:
    from zephyra_fusion.lora import LoRALinear

    pairs = {}
    for module, layer in zip(modules, model.children(), strict=True):
        assert isinstance(layer, LoRALinear)
        if inside in layer.scaling:
            a, b = (LazyTensor.holding(module, factor.detach().numpy()) for factor in layer.factors(inside))
            pairs[module] = LoraPair(a, b, layer.scaling[inside])
    return Adapter(pairs=pairs, path=Path(name), name=name)
