"""What a pack keeps of example prompts so that its router can learn a newcomer: features, never the prompts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from zephyra_cli.examples import read_objects
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_converters.newcomers import Sample

MOST_TOKENS = 4096  # of one example


def read_features(path: Path, labels: int) -> list[Sample]:
    """`{"domain", "tokens", "shares"}` a line. ZephyraError: a line that is anything else."""
    from zephyra_converters.newcomers import Sample

    def integers(value: Any) -> TypeGuard[list[int]]:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**31 for n in value)

    def shares(value: Any) -> TypeGuard[list[float]]:
        numbers = isinstance(value, list) and all(type(n) in (int, float) and 0 <= n <= 1 for n in value)
        return numbers and len(value) == labels

    samples = []
    for number, entry in read_objects(path):
        domain, tokens, given = entry.get("domain"), entry.get("tokens"), entry.get("shares")
        if not isinstance(domain, str) or not integers(tokens) or len(tokens) > MOST_TOKENS:
            raise ZephyraError(f"'{path}', line {number}: no domain with its token ids")
        if not shares(given):
            raise ZephyraError(f"'{path}', line {number}: not the probabilities of the router's {labels} labels")
        samples.append(Sample(domain, tuple(tokens), tuple(given)))
    return samples


def write_features(path: Path, samples: Iterable[Sample]) -> None:
    """The same bytes for the same samples. Tokens stand in the order of their ids, each once: no text comes back."""
    lines = [
        json.dumps({"domain": s.domain, "tokens": sorted(set(s.tokens)), "shares": s.shares}, separators=(",", ":"))
        for s in samples
    ]
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0))
