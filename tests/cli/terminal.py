"""A program on a pseudo-terminal that is typed to and read from, as a person would."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>()][A-Z0-9]?)|\r")


class Terminal:
    """All three streams of `command` are the terminal, unless `streams` says otherwise."""

    def __init__(
        self, command: Sequence[object], *, cwd: Path | None = None, environment: Mapping[str, str], **streams: int
    ) -> None:
        import pty

        self._leader, follower = pty.openpty()
        places = {"stdin": follower, "stdout": follower, "stderr": follower} | streams
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=os.environ | environment, preexec_fn=_own_terminal, **places
        )
        os.close(follower)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._leader)

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def until(self, text: str, seconds: float = 90) -> str:
        """What has been shown, once `text` is in it, without the sequences that move and colour."""
        deadline = time.monotonic() + seconds
        while text not in self.plain:
            assert self._read(deadline - time.monotonic()), f"{text!r} never came: {self.shown!r}"
        return self.plain

    def end(self, seconds: float = 90) -> int:
        """The exit status, all that was shown being read."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(1, deadline - time.monotonic()))

    @property
    def plain(self) -> str:
        return CONTROL.sub("", self.shown)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._leader], [], [], max(0, seconds))[0]:
            return False
        try:
            piece = os.read(self._leader, 1 << 16)
        except OSError:  # Linux: nobody holds the other end any more
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)


def _own_terminal() -> None:
    """A session of its own with this terminal as the controlling one, so that Ctrl-C typed there is a signal."""
    import fcntl
    import termios

    os.setsid()
    for stream in (0, 1, 2):
        if os.isatty(stream):
            fcntl.ioctl(stream, termios.TIOCSCTTY, 0)
            return
