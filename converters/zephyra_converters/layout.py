"""How the same weights lie in the two formats: the order of rotary dimensions, experts apart or in one tensor.

Rotary dimensions are halves (Hugging Face, "neox") or neighbours (llama.cpp's "norm"): a rotation of neighbours over
permuted rows of q and k is the rotation of halves over the original ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.dtypes import to_float32

if TYPE_CHECKING:
    import numpy as np


def interleaved(tensor: LazyTensor, heads: int) -> LazyTensor:
    """Halves to neighbours within each head of a weight, a bias or a LoRA B: `[heads * head_dim, …]`."""
    return _permuted(tensor, heads, lambda rows: rows.reshape(2, -1, *rows.shape[1:]).swapaxes(0, 1))


def separated(tensor: LazyTensor, heads: int) -> LazyTensor:
    """Neighbours back to halves: the inverse of `interleaved`."""
    return _permuted(tensor, heads, lambda rows: rows.reshape(-1, 2, *rows.shape[1:]).swapaxes(0, 1))


def _permuted(tensor: LazyTensor, heads: int, order: Callable[[np.ndarray], np.ndarray]) -> LazyTensor:
    """`order` is applied to each head's `[head_dim, …]`."""
    width = tensor.shape[0] // heads

    def apply(rows: np.ndarray) -> np.ndarray:
        import numpy as np

        each = [order(head).reshape(head.shape) for head in rows.reshape(-1, width, *rows.shape[1:])]
        return np.concatenate(each) if len(each) > 1 else np.ascontiguousarray(each[0])

    def rows(begin: int, end: int) -> np.ndarray:
        if len(tensor.shape) == 1:  # a bias: its elements are what the rows of a weight are
            return apply(tensor.rows(0, 1)[0])[None]
        first = begin // width * width
        whole = apply(tensor.rows(first, -(-end // width) * width))
        return whole[begin - first : end - first]

    return LazyTensor(tensor.name, tensor.shape, tensor.dtype, rows)


def stacked(name: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """Matrices of the same shape, one per expert, as one tensor `[experts, rows, columns]`."""
    each = parts[0].row_count
    if len({part.dtype for part in parts}) > 1:
        parts = [scaled(part, 1.0) for part in parts]

    def rows(begin: int, end: int) -> np.ndarray:
        import numpy as np

        pieces = []
        for n in range(begin // each, -(-end // each)):
            pieces.append(parts[n].rows(max(begin - n * each, 0), min(end - n * each, each)))
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    return LazyTensor(name, (len(parts), *parts[0].shape), parts[0].dtype, rows)


def unstacked(tensor: LazyTensor, names: Sequence[str]) -> list[LazyTensor]:
    """The inverse of `stacked`."""
    shape, each = tensor.shape[1:], tensor.row_count // tensor.shape[0]

    def part(n: int) -> Callable[[int, int], np.ndarray]:
        return lambda begin, end: tensor.rows(n * each + begin, n * each + end)

    return [LazyTensor(name, shape, tensor.dtype, part(n)) for n, name in enumerate(names)]


def scaled(tensor: LazyTensor, factor: float) -> LazyTensor:
    """Times a number, as float32."""

    def rows(begin: int, end: int) -> np.ndarray:
        values = to_float32(tensor.rows(begin, end), tensor.dtype, tensor.name)
        return (values * factor).astype("float32")

    return LazyTensor(tensor.name, tensor.shape, "F32", rows)


def padded(tensor: LazyTensor, rows: int, columns: int) -> LazyTensor:
    """A matrix with zeros below and to the right, as float32; without any, the matrix itself."""
    if tensor.shape == (rows, columns):
        return tensor

    def read(begin: int, end: int) -> np.ndarray:
        import numpy as np

        values, last = np.zeros((end - begin, columns), np.float32), min(end, tensor.shape[0])
        if begin < last:
            kept = to_float32(tensor.rows(begin, last), tensor.dtype, tensor.name)
            values[: last - begin, : tensor.columns] = kept
        return values

    return LazyTensor(tensor.name, (rows, columns), "F32", read)


def transposed(tensor: LazyTensor) -> LazyTensor:
    """A matrix turned, as float32. It is read whole: this is for the small factors of adapters."""

    def rows(begin: int, end: int) -> np.ndarray:
        import numpy as np

        return np.ascontiguousarray(tensor.read().T[begin:end])

    return LazyTensor(tensor.name, tensor.shape[::-1], "F32", rows)
