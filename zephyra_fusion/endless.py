"""Whether a JSON Schema asks for a value without an end: an object that must hold itself, a list of such, and so on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote


def endless(schema: Any) -> bool:
    """True where every value that satisfies the schema would be infinite; other contradictions are not looked for.

    What is certain at the start is that a value without references ends. What ends because of that is found one after
    the other, each when a reference that it waits for does; those that are left over lead back to themselves for ever.
    """
    ends: set[str] = set()
    asked: list[str] = []
    nodes: dict[str, Any] = {"": schema}  # by reference; none is empty
    waiting: dict[str, list[str]] = {}

    def finite(node: Any) -> bool:
        if not isinstance(node, Mapping) or "enum" in node or "const" in node:
            return True
        if not all([finite(part) for part in _required(node)]):  # a list: all are asked for at once
            return False
        for choices in (node.get("anyOf"), node.get("oneOf")):
            if isinstance(choices, list) and choices and not any(finite(choice) for choice in choices):
                return False
        return "$ref" not in node or reached(node["$ref"])

    def reached(reference: Any) -> bool:
        if not isinstance(reference, str) or not reference.startswith("#") or reference in ends:
            return True
        asked.append(reference)
        return False

    todo = deque([""])
    while todo:
        if (name := todo.popleft()) in ends:
            continue
        asked.clear()
        if finite(nodes[name]):
            ends.add(name)
            todo += waiting.pop(name, [])
            continue
        for reference in asked:
            waiting.setdefault(reference, []).append(name)
            if reference not in nodes:
                nodes[reference] = pointed(schema, reference)
                todo.append(reference)
    return "" not in ends


def _required(node: Mapping[str, Any]) -> list[Any]:
    """The schemas of the values that every instance has in it."""
    found = list(node["allOf"]) if isinstance(node.get("allOf"), list) else []
    properties, required = node.get("properties"), node.get("required")
    kind = node.get("type")
    kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
    if kind == "object" and isinstance(properties, Mapping) and isinstance(required, list):
        found += [properties[name] for name in required if isinstance(name, str) and name in properties]
    least, first = node.get("minItems"), node.get("prefixItems")
    if kind == "array" and isinstance(least, int):
        first = first if isinstance(first, list) else []
        found += [*first[:least], *([node.get("items", True)] if least > len(first) else [])]
    return found


def pointed(schema: Any, reference: str) -> Any:
    """What a JSON Pointer means; None where it is no such pointer, or means nothing (whoever follows it says so)."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    node = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node
