"""Learning to tell a new domain's prompts from all others, from a few examples, in closed form.

Ridge regression (weighted, so that both sides count the same) on three views of a prompt: its tokens, the mean of the
base's own token embeddings, and the router's probabilities, as they are and as logarithms. The leave-one-out
predictions of a ridge are exact and free (Rifkin and Lippert 2007), so every example is also an honest test: they set
the threshold and fill the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.dtypes import to_float32
from zephyra_converters.gguf_file import Planned, write_gguf_file
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import tensor_of
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import NONE, evidence

if TYPE_CHECKING:
    import numpy as np

FEWEST = 10  # examples of a newcomer; 30 to 50 are better
LEAST_OTHERS = 50
STOLEN = 0.0075  # of the other domains' examples, at most, while the threshold is set
STOLEN_FROM_BASE = (0.15, 0.2, 0.25, 0.3)  # of those that are nobody's: the first that leaves the newcomer its own
FOUND = 0.95  # of the newcomer's own, that is
MISSED = 0.03  # of the newcomer's own, where the others leave room
MARGIN = 0.25  # of the way between the two
RIDGES = (0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Sample:
    """A prompt as the router sees it: its different token ids, the classifier's probability of each label.

    `prompt`: its text, for the report, where it is known; packs keep none.
    """

    domain: str
    tokens: tuple[int, ...]
    shares: tuple[float, ...]
    prompt: str = ""

    @classmethod
    def of(cls, prompt: str, domain: str, window: Iterable[int], shares: Iterable[float]) -> Sample:
        """`window`: the ids that the router read, in their order, which is not kept."""
        return cls(domain, tuple(sorted(set(window))), tuple(round(share, 4) for share in shares), prompt)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A detector (see zephyra_cli.detectors for the formula), and what leaving each example out said of it."""

    name: str
    weights: np.ndarray
    shares: tuple[float, ...]
    logs: tuple[float, ...]
    bias: float
    sharpness: float
    examples: int
    found: int
    others: Mapping[str, int]
    taken: Sequence[tuple[str, str]]  # prompt (where it is known), domain

    def entry(self) -> dict[str, Any]:
        """What a pack's manifest says of it."""
        numbers = {"shares": list(self.shares), "logs": list(self.logs)}
        return {"name": self.name, "bias": self.bias, "sharpness": self.sharpness, **numbers}

    def report(self) -> dict[str, Any]:
        count: dict[str, int] = {}
        for _, domain in self.taken:
            count[domain] = count.get(domain, 0) + 1
        domains = sum(number for domain, number in self.others.items() if domain != NONE)
        stolen = sum(number for domain, number in count.items() if domain != NONE)
        return {
            "domain": self.name,
            "examples": self.examples,
            "accuracy": round(self.found / self.examples, 4),
            "taken_from_domains": round(stolen / max(1, domains), 4),
            "taken": {domain: {"of": self.others[domain], "taken": number} for domain, number in count.items()},
            "taken_prompts": [{"prompt": prompt, "domain": domain} for prompt, domain in self.taken if prompt],
        }


def learn(base: Path, newcomers: Sequence[str], samples: Sequence[Sample]) -> tuple[np.ndarray, list[Learned]]:
    """The tokens' rarity `[vocabulary]` and a detector of every newcomer. ZephyraError: too few examples."""
    import numpy as np

    header = read_header(base)
    table = header.tensors["token_embd.weight"]
    rows, vocabulary = tensor_of(base, table), table.shape[1]
    used = sorted({token for sample in samples for token in sample.tokens})
    if used and used[-1] >= vocabulary:
        raise ZephyraError(f"an example has the token {used[-1]}, the vocabulary of {base} has {vocabulary}")
    place = {token: number for number, token in enumerate(used)}
    embeddings = np.empty((len(used), table.shape[0]), dtype=np.float32)
    for start, chunk in _chunks(rows):
        inside = [token for token in used if start <= token < start + len(chunk)]
        embeddings[[place[token] for token in inside]] = chunk[[token - start for token in inside]]
    present = np.zeros((len(samples), len(used)), dtype=np.float32)
    for row, sample in enumerate(samples):
        present[row, [place[token] for token in sample.tokens]] = 1.0
    old = np.array([sample.domain not in newcomers for sample in samples])
    rarity = np.full(vocabulary, -math.log(1 / max(1, old.sum())), dtype=np.float32)
    rarity[used] = -np.log(np.minimum(present[old].mean(axis=0) + 1 / max(1, old.sum()), 0.95))
    views = _views(present * rarity[used], embeddings, samples)
    found = []
    for name in newcomers:
        detector, direction = _detector(name, samples, views)
        weights = np.zeros(vocabulary, dtype=np.float32)
        weights[used] = detector.weights
        for start, chunk in _chunks(rows):
            weights[start : start + len(chunk)] += chunk @ direction
        found.append(Learned(**{**vars(detector), "weights": weights * rarity}))
    return rarity, found


def write_newcomers(path: Path, rarity: np.ndarray, learned: Sequence[Learned]) -> None:
    """The vectors as a GGUF file, in the order of `learned`."""
    vectors = {"rarity": rarity, **{f"weights.{n}": detector.weights for n, detector in enumerate(learned)}}
    planned = [Planned(LazyTensor.holding(name, vector), "F32") for name, vector in vectors.items()]
    write_gguf_file(path, "zephyra-newcomers", {"general.type": "newcomers"}, planned)


@dataclass(frozen=True, kw_only=True)
class _Views:
    """Rows of features by sample `x`, and what turns weights of features back into weights of tokens."""

    x: np.ndarray
    tokens: int
    size: float
    middle: np.ndarray
    scale: np.ndarray


def _chunks(table: LazyTensor) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows of length 1) of the embedding table."""
    import numpy as np

    for start, words in table.blocks():
        chunk = to_float32(words, table.dtype, table.name)
        yield start, chunk / np.maximum(np.linalg.norm(chunk, axis=1, keepdims=True), 1e-6)


def _views(rare: np.ndarray, embeddings: np.ndarray, samples: Sequence[Sample]) -> _Views:
    import numpy as np

    mean = rare / np.maximum(rare.sum(axis=1, keepdims=True), 1e-6)
    size = float(np.sqrt((mean * mean).sum(axis=1).mean()))
    meant = mean @ embeddings
    middle, scale = meant.mean(axis=0), meant.std(axis=0) * math.sqrt(meant.shape[1]) + 1e-6
    shares = np.array([[*sample.shares, *map(evidence, sample.shares)] for sample in samples], dtype=np.float32)
    x = np.concatenate((mean / size, (meant - middle) / scale, shares), axis=1)
    return _Views(x=x, tokens=mean.shape[1], size=size, middle=middle, scale=scale)


def _detector(name: str, samples: Sequence[Sample], views: _Views) -> tuple[Learned, np.ndarray]:
    """The detector (its `weights` those of the used tokens, rarity left out), and the direction in embedding space."""
    import numpy as np

    own = np.array([sample.domain == name for sample in samples])
    domains = np.array([sample.domain not in (name, NONE) for sample in samples])
    nobodys = ~own & ~domains
    if own.sum() < FEWEST or (~own).sum() < LEAST_OTHERS or not domains.any():
        raise ZephyraError(
            f"the router has {own.sum()} different examples of '{name}' and {(~own).sum()} of all else to learn from",
            hint=f"it needs at least {FEWEST} (better 50) and {LEAST_OTHERS}",
        )
    sides = np.where(own, 1.0, -1.0)
    weight = len(sides) * np.where(own, 0.5 / own.sum(), 0.5 / (~own).sum())
    kernel = views.x.astype(np.float64) @ views.x.T + 1.0
    best: tuple[tuple[float, float], np.ndarray, np.ndarray] | None = None
    for ridge in RIDGES:
        inverse = np.linalg.inv(kernel + np.diag(ridge / weight))
        dual = inverse @ sides
        left_out = sides - dual / np.diag(inverse)
        low = max(_limit(left_out[domains], STOLEN), _limit(left_out[nobodys], STOLEN_FROM_BASE[0]))
        quality = float((left_out[own] > low).mean()), -float((weight * (left_out - sides) ** 2).sum())
        if best is None or quality > best[0]:
            best = quality, dual, left_out
    assert best is not None
    _, dual, left_out = best
    threshold = _threshold(left_out[own], left_out[domains], left_out[nobodys])
    features = views.x.T.astype(np.float64) @ dual
    labels = len(samples[0].shares)
    direction = features[views.tokens : -2 * labels] / views.scale
    scores = left_out - threshold
    detector = Learned(
        name=name,
        weights=(features[: views.tokens] / views.size).astype(np.float32),
        shares=tuple(map(float, features[-2 * labels : -labels])),
        logs=tuple(map(float, features[-labels:])),
        bias=float(dual.sum() - views.middle @ direction - threshold),
        sharpness=_sharpness(scores * sides, weight),
        examples=int(own.sum()),
        found=int((scores[own] > 0).sum()),
        others=_counted([sample.domain for sample in samples if sample.domain != name]),
        taken=[(samples[n].prompt, samples[n].domain) for n in map(int, np.flatnonzero((scores > 0) & ~own))],
    )
    return detector, direction.astype(np.float32)


def _threshold(own: np.ndarray, domains: np.ndarray, nobodys: np.ndarray) -> float:
    """The score that makes a prompt the newcomer's, by the left-out scores of all sides.

    The other domains' examples are never given up for it, nobody's are: a newcomer of many kinds of prompts, as unlike
    each other as those of nobody, would else lose too many of its own.
    """
    import numpy as np

    high = float(np.quantile(own, MISSED))
    for share in STOLEN_FROM_BASE:
        low = max(_limit(domains, STOLEN), _limit(nobodys, share))
        threshold = low + max(0.0, MARGIN * (high - low)) + 1e-6
        if (own > threshold).mean() >= FOUND:
            break
    return threshold


def _limit(scores: np.ndarray, share: float) -> float:
    """The score that no more than this share of them exceed."""
    import numpy as np

    return float(np.sort(scores)[::-1][min(int(share * len(scores)), len(scores) - 1)]) if len(scores) else -math.inf


def _sharpness(margins: np.ndarray, weight: np.ndarray) -> float:
    """The slope of the logistic curve that fits the left-out scores best (Platt 1999, the threshold given)."""
    import numpy as np

    slopes = np.geomspace(0.5, 20.0, 40)
    losses = [float((weight * np.logaddexp(0.0, -slope * margins)).sum()) for slope in slopes]
    return float(slopes[int(np.argmin(losses))])


def _counted(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
