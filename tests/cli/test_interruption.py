"""Ctrl-C at every moment from Enter on: the question is kept, the answer ends, the chat does not."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
from pseudo_terminal import PROMPT, Terminal

from zephyra_cli import interruption
from zephyra_cli.conversations import Conversations
from zephyra_cli.interruption import Terminated, allowing, deferred

TURNS = (
    60  # at so many calls apart, they go from Enter (7,300 calls in the editor, 22 in the plain form) into the answer
)
# A chat whose answers end with an interruption and not before: one that is lost is a prompt that never comes. With a
# stride, it sends itself the signal, at each turn so many calls of functions later after Enter.
ENDLESS = """
import os, signal, sys, time
from pathlib import Path
from prompt_toolkit.buffer import Buffer
from tests.cli.scripted import FIRST_BYTE, ScriptedBackend
from zephyra_cli import interruption, line_editor, log, talk
from zephyra_cli.chat import Chat
from zephyra_cli.engine import Engine
from zephyra_cli.pack import Pack
from zephyra_cli.session import Session
from zephyra_cli.settings import Settings
from zephyra_fusion.types import SamplingParams, Token

class Endless(ScriptedBackend):
    def generate(self, prompt, params):
        while True:
            time.sleep(0.001)
            yield Token(FIRST_BYTE + 256)

kind, stride, turns, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
turn, left = 0, None

def taken(frame, event, argument):
    if kind == "plain":
        return event == "c_return" and argument is os.read
    return event == "call" and frame.f_code is Buffer.validate_and_handle.__code__

def count(frame, event, argument):
    global turn, left
    if event == "call" and left is not None:
        left -= 1
        if left <= 0:
            left = None
            os.kill(os.getpid(), signal.SIGINT)
    elif left is None and turn < turns and taken(frame, event, argument):
        turn, left = turn + 1, stride * turn

def read_counted(kept):
    def read(*arguments):
        if stride:
            sys.setprofile(count)  # an exception that comes in `count` ends it
        return kept(*arguments)
    return read

line_editor.LineEditor.read = read_counted(line_editor.LineEditor.read)
talk.PlainLines.read = read_counted(talk.PlainLines.read)
(folder / "base.gguf").touch()
engine = Engine(Pack(root=folder, name="endless", base="base.gguf"), Endless(b"x"))
session = Session(engine, SamplingParams(), print, domain="none")
interruption.install()
talk.talk(Chat(session=session, settings=Settings(), log=log.Log(log.open_conversations()), plain=kind == "plain"))
"""


def endless(kind: str, folder: Path, stride: int = 0) -> Terminal:
    program = [sys.executable, "-c", ENDLESS]
    return Terminal(kind, stride, TURNS, folder, program=program, size=(80, 24), TERM="xterm-256color")


def kept(home: Path) -> list[tuple[str, str]]:
    conversations = Conversations(home / "conversations.db", pytest.fail)
    return [
        (row.turn.question, row.turn.finish_reason)
        for summary in conversations.summaries()
        for row in conversations.turns(summary.id)
    ]


@pytest.mark.parametrize("kind", ["editor", "plain"])
def test_the_key_after_enter(kind: str, home: Path, tmp_path: Path) -> None:
    """Behind Enter in one write, and later: the terminal makes a key of it, or a signal, in any state of the editor."""
    enter, prompt = ("\r", PROMPT) if kind == "editor" else ("\n", "base! ")
    with endless(kind, tmp_path) as chat:
        chat.sees(prompt)
        asked = []
        for milliseconds in [0, 1, 2, 5, 10, 20] * 8:
            asked.append(f"question {len(asked)}")
            if milliseconds:
                chat.types(asked[-1] + enter)
                time.sleep(milliseconds / 1000)
                chat.types("\x03")
            else:
                chat.types(asked[-1] + enter + "\x03")
            chat.sees(prompt)
        assert chat.leaves() == 0
    if kind == "plain":  # there the terminal drops the line that it holds when Ctrl-C comes with it
        assert {reason for _, reason in kept(home)} == {"interrupted"}
        return
    assert kept(home) == [(question, "interrupted") for question in asked]


@pytest.mark.parametrize(("kind", "stride"), [("editor", 131), ("plain", 1)])
def test_the_signal_at_every_step_from_enter_to_the_answer(kind: str, stride: int, home: Path, tmp_path: Path) -> None:
    enter, prompt = ("\r", PROMPT) if kind == "editor" else ("\n", "base! ")
    with endless(kind, tmp_path, stride) as chat:
        chat.sees(prompt)
        asked = [f"question {number}" for number in range(TURNS)]
        for question in asked:
            chat.types(question + enter)
            chat.sees(prompt)
        assert chat.leaves() == 0
    assert kept(home) == [(question, "interrupted") for question in asked]


def test_what_is_deferred_ends_first() -> None:
    before, done = signal.getsignal(signal.SIGINT), []
    try:
        interruption.install()
        with pytest.raises(KeyboardInterrupt), deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("outer")
            with deferred():
                done.append("inner")
            done.append("outer again")
        assert done == ["outer", "inner", "outer again"] and not interruption.waits()
        with deferred():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                allowing(lambda: pytest.fail("it was raised late"))
            with pytest.raises(KeyboardInterrupt):
                allowing(lambda: signal.raise_signal(signal.SIGINT))
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # does not take its place
            with pytest.raises(Terminated):
                interruption.check()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, before if number == signal.SIGINT else signal.SIG_DFL)
