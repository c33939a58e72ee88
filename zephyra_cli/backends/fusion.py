"""The PyTorch backend: packs' GGUF files and checkpoint folders on CUDA, MPS, or the CPU on request."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.backends.fusion_context import FusionContext
from zephyra_cli.backends.fusion_model import (
    choose_device,
    load_adapter,
    load_model,
    load_tokenizer,
    read_checkpoint,
    require_torch,
)
from zephyra_cli.backends.protocol import GenerationUsage, Job
from zephyra_cli.backends.speculation import Speculation
from zephyra_cli.backends.token_choice import TokenChoice
from zephyra_cli.devices import usable_cores
from zephyra_fusion.draft import Draft, DraftLength
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import SamplingParams, Token, check_weights

if TYPE_CHECKING:
    from zephyra_fusion.constraint import Constraint, TokenTable

Mix = tuple[tuple[str, float], ...]
MOST_CONTEXT = 4096  # by default, as on llama.cpp
MOST_ROWS = 16
Event = tuple[int, Token | ZephyraError]


class FusionBackend:
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
        trained = checkpoint.config.max_position_embeddings
        if context is not None and not 1 <= context <= trained:
            raise ZephyraError(f"the context is {context}, this model allows 1 to {trained} tokens")
        if threads is not None and threads < 1:
            raise ZephyraError(f"threads is {threads}, must be at least 1")
        self.context_length = context or min(trained, MOST_CONTEXT)
        self.vocab_size = checkpoint.config.vocab_size
        self.usage = GenerationUsage()
        self.threads = min(threads or usable_cores(), usable_cores())
        torch.set_num_threads(self.threads)
        self._tokenizer = load_tokenizer(checkpoint)
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self._model: Any = load_model(checkpoint, self.device, dtype)
        self._mix: Mix = ()
        self._on: Mix = ()  # what the model itself has on
        self._resident: set[str] = set()
        self._contexts: OrderedDict[Mix, FusionContext] = OrderedDict()
        self._live = live_mixes
        self._draft: Draft | None = None
        self._draft_length = DraftLength()
        self._turn = 0

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
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ZephyraError(
                f"the text is no valid Unicode: character {error.start} is the lone surrogate {text[error.start]!r}",
                hint="input must be UTF-8",
            ) from None
        return self._tokenizer.encode(text, special=special)

    @cached_property
    def _pieces(self) -> list[bytes]:
        pieces = self._tokenizer.pieces()
        return pieces + [b""] * (self.vocab_size - len(pieces))

    def token_bytes(self, token_id: int) -> bytes:
        self._check_open()
        self._check_ids((token_id,))
        return self._pieces[token_id]

    def add_adapter(self, name: str, path: Path) -> None:
        self._check_open()
        if name in self._resident:
            raise ZephyraError(f"there is already an adapter '{name}'")
        load_adapter(self._model, self._checkpoint, _module_name(name), path)
        self._resident.add(name)

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        start = time.perf_counter()
        self._mix = self._checked(weights)
        return 1000 * (time.perf_counter() - start)

    def cached_tokens(self, prompt: Sequence[int], weights: Mapping[str, float]) -> int:
        found = self._contexts.get(tuple(sorted(check_weights(weights).items())))
        return 0 if found is None else found.shared(prompt)

    def speculate(self, draft: Draft | None) -> None:
        if self._draft is not None and self._draft is not draft:
            self._draft.close()
        self._draft, self._draft_length = draft, DraftLength()

    @property
    def parameters(self) -> int:
        """Weights of the base."""
        return self._checkpoint.parameters

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Generator[Token, None, None]:
        self._check_prompt(prompt, room=1)
        self._turn += 1
        turn, clock = self._turn, time.perf_counter
        start = clock()
        choose = TokenChoice(params, prompt, self._constraint(params))
        context: Any = self._context(self._mix)
        cached, given = context.rewind(prompt), 0
        prefill_ms = first_ms = decode_ms = 0.0
        last = min(params.max_tokens, self.context_length - len(prompt))
        speculation, row, stops = None, 0, self.stop_ids
        if self._draft is not None:
            speculation = Speculation(self._draft, self._draft_length, context, prompt, last)
        try:
            began = clock()
            for at in range(cached, len(prompt), context.n_batch):
                context.decode(prompt[at : at + context.n_batch])
            prefill_ms = 1000 * (clock() - began)
            while True:
                token = choose(context.logits[row])
                given += 1
                if given == 1:
                    first_ms = 1000 * (clock() - start)
                else:
                    decode_ms += 1000 * (clock() - began)
                reason = "stop" if token in stops else "length" if given == last else None
                yield Token(token, reason)
                if reason is not None:
                    return
                if turn != self._turn:
                    raise RuntimeError("this generation was overtaken by a newer one, or by close()")
                began = clock()
                if speculation is None:
                    context.decode((token,))
                else:
                    row = speculation.advance(token)
        finally:
            if turn == self._turn:
                self.usage = GenerationUsage(
                    prompt_tokens=len(prompt),
                    cached_tokens=cached,
                    completion_tokens=given,
                    prefill_ms=prefill_ms,
                    first_token_ms=first_ms,
                    decode_ms=decode_ms,
                    drafted=speculation.drafted if speculation else 0,
                    accepted=speculation.accepted if speculation else 0,
                )

    def generate_many(self, jobs: Sequence[Job]) -> Generator[Event, bool | None, None]:
        """Sequences of all mixes side by side: every row of the batch has its own adapters."""
        from zephyra_cli.backends.fusion_rows import FusionRows

        self._turn += 1  # the adapters change at every step: nobody else can go on meanwhile
        self._switch(())
        ready = []
        for index, job in enumerate(jobs):
            try:
                self._check_prompt(job.prompt, room=1)
                mix = self._checked(job.weights)
                choose = TokenChoice(job.params, job.prompt, self._constraint(job.params))
            except ZephyraError as error:
                yield index, error
                continue
            left = min(job.params.max_tokens, self.context_length - len(job.prompt))
            ready.append((index, job.prompt, _module_weights(mix), choose, left))
        try:
            if ready:
                yield from FusionRows(self._model, MOST_ROWS, self.stop_ids).run(ready)
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

    def close(self) -> None:
        self._turn += 1
        self._contexts.clear()
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

    def _checked(self, weights: Mapping[str, float]) -> Mix:
        checked = check_weights(weights)
        for name in weights:
            if name not in self._resident:
                raise ZephyraError(f"unknown adapter '{name}'", hint=did_you_mean(name, self._resident))
        return tuple(sorted(checked.items()))

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if not (params.schema or params.grammar):
            return None
        from zephyra_fusion.constraint import Constraint

        return Constraint(params, self._token_table)

    @cached_property
    def _token_table(self) -> TokenTable:
        from zephyra_fusion.constraint import TokenTable

        return TokenTable(self.vocab_size, self.token_bytes, self.stop_ids)

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
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.vocab_size:
            raise ZephyraError(f"token id {low if low < 0 else high} is outside the vocabulary of {self.vocab_size}")

    def _check_open(self) -> None:
        if self._model is None:
            raise RuntimeError("the backend is closed")


def _module_name(domain: str) -> str:
    """A domain may have dots in its name, a module of torch may not."""
    return "".join(letter if letter.isalnum() or letter == "-" else f"_{ord(letter):x}_" for letter in domain)


def _module_weights(mix: Mix) -> dict[str, float]:
    return {_module_name(name): weight for name, weight in mix}
