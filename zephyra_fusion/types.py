"""The small frozen values that travel between the floors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.values import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen (vLLM's names).

    `temperature=0` is greedy. `top_k=0`, `top_p=1`, `min_p=0` and `repeat_penalty=1` switch that filter off.
    Order of the filters: penalty over the last `repeat_last_n` tokens, top-k, top-p, min-p, temperature, draw.
    So many tokens in a row as `no_repeat_ngram_size` says come but once in an answer; 0, or a form to follow: they may.
    `schema` (JSON Schema) or `grammar` (GBNF), where not empty, is what the answer must follow: it comes first of all.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    no_repeat_ngram_size: int = 0
    seed: int = 0
    schema: str = ""
    grammar: str = ""

    def __post_init__(self) -> None:
        wrong = []
        if self.max_tokens < 1:
            wrong.append(f"max_tokens is {self.max_tokens}, must be at least 1")
        if not 0.0 <= self.temperature <= 100.0:  # NaN fails every comparison, so it is refused here too
            wrong.append(f"temperature is {self.temperature}, must be between 0 and 100")
        if self.top_k < 0:
            wrong.append(f"top_k is {self.top_k}, must not be negative")
        if not 0.0 < self.top_p <= 1.0:
            wrong.append(f"top_p is {self.top_p}, must be above 0 and at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            wrong.append(f"min_p is {self.min_p}, must be between 0 and 1")
        if not 0.0 < self.repeat_penalty <= 10.0:
            wrong.append(f"repeat_penalty is {self.repeat_penalty}, must be above 0 and at most 10")
        if self.repeat_last_n < 0:
            wrong.append(f"repeat_last_n is {self.repeat_last_n}, must not be negative")
        if self.no_repeat_ngram_size < 0 or self.no_repeat_ngram_size == 1:
            wrong.append(f"no_repeat_ngram_size is {self.no_repeat_ngram_size}, must be 0 or at least 2")
        if not 0 <= self.seed < 2**32:
            wrong.append(f"seed is {self.seed}, must fit 32 bits without a sign")
        if self.schema and self.grammar:
            wrong.append("a schema and a grammar are given, an answer can follow one of them")
        if wrong:
            raise ZephyraError("; ".join(wrong))


class Token(NamedTuple):
    """One generated token: its id and, on the last one, why generation ended (`stop`, `length`)."""

    id: int
    finish_reason: str | None = None


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered chat: `control` pieces are special tokens, all others are never parsed for them."""

    text: str
    control: bool = False


@dataclass(frozen=True)
class Message:
    """One turn: `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Route:
    """What the router decided for one prompt.

    `weights` are the adapter weights to switch on ({} = the bare base); `probabilities` are calibrated and sum to
    1 over the domains and `none`; `domain` is `none` where the router abstained.
    """

    domain: str
    weights: Mapping[str, float]
    probabilities: Mapping[str, float] = field(default_factory=dict)
    abstained: bool = False
    router_ms: float = 0.0


MOST_ADAPTERS = 64
"""That can be blended: beyond, their sum has more rank than a layer, and takes more memory than a base."""


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights as a plain dict without zeros. ZephyraError: NaN, infinite or negative ones, or too many."""
    wrong = [
        f"weight of '{name}' is {weight!r}"
        for name, weight in weights.items()
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0.0 or weight > 100.0
    ]
    if wrong:
        raise ZephyraError("; ".join(wrong), hint="a weight is a number from 0 to 100, as in law=0.7,code=0.3")
    chosen = {name: float(weight) for name, weight in weights.items() if weight != 0.0}
    if len(chosen) > MOST_ADAPTERS:
        raise ZephyraError(f"a blend of {len(chosen)} adapters is asked for, at most {MOST_ADAPTERS} can be blended")
    return chosen


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Token ids, of which there is one at least. ZephyraError: one is outside the vocabulary."""
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        raise ZephyraError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}")
