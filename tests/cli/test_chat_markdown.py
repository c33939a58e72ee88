from __future__ import annotations

import re

import pytest

from zephyra_cli import markdown, ui
from zephyra_cli.markdown import MarkdownAnswer, blocks


class Screen:
    """A terminal of 40 columns that knows what MarkdownAnswer uses: colours (dropped), cursor up, erase below."""

    def __init__(self, height: int, width: int = 40) -> None:
        self.height, self.width, self.lines, self.row = height, width, [""], 0

    def draw(self, text: str) -> None:
        for part in re.split(r"(\x1b\[\d*[A-Za-z]|\x1b\[[\d;]*m|\n|\r)", text):
            if part == "\n":
                self._down()
            elif part == "\r":
                assert self.row == len(self.lines) - 1 and len(self.lines[-1]) <= self.width
            elif found := re.fullmatch(r"\x1b\[(\d+)A", part):
                self.row -= int(found[1])
                assert self.row > len(self.lines) - 1 - self.height, "it went up to what has scrolled away"
            elif part == "\x1b[J":
                self.lines[self.row :] = [""]
            elif not part.startswith("\x1b"):
                assert part.isprintable()
                for character in part:
                    if len(self.lines[self.row]) == self.width:
                        self._down()
                    self.lines[self.row] += character

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen(height=12)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "12")
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


def shown(screen: Screen, text: str, step: int) -> list[str]:
    answer = MarkdownAnswer()
    for at in range(0, len(text), step):
        answer(text[at : at + step])
    answer.close()
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
