"""Lines and tables on terminals: wide characters, combining ones, text from right to left, few columns."""

from __future__ import annotations

import pytest

from zephyra_cli import ui
from zephyra_cli.text import cells, shorten, wrapped

WORDS = ["plain", "東京タワー", "e\u0301tude", "שלום", "👩\u200d👩\u200d👧 family", "مرحبا"]


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("東京", 4), ("e\u0301", 1), ("👩\u200d👩\u200d👧", 2), ("שלום", 4), ("", 0)]
)
def test_cells(text: str, width: int) -> None:
    assert cells(text) == width


def test_columns_stand_below_each_other() -> None:
    lines = ui.table([(str(n), word, "end") for n, word in enumerate(WORDS)]).splitlines()
    assert len({cells(line[: line.index("end")]) for line in lines}) == 1
    right = ui.table([(word, "end") for word in WORDS], right=(0,)).splitlines()
    assert len({cells(line) for line in right}) == 1
    assert "\u200e" not in "".join(lines), "nothing is added to what a program reads"


def test_text_from_right_to_left_moves_no_column_of_a_terminal() -> None:
    line = ui.table([("1", "שלום", "עולם")], width=80)
    assert line == "1  שלום\u200e  עולם\u200e\n"


@pytest.mark.parametrize("width", [20, 30, 40, 60])
def test_a_table_keeps_to_the_terminal(width: int) -> None:
    text = "a description of many words and 東京タワーの住所 that is longer than most terminals are wide"
    table = ui.table(
        [("/command [ARGUMENT|OTHER]", text), ("short", "b"), *((word, word) for word in WORDS)], width=width
    )
    assert max(cells(line) for line in table.splitlines()) <= width
    assert "".join(text.split()) in "".join(table.split()), "all of it is there"


def test_wrapping_and_shortening() -> None:
    assert wrapped("one two three", 7) == ["one two", "three"] and wrapped("", 5) == [""]
    assert wrapped("  indented text", 10) == ["  indented", "text"]
    assert wrapped("abcdefgh", 3) == ["abc", "def", "gh"]
    assert wrapped("see /a/long/path here", 8, whole_words=True) == ["see", "/a/long/path", "here"]
    assert shorten("one\ntwo \x1b[31m", 20) == "one two \\x1b[31m"
    assert shorten("東京タワー", 7) == "東京タ…" and shorten("abc", 3) == "abc" and cells(shorten("x" * 99, 9)) == 9
