"""GGUF files written as a stream: metadata first, then one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.dtypes import check_finite, from_float32
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

PLAIN_TYPES = ("F32", "F16", "BF16", "Q8_0")  # those written here; all others by llama.cpp's own quantizer


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its GGUF name is the LazyTensor's, `type` one of PLAIN_TYPES."""

    tensor: LazyTensor
    type: str


def stored_type(shape: tuple[int, ...], wanted: str) -> str:
    """Vectors stay F32; rows that Q8_0's blocks of 32 do not divide fall back to F16."""
    if len(shape) < 2:
        return "F32"
    return "F16" if wanted == "Q8_0" and shape[-1] % 32 else wanted


def write_gguf_file(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Iterable[Planned]
) -> dict[str, int]:
    """Write the file; returns how many tensors have which type.

    Whole numbers become UINT32, floats FLOAT32 (what llama.cpp reads), lists arrays. NaN, infinite and (for F16)
    too large weights are errors that name the tensor; the caller removes the unfinished file.
    """
    import gguf

    writer = gguf.GGUFWriter(None, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    planned = list(tensors)
    for plan in planned:
        code = gguf.GGMLQuantizationType[plan.type]
        size = _bytes(plan.tensor.shape, *gguf.GGML_QUANT_SIZES[code])
        writer.add_tensor_info(plan.tensor.name, plan.tensor.shape, _any_dtype(), size, code)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for plan in planned:
            values = plan.tensor.read()
            check_finite(values, plan.tensor.name)
            writer.write_tensor_data(encode(values, plan.type, plan.tensor.name))
    finally:
        if writer.fout:
            writer.close()
    counts: dict[str, int] = {}
    for plan in planned:
        counts[plan.type] = counts.get(plan.type, 0) + 1
    return counts


def encode(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """float32 values as the bytes of a ggml type."""
    import numpy as np

    if kind == "Q8_0":
        import gguf

        return gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.Q8_0)
    return np.ascontiguousarray(from_float32(values, kind, name))


def _bytes(shape: tuple[int, ...], block: int, block_bytes: int) -> int:
    size = block_bytes
    for n in shape[:-1]:
        size *= n
    return size * (shape[-1] // block)


def _any_dtype() -> Any:
    """gguf-py asks for numpy's type and, given ggml's own, ignores it."""
    import numpy as np

    return np.dtype(np.float32)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        if not 0 <= value < 2**32:
            raise ZephyraError(f"'{key}' is {value}, GGUF's UINT32 cannot hold it")
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))
