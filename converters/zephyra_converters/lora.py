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
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import tensor_of, text_metadata
from zephyra_converters.layout import interleaved, scaled, separated, transposed
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
    first one's, and the rest of a module's scale goes into its B.
    """
    check_belongs(adapter, config)
    architecture = arch_for(config)
    first = next(iter(adapter.pairs.values()))
    alpha = first.scale * first.rank
    metadata: dict[str, Any] = {
        **more,
        "general.type": "adapter",
        "general.name": adapter.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    if adapter.license:
        metadata["general.license"] = adapter.license
    tensors = _tensors(adapter, config, architecture.interleaved, alpha)
    planned = (Planned(tensor, stored_type(tensor.shape, kind)) for tensor in tensors)
    return write_gguf_file(path, architecture.name, metadata, planned)


def read_lora_gguf(path: Path, config: FusionConfig) -> Adapter:
    """The adapter in a GGUF file, for a base of this config (which knows the heads)."""
    header = read_header(path)
    metadata = text_metadata(header)
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise ZephyraError(f"{path} is no LoRA adapter")
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
        if info_a is None or back.get(pattern, "{}{}").count("{}") > len(numbers):
            raise ZephyraError(f"{path}: '{target}' cannot be read back")
        module = back[pattern].format(*numbers).removesuffix(".weight")
        a, b, heads = tensor_of(path, info_a), tensor_of(path, info_b), _heads(module, config)
        if order and heads:
            b = separated(b, heads)
        if module == EMBEDDING:
            a = transposed(a)
        pairs[module] = LoraPair(a, b, alpha / b.shape[1] if alpha else 1.0)
    adapter = Adapter(
        pairs=pairs,
        path=path,
        name=str(metadata.get("general.name") or path.stem),
        base_fingerprint=str(metadata.get(FINGERPRINT, "")),
    )
    check_belongs(adapter, config)
    return adapter


def _tensors(adapter: Adapter, config: FusionConfig, order: bool, alpha: float) -> Iterator[LazyTensor]:
    for module, pair in adapter.pairs.items():
        found = translate(module + ".weight", DECODER)
        assert found is not None  # check_belongs saw to that
        b, heads = pair.b, _heads(module, config)
        if order and heads:
            b = interleaved(b, heads)
        rest = pair.scale * pair.rank / alpha if alpha else pair.scale
        if not math.isclose(rest, 1.0, rel_tol=1e-9):
            b = scaled(b, rest)
        a = transposed(pair.a) if module == EMBEDDING else pair.a  # llama.cpp looks rows of it up
        yield a.named(f"{found[0]}.lora_a")
        yield b.named(f"{found[0]}.lora_b")


def _heads(module: str, config: FusionConfig) -> int | None:
    if module.endswith(".q_proj"):
        return config.num_attention_heads
    return config.num_key_value_heads if module.endswith(".k_proj") else None
