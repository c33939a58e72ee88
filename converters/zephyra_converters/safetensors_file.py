"""The safetensors format, read lazily and written as a stream (no framework, BF16 included).

Layout: 8 bytes little-endian length, a JSON header, then the data. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.dtypes import ITEM_SIZE, check_finite, converted, storage
from zephyra_converters.json_file import MOST_BYTES, parse_json
from zephyra_converters.read_ahead import read_ahead
from zephyra_converters.regular_file import open_regular
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

_MARK = ("made_by", "zephyra convert")  # in what is written here; who loads the tensors and saves them again drops it
MAX_HEADER = MOST_BYTES  # the format allows 100 MB; 100,000 tensors take less than this
_HIGHEST_RANK = 8
_LARGEST = 2**48  # of any number in a header: what is larger only costs time


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file. The header is checked against the file's size before anything is allocated."""
    header, data_start = _read_header(path)
    data_size = path.stat().st_size - data_start
    tensors, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, dtype, begin, end = _entry(path, name, entry)
        if not 0 <= begin <= end <= data_size:
            raise ZephyraError(
                f"{path}: tensor '{name[:80]}' lies at bytes {begin}..{end}, the file has {data_size} bytes of data",
                hint="the file is truncated or damaged: fetch it again",
            )
        if end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
            raise ZephyraError(
                f"{path}: tensor '{name[:80]}' has {end - begin} bytes, {dtype}{list(shape)} needs others"
            )
        spans.append((begin, end, name))
        tensors[name] = LazyTensor(name, shape, dtype, _reader(path, name, dtype, shape, data_start + begin))
    spans.sort()
    for (_, end, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
        if begin < end:
            raise ZephyraError(f"{path}: tensors '{first[:80]}' and '{second[:80]}' overlap")
    return tensors


def is_our_own(path: Path) -> bool:
    """Whether `write_safetensors` wrote the file; one that cannot be read is not."""
    try:
        metadata = _read_header(path)[0].get("__metadata__")
    except ZephyraError:
        return False
    return isinstance(metadata, dict) and metadata.get(_MARK[0]) == _MARK[1]


def write_safetensors(
    path: Path,
    tensors: Iterable[LazyTensor],
    dtype: str | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> None:
    """Write the tensors, some rows in memory at a time; `dtype` F32, F16 or BF16 (None: each keeps its own).

    NaN, infinite and (for F16) too large weights are errors that name the tensor.
    """
    listed = sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", _MARK[0]: _MARK[1]}
    }  # transformers insists on the format
    offset = 0
    for tensor in listed:
        size = tensor.size * ITEM_SIZE[dtype or tensor.dtype]
        header[tensor.name] = {
            "dtype": dtype or tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blocks = read_ahead(
        partial(_block, tensor, dtype or tensor.dtype, *span) for tensor in listed for span in tensor.spans()
    )
    with path.open("wb") as file, blocks as made:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in made:
            file.write(data.data)
            progress(data.nbytes)


def _block(tensor: LazyTensor, dtype: str, begin: int, end: int) -> np.ndarray:
    import numpy as np

    words = tensor.rows(begin, end)
    check_finite(words, tensor.dtype, tensor.name, begin, tensor.shape)
    words = converted(words, tensor.dtype, dtype, tensor.name)
    return np.ascontiguousarray(words).reshape(-1).view(np.uint8)


def _read_header(path: Path) -> tuple[Mapping[str, Any], int]:
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ZephyraError(
                    f"{path} is not a safetensors file: its header length is {length}, the file's {size}, "
                    f"at most {min(MAX_HEADER, size - 8)} are possible"
                )
            text = file.read(length)
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror}") from None
    header = parse_json(text, f"the header of {path}", MAX_HEADER, object_pairs_hook=_no_duplicates)
    if not isinstance(header, dict):
        raise ZephyraError(f"{path} is not a safetensors file: its header is no JSON object")
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ZephyraError(f"duplicate entries in a safetensors header: {', '.join(twice)[:200]}")
    return result


def _entry(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], str, int, int]:
    try:
        shape, dtype, (begin, end) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
        if len(shape) > _HIGHEST_RANK or not all(type(n) is int and 0 <= n < _LARGEST for n in (*shape, begin, end)):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ZephyraError(f"{path}: the header entry of tensor '{name[:80]}' is malformed") from None
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise ZephyraError(f"{path}: tensor '{name[:80]}' has type '{str(dtype)[:40]}', known: {', '.join(ITEM_SIZE)}")
    return shape, dtype, begin, end


def _reader(path: Path, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> Any:
    columns = shape[-1] if shape else 1

    def rows(begin: int, end: int) -> np.ndarray:
        import numpy as np

        start, count = offset + begin * columns * ITEM_SIZE[dtype], (end - begin) * columns
        words = np.fromfile(os.fspath(path), dtype=storage(dtype), count=count, offset=start)
        if words.size != count:
            raise ZephyraError(f"{path}: tensor '{name}' ends early, the file changed while it was read")
        return words.reshape(end - begin, columns)

    return rows
