"""Progress of long work, on standard error: a bar or a line that is gone afterwards on a terminal, else little."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from zephyra_cli import ui
from zephyra_cli.text import visible

LINE_EVERY_S = 30.0
PATIENCE_S = 1.0  # what takes longer is said


class Progress:
    """Called with (done, total, text); used as a context manager so that the bar is taken away at the end.

    With `bytes`, the numbers are bytes, and rate and time left are shown for the whole. With `silent`, there is neither
    bar nor line: the results themselves appear on the terminal.
    """

    def __init__(self, *, bytes: bool = False, silent: bool = False) -> None:
        self._bytes, self._silent = bytes, silent
        self._bar: Any = None
        self._task: Any = None
        self._next_line = 0.0
        self._said: tuple[int, int | None, str] | None = None
        self._begun: tuple[float, int] | None = None

    def __enter__(self) -> Progress:
        if ui.fancy(sys.stderr) and not self._silent:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            text = TextColumn("{task.description}", markup=False)
            numbers = [DownloadColumn(), TransferSpeedColumn()] if self._bytes else [MofNCompleteColumn()]
            columns = (text, BarColumn(), *numbers, TimeRemainingColumn())
            # What goes to standard output is bytes (`ui.draw`), which Rich's stand-in for it does not take.
            self._bar = Bar(*columns, console=Console(stderr=True), redirect_stdout=False)
            self._bar.start()
        return self

    def __call__(self, done: int, total: int | None, text: str) -> None:
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(text, completed=done, total=total)  # what was there has no speed
            if total != self._bar.tasks[0].total:
                self._bar.reset(self._task, completed=done, total=total)
            self._bar.update(self._task, completed=done, description=visible(text))
            return
        if self._silent:
            return
        now = time.monotonic()
        if self._bytes and self._begun is None:
            self._begun, self._next_line = (now, done), now + LINE_EVERY_S
        elif (now >= self._next_line or done == total) and self._said != (done, total, text):
            self._next_line, self._said = now + LINE_EVERY_S, (done, total, text)
            ui.note(self._line(now, done, total) + f" {text}")

    def _line(self, now: float, done: int, total: int | None) -> str:
        if not self._bytes:
            return f"{done}/{total if total is not None else '?'}"
        begun, present = self._begun or (now, done)
        rate = max(0, done - present) / max(now - begun, 1e-9)
        line = f"{done / 1e6:.1f}/{(total or 0) / 1e6:.1f} MB"
        if rate and total and done < total:
            line += f", {rate / 1e6:.1f} MB/s, {(total - done) / rate:.0f} s left"
        return line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Waiting:
    """Says on a terminal what takes longer than a second, and for how long already; `end` takes the line away.

    `silent`: where a line that changes would be read out again and again, or there is nothing to wait for.
    """

    def __init__(self, text: str, *, silent: bool = False) -> None:
        self._thread = None
        if ui.fancy(sys.stderr) and not silent:
            import threading

            self._text, self._over = visible(text), threading.Event()
            self._thread = threading.Thread(target=self._tell, daemon=True)
            self._thread.start()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        if self._thread is not None:
            thread, self._thread = self._thread, None
            self._over.set()
            thread.join()

    def _tell(self) -> None:
        start, shown = time.monotonic(), False
        while not self._over.wait(PATIENCE_S):
            shown = True
            self._write(f"\r\x1b[K{self._text} … {time.monotonic() - start:.0f} s")
        if shown:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal went away
            sys.stderr.write(text)
            sys.stderr.flush()
