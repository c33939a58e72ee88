"""Domains that joined after the router was trained: one detector each, linear in what the router sees anyway.

A newcomer's score is bias + sum of share[label] * p(label) + logs[label] * evidence(p(label)) over the classifier's
labels + sum of weight[t] over the prompt's different tokens t / sum of their rarity. Above 0 it is the newcomer's
prompt. The classifier itself stays as it was trained, so nothing is forgotten. `zephyra_converters.newcomers` learns
the numbers.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import evidence
from zephyra_fusion.values import dataclass

MOST_ODDS = 1e6


@dataclass(frozen=True, kw_only=True)
class Detector:
    """What the manifest says of a newcomer. Its odds are exp(sharpness * score)."""

    name: str
    shares: Mapping[str, float]
    logs: Mapping[str, float]
    bias: float
    sharpness: float


class Detectors:
    """The newcomers of one pack, their token weights read from one GGUF file of F32 vectors over the vocabulary."""

    def __init__(self, path: Path, detectors: Sequence[Detector]) -> None:
        from zephyra_converters.gguf_header import read_header

        self._detectors = detectors
        names = ["rarity", *(f"weights.{number}" for number in range(len(detectors)))]
        tensors = read_header(path).tensors
        sizes = {tensors[name].shape for name in names if name in tensors}
        if set(tensors) != set(names) or len(sizes) != 1 or any(t.type_name != "F32" for t in tensors.values()):
            raise ZephyraError(f"'{path}' does not hold the weights of {len(detectors)} newcomers to the router")
        with path.open("rb") as file:
            vectors = []
            for name in names:
                file.seek(tensors[name].offset)
                vectors.append(array("f", file.read(tensors[name].size)))
        if not all(math.isfinite(math.fsum(vector)) for vector in vectors) or min(vectors[0]) <= 0.0:
            raise ZephyraError(f"'{path}' is damaged: it holds weights that are no numbers, or a rarity of 0")
        self._rarity, *self._weights = vectors

    def odds(self, token_ids: Sequence[int], shares: Mapping[str, float]) -> dict[str, float]:
        """Of each newcomer, against everything else; `shares` are the classifier's by label."""
        tokens = {token for token in token_ids if 0 <= token < len(self._rarity)}
        whole = math.fsum(self._rarity[token] for token in tokens)
        odds = {}
        for detector, weights in zip(self._detectors, self._weights, strict=True):
            score = detector.bias + math.fsum(weights[token] for token in tokens) / (whole or 1.0)
            for label, share in shares.items():
                score += detector.shares.get(label, 0.0) * share + detector.logs.get(label, 0.0) * evidence(share)
            odds[detector.name] = min(MOST_ODDS, math.exp(min(50.0, detector.sharpness * score)))
        return odds
