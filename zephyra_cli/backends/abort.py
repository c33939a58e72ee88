"""Ctrl-C while llama.cpp computes: within an operation, not within a prompt.

Python sees a signal between two of its own instructions, so not during a call that reads a prompt for seconds. But the
C half of its handler writes the signal's number to `signal.set_wakeup_fd` at once. That is a file here whose beginning
is mapped into memory, and llama.cpp looks at that memory between two operations. What looks is libc's `strlen`: of
nothing it is 0, go on; of a number it is 1, stop. A Python function would be called hundreds of times for every token,
and a thread that waits for the signal takes a core away from reading: half a millisecond a prompt.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zephyra_cli.backends.library import silenced

ABORTED = 2  # llama_decode's status

_BYTES = 64  # of the page: more signals than come while one prompt is read, and less than the smallest `ulimit -f`


def _nameless_file() -> int:
    """A few zeros, in memory where the system has such files. OSError: no file may be made."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("zephyra")
    else:
        import tempfile

        with tempfile.TemporaryFile() as beginning:
            file = os.dup(beginning.fileno())
    os.truncate(file, _BYTES)
    os.set_blocking(file, False)  # as `set_wakeup_fd` wants it
    return file


CALLBACK: int | None = None  # none: an interruption waits for the end of the batch
DATA: int | None = None
if os.name == "posix":
    with suppress(OSError):
        _file = _nameless_file()
        _flag = (ctypes.c_char * _BYTES).from_buffer(mmap.mmap(_file, _BYTES))
        CALLBACK = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
        DATA = ctypes.addressof(_flag)


@contextmanager
def abortable(lib: Any) -> Iterator[None]:
    """Inside, a signal that Python handles stops llama.cpp at its next operation: `llama_decode` returns ABORTED.

    A signal whose handler only takes a note stops it as well; what was stopped is then decoded again.
    """
    if CALLBACK is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(_file, warn_on_full_buffer=False)
    try:
        with silenced(lib):
            yield
    finally:
        signal.set_wakeup_fd(before)
        heard = os.pread(_file, os.lseek(_file, 0, os.SEEK_CUR), 0)
        go_on()
        if before >= 0 and heard:  # whoever listened goes on listening
            os.write(before, heard)


def go_on() -> None:
    """Take the wish to stop back. A signal that comes meanwhile finds Python awake and needs no flag."""
    os.lseek(_file, 0, os.SEEK_SET)
    _flag[0] = b"\0"


def handle_signals() -> None:
    """Python runs the handlers of signals that have come when a function of its own begins: this one."""
