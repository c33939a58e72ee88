"""llama.cpp's own speed without its tool: `llama_decode` in a loop, as llama-bench does it."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

_BATCH, _CONTEXT, _REPEATS = 512, 1024, 3


class BareLoop:
    """One model by llama-cpp-python's low-level module, with the library's own defaults but for the threads.

    `adapter`: a GGUF file, as it is, switched on at weight 1.
    """

    def __init__(self, model: Path, threads: int, adapter: Path | None = None) -> None:
        from zephyra_cli.backends.self_test import extra_buffers_allowed
        from zephyra_converters.loaded import llama

        self.lib: Any = llama()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = extra_buffers_allowed(True)
        self.model = self.lib.llama_model_load_from_file(os.fsencode(model), params)
        self.vocab_size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        settings = self.lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = _CONTEXT, _BATCH, _BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self.context = self.lib.llama_init_from_model(self.model, settings)
        if adapter:
            loaded = self.lib.llama_adapter_lora_init(self.model, os.fsencode(adapter))
            one, weight = (type(loaded) * 1)(loaded), (ctypes.c_float * 1)(1.0)
            if not loaded or self.lib.llama_set_adapters_lora(self.context, one, 1, weight):
                raise SystemExit(f"llama.cpp cannot switch on {adapter}")
        self.random = Random(0)

    def measure(self, sizes: Sequence[int], decode: int) -> dict[str, float]:
        """Tokens a second: `pp256` … from an empty cache, `tg128` one by one from an empty cache."""
        rates = {f"pp{size}": self._rate([_BATCH] * (size // _BATCH) + [size % _BATCH]) for size in sizes}
        return rates | {f"tg{decode}": self._rate([1] * decode)}

    def _rate(self, batches: Sequence[int]) -> float:
        return statistics.median(self._once(batches) for _ in range(_REPEATS))

    def _once(self, batches: Sequence[int]) -> float:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)
        start = time.perf_counter()
        for count in filter(None, batches):
            ids = (ctypes.c_int32 * count)(*(self.random.randrange(self.vocab_size) for _ in range(count)))
            if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(ids, count)):
                raise SystemExit("llama.cpp cannot decode")
        self.lib.llama_synchronize(self.context)
        return sum(batches) / (time.perf_counter() - start)
