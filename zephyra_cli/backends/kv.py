"""The cache of keys and values, and the one rule it obeys: valid for (tokens, adapter weights), and for nothing else.

llama.cpp keeps a context's cache when its adapters change and then computes fluent, wrong text. So a context gets its
mix of adapters when it is made and never another; coming back to a mix finds its context, and reads only what is new.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from zephyra_cli.backends.abort import ABORTED, CALLBACK, DATA, abortable, go_on, handle_signals
from zephyra_cli.backends.kv_size import KV_TYPES, CacheSizes
from zephyra_cli.backends.library import Batch, ContextParams, take_errors
from zephyra_cli.backends.mix import Mix
from zephyra_cli.devices import available_memory
from zephyra_cli.interruption import deferred
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.values import dataclass

LONG = 16  # tokens from which on what is decoded can be stopped by Ctrl-C: eight microseconds a time
_PADDING = 256  # llama.cpp rounds the size of a context up to it


@dataclass(frozen=True, kw_only=True)
class ContextSettings:
    """What all contexts of one backend share. `window`: tokens a sliding-window layer sees, 0 where there is none."""

    n_batch: int
    threads: int
    flash_attention: bool
    kv_type: str
    window: int
    sizes: CacheSizes
    guesses: int = 0
    """Tokens that a draft may add to a batch of one."""

    def cache_bytes(self, size: int) -> int:
        """Of the keys and values of `size` tokens."""
        inside = min(size, self.window + self.n_batch)
        return self.sizes.full * size + self.sizes.windowed * inside


def context_params(lib: Any, settings: ContextSettings, size: int) -> ContextParams:
    """llama.cpp's parameters for one sequence of at least `size` tokens."""
    params: ContextParams = lib.llama_context_default_params()
    params.n_ctx = -(-size // _PADDING) * _PADDING
    params.n_batch = params.n_ubatch = min(settings.n_batch, params.n_ctx)
    params.n_threads = params.n_threads_batch = settings.threads
    params.flash_attn_type = int(settings.flash_attention)
    params.type_k = KV_TYPES[settings.kv_type]
    # Quantized values would need flash attention and halve the speed of reading; keys alone save half as much.
    params.type_v = KV_TYPES["f16" if settings.kv_type == "q8_0" else settings.kv_type]
    params.pooling_type = 0
    params.swa_full = False
    params.abort_callback, params.abort_callback_data = CALLBACK, DATA
    return params


def set_adapters(lib: Any, context: int, adapters: Sequence[int], weights: Sequence[float]) -> None:
    """Give a context its mix, once, before anything is decoded."""
    count = len(adapters)
    handles, scales = (ctypes.c_void_p * count)(*adapters), (ctypes.c_float * count)(*weights)
    if count and lib.llama_set_adapters_lora(context, handles, count, scales):
        raise ZephyraError(f"llama.cpp cannot switch its adapters: {take_errors()}")


class Context:
    """One llama_context under one mix. Positions 0 … len(tokens)-1 of its cache hold exactly `tokens`.

    What lies beyond (a batch that was interrupted after llama.cpp had stored it) is removed by the next `rewind`;
    nothing is decoded without one. So an interruption at any point leaves nothing wrong behind.
    """

    def __init__(self, lib: Any, model: int, settings: ContextSettings, size: int, all_logits: bool = False) -> None:
        self._lib, self._settings = lib, settings
        self.tokens: list[int] = []
        self.proven = False
        """Whether its logits were seen to be numbers."""
        params = context_params(lib, settings, size)
        self.size = int(params.n_ctx)
        self.most_guesses = min(settings.guesses, params.n_batch - 1)
        params.n_outputs_max = params.n_batch if all_logits else 1 + self.most_guesses
        params.n_outputs_max_per_seq = params.n_outputs_max
        self.handle = lib.llama_init_from_model(model, params)
        if not self.handle:
            raise ZephyraError(
                f"llama.cpp cannot make a context of {self.size} tokens: {take_errors()}",
                hint="a smaller --context needs less memory",
            )
        self._memory = lib.llama_get_memory(self.handle)
        self.n_batch = int(params.n_batch)
        self._ids = (ctypes.c_int32 * self.n_batch)()
        self._every_row = (ctypes.c_int8 * self.n_batch)(*[1] * self.n_batch)
        self._last_row = None if not all_logits else ctypes.addressof(self._every_row)  # None: of the last token alone
        self._batch = Batch(0, ctypes.addressof(self._ids), None, None, None, None, self._last_row)

    def set_adapters(self, adapters: Sequence[int], weights: Sequence[float]) -> None:
        """Once, before anything is decoded."""
        set_adapters(self._lib, self.handle, adapters, weights)

    def rewind(self, prompt: Sequence[int]) -> int:
        """Keep what `tokens` and `prompt` have in common, but never all of `prompt`; how many tokens that is.

        The last token is always decoded anew, because its logits are wanted.
        """
        keep = min(common_prefix(self.tokens, prompt), len(prompt) - 1)
        window = self._settings.window
        if window and keep < len(self.tokens):
            # A window layer has forgotten what the rewound position would look back at: llama.cpp does not notice.
            first = self._lib.llama_memory_seq_pos_min(self._memory, 0)
            if first > max(0, keep - window):
                keep = 0
        del self.tokens[keep:]
        if not self._lib.llama_memory_seq_rm(self._memory, 0, keep, -1):
            self.tokens.clear()
            self._lib.llama_memory_clear(self._memory, False)
            keep = 0
        return keep

    def read(self, prompt: Sequence[int]) -> None:
        """Append what of `prompt` is not there yet; `rewind` comes first. Ctrl-C ends it within an operation."""
        missing = len(prompt) - len(self.tokens)
        with abortable(self._lib) if missing >= LONG else deferred():
            for at in range(len(self.tokens), len(prompt), self.n_batch):
                self.decode(prompt[at : at + self.n_batch])

    def decode(self, tokens: Sequence[int], guesses: Sequence[int] = ()) -> None:
        """Append at most `n_batch` tokens.

        `guesses` are decoded behind one token, and logits given after each; `keep` makes them tokens, in their order.
        """
        count = len(tokens)
        if count == 1 and not guesses:
            self._ids[0] = tokens[0]  # the slice of the general case costs a microsecond, which every answer pays
        else:
            batch: list[Any] = [*tokens, *guesses]
            count = len(batch)
            self._ids[:count] = batch
            if guesses:
                self._batch.logits = ctypes.addressof(self._every_row)
        self._batch.n_tokens = count
        status = self._lib.llama_decode(self.handle, self._batch)
        if guesses:
            self._batch.logits = self._last_row
        if status:
            self._failed(status, tokens, guesses)
        self.tokens.extend(tokens)

    def _failed(self, status: int, tokens: Sequence[int], guesses: Sequence[int]) -> None:
        """A batch was not decoded, or not to its end: if a signal was the reason and its handler goes on, once more."""
        if status != ABORTED:
            raise ZephyraError(
                f"llama.cpp cannot decode {len(tokens) + len(guesses)} tokens after {len(self.tokens)} in a context of "
                f"{self.size}: status {status}, {take_errors()}"
            )
        handle_signals()  # raises KeyboardInterrupt, as a rule
        go_on()
        kept = self.tokens.copy()
        self.drop_guesses()
        self.decode(tokens, guesses)
        self.tokens = kept

    def keep(self, token: int) -> None:
        """The next guess was right: it is a token now."""
        self.tokens.append(token)

    def drop_guesses(self) -> None:
        """What was not kept leaves the cache, before anything else is decoded."""
        if not self._lib.llama_memory_seq_rm(self._memory, 0, len(self.tokens), -1):
            raise RuntimeError("llama.cpp cannot take guesses back in this kind of cache")

    def logits(self, index: int, vocab_size: int) -> Any:
        """Of the last decoded batch: a ctypes array of `vocab_size` floats, valid until the next `decode`."""
        address = self._lib.llama_get_logits_ith(self.handle, index)
        if not address:
            raise ZephyraError(f"llama.cpp has no logits for row {index}: {take_errors()}")
        return (ctypes.c_float * vocab_size).from_address(address)

    def state(self) -> Any:
        """The keys and values of `tokens` as bytes (a ctypes array), for `restore`."""
        size = self._lib.llama_state_seq_get_size(self.handle, 0)
        state = (ctypes.c_uint8 * size)()
        self._lib.llama_state_seq_get_data(self.handle, state, size, 0)
        return state

    def restore(self, tokens: Sequence[int], state: Any) -> bool:
        """Hold `tokens` as another context of the same mix did; False where llama.cpp refuses, then nothing is held."""
        self.tokens = []
        self._lib.llama_memory_clear(self._memory, False)
        size = len(state)
        source = state if isinstance(state, ctypes.Array) else (ctypes.c_uint8 * size).from_buffer_copy(state)
        if not self._lib.llama_state_seq_set_data(self.handle, source, size, 0):
            self._lib.llama_memory_clear(self._memory, False)
            return False
        self.tokens = list(tokens)
        return True

    def free(self) -> None:
        handle, self.handle = self.handle, None  # first: an interruption that waits is raised as `llama_free` ends
        if handle:
            self._lib.llama_free(handle)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with. Whole slices are compared: conversations are long, and mostly the same."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low], a[:high] != b[:high]
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class ContextPool:
    """The contexts of the mixes used last; each as large as it has needed to be so far, at most `limit` tokens.

    There are at most `live` of them, and their caches take at most `memory` bytes; the one in use always stays.
    """

    def __init__(self, lib: Any, model: int, settings: ContextSettings, *, limit: int, live: int, memory: int) -> None:
        self._lib, self._model, self.settings = lib, model, settings
        self._limit, self._live, self._memory = limit, live, memory
        self._contexts: OrderedDict[Mix, Context] = OrderedDict()

    @property
    def mixes(self) -> Collection[Mix]:
        """Those that have a context."""
        return self._contexts.keys()

    def context(self, mix: Mix, adapters: Callable[[], tuple[Sequence[int], Sequence[float]]], need: int) -> Context:
        """The context of `mix` with room for `need` tokens (at most the limit); `adapters` loads what it runs under."""
        found = self._contexts.get(mix)
        need = min(need, self._limit)
        if found is None or found.size < need:
            size = need if found is None else min(self._limit, max(need, 2 * found.size))
            self._make_room(mix, size)
            made = Context(self._lib, self._model, self.settings, size)
            made.set_adapters(*adapters())
            if found is not None and not self.settings.window and found.tokens:
                made.restore(found.tokens, found.state())
            self._contexts[mix], outgrown, found = made, found, made
            if outgrown is not None:
                outgrown.free()
        self._contexts.move_to_end(mix)
        while len(self._contexts) > self._live:
            self._contexts.popitem(last=False)[1].free()
        return found

    @property
    def bytes(self) -> int:
        """Of all keys and values, used or not yet."""
        return sum(self.settings.cache_bytes(context.size) for context in self._contexts.values())

    def cached(self, mix: Mix, prompt: Sequence[int]) -> int:
        """How many tokens of `prompt` the context of `mix` holds."""
        found = self._contexts.get(mix)
        return 0 if found is None else min(common_prefix(found.tokens, prompt), len(prompt) - 1)

    def _make_room(self, mix: Mix, size: int) -> None:
        """For a context of `size` tokens. ZephyraError: it does not fit the memory, even alone."""
        need = self.settings.cache_bytes(size)
        while True:
            free = available_memory()
            others = [other for other in self._contexts if other != mix]
            if self.bytes + need <= self._memory and (free is None or need <= free):
                return
            if not others:
                break
            self._contexts.pop(others[0]).free()
        if free is not None and need > free:  # llama.cpp would be killed when it clears the cache
            raise ZephyraError(
                f"a context of {size} tokens needs {need / 2**20:.0f} MB for its keys and values, "
                f"{free / 2**20:.0f} MB of memory are free",
                hint="a smaller --context (or --max-tokens), or --kv-type q8_0, needs less",
            )

    def close(self) -> None:
        while self._contexts:
            self._contexts.popitem()[1].free()
