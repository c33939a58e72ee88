"""What is said is kept. Where that fails it is said once, and everything else goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zephyra_cli import ui
from zephyra_cli.interruption import deferred
from zephyra_cli.replay import record
from zephyra_cli.settings import home
from zephyra_cli.text import counted, shorten
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.conversations import Conversations, Summary, Turn
    from zephyra_cli.engine import Answer
    from zephyra_cli.pack import Pack

FILE = "conversations.db"
TITLE = 60  # cells of a conversation's title in a list
EVERY_S = 2.0  # how often an answer that is being written is kept: what a kill may cost
BRIEF_S = 2.0  # how long one answer waits for another program that is writing


def open_conversations(*, wait_s: float | None = None, readable: bool = False) -> Conversations:
    """The file in the home folder. CannotKeep, as `Conversations` says."""
    from zephyra_cli.conversations import Conversations

    return Conversations(home() / FILE, ui.note, wait_s=wait_s, readable=readable)


@dataclass
class Log:
    """Keeps the turns of one conversation; None keeps nothing."""

    conversations: Conversations | None
    conversation: int | None = None
    source: str = "chat"
    _row: int = 0  # of the question that is being answered; 0: none, or it is not kept
    _text: str = ""
    _next: float = 0.0

    def begin(self, question: str, system: str | None, *, summary: bool = False) -> None:
        """Keep a question before its answer begins."""

        def work(kept: Conversations) -> None:
            self.conversation, self._row = kept.begin(
                self.conversation, question, system, source=self.source, summary=summary
            )

        self._row, self._text, self._next = 0, "", time.monotonic() + EVERY_S
        self._try(work)

    def progress(self, piece: str) -> None:
        """A piece of the answer came."""
        self._text += piece
        if self._row and (now := time.monotonic()) >= self._next:
            self._next = now + EVERY_S
            self._try(lambda kept: kept.progress(self._row, self._text))

    def finish(self, turn: Turn, answer: Answer, pack: Pack, context: Sequence[Turn]) -> Turn:
        """Keep the answer, given the turns that its prompt held. The turn with its row."""

        def work(kept: Conversations) -> None:
            assert self.conversation is not None
            rows = [earlier.id for earlier in context]
            result = {key: value for key, value in answer.to_dict().items() if key not in ("text", "replay")}
            kept.finish(self.conversation, row, turn, record(answer, pack, rows if all(rows) else None), result)

        row, self._row = self._row, 0
        if row:
            self._try(work)
        return replace(turn, id=row)

    def drop(self, *, interrupted: bool) -> None:
        """Not a word of an answer came."""
        row, self._row = self._row, 0
        if row:
            self._try(lambda kept: kept.mark(row, undone=True, interrupted=interrupted))

    def mark(self, turn: Turn, *, undone: bool) -> None:
        """A turn was taken back, or put in its place again."""
        if turn.id:
            self._try(lambda kept: kept.mark(turn.id, undone=undone))

    def add(self, turn: Turn, system: str | None) -> Turn:
        """Keep a turn that comes from elsewhere. The turn with its row."""
        self.begin(turn.question, system, summary=turn.summary)
        row, self._row = self._row, 0
        if row:
            self._try(lambda kept: kept.finish(self.conversation or 0, row, turn, {}, {}))
        return replace(turn, id=row)

    def _try(self, work: Callable[[Conversations], object]) -> None:
        if self.conversations is not None:
            try:
                with deferred():
                    work(self.conversations)
            except ZephyraError as error:
                ui.note(f"warning: {error.message}; what follows is not kept in the log")
                self.conversations = None


def show_list(summaries: Sequence[Summary]) -> bool:
    """Conversations as a table on standard output; whether there were any."""
    rows = [(str(line.id), line.last, counted(line.turns, "turn"), shorten(line.title, TITLE)) for line in summaries]
    if rows:
        ui.write_table(rows, right=(0, 2))
    return bool(rows)


def keep_answer(question: str, system: str | None, answer: Answer, pack: Pack) -> None:
    """Keep one answer that belongs to no chat. The program that only answers once loads SQLite here, and no sooner."""
    try:
        from zephyra_cli.conversations import Turn

        log = Log(open_conversations(wait_s=BRIEF_S), source="generate")
    except (ZephyraError, ImportError) as error:
        ui.note(f"warning: {getattr(error, 'message', error)}; the answer is not kept in the log")
        return
    log.begin(question, system)
    turn = Turn(
        question=question,
        answer=answer.text,
        finish_reason=answer.finish_reason,
        weights=dict(answer.weights),
        model=answer.model,
    )
    log.finish(turn, answer, pack, ())
