"""The soak of benchmarks/soak.py in its short form, and that it would notice what it is there to notice."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
import soak


def test_a_short_soak(tiny_pack: Path, home: Path) -> None:
    found = soak.run(tiny_pack, 24, 3, home)
    assert (found.stray, found.missing, found.status) == ([], [], 0)
    assert len(found.asked) == 24 == len(found.memory) and {"ask", "interrupt", "resize", "retry"} <= set(found.done)
    assert min(found.memory) > 10e6


@pytest.mark.parametrize(
    ("shown", "is_stray"),
    [
        ("plain \x1b[31mred\x1b[0m\r\n\x1b[2J\x1b[?25h", False),
        ("a title \x1b]0;owned\x07", True),
        ("\x1bP1$r\x1b\\", True),
        ("a bell \x07", True),
        ("an override \u202e", True),
        ("C1 \x9b31m", True),
        ("\x1bc", True),
    ],
)
def test_what_is_stray(shown: str, is_stray: bool) -> None:
    assert bool(soak.stray(shown)) is is_stray
