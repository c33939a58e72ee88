"""How fast a model is here: reading, decoding, switching specialists, routing; medians of repeats."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine

WARM = 16  # tokens before those that are decoded
MOST_TRIES = 64  # answers begun until enough tokens are decoded: a model may end each one early
TEXT = "Find all files in this folder that are larger than a megabyte and were changed last week. "


@dataclass(frozen=True)
class Figure:
    """What was measured so many times; `key` ends with its unit, `_ms` or `_per_second`."""

    key: str
    text: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class SpeedTest:
    """Measures an engine. No prompt is used twice, so that none is found in a cache unless that is what is measured.

    `sizes`: lengths of the prompts that are read, in tokens; those that the context cannot hold are left out.
    """

    engine: Engine
    sizes: Sequence[int]
    decode: int
    repeats: int
    progress: Callable[[int, int, str], None]
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self) -> list[Figure]:
        """ZephyraError: the model decodes nothing, or its context is too small."""
        engine, limit = self.engine, self.engine.backend.context_length
        sizes = [size for size in self.sizes if size < limit]
        if not sizes:
            raise ZephyraError(f"the context of {limit} tokens is shorter than every prompt to read")
        names = list(engine.pack.adapters)[:2]
        for name in names:
            engine.backend.add_adapter(name, engine.pack.path(engine.pack.adapters[name].file))
        one = {names[0]: 1.0} if names else {}
        work: list[tuple[str, Callable[[], dict[str, float]]]] = [
            *((f"reading {size} tokens", lambda size=size: self._read(size)) for size in sizes),
            ("decoding", lambda: {"decode_tokens_per_second": self._decode({})}),
        ]
        texts = {f"prefill_{size}_tokens_per_second": f"reading {size} tokens, tokens/s" for size in sizes}
        texts["decode_tokens_per_second"] = f"decoding {self.decode} tokens, base, tokens/s"
        if names:
            work.append(("decoding", lambda: {"decode_adapter_tokens_per_second": self._decode(one)}))
            texts["decode_adapter_tokens_per_second"] = f"decoding {self.decode} tokens, {names[0]}, tokens/s"
            work.append(("switching", lambda: self._switch(one, {names[1]: 1.0} if names[1:] else {}, sizes[0])))
            texts["switch_first_token_ms"] = f"to another specialist, {sizes[0]} tokens read anew, first token, ms"
            texts["return_first_token_ms"] = "and back to the one before, first token, ms"
        if engine.pack.router is not None:
            work.append(("routing", self._route))
            texts["router_ms"] = f"routing {engine.pack.router.max_tokens} tokens, ms"
        values: dict[str, list[float]] = {key: [] for key in texts}
        for turn in range(self.repeats + 1):
            for at, (name, measure) in enumerate(work):
                self.progress(turn * len(work) + at, (self.repeats + 1) * len(work), name)
                for key, value in measure().items():
                    if turn:  # the first one warms up
                        values[key].append(value)
        return [Figure(key, texts[key], values[key]) for key in texts]

    def _read(self, size: int) -> dict[str, float]:
        self.engine.backend.set_adapters({})
        self._generate(self._prompt(size), 1)
        return {f"prefill_{size}_tokens_per_second": self.engine.backend.usage.prefill_tokens_per_second}

    def _decode(self, weights: Mapping[str, float]) -> float:
        """Tokens a second by the wall clock, from the first of each answer to its last."""
        backend = self.engine.backend
        backend.set_adapters(weights)
        most = min(self.decode + 1, backend.context_length - WARM)
        tokens, seconds = 0, 0.0
        for _ in range(MOST_TRIES):
            times = list(self._times(self._prompt(WARM), most))
            tokens, seconds = tokens + len(times) - 1, seconds + times[-1] - times[0]
            if tokens >= most - 1:
                return tokens / seconds
        raise ZephyraError(f"the model ends every answer at once: {tokens} tokens in {MOST_TRIES} answers")

    def _switch(self, one: Mapping[str, float], other: Mapping[str, float], size: int) -> dict[str, float]:
        """First tokens after a switch to a mix that has not read the prompt, and back to the one that has."""
        backend, prompt = self.engine.backend, self._prompt(size)
        backend.set_adapters(one)
        self._generate(prompt, 1)
        found = {}
        for key, weights in (("switch_first_token_ms", other), ("return_first_token_ms", one)):
            switch_ms = backend.set_adapters(weights)
            self._generate(prompt, 1)
            found[key] = switch_ms + backend.usage.first_token_ms
        return found

    def _route(self) -> dict[str, float]:
        assert self.engine.pack.router is not None
        words = TEXT * (1 + self.engine.pack.router.max_tokens // 8)
        return {"router_ms": self.engine.route(words).router_ms}

    def _prompt(self, size: int) -> list[int]:
        backend = self.engine.backend
        return [self._random.randrange(backend.vocab_size) for _ in range(size)]

    def _generate(self, prompt: Sequence[int], count: int) -> None:
        list(self._times(prompt, count))

    def _times(self, prompt: Sequence[int], count: int) -> Iterator[float]:
        """When each token came."""
        for _ in self.engine.backend.generate(prompt, SamplingParams(max_tokens=count, temperature=0.0)):
            yield time.perf_counter()
