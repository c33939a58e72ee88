"""A sequence classifier in llama.cpp: the router "tiny ada" at run time, fed with the base model's token ids."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from zephyra_cli.backends.library import Batch, library, take_errors
from zephyra_cli.backends.self_test import extra_buffers_allowed
from zephyra_cli.devices import usable_cores
from zephyra_cli.interruption import deferred
from zephyra_converters.gguf_check import check_classifier
from zephyra_fusion.errors import ZephyraError

_RANK_POOLING = 4


class LlamaClassifier:
    """A `modern-bert` GGUF with RANK pooling and no vocabulary of its own.

    max_tokens: longer texts are cut to their first and last half of it, for an encoder reads all at once.
    ZephyraError: the file is unsafe or damaged, or the library is missing.
    """

    def __init__(self, path: Path, *, threads: int | None = None, max_tokens: int = 256) -> None:
        metadata = check_classifier(path).metadata
        self.labels: list[str] = [
            label.decode("utf-8", "replace") for label in metadata["modern-bert.classifier.output_labels"]
        ]
        self.max_tokens = min(max_tokens, metadata["modern-bert.context_length"])
        if self.max_tokens < 1:
            raise ZephyraError(f"max_tokens is {max_tokens}, must be at least 1")
        self.vocab_size: int = metadata["modern-bert.vocab_size"]
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = extra_buffers_allowed(False)  # too small for repacking to pay
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ZephyraError(f"llama.cpp cannot load {path}: {take_errors()}")
        settings = self._lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self.max_tokens
        settings.n_threads = settings.n_threads_batch = min(threads or 4, usable_cores())
        settings.embeddings = True
        settings.pooling_type = _RANK_POOLING
        self._context = self._lib.llama_init_from_model(self._model, settings)
        if not self._context:
            reason = take_errors()
            self.close()
            raise ZephyraError(f"llama.cpp cannot make a context for {path}: {reason}")

    def logits(self, token_ids: Sequence[int]) -> list[float]:
        """One logit a label. ZephyraError: no tokens, or one outside the vocabulary."""
        if not self._model:
            raise RuntimeError("the classifier is closed")
        if not token_ids:
            raise ZephyraError("nothing to classify: the text is empty")
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            raise ZephyraError(f"a token id is outside the router's vocabulary of {self.vocab_size}")
        read = list(token_ids)
        if len(read) > self.max_tokens:
            tail = self.max_tokens // 2
            read = read[: self.max_tokens - tail] + read[len(read) - tail :]
        ids = (ctypes.c_int32 * len(read))(*read)
        batch = Batch(len(read), ctypes.addressof(ids), None, None, None, None, None)
        with deferred():  # it logs, as the functions do that `library` names
            status = self._lib.llama_decode(self._context, batch)
        address = None if status else self._lib.llama_get_embeddings_seq(self._context, 0)
        if not address:
            raise ZephyraError(f"llama.cpp cannot classify {len(read)} tokens: status {status}, {take_errors()}")
        return list((ctypes.c_float * len(self.labels)).from_address(address))

    def close(self) -> None:
        """Give all memory back. Allowed twice."""
        if self._model:
            if self._context:
                self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._model = None
