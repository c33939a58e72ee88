"""Generation and sampling in torch."""

from __future__ import annotations

import math

import pytest
import torch

from tests.fusion.family import FAMILY, TINY, build
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.generate import decode_one_token, generate, prefill
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.sampling import filtered, penalized, sample
from zephyra_fusion.types import SamplingParams, Token

PROMPT = [5, 9, 2, 40, 33, 7]
OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module", params=["attention sdpa", "window of 5", "feed_forward moe"])
def model(request: pytest.FixtureRequest) -> ZephyraFusion:
    return build(FAMILY[request.param])


def text(model: ZephyraFusion, params: SamplingParams, **options: object) -> list[int]:
    return [token.id for token in generate(model, PROMPT, params, **options)]


@torch.no_grad()
def test_greedy_is_the_argmax_of_full_passes(model: ZephyraFusion) -> None:
    expected = list(PROMPT)
    for _ in range(12):
        expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert text(model, SamplingParams(max_tokens=12)) == expected[len(PROMPT) :]


@torch.no_grad()
def test_chunks_of_the_prompt_do_not_matter(model: ZephyraFusion) -> None:
    whole, parts = model.new_cache(), model.new_cache()
    torch.testing.assert_close(
        prefill(model, PROMPT, whole), prefill(model, PROMPT, parts, chunk=2), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        decode_one_token(model, 3, whole), model(torch.tensor([[*PROMPT, 3]]))[0, -1], atol=1e-5, rtol=1e-4
    )


def test_stop_length_and_seed(model: ZephyraFusion) -> None:
    greedy = text(model, SamplingParams(max_tokens=8))
    tokens = list(generate(model, PROMPT, SamplingParams(max_tokens=8), stop_ids=[greedy[3]]))
    assert tokens[-1] == Token(greedy[3], "stop") and len(tokens) == greedy.index(greedy[3]) + 1
    last = list(generate(model, PROMPT, SamplingParams(max_tokens=8)))[-1]
    assert last == Token(greedy[7], "length")
    hot = SamplingParams(max_tokens=20, temperature=1.5, **OPEN, seed=3)
    assert text(model, hot) == text(model, hot)
    assert text(model, hot) != text(model, SamplingParams(max_tokens=20, temperature=1.5, **OPEN, seed=4))


def test_a_cache_that_holds_the_beginning_is_used(model: ZephyraFusion) -> None:
    cache = model.new_cache()
    first = text(model, SamplingParams(max_tokens=5), cache=cache)
    assert cache.offset == len(PROMPT) + 4, "the last token was never read"
    cache.trim(4)
    assert text(model, SamplingParams(max_tokens=5), cache=cache) == first
    with pytest.raises(ZephyraError, match="no token that is not read yet"):
        text(model, SamplingParams(max_tokens=5), cache=cache)


def test_the_context_ends_the_answer() -> None:
    model = build({**TINY, "max_position_embeddings": 9})
    tokens = list(generate(model, PROMPT, SamplingParams(max_tokens=50)))
    assert len(tokens) == 4 and tokens[-1].finish_reason == "length"
    with pytest.raises(ZephyraError, match="exceed the context of 9"):
        next(generate(model, PROMPT * 2, SamplingParams()))


def test_filters_leave_what_they_say() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]).log()

    def left(**changed: float) -> list[int]:
        return filtered(logits, SamplingParams(**{**OPEN, **changed})).isfinite().nonzero().flatten().tolist()

    assert left() == [0, 1, 2, 3, 4]
    assert left(top_k=2) == [0, 1]
    assert left(top_p=0.65) == [0, 1]
    assert left(top_p=0.75) == [0, 1, 2]
    assert left(top_p=1e-9) == [0]
    assert left(min_p=0.4) == [0, 1, 2]
    # After top-k the shares are of what is left: 0.4 / 0.9 < 0.45, so top-p needs two.
    assert left(top_k=3, top_p=0.45) == [0, 1]


def test_penalty_looks_at_recent_tokens_alone() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0])
    params = SamplingParams(repeat_penalty=2.0, repeat_last_n=2)
    assert penalized(logits, params, [2, 0, 1]).tolist() == [1.0, -4.0, 1.0]
    assert penalized(logits, SamplingParams(), [2, 0, 1]) is logits


def test_draws_follow_the_distribution() -> None:
    shares = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(temperature=2.0, **OPEN)
    draws = [sample(shares.log(), params, [], generator) for _ in range(3000)]
    expected = shares.sqrt() / shares.sqrt().sum()  # temperature 2
    for token, share in enumerate(expected.tolist()):
        sigma = math.sqrt(share * (1 - share) / 3000)
        assert abs(draws.count(token) / 3000 - share) < 4 * sigma


def test_no_ngram_of_the_answer_comes_twice() -> None:
    model = build(TINY)
    answers = [
        [token.id for token in generate(model, PROMPT, SamplingParams(max_tokens=120, no_repeat_ngram_size=size))]
        for size in (0, 2)
    ]
    free, held = ([*zip(ids, ids[1:], strict=False)] for ids in answers)
    assert len(set(free)) < len(free) and len(set(held)) == len(held)
