"""Two sets of logits side by side: how far apart, how often the same choice, how much is lost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

_ROWS = 16  # compared at a time, in float64


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """Source and result on a text that the user gave; KL divergence in nats a token, of source from result."""

    perplexity_source: float
    perplexity: float
    text_kl_divergence: float
    text_top1_agreement: float
    text_tokens: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Source against result. `effect` is how far the adapter moves the result's logits from the base's."""

    max_abs_diff: float
    mean_abs_diff: float
    top1_agreement: float
    kl_divergence: float  # nats per token, of the source from the result
    spread: float  # standard deviation of the source's logits: the scale of the differences
    tokens: int
    effect: float | None = None
    text: TextFigures | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in asdict(self).items() if value is not None and key != "text"}
        return values | (asdict(self.text) if self.text is not None else {})


NO_TEXT_FIGURES = TextFigures(
    perplexity_source=0.0, perplexity=0.0, text_kl_divergence=0.0, text_top1_agreement=0.0, text_tokens=0
)
NO_FIGURES = Comparison(
    max_abs_diff=0.0, mean_abs_diff=0.0, top1_agreement=0.0, kl_divergence=0.0, spread=0.0, tokens=0
)


class Tally:
    """Sums over rows of logits `[tokens, choices]`, as they come; nothing is kept."""

    def __init__(self) -> None:
        self._max = self._abs = self._sum = self._squares = self._kl = 0.0
        self._same = self._tokens = self._values = 0

    def add(self, source: np.ndarray, result: np.ndarray) -> None:
        """ZephyraError: the result has logits that are NaN or infinite."""
        for at in range(0, len(source), _ROWS):
            self._add(source[at : at + _ROWS], result[at : at + _ROWS])

    def _add(self, source: np.ndarray, result: np.ndarray) -> None:
        import numpy as np

        p, q = source.astype(np.float64), result.astype(np.float64)
        if not np.isfinite(q).all():
            raise ZephyraError("the converted model computes NaN or infinite logits")
        diff = np.abs(p - q)
        log_p, log_q = log_softmax(p), log_softmax(q)
        self._max, self._abs = max(self._max, float(diff.max())), self._abs + float(diff.sum())
        self._sum, self._squares = self._sum + float(p.sum()), self._squares + float((p * p).sum())
        self._kl += float((np.exp(log_p) * (log_p - log_q)).sum())
        self._same += int((p.argmax(-1) == q.argmax(-1)).sum())
        self._tokens, self._values = self._tokens + len(p), self._values + p.size

    @property
    def top1_agreement(self) -> float:
        return self._same / self._tokens

    @property
    def kl_divergence(self) -> float:
        return max(0.0, self._kl / self._tokens)

    @property
    def mean_abs_diff(self) -> float:
        return self._abs / self._values

    def result(self, effect: float | None = None, text: TextFigures | None = None) -> Comparison:
        mean = self._sum / self._values
        return Comparison(
            max_abs_diff=self._max,
            mean_abs_diff=self.mean_abs_diff,
            top1_agreement=self.top1_agreement,
            kl_divergence=self.kl_divergence,
            spread=math.sqrt(max(0.0, self._squares / self._values - mean * mean)),
            tokens=self._tokens,
            effect=effect,
            text=text,
        )


def log_softmax(x: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
