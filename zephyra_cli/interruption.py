"""Ctrl-C, SIGTERM and a terminal that goes away as exceptions that come only where they may."""

from __future__ import annotations

import signal
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TYPE_CHECKING = False  # `typing` would be half of what is imported before `install`
if TYPE_CHECKING:
    from types import FrameType
    from typing import TypeVar

    T = TypeVar("T")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends as Ctrl-C does, the partial answer kept, and nothing goes on after it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


def _nothing() -> None:
    pass


_MAIN = get_ident()  # the thread that signals come to; in others there is nothing to defer
_deferring = False
_waiting: KeyboardInterrupt | None = None
_wake: Callable[[], None] = _nothing


def install() -> None:
    """Take over the signals, unless who started us wanted them ignored (nohup, a shell's background)."""
    for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


@contextmanager
def deferred(wake: Callable[[], None] = _nothing) -> Iterator[None]:
    """What is inside runs to its end, but for what is in `allowing`; an interruption that came meanwhile is raised
    then, at the end of the outermost `deferred`. Must not block, unless `wake`, called when one comes, ends the wait.
    """
    global _deferring, _wake
    if get_ident() != _MAIN:
        yield
        return
    before = _deferring, _wake
    _deferring, _wake = True, wake
    try:
        yield
    finally:
        _deferring, _wake = before
        if not _deferring:
            check()  # an interruption counts for more than an error of what was inside


def allowing(work: Callable[[], T]) -> T:
    """The result of `work`, at any point of which an interruption may be raised; one that waits is raised before it.

    It is no context manager: a signal within the `__exit__` of one would leave them allowed.
    """
    global _deferring
    before, _deferring = _deferring, False
    try:
        check()
        return work()
    finally:
        _deferring = before


def waits() -> bool:
    """Whether an interruption has come and was not raised yet."""
    return _waiting is not None


def check() -> None:
    """Raise the interruption that waits, if any."""
    global _waiting
    if _waiting is not None:
        interruption, _waiting = _waiting, None
        raise interruption


def handle(number: int, frame: FrameType | None) -> None:
    """What a signal does: raise, or wait."""
    global _waiting
    if not isinstance(_waiting, Terminated):
        _waiting = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
    if not _deferring:
        check()
    _wake()
