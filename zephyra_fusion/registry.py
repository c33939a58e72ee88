"""A part is a name in the config and a line in a registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from zephyra_fusion.errors import ZephyraError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to parts of one kind; a missing name is an error that lists the known ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: put the part under `name`. A name is given once."""

        def put(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._parts[name] = part
            return part

        return put

    def __getitem__(self, name: str) -> T:
        try:
            return self._parts[name]
        except KeyError:
            raise ZephyraError(f"unknown {self.kind} '{name}'", hint=did_you_mean(name, self._parts)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))
