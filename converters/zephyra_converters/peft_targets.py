"""Which modules of a base the options of a PEFT adapter choose: PEFT's `check_target_module_exists`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_LAYER = r".*?\.[^.]*\.(\d+)\."


def targets_of(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether adapter_config.json chooses a module of this name."""
    wanted: Any = config.get("target_modules")
    chosen, excluded = _named(wanted), _named(config.get("exclude_modules"))
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    numbers = {layers} if isinstance(layers, int) else set(layers or ())
    places = [re.compile(rf"(?:^|.*?\.){p}\.(\d+)\.") for p in ([patterns] if isinstance(patterns, str) else patterns)]

    def in_layer(module: str) -> bool:
        found = next((match for place in places or [re.compile(_LAYER)] if (match := place.match(module))), None)
        return found is not None and int(found[1]) in numbers

    def targeted(module: str) -> bool:
        if not chosen(module) or excluded(module):
            return False
        # An expression names its layers itself, and so does a whole name.
        return not numbers or isinstance(wanted, str) or module in wanted or in_layer(module)

    return targeted


def _named(value: Any) -> Callable[[str], bool]:
    """By an expression for whole names, or by a list of names or ends of names."""
    if isinstance(value, str):
        expression = re.compile(value)
        return lambda module: expression.fullmatch(module) is not None
    names = tuple(value or ())
    ends = tuple(f".{name}" for name in names)
    return lambda module: module in names or module.endswith(ends)
