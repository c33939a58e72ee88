"""The two orders of rotary dimensions: halves (Hugging Face, "neox") and neighbours (llama.cpp's "norm").

A rotation of neighbours over permuted rows of q and k is the rotation of halves over the original ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Halves to neighbours within each head: `[heads * head_dim, …]`, a weight, a bias or a LoRA B."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def separate(rows: np.ndarray, heads: int) -> np.ndarray:
    """Neighbours back to halves: the inverse of `interleave`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
