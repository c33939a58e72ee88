"""A session: a loaded model and a conversation with it, turn by turn."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import field, replace

from zephyra_cli.conversations import Turn
from zephyra_cli.domain import AUTO, parse_domain
from zephyra_cli.engine import Answer, Engine, Request
from zephyra_cli.routing import UNROUTED, USER, Decision, SwitchPolicy, chosen
from zephyra_cli.text import AnswerText
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import NONE
from zephyra_fusion.types import Message, Route, SamplingParams
from zephyra_fusion.values import dataclass

ANSWER_SHARE = 4  # an answer gets at least this part of the context (a quarter), or all of its --max-tokens
SPARE_SHARE = 8  # when old turns leave, this part of the context stays free for the next ones
SUMMARIZE = (
    "Summarize our conversation so far in a few sentences. Keep names, numbers, decisions and what is still open."
)


@dataclass
class Session:
    """A conversation on an engine. `domain` as in `-d`; `auto` routes every turn anew, with hysteresis.

    `say` hears what the user must know and the answer does not contain. The backend finds by itself how much of a
    prompt its cache already holds, so that undoing or repeating a turn reads nothing twice.
    """

    engine: Engine
    params: SamplingParams
    say: Callable[[str], None]
    domain: str = AUTO
    system: str | None = None
    stop: tuple[str, ...] = ()
    policy: SwitchPolicy = SwitchPolicy()
    turns: list[Turn] = field(default_factory=list)
    route: Route | None = None
    """Of the last turn that was routed; None where the domain was given."""
    reason: str = ""
    answering: str | None = None
    """Who answers: a domain, `none`, or a blend as `-d` writes it. It is set before the first piece."""
    answer: Answer | None = None
    context: Sequence[Turn] = ()
    """The earlier turns that the last prompt held."""
    _first: int = 0  # turns before it no longer fit the context

    def __post_init__(self) -> None:
        AnswerText(self.stop)  # what it refuses is refused before the first question
        self.pin(self.domain)

    def pin(self, domain: str) -> None:
        """Who answers from now on. ZephyraError: unknown, or `auto` without a router."""
        weights = parse_domain(domain, self.engine.pack.adapters)
        if weights is None and self.engine.pack.router is None:
            raise ZephyraError(f"model '{self.engine.pack.name}' has no router", hint="choose with /domain or -d")
        self.domain = domain

    @property
    def who(self) -> str | None:
        """Who answered last: a domain, `none`, or a blend as `-d` writes it; None before the first answer."""
        return next((spell(turn.weights) for turn in reversed(self.turns) if not turn.summary), None)

    def ask(self, question: str) -> Generator[str | Answer, None, Turn | None]:
        """Pieces of the answer, then the `Answer`; the turn that was added to `turns`, if any.

        KeyboardInterrupt ends the answer early, what there is of it is kept, and the interruption goes on its way.
        ZephyraError: the question does not fit the context, even alone.
        """
        self.context = self._that_fit(question)
        decision = self._decide(question)
        self.route, self.reason, self.answering = decision.route, decision.reason, spell(decision.weights)
        return (yield from self._answer(question, decision))

    def compact(self) -> Generator[str | Answer, None, Turn | None]:
        """A summary of the turns, by the bare base; from then on it stands for them. Pieces, then the `Answer`.

        What is too long for one prompt is summarized in parts, each together with the summary of those before it.
        An interruption, or an empty summary (ZephyraError), changes nothing. ZephyraError, at once: there are no turns.
        """
        summary, lowest = self._summarized()
        if not self.turns[lowest:]:
            raise ZephyraError("there is nothing to summarize yet")
        return self._compacted(summary, self.turns[lowest:])

    def _compacted(self, summary: list[Turn], turns: list[Turn]) -> Generator[str | Answer, None, Turn | None]:
        begun = 0
        while (end := self._last_that_fits(summary, turns, begun)) < len(turns):
            self.say(f"summarizing turns {begun + 1} to {end} of {len(turns)}")
            text = self._summary([*summary, *turns[begun:end]])
            summary = [Turn(question=SUMMARIZE, answer=text, finish_reason="stop", summary=True)]
            begun = end
        self.context = [*summary, *turns[begun:]]
        self.route, self.reason = None, "a summary is written by the bare base"
        decision = Decision(weights={}, by=USER, reason=self.reason)
        return (yield from self._answer(SUMMARIZE, decision, summary=True))

    def undo(self) -> Turn:
        """Take the last turn back. ZephyraError: there is none."""
        if not self.turns:
            raise ZephyraError("there is no turn to go back to")
        turn = self.turns.pop()
        self._first = self._first if self._first < len(self.turns) else 0
        return turn

    def clear(self) -> None:
        """Begin anew: no turns; system prompt, domain and settings stay."""
        self.turns, self._first, self.route, self.reason = [], 0, None, ""
        self.answering = self.answer = None

    def _decide(self, question: str) -> Decision:
        weights = parse_domain(self.domain, self.engine.pack.adapters)
        if self.domain == NONE and self.engine.pack.router is None:
            return UNROUTED
        if weights is not None:
            return chosen(self.domain, weights)
        messages = self._rendered(self.context, question)
        route = self.engine.route(question)
        return self.policy.decide(route, self._current(), lambda weights: self.engine.unread(messages, weights))

    def _current(self) -> str | None:
        """The one label that answered last; a blend is none that the router could stay with."""
        pack = self.engine.pack
        known = {*pack.adapters, *((NONE,) if pack.router else ())}
        return self.who if self.who in known else None

    def _answer(
        self, question: str, decision: Decision, *, summary: bool = False
    ) -> Generator[str | Answer, None, Turn | None]:
        messages = self._rendered(self.context, question)
        params = replace(self.params, max_tokens=self._room) if summary else self.params
        request = Request(messages=messages, params=params, decision=decision, stop=self.stop)
        events = self.engine.generate(request)
        interruption: KeyboardInterrupt | None = None
        turn = None
        while (event := next(events, None) if interruption is None else events.throw(interruption)) is not None:
            interruption = None
            if isinstance(event, Answer):
                self.answer = event
                turn = self._turn(question, event, summary)
                if turn is not None:
                    self.turns.append(turn)
            try:
                yield event
            except KeyboardInterrupt as caught:
                interruption = caught
        return turn

    def _turn(self, question: str, answer: Answer, summary: bool) -> Turn | None:
        """What is kept of an answer; nothing of one that was interrupted before its first word."""
        if summary and (not answer.text.strip() or answer.finish_reason == "interrupted"):
            return None
        if not answer.text and answer.finish_reason == "interrupted":
            return None
        return Turn(
            question=question,
            answer=answer.text,
            finish_reason=answer.finish_reason,
            weights=dict(answer.weights),
            model=answer.model,
            summary=summary,
        )

    def _summary(self, turns: Sequence[Turn]) -> str:
        params = replace(self.params, max_tokens=self._room)
        request = Request(messages=self._rendered(turns, SUMMARIZE), params=params, domain="none", stop=self.stop)
        *_, answer = self.engine.generate(request)
        if not isinstance(answer, Answer) or not answer.text.strip():
            raise ZephyraError("the model has no summary to give; nothing was changed")
        return answer.text

    @property
    def _room(self) -> int:
        """Tokens that are left free for an answer."""
        return min(self.params.max_tokens, self.engine.backend.context_length // ANSWER_SHARE)

    def _summarized(self) -> tuple[list[Turn], int]:
        """The last summary, if there is one, and the first turn that it does not stand for."""
        for at in range(len(self.turns) - 1, -1, -1):
            if self.turns[at].summary:
                return [self.turns[at]], at + 1
        return [], 0

    def _rendered(self, turns: Sequence[Turn], question: str) -> tuple[Message, ...]:
        messages = [Message("system", self.system)] if self.system else []
        for turn in turns:
            messages += [Message("user", turn.question), Message("assistant", turn.answer)]
        return (*messages, Message("user", question))

    def _fits(self, turns: Sequence[Turn], question: str, *, spare: int = 0) -> bool:
        count = self.engine.count(self._rendered(turns, question))
        return count + self._room + spare <= self.engine.backend.context_length

    def _last_that_fits(self, summary: Sequence[Turn], turns: Sequence[Turn], begun: int) -> int:
        """One past the last turn that can be summarized in one prompt; at least one is taken."""
        ends = range(begun + 1, len(turns) + 1)
        return begun + max(
            1, bisect_left(ends, True, key=lambda end: not self._fits([*summary, *turns[begun:end]], SUMMARIZE))
        )

    def _that_fit(self, question: str) -> list[Turn]:
        """The summary, if there is one, and as many of the last turns as leave room for question and answer."""
        kept, lowest = self._summarized()
        first = min(max(self._first, lowest), len(self.turns))
        if not self._fits([*kept, *self.turns[first:]], question):
            # More leaves than has to: a prompt that loses its oldest turn at every question is read anew every time.
            spare = self.engine.backend.context_length // SPARE_SHARE
            firsts = range(first + 1, len(self.turns))
            first += 1 + bisect_left(
                firsts, True, key=lambda at: self._fits([*kept, *self.turns[at:]], question, spare=spare)
            )
            first = min(first, len(self.turns))
            if first > max(self._first, lowest):
                self.say(
                    f"the conversation does not fit the context of {self.engine.backend.context_length} tokens: its "
                    f"first {first} of {len(self.turns)} turns are left out (/compact summarizes them instead)"
                )
        self._first = first
        return [*kept, *self.turns[first:]]


def spell(weights: Mapping[str, float]) -> str:
    """Weights as `-d` takes them."""
    if not weights:
        return "none"
    if list(weights.values()) == [1.0]:
        return next(iter(weights))
    return ",".join(f"{name}={weight!r}" for name, weight in weights.items())
