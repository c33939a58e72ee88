"""Number formats: bytes of F32, F16, BF16 and the whole-number types to numpy arrays and back."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

# safetensors' name: bytes of one value
ITEM_SIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
# numpy's type of stored words: the bits of an infinite value, which no finite one reaches but for its sign
_INFINITE = {"uint16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF0 << 48}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
          "I8": "i1", "U8": "u1", "BOOL": "u1"}  # fmt: skip


def storage(dtype: str) -> str:
    """numpy's type of the stored words; BF16, which numpy lacks, is read as unsigned 16 bits."""
    return _NUMPY[dtype]


def to_float32(words: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Stored words of a floating type as float32: exact for F32, F16 and BF16. What is float32 already stays."""
    import numpy as np

    if words.dtype == np.float32:
        return words
    if dtype not in FLOATS:
        raise ZephyraError(f"tensor '{name}' is {dtype}, weights must be one of {', '.join(FLOATS)}")
    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        values = words.astype(np.float32, copy=False)
    if dtype == "F64" and not _is_finite(values):
        raise ZephyraError(f"tensor '{name}' has values of F64 that float32 cannot hold")
    return values


def converted(words: np.ndarray, dtype: str, wanted: str, name: str) -> np.ndarray:
    """Stored words of one floating type as those of another, rounded to nearest even where it is narrower."""
    import numpy as np

    if dtype == wanted:
        return words
    if (dtype, wanted) == ("BF16", "F16"):  # all 65,536 cases are known: five times as fast as by way of float32
        half = np.take(_halves(), words, mode="wrap")
        if _is_finite(half):
            return half  # else what follows says why
    return from_float32(to_float32(words, dtype, name), wanted, name)


@cache
def _halves() -> np.ndarray:
    """The F16 value of each BF16 word."""
    import numpy as np

    words = np.arange(2**16, dtype=np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        return to_float32(words, "BF16", "").astype(np.float16)


def from_float32(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """float32 values as stored words of F32, F16 or BF16 (both rounded to nearest even).

    A value that F16 cannot hold is an error: it would silently become infinite.
    """
    import numpy as np

    if dtype == "F32":
        return values.astype(np.float32, copy=False)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not _is_finite(half):
            raise ZephyraError(
                f"tensor '{name}' has values up to {float(np.abs(values).max()):g}, F16 ends at 65504",
                hint="convert to BF16 or F32",
            )
        return half
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    raise ValueError(f"{dtype} is not a plain floating type")


def _is_finite(words: np.ndarray) -> bool:
    """Of floating types. By the bits, because numpy's isfinite takes ten times as long for the 16-bit ones."""
    infinite = _INFINITE[words.dtype.name]
    sign = 1 << 8 * words.itemsize - 1
    return bool((words.view(f"u{words.itemsize}") & (sign - 1)).max(initial=0) < infinite)


def check_finite(words: np.ndarray, dtype: str, name: str, first_row: int, shape: tuple[int, ...]) -> None:
    """NaN and infinite weights are refused by tensor and first place; `words` are rows of a tensor of this shape."""
    import numpy as np

    if words.dtype.name not in _INFINITE or _is_finite(words):
        return
    wrong = ~np.isfinite(to_float32(words, dtype, name) if dtype == "BF16" else words)
    at = first_row * words.shape[-1] + int(wrong.reshape(-1).argmax())
    place = [int(i) for i in np.unravel_index(at, shape)]
    raise ZephyraError(
        f"tensor '{name}' has values that are NaN or infinite, the first at {place}",
        hint="the checkpoint is damaged or the training diverged",
    )
