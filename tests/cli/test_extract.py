"""`-x`: the first code block alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zephyra_cli.code_block import first_code_block

Inside = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Look:\n\n```python\nx = 1\n\ny = 2\n```\nand\n```\nz\n```\n", "x = 1\n\ny = 2\n"),
        ("~~~\na\n~~~", "a\n"),
        ("````md\n```\ninner\n```\n````", "```\ninner\n```\n"),
        ("1. so:\n\n   ```sh\n   ls -l\n     deep\n   ```\n", "ls -l\n  deep\n"),
        ("> ```\n> quoted\n> ```", "quoted\n"),
        ("```\ncut short", "cut short"),
        ("```\n```", ""),
        ("no block, `code` alone, ``` in a line", None),
        ("", None),
    ],
)
def test_the_first_block(text: str, code: str | None) -> None:
    assert first_code_block(text) == code


@pytest.mark.parametrize(
    ("answer", "shown"),
    [("Use:\n```sh\nls\n```\nDone.", "ls\n"), ("find .", "find .\n"), ("```\ncut sho", "cut sho\n")],
)
def test_generate_prints_it_alone(
    inside: Inside, tiny_pack: Path, monkeypatch: pytest.MonkeyPatch, answer: str, shown: str
) -> None:
    """The answer is set where the tokens become text: a random model writes no Markdown."""
    from zephyra_cli import text

    monkeypatch.setattr(text.AnswerText, "feed", lambda self, data: "")
    monkeypatch.setattr(text.AnswerText, "finish", lambda self: answer)
    assert inside("generate", "-m", tiny_pack, "-n", 2, "-x", "hi") == (0, shown, "")
    assert inside("generate", "-m", tiny_pack, "-x", "--json", "hi")[0] == 2
