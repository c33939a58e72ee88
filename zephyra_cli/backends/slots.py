"""Continuous batching in llama.cpp: several sequences in one context, a new one in its place as soon as one has ended.

Adapters belong to a context, not to a sequence, so jobs are taken mix by mix. Every slot has a cache of its own: in one
for all, each token would look at what all of them hold, masked or not, and sum in another order than alone.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from zephyra_cli.backends.abort import ABORTED, abortable, go_on, handle_signals
from zephyra_cli.backends.kv import LONG, ContextSettings, context_params, set_adapters
from zephyra_cli.backends.library import Batch, take_errors
from zephyra_cli.backends.protocol import Event, Job
from zephyra_cli.backends.sampler import Sampler
from zephyra_cli.devices import available_memory
from zephyra_cli.interruption import deferred
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Token
from zephyra_fusion.values import dataclass

MOST_SLOTS = 16
MOST_CELLS = 64 * 1024  # tokens that all slots of a context may hold together

Loaded = tuple[Sequence[int], Sequence[float]]  # adapters of llama.cpp and their scales


class SlotContext:
    """One llama_context under one mix with `count` sequences of `size` tokens each."""

    def __init__(
        self, lib: Any, model: int, settings: ContextSettings, adapters: Loaded, size: int, count: int
    ) -> None:
        self._lib = lib
        params = context_params(lib, settings, size)
        need, free = settings.cache_bytes(params.n_ctx) * count, available_memory()
        if free is not None and need > free:  # llama.cpp would be killed when it clears the cache
            raise ZephyraError(
                f"{count} times {size} tokens need {need / 2**20:.0f} MB for their keys and values, "
                f"{free / 2**20:.0f} MB of memory are free",
                hint="a smaller --context or --max-tokens needs less",
            )
        params.n_ctx *= count
        params.n_seq_max = params.n_outputs_max = count
        params.n_outputs_max_per_seq = 1
        params.n_batch = params.n_ubatch = max(params.n_batch, count)
        self.handle = lib.llama_init_from_model(model, params)
        if not self.handle:
            raise ZephyraError(
                f"llama.cpp cannot make a context of {count} times {size} tokens: {take_errors()}",
                hint="a smaller --context or --max-tokens needs less memory",
            )
        set_adapters(lib, self.handle, *adapters)
        self._memory, self.n_batch = lib.llama_get_memory(self.handle), int(params.n_batch)
        room = self.n_batch
        self._ids, self._positions = (ctypes.c_int32 * room)(), (ctypes.c_int32 * room)()
        self._ones, self._outputs = (ctypes.c_int32 * room)(*[1] * room), (ctypes.c_int8 * room)()
        self._numbers = (ctypes.c_int32 * count)(*range(count))
        first, size_of = ctypes.addressof(self._numbers), ctypes.sizeof(ctypes.c_int32)
        self._addresses = [first + size_of * slot for slot in range(count)]
        self._slots = (ctypes.c_void_p * room)()
        arrays = (self._positions, self._ones, self._slots, self._outputs)
        self._batch = Batch(0, ctypes.addressof(self._ids), None, *(ctypes.addressof(array) for array in arrays))

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """At most `n_batch` entries (slot, position, token, whether its logits are wanted).

        Ctrl-C ends the reading of prompts within an operation.
        """
        for row, (slot, position, token, wanted) in enumerate(entries):
            self._ids[row], self._positions[row], self._outputs[row] = token, position, wanted
            self._slots[row] = self._addresses[slot]
        self._batch.n_tokens = len(entries)
        prompts = len(entries) >= LONG and len(entries) > len(self._addresses)  # one token a slot is over soon
        with abortable(self._lib) if prompts else deferred():
            while (status := self._lib.llama_decode(self.handle, self._batch)) == ABORTED:
                handle_signals()  # raises KeyboardInterrupt, as a rule
                go_on()
                for slot, position, *_ in entries:  # what is stored of it would be there twice
                    self._lib.llama_memory_seq_rm(self._memory, slot, position, -1)
        if status:
            raise ZephyraError(
                f"llama.cpp cannot decode a batch of {len(entries)} tokens: status {status}, {take_errors()}"
            )

    def clear(self, slot: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def move(self, slot: int, to: int) -> None:
        """Into an empty one."""
        self._lib.llama_memory_seq_cp(self._memory, slot, to, -1, -1)
        self.clear(slot)

    def is_number(self, row: int) -> bool:
        """Whether the logits of a row are numbers."""
        address = self._lib.llama_get_logits_ith(self.handle, row)
        return bool(address) and not math.isnan(ctypes.c_float.from_address(address).value)

    def free(self) -> None:
        handle, self.handle = self.handle, None  # first: an interruption that waits is raised as `llama_free` ends
        if handle:
            self._lib.llama_free(handle)


@dataclass
class _Running:
    """A job in its slot: its sampler, the tokens in the cache, the next token to read, how many may still come."""

    index: int
    slot: int
    sampler: Sampler
    length: int
    left: int
    token: int = -1


class Slots:
    """Runs the jobs of one mix.

    open: makes the context for (size, count). sampler: makes a job's sampler. ends: whether a token ends an answer.
    limit: tokens of a sequence. most: sequences at once.
    """

    def __init__(
        self,
        open: Callable[[int, int], SlotContext],
        sampler: Callable[[Job], Sampler],
        ends: Callable[[int], bool],
        limit: int,
        most: int | None = None,
    ) -> None:
        self._open, self._sampler, self._ends, self._limit = open, sampler, ends, limit
        self._most = most or MOST_SLOTS

    def run(self, jobs: Sequence[tuple[int, Job]]) -> Generator[Event, bool | None, None]:
        """Every job's tokens as they come, by its number. Sending True ends that job's answer there."""
        size = max(min(self._limit, len(job.prompt) + job.params.max_tokens) for _, job in jobs)
        context = self._context(size, max(1, min(self._most, len(jobs), MOST_CELLS // size)))
        waiting, running = deque(jobs), dict[int, _Running]()
        try:
            while waiting or running:
                prompts = []  # each is read by itself: as fast, and in the sums of a single run
                while waiting and len(running) < self._count:
                    index, job = waiting.popleft()
                    slot = next(slot for slot in range(self._count) if slot not in running)
                    try:
                        sampler = self._sampler(job)
                    except ZephyraError as error:  # a schema of its own that cannot be used
                        yield index, error
                        continue
                    left = min(job.params.max_tokens, self._limit - len(job.prompt))
                    running[slot] = _Running(index, slot, sampler, len(job.prompt), left)
                    last = len(job.prompt) - 1
                    prompts.append([(slot, at, token, at == last) for at, token in enumerate(job.prompt)])
                for prompt in prompts:
                    for start in range(0, len(prompt), context.n_batch):
                        yield from self._advance(context, prompt[start : start + context.n_batch], running)
                self._close_ranks(context, running)
                ready = [running[slot] for slot in sorted(running)]
                for going in ready:
                    going.length += 1
                yield from self._advance(
                    context, [(job.slot, job.length - 1, job.token, True) for job in ready], running
                )
        finally:
            for left_over in running.values():
                left_over.sampler.close()
            context.free()

    def _close_ranks(self, context: SlotContext, running: dict[int, _Running]) -> None:
        """The last ones move into the gaps: llama.cpp computes neighbours together, and others one after another."""
        while running and (last := max(running)) >= len(running):
            gap = next(slot for slot in range(last) if slot not in running)
            context.move(last, gap)
            running[gap] = running.pop(last)
            running[gap].slot = gap

    def _context(self, size: int, count: int) -> SlotContext:
        """With as many slots as there is memory for."""
        while True:
            self._count = count
            try:
                return self._open(size, count)
            except ZephyraError:
                if count == 1:
                    raise
            count //= 2

    def _advance(
        self, context: SlotContext, entries: Sequence[tuple[int, int, int, bool]], running: dict[int, _Running]
    ) -> Generator[Event, bool | None, None]:
        if not entries:
            return
        context.decode(entries)
        for row, (slot, _, _, wanted) in enumerate(entries):
            if not wanted:
                continue
            job = running[slot]
            try:
                if not context.is_number(row):
                    raise ZephyraError("the model computes no numbers (NaN)", hint="its weights are damaged")
                token = job.sampler.sample(context, row)
            except ZephyraError as error:
                yield job.index, error
                over = True
            else:
                job.token, job.left = token, job.left - 1
                reason = "stop" if self._ends(token) else "length" if job.left == 0 else None
                over = bool((yield job.index, Token(token, reason))) or reason is not None
            if over:
                job.sampler.close()
                context.clear(slot)
                del running[slot]
