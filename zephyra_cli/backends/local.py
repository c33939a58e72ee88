"""What the backends that compute in this process have in common: an answer's way from prompt to last token."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from zephyra_cli.backends.context import Context
from zephyra_cli.backends.limits import check_limits
from zephyra_cli.backends.protocol import Backend, GenerationUsage
from zephyra_cli.backends.speculation import Speculation
from zephyra_cli.devices import usable_cores
from zephyra_fusion.draft import Draft, DraftLength
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, Token, check_ids

if TYPE_CHECKING:
    from zephyra_fusion.constraint import Constraint, TokenTable

_DEFAULT_CONTEXT = 4096


class Choice(Protocol):
    """How the tokens of one answer are chosen; it remembers them."""

    def sample(self, context: Any, row: int = -1) -> int:
        """The token after the one in `row` of the last batch that `context` decoded."""
        ...

    def close(self) -> None: ...


class LocalBackend(Backend):
    """`trained`: tokens of context that the model was made for. `most_threads`: what `threads` is when not given.

    ZephyraError: `context` or `threads` is out of range.
    """

    def __init__(self, trained: int, context: int | None, threads: int | None, most_threads: int) -> None:
        check_limits(trained, context, threads)
        self.context_length = context or min(trained, _DEFAULT_CONTEXT)
        self.threads = min(threads or most_threads, usable_cores())
        self.usage = GenerationUsage()
        self._draft: Draft | None = None
        self._draft_length = DraftLength()
        self._turn = 0  # counts generations, so that an old generator cannot go on in a new one's cache

    @abstractmethod
    def _prepare(self, prompt: Sequence[int], params: SamplingParams) -> tuple[Context, Choice]:
        """The context of the mix that is set, with room for the answer, and who chooses its tokens."""

    @abstractmethod
    def _ends_answer(self, token_id: int) -> bool: ...

    @abstractmethod
    def forget(self) -> None:
        """Let go of all keys and values: the next prompt is read whole."""

    @abstractmethod
    def _check_open(self) -> None: ...

    def speculate(self, draft: Draft | None, length: DraftLength | None = None) -> None:
        """`length` says how much is drafted; by default as many tokens as pay."""
        if self._draft is not None and self._draft is not draft:
            self._draft.close()
        self._draft, self._draft_length = draft, length or DraftLength()

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Generator[Token, None, None]:
        self._check_prompt(prompt, room=1)
        self._turn += 1
        turn, clock = self._turn, time.perf_counter
        start = clock()
        context, choice = self._prepare(prompt, params)
        cached, given = context.rewind(prompt), 0
        prefill_ms = first_ms = decode_ms = 0.0
        last = min(params.max_tokens, self.context_length - len(prompt))
        speculation, row = None, -1
        if self._draft is not None:
            speculation = Speculation(self._draft, self._draft_length, context, prompt, last)
        try:
            began = clock()
            context.read(prompt)
            prefill_ms = 1000 * (clock() - began)
            self._prompt_read(context)
            sample, ends = choice.sample, self._ends_answer
            while True:
                token = sample(context, row)
                given += 1
                if given == 1:
                    first_ms = 1000 * (clock() - start)
                else:
                    decode_ms += 1000 * (clock() - began)
                if ends(token):
                    yield Token(token, "stop")
                    return
                if given == last:
                    yield Token(token, "length")
                    return
                yield Token(token)
                if turn != self._turn:
                    raise RuntimeError("this generation was overtaken by a newer one, or by close()")
                if given == 1:
                    self._answer_begun(context, prompt)
                began = clock()
                if speculation is None:
                    context.decode((token,))
                else:
                    row = speculation.advance(token)
        finally:
            choice.close()
            if turn == self._turn:
                self.usage = GenerationUsage(
                    prompt_tokens=len(prompt),
                    cached_tokens=cached,
                    completion_tokens=given,
                    prefill_ms=prefill_ms,
                    first_token_ms=first_ms,
                    decode_ms=decode_ms,
                    drafted=speculation.drafted if speculation else 0,
                    accepted=speculation.accepted if speculation else 0,
                    draft_note=speculation.note if speculation else "",
                )

    def _prompt_read(self, context: Any) -> None:  # noqa: B027  nothing, where there is nothing to do then
        """Before the first token is chosen."""

    def _answer_begun(self, context: Any, prompt: Sequence[int]) -> None:  # noqa: B027  as above
        """The first token was given, and its taker wants more."""

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        """The schema or the grammar that `params` names. ZephyraError: it cannot be used."""
        if not (params.schema or params.grammar):
            return None
        from zephyra_fusion.constraint import Constraint

        return Constraint(params, self._token_table)

    @cached_property
    def _token_table(self) -> TokenTable:
        from zephyra_fusion.constraint import TokenTable

        return TokenTable(self.vocab_size, self.token_bytes, self.stop_ids)

    def _check_prompt(self, prompt: Sequence[int], *, room: int) -> None:
        self._check_open()
        if not prompt:
            raise ZephyraError("the prompt is empty", hint="give at least one token")
        if len(prompt) + room > self.context_length:
            raise ZephyraError(
                f"the prompt has {len(prompt)} tokens, the context has {self.context_length}"
                + (" and must have room for an answer" if room else ""),
                hint="shorten the prompt, or raise --context where the model allows it",
            )
        check_ids(prompt, self.vocab_size)
