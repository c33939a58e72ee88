"""A LoRA adapter between formats: which modules of the base it changes, by which matrices, at which scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_converters.checkpoint import Checkpoint, LazyTensor
from zephyra_converters.dtypes import FLOATS
from zephyra_converters.hf import expected_shapes
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

EMBEDDING = "model.embed_tokens"  # looked up, not multiplied: A is [r, vocabulary], B [hidden, r]
ADAPTABLE = (
    "embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate", "gate_proj", "up_proj", "down_proj", "lm_head",
)  # fmt: skip


@dataclass(frozen=True)
class LoraPair:
    """W becomes W + weight * scale * B A; A is `[r, in]`, B `[out, r]`."""

    a: LazyTensor
    b: LazyTensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def changes(self, module: str) -> tuple[int, ...]:
        """The shape of the weight that it belongs to."""
        shape = self.b.shape[0], self.a.shape[1]
        return shape[::-1] if module == EMBEDDING else shape


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`pairs` by Hugging Face module name (`model.layers.0.self_attn.q_proj`)."""

    pairs: Mapping[str, LoraPair]
    path: Path
    name: str
    base: str = ""  # what the file says it was trained on
    base_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the base's tensors that it speaks of
    base_tables: Mapping[str, LazyTensor] = field(default_factory=dict)  # the base's own, as it was trained on them
    targeted: Callable[[str], bool] = lambda module: False  # whether it says that it has a module of this name
    license: str | None = None
    base_fingerprint: str = ""  # of a GGUF adapter that knows its base (`fingerprint`)

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def parameters(self) -> int:
        return sum(pair.a.size + pair.b.size for pair in self.pairs.values())

    def delta(self, module: str, x: np.ndarray) -> np.ndarray | float:
        """What the adapter at weight 1 adds to the module's output for `x [tokens, in]` (ids, for the embedding)."""
        pair = self.pairs.get(module)
        if pair is None:
            return 0.0
        inner = pair.a.read()[:, x].T if module == EMBEDDING else x @ pair.a.read().T
        return inner @ pair.b.read().T * pair.scale


def check_belongs(adapter: Adapter, config: FusionConfig) -> None:
    """Every module of the adapter exists in a base of this config, with these shapes; all mismatches at once."""
    shapes, wrong = expected_shapes(config), []
    for module, pair in adapter.pairs.items():
        shape = shapes.get(module + ".weight")
        if module in ("lm_head", EMBEDDING) and config.tie_word_embeddings:
            wrong.append(f"'{module}' is one table for embedding and head in this base, llama.cpp cannot adapt it")
        elif module.rpartition(".")[2] not in ADAPTABLE:
            wrong.append(f"'{module}' cannot carry an adapter in llama.cpp")
        elif shape is None:
            wrong.append(f"the base has no module '{module}'")
        elif (pair.changes(module), pair.rank) != (shape, pair.b.shape[1]):
            wrong.append(f"'{module}' is {list(shape)} in the base, B A is {list(pair.b.shape)} {list(pair.a.shape)}")
    wrong += [
        f"'{name}' is {list(shape)} for it and {list(shapes[name])} in the base"
        + (": the vocabulary grew" if name.startswith(("lm_head", EMBEDDING)) else "")
        for name, shape in adapter.base_shapes.items()
        if name in shapes and shapes[name] != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise ZephyraError(
            f"the adapter {adapter.path} does not fit the base: {'; '.join(wrong[:6])}{more}",
            hint="an adapter works with the base it was trained on, and with no other",
        )
    lost = _lost(adapter, config)
    present = {module.rpartition(".")[2] for module in adapter.pairs}
    if gone := [module for module in lost if module.rpartition(".")[2] not in present]:
        raise ZephyraError(
            f"the adapter {adapter.path} has no tensors of modules that its adapter_config.json targets: {_some(gone)}",
            hint="its weights are not complete: take them again from where it was trained",
        )


def _lost(adapter: Adapter, config: FusionConfig) -> list[str]:
    """Modules that it should have and has not. Experts are left out: transformers has them as modules or as none."""
    modules = (name.removesuffix(".weight") for name in expected_shapes(config) if ".experts." not in name)
    return [
        module
        for module in modules
        if module.endswith(ADAPTABLE) and module not in adapter.pairs and adapter.targeted(module)
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def check_tables(adapter: Adapter, base: Checkpoint) -> None:
    """Tables of the base that came with the adapter are those of this base, as far as its own are not quantized."""
    wrong = []
    for name, table in adapter.base_tables.items():
        own = base.tensors.get(name)
        if own is not None and own.dtype in FLOATS and not own.equals(table):
            wrong.append(name)
    if wrong:
        raise ZephyraError(
            f"the adapter {adapter.path} brings its own {', '.join(wrong)}, with other values than {base.path} has",
            hint="it belongs to another base, or trained the whole table: merge it into its base with PEFT "
            "(merge_and_unload) and convert the merged checkpoint",
        )


def doubts(adapter: Adapter, base: Checkpoint) -> list[str]:
    """What nothing in the adapter proves: that this base is the one it was trained on. Empty where its name says so."""
    said = adapter.base.rstrip("/")
    known = {name for name, tensor in base.tensors.items() if tensor.dtype in FLOATS}
    found = [
        f"the adapter {adapter.path} brings its own {name}, and {base.path} has none that it can be compared with: "
        "the converted adapter works on the base's"
        for name in adapter.base_tables.keys() - known
    ]
    if lost := _lost(adapter, base.config):
        found.append(f"the adapter {adapter.path} leaves out modules that its config targets: {_some(lost)}")
    if adapter.base_fingerprint or said and Path(said).name in (base.name, base.path.resolve().name):
        return found
    named = f"names '{said}' as its base" if said else "names no base"
    return [
        *found,
        f"the adapter {adapter.path} {named}, and nothing in it proves that {base.path} is that; to check: with "
        "--verify-text and a text of what it was trained for, its perplexity must be below the base's",
    ]
