"""A program on a pseudo-terminal: typed to, looked at, resized, left, as a person would. For benchmarks and tests."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PROGRAM = [sys.executable, "-m", "zephyra_cli"]
TAKEN = r"\x1b\[\?2004l"  # the editor has taken a line: bracketed paste is off
PROMPT = r"\x1b\[\?2004h(?s:.*?)[>!](?s:.*?)\x1b\[\?25h"  # it is on, the prompt drawn, the cursor back
CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>()][A-Z0-9]?)|\r")


class Terminal:
    """A terminal that answers no questions; `sees` and `until` wait for what the program shows.

    `all`: everything that was shown. Used in a `with`, the program is killed where it has not left by then.
    """

    def __init__(
        self,
        *arguments: object,
        program: Sequence[str] = PROGRAM,
        size: tuple[int, int] | None = None,
        cwd: Path | None = None,
        stdin: int | None = None,
        **environment: str,
    ) -> None:
        """`size`: columns and rows; without it the terminal does not know. `stdin`: instead of the terminal."""
        self.leader, self._follower = pty.openpty()
        if size is not None:
            self.resize(*size)
        self.process = subprocess.Popen(
            [*program, *map(str, arguments)],
            stdin=self._follower if stdin is None else stdin,
            stdout=self._follower,
            stderr=self._follower,
            cwd=cwd,
            env=os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1"} | environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),  # so that Ctrl-C typed there is a signal
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.shown = self.all = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.goes_away()

    @property
    def plain(self) -> str:
        """Everything that was shown, without the sequences that move and colour."""
        return CONTROL.sub("", self.all)

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

    def until(self, text: str, seconds: float = 60) -> str:
        """All that was shown, as `plain` has it, once `text` is in it."""
        deadline = time.monotonic() + seconds
        while text not in self.plain:
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} never came, this did: {self.all[-2000:]!r}")
            self.reads()
        return self.plain

    def settles(self, quiet_s: float = 0.3) -> None:
        """Until nothing has come for so long; what came is not looked at any more."""
        last = time.monotonic()
        while time.monotonic() - last < quiet_s:
            if self.reads():
                last = time.monotonic()
        self.shown = ""

    def ends(self, seconds: float = 60) -> int:
        """The exit status of a program that ends by itself, all that it has shown being read."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it does not end: {self.all[-2000:]!r}")
            self.reads()
        while self.reads():
            pass
        return self.process.returncode

    def leaves(self, seconds: float = 60) -> int:
        """Ctrl-D until it is gone (a Ctrl-C before it may have emptied the terminal's queue); the exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                self.types("\x04")
            time.sleep(0.1)
            self.reads()
        return self.ends(0)

    def echoes(self) -> bool:
        """Whether the terminal is in the state in which a shell expects it: it echoes and waits for whole lines."""
        flags = termios.tcgetattr(self._follower)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def goes_away(self) -> None:
        """The window is closed: the program gets SIGHUP, and reads and writes fail from now on."""
        ends, self._follower, self.leader = (self._follower, self.leader), -1, -1
        for end in ends:
            with suppress(OSError):  # it has gone already
                os.close(end)

    def resident(self) -> int:
        """Bytes of memory that the program holds (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def reads(self) -> bool:
        """What is there, or comes within a moment; whether it was anything."""
        if not select.select([self.leader], [], [], 0.02)[0]:
            return False
        piece = self._decoder.decode(os.read(self.leader, 1 << 16))
        self.shown += piece
        self.all += piece
        return True
