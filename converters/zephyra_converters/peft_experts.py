"""Experts as transformers 5 has them: all of a layer in one parameter, gate and up in one matrix.

PEFT (`target_parameters`, its ParamWrapper) keeps A of such a parameter as `[experts * r, in]` and B as
`[out, r * experts]`, the expert running fastest. Gate and up share A, and have half of B's rows each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from zephyra_converters.adapter import LoraPair
from zephyra_converters.checkpoint import LazyTensor
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

_MODULE = re.compile(r"(?P<experts>.+\.experts)(?P<inner>\.base_layer)?")
_MATRICES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def parameter_of(module: str, modules: Mapping[str, object], targets: Sequence[str]) -> str | None:
    """The parameter, `….experts.down_proj`, that PEFT's module of this name adapts; None where it is a plain layer.

    Of two adapted parameters the first one's wrapper lies inside the second's; one alone is told by `targets`.
    """
    match = _MODULE.fullmatch(module)
    if match is None:
        return None
    experts = match["experts"]
    if f"{experts}.base_layer" in modules and experts in modules:
        return f"{experts}.{'gate_up_proj' if match['inner'] else 'down_proj'}"
    named = [target for target in targets if target.rpartition(".")[2] in _MATRICES]
    if len(named) != 1 or match["inner"]:
        raise ZephyraError(f"which parameter '{module}' adapts is not clear from target_parameters {list(targets)}")
    return f"{experts}.{named[0].rpartition('.')[2]}"


def experts_apart(parameter: str, pair: LoraPair, rank: int) -> dict[str, LoraPair]:
    """Each expert's own matrices, by module; `rank` is that of one expert."""
    experts, _, last = parameter.rpartition(".")
    a, b, names = pair.a, pair.b, _MATRICES[last]
    count, height = a.shape[0] // rank, b.shape[0] // len(names)
    if a.shape != (count * rank, a.columns) or b.shape != (height * len(names), count * rank) or not count:
        raise ZephyraError(
            f"'{parameter}' is {list(a.shape)} and {list(b.shape)}, which is not rank {rank} for every expert"
        )
    pairs = {}
    for expert in range(count):
        own_a = _part(a, slice(expert * rank, (expert + 1) * rank), slice(None), (rank, a.columns))
        for at, name in enumerate(names):
            rows, columns = slice(at * height, (at + 1) * height), slice(expert, None, count)
            pairs[f"{experts}.{expert}.{name}"] = LoraPair(own_a, _part(b, rows, columns, (height, rank)), pair.scale)
    return pairs


def gate_shape(parameter: str, pair: LoraPair, rank: int) -> dict[str, tuple[int, int]]:
    """The shape that the gate of these experts must have: how many they are, and the width of what they read."""
    experts, _, last = parameter.rpartition(".")
    width = pair.a.columns if last == "gate_up_proj" else pair.b.shape[0]
    return {f"{experts.removesuffix('.experts')}.gate.weight": (pair.a.shape[0] // rank, width)}


def _part(tensor: LazyTensor, rows: slice, columns: slice, shape: tuple[int, int]) -> LazyTensor:
    def read(begin: int, end: int) -> np.ndarray:
        return _whole(tensor)[rows, columns][begin:end]

    return LazyTensor(tensor.name, shape, tensor.dtype, read)


@lru_cache(maxsize=2)
def _whole(tensor: LazyTensor) -> np.ndarray:
    """Kept while its experts are taken out of it one by one."""
    return tensor.rows(0, tensor.row_count)
