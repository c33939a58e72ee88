"""Values out of a manifest, each of the kind that is expected or an error that names it; links that leave the pack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from zephyra_fusion.errors import ZephyraError

T = TypeVar("T")
_LARGEST = 2**53  # of a whole number: what a float can still tell from its neighbours


def check(value: Any, kind: type[T], name: str) -> T:
    if kind is float and type(value) is int and abs(value) < _LARGEST:
        value = float(value)
    if type(value) is not kind:  # type(): a bool is no number here
        raise ZephyraError(f"{name} is {shown(value)}, must be {_WORDS[kind]}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ZephyraError(f"{name} is {shown(value)}, which is more than any model has")
    if isinstance(value, str) and value.encode("utf-8", "replace").decode() != value:  # JSON can spell half a pair
        raise ZephyraError(f"{name} is {shown(value)}, which is no UTF-8")
    return value


def take(values: Mapping[str, Any], key: str, kind: type[T], where: str, default: T | None = None) -> T:
    if key not in values and default is not None:
        return default
    return check(values.get(key), kind, where + key)


def shown(value: Any) -> str:
    text = repr(value)
    return "missing" if value is None else text if len(text) <= 40 else text[:40] + "…"


def leads_out(root: Path, path: Path) -> bool:
    """Whether a file of a folder lies elsewhere, by a link."""
    inside, there = root.resolve(), path.resolve()
    # huggingface-hub's cache keeps a repository's contents in blobs/ and links to them from snapshots/COMMIT/
    cached = inside.parent.name == "snapshots" and there.is_relative_to(inside.parent.parent / "blobs")
    return not there.is_relative_to(inside) and not cached


_WORDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", dict: "an object", list: "a list"}
