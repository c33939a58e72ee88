from __future__ import annotations

import os
import re

import pytest

from zephyra_cli import markdown, ui
from zephyra_cli.markdown import MarkdownAnswer, _rows
from zephyra_cli.markdown_block import blocks


class Screen:
    """A terminal of 40 columns that knows what MarkdownAnswer uses: colours (dropped), cursor up, erase line or below.

    `resize`, as most terminals do it: lines that no longer fit are wrapped, and joined where they were.
    """

    def __init__(self, height: int, width: int = 40) -> None:
        self.height, self.width, self.lines, self.row, self.column = height, width, [""], 0, 0
        self.wrapped: set[int] = set()  # rows that go on in the next one

    def draw(self, text: str) -> None:
        for part in re.split(r"(\x1b\[\d*[A-Za-z]|\x1b\[[\d;]*m|\n|\r|\t)", text):
            if part == "\n":
                self.wrapped.discard(self.row)
                self._down()
            elif part == "\r":
                self.column = 0
            elif part == "\t":
                self.column = min(self.column // 8 * 8 + 8, self.width - 1)
            elif found := re.fullmatch(r"\x1b\[(\d+)A", part):
                self.row -= int(found[1])
                assert self.row > len(self.lines) - 1 - self.height, "it went up to what has scrolled away"
            elif part in ("\x1b[K", "\x1b[J"):
                top = self.row == max(0, len(self.lines) - self.height)
                assert part == "\x1b[K" or self.column or not top, "tmux puts such a screen into its scrollback"
                self.lines[self.row] = self.lines[self.row][: self.column]
                if part == "\x1b[J":
                    self.lines[self.row + 1 :] = [""] * (len(self.lines) - self.row - 1)
            elif not part.startswith("\x1b"):
                assert part.isprintable()
                for character in part:
                    if self.column == self.width:
                        self.wrapped.add(self.row)
                        self._down()
                    line = self.lines[self.row].ljust(self.column)
                    self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
                    self.column += 1

    def resize(self, width: int) -> None:
        whole = [""]
        for row, line in enumerate(self.lines):
            whole[-1] += line
            if row not in self.wrapped:
                whole.append("")
        below = len(self.lines) - 1 - self.row
        assert self.column == 0, "the cursor is told by the lines below it alone"
        self.lines, self.width, self.wrapped = [], width, set()
        for line in whole[:-1]:
            pieces = [line[at : at + width] for at in range(0, len(line), width)] or [""]
            self.wrapped |= set(range(len(self.lines), len(self.lines) + len(pieces) - 1))
            self.lines += pieces
        self.row = len(self.lines) - 1 - below

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append("")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen(height=12)
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(os, "get_terminal_size", lambda *stream: os.terminal_size((made.width, made.height)))
    monkeypatch.setattr(ui, "draw", made.draw)
    monkeypatch.setattr(markdown, "SHORTEST_S", 0.0)
    monkeypatch.setattr(markdown, "SHARE", 0)
    return made


TEXT = """# Files

Use `find` with **care**, as it walks through *everything* below the folder that you name.

- one
- two

```sh
find . -type f
```

| name | size |
| --- | --- |
| a | 1 |

The end \x1b[31mred\x1b[0m.
"""


def shown(screen: Screen, text: str, step: int, resizes: dict[int, int] | None = None) -> list[str]:
    """The lines of the terminal after the answer; `resizes`: the width that it takes before a certain character."""
    answer, resizes = MarkdownAnswer(), dict(resizes or {})
    for at in range(0, len(text), step):
        for when in [when for when in resizes if when <= at]:
            screen.resize(resizes.pop(when))
        answer(text[at : at + step])
    answer.close()
    while screen.lines[-2:] == ["", ""]:
        screen.lines.pop()
    return [line.rstrip() for line in screen.lines]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_in_pieces_or_at_once_the_screen_is_the_same(screen: Screen, step: int) -> None:
    lines = shown(screen, TEXT, step)
    text = "\n".join(lines)
    assert lines[:3] == ["# Files", "", "Use `find` with **care**, as it walks th"]
    assert "- one\n- two\n" in text and "find . -type f" in text and "```" not in text
    assert "name" in text and "|" not in text and "---" not in text
    assert lines[-2:] == ["The end \\x1b[31mred\\x1b[0m.", ""]
    assert text.count("The end") == text.count("everything") == 1


CODE = r"""def f(a_b_c):
    # not a heading
    return 2*3*4, __init__, "\d+\.\d*"

<b> &amp; [a](b) | c
| cut -d"|" -f1
"""


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_bare_code_is_shown_as_it_was_written(screen: Screen, step: int) -> None:
    assert "\n".join(shown(screen, CODE, step)) == CODE


INDENTED = """- a list with code:

  ```sh
  ls
  ```
 | a | b |
 |---|---|
 | 1 | 2 |
"""


def test_what_is_indented_is_drawn_where_it_belongs(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(screen, INDENTED, 1)
    monkeypatch.setattr(ui, "draw", (again := Screen(height=12)).draw)
    assert lines == shown(again, INDENTED, 1000) and any(line.strip() == "ls" for line in lines)


def test_a_block_longer_than_the_screen_is_printed_once(screen: Screen) -> None:
    code = "```\n" + "".join(f"line number {n};\n" for n in range(40)) + "```\n"
    text = "\n".join(shown(screen, code, 5))
    assert all(text.count(f"number {n};") == 1 for n in range(40))


LONG_TABLE = "| n | name | note |\n|---|---|---|\n" + "".join(
    f"| {n} | {'w' * (n // 3 + 1)} | row{n}. |\n" for n in range(45)
)


@pytest.mark.parametrize("step", [3, 50])
def test_a_long_table_is_printed_once(screen: Screen, step: int) -> None:
    lines = shown(screen, LONG_TABLE, step)
    assert [re.sub(r".*?(row\d+\.|$).*", r"\1", line) for line in lines if "row" in line] == [
        f"row{n}." for n in range(45)
    ]
    assert len(lines) == 1 + 2 + 45 + 1


CODE_BLOCK = "```\n" + "".join(f"line number {n}; {'x' * n}\n" for n in range(40)) + "```\n"


@pytest.mark.parametrize("text", [CODE_BLOCK, LONG_TABLE])
@pytest.mark.parametrize("step", [4, 30])
@pytest.mark.parametrize("widths", [(60,), (25,), (30, 60), (60, 30, 41)])
def test_a_resize_repeats_no_more_than_a_line(screen: Screen, text: str, step: int, widths: tuple[int, ...]) -> None:
    resizes = {len(text) * (at + 1) // (len(widths) + 1): width for at, width in enumerate(widths)}
    after = "\n".join(shown(screen, text, step, resizes))
    counts = [len(re.findall(rf"(?:row|number ){n}[.;]", after)) for n in range(40)]
    assert min(counts) == 1 and sum(counts) <= 40 + len(widths)


@pytest.mark.parametrize("step", [7, 1000])
@pytest.mark.parametrize("width", [80, 40, 20, 12])
def test_no_cell_loses_anything(screen: Screen, width: int, step: int) -> None:
    screen.width, screen.height = width, 99
    cells = ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "https://example.org/" + 30 * "path/"]
    cells += ["日本語" * 8, "2*3*4 __init__ \\d+", "more than the header"]
    lines = shown(screen, f"| sha256 | url |\n| --- | ---: |\n| {' | '.join(cells)} |\n", step)
    letters = sorted(letter for line in lines for letter in line if letter not in " ─")
    assert letters == sorted("".join(["sha256", "url", *cells]).replace(" ", ""))


def test_a_bar_in_a_cell_is_part_of_it(screen: Screen) -> None:
    assert " a | b  c" in shown(screen, "| x | y |\n|---|---|\n| a \\| b | c |\n", 1)


@pytest.mark.parametrize("step", [1, 1000])
def test_a_line_with_tabs_is_shown_once(screen: Screen, step: int) -> None:
    text = "\t".join(f"word{n}" for n in range(8)) + " and **bold** at its end\nnext\n"
    lines = shown(screen, text, step)
    assert [len(re.findall(f"word{n}", "".join(lines))) for n in range(8)] == [1] * 8
    assert "**bold** at its end" in "".join(lines) and lines[-2] == "next"


@pytest.mark.parametrize(
    ("text", "rows"), [("", 1), ("a" * 40, 1), ("a" * 41, 2), ("é日" * 14, 2), ("a\tb", 1), ("👍🏽" * 10, 1)]
)
def test_rows_of_a_line(text: str, rows: int) -> None:
    assert _rows(text, 40) == rows


@pytest.mark.parametrize("text", ["a\tb" * 10, "👍🏽" * 11, "❤️" * 30])
def test_what_terminals_show_in_different_widths_is_not_gone_back_over(text: str) -> None:
    assert _rows(text, 40) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo", [("text", "one\n", True), ("text", "two", False)]),
        ("```\na\n\nb\n", [("code", "```\na\n\nb\n", False)]),
        ("a\n```\nb\n```\nc", [("text", "a\n", True), ("code", "```\nb\n```\n", True), ("text", "c", False)]),
        ("````\n```\n\n", [("code", "````\n```\n\n", False)]),
        ("```a``` is inline\n", [("text", "```a``` is inline\n", True)]),
        ("|a|\n|-|\n|b", [("table", "|a|\n|-|\n|b", False)]),
        ("|a|\n|-|\nend\n", [("table", "|a|\n|-|\n", True), ("text", "end\n", True)]),
    ],
)
def test_blocks(text: str, expected: list[tuple[str, str, bool]]) -> None:
    assert blocks(text) == expected
    assert "".join(part for _, part, _ in blocks(text)) == text
