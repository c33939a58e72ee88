"""Speculation changes the speed and nothing else: the same tokens, greedy and sampled, whatever is drafted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_draft import GivenLength, ScriptedDraft

from zephyra_cli.backends.draft_model import ModelDraft
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion.draft import Draft, NgramDraft
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams

PROMPT = [7 + i * i % 300 for i in range(40)]
PARAMS = [
    SamplingParams(max_tokens=40),
    SamplingParams(max_tokens=40, temperature=0.9, top_k=0, top_p=1.0, min_p=0.0, seed=5),
    SamplingParams(max_tokens=40, temperature=1.3, repeat_penalty=1.3, seed=6),
    SamplingParams(max_tokens=1),
]
ALWAYS = range(1, 16)
"""Lengths of drafts that are made always: what pays is another test's business."""
MIXES: list[dict[str, float]] = [{}, {"a": 1.0}, {"a": 0.6, "b": 0.4}]


def open_backend(base: Path, adapters: dict[str, Path]) -> LlamaBackend:
    backend = LlamaBackend(base, threads=1, kv_type="f32", flash_attention=False)
    for name, path in adapters.items():
        backend.add_adapter(name, path)
    return backend


@pytest.fixture(scope="module")
def plain(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> Iterator[LlamaBackend]:
    backend = open_backend(tiny_gguf, tiny_adapters)
    yield backend
    backend.close()


@pytest.fixture
def guessing(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> Iterator[LlamaBackend]:
    backend = open_backend(tiny_gguf, tiny_adapters)
    yield backend
    backend.close()


def lying(every: int) -> Callable[[int], bool]:
    """Wrong at every so many tokens, 0: never."""
    return lambda at: every > 0 and at % every == 0


def answer(backend: LlamaBackend, params: SamplingParams, prompt: Sequence[int] = PROMPT) -> list[int]:
    return [token.id for token in backend.generate(prompt, params)]


@pytest.mark.parametrize("weights", MIXES)
@pytest.mark.parametrize("params", PARAMS)
def test_every_draft_gives_the_same_text(
    params: SamplingParams, weights: dict[str, float], plain: LlamaBackend, guessing: LlamaBackend, tiny_gguf: Path
) -> None:
    plain.set_adapters(weights)
    expected = answer(plain, params)
    guessing.set_adapters(weights)
    drafts: list[tuple[int | None, Draft]] = [(every, ScriptedDraft(expected, lying(every))) for every in (0, 1, 4)]
    drafts += [(None, NgramDraft()), (None, ModelDraft(tiny_gguf, guessing))]
    for every, draft in drafts:
        guessing.speculate(draft, GivenLength(ALWAYS))
        assert answer(guessing, params) == expected, draft.name
        usage = guessing.usage
        assert usage.completion_tokens == len(expected)
        assert 0 <= usage.accepted <= usage.drafted
        if every is not None and len(expected) > 1:
            assert usage.drafted > 0
            wrong = usage.drafted - usage.accepted
            assert wrong > 0 if every else wrong <= 1  # a guessed end of the answer is not counted: nothing follows
        assert len(guessing._context(1).tokens) < len(PROMPT) + len(expected) + 1


def test_a_model_drafts_itself_perfectly(plain: LlamaBackend, guessing: LlamaBackend, tiny_gguf: Path) -> None:
    guessing.speculate(ModelDraft(tiny_gguf, guessing), GivenLength(ALWAYS))
    plain.set_adapters({})
    assert answer(guessing, PARAMS[0]) == answer(plain, PARAMS[0])
    assert guessing.usage.accepted == guessing.usage.drafted > 20


@pytest.mark.parametrize("weights", MIXES)
def test_a_model_in_llama_cpp_drafts_for_one_in_torch(
    weights: dict[str, float], tiny_gguf: Path, tiny_adapters: dict[str, Path], plain: LlamaBackend
) -> None:
    pytest.importorskip("torch")
    from zephyra_cli.backends.fusion import FusionBackend

    target = FusionBackend(tiny_gguf, device="cpu", threads=1)
    for name, path in tiny_adapters.items():
        target.add_adapter(name, path)
    for backend in target, plain:
        backend.set_adapters(weights)
    expected = answer(target, PARAMS[1])
    target.speculate(ModelDraft(tiny_gguf, target), GivenLength(ALWAYS))
    assert answer(target, PARAMS[1]) == expected
    assert answer(target, PARAMS[0]) == answer(plain, PARAMS[0])
    usage = target.usage
    assert usage.accepted == usage.drafted > 20 if not weights else usage.drafted > 0
    target.close()


def test_closing_early_and_going_on(plain: LlamaBackend, guessing: LlamaBackend) -> None:
    """A generator closed in the middle of a verified batch leaves nothing of the other guesses behind."""
    plain.set_adapters({})
    expected = answer(plain, PARAMS[0])
    for taken in 1, 2, 3, 7, 20:
        guessing.speculate(ScriptedDraft(expected, lying(5)), GivenLength(ALWAYS))
        generator = guessing.generate(PROMPT, PARAMS[0])
        begun = [next(generator).id for _ in range(taken)]
        generator.close()
        assert begun == expected[:taken]
        prompt = [*PROMPT, *begun, 50, 51]
        guessing.speculate(NgramDraft(), GivenLength(ALWAYS)) if taken == 3 else None
        assert answer(guessing, PARAMS[0], prompt) == answer(plain, PARAMS[0], prompt)


def test_the_context_is_never_overrun(tiny_gguf: Path) -> None:
    small = LlamaBackend(tiny_gguf, context=50, threads=1, kv_type="f32", flash_attention=False)
    small.speculate(ScriptedDraft([9] * 100), GivenLength(ALWAYS))
    tokens = list(small.generate(PROMPT, SamplingParams(max_tokens=100)))
    assert len(tokens) == 10 and tokens[-1].finish_reason == "length"
    small.close()


def test_sampled_tokens_keep_their_distribution(tiny_gguf: Path, guessing: LlamaBackend) -> None:
    """Third token of 1,500 answers, given the first two, against the softmax (chi-square; more in benchmarks/)."""
    params = SamplingParams(max_tokens=3, temperature=1.0, top_k=3, top_p=1.0, min_p=0.0)
    guessing.speculate(ModelDraft(tiny_gguf, guessing), GivenLength(ALWAYS))
    seen: dict[tuple[int, int], dict[int, int]] = {}
    for seed in range(1500):
        first, second, third = answer(guessing, SamplingParams(**{**vars(params), "seed": seed}))
        counts = seen.setdefault((first, second), {})
        counts[third] = counts.get(third, 0) + 1
    statistic, freedom = 0.0, 0
    for begun, counts in seen.items():
        logits = np.array(guessing.logits([*PROMPT, *begun])[-1], float)
        best = np.argsort(-logits)[:3]
        shares = np.exp(logits[best] - logits[best].max())
        expected = sum(counts.values()) * shares / shares.sum()
        assert set(counts) <= set(best.tolist())
        if expected.min() >= 5:
            statistic += float((([counts.get(int(t), 0) for t in best] - expected) ** 2 / expected).sum())
            freedom += 2
    assert freedom >= 2
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_another_vocabulary_is_refused(
    make_gguf: Callable[..., Path], tiny_metadata: Any, plain: LlamaBackend, tiny_gguf: Path, tmp_path: Path
) -> None:
    tokens = list(tiny_metadata["tokenizer.ggml.tokens"])
    tokens[300] = "unheard-of"
    path = make_gguf(tmp_path / "other.gguf", {"tokenizer.ggml.tokens": tokens})
    pytest.importorskip("torch")
    from zephyra_cli.backends.fusion import FusionBackend

    torch = FusionBackend(tiny_gguf, device="cpu", threads=1)
    for target in plain, torch:
        with pytest.raises(
            ZephyraError, match="another vocabulary: 320 tokens, the model has 320, and token 300 is b'unheard"
        ):
            ModelDraft(path, target)
    torch.close()


def test_a_draft_is_closed_with_its_backend(tiny_gguf: Path) -> None:
    backend = LlamaBackend(tiny_gguf)
    first, second = ScriptedDraft([]), ScriptedDraft([])
    backend.speculate(first)
    backend.speculate(second)
    assert (first.closed, second.closed) == (True, False)
    backend.close()
    assert second.closed
