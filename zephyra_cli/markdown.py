"""Markdown that grows: what is finished is printed once, only the open block is drawn anew, and of it what changed.

Fenced code and tables are drawn. All else is shown as it was written, with emphasis coloured: the specialists answer
with bare code, in which `*`, `_`, `#`, a backslash and a line's end mean themselves and must not vanish. It is the
terminal that wraps such lines, so that a long command can be marked and copied whole.
"""

from __future__ import annotations

import time
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

from zephyra_cli import ui
from zephyra_cli.engine import Answer
from zephyra_cli.markdown_block import FENCE_BEGUN, blocks, drawn, emphasised
from zephyra_cli.text import cells, visible

if TYPE_CHECKING:
    from rich.text import Text

SHARE = 40  # of the time that passes, at most one part in so many is spent on drawing
SHORTEST_S = 1 / 30
TAB = 8  # cells, at most


class MarkdownAnswer:
    """Shows one answer on a terminal. Called with its pieces, then with the `Answer`.

    Text is written as it comes; a line with emphasis is written again, coloured, when it ends. Code and tables are
    rendered to lines: those that are already there are kept, the cursor goes up to the first one that differs and all
    from it on is written again. What has scrolled away is never touched, nor what the terminal wrapped anew.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(force_terminal=True, markup=False, emoji=False, highlight=False)
        self._open = ""
        self._typed = ""  # of the open line of text, as the terminal shows it
        self._drawn = ""  # of the open code or table
        self._lines: list[_Line] = []  # that show it
        self._fixed = 0  # how many of them have scrolled away, or may have been wrapped by the terminal since
        self._size = self._console.size  # when these were written
        self._next = 0.0

    def __call__(self, event: str | Answer) -> None:
        if not isinstance(event, str):
            self.close()
            return
        self._open += event
        if "\n" in event:
            for kind, text, whole in blocks(self._open):
                if whole:
                    self._finish(kind, text)
                    self._open = self._open[len(text) :]
        start = time.monotonic()
        if not self._open or (self._lines and start < self._next):
            return
        kind, text, _ = blocks(self._open)[-1]
        if kind == "text":
            self._type(text)
        elif "\n" in text:  # before that, it could still become something else
            self._draw(kind, text, last=False)
            self._next = start + max(SHORTEST_S, SHARE * (time.monotonic() - start))

    def close(self) -> None:
        """Nothing more comes."""
        for kind, text, _ in blocks(self._open):
            self._finish(kind, text)
        self._open = ""

    def _finish(self, kind: str, text: str) -> None:
        """Show a block for the last time."""
        if kind == "text":
            self._end_lines(visible(text.removesuffix("\n")))
        else:
            self._draw(kind, text)
            self._lines, self._drawn, self._fixed = [], "", 0

    def _type(self, text: str) -> None:
        """More of the open line, once it is sure to be text: indented code and tables begin with spaces, too."""
        if text.strip() not in FENCE_BEGUN:
            if not self._typed:
                self._size = self._console.size
            shown = visible(text)
            ui.draw(shown[len(self._typed) :])
            self._typed = shown

    def _end_lines(self, text: str) -> None:
        """Whole lines of text, of which the first may be there in part: it is written again where it is coloured."""
        styled = emphasised(text)
        rows = _rows(self._typed, self._console.width) if self._console.width == self._size.width else None
        if styled.spans and (not self._typed or (rows and rows < self._console.height)):
            ui.draw("\r" + (f"\x1b[{rows - 1}A" if rows and rows > 1 else "") + self._print(styled) + "\n")
        else:
            ui.draw(text[len(self._typed) :] + "\n")
        self._typed = ""

    def _draw(self, kind: str, text: str, *, last: bool = True) -> None:
        """Nothing that is on the screen no more, or no longer where it was, is written again, but for the line of
        `text` that was unfinished then: it is repeated when it is finished.
        """
        size, old, unfinished = self._console.size, self._lines, self._drawn.count("\n")
        lines = self._render(kind, text)
        self._fixed = max(self._fixed, len(old) + 1 - min(size.height, self._size.height))
        if size.width != self._size.width:  # the terminal may have wrapped what no longer fits
            self._fixed = max([self._fixed, *(at for at, line in enumerate(old, 1) if line.cells > size.width)])
        begin = new = _alike(old, lines)
        if begin < self._fixed:
            begin = next((at for at in range(self._fixed, len(old)) if old[at].of != old[at - 1].of), len(old))
            of = old[begin].of if begin < len(old) else old[-1].of + 1
            if unfinished < of:
                if unfinished == text.count("\n") and not last:
                    return
                of = unfinished
            new = next((at for at, line in enumerate(lines) if line.of >= of), len(lines))
            alike = _alike(old[begin:], lines[new:])
            begin, new = begin + alike, new + alike
        if up := len(old) - begin:  # line by line: a screen that is erased at once goes into the scrollback of tmux
            ui.draw(f"\x1b[{up}A" + "".join(f"\x1b[K{line.text}\n" for line in lines[new:]) + "\x1b[J")
        elif new < len(lines):
            ui.draw("".join(f"{line.text}\n" for line in lines[new:]))
        self._lines, self._drawn, self._size = old[:begin] + lines[new:], text, size

    def _render(self, kind: str, text: str) -> list[_Line]:
        from rich.text import Text

        found = drawn(kind, visible(text), self._console)
        shown = self._print(Text("\n").join(line for _, line in found)).split("\n")
        return [_Line(of, line.cell_len, text) for (of, line), text in zip(found, shown, strict=True)]

    def _print(self, what: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=True)
        return captured.get().removesuffix("\n")


class _Line(NamedTuple):
    """As the terminal shows it; `of` is the number of the line in the Markdown that it shows, or is a part of."""

    of: int
    cells: int
    text: str


def _alike(old: list[_Line], new: list[_Line]) -> int:
    """How many lines at the beginning of both are the same."""
    shorter = min(len(old), len(new))
    return next((at for at in range(shorter) if old[at] != new[at]), shorter)


def _rows(text: str, width: int) -> int | None:
    """Rows of a terminal that a line takes. None: terminals differ in how wide its tabs or its joined emoji are."""
    from rich.cells import cell_len, chop_cells

    alone, joined = sum(map(cells, text.replace("\t", " " * TAB))), cell_len(text)
    if max(alone, joined) <= width:
        return 1
    return len(chop_cells(text, width)) if alone == joined else None


def load() -> None:
    """Import what drawing needs and make it ready: 0.1 to 0.3 s that no answer should pay."""
    from rich.console import Console

    with Console(force_terminal=True, file=StringIO()) as console:
        for kind, text in (("code", "```python\npass\n```\n"), ("table", "| a |\n| - |\n| `b` |\n")):
            for _, line in drawn(kind, text, console):
                console.print(line)
