"""How far adapters move the weights that they touch, embedding tables and experts among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.converters.test_lora_experts import expert_adapter
from zephyra_converters.adapter import EMBEDDING
from zephyra_converters.adapter_merge import importances
from zephyra_converters.hf import read_hf
from zephyra_converters.peft import read_peft


@pytest.mark.parametrize("kind", ["embedding", "experts"])
def test_importance_is_the_share_of_the_norm(
    kind: str,
    adapted: Callable[[str], tuple[Any, Path, Path]],
    checkpoint_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    if kind == "embedding":
        _, folder, base = adapted("embedding")
    else:
        base = checkpoint_folder("mixtral")
        folder = expert_adapter(base, "mixtral", tmp_path / "experts")
    adapter, tensors = read_peft(folder), read_hf(base).tensors
    moved = there = 0.0
    for module, pair in adapter.pairs.items():
        delta, weight = pair.scale * (pair.b.read() @ pair.a.read()), tensors[f"{module}.weight"].read()
        assert (delta.T if module == EMBEDDING else delta).shape == weight.shape
        moved, there = moved + float((delta**2).sum()), there + float((weight**2).sum())
    assert importances({"it": adapter}, read_hf(base))["it"] == pytest.approx((moved / there) ** 0.5, rel=1e-4)
