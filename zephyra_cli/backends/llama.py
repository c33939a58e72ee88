"""The llama.cpp backend: one base, several resident adapters, tokens in and tokens out at the library's own speed."""

from __future__ import annotations

import ctypes
import math
import os
import time
from array import array
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from zephyra_cli.backends.kv import KV_TYPES, Context, ContextPool, ContextSettings, Mix
from zephyra_cli.backends.library import library, take_errors
from zephyra_cli.backends.protocol import GenerationUsage
from zephyra_cli.backends.sampler import Sampler
from zephyra_cli.backends.self_test import extra_buffers_allowed
from zephyra_cli.devices import usable_cores
from zephyra_converters.gguf_check import check_model
from zephyra_converters.gguf_check_lora import check_adapter
from zephyra_converters.gguf_shapes import DECODERS
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import SamplingParams, Token, check_weights

_DEFAULT_CONTEXT = 4096
_DEFAULT_THREADS = 8  # more gain nothing at the sizes that run on a CPU: memory bandwidth is the limit


class LlamaBackend:
    """A GGUF model in llama.cpp on the CPU; see `protocol.Backend` for what the methods promise.

    context: tokens for prompt and answer; default: what the model was trained for, at most 4096.
    threads: never more than this process may keep busy (a third thread on two cores halves the speed). Where other
        programs keep the cores busy, 1 is far faster: the threads wait for each other at every matrix.
    n_batch: prompt tokens read between two chances for Ctrl-C.
    kv_type: f16 (default), f32 (exactness), q8_0 (keys only: a quarter less memory).
    flash_attention: default: on, except for heads of at most 64, which it slows down. With it, from 512 tokens of
        cache on, the last bits of the logits depend on the number of threads.
    extra_buffers: let llama.cpp repack the weights (AMX, interleaved rows): faster for long work, slower to start.
        One-shot runs leave it off. Where the library's AMX build may be broken, `self_test` has the last word.
    live_mixes: adapter mixes whose cache is kept.

    ZephyraError: the file is unsafe or damaged, the library is missing, `context` is out of range.
    """

    name = "llama"
    device = "cpu"

    def __init__(
        self,
        path: Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        n_batch: int = 256,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        extra_buffers: bool = False,
        live_mixes: int = 4,
    ) -> None:
        self._header = header = check_model(path)
        trained = self._number("context_length")
        if context is not None and not 1 <= context <= trained:
            raise ZephyraError(f"the context is {context}, this model allows 1 to {trained} tokens")
        if threads is not None and threads < 1:
            raise ZephyraError(f"threads is {threads}, must be at least 1")
        if n_batch < 1 or live_mixes < 1:  # llama.cpp aborts on an empty batch
            raise ValueError(f"n_batch is {n_batch}, live_mixes is {live_mixes}: both must be at least 1")
        if kv_type not in KV_TYPES:
            raise ZephyraError(f"unknown cache type '{kv_type}'", hint=did_you_mean(kv_type, KV_TYPES))
        self.context_length = context or min(trained, _DEFAULT_CONTEXT)
        self.vocab_size = len(header.metadata["tokenizer.ggml.tokens"])
        self.usage = GenerationUsage()
        heads = self._number("attention.head_count")
        head = self._number("attention.key_length", self._number("embedding_length") // heads)
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = extra_buffers_allowed(extra_buffers)
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ZephyraError(f"llama.cpp cannot load {path}: {take_errors()}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.threads = min(threads or _DEFAULT_THREADS, usable_cores())
        self._settings = ContextSettings(
            n_batch=n_batch,
            threads=self.threads,
            flash_attention=head > 64 if flash_attention is None else flash_attention,
            kv_type=kv_type,
            # Other architectures may carry the key (Qwen2 does); llama.cpp then reads it and has no windows.
            window=self._number("attention.sliding_window") if DECODERS[header.architecture].window else 0,
        )
        self._pool = ContextPool(self._lib, self._model, self._settings, limit=self.context_length, live=live_mixes)
        self._adapters: dict[str, int] = {}
        self._mix: Mix = ()
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._turn = 0  # counts generations, so that an old generator cannot go on in a new one's cache

    def _number(self, key: str, default: int = 0) -> int:
        value = self._header.metadata.get(f"{self._header.architecture}.{key}", default)
        return int(value[0] if isinstance(value, list) else value)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        self._check_open()
        return frozenset(i for i in range(self.vocab_size) if self._lib.llama_vocab_is_eog(self._vocab, i))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        self._check_open()
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise ZephyraError(
                f"the text is no valid Unicode: character {error.start} is the lone surrogate {text[error.start]!r}",
                hint="input must be UTF-8",
            ) from None
        room = len(raw) + 8  # a token stands for at least one byte
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, special)
        if count < 0:
            raise ZephyraError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
        return ids[:count]

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id)
        if piece is None:
            self._check_open()
            self._check_ids((token_id,))
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                length = self._lib.llama_token_to_piece(self._vocab, token_id, buffer, size, 0, False)
                if length >= 0:
                    break
                size = -length
            self._pieces[token_id] = piece = buffer.raw[:length]
        return piece

    def _ends_answer(self, token_id: int) -> bool:
        """Remembered, as a call into the library takes longer than a look into a dict."""
        ends = self._ends.get(token_id)
        if ends is None:
            self._ends[token_id] = ends = bool(self._lib.llama_vocab_is_eog(self._vocab, token_id))
        return ends

    def add_adapter(self, name: str, path: Path) -> None:
        self._check_open()
        if name in self._adapters:
            raise ZephyraError(f"there is already an adapter '{name}'")
        check_adapter(path, self._header)
        adapter = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise ZephyraError(f"llama.cpp cannot load the adapter {path}: {take_errors()}")
        self._adapters[name] = adapter

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        start = time.perf_counter()
        checked = check_weights(weights)
        for name in weights:
            if name not in self._adapters:
                raise ZephyraError(f"unknown adapter '{name}'", hint=did_you_mean(name, self._adapters))
        self._mix = tuple(sorted(checked.items()))
        return 1000 * (time.perf_counter() - start)

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Generator[Token, None, None]:
        self._check_prompt(prompt, room=1)
        self._turn += 1
        turn, clock = self._turn, time.perf_counter
        start = clock()
        context = self._context(min(self.context_length, len(prompt) + params.max_tokens))
        cached, given = context.rewind(prompt), 0
        prefill_ms = first_ms = decode_ms = 0.0
        sampler = Sampler(self._lib, self.vocab_size, params, prompt)
        last = min(params.max_tokens, self.context_length - len(prompt))
        try:
            began = clock()
            for at in range(cached, len(prompt), context.n_batch):
                context.decode(prompt[at : at + context.n_batch])
            prefill_ms = 1000 * (clock() - began)
            if math.isnan(sum(context.logits(-1, self.vocab_size)[:])):
                raise ZephyraError(f"{self._header.path} computes no numbers (NaN)", hint="its weights are damaged")
            while True:
                token = sampler.sample(context.handle)
                given += 1
                if given == 1:
                    first_ms = 1000 * (clock() - start)
                else:
                    decode_ms += 1000 * (clock() - began)
                if self._ends_answer(token):
                    yield Token(token, "stop")
                    return
                if given == last:
                    yield Token(token, "length")
                    return
                yield Token(token)
                if turn != self._turn:
                    raise RuntimeError("this generation was overtaken by a newer one, or by close()")
                began = clock()
                context.decode((token,))
        finally:
            sampler.close()
            if turn == self._turn:
                self.usage = GenerationUsage(
                    prompt_tokens=len(prompt),
                    cached_tokens=cached,
                    completion_tokens=given,
                    prefill_ms=prefill_ms,
                    first_token_ms=first_ms,
                    decode_ms=decode_ms,
                )

    def logits(self, prompt: Sequence[int]) -> list[array[float]]:
        """In a context of its own, so that the caches of the conversations stay as they are."""
        self._check_prompt(prompt, room=0)
        context = Context(self._lib, self._model, self._settings, len(prompt), all_logits=True)
        rows = []
        try:
            context.set_adapters([self._adapters[name] for name, _ in self._mix], [weight for _, weight in self._mix])
            for at in range(0, len(prompt), context.n_batch):
                chunk = prompt[at : at + context.n_batch]
                context.decode(chunk)
                rows += [array("f", bytes(context.logits(i, self.vocab_size))) for i in range(len(chunk))]
        finally:
            context.free()
        return rows

    def close(self) -> None:
        self._turn += 1
        self._pieces.clear()
        self._pool.close()
        if self._model:
            self._lib.llama_model_free(self._model)  # and its adapters with it
            self._model = None

    def _check_open(self) -> None:
        """llama.cpp crashes when it is asked of a model that was freed."""
        if not self._model:
            raise RuntimeError("the backend is closed")

    def _context(self, need: int) -> Context:
        return self._pool.context(self._mix, [self._adapters[name] for name, _ in self._mix], need)

    def _check_prompt(self, prompt: Sequence[int], *, room: int) -> None:
        self._check_open()
        if not prompt:
            raise ZephyraError("the prompt is empty", hint="give at least one token")
        if len(prompt) + room > self.context_length:
            raise ZephyraError(
                f"the prompt has {len(prompt)} tokens, the context has {self.context_length}"
                + (" and must have room for an answer" if room else ""),
                hint="shorten the prompt, or raise --context where the model allows it",
            )
        self._check_ids(prompt)

    def _check_ids(self, ids: Sequence[int]) -> None:
        """llama.cpp crashes on ids outside the vocabulary."""
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.vocab_size:
            raise ZephyraError(f"token id {low if low < 0 else high} is outside the vocabulary of {self.vocab_size}")
