"""Mathematics: the number on the line `Answer: N`."""

from __future__ import annotations

import re
from fractions import Fraction

_ANSWER = re.compile(r"Answer:\s*\$?\s*(-?[\d,]*\.?\d+(?:/\d+)?)")


def answer_of(text: str) -> Fraction | None:
    """The last answer that the text gives; None where there is none. Thousands may be parted by commas."""
    found = _ANSWER.findall(text)
    try:
        return Fraction(found[-1].replace(",", "")) if found else None
    except (ValueError, ZeroDivisionError):
        return None


def same_answer(answer: str, reference: str) -> bool:
    given = answer_of(answer)
    return given is not None and given == answer_of(reference)
