"""What a terminal sees: nothing that it would execute, no control sequence of our own where none is wanted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
from pseudo_terminal import Terminal

from tests.cli.process import PROGRAM, wait_until_blocked


def on_a_terminal(*arguments: object, **environment: str) -> tuple[int, str]:
    """The program with a terminal on all three streams; its status and what the terminal showed."""
    with Terminal(*arguments, **environment) as terminal:
        return terminal.ends(), terminal.all.replace("\r\n", "\n")


def test_an_answer_arrives_and_the_terminal_is_not_waited_for(tiny_pack: Path) -> None:
    status, shown = on_a_terminal("generate", "-m", tiny_pack, "-n", 8, "hello")
    assert status == 0 and shown.endswith("\n") and len(shown) > 1


def test_no_prompt_on_a_terminal_is_an_error_not_a_wait(tiny_pack: Path) -> None:
    status, shown = on_a_terminal("generate", "-m", tiny_pack)
    assert status == 1 and "the prompt is empty" in shown


@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb"])
def test_nothing_is_executed(tiny_pack: Path, terminal: str) -> None:
    """480 tokens of a random model over all bytes: control characters are sure to be among them."""
    arguments = (
        "generate",
        "-m",
        tiny_pack,
        "-n",
        480,
        "-t",
        3,
        "--top-k",
        0,
        "--top-p",
        1,
        "--min-p",
        0,
        "--seed",
        1,
        "hello",
    )
    status, shown = on_a_terminal(*arguments, TERM=terminal, NO_COLOR="1")
    assert status == 0
    raw = subprocess.run(
        [*PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    ).stdout
    assert any(byte < 0x20 and byte not in b"\n\t" for byte in raw), "the sample holds no control character"
    assert not any((ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert "\\x" in shown


def test_hostile_names_and_metadata_are_shown(change_pack: Callable[..., Path]) -> None:
    root = change_pack(description="\x1b]0;owned\x07\u202ehidden")
    status, shown = on_a_terminal("models", "show", root)
    assert status == 0 and "\\x1b]0;owned\\x07\\u202ehidden" in shown and "\x1b" not in shown
    status, shown = on_a_terminal("generate", "-m", "./\x1b[31mgone", "hi")
    assert status == 1 and "\\x1b[31mgone" in shown and "\x1b" not in shown


def test_json_stays_json_on_a_terminal(change_pack: Callable[..., Path]) -> None:
    root = change_pack(description="\x1b\x9b31m \u202e ü")
    status, shown = on_a_terminal("models", "show", root, "--json")
    assert status == 0 and shown.isascii()
    assert json.loads(shown)["description"] == "\x1b\x9b31m \u202e ü"


def test_an_error_on_a_terminal_has_no_colour() -> None:
    status, shown = on_a_terminal("generate", "-d", "x", "-m", "./gone", "hi")
    assert status == 1 and shown.startswith("error: ") and "\x1b" not in shown


@pytest.mark.skipif(sys.platform != "linux", reason="sends the terminal's own Ctrl-C")
def test_ctrl_c_at_the_terminal(tiny_pack: Path) -> None:
    """Ctrl-C while the program waits for a prompt on a pipe of a terminal session."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*PROGRAM, "generate", "-m", str(tiny_pack)], stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(reading)
    wait_until_blocked(process)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    os.close(writing)
    assert (process.returncode, output, error) == (130, b"", b"")
