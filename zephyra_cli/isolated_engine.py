"""The child of an isolated engine: `python -m zephyra_cli.isolated_engine` answers wishes on standard input.

Each wish is `[name, arguments]`, each answer `{"value": …}`, `{"error": …, "hint": …}` or `{"fault": …}`. It ends when
its input does. SIGINT interrupts a generation and nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
from array import array
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from zephyra_cli import interruption
from zephyra_cli.backends.frames import Closed, Frames
from zephyra_cli.backends.protocol import Job
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, Token


class Child:
    """One method a wish; the generation under way, if any, is the only state beside the backend."""

    def __init__(self) -> None:
        self.generating = False
        self._running: Generator[Any, Any, None] | None = None

    def open(self, pack: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        from zephyra_cli.loading import load
        from zephyra_cli.pack import Pack
        from zephyra_cli.settings import Settings

        loaded = load(Pack(**{**pack, "root": Path(pack["root"])}), Settings(**{**settings, "isolate": False}))
        self.backend = backend = loaded.backend
        return {
            "name": backend.name,
            "device": backend.device,
            "context_length": backend.context_length,
            "threads": backend.threads,
            "vocab_size": backend.vocab_size,
            "parameters": backend.parameters,
            "stop_ids": sorted(backend.stop_ids),
            "draft": loaded.draft,
            "draft_note": loaded.note,
        }

    def encode(self, text: str, special: bool) -> list[int]:
        return self.backend.encode(text, special=special)

    def token_bytes(self, token_id: int) -> str:
        return self.backend.token_bytes(token_id).hex()

    def add_adapter(self, name: str, path: str) -> None:
        self.backend.add_adapter(name, Path(path))

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        return self.backend.set_adapters(weights)

    def cached_tokens(self, prompt: Sequence[int], weights: Mapping[str, float]) -> int:
        return self.backend.cached_tokens(prompt, weights)

    def speculate_no_more(self) -> None:
        self.backend.speculate(None)

    def generate(self, prompt: Sequence[int], params: Mapping[str, Any]) -> None:
        self.stop()
        self._running = self.backend.generate(prompt, SamplingParams(**params))

    def generate_many(self, jobs: Sequence[Mapping[str, Any]], at_once: int | None = None) -> None:
        self.stop()
        listed = [
            Job(prompt=job["prompt"], params=SamplingParams(**job["params"]), weights=job["weights"]) for job in jobs
        ]
        self._running = self.backend.generate_many(listed, at_once)

    def next(self, enough: bool | None = None) -> Any:
        """A token, or a job's number with its token or error; None: the generation has ended, or was interrupted."""
        if self._running is None:
            return None
        try:
            self.generating = True
            event = self._running.send(True) if enough else next(self._running)
        except (StopIteration, KeyboardInterrupt):
            return None
        finally:
            self.generating = False
        if isinstance(event, Token):
            return self._spelled(event)
        number, outcome = event
        if isinstance(outcome, ZephyraError):
            return [number, {"error": outcome.message, "hint": outcome.hint}]
        return [number, self._spelled(outcome)]

    def stop(self) -> dict[str, Any]:
        if self._running is not None:
            self._running.close()
            self._running = None
        return asdict(self.backend.usage)

    def logits(self, prompt: Sequence[int]) -> array[float]:
        flat = array("f")
        for row in self.backend.logits(prompt):
            flat.extend(row)
        return flat

    def classifier(self, path: str, max_tokens: int) -> list[str]:
        from zephyra_cli.backends.classifier import LlamaClassifier

        self.router = LlamaClassifier(Path(path), threads=self.backend.threads, max_tokens=max_tokens)
        return self.router.labels

    def classify(self, token_ids: Sequence[int]) -> list[float]:
        return self.router.logits(token_ids)

    def _spelled(self, token: Token) -> list[Any]:
        return [token.id, token.finish_reason, self.backend.token_bytes(token.id).hex()]


def serve(frames: Frames) -> None:
    child = Child()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if child.generating:
            interruption.handle(number, frame)  # which waits for the end of a call into C that would lose it

    signal.signal(signal.SIGINT, interrupt)
    while True:
        name, arguments = frames.receive()
        try:
            value = getattr(child, name)(**arguments)
            answer = value if isinstance(value, array) else {"value": value}
        except ZephyraError as error:
            answer = {"error": error.message, "hint": error.hint}
        except MemoryError as error:
            answer = {"memory": str(error)}
        except KeyboardInterrupt:  # it came as the generation ended
            answer = {"value": None}
        except Exception as error:
            answer = {"fault": f"{type(error).__name__}: {error}"}
        frames.send(answer)


def _fence() -> None:
    """Die with the parent, gain no rights, leave no core: where the system can be asked for it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def main() -> None:
    """Standard output is the connection: whatever a library prints goes to standard error."""
    _fence()
    answers = os.dup(1)
    os.dup2(2, 1)
    with suppress(Closed, ValueError):
        serve(Frames(0, answers))
    os._exit(0)


if __name__ == "__main__":
    main()
