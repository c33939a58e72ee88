"""Does a probability mean what it says?"""

from __future__ import annotations

from collections.abc import Sequence


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over equal bins of confidence, weighted by their sizes.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """
    if len(confidences) != len(correct) or not confidences:
        raise ValueError(f"{len(confidences)} confidences for {len(correct)} verdicts")
    filled: dict[int, list[tuple[float, bool]]] = {}
    for confidence, verdict in zip(confidences, correct, strict=True):
        filled.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, verdict))
    gaps = (abs(sum(c for c, _ in members) - sum(v for _, v in members)) for members in filled.values())
    return sum(gaps) / len(confidences)
