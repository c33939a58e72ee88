"""Tiny ada's decision: from the classifier's logits to a route. Whoever computes the logits is not its business."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Route
from zephyra_fusion.values import dataclass, field

NONE = "none"


def evidence(share: float) -> float:
    """A probability on a scale of its logarithm: 0 for at most 0.0001, 1 for 1. Whether 0.1 or 0.001 is left for
    `none` says how sure the classifier is."""
    return 1.0 + math.log10(max(1e-4, share)) / 4.0


@dataclass(frozen=True, kw_only=True)
class Router:
    """Labels in the order of the logits, the calibration (`temperature`) and the price of trust (`threshold`).

    `max_tokens` is the most that the classifier reads of a prompt. `answers`: who answers instead of a label, where its
    domain was merged into another one or removed (`none`).
    """

    labels: tuple[str, ...]
    temperature: float = 1.0
    threshold: float = 0.5
    max_tokens: int = 256
    answers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = []
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            wrong.append(f"labels are {list(self.labels)}, must be at least one, each once")
        if not 0.0 < self.temperature <= 1000.0:
            wrong.append(f"temperature is {self.temperature}, must be above 0 and at most 1000")
        if not 0.0 <= self.threshold <= 1.0:
            wrong.append(f"threshold is {self.threshold}, must be between 0 and 1")
        if self.max_tokens < 2:
            wrong.append(f"max_tokens is {self.max_tokens}, must be at least 2")
        if wrong:
            raise ZephyraError("router: " + "; ".join(wrong))

    def check_labels(self, labels: Sequence[str], path: object) -> None:
        """ZephyraError: the classifier in the file speaks of other domains than the manifest."""
        if tuple(labels) != self.labels:
            raise ZephyraError(
                f"'{path}' was trained for the labels {', '.join(labels)}, the manifest says {', '.join(self.labels)}"
            )

    def window(self, token_ids: Sequence[int]) -> list[int]:
        """What the classifier reads: the whole prompt, or its first and last half-windows where it is longer.

        Training cuts in the same way (`train.router_data.truncate`); a test holds the two together.
        """
        if len(token_ids) <= self.max_tokens:
            return list(token_ids)
        head = self.max_tokens // 2
        return [*token_ids[:head], *token_ids[len(token_ids) - (self.max_tokens - head) :]]

    def shares(self, logits: Sequence[float]) -> dict[str, float]:
        """softmax(logits / temperature) by label. ZephyraError: another number of logits, or one that is no number."""
        if len(logits) != len(self.labels):
            raise ZephyraError(f"the router gave {len(logits)} logits for {len(self.labels)} labels")
        if not all(math.isfinite(logit) for logit in logits):
            raise ZephyraError("the router gave logits that are no numbers: its file is damaged")
        largest = max(logits)
        shares = [math.exp((logit - largest) / self.temperature) for logit in logits]
        total = math.fsum(shares)
        return {label: share / total for label, share in zip(self.labels, shares, strict=True)}

    def probabilities(self, logits: Sequence[float]) -> dict[str, float]:
        """The shares by domain: `answers` taken into account."""
        found: dict[str, float] = {}
        for label, share in self.shares(logits).items():
            domain = self.answers.get(label, label)
            found[domain] = found.get(domain, 0.0) + share
        return found

    def decide(
        self, logits: Sequence[float], *, odds: Mapping[str, float] | None = None, router_ms: float = 0.0
    ) -> Route:
        """The best domain alone at full weight; the bare base where that is `none` or too unlikely.

        `odds` of the newcomers, each against all that the classifier knows (`detectors.Detectors`): one above 1 wins.
        Where there is none above 1, they change nothing but the probabilities.
        """
        known, odds = self.probabilities(logits), odds or {}
        whole = 1.0 + math.fsum(odds.values())
        probabilities = {domain: share / whole for domain, share in known.items()}
        for domain, odd in odds.items():
            probabilities[domain] = probabilities.get(domain, 0.0) + odd / whole
        best = max(known, key=known.__getitem__)
        trusted = best != NONE and known[best] >= self.threshold
        if odds and odds[newcomer := max(odds, key=odds.__getitem__)] > 1.0:
            best, trusted = newcomer, True
        if not trusted:
            return Route(domain=NONE, weights={}, probabilities=probabilities, abstained=True, router_ms=router_ms)
        return Route(domain=best, weights={best: 1.0}, probabilities=probabilities, router_ms=router_ms)
