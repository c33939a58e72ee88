"""A backend in a process of its own: what kills it there is an error message here.

Files that nobody vouches for are run so. The child computes what it is asked and knows nothing else: it has none of our
secrets in its environment, and what it answers is parsed as numbers and text, never executed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from zephyra_cli.backends.frames import Closed, Frames
from zephyra_cli.backends.library import EXIT_ABORTED
from zephyra_cli.backends.protocol import Event, GenerationUsage, Job
from zephyra_cli.text import utf8
from zephyra_fusion.draft import Draft
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import Router
from zephyra_fusion.types import SamplingParams, Token

CHILD = (sys.executable, "-P", "-m", "zephyra_cli.isolated_engine")
_KEPT = ("PATH", "HOME", "TMPDIR", "TEMP", "TMP", "LANG", "ZEPHYRA_HOME", "LLAMA_CPP_LIB_PATH", "VIRTUAL_ENV")
_KEPT_BEGINNINGS = ("LC_", "LD_", "DYLD_", "OMP_", "GOMP_", "KMP_", "GGML_", "XDG_", "SYSTEM", "LOCALAPPDATA")
_REASONS = (None, "stop", "length")


class IsolatedBackend:
    """`protocol.Backend` over a pipe. `options` are what `isolated_engine.Child.open` takes, `path` is for its name.

    ZephyraError: as of the backend inside, or the child has died and of what.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], child: Sequence[str] = CHILD) -> None:
        self._path, self._turn = path, 0
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  what the child writes to its standard error
        environment = {name: value for name, value in os.environ.items() if _harmless(name)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            child,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us; the child is told when it concerns it
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._frames = Frames(self._process.stdout.fileno(), self._process.stdin.fileno())
        self._pieces: dict[int, bytes] = {}
        self.usage = GenerationUsage()
        try:
            facts = self._ask("open", **options)
            self.name, self.device = str(facts["name"]), str(facts["device"])
            self.context_length, self.threads = int(facts["context_length"]), int(facts["threads"])
            self.vocab_size, self.parameters = int(facts["vocab_size"]), int(facts["parameters"])
            self.stop_ids = frozenset(int(number) for number in facts["stop_ids"])
            self.draft, self.draft_note = str(facts["draft"]), str(facts["draft_note"])
        except BaseException:
            self.close()
            raise

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        utf8(text)  # no frame can carry what is none
        return [self._id(number) for number in self._ask("encode", text=text, special=special)]

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id)
        if piece is None:
            self._pieces[token_id] = piece = bytes.fromhex(self._ask("token_bytes", token_id=token_id))
        return piece

    def add_adapter(self, name: str, path: Path) -> None:
        self._ask("add_adapter", name=name, path=str(path))

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        return float(self._ask("set_adapters", weights=dict(weights)))

    def cached_tokens(self, prompt: Sequence[int], weights: Mapping[str, float]) -> int:
        return int(self._ask("cached_tokens", prompt=list(prompt), weights=dict(weights)))

    def speculate(self, draft: Draft | None) -> None:
        """The child chooses its draft when it is opened; here it can only be taken away."""
        if draft is not None:
            raise ValueError("the draft of an isolated backend is chosen by its options")
        self._ask("speculate_no_more")

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Generator[Token, None, None]:
        self._turn += 1
        turn = self._turn
        self._ask("generate", prompt=list(prompt), params=asdict(params))
        try:
            while (event := self._next(turn)) is not None:
                token = self._token(event)
                yield token
                if token.finish_reason:
                    return
        finally:
            self._stop(turn)

    def generate_many(self, jobs: Sequence[Job], at_once: int | None = None) -> Generator[Event, bool | None, None]:
        self._turn += 1
        turn, enough = self._turn, None
        listed = [
            {"prompt": list(job.prompt), "params": asdict(job.params), "weights": dict(job.weights)} for job in jobs
        ]
        self._ask("generate_many", jobs=listed, at_once=at_once)
        try:
            while (event := self._next(turn, enough)) is not None:
                number, outcome = event
                if not 0 <= number < len(jobs):
                    self._broken()
                if isinstance(outcome, dict):
                    enough = yield number, ZephyraError(str(outcome["error"]), hint=outcome["hint"])
                else:
                    enough = yield number, self._token(outcome)
        finally:
            self._stop(turn)

    def logits(self, prompt: Sequence[int]) -> list[array[float]]:
        flat = self._ask("logits", prompt=list(prompt))
        if not isinstance(flat, array) or len(flat) != len(prompt) * self.vocab_size:
            self._broken()
        return [flat[at : at + self.vocab_size] for at in range(0, len(flat), self.vocab_size)]

    def classifier(self, path: Path, router: Router) -> IsolatedClassifier:
        """A classifier in the same process."""
        return IsolatedClassifier(self._ask, path, router)

    def close(self) -> None:
        self._turn += 1
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._said.close()

    def _ask(self, wish: str, **arguments: Any) -> Any:
        """One wish, one answer; nobody takes the answer that an interruption overtakes."""
        if self._process.returncode is not None:
            raise RuntimeError("the backend is closed")
        try:
            self._frames.send([wish, arguments])
            return self._answer()
        except Closed:
            self._broken()
        except KeyboardInterrupt:
            if wish == "open":
                raise
            try:
                if os.name != "nt":  # there, Ctrl-C goes to both of us
                    self._process.send_signal(signal.SIGINT)  # ends a token or a long prompt early
                while self._frames.waiting:
                    with suppress(ZephyraError, RuntimeError):
                        self._answer()
            except BaseException:
                self.close()
                raise
            raise

    def _next(self, turn: int, enough: bool | None = None) -> Any:
        """What the child's generator yields next; None: it has ended."""
        if turn != self._turn:
            raise RuntimeError("this generation was overtaken by a newer one, or by close()")
        return self._ask("next", enough=True) if enough else self._ask("next")

    def _stop(self, turn: int) -> None:
        """Close the child's generator, if it is still this one, and take what it cost."""
        if turn == self._turn and self._process.returncode is None:
            self.usage = GenerationUsage(**self._ask("stop"))

    def _answer(self) -> Any:
        answer = self._frames.receive()
        if isinstance(answer, array):
            return answer
        if not isinstance(answer, dict):
            raise Closed
        if "error" in answer:
            hint = answer.get("hint")
            raise ZephyraError(str(answer["error"]), hint=None if hint is None else str(hint))
        if "memory" in answer:
            raise MemoryError(str(answer["memory"]))
        if "fault" in answer:
            raise RuntimeError(str(answer["fault"]))
        return answer.get("value")

    def _token(self, event: Any) -> Token:
        number, reason, piece = event
        if reason not in _REASONS:
            self._broken()
        token = self._id(number)
        if token not in self._pieces:
            self._pieces[token] = bytes.fromhex(piece)
        return Token(token, reason)

    def _id(self, number: Any) -> int:
        if type(number) is not int or not 0 <= number < getattr(self, "vocab_size", 1 << 31):
            self._broken()
        return int(number)

    def _broken(self) -> NoReturn:
        """ZephyraError: how the child died, in its own last words where it had some."""
        if (status := self._process.poll()) is None:
            try:
                status = self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                status = None
        self._said.seek(0)
        words = self._said.read()[-2000:].decode(errors="replace").strip().splitlines()
        self.close()
        if status is None:
            what = "answered nonsense and was ended"
        elif status < 0:
            what = f"crashed ({_signal(-status)})"
        else:
            what = "aborted" if status == EXIT_ABORTED else f"ended with status {status}"
        raise ZephyraError(
            f"the engine {what} on '{self._path}'" + (f": {words[-1][:300]}" if words else ""),
            hint="the file is damaged, or made to do harm; zephyra doctor says whether the engine itself is sound",
        )


class IsolatedClassifier:
    """The router in the child of its base, loaded with the first question."""

    def __init__(self, ask: Callable[..., Any], path: Path, router: Router) -> None:
        self._ask, self._path, self._router = ask, path, router
        self._loaded = False

    def logits(self, token_ids: Sequence[int]) -> list[float]:
        if not self._loaded:
            labels = self._ask("classifier", path=str(self._path), max_tokens=self._router.max_tokens)
            self._router.check_labels([str(label) for label in labels], self._path)
            self._loaded = True
        return [float(number) for number in self._ask("classify", token_ids=list(token_ids))]


def _harmless(name: str) -> bool:
    return name in _KEPT or name.startswith(_KEPT_BEGINNINGS)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
