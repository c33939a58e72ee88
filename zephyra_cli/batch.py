"""Many prompts in one go: read by the line, routed, answered several at once, written in their order."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from zephyra_cli.backends.protocol import GenerationUsage, Job
from zephyra_cli.batch_file import MOST_BYTES, InOrder, Output, lines, readable_twice
from zephyra_cli.engine import Engine, Request
from zephyra_cli.progress import Progress
from zephyra_cli.routing import Decision
from zephyra_cli.text import AnswerText
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import Message, Token

WINDOW = 512  # prompts that are routed before they are answered mix by mix
_SAMPLING: dict[str, type] = {
    **{"max_tokens": int, "temperature": float, "top_k": int, "top_p": float, "min_p": float},
    **{"repeat_penalty": float, "seed": int},
}
FIELDS = ("prompt", "id", "system", "domain", "raw", "stop", "schema", "grammar", *_SAMPLING)


@dataclass
class _Answering:
    """A job while its tokens come."""

    place: int
    line: int
    id: Any
    request: Request
    decision: Decision
    text: AnswerText
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    first: float = 0.0


@dataclass
class Batch:
    """`base` is what a line's request has where the line says nothing else. `failed`: lines with an error of their own.

    ZephyraError: the input cannot be read, the output not be written, or was begun by another run.
    """

    engine: Engine
    base: Request
    source: Path
    target: Path | None
    at_once: int | None = None
    """Prompts that are computed together, at most."""
    fresh_seeds: bool = False
    """Whether a sampled line without a seed draws one of its own."""
    failed: int = 0
    answered: int = 0
    tokens: int = 0

    def run(self, progress: Progress) -> None:
        try:
            with readable_twice(self.source) as file:
                total = sum(1 for _ in lines(file))
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                output = Output(self.target, self._identity(digest)) if self.target else InOrder()
                file.seek(0)
                self._began, self._done = time.monotonic(), len(output)
                try:
                    todo = ((place, line, raw) for place, (line, raw) in enumerate(lines(file)) if place not in output)
                    while window := list(islice(todo, WINDOW)):
                        self._answer(window, output, total, progress)
                except BaseException:
                    output.close()
                    raise
                output.finish()
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except OSError as error:
            raise ZephyraError(f"cannot read '{self.source}': {error.strerror}") from None

    def _identity(self, digest: str) -> dict[str, Any]:
        request, params, pack = self.base, self.base.params, self.engine.pack
        return {
            "zephyra_batch": 1,
            "input": digest,
            "model": [pack.name, *sorted(record.sha256 for record in pack.files.values())],
            "base": None if pack.base in pack.files else _stamp(pack.path(pack.base)),
            "backend": [self.engine.backend.name, self.engine.kv_type, self.engine.backend.context_length],
            "messages": [[message.role, message.content] for message in request.messages],
            "options": [request.raw, request.domain, list(request.stop)],
            "sampling": repr(replace(params, seed=0) if self.fresh_seeds else params),
        }

    def _answer(
        self, window: Sequence[tuple[int, int, bytes]], output: Output | InOrder, total: int, progress: Progress
    ) -> None:
        jobs: list[Job] = []
        running: list[_Answering] = []

        def finished(place: int, record: Mapping[str, Any]) -> None:
            output.write(place, record)
            self._done += 1
            self.failed += "error" in record
            self.answered += "error" not in record
            if self._done == total or time.monotonic() - self._began > 1.0:  # before, the pace means nothing
                progress(self._done, total, self._pace(total))

        for place, line, raw in window:
            own_id = None
            try:
                values = _values(raw)
                own_id = values.get("id")
                request = _request(values, self.base, self.fresh_seeds)
                text = AnswerText(request.stop)
                job, decision = self.engine.job(request)
            except ZephyraError as error:
                finished(place, _failure(line, own_id, error))
                continue
            jobs.append(job)
            running.append(_Answering(place, line, own_id, request, decision, text))
        start = time.perf_counter()
        with closing(self.engine.backend.generate_many(jobs, self.at_once)) as events:
            event = next(events, None)
            while event is not None:
                answering, said = running[event[0]], event[1]
                over = None
                if isinstance(said, ZephyraError):
                    finished(answering.place, _failure(answering.line, answering.id, said))
                else:
                    over = self._advance(answering, said, start)
                if over is not None:
                    finished(answering.place, self._record(answering, over, jobs[event[0]], start))
                try:
                    event = events.send(over is not None)
                except StopIteration:
                    event = None

    def _advance(self, job: _Answering, token: Token, start: float) -> str | None:
        """Why the answer ends with this token, if it does."""
        job.tokens += 1
        self.tokens += 1
        if job.tokens == 1:
            job.first = time.perf_counter() - start
        job.pieces.append(job.text.feed(self.engine.backend.token_bytes(token.id)))
        return "stop" if job.text.stopped else token.finish_reason

    def _record(self, job: _Answering, reason: str, asked: Job, start: float) -> dict[str, Any]:
        """The result object. Its times are a sequence's among others, counted from when its window began."""
        job.pieces.append(job.text.finish())
        usage = GenerationUsage(
            prompt_tokens=len(asked.prompt),
            completion_tokens=job.tokens,
            first_token_ms=1000 * job.first,
            decode_ms=1000 * (time.perf_counter() - start - job.first),
        )
        answer = self.engine.answer(job.request, job.decision, "".join(job.pieces), reason, usage)
        return _named(job.line, job.id) | answer.to_dict()

    def _pace(self, total: int) -> str:
        seconds = max(time.monotonic() - self._began, 1e-6)
        new = self.failed + self.answered
        left = seconds / new * (total - self._done)
        return f"{self.tokens / seconds:.0f} tokens/s, {_spell(left)} left"


def _stamp(path: Path) -> list[Any]:
    """What tells a file without a hash from another, or from what it was; a hash of gigabytes would take seconds."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _named(line: int, own_id: Any) -> dict[str, Any]:
    return {"line": line} if own_id is None else {"line": line, "id": own_id}


def _failure(line: int, own_id: Any, error: ZephyraError) -> dict[str, Any]:
    return _named(line, own_id) | {"error": error.message} | ({"hint": error.hint} if error.hint else {})


def _spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _values(raw: bytes) -> dict[str, Any]:
    if len(raw) > MOST_BYTES:
        raise ZephyraError(f"the line is longer than {MOST_BYTES // 2**20} MiB")
    try:
        values = json.loads(raw.decode("utf-8").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ZephyraError(f"no valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ZephyraError("the line is no object", hint='as in {"prompt": "list all files"}')
    return values


def _request(values: Mapping[str, Any], base: Request, fresh_seeds: bool) -> Request:
    """What a line asks. ZephyraError: no prompt, a field that looks like one of ours, a value of another type."""
    for name in set(values) - set(FIELDS):  # data sets have columns of their own; a slip of the pen is none
        if difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.8):
            raise ZephyraError(f"unknown field '{name}'", hint=did_you_mean(name, FIELDS))
    given = {name: value for name, value in values.items() if value is not None}
    if given.get("raw", base.raw) and "system" in given:
        raise ZephyraError("a raw prompt has no place for a system prompt")
    prompt = _typed(given, "prompt", str)
    if prompt is None or not prompt.strip():
        raise ZephyraError('no text under "prompt"', hint='as in {"prompt": "list all files"}')
    sampling = {name: _typed(given, name, kind) for name, kind in _SAMPLING.items() if name in given}
    options: dict[str, Any] = {**sampling, **_form(given)}
    params = replace(base.params, **options)
    if fresh_seeds and "seed" not in given and params.temperature > 0:
        import os

        params = replace(params, seed=int.from_bytes(os.urandom(4)))
    raw = _typed(given, "raw", bool)
    system = _typed(given, "system", str)
    before = base.messages if system is None else (Message("system", system),)
    raw = base.raw if raw is None else raw
    messages = (*(() if raw else before), Message("user", prompt))
    stop = given.get("stop", base.stop)
    stop = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list | tuple) else (None,)
    if not all(isinstance(text, str) for text in stop):
        raise ZephyraError("stop must be a text or a list of texts")
    domain = _typed(given, "domain", str) or base.domain
    return replace(base, messages=messages, params=params, raw=raw, domain=domain, stop=stop)


def _form(given: Mapping[str, Any]) -> dict[str, str]:
    """The line's own schema or grammar stands for both of the command's."""
    if "schema" not in given and "grammar" not in given:
        return {}
    schema = given.get("schema", "")
    return {
        "schema": schema if isinstance(schema, str) else json.dumps(schema),
        "grammar": _typed(given, "grammar", str) or "",
    }


def _typed(values: Mapping[str, Any], name: str, kind: type) -> Any:
    value = values.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if value is not None and type(value) is not kind:
        words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ZephyraError(f"{name} is {json.dumps(value)[:40]}, must be {words[kind]}")
    return value
