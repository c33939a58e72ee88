"""Ctrl-C while llama.cpp computes: within an operation, not within a prompt.

Python sees a signal between two of its own instructions, so not during a call that reads a prompt for seconds. But the
C half of its handler writes the signal's number to `signal.set_wakeup_fd` at once. A thread that waits there sets a
byte, and llama.cpp looks at that byte between two operations. What looks is libc's `strlen`: of "" it is 0, go on; of
"!" it is 1, stop. A Python function would be called hundreds of times for every token.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zephyra_cli.backends.library import silenced

ABORTED = 2  # llama_decode's status

_STOPPING = frozenset({signal.SIGINT, signal.SIGTERM})
_END = 0  # no signal has this number
_POSSIBLE = os.name == "posix"  # elsewhere an interruption waits for the end of the batch

_flag = ctypes.create_string_buffer(2)
CALLBACK: int | None = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value if _POSSIBLE else None
DATA: int | None = ctypes.addressof(_flag) if _POSSIBLE else None


@contextmanager
def abortable(lib: Any) -> Iterator[None]:
    """Inside, a signal that Python handles stops llama.cpp at its next operation: `llama_decode` returns ABORTED."""
    if not _POSSIBLE or threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading, before), daemon=True)
    watcher.start()
    try:
        with silenced(lib):
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, bytes([_END]))
        watcher.join()
        os.close(reading)
        os.close(writing)
        go_on()


def go_on() -> None:
    """Take the wish to stop back."""
    _flag[0] = b"\0"


def handle_signals() -> None:
    """Python runs the handlers of signals that have come when a function of its own begins: this one."""


def _watch(reading: int, before: int) -> None:
    while True:
        numbers = os.read(reading, 64)
        if not _STOPPING.isdisjoint(numbers):
            _flag[0] = b"!"
        if before >= 0:  # whoever listened goes on listening
            os.write(before, numbers.rstrip(bytes([_END])))
        if _END in numbers:
            return
