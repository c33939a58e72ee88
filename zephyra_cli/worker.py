"""The one thread that computes: requests wait in a queue, their events go back to whoever asked."""

from __future__ import annotations

from contextlib import closing
from queue import Empty, Full, Queue, SimpleQueue
from threading import Event, Thread

from zephyra_cli.engine import Answer, Engine, Request
from zephyra_cli.openai import Refusal

MOST_WAITING = 64

Outcome = str | Answer | BaseException


class Job:
    """A request that was taken on. Who no longer wants it sets `cancelled`: it ends with the token being computed."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.cancelled = Event()
        self.events: SimpleQueue[Outcome] = SimpleQueue()

    def next(self, seconds: float) -> Outcome | None:
        """The next piece, the answer, or what went wrong; None where nothing came in this time."""
        try:
            return self.events.get(timeout=seconds)
        except Empty:
            return None


class Worker(Thread):
    """Owns the engine: its libraries keep threads and memory for every thread that calls them."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="zephyra-engine", daemon=True)
        self.engine = engine
        self.jobs: Queue[Job | None] = Queue(MOST_WAITING)
        self.stopping = Event()

    def submit(self, request: Request) -> Job:
        """Refusal 503: too many are waiting, or the server is about to end."""
        if self.stopping.is_set():
            raise Refusal(503, "the server is ending")
        job = Job(request)
        try:
            self.jobs.put_nowait(job)
        except Full:
            raise Refusal(503, f"{MOST_WAITING} requests are waiting already") from None
        return job

    def run(self) -> None:
        while not self.stopping.is_set() and (job := self.jobs.get()) is not None:
            if job.cancelled.is_set():
                continue
            try:
                self._compute(job)
            except BaseException as error:
                job.events.put(error)

    def _compute(self, job: Job) -> None:
        with closing(self.engine.generate(job.request)) as events:
            for event in events:
                job.events.put(event)
                if self.stopping.is_set():
                    raise Refusal(503, "the server is ending")
                if job.cancelled.is_set():
                    return

    def stop(self, seconds: float = 5.0) -> None:
        """End with the token being computed, and tell those who wait."""
        self.stopping.set()
        while True:
            try:
                waiting = self.jobs.get_nowait()
            except Empty:
                break
            if waiting is not None:
                waiting.events.put(Refusal(503, "the server is ending"))
        self.jobs.put(None)
        if self.is_alive():
            self.join(seconds)
