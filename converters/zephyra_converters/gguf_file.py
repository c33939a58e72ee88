"""GGUF files written as a stream: metadata first, then one tensor at a time."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedWriter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.dtypes import check_finite, converted, to_float32
from zephyra_converters.gguf_header import GGML_TYPES
from zephyra_converters.read_ahead import read_ahead
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

PLAIN_TYPES = ("F32", "F16", "BF16", "Q8_0")  # those written here; all others by llama.cpp's own quantizer


class Signed(int):
    """A whole number that is stored as INT32."""


ALIGNMENT = 32
_LENGTH = struct.Struct("<Q")
# Python's type: GGUF's value type, struct's letter
_SCALARS = {bool: (7, "?"), int: (4, "I"), Signed: (5, "i"), float: (6, "f"), str: (8, "")}
_ITEMS = {bool: (7, "?"), int: (5, "i"), float: (6, "f"), str: (8, "")}  # as gguf-py chooses them
_ARRAY = 9
_CODES = {name: code for code, (name, _, _) in GGML_TYPES.items()}
_EARLY = 2**16
_LARGEST = 3.4028234663852886e38  # of float32
_BLOCKS = {name: (block, size) for name, block, size in GGML_TYPES.values()}


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
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Iterable[Planned],
    progress: Callable[[int], None] = lambda size: None,
) -> dict[str, int]:
    """Write the file; returns how many tensors have which type. `progress` hears of every piece's bytes.

    Whole numbers become UINT32, floats FLOAT32 (what llama.cpp reads), lists arrays. NaN, infinite and (for F16)
    too large weights are errors that name the tensor; the caller removes the unfinished file.
    """
    planned = list(tensors)
    spans = [(plan, begin, end) for plan in planned for begin, end in plan.tensor.spans()]
    blocks = read_ahead(partial(_block, *span) for span in spans)
    with write_header(path, architecture, metadata, planned) as file, blocks as made:
        for (plan, _, end), data in zip(spans, made, strict=True):
            file.write(data.data)
            if end == plan.tensor.row_count:
                file.write(bytes(padded(file.tell()) - file.tell()))
            progress(data.nbytes)
    counts: dict[str, int] = {}
    for plan in planned:
        counts[plan.type] = counts.get(plan.type, 0) + 1
    return counts


def write_header(
    path: Path, architecture: str, metadata: Mapping[str, Any], planned: Sequence[Planned]
) -> BufferedWriter:
    """Everything before the data (GGUF 3, ggml's docs/gguf.md); returns the file, open where the data begin.

    By hand, because gguf-py takes a second for a vocabulary of 128,000 tokens.
    """
    entries = {"general.architecture": architecture, **metadata}
    file, offset = path.open("wb"), 0
    try:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(planned), len(entries)))
        for key, value in entries.items():
            try:
                file.write(_string(key) + _value(key, value))
            except (struct.error, KeyError, AttributeError, TypeError):
                raise ZephyraError(f"'{key}' is {str(value)[:60]!r}, GGUF's metadata cannot hold it") from None
        for plan in planned:
            shape = plan.tensor.shape
            file.write(_string(plan.tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
            file.write(struct.pack("<IQ", _CODES[plan.type], offset))
            offset += padded(tensor_bytes(shape, plan.type))
        file.write(bytes(padded(file.tell()) - file.tell()))
    except BaseException:
        file.close()
        raise
    return file


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def tensor_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Size of a tensor's data in a ggml type."""
    block, size = _BLOCKS[kind]
    return math.prod(shape) // block * size


def patch_numbers(path: Path, values: Mapping[str, float | int]) -> None:
    """Give metadata keys, which stand early in the header as FLOAT32 or UINT32, their final values."""
    with path.open("r+b") as file:
        start = file.read(_EARLY)
        for key, value in values.items():
            code, form = (4, "<I") if isinstance(value, int) else (6, "<f")
            name = key.encode()
            entry = struct.pack("<Q", len(name)) + name + struct.pack("<I", code)
            at = start.find(entry)
            if at < 0:
                raise ValueError(f"'{key}' does not stand within the first {_EARLY} bytes of {path}")
            file.seek(at + len(entry))
            file.write(struct.pack(form, value))


def _block(plan: Planned, begin: int, end: int) -> np.ndarray:
    """The bytes of some rows in the planned type; stored words of that type stay as they are."""
    import numpy as np

    tensor = plan.tensor
    words = tensor.rows(begin, end)
    check_finite(words, tensor.dtype, tensor.name, begin, tensor.shape)
    if plan.type == "Q8_0":
        import gguf

        values = np.ascontiguousarray(to_float32(words, tensor.dtype, tensor.name))
        words = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    else:
        words = converted(words, tensor.dtype, plan.type, tensor.name)
    return np.ascontiguousarray(words).reshape(-1).view(np.uint8)


def _string(text: str) -> bytes:
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """A metadata value with its type; lists hold values of one kind."""
    if isinstance(value, list | tuple):
        kind = type(value[0]) if value else str
        code, form = _ITEMS[kind]
        start = struct.pack("<IIQ", _ARRAY, code, len(value))
        if kind is str:
            texts = [text.encode() for text in value]
            lengths = map(_LENGTH.pack, map(len, texts))
            return start + b"".join(chain.from_iterable(zip(lengths, texts, strict=True)))
        return start + struct.pack(f"<{len(value)}{form}", *value)
    if isinstance(value, float) and not abs(value) <= _LARGEST:
        raise ZephyraError(f"'{key}' is {value}, GGUF's FLOAT32 cannot hold it")
    if type(value) is int and not 0 <= value < 2**32:
        raise ZephyraError(f"'{key}' is {value}, GGUF's UINT32 cannot hold it")
    code, form = _SCALARS[type(value)]
    return struct.pack("<I", code) + (_string(value) if isinstance(value, str) else struct.pack(f"<{form}", value))
