"""Progress of long work, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from zephyra_cli import ui

LINE_EVERY_S = 30.0


class Progress:
    """Called with (done, total, text); used as a context manager so that the bar is taken away at the end."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._next_line = 0.0

    def __enter__(self) -> Progress:
        if ui.fancy(sys.stderr):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            text = TextColumn("{task.description}", markup=False)
            console = Console(stderr=True)
            self._bar = Bar(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __call__(self, done: int, total: int | None, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=text)
        elif (now := time.monotonic()) >= self._next_line or done == total:
            self._next_line = now + LINE_EVERY_S
            ui.note(f"{done}/{total if total is not None else '?'} {text}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
