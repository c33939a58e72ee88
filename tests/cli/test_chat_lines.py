"""The lines of a chat: what is a text, what a command, and what is kept of both."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.cli.scripted import ScriptedBackend, kept, scripted_chat
from zephyra_cli import talk
from zephyra_cli.chat import Chat
from zephyra_cli.conversations import Conversations
from zephyra_fusion.errors import ZephyraError


@pytest.fixture
def chat(tmp_path: Path, home: Path) -> Chat:
    return scripted_chat(tmp_path, home)


class Typed:
    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def read(self, prompt: str, draft: str = "") -> str:
        return self.lines.pop(0)


def test_quotes_hold_several_lines(chat: Chat) -> None:
    talk._turn(chat, Typed('"""first', "/help is text here", 'last"""'))
    assert kept(chat) == ["first\n/help is text here\nlast"]


@pytest.mark.parametrize("at", ["question", "answer"])
def test_a_lock_that_passes_costs_no_turn(chat: Chat, home: Path, capfd: pytest.CaptureFixture[str], at: str) -> None:
    chat.log.conversations = Conversations(home / "conversations.db", lambda text: None, wait_s=0.01)
    chat.ask("one")
    other = sqlite3.connect(home / "conversations.db", isolation_level=None)
    locked = False

    def show(event: object) -> None:
        nonlocal locked
        if not locked:
            other.execute("BEGIN IMMEDIATE")
            locked = True

    chat.show = lambda: show
    if at == "question":
        show("")
    for question in ("two", "three"):
        chat.ask(question)
    assert capfd.readouterr().err.count("warning: ") == 1
    other.execute("ROLLBACK")
    chat.ask("four")
    assert chat.log.conversation is not None
    turns, _ = chat.log.conversations.read(chat.log.conversation)
    assert [(turn.question, turn.answer) for turn in turns] == [(n, "yes") for n in ("one", "two", "three", "four")]
    assert [turn.id for turn in turns] == [turn.id for turn in chat.session.turns]


@pytest.mark.parametrize(
    ("lines", "question"),
    [
        (['"""one line"""'], "one line"),
        (['"""', "one", 'say """hi""" to', 'two"""'], 'one\nsay """hi""" to\ntwo'),
        (['"""first', 'last""" ', "next"], "first\nlast"),
        (['"""a word""" and a tail'], '"""a word""" and a tail'),
        (['"""Module docstring."""\nimport os\n'], '"""Module docstring."""\nimport os'),
        (["// a comment\nint x;"], "// a comment\nint x;"),
        (["/usr/bin/env\nwhat is it?"], "/usr/bin/env\nwhat is it?"),
        (["// what is this?"], "// what is this?"),
        (['"""/help"""'], "/help"),
    ],
)
def test_nothing_of_a_text_is_dropped_or_taken_for_a_command(chat: Chat, lines: list[str], question: str) -> None:
    talk._turn(chat, Typed(*lines))
    assert kept(chat) == [question]


@pytest.mark.parametrize("line", ["caf\udce9", "/system caf\udce9", '"""caf\udce9"""'])
def test_a_line_that_is_no_unicode_is_refused(chat: Chat, line: str) -> None:
    chat.session.system = "be brief"
    with pytest.raises(ZephyraError, match="no valid Unicode: character"):
        talk._turn(chat, Typed(line))
    assert chat.session.turns == [] and chat.session.system == "be brief"


def test_a_fault_costs_its_turn_not_the_chat(chat: Chat) -> None:
    backend = chat.session.engine.backend
    assert isinstance(backend, ScriptedBackend)
    backend.pieces = (b"half", RuntimeError("a fault"))
    with pytest.raises(ZephyraError, match="RuntimeError: a fault"):
        talk._turn(chat, Typed("one"))
    backend.pieces = (b"yes",)
    talk._turn(chat, Typed("two"))
    assert kept(chat)[-1] == "two"


def test_sending_the_edited_line_replaces_the_turn(chat: Chat) -> None:
    lines = Typed("one", "/edit", "two")
    for _ in range(3):
        talk._turn(chat, lines)
    assert kept(chat) == ["two"]
    talk._turn(chat, Typed("/quit"))
    assert chat.leaving


def test_a_number_beyond_all_conversations(chat: Chat) -> None:
    talk._turn(chat, Typed("one"))
    kept, beyond = chat.log.conversations, 10**20
    assert kept is not None and len(kept.summaries(limit=beyond)) == 1 == len(kept.search("one", limit=beyond))
    for work in (kept.turns, lambda number: kept.delete([number]), lambda n: talk._turn(chat, Typed(f"/load {n}"))):
        with pytest.raises(ZephyraError, match=f"no conversation {beyond}"):
            work(beyond)
