"""What other systems do differently, tried here as far as it can be."""

from __future__ import annotations

import os
import sys

import pytest

from zephyra_cli import ui
from zephyra_converters import staging


def test_a_console_that_has_a_code_page_gets_text_and_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Console:
        encoding, written, flushed = "utf-8", "", 0

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.written += text

        def flush(self) -> None:
            self.flushed += 1

    console = Console()  # it has no file descriptor: bytes cannot go there
    monkeypatch.setattr(ui, "_CONSOLE", True)
    monkeypatch.setattr(sys, "stdout", console)
    ui.write("naïve \x1b[31m")
    assert (console.written, console.flushed) == ("naïve \\x1b[31m", 1)


def test_no_process_is_asked_by_a_signal_where_that_signal_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: int, number: int) -> None:
        raise AssertionError(f"signal {number} was sent to {process}")

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "name", "nt")
    alive = staging._alive(1)
    monkeypatch.undo()
    assert alive
