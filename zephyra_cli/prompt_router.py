"""A pack's router at work: the classifier and the newcomers' detectors, loaded when the first prompt comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.detectors import Detectors
    from zephyra_cli.pack import Pack
    from zephyra_fusion.types import Route


class Classifier(Protocol):
    """Tiny ada's network: the base's token ids in, one logit a label out."""

    def logits(self, token_ids: Sequence[int]) -> list[float]: ...


class PromptRouter:
    """`encode` gives the base's token ids, `classifier` replaces the pack's. ZephyraError: the pack has no router."""

    def __init__(
        self,
        pack: Pack,
        encode: Callable[[str], Sequence[int]],
        classifier: Classifier | None = None,
        threads: int | None = None,
    ) -> None:
        if pack.router is None:
            raise ZephyraError(f"model '{pack.name}' has no router", hint="zephyra models lists what each model has")
        self._pack, self._router, self._encode, self._threads = pack, pack.router, encode, threads
        self._classifier = classifier or self._load()

    def route(self, prompt: str) -> Route:
        """What the router says of a prompt."""
        detectors = self._detectors
        start = time.perf_counter()
        window = self._router.window(self._encode(prompt))
        logits = self._classifier.logits(window)
        odds = detectors.odds(window, self._router.shares(logits)) if detectors is not None else None
        return self._router.decide(logits, odds=odds, router_ms=1000.0 * (time.perf_counter() - start))

    def look(self, prompt: str) -> tuple[list[int], dict[str, float]]:
        """What a newcomer is learned from: the tokens that the router reads, and the classifier's shares by label."""
        window = self._router.window(self._encode(prompt))
        return window, self._router.shares(self._classifier.logits(window))

    def _load(self) -> Classifier:
        from zephyra_cli.backends.classifier import LlamaClassifier

        path = self._pack.path(self._pack.router_file)
        classifier = LlamaClassifier(path, threads=self._threads, max_tokens=self._router.max_tokens)
        self._router.check_labels(classifier.labels, path)
        return classifier

    @cached_property
    def _detectors(self) -> Detectors | None:
        if not self._pack.newcomers:
            return None
        from zephyra_cli.detectors import Detectors

        return Detectors(self._pack.path(self._pack.newcomers_file), self._pack.newcomers)
