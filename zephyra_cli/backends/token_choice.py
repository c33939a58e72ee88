"""From logits to the next token in torch: constraint, filters and draw, one object an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.repetition import SeenNgrams
from zephyra_fusion.types import SamplingParams

if TYPE_CHECKING:
    from zephyra_fusion.constraint import Constraint


class TokenChoice:
    """Chooses the tokens of one answer from their logits `[vocabulary]`."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], constraint: Constraint | None) -> None:
        import torch

        self._params, self._constraint = params, constraint
        self._history, self._proven = list(prompt), False
        self._seen = SeenNgrams(params.no_repeat_ngram_size if constraint is None else 0)
        self._random = torch.Generator().manual_seed(params.seed)

    def sample(self, context: Any, row: int = -1) -> int:
        """The token after the one in `row` of the last tokens that `context` decoded."""
        return self.choose(context.logits[row])

    def choose(self, logits: Any) -> int:
        import torch

        from zephyra_fusion.constraint import allowed
        from zephyra_fusion.sampling import sample

        if not self._proven:  # once: every look at a number waits for the device
            if math.isnan(float(logits.sum())):
                raise ZephyraError("the model computes no numbers (NaN)", hint="its weights are damaged")
            self._proven = True
        if self._constraint is not None:
            mask = torch.from_numpy(allowed(self._constraint.mask(), len(logits)).copy())
            logits = logits.masked_fill(~mask.to(logits.device), float("-inf"))
        if banned := self._seen.banned():
            logits = logits.clone()
            logits[list(banned)] = float("-inf")
        with torch.inference_mode():
            token = sample(logits, self._params, self._history, self._random)
        self._history.append(token)
        self._seen.add(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def close(self) -> None:
        """As a choice in llama.cpp has it: here is nothing to give back."""
