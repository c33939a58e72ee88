"""The blocks of Markdown: where each begins and ends, and the lines that show code or a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import dedent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LEAST_COLUMN = 10  # cells: where the columns of a table would be narrower, a row's cells stand below each other
STYLES = {r"(?m)^#{1,6} .*$": "bold", r"\*\*[^*\n]+\*\*": "bold", r"`[^`\n]+`": "cyan"}
FENCE_BEGUN = ("", "`", "``", "~", "~~")
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_TABLE = re.compile(r"\s*\|.*\n\s*\|[\s:|-]*-[\s:|-]*\n")
_TAB = 4


def blocks(text: str) -> list[tuple[str, str, bool]]:
    """The text in blocks, in order and complete: kind (`text`, `code`, `table`), text, whether it is finished.

    A line of text is finished by its end, code by its closing fence, a table by the first line that is none of it.
    """
    found: list[tuple[str, str, bool]] = []
    fence = ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        bare, ended = line.strip(), line.endswith("\n")
        if fence:
            if closing := ended and _closes(bare, fence):
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


def emphasised(text: str) -> Text:
    """The text as it was written, what it emphasises in colour."""
    from rich.text import Text

    styled = Text(text)
    for pattern, style in STYLES.items():
        styled.highlight_regex(pattern, style)
    return styled


def drawn(kind: str, text: str, console: Console) -> list[tuple[int, Text]]:
    """The lines that show code or a table, none wider than the console, each with the line of `text` it is of."""
    from rich.text import Text

    if kind == "code":
        return _code(dedent(text), console)
    source = text.expandtabs(_TAB).removesuffix("\n").split("\n")
    if _TABLE.match(text):
        return _table(source, console)
    return [(at, piece) for at, line in enumerate(source) for piece in _wrapped(Text(line), console.width, console)]


def _code(text: str, console: Console) -> list[tuple[int, Text]]:
    """Between two empty lines, for the fences."""
    from rich.syntax import Syntax
    from rich.text import Text

    fence, *source = text.removesuffix("\n").split("\n")
    marks = re.match(r"`+|~+", fence.strip())
    assert marks is not None, "code begins with a fence"
    language, end = fence.strip()[marks.end() :].strip().partition(" ")[0], len(source) + 1
    if source and _closes(source[-1].strip(), marks[0]):
        source.pop()
    syntax = Syntax("", language or "text", theme="ansi_dark", word_wrap=True)
    code = syntax.highlight("\n".join(source).rstrip().expandtabs(_TAB))
    lines = [(0, Text())]
    for at, line in enumerate(code.split("\n"), 1):
        lines += [(at, Text(" " if piece else "") + piece) for piece in _wrapped(line, console.width - 2, console)]
    return [*lines, (end, Text())]


def _closes(bare: str, fence: str) -> bool:
    return bare.startswith(fence) and not bare.strip(fence[0])


def _table(source: Sequence[str], console: Console) -> list[tuple[int, Text]]:
    """Cells as they were written, every one whole: wrapped where columns are too wide, else below each other."""
    from rich.text import Text

    written = [_cells(line) for line in source]
    count = max(map(len, written))
    rows = [[emphasised(cell) for cell in row + [""] * (count - len(row))] for row in written]
    sides = [("center" if cell[:1] == ":" else "right") if cell[-1:] == ":" else "left" for cell in written[1]]
    sides += ["left"] * (count - len(sides))
    for cell in rows[0]:
        cell.stylize("cyan")
    del rows[1]
    natural = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    room = console.width - 2 * count
    most = next((most for most in range(min(max(natural), room), 0, -1) if sum(_at_most(most, natural)) <= room), 0)
    widths = _at_most(most, natural) if most >= min(max(natural), LEAST_COLUMN) else []
    rule = Text(" " + "─" * (sum(widths) + 2 * (count - 1) if widths else console.width - 2), "cyan")
    lines = [(0, Text())]
    for at, row in enumerate(rows):
        shown = _beside(row, widths, sides, console) if widths else _below(row, console)
        lines += [(at + (at > 0), line) for line in shown]
        if at == 0:
            lines.append((1, rule))
    return [*lines, (len(source), Text())]


def _cells(line: str) -> list[str]:
    first, *cells = re.split(r"(?<!\\)\|", line.strip())
    assert not first, "a row begins with a bar"
    if len(cells) > 1 and not cells[-1].strip():
        cells.pop()
    return [cell.strip().replace(r"\|", "|") for cell in cells]


def _at_most(most: int, widths: Sequence[int]) -> list[int]:
    return [min(most, width) for width in widths]


def _beside(row: Sequence[Text], widths: Sequence[int], sides: Sequence[str], console: Console) -> Iterator[Text]:
    from rich.text import Text

    columns = [_wrapped(cell, width, console) for cell, width in zip(row, widths, strict=True)]
    for at in range(max(map(len, columns))):
        line = Text(" ")
        for column, width, side in zip(columns, widths, sides, strict=True):
            piece = column[at] if at < len(column) else Text()
            space = width - piece.cell_len
            left = {"left": 0, "center": space // 2, "right": space}[side]
            line.append(" " * left).append_text(piece).append(" " * (space - left + 2))
        line.rstrip()
        yield line


def _below(row: Sequence[Text], console: Console) -> Iterator[Text]:
    from rich.text import Text

    for indent, cell in zip((" ", *["   "] * len(row)), (cell for cell in row if cell.plain), strict=False):
        yield from (Text(indent) + piece for piece in _wrapped(cell, console.width - 1 - len(indent), console))


def _wrapped(line: Text, width: int, console: Console) -> list[Text]:
    """In pieces of at most `width` cells: broken between words, and within one that is too long."""
    if line.cell_len <= width:
        return [line]
    pieces = list(line.wrap(console, max(2, width), justify="default", overflow="fold"))
    for piece in pieces:
        piece.rstrip()
    return pieces
