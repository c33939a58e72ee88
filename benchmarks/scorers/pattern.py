"""Regular expressions: do two of them say the same of every string that we try?

Two patterns count as equivalent when Python's `re.fullmatch` and `re.search` give the same verdict for both on every
test string. The strings: 40 generated from each pattern, three mutations of each of these, and a fixed pool. That is
a test and no proof; strings that only one of the two matches are what generation and mutation look for. Strings on
which the reference itself backtracks for too long are left out; an answer that does so has failed.
"""

from __future__ import annotations

import re
import signal
import string
from collections.abc import Callable
from random import Random
from re import _parser as parser
from typing import Any

from scorers.fenced import run_fenced

_EACH, _MUTATIONS, _MOST_REPEATS, _LONGEST = 40, 3, 3, 60
_PATIENCE, _FAIRNESS = 0.02, 10  # seconds of processor time for the reference; the answer may take ten times that
_ALPHABET = string.ascii_letters + string.digits + " .,:;-_/@#%+*()[]{}'\"!?\t"
POOL = (
    "", " ", "a", "A", "e", "7", "_", "-", ".", "dog", "truck", "ring", "lake", "half", "dogtruck", "truck dog",
    "Dog", "abc", "ABC", "aBc", "aeiou", "AEIOU", "xyz", "bcdfg", "123", "0", "12345678", "a1", "1a", "A1b2",
    "abc123", "foo_bar", "hello world", "Hello, World!", "the dog and the truck", "1.5", "-3", "+7", "12:30",
    "2024-01-31", "10.0.0.1", "user@example.com", "#ff00AA", "https://example.com/a", "/usr/bin", "file.txt",
    "555-1234", "(555) 123-4567", "100%", "true", "null", "  padded  ", "tab\there", "two\nlines", "ends\n",
    "ünïcode", "…", "aaa", "AAA", "111", "aaaaaaaaaa", "dogdogdog", "truck7", "7 dog", "a b c", "a,b,c", "x=1",
    "id-42", "error", "error: 5", "v1.2.3", "50$", "a.b", "___",
)  # fmt: skip


def equivalent(answer: str, reference: str) -> dict[str, bool]:
    """`{"compiles", "fullmatch", "equivalent"}`; all false where the answer is no pattern or takes too long."""
    task = {"answer": answer.strip(), "reference": reference.strip()}
    return run_fenced("pattern", task, seconds=20) or dict.fromkeys(("compiles", "fullmatch", "equivalent"), False)


def main(task: dict[str, Any]) -> dict[str, Any]:
    """In the child: compile, generate, compare."""
    try:
        answer = re.compile(task["answer"])
    except (re.error, RecursionError, OverflowError):
        return dict.fromkeys(("compiles", "fullmatch", "equivalent"), False)
    reference = re.compile(task["reference"])
    if answer.pattern == reference.pattern:
        return dict.fromkeys(("compiles", "fullmatch", "equivalent"), True)
    signal.signal(signal.SIGVTALRM, _too_long)
    tries = test_strings((answer.pattern, reference.pattern))
    full = all(_agree(answer.fullmatch, reference.fullmatch, text) for text in tries)
    same = full and all(_agree(answer.search, reference.search, text) for text in tries)
    return {"compiles": True, "fullmatch": full, "equivalent": same}


def _agree(answer: Callable[[str], object], reference: Callable[[str], object], text: str) -> bool:
    wanted = _verdict(reference, text, _PATIENCE)
    return wanted is None or _verdict(answer, text, _FAIRNESS * _PATIENCE) == wanted


def _verdict(match: Callable[[str], object], text: str, seconds: float) -> bool | None:
    """None where it takes too long: `re` looks for signals while it backtracks."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        return match(text) is not None
    except TimeoutError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _too_long(*_: object) -> None:
    raise TimeoutError


def test_strings(patterns: tuple[str, ...]) -> list[str]:
    """The strings on which these patterns are compared; always the same ones for the same patterns."""
    random = Random("\0".join(patterns))
    made = [generate(pattern, random) for pattern in patterns for _ in range(_EACH)]
    mutated = [_mutate(text, random) for text in made for _ in range(_MUTATIONS)]
    return list(dict.fromkeys([*POOL, *made, *mutated]))


def generate(pattern: str, random: Random) -> str:
    """A string that the pattern was made for; look-arounds, word borders and anchors are not obeyed."""
    return _sequence(parser.parse(pattern), random, {})[:_LONGEST]


def _sequence(items: Any, random: Random, groups: dict[int, str]) -> str:
    return "".join(_one(str(op), value, random, groups) for op, value in items)


def _one(op: str, value: Any, random: Random, groups: dict[int, str]) -> str:
    if op == "LITERAL":
        return chr(value)
    if op in ("ANY", "NOT_LITERAL", "IN"):
        return _character(op, value, random)
    if op == "BRANCH":
        return _sequence(random.choice(value[1]), random, groups)
    if op == "SUBPATTERN":
        text = _sequence(value[3], random, groups)
        if value[0] is not None:
            groups[value[0]] = text
        return text
    if op == "ATOMIC_GROUP":
        return _sequence(value, random, groups)
    if op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, body = value
        count = random.randint(low, min(int(high), low + _MOST_REPEATS))
        return "".join(_sequence(body, random, groups) for _ in range(min(count, _LONGEST)))
    return groups.get(value, "") if op == "GROUPREF" else ""


def _character(op: str, value: Any, random: Random) -> str:
    if op == "ANY":
        return random.choice(_ALPHABET)
    if op == "NOT_LITERAL":
        return random.choice([letter for letter in _ALPHABET if ord(letter) != value])
    allowed = [letter for letter in _ALPHABET if _is_in(value, letter)]
    outside = [chr(v) for kind, v in value if str(kind) == "LITERAL"] or ["\u00a1"]
    return random.choice(allowed or outside)


def _is_in(members: Any, letter: str) -> bool:
    negated, found = False, False
    for kind, value in members:
        if str(kind) == "NEGATE":
            negated = True
        elif str(kind) == "LITERAL":
            found |= ord(letter) == value
        elif str(kind) == "RANGE":
            found |= value[0] <= ord(letter) <= value[1]
        elif str(kind) == "CATEGORY":
            found |= _CATEGORIES[str(value)](letter)
    return found != negated


_CATEGORIES = {
    "CATEGORY_DIGIT": str.isdigit,
    "CATEGORY_NOT_DIGIT": lambda c: not c.isdigit(),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda c: not c.isspace(),
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
    "CATEGORY_NOT_WORD": lambda c: not (c.isalnum() or c == "_"),
}


def _mutate(text: str, random: Random) -> str:
    """One character more, less or other; the case swapped; the text twice, or with something before or after it."""
    at = random.randrange(len(text) + 1)
    other = random.choice(_ALPHABET)
    kind = random.randrange(6)
    if kind == 0:
        return text[:at] + other + text[at:]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at] + other + text[at + 1 :]
    if kind == 3:
        return text.swapcase()
    return text + text if kind == 4 else random.choice((other + text, text + other))
