"""What the engine asks of a backend: tokens in, tokens out."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from zephyra_fusion.draft import Draft
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, Token
from zephyra_fusion.values import dataclass, field


@dataclass(frozen=True, kw_only=True)
class GenerationUsage:
    """What one `generate` cost. It is complete once the generator has ended or was closed.

    `cached_tokens` of `prompt_tokens` were found in the cache and not read again. `completion_tokens` counts the
    stop token where there was one. `first_token_ms` runs from the first `next` to the first token and contains
    `prefill_ms`; `decode_ms` is the time inside the backend for all tokens after the first. Of `drafted` tokens,
    `accepted` were what the model itself chose; `draft_note` says why there are no more of them.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0
    drafted: int = 0
    accepted: int = 0
    draft_note: str = ""

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens that were really read, per second; 0 where nothing was read."""
        read = self.prompt_tokens - self.cached_tokens
        return 1000.0 * read / self.prefill_ms if self.prefill_ms > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first, per second; 0 where there was at most one."""
        return 1000.0 * (self.completion_tokens - 1) / self.decode_ms if self.decode_ms > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One of many prompts: its tokens, how to sample, and the weights of its adapters."""

    prompt: Sequence[int]
    params: SamplingParams
    weights: Mapping[str, float] = field(default_factory=dict)


Event = tuple[int, Token | ZephyraError]
"""The number of a job, and its next token or the error that ended it."""


class Backend(Protocol):
    """Tokens in, tokens out. Knows nothing of chats, domains or terminals. One thread at a time."""

    name: str
    """`llama` or `torch`, as in `--backend`."""
    device: str
    """`cpu`, `cuda` or `mps`."""
    context_length: int
    """Most tokens that prompt and answer may have together."""
    threads: int
    """That compute. They decide the last bits of a sum, so an answer repeats exactly for the same number."""
    vocab_size: int
    usage: GenerationUsage
    """Of the last `generate`."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the vocabulary's own end-of-generation set."""
        ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, nothing added. Control tokens are only recognised with `special`.

        ZephyraError: `text` is no valid Unicode (lone surrogates).
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; control tokens give none. A character may span several tokens."""
        ...

    def add_adapter(self, name: str, path: Path) -> None:
        """Make an adapter resident. ZephyraError: damaged, made for another base, or `name` is taken.

        It costs some milliseconds: call it when the domain is first wanted.
        """
        ...

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        """Switch the adapters ({} = the bare base, several = a blend) and return the milliseconds that it took.

        The weight matrix becomes W + sum_i weights[i] * scale_i * B_i A_i, scale = alpha/r (alpha/sqrt(r) for rsLoRA).
        ZephyraError: an unknown name; a weight that is negative or no number.
        """
        ...

    def cached_tokens(self, prompt: Sequence[int], weights: Mapping[str, float]) -> int:
        """How many tokens of `prompt` would not be read again under these weights: the rest is the price of a switch.

        The adapters need not be resident.
        """
        ...

    def speculate(self, draft: Draft | None) -> None:
        """Let `draft` guess ahead in every `generate` from now on, where that pays; None: no more guessing.

        The text stays what it would be: every token is sampled from this model. The last bits of its logits may
        depend on how many tokens are decoded at once, as they do on the number of threads.
        """
        ...

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Generator[Token, None, None]:
        """Continue `prompt`: yields each token as it is chosen, the last one with its `finish_reason`.

        `stop`: the token is one of `stop_ids` (it is yielded too, and is not part of the text). `length`:
        `params.max_tokens` were given or the context is full. Closing the generator early is allowed at any point.
        ZephyraError on the first `next`: an empty prompt, an id out of range, no room left for one token.
        """
        ...

    def generate_many(self, jobs: Sequence[Job], at_once: int | None = None) -> Generator[Event, bool | None, None]:
        """Continue many prompts at once: every token as it comes with the number of its job, in no order of the jobs.

        A job ends with a token that has a `finish_reason`, or with the error that it alone had; sending True in answer
        to a token ends its job there. The adapters must be resident. Closing the generator early is allowed.
        at_once: sequences computed together, at most; default: as many as pay. What is computed together may differ
        in the last bits of its logits, so in a near tie: 1 gives what `generate` gives that has nothing cached.
        """
        ...

    def logits(self, prompt: Sequence[int]) -> Sequence[Sequence[float]]:
        """Logits after every position of `prompt`, [len(prompt)][vocab_size], under the adapters that are set."""
        ...

    def close(self) -> None:
        """Give all memory back. Allowed twice."""
        ...
