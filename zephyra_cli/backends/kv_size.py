"""How many bytes a model's cache of keys and values takes."""

from __future__ import annotations

from typing import Any

from zephyra_converters.gguf_header import GGUFHeader
from zephyra_fusion.values import dataclass

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
"""llama.cpp's numbers for `--kv-type`."""


@dataclass(frozen=True, kw_only=True)
class CacheSizes:
    """Bytes of a token's keys and values, summed over the layers that see all tokens, and over those with a window."""

    full: int
    windowed: int


def cache_sizes(header: GGUFHeader, kv_type: str) -> CacheSizes:
    """Of the model with this header."""

    def number(key: str, default: Any = 0) -> Any:
        return header.metadata.get(f"{header.architecture}.{key}", default)

    heads, layers = number("attention.head_count"), number("block_count")
    own = number("attention.head_count_kv", heads)
    shared = number("embedding_length") // (heads[0] if isinstance(heads, list) else heads)
    keys, values = number("attention.key_length", shared), number("attention.value_length", shared)
    sizes = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
    head = round(keys * sizes[kv_type] + values * sizes["f16" if kv_type == "q8_0" else kv_type])
    pattern = number("attention.sliding_window_pattern", None)
    found = {True: 0, False: 0}
    for layer in range(layers):
        windowed = isinstance(pattern, list) and bool(pattern[layer % len(pattern)])
        found[windowed] += head * (own[layer] if isinstance(own, list) else own)
    return CacheSizes(full=found[False], windowed=found[True])
