"""The llama.cpp backend: one base, several resident adapters, tokens in and tokens out at the library's own speed."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.backends.adapters import Adapters
from zephyra_cli.backends.kv import Context, ContextPool, ContextSettings
from zephyra_cli.backends.kv_size import KV_TYPES, cache_sizes
from zephyra_cli.backends.library import library
from zephyra_cli.backends.local import LocalBackend
from zephyra_cli.backends.mix import Mix, mix_of
from zephyra_cli.backends.protocol import Event, Job
from zephyra_cli.backends.sampler import Sampler
from zephyra_cli.backends.slots import Loaded, SlotContext, Slots
from zephyra_cli.backends.vocabulary import Vocabulary
from zephyra_cli.backends.weights import load_weights, parameters
from zephyra_cli.devices import usable_memory
from zephyra_converters.gguf_check import check_model
from zephyra_converters.gguf_shapes import DECODERS
from zephyra_fusion.draft import LONGEST_DRAFT, Draft, DraftLength
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import SamplingParams

if TYPE_CHECKING:
    from zephyra_cli.backends.prompt_cache import PromptCache
    from zephyra_cli.backends.prompt_folder import PromptFolder
    from zephyra_converters.gguf_header import GGUFHeader

_DEFAULT_THREADS = 8  # more gain nothing at the sizes that run on a CPU: memory bandwidth is the limit


class LlamaBackend(LocalBackend):
    """A GGUF model in llama.cpp on the CPU; see `protocol.Backend` for what the methods promise.

    context: tokens for prompt and answer; default: what the model was trained for, at most 4096.
    threads: never more than this process may keep busy (a third thread on two cores halves the speed). Where other
        programs keep the cores busy, 1 is far faster: the threads wait for each other at every matrix.
    n_batch: prompt tokens read between two chances for Ctrl-C.
    kv_type: f16 (default), f32 (exactness), q8_0 (keys only: a quarter less memory).
    flash_attention: default: on, except for heads of at most 64, which it slows down. With it, from 512 tokens of
        cache on, the last bits of the logits depend on the number of threads.
    extra_buffers: let llama.cpp repack the weights (AMX, interleaved rows): faster for long work, slower to start.
        Default: for large models in types that gain by it. Where the library's AMX build may be broken, `self_test`
        has the last word.
    live_mixes, kv_memory: adapter mixes whose cache is kept, and the bytes that they may take together (default: a
        quarter of the memory); the one in use is kept whatever it takes.
    prompt_folder: where prompts that were read are kept for later processes.
    sum_blends: compute a blend of several adapters as one of the sum of their ranks.
    loaded: the checked header of the file and its weights in the library, where they are there already.

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
        extra_buffers: bool | None = None,
        live_mixes: int = 8,
        kv_memory: int | None = None,
        prompt_folder: PromptFolder | None = None,
        sum_blends: bool = True,
        loaded: tuple[GGUFHeader, int] | None = None,
    ) -> None:
        self._header = header = check_model(path) if loaded is None else loaded[0]
        super().__init__(self._number("context_length"), context, threads, most_threads=_DEFAULT_THREADS)
        if n_batch < 1 or live_mixes < 1:  # llama.cpp aborts on an empty batch
            raise ValueError(f"n_batch is {n_batch}, live_mixes is {live_mixes}: both must be at least 1")
        if kv_type not in KV_TYPES:
            raise ZephyraError(f"unknown cache type '{kv_type}'", hint=did_you_mean(kv_type, KV_TYPES))
        self.vocab_size = len(header.metadata["tokenizer.ggml.tokens"])
        heads = self._number("attention.head_count")
        head = self._number("attention.key_length", self._number("embedding_length") // heads)
        self._lib = library()
        self._model: Any = load_weights(self._lib, header, extra_buffers) if loaded is None else loaded[1]
        self._vocabulary = Vocabulary(self._lib, self._model, self.vocab_size)
        self._settings = ContextSettings(
            n_batch=n_batch,
            threads=self.threads,
            flash_attention=head > 64 if flash_attention is None else flash_attention,
            kv_type=kv_type,
            # Other architectures may carry the key (Qwen2 does); llama.cpp then reads it and has no windows.
            window=self._number("attention.sliding_window") if DECODERS[header.architecture].window else 0,
            sizes=cache_sizes(header, kv_type),
        )
        self._pool = ContextPool(
            self._lib,
            self._model,
            self._settings,
            limit=self.context_length,
            live=live_mixes,
            memory=kv_memory or usable_memory() // 4,
        )
        self._adapters = Adapters(self._lib, self._model, header, self.threads, sum_blends=sum_blends)
        self._prompts: PromptCache | None = None
        if prompt_folder is not None:
            from zephyra_cli.backends.prompt_cache import PromptCache

            self._prompts = PromptCache(prompt_folder, self._settings, path, self._adapters)
        self._mix: Mix = ()
        self._batches: dict[Generator[Event, bool | None, None], Mix] = {}
        """Those of `generate_many` that are under way."""

    def _number(self, key: str, default: int = 0) -> int:
        value = self._header.metadata.get(f"{self._header.architecture}.{key}", default)
        return int(value[0] if isinstance(value, list) else value)

    @property
    def stop_ids(self) -> frozenset[int]:
        return self._vocabulary.stop_ids

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._vocabulary.encode(text, special=special)

    def token_bytes(self, token_id: int) -> bytes:
        return self._vocabulary.token_bytes(token_id)

    def add_adapter(self, name: str, path: Path) -> None:
        self._vocabulary.check_open()
        self._adapters.add(name, path)

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        start = time.perf_counter()
        self._mix = self._adapters.mix(weights)
        return 1000 * (time.perf_counter() - start)

    def speculate(self, draft: Draft | None, length: DraftLength | None = None) -> None:
        super().speculate(draft, length)
        if draft is not None and not self._pool.settings.guesses:
            self._pool.close()  # a context has room for guesses from its beginning or never
            self._pool.settings = replace(self._settings, guesses=LONGEST_DRAFT)

    @property
    def vocabulary(self) -> list[bytes]:
        """The tokens as they are written in the file, by id."""
        return list(self._header.metadata["tokenizer.ggml.tokens"])

    @cached_property
    def parameters(self) -> int:
        """Weights of the base."""
        return parameters(self._header)

    def cached_tokens(self, prompt: Sequence[int], weights: Mapping[str, float]) -> int:
        return self._pool.cached(mix_of(weights), prompt)

    def _prepare(self, prompt: Sequence[int], params: SamplingParams) -> tuple[Context, Sampler]:
        constraint = self._constraint(params)
        context = self._context(min(self.context_length, len(prompt) + params.max_tokens))
        if self._prompts is not None:
            self._prompts.restore(context, self._mix, prompt)
        return context, Sampler(self._lib, self.vocab_size, params, prompt, constraint)

    def _prompt_read(self, context: Context) -> None:
        """NaN comes from damaged weights, in all logits as a rule: the first is looked at always, all of them once."""
        logits = context.logits(-1, self.vocab_size)
        if math.isnan(logits[0] if context.proven else sum(logits)):
            raise ZephyraError(f"{self._header.path} computes no numbers (NaN)", hint="its weights are damaged")
        context.proven = True

    def _answer_begun(self, context: Context, prompt: Sequence[int]) -> None:
        if self._prompts is not None:
            self._prompts.keep(context, self._mix, prompt)

    def _ends_answer(self, token_id: int) -> bool:
        return self._vocabulary.ends_answer(token_id)

    def generate_many(self, jobs: Sequence[Job], at_once: int | None = None) -> Generator[Event, bool | None, None]:
        """In contexts of their own: the caches of the conversations stay as they are."""
        groups: dict[Mix, list[tuple[int, Job]]] = {}
        for index, job in enumerate(jobs):
            try:
                self._check_prompt(job.prompt, room=1)
                mix = self._adapters.mix(job.weights)
            except ZephyraError as error:
                yield index, error
            else:
                groups.setdefault(mix, []).append((index, job))
        for mix, group in groups.items():
            loaded = self._loaded(mix)

            def open_context(size: int, count: int, adapters: Loaded = loaded) -> SlotContext:
                return SlotContext(self._lib, self._model, self._settings, adapters, size, count)

            slots = Slots(open_context, self._sampler, self._ends_answer, self.context_length, at_once)
            running = slots.run(group)
            self._batches[running] = mix
            try:
                yield from running
            finally:
                self._batches.pop(running, None)
            self._check_open()  # it may have been closed between two of the batch's tokens

    def _sampler(self, job: Job) -> Sampler:
        constraint = self._constraint(job.params)
        return Sampler(self._lib, self.vocab_size, job.params, job.prompt, constraint)

    def logits(self, prompt: Sequence[int]) -> list[array[float]]:
        """In a context of its own, so that the caches of the conversations stay as they are."""
        self._check_prompt(prompt, room=0)
        context = Context(self._lib, self._model, self._settings, len(prompt), all_logits=True)
        rows = []
        try:
            context.set_adapters(*self._loaded(self._mix))
            for at in range(0, len(prompt), context.n_batch):
                chunk = prompt[at : at + context.n_batch]
                context.decode(chunk)
                rows += [array("f", bytes(context.logits(i, self.vocab_size))) for i in range(len(chunk))]
        finally:
            context.free()
        return rows

    def forget(self) -> None:
        self._turn += 1
        self._pool.close()

    @property
    def cache_bytes(self) -> int:
        """That the keys and values of all mixes take now."""
        return self._pool.bytes

    def close(self) -> None:
        for running in list(self._batches):
            running.close()
        self.forget()
        self._vocabulary.close()
        if self._draft is not None:
            self._draft.close()
        if self._model:
            self._lib.llama_model_free(self._model)  # and its adapters with it
            self._model = None
        self._adapters.clear()

    def _context(self, need: int) -> Context:
        return self._pool.context(self._mix, lambda: self._loaded(self._mix), need)

    def _loaded(self, mix: Mix) -> Loaded:
        """What `mix` runs under; the sums that somebody runs under stay meanwhile."""
        return self._adapters.loaded(mix, {*self._pool.mixes, *self._batches.values()})

    def _check_open(self) -> None:
        self._vocabulary.check_open()
