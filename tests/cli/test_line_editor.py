"""The line editor where something goes wrong: no traceback, nothing to press, the line goes on its way."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
from pseudo_terminal import PROMPT, TAKEN, Terminal

XTERM = {"TERM": "xterm-256color"}
CHAT = "import sys; from zephyra_cli.app import main; main()"
FULL = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); {CHAT}"  # files of a kilobyte


def test_a_history_that_cannot_grow_is_said_once(tiny_pack: Path, home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "chat_history").write_text("+earlier question\n" + "#" * 1000)
    program = [sys.executable, "-c", FULL]
    with Terminal("chat", "-m", tiny_pack, "-n", 1, program=program, size=(80, 24), **XTERM) as chat:
        chat.sees(PROMPT)
        for _ in range(2):
            chat.types("/stats off\r")
            chat.sees(TAKEN)
            chat.sees(PROMPT)
        chat.types("\x1b[A")
        chat.sees("stats off")
        chat.types("\x12arlier")
        chat.sees("question")
    assert chat.plain.count("not kept for later chats: File too large") == 1
    assert "Traceback" not in chat.plain and "ENTER" not in chat.plain


def types_calmly(pack: Path, line: str) -> None:
    """The line is taken in a chat, and nothing is printed of what went wrong inside."""
    with Terminal("chat", "-m", pack, "-n", 1, size=(80, 24), **XTERM) as chat:
        chat.sees(PROMPT)
        chat.types(line + "\r")
        chat.sees(TAKEN)
        chat.sees(PROMPT)
        assert chat.leaves() == 0
    assert "Traceback" not in chat.plain and "ENTER" not in chat.plain


@pytest.mark.parametrize("history", ["a folder", "read-only", "not readable"])
def test_a_history_that_cannot_be_used(tiny_pack: Path, home: Path, history: str) -> None:
    home.mkdir(exist_ok=True)
    if history == "a folder":
        (home / "chat_history").mkdir()
    else:
        (home / "chat_history").touch(0o400 if history == "read-only" else 0o200)
    types_calmly(tiny_pack, "/stats off")


def test_a_colour_that_is_typed_is_part_of_the_line(tiny_pack: Path, home: Path) -> None:
    """Pasted where the terminal does not say so. Mouse reports, which a program before may have asked for, are not."""
    types_calmly(tiny_pack, "a \x1b[31mred\x1b[0m \x1b[<0;3;4M\x1b[32;5;6Mline")
    assert (home / "chat_history").read_text().splitlines()[-1] == "+a \x1b[31mred\x1b[0m line"


def test_what_a_key_raises_is_said_after_the_line(tiny_pack: Path, home: Path) -> None:
    fails = "from zephyra_cli import slash; slash.completions = lambda text, chat: 1 / 0"
    program = [sys.executable, "-c", f"{fails}; {CHAT}"]
    with Terminal("chat", "-m", tiny_pack, "-n", 1, program=program, size=(80, 24), **XTERM) as chat:
        chat.sees(PROMPT)
        chat.types("/sta\tts\r")
        chat.sees(TAKEN)
        chat.sees(PROMPT)
        assert chat.leaves() == 0
    assert chat.plain.count("the line editor failed: division by zero") == 1 and "Traceback" not in chat.plain
    assert (home / "chat_history").read_text().splitlines()[-1] == "+/stats"


def test_what_reorders_text_is_shown_in_the_menu_and_in_the_line(tiny_pack: Path, tmp_path: Path) -> None:
    for name in ("a\u202ename", "a\u2066other"):
        (tmp_path / name).touch()
    with Terminal("chat", "-m", tiny_pack, "-n", 1, cwd=tmp_path, size=(80, 24), **XTERM) as chat:
        chat.sees(PROMPT)
        chat.types("/file a\t")
        chat.sees(r"u2066other")
        chat.types("\t")
        chat.types("/edit \u202edrawkcab")
        chat.sees("drawkcab")
    assert r" a\u202ename " in chat.plain and r"\u202ename/edit \u202edrawkcab" in chat.plain
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", chat.all)
