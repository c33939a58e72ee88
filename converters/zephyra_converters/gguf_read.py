"""A GGUF base as a checkpoint: dequantized lazily, back to Hugging Face's names, order of rows and config."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.architecture import ARCHITECTURES
from zephyra_converters.checkpoint import Checkpoint, LazyTensor
from zephyra_converters.dequantize import dequantized
from zephyra_converters.dtypes import FLOATS, storage
from zephyra_converters.gguf_check import check_gguf
from zephyra_converters.gguf_header import GGUFHeader, TensorInfo
from zephyra_converters.gguf_metadata import config_from_metadata
from zephyra_converters.gguf_write import NO_SINK
from zephyra_converters.hf import expected_shapes
from zephyra_converters.json_file import well_formed
from zephyra_converters.layout import separated, unstacked
from zephyra_converters.names import DECODER, check_names, pattern_of, reverse
from zephyra_converters.tokenizer_back import tokenizer_files_of
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np


def read_gguf(path: Path) -> Checkpoint:
    """The model in a GGUF file. What cannot be read back exactly (but for quantization) is refused by name."""
    header = check_gguf(path)
    metadata = text_metadata(header)
    factors = None
    if (info := header.tensors.get("rope_freqs.weight")) is not None:
        factors = [float(value) for value in tensor_of(header.file_of(info.name), info).read()]
    vocab_size = header.tensors["token_embd.weight"].shape[1]
    with well_formed(path):
        config = config_from_metadata(metadata, vocab_size, frozenset(header.tensors), factors)
        config = _with_special_ids(config, metadata)
        tokenizer = tokenizer_files_of(metadata)
    tensors = {}
    for info in header.tensors.values():
        if not _is_addition(header.file_of(info.name), info, config):
            back = _back(header.file_of(info.name), info, config, header.architecture)
            tensors.update({tensor.name: tensor for tensor in back})
    check_names(tensors, expected_shapes(config), str(path))
    return Checkpoint(
        config=config,
        tensors=tensors,
        path=path,
        name=str(metadata.get("general.name") or path.stem),
        tokenizer=tokenizer,
        license=metadata.get("general.license"),
    )


def _is_addition(path: Path, info: TensorInfo, config: FusionConfig) -> bool:
    """Tensors that only the GGUF has (`gguf_write._additions`)."""
    if info.name.endswith(".attn_sinks.weight"):
        if (tensor_of(path, info).read() > NO_SINK / 2).any():
            raise ZephyraError(f"{path}: '{info.name}' takes part in the attention, which cannot be read back")
        return True
    return info.name == "rope_freqs.weight" or (info.name == "output.weight" and config.tie_word_embeddings)


def text_metadata(header: GGUFHeader) -> dict[str, Any]:
    """The metadata with arrays of strings as text."""
    return {
        key: header.strings(key) if isinstance(value, list) and value and isinstance(value[0], bytes) else value
        for key, value in header.metadata.items()
    }


def tensor_of(path: Path, info: TensorInfo) -> LazyTensor:
    """One tensor in numpy's order of dimensions (the reverse of ggml's); blocks are dequantized to float32."""
    shape = tuple(reversed(info.shape))
    columns, row_bytes = shape[-1], info.size // max(1, math.prod(shape[:-1]))

    def rows(begin: int, end: int) -> np.ndarray:
        import numpy as np

        plain = info.type_name in FLOATS
        raw = np.fromfile(
            os.fspath(path), dtype=np.uint8, count=(end - begin) * row_bytes, offset=info.offset + begin * row_bytes
        )
        if raw.size != (end - begin) * row_bytes:
            raise ZephyraError(f"{path}: tensor '{info.name}' ends early, the file changed while it was read")
        if plain:
            return raw.view(storage(info.type_name)).reshape(end - begin, columns)
        return dequantized(raw.reshape(end - begin, row_bytes), info.type, info.name)

    return LazyTensor(info.name, shape, info.type_name, rows)


def _back(path: Path, info: TensorInfo, config: FusionConfig, architecture: str) -> list[LazyTensor]:
    pattern, numbers = pattern_of(info.name)
    name = reverse(DECODER).get(pattern)
    if name is None:
        raise ZephyraError(f"{path}: tensor '{info.name}' has no Hugging Face name")
    tensor = tensor_of(path, info)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(info.name.split(".")[-2])
    if name.count("{}") > len(numbers):
        return unstacked(tensor, [name.format(*numbers, n) for n in range(tensor.shape[0])])
    if ARCHITECTURES[architecture].interleaved and heads is not None:
        tensor = separated(tensor, heads)
    return [tensor.named(name.format(*numbers))]


def _with_special_ids(config: FusionConfig, metadata: dict[str, Any]) -> FusionConfig:
    def number(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if value is None else int(value)

    ends = tuple(n for n in (number("eos"), number("eot"), number("eom")) if n is not None)
    ids = {
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "bos_token_id": number("bos"),
        "pad_token_id": number("padding"),
    }
    return FusionConfig.from_dict({**config.to_dict(), **ids})
