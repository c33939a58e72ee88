"""A small model as the draft of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.sampler import Sampler
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams

if TYPE_CHECKING:
    from zephyra_cli.backends.fusion import FusionBackend


class _Drafter(LlamaBackend):
    """A backend that says what it finds likeliest, and no more."""

    def read(self, tokens: Sequence[int]) -> None:
        """All but the last token, which `guess` decodes for its logits, where they fit the context."""
        if 1 < len(tokens) <= self.context_length:
            context = self._context(len(tokens))
            context.rewind(tokens)
            context.read(tokens[:-1])

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens after `tokens`; fewer where an answer or the context ends."""
        count = min(count, self.context_length - len(tokens))
        if count < 1:
            return []
        context = self._context(len(tokens) + count)
        context.rewind(tokens)
        context.read(tokens)
        guesses = [self._greedy.sample(context)]
        while len(guesses) < count and not self._ends_answer(guesses[-1]):
            context.decode(guesses[-1:])
            guesses.append(self._greedy.sample(context))
        return guesses

    @cached_property
    def _greedy(self) -> Sampler:
        return Sampler(self._lib, self.vocab_size, SamplingParams(), ())

    def close(self) -> None:
        if "_greedy" in self.__dict__:
            self._greedy.close()
        super().close()


class ModelDraft:
    """What a small model with the target's vocabulary finds likeliest; its own cache follows the text.

    ZephyraError: the file is unsafe or damaged, or has another vocabulary.
    """

    def __init__(self, path: Path, target: LlamaBackend | FusionBackend) -> None:
        self.name = str(path)
        self._backend = _Drafter(path, threads=target.threads, live_mixes=1)
        mine, wanted = self._backend.vocabulary, target.vocabulary
        if mine != wanted:
            self._backend.close()
            at = next((i for i, pair in enumerate(zip(mine, wanted, strict=False)) if pair[0] != pair[1]), None)
            where = "" if at is None else f", and token {at} is {mine[at]!r} in the one and {wanted[at]!r} in the other"
            raise ZephyraError(
                f"the draft {path} has another vocabulary: {len(mine)} tokens, the model has {len(wanted)}{where}",
                hint="a draft shares the model's tokenizer; --draft ngram needs no second model",
            )

    def begin(self, prompt: Sequence[int]) -> None:
        pass  # its cache is compared with the text at every turn

    def follow(self, tokens: Sequence[int]) -> None:
        self._backend.read(tokens)

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        return self._backend.guess(tokens, count)

    def close(self) -> None:
        self._backend.close()
