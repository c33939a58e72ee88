"""`dataclass` for what every start loads: the standard library's, but that its methods are shared and not compiled.

`dataclasses.dataclass(frozen=True)` writes and compiles six functions for each class: 0.4 ms, and with 24 fields 1 ms,
an eighth of the whole start of `zephyra generate` (docs/LOG.md). Fields, defaults, `replace`, `asdict` and `fields` are
the standard library's own. Making an instance takes 1 µs more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field as field
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        cls: type[T] | None = None, *, frozen: bool = False, kw_only: bool = False
    ) -> type[T] | Callable[[type[T]], type[T]]:
        """As in the standard library, of which it has these two options."""

        def decorate(cls: type[T]) -> type[T]:
            cls.__doc__ = cls.__doc__ or cls.__name__  # it would be made of the signature: `inspect` takes 2 ms
            cls = dataclasses.dataclass(cls, init=False, repr=False, eq=False, kw_only=kw_only)
            fields = dataclasses.fields(cls)
            _check(cls, fields)
            values = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
            made = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}
            cls.__dataclass_defaults__ = values, made
            cls.__dataclass_compared__ = tuple(field.name for field in fields if field.compare)
            methods = {"__init__": _init, "__repr__": _repr, "__eq__": _eq, "__hash__": _hash if frozen else None}
            if frozen:
                methods |= {"__setattr__": _frozen, "__delattr__": _frozen}
            for name, method in methods.items():
                if cls.__dict__.get(name) is None:
                    setattr(cls, name, method)
            return cls

        return decorate if cls is None else decorate(cls)


def _check(cls: type, fields: tuple[dataclasses.Field[Any], ...]) -> None:
    """What the standard library refuses, and what is not made here. TypeError: it is there."""
    if len(fields) < len(cls.__dataclass_fields__) or not all(each.init for each in fields):  # type: ignore[attr-defined]
        raise TypeError(f"{cls.__name__}: ClassVar, InitVar and init=False want the standard library's dataclass")
    has_default = False
    for each in fields:
        optional = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        if has_default and not optional and not each.kw_only:
            raise TypeError(f"non-default argument {each.name!r} follows default argument")
        has_default = has_default or optional and not each.kw_only


def _init(self: Any, /, *positional: Any, **named: Any) -> None:
    names, (defaults, made), own = self.__match_args__, self.__dataclass_defaults__, self.__dict__
    if positional:
        given = dict(zip(names, positional, strict=False))
        if len(given) < len(positional) or given.keys() & named.keys():
            raise TypeError(f"{type(self).__name__} takes {len(names)} values without their names, and each once")
        named |= given
    own.update(defaults)
    own.update(named)
    for name, make in made.items():
        if name not in named:
            own[name] = make()
    if own.keys() != self.__dataclass_fields__.keys():
        known = self.__dataclass_fields__.keys()
        parts = ("lacks", known - own.keys()), ("has no", own.keys() - known)
        said = " and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in parts if names)
        raise TypeError(f"{type(self).__name__} {said}")
    if hasattr(self, "__post_init__"):
        self.__post_init__()


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self.__dataclass_compared__)


def _eq(self: Any, other: object) -> bool:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _frozen(self: Any, name: str, *_: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to or delete field {name!r}")
