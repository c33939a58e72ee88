"""The contract of `protocol.Backend`, held by every backend: blends, stopping, limits, sampling, errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_draft import GivenLength, ScriptedDraft

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.local import LocalBackend
from zephyra_cli.backends.protocol import Backend, Job
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, Token

PROMPT = [50, 60, 70, 80, 90, 100, 110, 120, 130, 140]
Open = Callable[..., Backend]


@pytest.mark.parametrize(
    "weights",
    [{}, {"a": 1.0}, {"a": 0.0}, {"b": 1.0}, {"b": 0.4}, {"a": 0.5, "c": 0.5}, {"a": 0.2, "b": 0.3, "c": 1.5}],
)
def test_a_blend_is_the_merged_weights(
    weights: dict[str, float], backend: Backend, tiny_loras: Any, tiny_weights: Any, make_gguf: Any, tmp_path: Path
) -> None:
    merged = {}
    for name, weight in weights.items():
        for tensor, (a, b, scale) in tiny_loras[name].items():
            merged[tensor] = merged.get(tensor, tiny_weights[tensor]) + np.float32(weight * scale) * (b @ a)
    reference = LlamaBackend(
        make_gguf(tmp_path / "merged.gguf", {}, merged), threads=1, kv_type="f32", flash_attention=False
    )
    backend.set_adapters(weights)
    got, wanted = np.array(backend.logits(PROMPT)), np.array(reference.logits(PROMPT))
    assert got.shape == (len(PROMPT), 320)
    assert np.abs(got - wanted).max() < 2e-3 < 0.1 < wanted.std()
    reference.close()


def test_weight_zero_is_the_base_exactly(backend: Backend) -> None:
    base = backend.logits(PROMPT)
    backend.set_adapters({"a": 0.0, "b": 0.0})
    assert backend.logits(PROMPT) == base
    backend.set_adapters({"a": 1.0})
    assert backend.logits(PROMPT) != base


def test_logits_are_llama_cpp_pythons(backend: Backend, tiny_gguf: Path) -> None:
    import llama_cpp

    theirs = llama_cpp.Llama(
        str(tiny_gguf), n_ctx=256, logits_all=True, verbose=False, n_threads=1, flash_attn=False, type_k=0, type_v=0
    )
    theirs.eval(PROMPT)
    np.testing.assert_allclose(np.array(backend.logits(PROMPT)), theirs.scores[: len(PROMPT)], atol=2e-4)
    greedy = [token.id for token in backend.generate(PROMPT, SamplingParams(max_tokens=12))]
    assert greedy == [token for token, _ in zip(theirs.generate(PROMPT, temp=0.0, reset=True), range(12), strict=False)]


def test_greedy_is_the_largest_logit(backend: Backend) -> None:
    text = list(PROMPT)
    for token in backend.generate(PROMPT, SamplingParams(max_tokens=10)):
        assert token.id == int(np.argmax(backend.logits(text)[-1]))
        text.append(token.id)


def test_stops_at_an_end_token(
    open_backend: Open, make_gguf: Callable[..., Path], tiny_weights: Any, tmp_path: Path
) -> None:
    """With logits that never depend on the prompt, <|end|> (id 5) is chosen at once."""
    output = np.zeros((320, 64), np.float32)
    constant = {f"blk.{layer}.{name}.weight" for layer in (0, 1) for name in ("attn_output", "ffn_down")}
    zeros = {name: np.zeros_like(tiny_weights[name]) for name in constant}
    embedding = np.ones((320, 64), np.float32)
    output[5] = tiny_weights["output_norm.weight"]
    path = make_gguf(tmp_path / "ends.gguf", {}, zeros | {"token_embd.weight": embedding, "output.weight": output})
    backend = open_backend(path)
    assert backend.stop_ids == {0, 5}
    tokens = list(backend.generate(PROMPT, SamplingParams(max_tokens=10)))
    assert [(token.id, token.finish_reason) for token in tokens] == [(5, "stop")]
    assert backend.token_bytes(5) == b""
    assert backend.usage.completion_tokens == 1
    backend.close()


def test_length_ends_an_answer(backend: Backend) -> None:
    tokens = list(backend.generate(PROMPT, SamplingParams(max_tokens=3)))
    assert [token.finish_reason for token in tokens] == [None, None, "length"]


def test_a_full_context_ends_an_answer(open_backend: Open, tiny_gguf: Path) -> None:
    backend = open_backend(tiny_gguf, context=20)
    tokens = list(backend.generate(PROMPT, SamplingParams(max_tokens=100)))
    assert len(tokens) == 10 and tokens[-1].finish_reason == "length"
    assert len(list(backend.generate(PROMPT[:1] * 19, SamplingParams(max_tokens=100)))) == 1
    with pytest.raises(ZephyraError, match="the prompt has 20 tokens, the context has 20 and must have room"):
        next(backend.generate(PROMPT * 2, SamplingParams()))
    assert len(backend.logits(PROMPT * 2)) == 20
    with pytest.raises(ZephyraError, match="the prompt has 30 tokens, the context has 20"):
        backend.logits(PROMPT * 3)
    backend.close()


def test_sampling_is_reproducible_and_follows_its_seed(backend: Backend) -> None:
    def text(**options: Any) -> list[int]:
        params = SamplingParams(max_tokens=12, **options)
        return [token.id for token in backend.generate(PROMPT, params)]

    hot = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert text(**hot, seed=1) == text(**hot, seed=1)
    assert len({tuple(text(**hot, seed=seed)) for seed in range(6)}) == 6
    assert text(**hot, seed=2**32 - 1) == text(**hot, seed=2**32 - 1)  # llama.cpp would draw a seed of its own here
    greedy = text()
    for narrow in {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}:
        assert text(**hot | narrow, seed=3) == greedy


def test_the_distribution_is_the_softmax_of_the_filtered_logits(backend: Backend) -> None:
    logits = np.array(backend.logits(PROMPT)[-1], float) / 2.0
    best = np.argsort(-logits)[:8]
    expected = np.exp(logits[best] - logits[best].max())
    expected /= expected.sum()
    counts = dict.fromkeys(best.tolist(), 0)
    draws = 1000
    for seed in range(draws):
        params = SamplingParams(max_tokens=1, temperature=2.0, top_k=8, top_p=1.0, min_p=0.0, seed=seed)
        counts[next(backend.generate(PROMPT, params)).id] += 1
    spread = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(np.array(list(counts.values())) - draws * expected) < 5 * spread + 1).all()


def test_the_penalty_counts_the_prompt(backend: Backend) -> None:
    first = next(backend.generate(PROMPT, SamplingParams(max_tokens=1))).id
    prompt = [first, *PROMPT]
    again = int(np.argmax(backend.logits(prompt)[-1]))
    logits = np.array(backend.logits(prompt)[-1], float)
    for token in set(prompt):
        logits[token] = logits[token] / 10 if logits[token] > 0 else logits[token] * 10
    penalised = next(backend.generate(prompt, SamplingParams(max_tokens=1, repeat_penalty=10.0)))
    assert penalised.id == int(np.argmax(logits))
    assert again in prompt or penalised.id == again


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3, "seed": 1}])
def test_no_ngram_of_the_answer_comes_twice(options: dict[str, Any], backend: LocalBackend) -> None:
    """Speculation and batches too; an n-gram of the prompt may come, and a form is followed whatever it repeats."""
    plain = SamplingParams(max_tokens=200, top_p=1.0, min_p=0.0, **options)
    params = replace(plain, no_repeat_ngram_size=2)

    def pairs(tokens: Sequence[Token]) -> list[tuple[int, int]]:
        ids = [token.id for token in tokens]
        return list(zip(ids, ids[1:], strict=False))

    looping, answer = list(backend.generate(PROMPT, plain)), list(backend.generate(PROMPT, params))
    assert len(set(pairs(looping))) < len(pairs(looping)), "the test is about loops"
    assert len(set(pairs(answer))) == len(pairs(answer)) > 5
    assert [token for _, token in backend.generate_many([Job(prompt=PROMPT, params=params)])] == answer
    backend.speculate(ScriptedDraft([token.id for token in answer], lambda at: at % 3 == 0), GivenLength([4]))
    assert list(backend.generate(PROMPT, params)) == answer
    form = SamplingParams(max_tokens=40, no_repeat_ngram_size=2, grammar='root ::= "abababababab"')
    text = b"".join(backend.token_bytes(token.id) for token in backend.generate(PROMPT, form))
    assert text == b"abababababab"


def test_usage_is_told(backend: Backend) -> None:
    list(backend.generate(PROMPT, SamplingParams(max_tokens=5)))
    usage = backend.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (10, 0, 5)
    assert 0 < usage.prefill_ms <= usage.first_token_ms and usage.decode_ms > 0
    assert usage.prefill_tokens_per_second > 0 and usage.decode_tokens_per_second > 0


@pytest.mark.parametrize(
    ("prompt", "cause"),
    [([], "the prompt is empty"), ([5, -1], "token id -1 is outside"), ([320], "token id 320 is outside")],
)
def test_refuses_a_prompt(prompt: list[int], cause: str, backend: Backend) -> None:
    with pytest.raises(ZephyraError, match=cause):
        next(backend.generate(prompt, SamplingParams()))
    with pytest.raises(ZephyraError, match=cause):
        backend.logits(prompt)


def test_refuses_ids_adapters_and_weights(backend: Backend, tiny_adapters: dict[str, Path], tiny_gguf: Path) -> None:
    for token in -1, 320, 2**31:
        with pytest.raises(ZephyraError, match="outside the vocabulary of 320"):
            backend.token_bytes(token)
    with pytest.raises(ZephyraError, match="already an adapter 'a'"):
        backend.add_adapter("a", tiny_adapters["a"])
    with pytest.raises(ZephyraError, match="unknown adapter 'd'"):
        backend.set_adapters({"d": 1.0})
    with pytest.raises(ZephyraError, match="weight of 'a' is nan; weight of 'b' is -1"):
        backend.set_adapters({"a": float("nan"), "b": -1.0})
    with pytest.raises(ZephyraError, match="no LoRA adapter"):
        backend.add_adapter("base", tiny_gguf)


def test_weights_that_are_no_numbers(
    open_backend: Open, make_gguf: Callable[..., Path], tiny_weights: Any, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "nan.gguf", {}, {"output_norm.weight": tiny_weights["output_norm.weight"] * np.nan})
    backend = open_backend(path)
    for temperature in 0.0, 1.0:
        with pytest.raises(ZephyraError, match="computes no numbers"):
            next(backend.generate(PROMPT, SamplingParams(temperature=temperature)))
    backend.close()


def test_a_closed_backend_says_so(open_backend: Open, tiny_gguf: Path) -> None:
    backend = open_backend(tiny_gguf)
    running = backend.generate(PROMPT, SamplingParams())
    next(running)
    backend.close()
    backend.close()
    with pytest.raises(RuntimeError, match="overtaken"):
        next(running)
    for use in (
        lambda: next(backend.generate(PROMPT, SamplingParams())),
        lambda: backend.encode("text"),
        lambda: backend.token_bytes(30),
        lambda: backend.stop_ids,
        lambda: backend.add_adapter("x", tiny_gguf),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            use()


@pytest.mark.parametrize(
    "options",
    [{}, {"schema": '{"type": "array", "items": {"type": "integer"}, "minItems": 6}'}, {"temperature": 1.1, "seed": 5}],
)
def test_guesses_change_no_token(options: dict[str, Any], backend: LocalBackend) -> None:
    """With adapters on; constrained and sampled, too."""
    params = SamplingParams(max_tokens=40, **options)
    backend.set_adapters({"a": 0.5, "b": 0.5})
    plain = list(backend.generate(PROMPT, params))
    backend.speculate(ScriptedDraft([token.id for token in plain], lambda at: at % 3 == 0), GivenLength([4]))
    assert list(backend.generate(PROMPT, params)) == plain
    assert 0 < backend.usage.accepted < backend.usage.drafted
