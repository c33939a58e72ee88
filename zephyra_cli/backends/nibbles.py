"""An adapter's B in numbers of four bits, the form that can be interleaved (see `interleaved`), made of its Q8_0.

A number q of Q8_0, -127 to 127, is 17 h + l, and h and l have room in four bits each: one above, for l = 8 becomes 7,
which happens to one number in seventeen and is as much as Q8_0 itself rounds. So

    B A = [H L] [17 A; A],

with the scales of B's blocks as they are. A rank of 16 fills only half of a block of 32; there L takes the other half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyra_cli.backends.adapter_file import BF16, BLOCK, EMBEDDING, F16, Q8_0
from zephyra_converters.gguf_header import GGUFHeader

if TYPE_CHECKING:
    import numpy as np

_FACTOR, _HALF = 17, BLOCK // 2
_LEAST = 2.0**-17
"""That the largest scale of a matrix must be: those of Q8_0 are FP16, which are coarse below 2^-14."""


class Unfit(ValueError):
    """Numbers that cannot be written like this without loss, or that are none."""


def fits_nibbles(header: GGUFHeader) -> bool:
    """Whether nothing that counts is lost: matrices of at most 16 bits whose A has blocks of Q8_0."""
    return all(
        len(tensor.shape) == 2
        and tensor.type in (F16, BF16, Q8_0)
        and (name.endswith(".lora_b") or name.startswith(EMBEDDING) or tensor.shape[0] % BLOCK == 0)
        for name, tensor in header.tensors.items()
    )


def in_nibbles(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A in Q8_0 and B in Q4_0 of both in Q8_0: int8 [rows, blocks, 34]. Unfit: its scales are too small or large."""
    import numpy as np

    numbers = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int32)
    high = np.rint(numbers / _FACTOR).astype(np.int32)
    low = (numbers - _FACTOR * high).clip(-8, 7)
    high, low = (high + 8).astype(np.uint8), (low + 8).astype(np.uint8)

    def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate([b[..., :2], (first | second << 4).view(np.int8)], axis=-1)

    codes = b[..., 2:].view(np.uint8)
    here, there = codes[..., :_HALF], codes[..., _HALF:]
    scales = [np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32) for blocks in (a, b)]
    with np.errstate(over="ignore"):
        larger = (scales[0] * _FACTOR).astype(np.float16)
    if not (np.isfinite(larger).all() and np.isfinite(scales[1]).all()):
        raise Unfit
    if any(
        blocks[..., 2:].any() and np.abs(scale).max() < _LEAST for blocks, scale in zip((a, b), scales, strict=True)
    ):
        raise Unfit
    high_a = np.concatenate([larger.view(np.int8), a[..., 2:]], axis=-1)
    if b.shape[-2] == 1 and not there.any():
        return np.concatenate([high_a[:_HALF], a[:_HALF]]), joined(high[here], low[here])
    whole = joined(high[here], high[there]), joined(low[here], low[there])
    return np.concatenate([high_a, a]), np.concatenate(whole, axis=-2)
