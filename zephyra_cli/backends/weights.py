"""A base's weights in llama.cpp: mapped from the file, or repacked for this processor where that pays."""

from __future__ import annotations

import math
import os
from threading import Lock
from typing import Any

from zephyra_cli import ahead
from zephyra_cli.backends.library import silenced, take_errors
from zephyra_cli.backends.self_test import at_risk, extra_buffers_allowed
from zephyra_converters.gguf_header import GGUFHeader
from zephyra_fusion.errors import ZephyraError

LARGE = 200_000_000
"""Weights from which on work takes so long that it pays to prepare for it."""
_REPACKED = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_NL")  # types that llama.cpp interleaves without AMX
_LISTENING = Lock()  # llama.cpp has one log, and what it says must be this model's
_WHOLE_FILE = 0  # llama_load_mode: read, not mapped


def parameters(header: GGUFHeader) -> int:
    """How many weights a file holds."""
    return sum(math.prod(tensor.shape) for tensor in header.tensors.values())


def quantized(header: GGUFHeader) -> bool:
    """Whether most weights are of fewer than 16 bits."""
    tensors = header.tensors.values()
    small = sum(math.prod(tensor.shape) for tensor in tensors if tensor.type_name not in ("F32", "F16", "BF16"))
    return small > parameters(header) / 2


def load_weights(lib: Any, header: GGUFHeader, extra_buffers: bool | None) -> int:
    """llama.cpp's model. `extra_buffers`: repack (None: where it pays). ZephyraError: it cannot be loaded.

    What is repacked is read and not mapped: a map would stay in memory beside the repacked weights.
    """
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = extra_buffers_allowed(_pays(header) if extra_buffers is None else extra_buffers)
    if params.use_extra_bufts:
        params.load_mode = _WHOLE_FILE
    path = os.fsencode(header.path)
    ahead.fetch()
    with _LISTENING:
        with silenced(lib):  # each of its hundreds of lines would wait for the thread that imports
            model = lib.llama_model_load_from_file(path, params)
        model = model or lib.llama_model_load_from_file(path, params)  # once more, to hear why not
        if not model:
            raise ZephyraError(f"llama.cpp cannot load {header.path}: {take_errors()}")
    return int(model)


def _pays(header: GGUFHeader) -> bool:
    """A large model, most of whose weights have another form that this processor likes better."""
    total = parameters(header)
    if total < LARGE:
        return False
    types = (*_REPACKED, "Q8_0") if at_risk() else _REPACKED  # AMX has tiles for Q8_0 too
    fitting = sum(math.prod(tensor.shape) for tensor in header.tensors.values() if tensor.type_name in types)
    return fitting > total / 2
