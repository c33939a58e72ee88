"""Is every value of a config of the type that its field declares? JSON and users give what they like."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from zephyra_fusion.errors import ZephyraError

LARGEST = 2**31 - 1  # of a whole number: beyond it no tensor has a dimension


def wrong_types(config: Any) -> dict[str, str]:
    """By field of a dataclass instance, the complaint about a value that its type hint does not allow.

    Hints: int, float (takes whole numbers too), bool, str, Mapping, tuples of int or str (lists too), `| None`.
    """
    hints = get_type_hints(type(config))
    return {
        part.name: f"{part.name} is {_shown(value)}, must be {_words(hints[part.name])}"
        for part in fields(config)
        if not _fits(value := getattr(config, part.name), hints[part.name])
    }


@contextmanager
def said_as(names: Mapping[str, str], *, beside: Sequence[str] = ()) -> Iterator[None]:
    """Complaints about our fields in the words of who called us, `names` by field, with those of their own `beside`."""
    complaints, hint = list(beside), None
    try:
        yield
    except ZephyraError as error:
        hint = error.hint
        complaints.insert(0, re.sub(r"\w+", lambda word: names.get(word[0], word[0]), error.message))
    if complaints:
        raise ZephyraError("; ".join(complaints), hint=hint)


def at_least_one(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _fits(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    if hint is NoneType:
        return value is None
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is int:
        return isinstance(value, int) and abs(value) <= LARGEST
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return " or ".join("absent" if one is NoneType else _words(one) for one in inner)
    if origin is tuple:
        return "a list of names" if inner[0] is str else "a list of whole numbers"
    if origin is Mapping:
        return "a table"
    return {int: f"a whole number up to {LARGEST}", float: "a finite number", bool: "true or false", str: "a name"}[
        hint
    ]


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, int | float) else repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
