"""A chat: a session with who sits before it. What it shows, keeps and carries from one turn to the next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from dataclasses import field, replace
from typing import Any

from zephyra_cli import store, ui
from zephyra_cli.conversations import Turn
from zephyra_cli.domain import AUTO
from zephyra_cli.engine import Answer, Engine
from zephyra_cli.follow import follow, show_text
from zephyra_cli.interruption import allowing
from zephyra_cli.log import Log
from zephyra_cli.session import SUMMARIZE, Session
from zephyra_cli.settings import Settings, fresh_seed
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import NONE
from zephyra_fusion.types import SamplingParams
from zephyra_fusion.values import dataclass

Show = Callable[[str | Answer], None]


@dataclass
class Chat:
    """`show` makes what shows one answer. `announce`: say who answers where that changes."""

    session: Session
    settings: Settings
    log: Log
    show: Callable[[], Show] = lambda: show_text
    announce: bool = False
    stats: bool = False
    plain: bool = False
    """For a screen reader: words in place of bars and signs."""
    files: list[str] = field(default_factory=list)
    """Texts that go with the next question."""
    draft: str = ""
    """What the next input line begins with; sending it replaces the last turn."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Of the sampling, what was set by hand: it stays when the model changes."""
    leaving: bool = False

    def ask(self, question: str) -> None:
        """One turn: shown, and kept as far as it came. KeyboardInterrupt and ZephyraError go on to the caller."""
        question = "\n\n".join([question, *self.files])
        if self._follow(self.session.ask(question), question):
            self.files.clear()

    def compact(self) -> None:
        """A summary takes the place of the turns so far, in what the model is told; they stay in the log."""
        if not self._follow(self.session.compact(), SUMMARIZE, summary=True):
            raise ZephyraError("the model has no summary to give; nothing was changed")

    def undo(self) -> Turn:
        """Take the last turn back, here and in the log."""
        turn = self.session.undo()
        self.log.mark(turn, undone=True)
        return turn

    def replace_last(self, question: str) -> None:
        """Ask this instead of the last question. Where no answer comes, the last turn stays."""
        self._instead(lambda turn: self.ask(question))

    def retry(self) -> None:
        """Ask the last question again, or summarize again. Where no answer comes, the last turn stays."""
        self._instead(lambda turn: self.compact() if turn.summary else self.ask(turn.question))

    def _instead(self, work: Callable[[Turn], None]) -> None:
        turn = self.undo()
        count = len(self.session.turns)
        try:
            work(turn)
        finally:
            if len(self.session.turns) == count:
                self.session.turns.append(turn)
                self.log.mark(turn, undone=False)

    def _follow(self, events: Generator[str | Answer, None, object], question: str, *, summary: bool = False) -> bool:
        """Show and keep one answer; whether a turn came of it."""
        session, count = self.session, len(self.session.turns)
        before, told = session.who, not self.announce or summary
        self.log.begin(question, session.system, earlier=session.turns, summary=summary)

        def show_and_keep(event: str | Answer) -> None:
            nonlocal told
            if not told and session.domain == AUTO and session.answering != before:
                ui.note(f"[{name_of(session.answering)}]")
            told = True
            if isinstance(event, str):
                self.log.progress(event)
            show(event)

        try:
            show = self.show()
            allowing(lambda: follow(events, show_and_keep, stats=self.stats, plain=self.plain))
        finally:
            if len(session.turns) > count:
                assert session.answer is not None
                session.turns[-1] = self.log.finish(
                    session.turns[-1], session.answer, session.engine.pack, session.context
                )
            else:
                self.log.drop(interrupted=isinstance(sys.exception(), KeyboardInterrupt))
        return len(session.turns) > count

    def begin(self) -> None:
        """A new conversation; the old one stays in the log."""
        self.session.clear()
        self.log.conversation = None
        self.files.clear()

    def choose(self, **values: Any) -> None:
        """Sample so from now on. ZephyraError: a value that cannot be; nothing was changed."""
        params = replace(self.session.params, **values)
        self.chosen |= values
        self.session.params = self._seeded(params)

    def _seeded(self, params: SamplingParams) -> SamplingParams:
        """With a seed of its own where answers are drawn by chance and none was given."""
        if params.temperature == 0.0 or self.settings.seed is not None or "seed" in self.chosen:
            return params
        return replace(params, seed=fresh_seed())

    def change_model(self, reference: str) -> None:
        """Go on with another model. ZephyraError: it cannot be had; the old one stays."""
        settings = replace(self.settings, model=reference)
        pack = allowing(lambda: store.find(reference, offline=settings.offline))
        engine = allowing(lambda: Engine.open(pack, settings))
        old, self.session.engine = self.session.engine, engine
        before = self.session.params
        params = replace(settings.sampling(pack.generation), schema=before.schema, grammar=before.grammar)
        self.session.params, self.settings = self._seeded(replace(params, **self.chosen)), settings
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
        return f"{name_of(session.who) if session.who else 'auto'}> "


def name_of(who: str | None) -> str:
    return "base" if who in (None, NONE) else str(who)
