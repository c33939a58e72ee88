"""Blocks of tensors made ready on all cores, in their order, while the ones before them are being written."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Made = TypeVar("Made")

_THREADS = min(4, os.cpu_count() or 1)  # the disk and the one thread that writes keep no more of them busy
_AHEAD = 2 * _THREADS  # what is held in memory beside the block being written


@contextmanager
def read_ahead(jobs: Iterable[Callable[[], Made]]) -> Iterator[Iterator[Made]]:
    """What each job returns, in the order of the jobs; the first error, by that order, is raised in its place.

    Jobs run in threads: numpy lets go of the interpreter while it reads and converts.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:

        def results() -> Iterator[Made]:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield results()
        finally:
            for future in waiting:
                future.cancel()
