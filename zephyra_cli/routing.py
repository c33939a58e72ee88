"""Who answers the next turn of a conversation: the user's word, else who answered last, else the router."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from zephyra_fusion.router import NONE
from zephyra_fusion.types import Route
from zephyra_fusion.values import dataclass

USER, STICKY, ROUTER, MODEL = "user", "sticky", "router", "model"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Who answers, by whose choice (`user`, `sticky`, `router`, `model`) and why.

    `route` is what the router said, if asked. `reread_tokens`: tokens of the conversation that this choice makes the
    engine read, and staying would not have.
    """

    weights: Mapping[str, float]
    by: str
    reason: str
    route: Route | None = None
    reread_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"by": self.by, "reason": self.reason, "reread_tokens": self.reread_tokens}


def chosen(domain: str, weights: Mapping[str, float]) -> Decision:
    """The user's word, as `-d` takes it, goes before all else."""
    return Decision(weights=weights, by=USER, reason=f"you chose {domain}")


UNROUTED = Decision(weights={}, by=MODEL, reason="the model has no router: the base answers")


def routed(route: Route) -> Decision:
    """The router alone, without a conversation."""
    if route.abstained:
        reason = "the router trusts no specialist with it: the base answers"
    else:
        reason = f"the router is sure enough of {route.domain}"
    return Decision(weights=route.weights, by=ROUTER, reason=reason, route=route)


@dataclass(frozen=True)
class SwitchPolicy:
    """Hysteresis over the router, which sees one turn alone: "and the ten largest?" says little of its domain.

    Who answered last stays unless the router's best label is likelier by `margin`. The tokens that a change makes the
    engine read again raise it: what is left for doubt, 1 - margin, is divided by 1 + `price` for each 1,000 of them.
    `margin=0, price=0` is the router alone.

    The margin is measured (`benchmarks/switching.py`, docs/LOG.md): at 0.95, 99 % of the questions of another domain
    still change to it, and 88 % of follow-ups stay where 56 % stay without a margin. The price is chosen, not measured:
    at 4,000 tokens, some seconds of a model of 500 M weights, a third of the doubt is allowed.
    """

    margin: float = 0.95
    price: float = 0.5

    def decide(
        self, route: Route, current: str | None, reread: Callable[[Mapping[str, float]], int] = lambda weights: 0
    ) -> Decision:
        """`current` is who answered last, None at the beginning; `reread` tells the tokens to read under weights."""
        best = max(route.probabilities, key=route.probabilities.__getitem__)
        if current is None or current == route.domain:
            return routed(route)
        stay: dict[str, float] = {} if current == NONE else {current: 1.0}
        extra = max(0, reread(route.weights) - reread(stay))
        lead = route.probabilities[best] - route.probabilities.get(current, 0.0)
        needed = 1.0 - (1.0 - self.margin) / (1.0 + self.price * extra / 1000)
        if lead >= needed:
            decision = routed(route)
            cost = f"; {extra} tokens are read again for it" if extra else ""
            return replace(decision, reason=decision.reason + cost, reread_tokens=extra)
        kept = replace(route, domain=current, weights=stay, abstained=current == NONE)
        reason = f"{current} stays: {best} is likelier by {lead:.3g} only, a change needs {needed:.3g}"
        if best == current:
            reason = f"{current} stays: it is the likeliest, though not sure enough to begin with"
        elif extra:
            reason += f", as it would read {extra} tokens again"
        return Decision(weights=stay, by=STICKY, reason=reason, route=kept)
