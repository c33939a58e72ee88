"""The engine: a model that is loaded, its router, its adapters; a request in, pieces of text and an answer out."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.backends.protocol import GenerationUsage, Job
from zephyra_cli.domain import AUTO, parse_domain
from zephyra_cli.routing import UNROUTED, Decision, chosen, routed
from zephyra_cli.text import AnswerText, encode
from zephyra_fusion import __version__
from zephyra_fusion.types import Message, Route, SamplingParams, Segment
from zephyra_fusion.values import dataclass

if TYPE_CHECKING:
    from zephyra_cli.backends.protocol import Backend
    from zephyra_cli.loading import Loaded
    from zephyra_cli.pack import Pack
    from zephyra_cli.prompt_router import Classifier, PromptRouter
    from zephyra_cli.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question. `raw` continues the last message's text without a chat template.

    `domain`: as in `-d`; None is `auto` where the model has a router, else `none`. `decision`: who answers, where that
    was decided before. `stop`: texts that end the answer.
    """

    messages: tuple[Message, ...]
    params: SamplingParams
    raw: bool = False
    domain: str | None = None
    decision: Decision | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The whole of one answer; `to_dict` is the contract's result object. Times are milliseconds."""

    text: str
    finish_reason: str  # stop, length, interrupted
    model: str
    backend: str
    device: str
    decision: Decision
    usage: GenerationUsage
    load_ms: float
    switch_ms: float
    seed: int
    replay: str
    draft: str = "none"
    draft_note: str = ""

    @property
    def route(self) -> Route | None:
        """What the router said; None where it was not asked."""
        return self.decision.route

    @property
    def weights(self) -> Mapping[str, float]:
        return self.decision.weights

    def to_dict(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "model": self.model,
            "backend": self.backend,
            "device": self.device,
            "route": None if self.route is None else route_dict(self.route),
            "decision": self.decision.to_dict(),
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
            },
            "timings": {
                "load_ms": round(self.load_ms, 3),
                "switch_ms": round(self.switch_ms, 3),
                "first_token_ms": round(usage.first_token_ms, 3),
                "prefill_tokens_per_second": round(usage.prefill_tokens_per_second, 1),
                "decode_tokens_per_second": round(usage.decode_tokens_per_second, 1),
            },
            "speculation": {
                "drafted": usage.drafted,
                "accepted": usage.accepted,
                "draft": self.draft,
                "note": self.draft_note,
            },
            "seed": self.seed,
            "replay": self.replay,
        }


def route_dict(route: Route) -> dict[str, Any]:
    """The contract's `route` object, the likeliest domain first."""
    ranked = sorted(route.probabilities.items(), key=lambda item: -item[1])
    return {
        "domain": route.domain,
        "weights": dict(route.weights),
        "probabilities": {name: round(share, 6) for name, share in ranked},
        "abstained": route.abstained,
        "router_ms": round(route.router_ms, 3),
    }


@dataclass
class Engine:
    """A pack on a backend. Router and adapters are loaded when they are first needed."""

    pack: Pack
    backend: Backend
    threads: int | None = None
    load_ms: float = 0.0
    kv_type: str = "f16"
    draft: str = "none"
    """Who guesses ahead, as `--draft` takes it."""
    draft_note: str = ""
    """Why nobody does."""
    classifier: Classifier | None = None
    _resident: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, pack: Pack, settings: Settings) -> Engine:
        """Load the pack's base. ZephyraError: the file is missing, damaged, or nothing this backend can run."""
        from zephyra_cli.loading import load

        return cls.of(pack, settings, load(pack, settings))

    @classmethod
    def of(cls, pack: Pack, settings: Settings, loaded: Loaded) -> Engine:
        """Of what `loading.load` gave."""
        return cls(
            pack,
            loaded.backend,
            threads=settings.threads,
            load_ms=loaded.milliseconds,
            kv_type=settings.kv_type,
            draft=loaded.draft,
            draft_note=loaded.note,
            classifier=loaded.classifier,
        )

    def route(self, prompt: str) -> Route:
        """What the router says of a prompt. ZephyraError: the model has none."""
        return self.router.route(prompt)

    @cached_property
    def router(self) -> PromptRouter:
        """ZephyraError: the model has none."""
        from zephyra_cli.prompt_router import PromptRouter

        return PromptRouter(self.pack, self.backend.encode, self.classifier, self.threads)

    def generate(self, request: Request) -> Generator[str | Answer, None, None]:
        """Pieces of the answer as they come, then the `Answer`.

        KeyboardInterrupt, raised inside or thrown in, ends the text early: the `Answer` says so, and when it has been
        taken, the interruption goes on its way.
        """
        text = AnswerText(request.stop)
        job, decision = self.job(request)
        switch_ms = self.backend.set_adapters(job.weights)
        pieces: list[str] = []
        finish_reason, interruption = "", None
        tokens = self.backend.generate(job.prompt, job.params)
        feed, token_bytes = text.feed, self.backend.token_bytes
        try:
            for token in tokens:
                if piece := feed(token_bytes(token.id)):
                    pieces.append(piece)
                    yield piece
                if text.stopped or token.finish_reason:
                    finish_reason = "stop" if text.stopped else token.finish_reason or ""
                    break
        except KeyboardInterrupt as caught:
            finish_reason, interruption = "interrupted", caught
        finally:
            tokens.close()
        if piece := text.finish():
            pieces.append(piece)
            try:
                yield piece
            except KeyboardInterrupt as caught:
                interruption = interruption or caught
        yield self.answer(request, decision, "".join(pieces), finish_reason, self.backend.usage, switch_ms)
        if interruption is not None:
            raise interruption

    def job(self, request: Request) -> tuple[Job, Decision]:
        """What the backend is to do, its adapters resident, and who decided on them."""
        prompt = self._prompt(request)
        decision = request.decision or self._decide(request)
        for name in decision.weights:
            if name not in self._resident:
                self.backend.add_adapter(name, self.pack.path(self.pack.adapters[name].file))
                self._resident.add(name)
        return Job(prompt=prompt, params=request.params, weights=decision.weights), decision

    def answer(
        self,
        request: Request,
        decision: Decision,
        text: str,
        finish_reason: str,
        usage: GenerationUsage,
        switch_ms: float = 0.0,
    ) -> Answer:
        """What is told of an answer that has ended."""
        return Answer(
            text=text,
            finish_reason=finish_reason,
            model=self.pack.name,
            backend=self.backend.name,
            device=self.backend.device,
            decision=decision,
            usage=usage,
            load_ms=self.load_ms,
            switch_ms=switch_ms,
            seed=request.params.seed,
            replay=self._replay(request, decision.weights),
            draft=self.draft,
            draft_note=usage.draft_note or self.draft_note,
        )

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a conversation with the answer opened."""
        return len(self._prompt(Request(messages=tuple(messages), params=self.pack.generation)))

    def unread(self, messages: Sequence[Message], weights: Mapping[str, float]) -> int:
        """Tokens of a conversation that would be read, and not found in a cache, under these weights."""
        prompt = self._prompt(Request(messages=tuple(messages), params=self.pack.generation))
        return len(prompt) - self.backend.cached_tokens(prompt, weights)

    def close(self) -> None:
        self.backend.close()

    def _decide(self, request: Request) -> Decision:
        if request.domain is None and self.pack.router is None:
            return UNROUTED
        domain = AUTO if request.domain is None else request.domain
        weights = parse_domain(domain, self.pack.adapters)
        if weights is not None:
            return chosen(domain, weights)
        return routed(self.route(_question(request.messages)))

    def _prompt(self, request: Request) -> list[int]:
        if self.pack.chat is None:
            from zephyra_cli.bare import bare_prompt

            return bare_prompt(self.pack.path(self.pack.base), request.messages, self.backend, raw=request.raw)
        if request.raw:
            return encode([Segment(request.messages[-1].content)], self.backend)
        return encode(self.pack.chat.render(request.messages), self.backend)

    def _replay(self, request: Request, weights: Mapping[str, float]) -> str:
        """JSON with all that determines the answer: model by name and hash, prompt, settings, weights, program."""
        pack = self.pack
        used = [pack.base, *(pack.adapters[name].file for name in weights)]
        return json.dumps(
            {
                "zephyra": __version__,
                "model": pack.name if pack.files else str(Path(pack.root, pack.base).absolute()),
                "sha256": {name: pack.files[name].sha256 for name in used if name in pack.files},
                "backend": self.backend.name,
                "context": self.backend.context_length,
                "kv_type": self.kv_type,
                "threads": self.backend.threads,  # they decide the last bits of a sum, so of a near tie
                "weights": dict(weights),
                "messages": [[message.role, message.content] for message in request.messages],
                "raw": request.raw,
                "stop": list(request.stop),
                "sampling": asdict(request.params),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )


def _question(messages: Sequence[Message]) -> str:
    """What is routed: the user's last words."""
    return next(message.content for message in reversed(messages) if message.role == "user")
