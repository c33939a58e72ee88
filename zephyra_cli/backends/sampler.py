"""From logits to the next token, inside llama.cpp: a chain of its samplers, one chain a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zephyra_fusion.types import SamplingParams

_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp takes this one as "draw a seed yourself"


class Sampler:
    """The filters of `SamplingParams` in their order; top-k early, for the others are slow on a full vocabulary.

    A filter that is switched off is not in the chain. A grammar would be the first link.
    """

    def __init__(self, lib: Any, vocab_size: int, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._lib = lib
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

    def sample(self, context: int, row: int = -1) -> int:
        """The token after the last one that `context` decoded, or after the one in `row` of its last batch.

        The chain remembers it for its penalties.
        """
        return int(self._lib.llama_sampler_sample(self._chain, context, row))

    def close(self) -> None:
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
