"""Prose: how many words do answer and reference share?"""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """Lower case, no punctuation, no articles (SQuAD's normalization); 1,234.5 is one word, the same as 1234.5."""
    found = (match[0].replace(",", "") for match in _WORD.finditer(text.lower()))
    return [word for word in found if word not in _ARTICLES]


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the bag of words (SQuAD, Rajpurkar et al., arXiv:1606.05250)."""
    given, wanted = words(answer), words(reference)
    return _f1((Counter(given) & Counter(wanted)).total(), len(given), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """F1 over the longest common subsequence of words (Lin 2004, ROUGE-L with beta 1)."""
    given, wanted = words(answer), words(reference)
    row = [0] * (len(wanted) + 1)
    for word in given:
        diagonal = 0
        for at, other in enumerate(wanted, 1):
            diagonal, row[at] = row[at], diagonal + 1 if word == other else max(row[at], row[at - 1])
    return _f1(row[-1], len(given), len(wanted))


def _f1(common: int, given: int, wanted: int) -> float:
    if not given or not wanted:
        return float(given == wanted)
    return 2 * common / (given + wanted)
