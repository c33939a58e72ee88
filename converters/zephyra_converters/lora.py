"""LoRA adapters as GGUF files, both ways (llama.cpp: `llama_adapter_lora_init`, convert_lora_to_gguf.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zephyra_converters.adapter import EMBEDDING, Adapter, LoraPair, check_belongs
from zephyra_converters.architecture import ARCHITECTURES, arch_for
from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.gguf_check_lora import FINGERPRINT
from zephyra_converters.gguf_file import Planned, stored_type, write_gguf_file
from zephyra_converters.gguf_header import GGUFHeader, read_header
from zephyra_converters.gguf_read import tensor_of, text_metadata
from zephyra_converters.json_file import well_formed
from zephyra_converters.layout import interleaved, padded, scaled, separated, stacked, transposed, unstacked
from zephyra_converters.names import DECODER, pattern_of, reverse, translate
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

LORA_TYPES = ("F32", "F16", "BF16", "Q8_0")


def write_lora_gguf(
    adapter: Adapter,
    config: FusionConfig,
    path: Path,
    kind: str,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, int]:
    """Write the adapter for a base of this config, with `more` metadata; returns the number of tensors by type.

    llama.cpp scales by alpha / r with one alpha for the file: where the modules' alphas differ, the file's is their
    first one's, and the rest of a module's scale goes into its B. In Q8_0, zeros fill the ranks up to whole blocks,
    for a B in F16 would be far slower.
    """
    check_belongs(adapter, config)
    architecture = arch_for(config)
    block = 32 if kind == "Q8_0" else 1
    first = next(iter(adapter.pairs.values()))
    alpha = first.scale * _whole(first.rank, block)
    metadata: dict[str, Any] = {
        **more,
        "general.type": "adapter",
        "general.name": adapter.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    if adapter.license:
        metadata["general.license"] = adapter.license
    tensors = _tensors(adapter, config, architecture.interleaved, alpha, block)
    planned = (Planned(tensor, stored_type(tensor.shape, kind)) for tensor in tensors)
    return write_gguf_file(path, architecture.name, metadata, planned)


def read_lora_gguf(path: Path, config: FusionConfig) -> Adapter:
    """The adapter in a GGUF file, for a base of this config (which knows the heads)."""
    header = read_header(path)
    metadata = text_metadata(header)
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise ZephyraError(f"{path} is no LoRA adapter", hint="a GGUF adapter, or the folder of a PEFT one, is wanted")
    if "adapter.alora.invocation_tokens" in metadata:
        raise ZephyraError(f"{path} is an activated LoRA (aLoRA), which is not supported")
    with well_formed(path):
        adapter = _read(path, header, metadata, config)
    check_belongs(adapter, config)
    return adapter


def _read(path: Path, header: GGUFHeader, metadata: Mapping[str, Any], config: FusionConfig) -> Adapter:
    expected = arch_for(config).name
    if header.architecture != expected:
        raise ZephyraError(f"{path} was made for the architecture '{header.architecture}', the base is '{expected}'")
    order, alpha = ARCHITECTURES[expected].interleaved, float(metadata.get("adapter.lora.alpha", 0.0))
    pairs, back = {}, reverse(DECODER)
    for name, info_b in sorted(header.tensors.items()):
        if not name.endswith(".lora_b"):
            continue
        target = name.removesuffix(".lora_b")
        pattern, numbers = pattern_of(target)
        info_a = header.tensors.get(target + ".lora_a")
        if info_a is None or pattern not in back:
            raise ZephyraError(f"{path}: '{target}' cannot be read back")
        module, a, b = back[pattern].removesuffix(".weight"), tensor_of(path, info_a), tensor_of(path, info_b)
        scale = alpha / b.columns if alpha else 1.0
        if module.count("{}") > len(numbers):
            modules = [module.format(*numbers, expert) for expert in range(config.num_experts)]
            if not len(modules) == a.shape[0] == b.shape[0]:
                raise ZephyraError(f"{path}: '{target}' is for {a.shape[0]} experts, the base has {len(modules)}")
            for each_a, each_b in zip(unstacked(a, modules), unstacked(b, modules), strict=True):
                pairs[each_a.name] = LoraPair(each_a, each_b, scale)
            continue
        module = module.format(*numbers)
        if order and (heads := _heads(module, config)):
            b = separated(b, heads)
        if module == EMBEDDING:
            a = transposed(a)
        pairs[module] = LoraPair(*_without_zeros(a, b), scale)
    return Adapter(
        pairs=pairs,
        path=path,
        name=str(metadata.get("general.name") or path.stem),
        license=metadata.get("general.license"),
        base_fingerprint=str(metadata.get(FINGERPRINT, "")),
    )


def check_effect(adapter: Adapter, path: Path, kind: str) -> None:
    """The file that was written of the adapter changes something. ZephyraError: its A or B are zero throughout."""
    tensors = read_header(path).tensors
    for name, info in tensors.items():
        if name.endswith(".lora_b"):
            a = tensors[name.removesuffix("b") + "a"]
            if tensor_of(path, info).read().any() and tensor_of(path, a).read().any():
                return
    if any(pair.scale and pair.b.read().any() and pair.a.read().any() for pair in adapter.pairs.values()):
        raise ZephyraError(
            f"the adapter {adapter.path} changes nothing as {kind}: its weights are so small that they round to zero",
            hint="-q F32 or -q BF16 keeps them",
        )
    raise ZephyraError(
        f"the adapter {adapter.path} changes nothing: its B, its A or its scale is zero throughout",
        hint="it was never trained (B is zero), or its weights are lost",
    )


def _whole(rank: int, block: int) -> int:
    return -(-rank // block) * block


def _tensors(adapter: Adapter, config: FusionConfig, order: bool, alpha: float, block: int) -> Iterator[LazyTensor]:
    stacks: dict[str, dict[int, LoraPair]] = {}
    for module, pair in adapter.pairs.items():
        found = translate(module + ".weight", DECODER)
        assert found is not None  # check_belongs saw to that
        target, expert = found
        if expert is not None:
            stacks.setdefault(target, {})[expert] = pair
            continue
        rank = _whole(pair.rank, block)
        b, heads = _at_scale(pair, rank, alpha), _heads(module, config)
        if order and heads:
            b = interleaved(b, heads)
        a, b = padded(pair.a, rank, pair.a.columns), padded(b, b.row_count, rank)
        if module == EMBEDDING:
            a = transposed(a)  # llama.cpp looks rows of it up
        yield a.named(f"{target}.lora_a")
        yield b.named(f"{target}.lora_b")
    for target, experts in stacks.items():
        yield from _stack(target, experts, config.num_experts, alpha, block)


def _stack(target: str, experts: Mapping[int, LoraPair], count: int, alpha: float, block: int) -> Iterator[LazyTensor]:
    """All experts' factors in two tensors of one rank: what an expert lacks of it, or all it lacks, is zero."""
    some = next(iter(experts.values()))
    rank = _whole(max(pair.rank for pair in experts.values()), block)
    rows, columns = some.b.shape[0], some.a.shape[1]
    nothing = LazyTensor(target, (0, 0), "F32", some.a.rows)
    all_a, all_b = [], []
    for expert in range(count):
        pair = experts.get(expert)
        all_a.append(padded(pair.a if pair else nothing, rank, columns))
        all_b.append(padded(_at_scale(pair, rank, alpha) if pair else nothing, rows, rank))
    yield stacked(f"{target}.lora_a", all_a)
    yield stacked(f"{target}.lora_b", all_b)


def _at_scale(pair: LoraPair, rank: int, alpha: float) -> LazyTensor:
    """B times what the pair's scale is beyond alpha / rank, which llama.cpp applies itself."""
    rest = pair.scale * rank / alpha if alpha else pair.scale
    return pair.b if math.isclose(rest, 1.0, rel_tol=1e-9) else scaled(pair.b, rest)


def _without_zeros(a: LazyTensor, b: LazyTensor) -> tuple[LazyTensor, LazyTensor]:
    """Without the ranks that only fill a block up."""
    if b.columns % 32:
        return a, b
    import numpy as np

    values_a, values_b = a.read(), b.read()
    used = np.flatnonzero(values_a.any(axis=1) & values_b.any(axis=0))
    rank = int(used[-1]) + 1 if len(used) else 1
    if rank == b.columns:
        return a, b
    return LazyTensor.holding(a.name, values_a[:rank]), LazyTensor.holding(b.name, values_b[:, :rank].copy())


def _heads(module: str, config: FusionConfig) -> int | None:
    if module.endswith(".q_proj"):
        return config.num_attention_heads
    return config.num_key_value_heads if module.endswith(".k_proj") else None
