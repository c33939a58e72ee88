"""The program on a pseudo-terminal: typed to, looked at, resized, left. Used by benchmarks of the chat and by tests."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

PROGRAM = [sys.executable, "-m", "zephyra_cli"]


class Terminal:
    """A terminal that answers no questions; `sees` waits until the program has shown something.

    `all`: everything that was shown. Used in a `with`, the program is killed where it has not left by then.
    """

    def __init__(self, *arguments: object, size: tuple[int, int] | None = None, **environment: str) -> None:
        """`size`: columns and rows; without it the terminal does not know its size."""
        self.leader, follower = pty.openpty()
        if size is not None:
            self.resize(*size)
        self.process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1"} | environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(follower, termios.TIOCSCTTY, 0),
        )
        self._follower = follower
        os.set_blocking(self.leader, False)
        self.shown = self.all = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def types(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        """The kernel tells the program (SIGWINCH)."""
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def sees(self, pattern: str, seconds: float = 60) -> str:
        """What was shown since the last call, up to and with the pattern."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            if time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} never came, this did: {self.shown[-2000:]!r}")
            self.reads()
        seen, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return seen

    def settles(self, quiet_s: float = 0.3) -> None:
        """Until nothing has come for so long; what came is not looked at any more."""
        last, size = time.monotonic(), len(self.all)
        while time.monotonic() - last < quiet_s:
            self.reads()
            if len(self.all) != size:
                last, size = time.monotonic(), len(self.all)
        self.shown = ""

    def leaves(self, seconds: float = 60) -> int:
        """Ctrl-D until it is gone (a Ctrl-C before it may have emptied the terminal's queue); the exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it does not end: {self.shown[-2000:]!r}")
            with suppress(OSError):
                self.types("\x04")
            time.sleep(0.1)
            self.reads()
        self.reads()
        self.goes_away()
        return self.process.returncode

    def echoes(self) -> bool:
        """Whether the terminal is in the state in which a shell expects it: it echoes and waits for whole lines."""
        flags = termios.tcgetattr(self._follower)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def goes_away(self) -> None:
        """The window is closed: the program gets SIGHUP, and reads and writes fail from now on."""
        os.close(self._follower)
        os.close(self.leader)

    def resident(self) -> int:
        """Bytes of memory that the program holds (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def reads(self) -> None:
        """What is there, after a moment where nothing is."""
        try:
            piece = os.read(self.leader, 1 << 16).decode(errors="replace")
            self.shown += piece
            self.all += piece
        except (BlockingIOError, OSError):
            time.sleep(0.005)
