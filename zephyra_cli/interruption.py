"""Ctrl-C, SIGTERM and a terminal that goes away as exceptions that never fall into the middle of a write."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends as Ctrl-C does, the partial answer kept, and nothing goes on after it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


_deferring = False
_deferred: KeyboardInterrupt | None = None


def install() -> None:
    """Take over the signals, unless who started us wanted them ignored (nohup, a shell's background)."""
    for number in (signal.SIGINT, *terminating()):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def terminating() -> list[signal.Signals]:
    """The signals that end the program and that nobody wanted ignored."""
    known = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def deferred() -> Iterator[None]:
    """What is inside runs to its end; an interruption that came meanwhile is raised then. Must not block."""
    global _deferring, _deferred
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
        interruption, _deferred = _deferred, None
        if interruption is not None:  # it counts for more than an error of what was inside
            raise interruption


def _handle(number: int, frame: FrameType | None) -> None:
    global _deferred
    interruption = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
    if not _deferring:
        raise interruption
    _deferred = interruption
