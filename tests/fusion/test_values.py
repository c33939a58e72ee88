"""Classes of `values.dataclass` behave as the standard library's do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from typing import Any, ClassVar

import pytest

from zephyra_fusion import values


@values.dataclass(frozen=True)
class Point:
    """Two positions, a default, and what comparisons leave out."""

    x: int
    y: int = 0
    names: list[str] = field(default_factory=list, repr=False)
    row: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError(self.x)


@dataclasses.dataclass(frozen=True)
class Standard:
    """As `Point`, by the standard library."""

    x: int
    y: int = 0
    names: list[str] = field(default_factory=list, repr=False)
    row: int = field(default=0, compare=False)


@values.dataclass(frozen=True, kw_only=True)
class Named:
    """A value that must be given stands behind one that need not."""

    name: str = ""
    size: int


@values.dataclass
class Counter:
    """May be changed."""

    count: int = 0
    _seen: set[int] = field(default_factory=set)


def told(work: Callable[[], object]) -> object:
    try:
        return work()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(
    "given",
    [((1,), {}), ((1, 2), {}), ((), {"x": 1, "row": 4}), ((1,), {"names": ["a"]})]
    + [((), {}), ((1,), {"x": 2}), ((1, 2, [], 4, 5), {}), ((1,), {"z": 1}), ((), {"z": 1})],
)
def test_instances_are_made_and_refused_alike(given: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    positional, named = given
    ours, theirs = told(lambda: Point(*positional, **named)), told(lambda: Standard(*positional, **named))
    if theirs is TypeError:
        assert ours is TypeError
        return
    assert isinstance(ours, Point) and isinstance(theirs, Standard)
    assert asdict(ours) == asdict(theirs)
    assert repr(ours) == repr(theirs).replace("Standard", "Point")


def test_equal_values_are_equal() -> None:
    assert Point(1, 2, row=3) == Point(1, 2, row=4) != Point(1, 3)
    assert Point(1) != Standard(1) and Named(size=1) == Named(size=1)
    assert len({Named(size=1), Named(size=1), Named(size=2)}) == 2
    assert Counter(1) == Counter(1) and told(lambda: hash(Counter())) is TypeError


def test_a_frozen_value_is_frozen_and_another_is_not() -> None:
    for name in "x", "z":
        assert told(lambda name=name: setattr(Point(1), name, 2)) is FrozenInstanceError  # type: ignore[misc]
    assert told(lambda: delattr(Point(1), "x")) is FrozenInstanceError
    counter = Counter()
    counter.count += 1
    assert counter == Counter(1)


def test_each_instance_has_its_own_default() -> None:
    first, second = Counter(), Counter()
    first._seen.add(1)
    assert second._seen == set()


def test_what_the_standard_library_does_with_its_own() -> None:
    assert replace(Point(1), y=5) == Point(1, 5) and replace(Named(size=1), name="a").name == "a"
    assert [one.name for one in fields(Named)] == ["name", "size"]
    assert told(lambda: Named("a", 1)) is TypeError  # type: ignore[misc]
    assert told(lambda: replace(Point(1), x=-1)) is ValueError
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
    for twin in copy.deepcopy(Point(1, names=["a"])), pickle.loads(pickle.dumps(Point(1, names=["a"]))):
        assert twin == Point(1, names=["a"])


def test_what_is_missing_and_what_is_unknown_is_named() -> None:
    with pytest.raises(TypeError, match="^Named lacks size and has no colour, weight$"):
        Named(weight=1, colour=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="^Point lacks x$"):
        Point(y=1)  # type: ignore[call-arg]


def test_what_is_not_made_here_is_refused_when_the_class_is_made() -> None:
    class OfTheClass:
        kind: ClassVar[int] = 1
        x: int

    class NotGiven:
        x: int = field(init=False)

    class Disordered:
        x: int = 1
        y: int

    for made in OfTheClass, NotGiven:
        with pytest.raises(TypeError, match="want the standard library's dataclass"):
            values.dataclass(made)
    with pytest.raises(TypeError, match="non-default argument 'y' follows default argument"):
        values.dataclass(Disordered)


def test_a_hash_of_its_own_stays() -> None:
    @values.dataclass(frozen=True)
    class Own:
        """Hashes as one."""

        x: list[int]

        def __hash__(self) -> int:
            return 1

    assert hash(Own([1])) == 1
