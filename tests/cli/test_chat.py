"""`zephyra chat` as a process: in a pipe and on a terminal."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
from pseudo_terminal import Terminal

from tests.cli.process import Run, start


def test_each_line_of_a_pipe_is_a_turn(zephyra: Run, tiny_pack: Path) -> None:
    done = zephyra("chat", "-m", tiny_pack, "-d", "shell", "-n", 4, stdin=b"one\n\n/help\nthree")
    assert done.returncode == 0 and done.stderr == b""
    listed = zephyra("chat", "--list")
    assert re.fullmatch(rb"1  \S+Z  3 turns  one\n", listed.stdout)
    alone = zephyra("generate", "-m", tiny_pack, "-d", "shell", "-n", 4, "one")
    assert done.stdout.startswith(alone.stdout)


def test_a_conversation_goes_on(zephyra: Run, tiny_pack: Path) -> None:
    first = zephyra("chat", "-m", tiny_pack, "-n", 4, "--stats", stdin=b"one\ntwo")
    again = zephyra("chat", "-m", tiny_pack, "-n", 4, "--stats", "-c", stdin=b"three")
    tokens = [int(n) for n in re.findall(rb"of (\d+) prompt tokens", first.stderr + again.stderr)]
    assert tokens == sorted(set(tokens)) and len(tokens) == 3, "each prompt holds the turns before"
    assert b"3 turns" in zephyra("chat", "--list").stdout
    assert zephyra("chat", "-m", tiny_pack, "--id", 9).returncode == 1


def test_a_conversation_goes_on_with_its_model(
    zephyra: Run, tiny_pack: Path, change_pack: Callable[..., Path], home: Path
) -> None:
    zephyra("chat", "-m", tiny_pack, "-n", 2, stdin=b"one")
    other = change_pack(name="other")
    again = zephyra("chat", "-c", "-n", 2, stdin=b"two", ZEPHYRA_MODEL=str(other))
    assert again.returncode == 0 and again.stderr == b""
    zephyra("chat", "-c", "-n", 2, "-m", other, stdin=b"three")
    shown = zephyra("log", "show", 1).stdout
    assert shown.count(b"## tiny") == 2 and shown.count(b"## other") == 1, "-m alone is a wish of now"


def test_a_kill_in_the_middle_of_an_answer_loses_no_question(zephyra: Run, tiny_pack: Path) -> None:
    """Two chats at once; one is killed while it answers. Both conversations are there and go on."""
    slow = ("chat", "-m", tiny_pack, "-n", 480, "-t", 3, "--seed", 1, "-d", "none")
    killed, other = (start(*slow, stdin=subprocess.PIPE) for _ in range(2))
    for process, question in ((killed, b"first\n"), (other, b"second\n")):
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(question)
        process.stdin.flush()
    os.read(killed.stdout.fileno(), 1)
    killed.kill()
    killed.communicate()
    other.communicate(timeout=60)
    listed = zephyra("chat", "--list").stdout
    assert listed.count(b"\n") == 2 and b"first" in listed and b"second" in listed
    number = next(line.split()[0] for line in listed.splitlines() if b"first" in line)
    again = zephyra("chat", "--id", number.decode(), "-n", 2, stdin=b"more")
    assert again.returncode == 0 and again.stdout
    assert (
        b"never answered: first" in again.stderr or b"## You\n\nfirst" in zephyra("log", "show", number.decode()).stdout
    )


def test_a_line_that_cannot_be_a_turn_does_not_end_the_chat(zephyra: Run, tiny_pack: Path) -> None:
    done = zephyra("chat", "-m", tiny_pack, "-n", 4, stdin=b"one\nb\0inary\n" + b"long " * 2000 + b"\nfour\n")
    assert done.returncode == 1 and done.stdout
    assert b"binary: a zero byte at offset 1" in done.stderr and b"tokens, the context has 512" in done.stderr
    assert b"2 turns" in zephyra("chat", "--list").stdout


def test_a_place_that_cannot_be_written_is_said(zephyra: Run, tiny_pack: Path, home: Path) -> None:
    (home / "conversations.db").mkdir(parents=True)
    done = zephyra("chat", "-m", tiny_pack, "-n", 4, stdin=b"one")
    assert done.returncode == 0 and done.stdout and b"nothing of this chat is kept" in done.stderr
    assert zephyra("chat", "-m", tiny_pack, "-c").returncode == 1


@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb"])
def test_turns_commands_and_ctrl_d_on_a_terminal(tiny_pack: Path, terminal: str) -> None:
    enter = "\n" if terminal == "dumb" else "\r"
    chat = Terminal("chat", "-m", tiny_pack, "-n", 4, "--stats", TERM=terminal)
    chat.sees("auto>")
    chat.types("/domain sql" + enter)
    chat.sees("domain: sql")
    chat.sees("sql!")
    chat.types("hello" + enter)
    chat.sees("sql · .* 4 tokens")
    chat.sees("sql!")
    chat.types("/hepl" + enter)
    chat.sees("did you mean 'help'")
    chat.sees("sql!")
    assert chat.leaves() == 0


def test_no_control_sequence_without_colour(tiny_pack: Path) -> None:
    chat = Terminal("chat", "-m", tiny_pack, "-n", 8, NO_COLOR="1", TERM="xterm")
    seen = chat.sees("auto> ")
    chat.types("hello\n")
    seen += chat.sees(r"(base|shell|sql)> ")
    assert chat.leaves() == 0 and "\x1b" not in seen


@pytest.mark.parametrize("plain", [True, False])
def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(tiny_pack: Path, plain: bool) -> None:
    enter = "\n" if plain else "\r"
    more = ("-n", 400, "-t", 3, "--seed", 1, "-d", "none", *(["--plain"] if plain else []))
    chat = Terminal("chat", "-m", tiny_pack, *more, TERM="xterm-256color")
    chat.sees("base!")
    chat.types("hello" + enter)
    chat.sees("hello")
    chat.types("\x03")  # it may come before the first word, within the answer or after it
    chat.sees("base!")
    assert chat.leaves() == 0
