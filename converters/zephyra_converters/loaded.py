"""A GGUF file loaded by llama.cpp for proof, not for speed: exact attention, no repacking, one thread pool's worth.

The low-level API of llama-cpp-python. Every file is looked at by `gguf_check` first, because llama.cpp ends the whole
process on many faulty ones.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zephyra_converters.gguf_check import check_gguf
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

_F32, _RANK_POOLING, _ATTENTION_OFF = 0, 4, 0  # ggml type, llama_pooling_type, llama_flash_attn_type
_SMALL = 2**26  # bytes of a file
_listeners: list[Callable[[int, bytes], None]] = []
_keep_alive: list[Any] = []  # C holds on to the log callback for the life of the process


def llama() -> Any:
    """llama-cpp-python's low-level module, silenced and initialised once."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        from llama_cpp import llama_cpp
    except (ImportError, RuntimeError, OSError) as error:
        raise ZephyraError(
            f"llama-cpp-python cannot be loaded: {error}", hint="pip install llama-cpp-python==0.3.36, or --no-verify"
        ) from None
    if not _keep_alive:
        _keep_alive.append(llama_cpp.llama_log_callback(_heard))
        llama_cpp.llama_log_set(_keep_alive[0], ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


@contextmanager
def listening(listener: Callable[[int, bytes], None]) -> Iterator[None]:
    """llama.cpp's log goes to `listener(level, text)`, in pieces; then to whom it went before, an engine perhaps."""
    lib = llama()
    before, data = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    lib.llama_log_set(_keep_alive[0], ctypes.c_void_p(0))
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        lib.llama_log_set(before, data)


def _heard(level: int, text: bytes, data: Any) -> None:
    for listener in _listeners:
        listener(level, text)


class LoadedGGUF:
    """A model, its context and its adapters; a context manager.

    `length` is the longest text in tokens, read `batch` at a time; `watch` is asked at every node of the graph. Flash
    attention is off and the cache F32: that is what exactness needs.
    """

    def __init__(
        self,
        path: Path,
        length: int,
        *,
        classifier: bool = False,
        batch: int | None = None,
        watch: Callable[[int, bool, Any], bool] | None = None,
    ) -> None:
        self._header = check_gguf(path)
        self._lib, self._path = llama(), path
        self._model: Any = None
        self._context: Any = None
        params = self._lib.llama_model_default_params()
        params.use_extra_bufts = False  # repacked and AMX kernels round otherwise, and crash on some machines
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ZephyraError(f"llama.cpp refuses {path}", hint="this is a fault of the converter: please report it")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._watch = self._lib.ggml_backend_sched_eval_callback(watch) if watch else None
        self._length, self._batch = length, batch or length
        self._context = self._new_context(classifier)
        self._adapters: dict[str, Any] = {}

    def _new_context(self, classifier: bool) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self._length, self._batch, self._batch
        if self._watch is not None:
            params.cb_eval = self._watch
        params.n_threads = params.n_threads_batch = _threads(self._path)
        params.type_k = params.type_v = _F32
        params.flash_attn_type = _ATTENTION_OFF
        params.swa_full = False
        if classifier:
            params.embeddings, params.pooling_type = True, _RANK_POOLING
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise ZephyraError(f"llama.cpp cannot make a context of {self._length} tokens for {self._path}")
        return context

    @property
    def first_token(self) -> int | None:
        """The token that the model wants before every text."""
        metadata = self._header.metadata
        return metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token") else None

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of a text; `special`: control tokens in it count as such."""
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, special)
        if count < 0:
            raise ZephyraError(f"llama.cpp cannot tokenize {text[:40]!r}")
        return list(ids[:count])

    def add_adapter(self, name: str, path: Path) -> None:
        check_gguf(path, base=self._header)
        adapter = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise ZephyraError(f"llama.cpp refuses the adapter {path} for the base {self._path}")
        self._adapters[name] = adapter

    def set_adapters(self, weights: Mapping[str, float]) -> None:
        """Switch on exactly these; {} is the bare base."""
        chosen = [self._adapters[name] for name in weights]
        handles = (self._lib.llama_adapter_lora_p_ctypes * max(len(chosen), 1))(*chosen)
        scales = (ctypes.c_float * max(len(chosen), 1))(*weights.values())
        if self._lib.llama_set_adapters_lora(self._context, handles, len(chosen), scales) != 0:
            raise ZephyraError("llama.cpp cannot switch the adapters")

    def read(self, ids: Sequence[int]) -> None:
        """Compute one text from an empty cache, for who watches."""
        for at in range(0, len(ids), self._batch):
            self._decode(ids[at : at + self._batch], at)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Next-token logits `[len(ids), vocab_size]` of one text, from an empty cache."""
        import numpy as np

        self._decode(ids)
        raw = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(raw, (len(ids), self.vocab_size)).copy()

    def class_logits(self, ids: Sequence[int], labels: int) -> np.ndarray:
        """A classifier's logits `[labels]` of one text."""
        import numpy as np

        self._decode(ids)
        raw = self._lib.llama_get_embeddings_seq(self._context, 0)
        return np.ctypeslib.as_array(raw, (labels,)).copy()

    def _decode(self, ids: Sequence[int], start: int = 0) -> None:
        if not 0 < len(ids) <= self._batch or not all(0 <= n < self.vocab_size for n in ids):
            raise ValueError(f"{len(ids)} ids, at most {self._batch}, each below {self.vocab_size}")
        memory = self._lib.llama_get_memory(self._context)
        if memory and start == 0:
            self._lib.llama_memory_clear(memory, True)
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for n, token in enumerate(ids):
                batch.token[n], batch.pos[n], batch.logits[n] = token, start + n, True
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, 0
            if self._lib.llama_decode(self._context, batch) != 0:
                raise ZephyraError(f"llama.cpp cannot compute {len(ids)} tokens with {self._path}")
        finally:
            self._lib.llama_batch_free(batch)

    def close(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> LoadedGGUF:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _threads(path: Path) -> int:
    """Cores that we may use; one for a small model, where waiting for each other takes longer than the work."""
    if path.stat().st_size < _SMALL:
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, 8))
