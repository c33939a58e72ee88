"""Markdown that grows: what is finished is printed once, only the open block is drawn anew, and of it what changed.

Fenced code and tables are drawn. All else is shown as it was written, with emphasis coloured: the specialists answer
with bare code, in which `*`, `_`, `#`, a backslash and a line's end mean themselves and must not vanish. It is the
terminal that wraps such lines, so that a long command can be marked and copied whole.
"""

from __future__ import annotations

import re
import time
from io import StringIO
from textwrap import dedent
from typing import Any

from zephyra_cli import ui
from zephyra_cli.engine import Answer
from zephyra_cli.text import visible

SHARE = 40  # of the time that passes, at most one part in so many is spent on drawing
SHORTEST_S = 1 / 30
STYLES = {r"(?m)^#{1,6} .*$": "bold", r"\*\*[^*\n]+\*\*": "bold", r"`[^`\n]+`": "cyan"}
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_FENCE_BEGUN = ("", "`", "``", "~", "~~")
_TABLE = re.compile(r"\s*\|.*\n\s*\|[\s:|-]*-[\s:|-]*\n")


class MarkdownAnswer:
    """Shows one answer on a terminal. Called with its pieces, then with the `Answer`.

    Text is written as it comes; a line with emphasis is written again, coloured, when it ends. Code and tables are
    rendered to lines: those that are already there are kept, the cursor goes up to the first one that differs and all
    from it on is written again. What has scrolled away is never touched.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(force_terminal=True, markup=False, emoji=False, highlight=False)
        self._open = ""
        self._typed = ""  # of the open line of text, as the terminal shows it
        self._lines: list[str] = []  # of the open code or table, as the terminal shows them
        self._width = self._console.width
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
            self._draw(kind, text)
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
            self._lines = []

    def _type(self, text: str) -> None:
        """More of the open line, once it is sure to be text: indented code and tables begin with spaces, too."""
        if text.strip() not in _FENCE_BEGUN:
            shown = visible(text)
            ui.draw(shown[len(self._typed) :])
            self._typed = shown

    def _end_lines(self, text: str) -> None:
        """Whole lines of text, of which the first may be there in part."""
        from rich.cells import chop_cells

        coloured, up = self._colour(text), max(0, len(chop_cells(self._typed, self._console.width)) - 1)
        if coloured == text or up >= self._console.height:
            ui.draw(text[len(self._typed) :] + "\n")
        else:
            ui.draw("\r" + (f"\x1b[{up}A" if up else "") + ("\x1b[J" if self._typed else "") + coloured + "\n")
        self._typed = ""

    def _colour(self, text: str) -> str:
        from rich.text import Text

        styled = Text(text)
        for pattern, style in STYLES.items():
            styled.highlight_regex(pattern, style)
        return self._print(styled) if styled.spans else text

    def _draw(self, kind: str, text: str) -> None:
        size = self._console.size
        lines, old = self._render(kind, visible(text)), self._lines
        if size.width != self._width:  # the terminal has wrapped the old lines in its own way: begin below them
            self._width, old = size.width, []
        shorter = min(len(old), len(lines))
        same = next((at for at in range(shorter) if old[at] != lines[at]), shorter)
        same = max(same, len(old) - (size.height - 1))
        up = len(old) - same
        if fresh := (f"\x1b[{up}A\x1b[J" if up else "") + "".join(line + "\n" for line in lines[same:]):
            ui.draw(fresh)
        self._lines = lines

    def _render(self, kind: str, text: str) -> list[str]:
        """The lines of code or of a table, none wider than the terminal."""
        if kind == "table" and not _TABLE.match(text):
            from rich.text import Text

            return self._print(Text(text.removesuffix("\n")), wrap=True).split("\n")
        from rich.markdown import Markdown

        drawn = self._print(Markdown(dedent(text), hyperlinks=False, code_theme="ansi_dark"), wrap=True)
        return [line.rstrip(" ") for line in drawn.strip("\n").split("\n")]

    def _print(self, what: Any, *, wrap: bool = False) -> str:
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=not wrap)
        return captured.get().removesuffix("\n")


def load() -> None:
    """Import what drawing needs and make it ready: 0.1 to 0.3 s that no answer should pay."""
    from rich.console import Console
    from rich.markdown import Markdown

    with Console(force_terminal=True, file=StringIO()) as console:
        console.print(Markdown("```python\npass\n```\n\n| a |\n| - |\n| b |\n", code_theme="ansi_dark"))


def blocks(text: str) -> list[tuple[str, str, bool]]:
    """The text in blocks, in order and complete: kind (`text`, `code`, `table`), text, whether it is finished.

    A line of text is finished by its end, code by its closing fence, a table by the first line that is none of it.
    """
    found: list[tuple[str, str, bool]] = []
    fence = ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        bare, ended = line.strip(), line.endswith("\n")
        if fence:
            if closing := ended and bare.startswith(fence) and not bare.strip(fence[0]):
                fence = ""
            found[-1] = ("code", found[-1][1] + line, closing)
            continue
        kind = "code" if (opening := _FENCE.match(bare)) else "table" if bare.startswith("|") else "text"
        if found and (found[-1][0] != kind or kind == "code"):
            found[-1] = (*found[-1][:2], True)
        if opening and ended:
            fence = opening[1] or opening[2]
        if found and found[-1][0] == kind and kind != "code" and (ended or kind == "table"):
            found[-1] = (kind, found[-1][1] + line, kind == "text")
        else:
            found.append((kind, line, ended and kind == "text"))
    return found
