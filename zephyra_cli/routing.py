"""Who answers the next turn of a conversation: the user's word, else who answered last, else the router."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zephyra_fusion.router import NONE
from zephyra_fusion.types import Route


@dataclass(frozen=True)
class Stickiness:
    """Hysteresis over the router, which sees one turn alone: "and the ten largest?" says little of its domain.

    Who answered last stays unless the router's best label is at least `margin` likelier. The margin is a first guess:
    it was measured on nothing yet. 0 is the router alone.
    """

    margin: float = 0.3

    def decide(self, route: Route, current: str | None) -> tuple[Route, str]:
        """The route to take and the reason in words; `current` is who answered last, None at the beginning."""
        best = max(route.probabilities, key=route.probabilities.__getitem__)
        lead = route.probabilities[best] - route.probabilities.get(current or "", 0.0)
        if current is None or current == route.domain or lead >= self.margin:
            if not route.abstained:
                return route, f"the router is sure enough of {route.domain}"
            return route, "the router trusts no specialist with it: the base answers"
        weights = {} if current == NONE else {current: 1.0}
        reason = f"{current} stays: {best} is likelier by {lead:.2f} only, a change needs {self.margin:g}"
        if best == current:
            reason = f"{current} stays: it is the likeliest, though not sure enough to begin with"
        return replace(route, domain=current, weights=weights, abstained=current == NONE), reason
