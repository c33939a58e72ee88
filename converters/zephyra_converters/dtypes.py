"""Number formats: bytes of F32, F16, BF16 and the whole-number types to numpy arrays and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

# safetensors' name: bytes of one value
ITEM_SIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
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
    return words.astype(np.float32, copy=False)


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
        if not np.isfinite(half).all():
            raise ZephyraError(
                f"tensor '{name}' has values up to {float(np.abs(values).max()):g}, F16 ends at 65504",
                hint="convert to BF16 or F32",
            )
        return half
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    raise ValueError(f"{dtype} is not a plain floating type")


def check_finite(words: np.ndarray, dtype: str, name: str, first_row: int, shape: tuple[int, ...]) -> None:
    """NaN and infinite weights are refused by tensor and first place; `words` are rows of a tensor of this shape."""
    import numpy as np

    if words.dtype == np.uint16:  # BF16: all bits of the exponent are set
        wrong = (words & 0x7F80) == 0x7F80
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.add.reduce(words, axis=None, dtype=np.float64)):
                return  # one look at the sum: infinite or NaN as soon as one of the values is
        wrong = ~np.isfinite(words)
    if wrong.any():
        at = first_row * words.shape[-1] + int(wrong.reshape(-1).argmax())
        place = [int(i) for i in np.unravel_index(at, shape)]
        raise ZephyraError(
            f"tensor '{name}' has values that are NaN or infinite, the first at {place}",
            hint="the checkpoint is damaged or the training diverged",
        )
