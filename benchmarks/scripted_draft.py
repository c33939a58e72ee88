"""Drafts to measure and test with: they know the answer, are wrong where they are told to be, and never pause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle

from zephyra_fusion.draft import DraftLength


class ScriptedDraft:
    """Guesses from `answer`; `lie` says at which of its tokens the guess is another one."""

    name = "scripted"

    def __init__(self, answer: Sequence[int], lie: Callable[[int], bool] = lambda at: False) -> None:
        self._answer, self._lie, self._start = list(answer), lie, 0
        self.closed = False

    def begin(self, prompt: Sequence[int]) -> None:
        self._start = len(prompt)

    def follow(self, tokens: Sequence[int]) -> None:
        pass

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        at = len(tokens) - self._start
        return [token ^ 1 if self._lie(i) else token for i, token in enumerate(self._answer[at : at + count], at)]

    def close(self) -> None:
        self.closed = True


class GivenLength(DraftLength):
    """These lengths in their order, again and again, whether they pay or not."""

    def __init__(self, lengths: Iterable[int]) -> None:
        super().__init__()
        self._lengths = cycle(lengths)

    def next(self) -> int:
        return next(self._lengths)
