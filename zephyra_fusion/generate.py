"""Generation in torch: read the prompt once, then one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.cache import KVCache
from zephyra_fusion.layers.static_cache import StaticCache
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.repetition import SeenNgrams
from zephyra_fusion.sampling import sample
from zephyra_fusion.types import SamplingParams, Token


@torch.inference_mode()
def prefill(model: ZephyraFusion, prompt: Sequence[int], cache: KVCache, *, chunk: int = 512) -> Tensor:
    """Logits `[vocabulary]` after the prompt, of which the cache already holds `cache.offset` tokens.

    Read in chunks, so that memory does not grow with the square of the prompt. ZephyraError: nothing is left to read.
    """
    if not prompt:
        raise ZephyraError("the prompt is empty", hint="begin with one token at least")
    unread = list(prompt[cache.offset :])
    if not unread:
        raise ZephyraError("the prompt has no token that is not read yet", hint="rewind the cache by one: cache.trim")
    cache.check(len(unread))
    ids = torch.tensor([unread], device=model.lm_head.weight.device)
    for part in ids.split(chunk, dim=1):
        hidden = model.hidden_states(part, cache=cache)
    return model.lm_head(hidden[0, -1])


@torch.inference_mode()
def decode_one_token(model: ZephyraFusion, token: int, cache: KVCache) -> Tensor:
    """Logits `[vocabulary]` after one more token, by the cache's own step where it has one (`static_step`)."""
    if isinstance(cache, StaticCache) and cache.step is not None:
        return cache.step(token)
    ids = torch.tensor([[token]], device=model.lm_head.weight.device)
    return model(ids, cache=cache)[0, -1]


def generate(
    model: ZephyraFusion,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    stop_ids: Collection[int] | None = None,
    cache: KVCache | None = None,
) -> Iterator[Token]:
    """The answer, token by token; the last one says why it is the last (`stop`, `length`).

    `stop_ids` are the config's `eos_token_id` where they are not given. A `cache` (`model.new_cache()`, or
    `static_step.static_cache(model)` for compiled steps and CUDA graphs) may hold a beginning of the prompt;
    when the answer ends or the generator is closed, it holds the prompt and every token that was read after it. Where
    the context is full before `max_tokens`, the answer ends with `length`. ZephyraError: the prompt does not fit.
    """
    stops = frozenset(model.config.eos_token_ids if stop_ids is None else stop_ids)
    cache = model.new_cache() if cache is None else cache
    random = torch.Generator().manual_seed(params.seed)
    history, seen = list(prompt), SeenNgrams(params.no_repeat_ngram_size)
    logits = prefill(model, history, cache)
    room = min(params.max_tokens, cache.limit - len(history) + 1)
    for count in range(1, room + 1):
        if banned := seen.banned():
            logits = logits.clone()
            logits[list(banned)] = float("-inf")
        token = sample(logits, params, history, random)
        history.append(token)
        seen.add(token)
        if token in stops:
            yield Token(token, "stop")
            return
        if count == room:
            yield Token(token, "length")
            return
        yield Token(token)
        logits = decode_one_token(model, token, cache)
