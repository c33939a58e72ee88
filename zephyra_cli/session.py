"""A session: a loaded model and a conversation with it, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace

from zephyra_cli.conversations import Turn
from zephyra_cli.domain import AUTO, parse_domain
from zephyra_cli.engine import Answer, Engine, Request
from zephyra_cli.routing import Stickiness
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Message, Route, SamplingParams

ANSWER_SHARE = 4  # an answer gets at least this part of the context (a quarter), or all of its --max-tokens


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
    policy: Stickiness = Stickiness()
    turns: list[Turn] = field(default_factory=list)
    route: Route | None = None
    """Of the last turn that was routed; None where the domain was given."""
    reason: str = ""
    answering: str | None = None
    """Who answers: a domain, `none`, or a blend as `-d` writes it. It is set before the first piece."""
    answer: Answer | None = None
    _first: int = 0  # turns before it no longer fit the context

    def __post_init__(self) -> None:
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
        return spell(self.turns[-1].weights) if self.turns else None

    def ask(self, question: str) -> Generator[str | Answer, None, Turn | None]:
        """Pieces of the answer, then the `Answer`; the turn that was added to `turns`, if any.

        KeyboardInterrupt ends the answer early, what there is of it is kept, and the interruption goes on its way.
        ZephyraError: the question does not fit the context, even alone.
        """
        weights, route, reason = self._decide(question)
        request = Request(messages=self._messages(question), params=self.params, domain=spell(weights), stop=self.stop)
        self.route, self.reason, self.answering = route, reason, spell(weights)
        events = self.engine.generate(request)
        interruption: KeyboardInterrupt | None = None
        turn = None
        while (event := next(events, None) if interruption is None else events.throw(interruption)) is not None:
            interruption = None
            if isinstance(event, Answer):
                self.answer = event = replace(event, route=route)
                if event.text or event.finish_reason != "interrupted":
                    turn = Turn(
                        question=question,
                        answer=event.text,
                        finish_reason=event.finish_reason,
                        weights=dict(event.weights),
                        model=event.model,
                        replay=event.replay,
                    )
                    self.turns.append(turn)
            try:
                yield event
            except KeyboardInterrupt as caught:
                interruption = caught
        return turn

    def undo(self) -> Turn:
        """Take the last turn back. ZephyraError: there is none."""
        if not self.turns:
            raise ZephyraError("there is no turn to go back to")
        self._first = 0
        return self.turns.pop()

    def clear(self) -> None:
        """Begin anew: no turns; system prompt, domain and settings stay."""
        self.turns, self._first, self.route, self.reason = [], 0, None, ""
        self.answering = self.answer = None

    def _decide(self, question: str) -> tuple[Mapping[str, float], Route | None, str]:
        weights = parse_domain(self.domain, self.engine.pack.adapters)
        if weights is not None:
            return weights, None, f"you chose {self.domain}"
        route, reason = self.policy.decide(self.engine.route(question), self._current())
        return route.weights, route, reason

    def _current(self) -> str | None:
        """The one label that answered last; a blend is none that the router could stay with."""
        router = self.engine.pack.router
        known = {*self.engine.pack.adapters, *(router.labels if router else ())}
        return self.who if self.who in known else None

    def _messages(self, question: str) -> tuple[Message, ...]:
        """System prompt, as many of the last turns as leave room for an answer, and the question."""
        limit = self.engine.backend.context_length
        room = min(self.params.max_tokens, limit // ANSWER_SHARE)
        first = min(self._first, len(self.turns))
        while True:
            messages = [Message("system", self.system)] if self.system else []
            for turn in self.turns[first:]:
                messages += [Message("user", turn.question), Message("assistant", turn.answer)]
            messages.append(Message("user", question))
            count = self.engine.count(messages)
            if count + room <= limit or first == len(self.turns):
                break
            first += 1
        if first > self._first:
            self.say(
                f"the conversation does not fit the context of {limit} tokens: its first {first} of {len(self.turns)} "
                f"turns are left out, {count} tokens remain"
            )
        self._first = first
        return tuple(messages)


def spell(weights: Mapping[str, float]) -> str:
    """Weights as `-d` takes them."""
    if not weights:
        return "none"
    if list(weights.values()) == [1.0]:
        return next(iter(weights))
    return ",".join(f"{name}={weight!r}" for name, weight in weights.items())
