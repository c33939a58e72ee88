"""Markdown that grows: what is finished is printed once, only the open block is drawn anew, and of it what changed.

Fenced code and tables are drawn. All else is shown as it was written, with emphasis coloured: the specialists answer
with bare code, in which `*`, `_`, `#`, a backslash and a line's end mean themselves and must not vanish.
"""

from __future__ import annotations

import re
import time
from textwrap import dedent
from typing import Any

from zephyra_cli import ui
from zephyra_cli.engine import Answer
from zephyra_cli.text import visible

SHARE = 40  # of the time that passes, at most one part in so many is spent on drawing
SHORTEST_S = 1 / 30
STYLES = {r"(?m)^#{1,6} .*$": "bold", r"\*\*[^*\n]+\*\*": "bold", r"`[^`\n]+`": "cyan"}
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_TABLE = re.compile(r"\s*\|.*\n\s*\|[\s:|-]*-[\s:|-]*\n")


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
        if start >= self._next and self._open:
            kind, text, _ = blocks(self._open)[-1]
            self._draw(kind, text)
            self._next = start + max(SHORTEST_S, SHARE * (time.monotonic() - start))

    def close(self) -> None:
        """Nothing more comes."""
        for kind, text, _ in blocks(self._open):
            self._finish(kind, text)
        self._open = ""

    def _finish(self, kind: str, text: str) -> None:
        """Draw a block for the last time."""
        self._draw(kind, text)
        self._lines = []

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
        """The lines of one block, none wider than the terminal."""
        if kind == "code" or (kind == "table" and _TABLE.match(text)):
            from rich.markdown import Markdown

            lines = self._print(Markdown(dedent(text), hyperlinks=False, code_theme="ansi_dark"))
            while lines and not lines[0]:
                del lines[0]
            while lines and not lines[-1]:
                del lines[-1]
            return lines
        from rich.text import Text

        styled = Text(text.removesuffix("\n"))
        for pattern, style in STYLES.items():
            styled.highlight_regex(pattern, style)
        return self._print(styled)

    def _print(self, what: Any) -> list[str]:
        with self._console.capture() as captured:
            self._console.print(what)
        return [line.rstrip(" ") for line in captured.get().removesuffix("\n").split("\n")]


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
