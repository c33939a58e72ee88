"""LoRA adapters as GGUF files, both ways (llama.cpp: `llama_adapter_lora_init`, convert_lora_to_gguf.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_converters.adapter import Adapter, LoraPair, check_belongs
from zephyra_converters.architecture import ARCHITECTURES, arch_for
from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.gguf_file import Planned, stored_type, write_gguf_file
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import tensor_reader, text_metadata
from zephyra_converters.names import DECODER, pattern_of, reverse, translate
from zephyra_converters.rope_order import interleave, separate
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

LORA_TYPES = ("F32", "F16", "BF16", "Q8_0")


def write_lora_gguf(adapter: Adapter, config: FusionConfig, path: Path, kind: str) -> dict[str, int]:
    """Write the adapter for a base of this config; returns the number of tensors of each type.

    llama.cpp scales by alpha / r with one alpha for the file: where the modules' alphas differ, the file's is their
    first one's, and the rest of a module's scale goes into its B.
    """
    check_belongs(adapter, config)
    architecture = arch_for(config)
    first = next(iter(adapter.pairs.values()))
    alpha = first.scale * first.rank
    metadata = {
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
    interleaved, alpha = ARCHITECTURES[expected].interleaved, float(metadata.get("adapter.lora.alpha", 0.0))
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
        read_b, heads = tensor_reader(path, info_b), _heads(module, config)
        if interleaved and heads:
            read_b = _then(read_b, separate, heads)
        a = LazyTensor(module, tuple(reversed(info_a.shape)), info_a.type_name, tensor_reader(path, info_a))
        b = LazyTensor(module, tuple(reversed(info_b.shape)), info_b.type_name, read_b)
        pairs[module] = LoraPair(a, b, alpha / a.shape[0] if alpha else 1.0)
    adapter = Adapter(pairs=pairs, path=path, name=str(metadata.get("general.name") or path.stem))
    check_belongs(adapter, config)
    return adapter


def _tensors(adapter: Adapter, config: FusionConfig, interleaved: bool, alpha: float) -> Iterator[LazyTensor]:
    for module, pair in adapter.pairs.items():
        found = translate(module + ".weight", DECODER)
        assert found is not None  # check_belongs saw to that
        read_b, heads = pair.b.read, _heads(module, config)
        if interleaved and heads:
            read_b = _then(read_b, interleave, heads)
        rest = pair.scale * pair.rank / alpha if alpha else pair.scale
        if not math.isclose(rest, 1.0, rel_tol=1e-9):
            read_b = _scaled(read_b, rest)
        yield LazyTensor(f"{found[0]}.lora_a", pair.a.shape, pair.a.dtype, pair.a.read)
        yield LazyTensor(f"{found[0]}.lora_b", pair.b.shape, pair.b.dtype, read_b)


def _heads(module: str, config: FusionConfig) -> int | None:
    if module.endswith(".q_proj"):
        return config.num_attention_heads
    return config.num_key_value_heads if module.endswith(".k_proj") else None


def _then(
    read: Callable[[], np.ndarray], order: Callable[[np.ndarray, int], np.ndarray], heads: int
) -> Callable[[], np.ndarray]:
    return lambda: order(read(), heads)


def _scaled(read: Callable[[], np.ndarray], factor: float) -> Callable[[], np.ndarray]:
    return lambda: (read() * factor).astype("float32")
