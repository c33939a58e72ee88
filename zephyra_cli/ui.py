"""Where output goes: the answer to stdout, all else to stderr, and nothing that a terminal would execute."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO

from zephyra_cli.interruption import deferred
from zephyra_cli.text import cells, visible, wrapped
from zephyra_fusion.errors import ZephyraError


def prepare() -> None:
    """UTF-8 byte for byte in pipes and files; on a terminal its own encoding, with what it lacks written out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace", newline="\n")


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def fancy(stream: TextIO | None) -> bool:
    """Whether colour, cursor movement and progress displays are welcome there."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def write(text: str) -> None:
    """A piece of the answer, at once. ZephyraError: stdout is closed or full."""
    draw(visible(text) if is_terminal(sys.stdout) else text)


def draw(text: str) -> None:
    """As `write`, but a terminal executes what is in it: nothing from elsewhere may be in it unseen by `visible`."""
    if sys.stdout is None:
        raise ZephyraError("standard output is closed")
    if _CONSOLE and sys.stdout.isatty():  # bytes would be read in its code page, text is not
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    _unsent.extend(text.encode(sys.stdout.encoding, "backslashreplace"))
    try:
        while _unsent:
            _send()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ZephyraError(f"cannot write to standard output: {error.strerror}") from None


_CONSOLE = os.name == "nt"
_unsent = bytearray()  # what an interruption kept from being written; it goes first with the next piece


def _send() -> None:
    """Some bytes, as many as go without waiting. (Python's own buffer loses a piece when a signal interrupts it.)"""
    if os.name == "nt":
        size = len(_unsent)
    else:
        import select

        select.select([], [sys.stdout], [])
        size = select.PIPE_BUF
    with deferred(), suppress(BlockingIOError):
        del _unsent[: os.write(sys.stdout.fileno(), _unsent[:size])]


def write_json(value: Any) -> None:
    """One JSON object on one line; plain ASCII where a terminal reads it."""
    write(json.dumps(value, ensure_ascii=is_terminal(sys.stdout)) + "\n")


def columns(stream: TextIO | None) -> int | None:
    """The width of the terminal; None where it is none, or does not say, and lines may be of any length."""
    if stream is None or not stream.isatty():
        return None
    if (told := os.environ.get("COLUMNS", "")).isdecimal():
        return int(told) or None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def table(rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), width: int | None = None) -> str:
    """Rows in columns as wide as their widest cell; those in `right` are aligned to the right.

    A terminal's `width` is kept to: the last column is wrapped, or where that leaves too little, a row's cells stand
    below each other.
    """
    rows = [[visible(cell) if width is None else _isolated(visible(cell)) for cell in row] for row in rows]
    widths = [max(cells(cell) for cell in column) for column in zip(*rows, strict=True)]
    room = widths[-1] if width is None else width - sum(widths[:-1]) - 2 * (len(widths) - 1)
    if width is not None and room < min(widths[-1], LEAST_COLUMN):
        return "".join(_stacked(row, max(LEAST_COLUMN, width)) for row in rows)
    lines = []
    for row in rows:
        head = ""
        for at, cell in enumerate(row[:-1]):
            space = " " * (widths[at] - cells(cell))
            head += (space + cell if at in right else cell + space) + "  "
        for line in wrapped(row[-1], room) if cells(row[-1]) > room else [row[-1]]:
            space = " " * (widths[-1] - cells(line)) if len(row) - 1 in right else ""
            lines.append(head + space + line)
            head = " " * cells(head)
    return "".join(line.rstrip() + "\n" for line in lines)


def write_table(rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A table on standard output, no wider than the terminal."""
    write(table(rows, right=right, width=columns(sys.stdout)))


LEAST_COLUMN = 20  # cells: narrower, a text is no longer pleasant to read


def _stacked(row: Sequence[str], width: int) -> str:
    first, *rest = [cell for cell in row if cell] or [""]
    lines = [*wrapped(first, width), *(f"  {line}" for cell in rest for line in wrapped(cell, width - 2))]
    return "".join(line.rstrip() + "\n" for line in lines)


def _isolated(cell: str) -> str:
    """Text from right to left is ended by a mark without width: the cell after it stays where it is."""
    if cell.isascii():
        return cell
    import unicodedata

    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in cell):
        return cell + "\u200e"
    return cell


def note(text: str) -> None:
    """A line beside the answer; nobody hears it where the terminal is gone."""
    if sys.stderr is not None:
        try:
            print(_fitted(text) if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
        except BrokenPipeError:
            raise
        except OSError:
            pass


def _fitted(text: str) -> str:
    """As a terminal may show it, broken between words. (A path that is longer than a line stays whole.)"""
    width = columns(sys.stderr)
    if width is None:
        return visible(text)
    lines = (line for part in visible(text).split("\n") for line in wrapped(part, width, whole_words=True))
    return "\n".join(lines)


_PAGE = 2000  # characters


def in_words(error: BaseException) -> ZephyraError:
    """What went wrong, for a user. The error itself is raised where ZEPHYRA_TRACEBACK asks for its traceback."""
    if os.environ.get("ZEPHYRA_TRACEBACK") == "1":
        raise error
    if isinstance(error, ZephyraError):
        return error
    if isinstance(error, OSError):
        return ZephyraError(str(error))
    if isinstance(error, MemoryError):
        return ZephyraError("not enough memory", hint="a smaller model or a smaller --context needs less")
    fault = "a fault of zephyra; ZEPHYRA_TRACEBACK=1 shows where"
    return ZephyraError(f"{type(error).__name__}: {error}", hint=fault)


def complain(message: str, hint: str | None) -> None:
    """An error's words come in part from files: what is longer than a page of them helps nobody."""
    note(f"error: {message if len(message) <= _PAGE else message[:_PAGE] + '…'}")
    if hint:
        note(f"hint: {hint}")
