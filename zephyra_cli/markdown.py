"""Markdown that grows: finished blocks are printed once, only the open one is drawn anew, and of it what changed."""

from __future__ import annotations

import time

from zephyra_cli import ui
from zephyra_cli.engine import Answer
from zephyra_cli.text import visible

SHARE = 40  # of the time that passes, at most one part in so many is spent on drawing
SHORTEST_S = 1 / 30


class MarkdownAnswer:
    """Shows one answer on a terminal. Called with its pieces, then with the `Answer`.

    The open block is rendered to lines. Lines that are already there are kept, the cursor goes up to the first one
    that differs and all from it on is written again; what has scrolled away is never touched.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(force_terminal=True, markup=False, emoji=False, highlight=False)
        self._open = ""
        self._lines: list[str] = []  # of the open block, as the terminal shows them
        self._width = self._console.width
        self._next = 0.0
        self._first = True

    def __call__(self, event: str | Answer) -> None:
        if not isinstance(event, str):
            self.close()
            return
        self._open += event
        if "\n" in event and (end := finished(self._open)):
            closed, self._open = self._open[:end], self._open[end:]
            self._finish(closed)
        start = time.monotonic()
        if start >= self._next:
            self._draw(self._open)
            spent = time.monotonic() - start
            self._next = start + max(SHORTEST_S, SHARE * spent)

    def close(self) -> None:
        """Nothing more comes."""
        self._finish(self._open)
        self._open = ""

    def _finish(self, text: str) -> None:
        """Draw a block for the last time."""
        self._draw(text)
        self._lines = []
        self._first = self._first and not text.strip()

    def _draw(self, text: str) -> None:
        if not text.strip():
            return
        size = self._console.size
        lines = self._render(text)
        old = self._lines
        if size.width != self._width:  # the terminal has wrapped the old lines in its own way: begin below them
            self._width, old = size.width, []
        same = next(
            (at for at, (a, b) in enumerate(zip(old, lines, strict=False)) if a != b), min(len(old), len(lines))
        )
        same = max(same, len(old) - (size.height - 1))
        up = len(old) - same
        erase = (f"\x1b[{up}A" if up else "") + ("\x1b[J" if up else "")
        if fresh := erase + "".join(line + "\n" for line in lines[same:]):
            ui.draw(fresh)
        self._lines = lines

    def _render(self, text: str) -> list[str]:
        from rich.markdown import Markdown

        with self._console.capture() as captured:
            self._console.print(Markdown(visible(text), hyperlinks=False, code_theme="ansi_dark"))
        drawn = captured.get().split("\n")
        while drawn and not drawn[0].strip():
            drawn.pop(0)
        while drawn and not drawn[-1].strip():
            drawn.pop()
        return drawn if self._first else ["", *drawn]


def finished(text: str) -> int:
    """Where the blocks end that nothing to come can change: after the last blank line or fence outside of code.

    A list stays open over blank lines, because the next item belongs to it.
    """
    end = at = 0
    fence = ""
    in_list = False
    for line in text.splitlines(keepends=True):
        at += len(line)
        bare = line.strip()
        if not line.endswith("\n"):
            break
        if fence:
            if bare.startswith(fence) and not bare.strip(fence[0]):
                fence = ""
                end = end if in_list else at
        elif bare.startswith(("```", "~~~")):
            fence = bare[: len(bare) - len(bare.lstrip(bare[0]))]
        elif not bare:
            end = end if in_list else at
        elif bare[0] in "-*+" or bare.split(" ")[0].rstrip(".)").isdecimal():
            in_list = True
        elif not line[0].isspace():
            if in_list:
                end = at - len(line)
            in_list = False
    return end
