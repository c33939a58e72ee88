"""How a process ends: with a status, or as `cat` does when nobody reads any more."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # `typing` itself takes longer than all that `app` needs before it takes over the signals
if TYPE_CHECKING:
    from typing import NoReturn


def leave(status: int) -> NoReturn:
    """Flush and go. Nothing is torn down: the system takes the memory back faster than llama.cpp gives it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            end_as_cat()
        except OSError:
            status = status or 1
    os._exit(status)


def end_as_cat() -> NoReturn:
    """The reader closed the pipe: die of SIGPIPE, quietly, where there is such a thing."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(1)
