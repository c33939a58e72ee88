"""How likely a model finds given answers: teacher-forced, through the llama.cpp backend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from zephyra_cli.backends.protocol import Backend
    from zephyra_cli.pack import Pack


@dataclass(frozen=True)
class Example:
    """Token ids of a rendered prompt, and of the response with what ends it."""

    prompt: list[int]
    response: list[int]


@dataclass(frozen=True)
class Loss:
    """Negative log-likelihood in nats over a number of tokens; losses add up."""

    nats: float = 0.0
    tokens: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.nats + other.nats, self.tokens + other.tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)


def example(record: Mapping[str, Any], pack: Pack, backend: Backend) -> Example | None:
    """As in training: the chat's prompt, then the response and its end token; a plain text is all response but its
    first token. Without a chat template prompt and response follow each other. Too long ones lose the response's end;
    None where not even the prompt fits.
    """
    from zephyra_cli.text import encode
    from zephyra_fusion.types import Message

    if "text" in record:
        ids = backend.encode(record["text"])
        prompt, response = ids[:1], ids[1:]
    elif pack.chat is None:
        prompt, response = backend.encode(record["prompt"]), backend.encode(record["response"])
    else:
        prompt = encode(pack.chat.render([Message("user", record["prompt"])]), backend)
        end = backend.encode(pack.chat.after["assistant"], special=True)
        response = [*backend.encode(record["response"]), *end]
    room = backend.context_length - len(prompt)
    return Example(prompt, response[:room]) if prompt and response and room > 0 else None


def examples(records: Sequence[Mapping[str, Any]], pack: Pack, backend: Backend) -> list[Example]:
    """Of all records that fit the context."""
    return [made for record in records if (made := example(record, pack, backend)) is not None]


def loss(backend: Backend, example: Example) -> Loss:
    """Of the response's tokens under the adapters that are set."""
    import numpy as np

    ids = [*example.prompt, *example.response]
    logits = logits_from(backend, ids[:-1], len(example.prompt) - 1)  # [response, vocabulary]
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), example.response]
    nats = np.log(np.exp(logits, out=logits).sum(axis=1)) - chosen
    return Loss(float(nats.sum(dtype=np.float64)), len(logits))


def logits_from(backend: Backend, ids: Sequence[int], start: int = 0) -> np.ndarray:
    """Logits after the positions from `start` on, float32 `[len(ids) - start, vocabulary]`."""
    import numpy as np

    return np.stack([np.asarray(row, np.float32) for row in backend.logits(ids)[start:]])


def total(losses: Sequence[Loss]) -> Loss:
    return sum(losses, Loss())
