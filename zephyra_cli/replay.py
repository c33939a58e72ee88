"""An answer a second time: what it depends on, and what of that has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.devices import cpu_model
from zephyra_cli.engine import Answer, Engine, Request
from zephyra_cli.settings import Settings
from zephyra_fusion import __version__
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Message, SamplingParams

if TYPE_CHECKING:
    from zephyra_cli.conversations import Conversations, Kept
    from zephyra_cli.pack import Pack

INTERRUPTED = "interrupted"
_SAMPLES, _SAMPLE = 64, 1 << 16  # a file without a manifest is known by so many pieces of so many bytes


def record(answer: Answer, pack: Pack, turns: Sequence[int] | None) -> dict[str, Any]:
    """What the log keeps beside an answer, so that it can be had again.

    `turns`: the rows of the turns in its prompt, which then need not be kept twice; None keeps the messages.
    """
    values: dict[str, Any] = json.loads(answer.replay)
    values |= {
        "root": str(pack.root.absolute()),
        "library": _library(answer.backend),
        "processor": cpu_model(),
        "device": answer.device,
        "cached_tokens": answer.usage.cached_tokens,
    }
    if not pack.files:
        values["samples_sha256"] = _samples(pack.path(pack.base))
    if turns is not None:
        messages = values.pop("messages")
        values["system"] = messages[0][1] if messages[0][0] == "system" else None
        values["turns"] = list(turns)
    return values


def reference_of(kept: Kept) -> str:
    """The model that gave the answer, as `-m` takes it. ZephyraError: nothing is known of it."""
    from zephyra_cli.pack import MANIFEST

    if not kept.replay:
        raise ZephyraError(
            f"the log knows nothing of how {kept.name} was made", hint="it came from a file, or never ended"
        )
    root, model = Path(kept.replay["root"]), str(kept.replay["model"])
    return model if os.path.isabs(model) or not (root / MANIFEST).is_file() else str(root)


def pack_of(kept: Kept) -> Pack:
    """The model that gave the answer. ZephyraError: it is gone, or nothing is known of it."""
    from zephyra_cli import store

    reference = reference_of(kept)
    try:
        return store.find(reference)
    except ZephyraError as error:
        raise ZephyraError(f"the model of {kept.name} is gone: {error.message}", hint=error.hint) from None


def open_engine(kept: Kept, pack: Pack) -> Engine:
    """The model as it was loaded then. ZephyraError: it cannot be any more."""
    values = kept.replay
    kv_type = str(values.get("kv_type", "f16"))
    # A draft changes no text, but how many tokens are decoded at once decides the last bits of a logit.
    settings = Settings(
        backend=str(values["backend"]),
        device=str(values["device"]),
        context=int(values["context"]),
        threads=int(values["threads"]),
        kv_type=kv_type,
        draft="none",
    )
    return Engine.open(pack, settings)


def request_of(kept: Kept, conversations: Conversations) -> Request:
    """The very question, with all that went before it. ZephyraError: that is no longer in the log."""
    from zephyra_cli.session import spell

    values = kept.replay
    if "turns" in values:
        messages = [Message("system", values["system"])] if values["system"] else []
        for question, answer in conversations.texts(values["turns"]):
            messages += [Message("user", question), Message("assistant", answer)]
        messages.append(Message("user", kept.turn.question))
    else:
        messages = [Message(role, content) for role, content in values["messages"]]
    given = {field.name for field in fields(Request)} - {"messages", "params", "domain", "stop"}
    try:
        params = SamplingParams(**values["sampling"])
        if kept.turn.finish_reason == INTERRUPTED:  # as far as it came
            params = replace(params, max_tokens=max(1, kept.result["usage"]["completion_tokens"]))
        return Request(
            messages=tuple(messages),
            params=params,
            domain=spell(values["weights"]),
            stop=tuple(values["stop"]),
            **{name: values[name] for name in given if name in values},
        )
    except (TypeError, KeyError) as error:
        raise ZephyraError(
            f"what the log keeps of {kept.name} is not understood: {error}", hint="update zephyra"
        ) from None


def changes(kept: Kept, pack: Pack, engine: Engine) -> list[str]:
    """What the answer depended on and is no longer as it was."""
    values = kept.replay
    found = []
    for name, before in values["sha256"].items():
        now = pack.files[name].sha256 if name in pack.files else "gone"
        if now != before:
            found.append(f"{name} is another file (sha256 {now[:12]}, it was {before[:12]})")
    if (before := values.get("samples_sha256")) and _samples(pack.path(pack.base)) != before:
        found.append(f"{pack.base} is another file")
    backend = engine.backend
    pairs: list[tuple[str, object, object]] = [
        ("zephyra", __version__, values["zephyra"]),
        ("the backend", backend.name, values["backend"]),
        ("its library", _library(backend.name), values["library"]),
        ("the processor", cpu_model(), values["processor"]),
        ("the number of threads", backend.threads, values["threads"]),
        ("the context", backend.context_length, values["context"]),
    ]
    return found + [f"{what} is {now}, it was {before}" for what, now, before in pairs if now != before]


def differs(answer: Answer, kept: Kept) -> str:
    """Where the answer and the kept one part, in words; empty where they are the same.

    An interrupted answer may lack the last token that was computed.
    """
    now, before = answer.text, kept.turn.answer
    if now == before or (kept.turn.finish_reason == INTERRUPTED and now.startswith(before)):
        return ""
    at = len(os.path.commonprefix([now, before]))
    return f"from character {at} on it says {now[at : at + 40]!r}, it said {before[at : at + 40]!r}"


def _library(backend: str) -> str:
    if backend == "llama":
        from zephyra_cli.backends.library import VERSION

        return f"llama-cpp-python {VERSION}"
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{backend} {version(backend)}"
    except PackageNotFoundError:
        return backend


def _samples(path: Path) -> str:
    """SHA-256 of a file's size and pieces of it, evenly spread: reading all would take seconds. Of a folder: of all its
    files."""
    import hashlib  # OpenSSL: 3 ms that only a model without a manifest needs

    digest = hashlib.sha256()
    for part in sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]:
        status = part.stat()
        digest.update(_sampled(part, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _sampled(path: Path, size: int, changed: int) -> bytes:
    """`changed`: when, in nanoseconds, so that a chat looks once and not at every turn."""
    import hashlib

    digest = hashlib.sha256(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.digest()
