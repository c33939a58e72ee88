"""How far a conversion is: bytes written of the bytes that there will be."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None, str], None]  # bytes done, bytes in all, what is being done


def silent(done: int, total: int | None, text: str) -> None:
    """Nobody watches."""


class Meter:
    """Counts for one watcher; `total` is an estimate where a quantizer decides."""

    def __init__(self, progress: Progress = silent, total: int = 0) -> None:
        self._progress, self._total, self._done, self._text = progress, total, 0, ""

    def say(self, text: str) -> None:
        """What is being done from here on."""
        self._text = text
        self.add(0)

    def add(self, size: int) -> None:
        self._done += size
        self._progress(min(self._done, self._total - 1), self._total, self._text)

    def finish(self) -> None:
        self._progress(self._total, self._total, "done")
