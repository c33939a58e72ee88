"""A program on a pseudo-terminal, typed to and filmed; the film as an SVG that plays by itself.

pyte is the terminal: what stands on its screen after each piece of output is a frame. Who asks for less motion, or
cannot play it, sees the last frame.
"""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import pyte

Cell = tuple[str, str, bool]  # character, colour, bold
Row = tuple[Cell, ...]

FAST_S, SLOW_S, REST_S = 0.05, 0.7, 4.0  # a key, the longest pause that is shown, the last frame
WIDTH, HEIGHT, TOP, LEFT = 8.4, 18, 44, 14  # of a cell, and the margins, in pixels
FOREGROUND, BACKGROUND = "#c5c8c6", "#1b1d22"
PALETTE = {
    "red": "#d9787a", "green": "#98c379", "brown": "#d8b26e", "blue": "#7aa6da", "magenta": "#b48ead",
    "cyan": "#6fb3b8", "white": "#c5c8c6", "black": "#6b7078", "brightblack": "#8a9099",
    "brightred": "#e06c75", "brightgreen": "#b5d99c", "brightblue": "#9ac1f0", "brightmagenta": "#d0b0d8",
    "brightcyan": "#8fd0d4", "brightwhite": "#ffffff", "brightbrown": "#ecd09c",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Wait until all is quiet and `prompt`, a pattern, ends what stands left of the cursor; then type `keys`."""

    prompt: str
    keys: str


def film(
    command: Sequence[str], steps: Sequence[Step], *, columns: int, lines: int, folder: Path, **environment: str
) -> list[tuple[float, list[Row]]]:
    """Frames with their times, in seconds, up to the last step; waiting is shortened. Fails without the prompt."""
    import fcntl
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    child = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=folder,
        env=os.environ | {"TERM": "xterm-256color"} | environment, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    screen = pyte.Screen(columns, lines)
    stream, frames, now = pyte.ByteStream(screen), [(0.0, _rows(screen))], 0.0

    def read(seconds: float) -> bool:
        nonlocal now
        start = time.monotonic()
        if not select.select([master], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(master, 4096)
        except OSError:  # the program has ended
            return False
        stream.feed(piece)
        if b"\x1b[6n" in piece:  # it asks where the cursor is, as prompt_toolkit does
            os.write(master, f"\x1b[{screen.cursor.y + 1};{screen.cursor.x + 1}R".encode())
        now += min(time.monotonic() - start, SLOW_S)
        frames.append((now, _rows(screen)))
        return bool(piece)

    for step in steps:
        deadline = time.monotonic() + 120
        while not re.search(step.prompt + "$", screen.display[screen.cursor.y][: screen.cursor.x]):
            if not read(1.0) or time.monotonic() > deadline:
                raise SystemExit(f"{step.prompt!r} never came; the screen:\n" + "\n".join(screen.display))
            while select.select([master], [], [], 0.2)[0] and read(0.0):
                pass
        now += SLOW_S
        for key in step.keys:
            os.write(master, key.encode())
            read(0.5)
            now += FAST_S
    child.kill()
    child.wait()
    os.close(master)
    return frames


def _rows(screen: pyte.Screen) -> list[Row]:
    rows = []
    for y in range(screen.lines):
        cells = [screen.buffer[y][x] for x in range(screen.columns)]
        row = tuple((cell.data or "", _colour(cell), cell.bold) for cell in cells)
        rows.append(tuple(_stripped(row)))
    return rows


def _colour(cell: pyte.screens.Char) -> str:
    if cell.fg == "default":
        return FOREGROUND
    return PALETTE.get(cell.fg, f"#{cell.fg}")


def _stripped(row: Row) -> Row:
    end = max((at + 1 for at, (data, _, _) in enumerate(row) if data.strip()), default=0)
    return row[:end]


def svg(frames: Sequence[tuple[float, list[Row]]], title: str, *, columns: int) -> str:
    """Each distinct row is one text that is visible while it stands on the screen."""
    length = frames[-1][0] + REST_S
    used = max((at + 1 for _, rows in frames for at, row in enumerate(rows) if row), default=1)
    width, height = 2 * LEFT + columns * WIDTH, TOP + used * HEIGHT + LEFT
    texts, rules = [], []
    for at in range(used):
        for start, end, row in _spans(frames, at, length):
            if not row:
                continue
            name = f"a{len(texts)}"
            last = " l" if end >= length else ""
            y = TOP + at * HEIGHT
            texts.append(f'<text class="{name}{last}" x="{LEFT}" y="{y}">{"".join(_runs(row))}</text>')
            if start > 0 or end < length:
                a, b = (f"{100 * moment / length:.2f}%" for moment in (start, end))
                hide = "" if end >= length else f"{b}{{visibility:hidden}}"
                begin = "" if start == 0 else "0%{visibility:hidden}"
                rules.append(f"@keyframes {name}{{{begin}{a}{{visibility:visible}}{hide}}}")
                rules.append(f".{name}{{animation:{name} {length:.1f}s step-end infinite}}")
    style = (
        "text{font:14px ui-monospace,Menlo,Consolas,monospace;white-space:pre;visibility:hidden}.l{visibility:visible}"
    )
    still = "@media(prefers-reduced-motion:reduce){text{animation:none!important}}"
    bar = "".join(
        f'<circle cx="{20 + 18 * at}" cy="17" r="5.5" fill="{colour}"/>'
        for at, colour in enumerate(("#e0695e", "#dfb13d", "#63b454"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" xml:space="preserve" role="img" '
        f'aria-label="{escape(title)}">'
        f"<style>{style}{''.join(rules)}{still}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>{bar}{"".join(texts)}</svg>\n'
    )


def _spans(frames: Sequence[tuple[float, list[Row]]], at: int, length: float) -> Iterator[tuple[float, float, Row]]:
    """From when to when which text stood in a line."""
    for row, group in groupby(enumerate(frames), key=lambda entry: entry[1][1][at]):
        numbers = [number for number, _ in group]
        following = numbers[-1] + 1
        yield frames[numbers[0]][0], frames[following][0] if following < len(frames) else length, row


def _runs(row: Row) -> Iterator[str]:
    column = 0
    for (colour, bold), cells in groupby(row, key=lambda cell: cell[1:]):
        text = "".join(data for data, _, _ in cells)
        weight = ' font-weight="bold"' if bold else ""
        if text.strip():
            yield f'<tspan x="{LEFT + column * WIDTH:.1f}" fill="{colour}"{weight}>{escape(text)}</tspan>'
        column += len(text)
