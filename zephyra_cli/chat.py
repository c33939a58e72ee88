"""A chat: a session with who sits before it. What it shows, keeps and carries from one turn to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from zephyra_cli import store, ui
from zephyra_cli.conversations import Conversations, Turn
from zephyra_cli.domain import AUTO
from zephyra_cli.engine import Answer, Engine
from zephyra_cli.follow import follow, show_text
from zephyra_cli.session import Session
from zephyra_cli.settings import Settings
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import NONE

Show = Callable[[str | Answer], None]


@dataclass
class Log:
    """Where turns are kept; where that fails, the chat goes on and it is said once."""

    conversations: Conversations | None
    conversation: int | None = None

    def keep(self, turn: Turn, system: str | None) -> None:
        if self.conversations is not None:
            try:
                self.conversation = self.conversations.add(self.conversation, turn, system)
            except ZephyraError as error:
                self._give_up(error)

    def undo(self) -> None:
        if self.conversations is not None and self.conversation is not None:
            try:
                self.conversations.undo(self.conversation)
            except ZephyraError as error:
                self._give_up(error)

    def _give_up(self, error: ZephyraError) -> None:
        ui.note(f"note: {error.message}; nothing more of this chat is kept")
        self.conversations = None


@dataclass
class Chat:
    """`show` makes what shows one answer. `announce`: say who answers where that changes."""

    session: Session
    settings: Settings
    log: Log
    show: Callable[[], Show] = lambda: show_text
    announce: bool = False
    stats: bool = False
    files: list[str] = field(default_factory=list)
    """Texts that go with the next question."""
    draft: str = ""
    """What the next input line begins with; sending it replaces the last turn."""
    leaving: bool = False

    def ask(self, question: str) -> None:
        """One turn: shown, and kept as far as it came. KeyboardInterrupt and ZephyraError go on to the caller."""
        session, count = self.session, len(self.session.turns)
        before, told, show = session.answering, not self.announce, self.show()

        def show_who_and_what(event: str | Answer) -> None:
            nonlocal told
            if not told and session.domain == AUTO and session.answering != before:
                ui.note(f"[{name_of(session.answering)}]")
            told = True
            show(event)

        try:
            follow(session.ask("\n\n".join([question, *self.files])), show_who_and_what, stats=self.stats)
        finally:
            if len(session.turns) > count:
                self.files.clear()
                self.log.keep(session.turns[-1], session.system)

    def undo(self) -> Turn:
        """Take the last turn back, here and in the log."""
        turn = self.session.undo()
        self.log.undo()
        return turn

    def replace_last(self, question: str) -> None:
        """Ask this instead of the last question. Where no answer comes, the last turn stays."""
        turn = self.undo()
        count = len(self.session.turns)
        try:
            self.ask(question)
        finally:
            if len(self.session.turns) == count:
                self.session.turns.append(turn)
                self.log.keep(turn, self.session.system)

    def begin(self) -> None:
        """A new conversation; the old one stays in the log."""
        self.session.clear()
        self.log.conversation = None
        self.files.clear()

    def change_model(self, reference: str) -> None:
        """Go on with another model. ZephyraError: it cannot be had; the old one stays."""
        settings = replace(self.settings, model=reference)
        pack = store.find(reference, offline=settings.offline)
        engine = Engine.open(pack, context=settings.context, threads=settings.threads, device=settings.device)
        old, self.session.engine = self.session.engine, engine
        self.session.params, self.settings = settings.sampling(pack.generation), settings
        try:
            self.session.pin(self.session.domain)
        except ZephyraError:
            self.session.pin(AUTO if pack.router else NONE)
        old.close()

    @property
    def prompt(self) -> str:
        """Who answers, as far as it is known before the question."""
        session = self.session
        if session.domain != AUTO:
            return f"{name_of(session.domain)}! "
        return f"{name_of(session.answering) if session.answering else 'auto'}> "


def name_of(who: str | None) -> str:
    return "base" if who in (None, NONE) else str(who)
