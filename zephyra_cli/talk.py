"""The loop of a chat: on a terminal with commands and an editable line, elsewhere one turn a line."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from zephyra_cli import slash, ui
from zephyra_cli.interruption import Terminated, allowing, deferred
from zephyra_cli.prompt import MOST_BYTES, decode
from zephyra_cli.text import counted, utf8
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.chat import Chat

QUOTES = '"""'
COMMAND = re.compile(r"/\w.*")  # one line: a pasted text may begin with a path, a single line with a comment


class Lines(Protocol):
    """Where a user's lines come from."""

    def read(self, prompt: str, draft: str = "") -> str:
        """A line (a pasted text may hold several), without its end. EOFError: no more come, or the terminal is gone."""
        ...


class PlainLines:
    """Lines of standard input, the prompt on standard error: for pipes, dumb terminals and screen readers."""

    def read(self, prompt: str, draft: str = "") -> str:
        if draft:  # it cannot stand in the line, as in one that is edited
            ui.note(f"{draft}\n(the next line replaces this question, an empty one keeps it)")
        try:
            if prompt and sys.stderr is not None:
                print(prompt, end="", file=sys.stderr, flush=True)
            line = _typed() if sys.stdin.isatty() and os.name != "nt" else sys.stdin.buffer.readline(MOST_BYTES + 1)
        except OSError:
            line = b""
        if not line:
            raise EOFError
        return decode(line, "the line")


def _typed() -> bytes:
    """A line of a terminal. Ctrl-C comes while it is waited for, not when Enter was pressed and the line is read."""
    line = b""
    while not line.endswith(b"\n"):
        allowing(lambda: select.select([sys.stdin], [], []))
        piece = os.read(sys.stdin.fileno(), 1 << 16)
        if not piece:  # Ctrl-D
            break
        line += piece
    return line


def talk(chat: Chat) -> bool:
    """Talk until the input ends; whether every turn was answered (on a terminal: always)."""
    if sys.stdin is None:
        raise ZephyraError("standard input is closed")
    if not sys.stdin.isatty():
        return _lines(chat)
    lines: Lines = PlainLines()
    if not chat.plain and ui.fancy(sys.stdout):
        from threading import Thread

        from zephyra_cli.line_editor import LineEditor
        from zephyra_cli.markdown import MarkdownAnswer, load

        lines, chat.show = LineEditor(lambda text: slash.completions(text, chat), remembers=True), MarkdownAnswer
        Thread(target=load, daemon=True).start()  # while the user types, so that the first answer need not wait
    chat.announce = True
    ui.note(f"{chat.session.engine.pack.name} · {_continued(chat)}/help shows the commands, Ctrl-D leaves")
    # An interruption comes where something waits or computes: elsewhere it would lose a line that was sent, or end the
    # chat between two turns.
    with deferred():
        while not chat.leaving:
            try:
                _turn(chat, lines)
            except EOFError:
                ui.note("")
                break
            except Terminated:
                raise
            except KeyboardInterrupt:
                ui.note("")
            except ZephyraError as error:
                ui.complain(error.message, error.hint)
    return True


def _lines(chat: Chat) -> bool:
    """Each line is a turn, even one that begins with a slash. What cannot be answered is said, the next one follows."""
    all_answered, lines = True, PlainLines()
    while True:
        try:
            if question := lines.read("").strip():
                _survived(lambda: chat.ask(question))
        except EOFError:
            return all_answered
        except ZephyraError as error:
            ui.complain(error.message, error.hint)
            all_answered = False


def _turn(chat: Chat, lines: Lines) -> None:
    draft, chat.draft = chat.draft, ""
    text = lines.read(chat.prompt, draft).strip()
    if quoted := text.startswith(QUOTES) and "\n" not in text:  # a pasted text is whole, whatever it begins with
        text = _quoted(text, lines)
    utf8(text, "the line")
    if not quoted and COMMAND.fullmatch(text):
        _survived(lambda: slash.run(text, chat))
    elif text:
        _survived(lambda: chat.replace_last(text) if draft else chat.ask(text))


def _quoted(text: str, lines: Lines) -> str:
    """What stands behind the opening quotes, up to a line that ends with the closing ones.

    A line that closes them and goes on is a text as it stands: nothing that was typed is dropped.
    """
    inner = text.removeprefix(QUOTES)
    if QUOTES in inner and not inner.endswith(QUOTES):
        return text
    while not inner.endswith(QUOTES):
        inner += "\n" + lines.read("... ").rstrip()
    return inner.removesuffix(QUOTES).strip()


def _survived(work: Callable[[], None]) -> None:
    """ZephyraError, whatever goes wrong: it costs this turn, not the chat."""
    try:
        work()
    except (ZephyraError, BrokenPipeError):
        raise
    except Exception as error:
        raise ui.in_words(error) from error


def _continued(chat: Chat) -> str:
    count = len(chat.session.turns)
    return f"going on after {counted(count, 'turn')} · " if count else ""
