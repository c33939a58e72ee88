"""ggml's blocks as float32: by gguf-py, and by llama.cpp's own library where that is older than the type."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import TYPE_CHECKING

from zephyra_converters.gguf_header import GGML_TYPES
from zephyra_converters.loaded import llama
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of the pinned llama.cpp (ggml.h); what it says of the type is checked before use."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


def dequantized(raw: np.ndarray, kind: int, name: str) -> np.ndarray:
    """Rows of bytes `[rows, row_bytes]` of a ggml type as float32 `[rows, columns]`; `name` is the tensor's."""
    import gguf

    if kind in {int(known) for known in gguf.GGMLQuantizationType}:
        with suppress(NotImplementedError):
            return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    return _by_library(raw, kind, name)


def _by_library(raw: np.ndarray, kind: int, name: str) -> np.ndarray:
    import numpy as np

    llama()
    from llama_cpp._ggml import libggml

    type_name, block, size = GGML_TYPES[kind]
    libggml.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    traits = libggml.ggml_get_type_traits(ctypes.c_int(kind)).contents
    known = (traits.type_name.decode().upper(), traits.block, traits.bytes) == (type_name, block, size)
    if not known or not traits.to_float:
        raise ZephyraError(
            f"tensor '{name}' is {type_name}, which cannot be read back", hint="convert from the unquantized original"
        )
    raw = np.ascontiguousarray(raw)
    values = np.empty((raw.shape[0], raw.shape[1] // size * block), np.float32)
    traits.to_float(raw.ctypes.data, values.ctypes.data, values.size)
    return values
