"""The classifier against the formula, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_cli.backends.classifier import LlamaClassifier
from zephyra_fusion.errors import ZephyraError


def reference(path: Path, ids: list[int]) -> Any:
    """modern-bert in float64: post-embedding norm, pre-norm blocks, mean, dense, GELU, norm, labels."""
    import gguf

    reader = gguf.GGUFReader(path)
    weights = {t.name.removesuffix(".weight"): np.array(t.data, float).reshape(t.shape[::-1]) for t in reader.tensors}
    width, heads = 32, 2
    head = width // heads

    def norm(x: Any, scale: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale

    angle = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(head // 2) / (head // 2))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def turn(x: Any) -> Any:
        a, b = x[..., : head // 2], x[..., head // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = norm(weights["token_embd"][ids], weights["token_embd_norm"])
    for layer in range(2):
        w = {k.removeprefix(f"blk.{layer}."): v for k, v in weights.items() if k.startswith(f"blk.{layer}.")}
        h = norm(x, w["attn_norm"]) if layer else x
        q, k, v = ((h @ w["attn_qkv"].T)[:, i * width : (i + 1) * width].reshape(-1, heads, head) for i in range(3))
        scores = np.einsum("qhd,khd->hqk", turn(q), turn(k)) / head**0.5
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", scores, v).reshape(-1, width) @ w["attn_output"].T
        up = norm(x, w["ffn_norm"]) @ w["ffn_up"].T
        gate, value = np.split(up, 2, -1)
        x = x + (gate / (1 + np.exp(-gate)) * value) @ w["ffn_down"].T
    pooled = weights["cls"] @ norm(x, weights["output_norm"]).mean(0)
    pooled = 0.5 * pooled * (1 + np.tanh(np.sqrt(2 / np.pi) * (pooled + 0.044715 * pooled**3)))
    return weights["cls.output"] @ norm(pooled, weights["cls.norm"]) + weights["cls.output.bias"].ravel()


@pytest.fixture
def classifier(tiny_router: Path) -> Any:
    opened = LlamaClassifier(tiny_router, threads=1)
    yield opened
    opened.close()


@pytest.mark.parametrize("length", [1, 2, 17, 256])
def test_computes_the_formula(length: int, classifier: LlamaClassifier, tiny_router: Path) -> None:
    ids = np.random.default_rng(length).integers(0, 320, length).tolist()
    np.testing.assert_allclose(classifier.logits(ids), reference(tiny_router, ids), atol=2e-2)
    assert classifier.labels == ["shell", "sql", "none"]


def test_cuts_long_texts_to_their_ends(classifier: LlamaClassifier, tiny_router: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 320, 1000).tolist()
    assert classifier.logits(ids) == classifier.logits(ids[:128] + ids[-128:])
    short = LlamaClassifier(tiny_router, max_tokens=5)
    assert short.logits(ids) == short.logits(ids[:3] + ids[-2:])
    short.close()


def test_remembers_nothing(classifier: LlamaClassifier) -> None:
    first = classifier.logits([10, 20, 30])
    classifier.logits([7] * 200)
    assert classifier.logits([10, 20, 30]) == first


def test_refuses(classifier: LlamaClassifier, tiny_router: Path, tiny_gguf: Path) -> None:
    with pytest.raises(ZephyraError, match="the text is empty"):
        classifier.logits([])
    for token in -1, 320:
        with pytest.raises(ZephyraError, match="outside the router's vocabulary of 320"):
            classifier.logits([1, token])
    with pytest.raises(ZephyraError, match="wanted is a classifier"):
        LlamaClassifier(tiny_gguf)
    with pytest.raises(ZephyraError, match="max_tokens is 0"):
        LlamaClassifier(tiny_router, max_tokens=0)
    classifier.close()
    classifier.close()
    with pytest.raises(RuntimeError, match="closed"):
        classifier.logits([1])
