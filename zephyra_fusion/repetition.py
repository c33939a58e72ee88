"""What would repeat an answer's own words: the way out of loops that small models fall into."""

from __future__ import annotations

from collections.abc import Collection


class SeenNgrams:
    """The n-grams of one answer, none of which may come twice (Hugging Face's `no_repeat_ngram_size`).

    The prompt does not count: an answer may quote it.
    """

    def __init__(self, size: int) -> None:
        """size: tokens of an n-gram, at least 2; 0: nothing is banned."""
        self._before = size - 1
        self._tail: tuple[int, ...] = ()
        self._after: dict[tuple[int, ...], set[int]] = {}

    def banned(self) -> Collection[int]:
        """Tokens that would end an n-gram which is there already."""
        return self._after.get(self._tail, ())

    def add(self, token: int) -> None:
        """The next token of the answer."""
        if self._before < 1:
            return
        if len(self._tail) == self._before:
            self._after.setdefault(self._tail, set()).add(token)
        self._tail = (*self._tail, token)[-self._before :]
