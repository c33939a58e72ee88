"""Work done ahead of its turn: in order, the first error of all, and nothing more once one has looked away."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from zephyra_converters.read_ahead import _AHEAD, _THREADS, read_ahead


def test_results_come_in_order_and_a_bounded_number_waits() -> None:
    begun, taken = [], 0
    dice = random.Random(1)
    waits = [dice.random() / 500 for _ in range(100)]

    def job(number: int) -> Callable[[], int]:
        def work() -> int:
            begun.append(number)
            assert len(begun) - taken <= _AHEAD + _THREADS + 1
            time.sleep(waits[number])
            return number

        return work

    with read_ahead(map(job, range(100))) as made:
        for number in made:
            assert number == taken
            taken += 1
    assert taken == 100 and sorted(begun) == list(range(100))


def test_the_first_error_by_order_is_raised_in_its_place() -> None:
    later = threading.Event()

    def fine() -> int:
        return 1

    def first() -> int:
        later.wait(10)
        raise ValueError("first")

    def second() -> int:
        later.set()
        raise ValueError("second")

    got = []
    with pytest.raises(ValueError, match="first"), read_ahead([fine, first, second, fine]) as made:
        got += [next(made)]
        got += list(made)
    assert got == [1]


def test_who_looks_away_ends_the_work() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), read_ahead(lambda n=n: done.append(n) for n in range(1000)) as made:
        next(made)
        raise KeyboardInterrupt
    assert len(done) <= _AHEAD + 1
