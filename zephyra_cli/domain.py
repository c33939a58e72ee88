"""What `-d` says: let the router decide, the bare base, or these adapters at these weights."""

from __future__ import annotations

from collections.abc import Collection

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.router import NONE
from zephyra_fusion.types import check_weights

AUTO = "auto"


def check_grammar(text: str) -> None:
    """ZephyraError: no model takes this, whatever its domains are."""
    names = {part.partition("=")[0].strip() for part in text.split(",")}
    parse_domain(text, names - {""})


def parse_domain(text: str, known: Collection[str]) -> dict[str, float] | None:
    """Weights of the adapters for `none`, `NAME` or `NAME=W[,NAME=W…]`; None for `auto`.

    ZephyraError: a domain that is not `known`, one named twice, a weight that is missing, no number, negative or huge.
    """
    if text == AUTO:
        return None
    if text == NONE:
        return {}
    weights: dict[str, float] = {}
    parts = text.split(",")
    for part in parts:
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name in (AUTO, NONE):
            raise ZephyraError(f"'{name}' stands alone and takes no weight, in '{text}'", hint="as in law=0.7,code=0.3")
        if name not in known:
            raise ZephyraError(f"unknown domain '{name}'", hint=did_you_mean(name, {AUTO, NONE, *known}))
        if name in weights:
            raise ZephyraError(f"domain '{name}' is named twice in '{text}'")
        if not equals and len(parts) > 1:
            raise ZephyraError(f"domain '{name}' has no weight in the blend '{text}'", hint="as in law=0.7,code=0.3")
        try:
            weights[name] = float(number) if equals else 1.0
        except ValueError:
            raise ZephyraError(f"weight of '{name}' is '{number}', not a number") from None
    return check_weights(weights)
