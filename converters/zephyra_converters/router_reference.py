"""Tiny ada in numpy, float32: what the converted classifier is held against.

The arithmetic of ModernBERT without windows (Warner et al., arXiv:2412.13663), mean pooling before the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zephyra_converters.decoder_reference import silu, softmax
from zephyra_converters.router import RouterCheckpoint

if TYPE_CHECKING:
    import numpy as np


def router_logits(router: RouterCheckpoint, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Class logits `[labels]` of each text."""
    weights = {name: tensor.read() for name, tensor in router.tensors.items()}
    return [_logits(router, weights, ids) for ids in texts]


def _logits(router: RouterCheckpoint, weights: Mapping[str, np.ndarray], ids: Sequence[int]) -> np.ndarray:
    import numpy as np

    config = router.config

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(config.norm_eps))
        return centred / scale * weights[f"{name}.weight"]

    def attention(x: np.ndarray, prefix: str) -> np.ndarray:
        length, heads = len(x), config.num_attention_heads
        q, k, v = (x @ weights[f"{prefix}.Wqkv.weight"].T).reshape(length, 3, heads, -1).swapaxes(0, 1)
        q, k = _rotate(q, config.rope_theta), _rotate(k, config.rope_theta)
        scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(q.shape[-1] ** -0.5)
        out = np.einsum("hqk,khd->qhd", softmax(scores), v)
        return out.reshape(length, -1) @ weights[f"{prefix}.Wo.weight"].T

    x = norm(weights["model.embeddings.tok_embeddings.weight"][list(ids)], "model.embeddings.norm")
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}"
        x = x + attention(norm(x, f"{layer}.attn_norm") if n else x, f"{layer}.attn")
        activated, gate = np.split(norm(x, f"{layer}.mlp_norm") @ weights[f"{layer}.mlp.Wi.weight"].T, 2, axis=-1)
        x = x + (silu(activated) * gate) @ weights[f"{layer}.mlp.Wo.weight"].T
    pooled = norm(x, "model.final_norm").mean(axis=0)
    pooled = norm(_gelu(weights["head.dense.weight"] @ pooled), "head.norm")
    return weights["classifier.weight"] @ pooled + weights["classifier.bias"]


def _rotate(x: np.ndarray, theta: float) -> np.ndarray:  # [tokens, heads, width], halves
    import numpy as np

    width = x.shape[-1]
    angles = np.arange(len(x))[:, None, None] * theta ** -(np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate((left * cos - right * sin, right * cos + left * sin), axis=-1)


def _gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form, which is ggml's."""
    import numpy as np

    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
