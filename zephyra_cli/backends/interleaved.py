"""The B of adapters interleaved in memory, as llama.cpp interleaves a base's weights: eight rows in one product.

llama.cpp keeps adapters out of the buffers that do this (llama-adapter.cpp: "do not load loras to extra buffer types"),
and calls a dot product for each row of B instead: 300,000 calls a token at 500 M weights, half of what an adapter costs
(docs/LOG.md). ggml takes any tensor that lies in such a buffer, so those of a loaded adapter are looked up in the graph
of one token (`cb_eval` of llama.h) and given memory there (`struct ggml_tensor` of ggml.h). What they compute before
and after is compared: an adapter that does not stay itself stays as it was.
"""

from __future__ import annotations

import ctypes
from array import array
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from typing import Any

from zephyra_cli.backends.adapter_file import BLOCK, Q4_0
from zephyra_cli.backends.kv import set_adapters
from zephyra_cli.backends.library import Batch, library_path
from zephyra_cli.backends.self_test import extra_buffers_allowed
from zephyra_cli.interruption import deferred
from zephyra_converters.ggml_tensor import GGMLTensor, operations

_CPU, _WEIGHTS = 0, 1  # ggml_backend_dev_type, ggml_backend_buffer_usage
_BUFFER = b"CPU_REPACK"
_ROWS = 8  # that the kernels of all processors take at once, at most
_CLOSE = 0.02  # of the range of the logits: both forms round, and a wrong one is off by far more
_Watch = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)


class _Context(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [_Context]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_buffer_set_usage": (None, [c_void_p, c_int]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_dev_by_type": (c_void_p, [c_int]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
}


@dataclass(frozen=True)
class _Memory:
    """Tensors of ours, and the buffer that they lie in."""

    context: int
    buffer: int
    tensors: tuple[GGMLTensor, ...]


class Interleaver:
    """For the adapters of one model."""

    def __init__(self, lib: Any, model: int, threads: int, ggml: Any, kind: int, products: int) -> None:
        self._lib, self._model, self._threads = lib, model, threads
        self._ggml, self._kind, self._products = ggml, kind, products
        self._memory: dict[int, _Memory] = {}

    @classmethod
    def of(cls, lib: Any, model: int, threads: int) -> Interleaver | None:
        """None where this library or this processor has no such form, or where it is known to crash."""
        if lib.llama_supports_gpu_offload() or not extra_buffers_allowed(True):
            return None
        try:
            ggml = ctypes.CDLL(str(library_path()))  # its symbols are those of libggml too, except on Windows
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(ggml, name)
                function.restype, function.argtypes = result, arguments
            numbers = operations(ggml)
        except (OSError, AttributeError):
            return None
        kind = _buffer_type(ggml)
        if numbers is None or kind is None:
            return None
        made = cls(lib, model, threads, ggml, kind, numbers["MUL_MAT"])
        probe = made._allocate([(BLOCK, _ROWS)])
        if probe is None or probe.tensors[0].extra is None:  # no kernel for this processor
            return None
        made._release(probe)
        return made

    def interleave(self, adapter: int) -> bool:
        """Those of a just loaded adapter's B that are of four bits. False: it stays as it is."""
        with deferred():  # a callback of C would lose an interruption
            try:
                return self._interleave(adapter)
            except MemoryError:
                return False

    def free(self, adapter: int) -> None:
        """After llama.cpp has freed it."""
        if memory := self._memory.pop(adapter, None):
            self._release(memory)

    def clear(self) -> None:
        """After llama.cpp has freed the model."""
        for adapter in list(self._memory):
            self.free(adapter)

    def _interleave(self, adapter: int) -> bool:
        found: dict[str, int] = {}
        before = self._computed(adapter, found)
        plain = [tensor for tensor in map(GGMLTensor.from_address, found.values()) if tensor.ne[1] % _ROWS == 0]
        memory = self._allocate([(tensor.ne[0], tensor.ne[1]) for tensor in plain]) if before and plain else None
        if memory is None or not all(tensor.extra for tensor in memory.tensors):
            return False
        kept = [(tensor.buffer, tensor.data, tensor.extra) for tensor in plain]
        for old, new in zip(plain, memory.tensors, strict=True):
            self._ggml.ggml_backend_tensor_set(ctypes.addressof(new), old.data, 0, old.nb[1] * old.ne[1])
            old.buffer, old.data, old.extra = new.buffer, new.data, new.extra
        after = self._computed(adapter, {})
        if after and max(abs(a - b) for a, b in zip(before, after, strict=True)) <= _CLOSE * (
            max(before) - min(before)
        ):
            self._memory[adapter] = memory
            return True
        for old, (buffer, data, extra) in zip(plain, kept, strict=True):
            old.buffer, old.data, old.extra = buffer, data, extra
        self._release(memory)
        return False

    def _computed(self, adapter: int, found: dict[str, int]) -> array[float]:
        """The logits of a token under the adapter, none where it cannot be computed; its B of four bits are `found`."""

        def watch(address: int, ask: bool, _: object) -> bool:
            node = GGMLTensor.from_address(address)
            if node.op == self._products:
                weight = node.src[0].contents
                if weight.type == Q4_0 and weight.name.endswith(b".lora_b"):
                    found[weight.name.decode()] = ctypes.addressof(weight)
            return not ask

        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = BLOCK
        params.n_threads = params.n_threads_batch = self._threads
        callback = _Watch(watch)
        params.cb_eval = ctypes.cast(callback, c_void_p)
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            return array("f")
        try:
            set_adapters(self._lib, context, [adapter], [1.0])
            ids = (ctypes.c_int32 * 1)(0)
            if self._lib.llama_decode(context, Batch(1, ctypes.addressof(ids), None, None, None, None, None)):
                return array("f")
            count = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
            return array("f", (ctypes.c_float * count).from_address(self._lib.llama_get_logits_ith(context, -1)))
        finally:
            self._lib.llama_free(context)

    def _allocate(self, shapes: list[tuple[int, int]]) -> _Memory | None:
        """Tensors of four bits; None: there is no memory."""
        room = (len(shapes) + 1) * self._ggml.ggml_tensor_overhead()
        context = self._ggml.ggml_init(_Context(room, None, True))
        if not context:
            return None
        addresses = [self._ggml.ggml_new_tensor_2d(context, Q4_0, *shape) for shape in shapes]
        buffer = self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, self._kind)
        if not buffer:
            self._ggml.ggml_free(context)
            return None
        self._ggml.ggml_backend_buffer_set_usage(buffer, _WEIGHTS)
        return _Memory(context, buffer, tuple(map(GGMLTensor.from_address, addresses)))

    def _release(self, memory: _Memory) -> None:
        self._ggml.ggml_backend_buffer_free(memory.buffer)
        self._ggml.ggml_free(memory.context)


def _buffer_type(ggml: Any) -> int | None:
    """ggml's type of buffers with interleaved weights."""
    device = ggml.ggml_backend_dev_by_type(_CPU)
    registry = ggml.ggml_backend_dev_backend_reg(device) if device else None
    address = registry and ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    kinds = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device) if address else None
    at = 0
    while kinds and kinds[at]:
        if ggml.ggml_backend_buft_name(kinds[at]) == _BUFFER:
            return int(kinds[at])
        at += 1
    return None
