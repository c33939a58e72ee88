"""Prompts as people really type them: a slip of the finger, a polite word at the end."""

from __future__ import annotations

from random import Random

SUFFIXES = ("thank you", "right now", "for me", "if possible", "thanks again", "real quick")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def with_typos(text: str, random: Random) -> str:
    """One slip for every five words, at least one: two letters swapped, one dropped, doubled or its neighbour hit."""
    letters = list(text)
    for _ in range(max(1, len(text.split()) // 5)):
        places = [i for i, letter in enumerate(letters) if letter.isascii() and letter.isalpha()]
        if not places:
            break
        _slip(letters, random.choice(places), random)
    return "".join(letters)


def with_suffix(text: str, random: Random) -> str:
    """Two words more that change nothing."""
    return f"{text.rstrip()} {random.choice(SUFFIXES)}"


def _slip(letters: list[str], at: int, random: Random) -> None:
    kind = random.choice(("swap", "drop", "double", "neighbour"))
    if kind == "swap" and at + 1 < len(letters):
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    elif kind == "drop":
        del letters[at]
    elif kind == "double":
        letters.insert(at, letters[at])
    else:
        row = next(row for row in _ROWS if letters[at].lower() in row)
        place = row.index(letters[at].lower())
        letters[at] = row[place - 1] if place else row[1]
