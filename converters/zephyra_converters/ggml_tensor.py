"""`struct ggml_tensor` of the pinned llama.cpp (ggml.h), for those who look into its graphs."""

from __future__ import annotations

import ctypes
from typing import Any


class GGMLTensor(ctypes.Structure):
    """One node or weight; `operations` says first whether the library lays it out like this."""


GGMLTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GGMLTensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]

_OBJECT = 32  # bytes of the struct ggml_object in front of every tensor
_OPERATIONS = 64  # numbers that are asked for their names


def operations(libggml: Any) -> dict[str, int] | None:
    """The numbers of the graph's operations in this build by name; None: its tensors are not laid out as above."""
    libggml.ggml_tensor_overhead.restype = ctypes.c_size_t
    libggml.ggml_op_name.restype, libggml.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    if libggml.ggml_tensor_overhead() - ctypes.sizeof(GGMLTensor) != _OBJECT:
        return None
    found = {libggml.ggml_op_name(number).decode(): number for number in range(_OPERATIONS)}
    return found if {"MUL_MAT", "MUL_MAT_ID"} <= found.keys() else None
