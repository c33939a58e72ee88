"""A small model as the draft of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion.errors import ZephyraError


class ModelDraft:
    """What a small model with the target's vocabulary finds likeliest; its own cache follows the text.

    ZephyraError: the file is unsafe or damaged, or has another vocabulary.
    """

    def __init__(self, path: Path, target: LlamaBackend) -> None:
        self.name = str(path)
        self._backend = LlamaBackend(path, threads=target.threads, live_mixes=1)
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

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        return self._backend.guess(tokens, count)

    def close(self) -> None:
        self._backend.close()
