"""The keys and the endings of a chat, on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
from pseudo_terminal import PROMPT, TAKEN, Terminal

from tests.cli.process import Run
from zephyra_cli.conversations import Conversations

XTERM = {"TERM": "xterm-256color"}


def kept(home: Path) -> list[tuple[str, str, str]]:
    conversations = Conversations(home / "conversations.db", pytest.fail)
    return [
        (row.turn.question, row.turn.answer, row.turn.finish_reason)
        for summary in conversations.summaries()
        for row in conversations.turns(summary.id)
        if not row.undone
    ]


def test_keys(tiny_pack: Path, home: Path, tmp_path: Path) -> None:
    """Completion of commands and arguments, the history with its search, an editor, a paste of several lines."""
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'written\\nelsewhere' > \"$1\"\n")
    editor.chmod(0o700)
    with Terminal("chat", "-m", tiny_pack, "-n", 2, "-d", "none", EDITOR=str(editor), size=(80, 24), **XTERM) as chat:

        def enters(keys: str) -> None:
            chat.types(keys + "\r")
            chat.sees(TAKEN)
            chat.sees(PROMPT)

        chat.sees(PROMPT)
        chat.types("/dom\t")
        chat.sees("ain")
        chat.types("sh\t")
        chat.sees("ell")
        enters("")
        assert "domain: shell" in chat.plain
        enters("first question")
        enters("\x1b[200~pasted\nin two lines\x1b[201~")
        chat.types("\x12irst q")
        chat.sees("irst q")
        chat.types("\r")
        enters("")
        chat.types("\x18\x05")
        chat.sees("elsewhere")
        enters("")
        assert chat.leaves() == 0
    questions = [question for question, _, _ in kept(home)]
    assert questions == ["first question", "pasted\nin two lines", "first question", "written\nelsewhere"]
    with Terminal("chat", "-m", tiny_pack, "-n", 2, "-d", "none", size=(80, 24), **XTERM) as later:
        later.sees("base!")
        later.types("\x12first q")
        later.sees("uestion")  # of another run
        later.types("\x03")
        assert later.leaves() == 0


@pytest.mark.parametrize("plain", [True, False])
def test_a_terminal_that_goes_away_costs_nothing(tiny_pack: Path, home: Path, zephyra: Run, plain: bool) -> None:
    more = ("-n", 490, "-t", 3, "--seed", 1, "-d", "none", *(["--plain"] if plain else []))
    chat = Terminal("chat", "-m", tiny_pack, *more, size=(80, 24), **XTERM)
    chat.sees("base!")
    chat.types("hello\r")
    chat.sees(r"(2004l|hello\r\n)[^\x1b]{5}")  # some of the answer
    chat.goes_away()
    assert chat.process.wait(60) in (128 + signal.SIGHUP, 0), "0: it was done, and the prompt found the input's end"
    ((question, answer, reason),) = kept(home)
    assert question == "hello" and answer and reason in ("interrupted", "length", "stop")
    assert b"going on after 1 turn" not in zephyra("chat", "-c", "-m", tiny_pack, "-n", 1, stdin=b"more").stderr
    assert len(kept(home)) == 2


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_at_the_prompt_leaves_the_terminal_as_it_was(tiny_pack: Path, number: signal.Signals) -> None:
    with Terminal("chat", "-m", tiny_pack, size=(80, 24), **XTERM) as chat:
        chat.sees("auto>")
        chat.types("half a quest")
        chat.sees("half a quest")
        assert not chat.echoes()
        chat.process.send_signal(number)
        assert chat.process.wait(60) == 128 + number
        assert chat.echoes()


def test_a_terminal_that_goes_away_at_the_prompt(tiny_pack: Path) -> None:
    chat = Terminal("chat", "-m", tiny_pack, size=(80, 24), **XTERM)
    chat.sees("auto>")
    chat.types("half a quest")
    chat.sees("half a quest")
    chat.goes_away()
    assert chat.process.wait(60) in (128 + signal.SIGHUP, 0), "the signal or the end of the input, whichever is first"


def test_forty_columns(tiny_pack: Path) -> None:
    with Terminal("chat", "-m", tiny_pack, "-n", 2, "-t", 0, size=(40, 20), **XTERM) as chat:
        chat.sees("auto>")
        chat.types("/help\r")
        chat.sees("leaves")
        chat.types("hello\r/why\r")
        chat.sees("price: ")
        chat.sees("read")
        assert chat.leaves() == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", chat.all)
    assert "/retry\r\n  answer the last question again\r\n" in text
    assert max(len(line.rpartition("\r")[2]) for line in text.replace("\r\n", "\n").split("\n")) <= 40


def test_plain_is_words_alone(tiny_pack: Path) -> None:
    with Terminal("chat", "-m", tiny_pack, "-n", 4, "--plain", size=(80, 24), **XTERM) as chat:
        chat.sees("auto> ")
        chat.types("hello\n")
        chat.sees("(base|shell|sql)> ")
        chat.types("/why\n")
        seen = chat.sees("price: ")
        chat.sees("> ")
        assert chat.leaves() == 0
    assert "%" in seen and "#" not in seen and not set(re.findall(r"[\x00-\x1f]", chat.all)) - {"\r", "\n", "\t"}


def test_an_edit_without_an_editor_says_what_the_next_line_does(tiny_pack: Path, home: Path) -> None:
    with Terminal("chat", "-m", tiny_pack, "-n", 2, "-d", "none", "--plain", size=(80, 24), **XTERM) as chat:
        chat.sees("base! ")
        chat.types("first question\n")
        chat.sees("base! ")
        for line in ("", "another one"):
            chat.types("/edit\n")
            chat.sees(r"first question\r\n\(the next line replaces this question, an empty one keeps it\)\r\n")
            chat.sees("base! ")
            chat.types(line + "\n")
            chat.sees("base! ")
        assert chat.leaves() == 0
    assert [question for question, _, _ in kept(home)] == ["another one"]


def test_a_setting_makes_it_plain(tiny_pack: Path) -> None:
    with Terminal("chat", "-m", tiny_pack, "-n", 1, size=(80, 24), ZEPHYRA_PLAIN="1", **XTERM) as chat:
        chat.sees("auto> ")
        assert chat.leaves() == 0
    assert "\x1b" not in chat.all and os.environ.get("ZEPHYRA_PLAIN") is None


def test_hostile_titles_are_shown_not_executed(tiny_pack: Path, zephyra: Run) -> None:
    title = "a \x1b]0;owned\x07title \u202ebackwards"
    zephyra("generate", "-m", tiny_pack, "-n", 1, title)
    zephyra("chat", "-m", tiny_pack, "-n", 1, stdin=title.encode() + b"\n")
    for arguments in (
        ("log",),
        ("log", "show", "1"),
        ("log", "search", "owned"),
        ("chat", "--list"),
        ("log", "show", "2.1"),
    ):
        with Terminal(*arguments, size=(80, 24), **XTERM) as terminal:
            terminal.sees(r"title")
            assert terminal.leaves() == 0
        assert "\\x1b]0;owned\\x07" in terminal.all and "\\u202e" in terminal.all
        assert not set(re.findall(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e]", terminal.all)) - {"\r", "\n"}
