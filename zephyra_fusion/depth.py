"""How deep a schema or grammar leads into itself: who compiles it natively recurses, and no one can catch its overflow.

Nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any, TypeVar

from zephyra_fusion.endless import pointed
from zephyra_fusion.errors import ZephyraError

Part = TypeVar("Part", bound=Hashable)
MOST_LEVELS = 500  # 1000 to 2500 overflow a stack of 8 MiB; the thread that compiles has eight times that


def check_depth(levels: int, what: str) -> None:
    if levels > MOST_LEVELS:
        raise ZephyraError(
            f"the {what} can be {levels} levels deep, the limit is {MOST_LEVELS}",
            hint="fewer rules or references that lead from one to the next",
        )


def deepest(levels: Mapping[Part, int], leads: Mapping[Part, Collection[Part]]) -> int:
    """The most levels that a walk which enters no part twice can be deep.

    levels: of each part in itself. leads: the parts to which each leads. Parts that lead back to each other count
    together: their longest walk is too hard to find (Tarjan 1972, with a stack of its own).
    """
    numbers: dict[Part, int] = {}
    lowest: dict[Part, int] = {}
    below: dict[Part, int] = {}  # of what is done: its own levels and those under it
    path: list[Part] = []
    for first in levels:
        walk = [] if first in numbers else [(first, iter(leads[first]))]
        while walk:
            part, rest = walk[-1]
            if part not in numbers:
                numbers[part] = lowest[part] = len(numbers)
                path.append(part)
            for other in rest:
                if other not in numbers:
                    walk.append((other, iter(leads[other])))
                    break
                if other not in below:
                    lowest[part] = min(lowest[part], numbers[other])
            else:
                walk.pop()
                if walk:
                    before = walk[-1][0]
                    lowest[before] = min(lowest[before], lowest[part])
                if lowest[part] == numbers[part]:
                    ring = [path.pop()]
                    while ring[-1] != part:
                        ring.append(path.pop())
                    under = max((below[other] for one in ring for other in leads[one] if other in below), default=0)
                    below |= dict.fromkeys(ring, under + sum(levels[one] for one in ring))
    return max(below.values(), default=0)


def schema_levels(schema: Any) -> int:
    """Objects in objects, through references too."""
    targets: dict[str, Any] = {}
    most, plain = 1, True
    todo = [(schema, 1)]
    while todo:
        node, level = todo.pop()
        most = max(most, level)
        if (reference := _text(node, "$ref")) is not None:
            targets[reference] = pointed(schema, reference)
            plain = plain and targets[reference] is not None
        plain = plain and (node is schema or _text(node, "$id") is None)
        todo += _children(node, level)
    if not plain:  # anchors and documents in the document: each reference may lead anywhere, but only once
        return most * (1 + len(targets))
    parts = {id(node): node for node in (schema, *targets.values()) if isinstance(node, dict | list)}
    levels = dict.fromkeys(parts, 1)
    leads: dict[int, set[int]] = {part: set() for part in parts}
    for part, start in parts.items():
        todo = [(start, 1)]
        while todo:
            node, level = todo.pop()
            if node is not start and id(node) in parts:
                leads[part].add(id(node))
                continue
            levels[part] = max(levels[part], level)
            if (target := id(targets.get(_text(node, "$ref") or ""))) in parts:
                leads[part].add(target)
            todo += _children(node, level)
    return deepest(levels, leads)


def _text(node: Any, key: str) -> str | None:
    value = node.get(key) if isinstance(node, dict) else None
    return value if isinstance(value, str) else None


def _children(node: Any, level: int) -> list[tuple[Any, int]]:
    children = node.values() if isinstance(node, dict) else node
    return [(child, level + isinstance(child, dict)) for child in children if isinstance(child, dict | list)]
