"""Ctrl-C and SIGTERM as exceptions that never fall into the middle of a write."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends as Ctrl-C does, the partial answer kept."""


_deferring = False
_deferred: KeyboardInterrupt | None = None


def install() -> None:
    """Take over both signals, unless who started us wanted them ignored (nohup, a shell's background)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


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
    if interruption is not None:
        raise interruption


def _handle(number: int, frame: FrameType | None) -> None:
    global _deferred
    interruption = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    if not _deferring:
        raise interruption
    _deferred = interruption
