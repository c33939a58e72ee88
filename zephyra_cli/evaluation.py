"""What a model is worth on held-out texts: perplexities of domains under adapters, and who the router sends where."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zephyra_cli.calibration import expected_calibration_error
from zephyra_cli.domain import AUTO
from zephyra_cli.held_out import CHAT, HeldOut, question
from zephyra_cli.likelihood import Example, Loss, example, loss, total
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import NONE
from zephyra_fusion.types import Route

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine

BASE = "base"
Mix = tuple[tuple[str, float], ...]
Matrix = dict[str, dict[str, Loss]]  # domain -> column (base, every adapter, auto) -> loss


def perplexities(
    engine: Engine,
    records: Mapping[str, Sequence[dict[str, Any]]],
    *,
    progress: Callable[[int, int, str], None],
) -> Matrix:
    """The loss of every domain's answers under the base, under every adapter, and under what the router decides."""
    pack = engine.pack
    for name, adapter in pack.adapters.items():
        engine.backend.add_adapter(name, pack.path(adapter.file))
    columns: dict[str, Mix] = {BASE: (), **{name: ((name, 1.0),) for name in pack.adapters}}
    matrix: Matrix = {}
    done, steps = 0, len(records) * len(columns)
    for domain, listed in records.items():
        fitting = [(r, made) for r in listed if (made := example(r, pack, engine.backend)) is not None]
        if not fitting:
            limit = engine.backend.context_length
            raise ZephyraError(f"no record of '{domain}' fits the context of {limit} tokens")
        asked = [made for _, made in fitting]
        by_mix: dict[Mix, list[Loss]] = {}
        for column, mix in columns.items():
            progress(done, steps, f"{domain} under {column}")
            by_mix[mix] = _losses(engine, mix, asked)
            done += 1
        matrix[domain] = {name: total(by_mix[mix]) for name, mix in columns.items()}
        if pack.router is not None:
            decided = [tuple(engine.route(question(record)).weights.items()) for record, _ in fitting]
            matrix[domain][AUTO] = _chosen(engine, decided, asked, by_mix)
    progress(steps, steps, "")
    return matrix


def _losses(engine: Engine, mix: Mix, asked: Sequence[Example]) -> list[Loss]:
    engine.backend.set_adapters(dict(mix))
    return [loss(engine.backend, one) for one in asked]


def _chosen(
    engine: Engine, decided: Sequence[Mix], asked: Sequence[Example], by_mix: Mapping[Mix, Sequence[Loss]]
) -> Loss:
    """Every example under the mix that was decided for it; mixes without a column are computed."""
    sum_of = Loss()
    for index, (mix, one) in enumerate(zip(decided, asked, strict=True)):
        sum_of += by_mix[mix][index] if mix in by_mix else _losses(engine, mix, [one])[0]
    return sum_of


@dataclass(frozen=True)
class Routing:
    """What the router made of every prompt, by the domain that the prompt is of; `outside`: prompts of none."""

    routes: Mapping[str, Sequence[Route]]
    chat: Sequence[Route]
    outside: Sequence[Route]

    @classmethod
    def of(cls, engine: Engine, held_out: HeldOut, limit: int | None) -> Routing:
        """Domains that the router does not know are left out: it cannot be right about them."""
        known = engine.pack.routed

        def routed(domain: str) -> list[Route]:
            return [engine.route(question(record)) for record in held_out.valid(domain, limit)]

        routes = {domain: routed(domain) for domain in held_out.domains if domain in known}
        chat = routed(CHAT) if held_out.has_chat else []
        return cls(routes, chat, [engine.route(prompt) for prompt in held_out.out_of_domain()[:limit]])

    @property
    def by_domain(self) -> dict[str, float]:
        """The share of each domain's prompts that went to it."""
        return {d: share([route.domain == d for route in routes]) for d, routes in self.routes.items()}

    @property
    def inside(self) -> list[Route]:
        return [route for routes in self.routes.values() for route in routes]

    @property
    def accuracy(self) -> float:
        return share([route.domain == domain for domain, routes in self.routes.items() for route in routes])

    def calibration_error(self, *, chat: bool) -> float:
        """Of the likeliest label's probability, whatever the threshold makes of it; 15 bins."""
        groups = {**self.routes, **({NONE: self.chat} if chat else {})}
        tops = [
            (domain, *max(route.probabilities.items(), key=lambda item: item[1]))
            for domain, routes in groups.items()
            for route in routes
        ]
        return expected_calibration_error([p for _, _, p in tops], [label == domain for domain, label, _ in tops])

    def confusion(self, outside: str) -> dict[str, dict[str, int]]:
        """Prompts by where they are from (chat and `outside` where there are any) and who answers."""
        groups = {**self.routes, CHAT: self.chat, outside: self.outside}
        decided = {name: [route.domain for route in routes] for name, routes in groups.items() if routes}
        return {name: {who: found.count(who) for who in [*self.routes, NONE]} for name, found in decided.items()}

    @property
    def router_ms(self) -> tuple[float, float]:
        """Median and 95th percentile over all prompts as they are, tokenizing included."""
        times = [route.router_ms for route in (*self.inside, *self.chat, *self.outside)]
        return statistics.median(times), statistics.quantiles(times, n=20)[18] if len(times) > 1 else times[0]


def abstained(routes: Sequence[Route]) -> float:
    return share([route.abstained for route in routes])


def share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)
