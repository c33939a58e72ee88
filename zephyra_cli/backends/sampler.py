"""From logits to the next token, inside llama.cpp: a chain of its samplers, one chain a generation."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zephyra_fusion.repetition import SeenNgrams
from zephyra_fusion.types import SamplingParams

if TYPE_CHECKING:
    from zephyra_fusion.constraint import Constraint

_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp takes this one as "draw a seed yourself"


class Sampler:
    """The filters of `SamplingParams` in their order; top-k early, for the others are slow on a full vocabulary.

    A filter that is switched off is not in the chain. A `constraint` comes before the chain: it takes the tokens that
    it forbids out of llama.cpp's own logits.
    """

    def __init__(
        self,
        lib: Any,
        vocab_size: int,
        params: SamplingParams,
        prompt: Sequence[int],
        constraint: Constraint | None = None,
    ) -> None:
        self._lib, self._vocab_size, self._constraint = lib, vocab_size, constraint
        size = params.no_repeat_ngram_size if constraint is None else 0
        self._seen = SeenNgrams(size) if size else None
        self._chain = chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        add = lib.llama_sampler_chain_add
        if params.repeat_penalty != 1.0 and params.repeat_last_n > 0:
            last, penalty = params.repeat_last_n, params.repeat_penalty
            add(chain, lib.llama_sampler_init_penalties(vocab_size, last, penalty, 0.0, 0.0))
            for token in prompt[-params.repeat_last_n :]:
                lib.llama_sampler_accept(chain, token)
        if params.temperature == 0.0:
            add(chain, lib.llama_sampler_init_greedy())
            return
        if params.top_k > 0:
            add(chain, lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1.0:
            add(chain, lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0.0:
            add(chain, lib.llama_sampler_init_min_p(params.min_p, 1))
        add(chain, lib.llama_sampler_init_temp(params.temperature))
        add(chain, lib.llama_sampler_init_dist(min(params.seed, _RANDOM_SEED - 1)))

    def sample(self, context: Any, row: int = -1) -> int:
        """The token after the last one that `context` decoded, or after the one in `row` of its last batch.

        The chain remembers it for its penalties, the constraint for what may follow.
        """
        if self._seen is not None:
            return self._new(self._seen, context.handle, row)
        if self._constraint is None:
            return int(self._lib.llama_sampler_sample(self._chain, context.handle, row))
        self._forbid(self._constraint, context.handle, row)
        token = int(self._lib.llama_sampler_sample(self._chain, context.handle, row))
        self._constraint.accept(token)
        return token

    def _new(self, seen: SeenNgrams, context: int, row: int) -> int:
        """A token that repeats no n-gram."""
        if banned := seen.banned():
            address = self._lib.llama_get_logits_ith(context, row)
            logits = (ctypes.c_float * self._vocab_size).from_address(address)
            for token in banned:
                logits[token] = -math.inf
        token = int(self._lib.llama_sampler_sample(self._chain, context, row))
        seen.add(token)
        return token

    def _forbid(self, constraint: Constraint, context: int, row: int) -> None:
        import numpy as np

        from zephyra_fusion.constraint import allowed

        address = self._lib.llama_get_logits_ith(context, row)
        logits = np.ctypeslib.as_array((ctypes.c_float * self._vocab_size).from_address(address))
        logits[~allowed(constraint.mask(), self._vocab_size)] = -np.inf

    def close(self) -> None:
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
