"""What is said is kept. Where that fails it is said once, tried again at the next turn, and all else goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from zephyra_cli import ahead, ui
from zephyra_cli.interruption import deferred
from zephyra_cli.replay import record
from zephyra_cli.settings import home
from zephyra_cli.text import counted, shorten
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.values import dataclass

if TYPE_CHECKING:
    from zephyra_cli.conversations import Conversations, Summary, Turn
    from zephyra_cli.engine import Answer
    from zephyra_cli.pack import Pack

Work = Callable[["Conversations"], object]

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
    _missed: list[Work] = field(default_factory=list)
    """What could not be written to rows that are there; it is, before anything else is."""
    _failing: bool = False

    def begin(
        self, question: str, system: str | None, *, earlier: list[Turn] | None = None, summary: bool = False
    ) -> None:
        """Keep a question before its answer begins; before it those `earlier` turns that could not be kept in time."""

        def work(kept: Conversations) -> None:
            self.conversation, self._row = kept.begin(
                self.conversation, question, system, source=self.source, summary=summary
            )

        all_kept = self._add_missed(earlier or [], system)
        self._row, self._text, self._next = 0, "", time.monotonic() + EVERY_S
        if all_kept:
            self._try(work)

    def progress(self, piece: str) -> None:
        """A piece of the answer came."""
        self._text += piece
        if self._row and (now := time.monotonic()) >= self._next:
            # Once this fails, the answer does not wait for a lock again: the whole of it is written at its end.
            kept = self._try(lambda kept: kept.progress(self._row, self._text))
            self._next = now + EVERY_S if kept else math.inf

    def finish(self, turn: Turn, answer: Answer, pack: Pack, context: Sequence[Turn]) -> Turn:
        """Keep the answer, given the turns that its prompt held. The turn with its row."""

        def work(kept: Conversations) -> None:
            rows = [earlier.id for earlier in context]
            result = {key: value for key, value in answer.to_dict().items() if key not in ("text", "replay")}
            kept.finish(conversation, row, turn, record(answer, pack, rows if all(rows) else None), result)

        row, self._row, conversation = self._row, 0, self.conversation or 0
        if row:
            self._surely(work)
        return replace(turn, id=row)

    def drop(self, *, interrupted: bool) -> None:
        """Not a word of an answer came."""
        row, self._row = self._row, 0
        if row:
            self._surely(lambda kept: kept.mark(row, undone=True, interrupted=interrupted))

    def mark(self, turn: Turn, *, undone: bool) -> None:
        """A turn was taken back, or put in its place again."""
        if turn.id:
            self._surely(lambda kept: kept.mark(turn.id, undone=undone))

    def add(self, turn: Turn, system: str | None) -> Turn:
        """Keep a turn that comes from elsewhere. The turn with its row."""
        self.begin(turn.question, system, summary=turn.summary)
        row, self._row, conversation = self._row, 0, self.conversation or 0
        if row:
            self._surely(lambda kept: kept.finish(conversation, row, turn, {}, {}))
        return replace(turn, id=row)

    def _add_missed(self, turns: list[Turn], system: str | None) -> bool:
        """Give those of `turns` that have none a row; whether all have one. The first that fails is the last tried."""
        for at, turn in enumerate(turns):
            if not turn.id:
                turns[at] = self.add(turn, system)
                if not turns[at].id:
                    return False
        return True

    def _surely(self, work: Work) -> None:
        """Now, or as soon as that is possible."""
        if self.conversations is not None and not self._try(work):
            self._missed.append(work)

    def _try(self, work: Work) -> bool:
        """Whether it was done. Another program's lock passes: only the first failure of several is said."""
        if self.conversations is None:
            return False
        try:
            with deferred():
                while self._missed:
                    self._missed[0](self.conversations)
                    del self._missed[0]
                work(self.conversations)
        except ZephyraError as error:
            if not self._failing:
                ui.note(f"warning: {error.message}; nothing is kept in the log while that lasts")
            self._failing = True
            return False
        self._failing = False
        return True


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
        reason = ahead.cause(error)
        ui.note(f"warning: {getattr(reason, 'message', reason)}; the answer is not kept in the log")
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
