from __future__ import annotations

import re

import pytest

from zephyra_cli import markdown, ui
from zephyra_cli.markdown import MarkdownAnswer, finished


class Screen:
    """A terminal that knows what MarkdownAnswer uses: lines, colours (dropped), cursor up, erase below."""

    def __init__(self, height: int) -> None:
        self.height, self.lines, self.row, self.highest = height, [""], 0, 0

    def draw(self, text: str) -> None:
        for part in re.split(r"(\x1b\[\d*[A-Za-z]|\x1b\[[\d;]*m|\n)", text):
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif found := re.fullmatch(r"\x1b\[(\d+)A", part):
                self.row -= int(found[1])
                assert self.row > len(self.lines) - 1 - self.height, "it went up to what has scrolled away"
            elif part == "\x1b[J":
                self.lines[self.row :] = [""]
            elif not part.startswith("\x1b"):
                assert part.isprintable()
                self.lines[self.row] += part


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
    assert "Files" in lines[0] or "Files" in lines[1]
    assert "find . -type f" in text and "**" not in text and "```" not in text
    assert text.count("The end") == 1 and "\\x1b[31mred\\x1b[0m." in text
    assert text.count("everything") == 1 and text.count("• one") == 1


def test_a_block_longer_than_the_screen_is_printed_once(screen: Screen) -> None:
    code = "```\n" + "".join(f"line number {n};\n" for n in range(40)) + "```\n"
    text = "\n".join(shown(screen, code, 5))
    assert all(text.count(f"number {n};") == 1 for n in range(40))


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("one\n\ntwo", "one\n\n"),
        ("one\ntwo", ""),
        ("```\na\n\nb\n", ""),
        ("```\na\n```\nmore", "```\na\n```\n"),
        ("````\n```\n\n", ""),
        ("- a\n\n- b\n", ""),
        ("- a\n\nend\n", "- a\n\n"),
        ("1. a\n\n", ""),
    ],
)
def test_what_is_finished(text: str, closed: str) -> None:
    assert text[: finished(text)] == closed
