"""Adapters written anew, as GGUF files in the form that llama.cpp computes fastest.

A product with B takes 64 numbers of a row at a time where it can (AVX-512), and what is left one by one, for which F16
and BF16 are twice as slow as F32: an adapter of rank 16 in F16 cost a quarter of the speed (docs/LOG.md). So few
numbers are made F32, and more are filled up with zeros; neither changes a number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import pack
from typing import Any

from zephyra_converters.gguf_header import GGUFHeader, TensorInfo

F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30
BLOCK = 32  # numbers that share a scale in Q8_0, and bytes that GGUF aligns tensors to
EMBEDDING = "token_embd.weight"  # is looked up, not multiplied: llama.cpp wants its A transposed
_STEP, _FEW = 64, 16

Stored = tuple[str, tuple[int, ...], int, Any]
"""Name, shape in GGUF's order, type and contents (a buffer)."""


def fast_form(kind: int, rank: int) -> tuple[int, int]:
    """The type of a B of this type and rank that is multiplied fastest, and the ranks of zeros that it takes."""
    if kind in (F16, BF16):
        return (F32, 0) if 0 < rank % _STEP <= _FEW else (kind, -rank % _STEP)
    return kind, -rank % BLOCK if kind == Q8_0 else 0


def is_slow(header: GGUFHeader) -> bool:
    """Whether `write_fast` has something to do."""
    return any(_slow(tensor) for tensor in header.tensors.values())


def write_fast(path: Path, header: GGUFHeader, lib: Any) -> None:
    """A checked adapter anew, number for number; `lib` is llama.cpp. OSError: it cannot be written."""
    alpha = float(header.metadata.get("adapter.lora.alpha", 0.0))
    rank, fill = _common(header)
    with header.path.open("rb") as file:
        tensors = list(_rewritten(file, header, fill, lib))
    # llama.cpp divides by the rank that it finds.
    write_adapter(path, header.architecture, tensors, alpha * (rank + fill) / rank)


def write_adapter(path: Path, architecture: str, tensors: Sequence[Stored], alpha: float = 0.0) -> None:
    """An adapter of these tensors; an alpha of 0 stands for a scale of 1. OSError: it cannot be written."""
    keys = [("general.architecture", architecture), ("general.type", "adapter"), ("adapter.type", "lora")]
    head = b"GGUF" + pack("<IQQ", 3, len(tensors), len(keys) + 1)
    head += b"".join(_string(name) + pack("<I", 8) + _string(value) for name, value in keys)
    head += _string("adapter.lora.alpha") + pack("<If", 6, alpha)
    offset = 0
    for name, shape, kind, data in tensors:
        head += _string(name) + pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-memoryview(data).nbytes // BLOCK) * BLOCK
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % BLOCK))
        for *_, data in tensors:
            file.write(data)
            file.write(bytes(-memoryview(data).nbytes % BLOCK))


def _slow(tensor: TensorInfo) -> bool:
    return (
        tensor.name.endswith(".lora_b")
        and tensor.type in (F16, BF16)
        and fast_form(tensor.type, tensor.shape[0]) != (tensor.type, 0)
    )


def _common(header: GGUFHeader) -> tuple[int, int]:
    """The rank of all factors, and the ranks of zeros that they are to get: none where they are not alike."""
    factors = [tensor for name, tensor in header.tensors.items() if name.endswith(".lora_b")]
    rank, kind = factors[0].shape[0], factors[0].type
    alike = all((tensor.shape[0], tensor.type, len(tensor.shape)) == (rank, kind, 2) for tensor in factors)
    return rank, fast_form(kind, rank)[1] if alike and EMBEDDING + ".lora_b" not in header.tensors else 0


def _rewritten(file: Any, header: GGUFHeader, fill: int, lib: Any) -> Iterator[Stored]:
    for name, tensor in header.tensors.items():
        file.seek(tensor.offset)
        data, shape = file.read(tensor.size), tensor.shape
        if name.endswith(".lora_a"):
            rows = shape[1]
            yield name, (shape[0], rows + fill, *shape[2:]), tensor.type, data + bytes(len(data) // rows * fill)
        elif fill:
            yield name, (shape[0] + fill, *shape[1:]), tensor.type, _filled(data, shape[0], fill)
        elif _slow(tensor):
            yield name, shape, F32, _widened(data, tensor.type, lib)
        else:
            yield name, shape, tensor.type, data


def _filled(data: bytes, columns: int, fill: int) -> memoryview:
    """Rows of 16-bit numbers with zeros behind them."""
    numbers = memoryview(data).cast("H")
    result = memoryview(bytearray(len(data) // columns * (columns + fill))).cast("H")
    for column in range(columns):
        result[column :: columns + fill] = numbers[column::columns]
    return result


def _widened(data: bytes, kind: int, lib: Any) -> Any:
    """16-bit numbers as F32."""
    count = len(data) // 2
    result = (ctypes.c_float * count)()
    (lib.ggml_fp16_to_fp32_row if kind == F16 else lib.ggml_bf16_to_fp32_row)(data, result, count)
    return result


def _string(text: str) -> bytes:
    return pack("<Q", len(text)) + text.encode()
