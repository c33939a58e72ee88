"""The PyTorch backend: packs' GGUF files and checkpoint folders on CUDA, MPS, or the CPU on request."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from zephyra_cli.backends.fusion_context import FusionContext
from zephyra_cli.backends.fusion_model import (
    choose_device,
    load_adapter,
    load_model,
    load_tokenizer,
    read_checkpoint,
    require_torch,
)
from zephyra_cli.backends.local import LocalBackend
from zephyra_cli.backends.mix import Mix, mix_of, resident_mix
from zephyra_cli.backends.protocol import Event, Job
from zephyra_cli.backends.token_choice import TokenChoice
from zephyra_cli.devices import usable_cores
from zephyra_cli.text import utf8
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, check_ids

MOST_ROWS = 16


class FusionBackend(LocalBackend):
    """A model in torch; see `protocol.Backend` for what the methods promise.

    path: a GGUF, or a checkpoint folder of Hugging Face's or ours.
    device: auto takes CUDA, then MPS, then the CPU. Weights are bfloat16 on an accelerator, float32 on the CPU.
    live_mixes: adapter mixes whose cache is kept.

    ZephyraError: torch is missing or does not see the device, the file is damaged, `context` is out of range.
    """

    name = "torch"

    def __init__(
        self,
        path: Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        live_mixes: int = 4,
    ) -> None:
        torch = require_torch()
        self.device = choose_device(device)
        self._checkpoint = checkpoint = read_checkpoint(path)
        super().__init__(checkpoint.config.max_position_embeddings, context, threads, most_threads=usable_cores())
        self.vocab_size = checkpoint.config.vocab_size
        torch.set_num_threads(self.threads)
        self._tokenizer = load_tokenizer(checkpoint)
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self._model: Any = load_model(checkpoint, self.device, dtype)
        self._mix: Mix = ()
        self._on: Mix = ()  # what the model itself has on
        self._resident: set[str] = set()
        self._contexts: OrderedDict[Mix, FusionContext] = OrderedDict()
        self._live = live_mixes

    @property
    def stop_ids(self) -> frozenset[int]:
        self._check_open()
        return frozenset(self._checkpoint.config.eos_token_ids)

    @property
    def vocabulary(self) -> list[bytes]:
        """The tokens as they are written in the tokenizer's file, by id."""
        return [word.encode() for word in self._tokenizer.words(self.vocab_size)]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        self._check_open()
        utf8(text)
        return self._tokenizer.encode(text, special=special)

    @cached_property
    def _pieces(self) -> list[bytes]:
        pieces = self._tokenizer.pieces()
        return pieces + [b""] * (self.vocab_size - len(pieces))

    def token_bytes(self, token_id: int) -> bytes:
        self._check_open()
        check_ids((token_id,), self.vocab_size)
        return self._pieces[token_id]

    def add_adapter(self, name: str, path: Path) -> None:
        self._check_open()
        if name in self._resident:
            raise ZephyraError(f"there is already an adapter '{name}'")
        load_adapter(self._model, self._checkpoint, _module_name(name), path)
        self._resident.add(name)

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        start = time.perf_counter()
        self._mix = resident_mix(weights, self._resident)
        return 1000 * (time.perf_counter() - start)

    def cached_tokens(self, prompt: Sequence[int], weights: Mapping[str, float]) -> int:
        found = self._contexts.get(mix_of(weights))
        return 0 if found is None else found.shared(prompt)

    @property
    def parameters(self) -> int:
        """Weights of the base."""
        return self._checkpoint.parameters

    def _prepare(self, prompt: Sequence[int], params: SamplingParams) -> tuple[FusionContext, TokenChoice]:
        choice = TokenChoice(params, prompt, self._constraint(params))
        return self._context(self._mix), choice

    def _ends_answer(self, token_id: int) -> bool:
        return token_id in self._checkpoint.config.eos_token_ids

    def generate_many(self, jobs: Sequence[Job], at_once: int | None = None) -> Generator[Event, bool | None, None]:
        """Sequences of all mixes side by side: every row of the batch has its own adapters."""
        from zephyra_cli.backends.fusion_rows import FusionRows

        self._turn += 1  # the adapters change at every step: nobody else can go on meanwhile
        self._switch(())
        ready = []
        for index, job in enumerate(jobs):
            try:
                self._check_prompt(job.prompt, room=1)
                mix = resident_mix(job.weights, self._resident)
                choice = TokenChoice(job.params, job.prompt, self._constraint(job.params))
            except ZephyraError as error:
                yield index, error
                continue
            left = min(job.params.max_tokens, self.context_length - len(job.prompt))
            ready.append((index, job.prompt, _module_weights(mix), choice, left))
        try:
            if ready:
                yield from FusionRows(self._model, at_once or MOST_ROWS, self.stop_ids).run(ready)
        finally:
            if self._model is not None:
                self._on = (("", 0.0),)  # no mix: the next one is switched on whatever it is

    def logits(self, prompt: Sequence[int]) -> list[list[float]]:
        self._check_prompt(prompt, room=0)
        context = FusionContext(self._model, self.context_length, static=False)
        self._switch(self._mix)
        rows: list[list[float]] = []
        for at in range(0, len(prompt), context.n_batch):
            part = prompt[at : at + context.n_batch]
            context.decode(part[:1], part[1:])
            for token in part[1:]:
                context.keep(token)
            rows += context.logits.float().tolist()
        return rows

    def forget(self) -> None:
        self._turn += 1
        self._contexts.clear()

    @property
    def captures(self) -> int:
        """CUDA graphs that the live contexts have captured."""
        return sum(context.cache.step.captures for context in self._contexts.values() if context.static)

    def close(self) -> None:
        self.forget()
        if self._draft is not None:
            self._draft.close()
        self._model = None

    def _context(self, mix: Mix) -> FusionContext:
        """The one of `mix`; the model has its adapters on from now on."""
        self._switch(mix)
        if mix not in self._contexts:
            static = self.device == "cuda" and not self._checkpoint.config.num_experts
            self._contexts[mix] = FusionContext(self._model, self.context_length, static=static)
        self._contexts.move_to_end(mix)
        while len(self._contexts) > self._live:
            self._contexts.popitem(last=False)
        return self._contexts[mix]

    def _switch(self, mix: Mix) -> None:
        from zephyra_fusion.lora import set_adapters

        if mix != self._on:
            set_adapters(self._model, _module_weights(mix))
            self._on = mix

    def _check_open(self) -> None:
        if self._model is None:
            raise RuntimeError("the backend is closed")


def _module_name(domain: str) -> str:
    """A domain may have dots in its name, a module of torch may not."""
    return "".join(letter if letter.isalnum() or letter == "-" else f"_{ord(letter):x}_" for letter in domain)


def _module_weights(mix: Mix) -> dict[str, float]:
    return {_module_name(name): weight for name, weight in mix}
