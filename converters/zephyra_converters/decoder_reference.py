"""The model in numpy, float32, straight from a checkpoint's tensors: what every converted file is held against.

Needs no torch and keeps no weight: each is read once for all texts, some rows at a time, so that the size of a model
costs time and no memory. Covers what `architecture` can express; the tests hold it against transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.dtypes import to_float32
from zephyra_converters.rope_scaling import rope_factors, rope_type
from zephyra_fusion.config import SLIDING, FusionConfig

if TYPE_CHECKING:
    import numpy as np

# module name -> what the adapters add to its output for the input x [tokens, in] (token ids, for the embedding table)
Delta = Callable[[str, "np.ndarray"], "np.ndarray | float"]


def no_adapter(module: str, x: np.ndarray) -> float:
    return 0.0


def reference_logits(
    config: FusionConfig,
    tensors: Mapping[str, LazyTensor],
    texts: Sequence[Sequence[int]],
    delta: Delta = no_adapter,
) -> list[np.ndarray]:
    """Logits `[tokens, vocab_size]` of each text."""
    hidden = reference_hidden(config, tensors, texts, delta)
    return split_texts(head_logits(config, tensors, hidden, delta), texts)


def reference_hidden(
    config: FusionConfig, tensors: Mapping[str, LazyTensor], texts: Sequence[Sequence[int]], delta: Delta = no_adapter
) -> np.ndarray:
    """What the head sees, `[tokens of all texts, hidden]`."""
    import numpy as np

    ids = [token for text in texts for token in text]
    x = _looked_up(tensors["model.embed_tokens.weight"], ids) + delta("model.embed_tokens", np.array(ids))
    for n in range(config.num_hidden_layers):
        x = _Layer(config, tensors, n, delta, [len(text) for text in texts])(x)
    return _rms(x, tensors["model.norm.weight"].read(), config.rms_norm_eps)


def head_logits(
    config: FusionConfig, tensors: Mapping[str, LazyTensor], hidden: np.ndarray, delta: Delta = no_adapter
) -> np.ndarray:
    """Logits `[tokens, vocab_size]` of normed hidden states."""
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return product(hidden, tensors[name]) + delta("lm_head", hidden)


def split_texts(rows: np.ndarray, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    import numpy as np

    return np.split(rows, np.cumsum([len(text) for text in texts])[:-1])


def product(x: np.ndarray, weight: LazyTensor) -> np.ndarray:
    """`x [tokens, in]` times a weight `[out, in]`, read block by block."""
    import numpy as np

    y = np.empty((len(x), weight.shape[0]), np.float32)
    for begin, words in weight.blocks():
        y[:, begin : begin + len(words)] = x @ to_float32(words, weight.dtype, weight.name).T
    return y


def _looked_up(table: LazyTensor, ids: Sequence[int]) -> np.ndarray:
    import numpy as np

    rows = {token: to_float32(table.rows(token, token + 1), table.dtype, table.name)[0] for token in set(ids)}
    return np.stack([rows[token] for token in ids])


class _Layer:
    """One decoder layer over texts of the given lengths, one after the other in the rows."""

    def __init__(
        self,
        config: FusionConfig,
        tensors: Mapping[str, LazyTensor],
        number: int,
        delta: Delta,
        lengths: Sequence[int],
    ) -> None:
        self.config, self.delta, self.tensors, self.lengths = config, delta, tensors, lengths
        self.prefix = f"model.layers.{number}."
        self.window = config.sliding_window if (config.layer_types or ())[number] == SLIDING else None

    def __call__(self, x: np.ndarray) -> np.ndarray:  # [tokens, hidden]
        x = x + self._attention(self._norm("input_layernorm", x))
        y = self._norm("post_attention_layernorm", x)
        return x + (self._experts(y) if self.config.num_experts else self._feed_forward(y, "mlp"))

    def _norm(self, module: str, x: np.ndarray) -> np.ndarray:
        return _rms(x, self.tensors[f"{self.prefix}{module}.weight"].read(), self.config.rms_norm_eps)

    def _linear(self, module: str, x: np.ndarray) -> np.ndarray:
        y = product(x, self.tensors[f"{self.prefix}{module}.weight"]) + self.delta(self.prefix + module, x)
        bias = self.tensors.get(f"{self.prefix}{module}.bias")
        return y if bias is None else y + bias.read()

    def _attention(self, x: np.ndarray) -> np.ndarray:
        import numpy as np

        config, length = self.config, len(x)
        heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads or 1, config.head_dim or 0
        q = self._linear("self_attn.q_proj", x).reshape(length, heads, width)
        k = self._linear("self_attn.k_proj", x).reshape(length, kv_heads, width)
        v = self._linear("self_attn.v_proj", x).reshape(length, kv_heads, width)
        if config.qk_norm:
            q, k = self._norm("self_attn.q_norm", q), self._norm("self_attn.k_norm", k)
        cos, sin = rotary_tables(config, max(self.lengths))
        out, begin = [], 0
        for n in self.lengths:
            here = slice(begin, begin + n)
            turned = _rotate(q[here], cos[:n], sin[:n]), _rotate(k[here], cos[:n], sin[:n])
            out.append(self._mixed(*turned, v[here]))
            begin += n
        return self._linear("self_attn.o_proj", np.concatenate(out))

    def _mixed(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Attention within one text: `q [tokens, heads, head_dim]` to `[tokens, heads * head_dim]`."""
        import numpy as np

        (length, heads, width), kv_heads, config = q.shape, k.shape[1], self.config
        k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
        scale = width**-0.5 if config.attention_scale is None else config.attention_scale
        scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(scale)
        seen = np.tri(length, dtype=bool)
        if self.window is not None:
            seen &= ~np.tri(length, k=-self.window, dtype=bool)
        scores = np.where(seen, scores, np.float32(-np.inf))
        return np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(length, heads * width)

    def _feed_forward(self, x: np.ndarray, module: str) -> np.ndarray:
        gate, up = self._linear(f"{module}.gate_proj", x), self._linear(f"{module}.up_proj", x)
        return self._linear(f"{module}.down_proj", silu(gate) * up)

    def _experts(self, x: np.ndarray) -> np.ndarray:
        import numpy as np

        chances = softmax(self._linear("mlp.gate", x))
        chosen = np.argsort(-chances, axis=-1, kind="stable")[:, : self.config.num_experts_per_tok]
        share = np.take_along_axis(chances, chosen, axis=-1)
        share = share / share.sum(axis=-1, keepdims=True)
        out = np.zeros_like(x)
        for expert in np.unique(chosen):
            rows, places = np.nonzero(chosen == expert)
            out[rows] += self._feed_forward(x[rows], f"mlp.experts.{expert}") * share[rows, places, None]
        return out


def rotary_tables(config: FusionConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines `[length, 1, head_dim / 2]`, with the config's scaling."""
    import numpy as np

    width = config.head_dim or 0
    frequencies = config.rope_theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    scaling, amplitude = config.rope_scaling or {}, 1.0
    if factors := rope_factors(config):
        frequencies = frequencies / np.array(factors)
    elif rope_type(config) == "linear":
        frequencies = frequencies / scaling["factor"]
    elif rope_type(config) == "yarn":
        factor = float(scaling["factor"])
        keep = _yarn_share(config, width)
        frequencies = frequencies * keep + frequencies / factor * (1 - keep)
        amplitude = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    angles = np.arange(length)[:, None, None] * frequencies
    return (np.cos(angles) * amplitude).astype(np.float32), (np.sin(angles) * amplitude).astype(np.float32)


def _yarn_share(config: FusionConfig, width: int) -> np.ndarray:
    """How much of each frequency is kept as it is (Peng et al., arXiv:2309.00071, NTK-by-parts)."""
    import numpy as np

    scaling = config.rope_scaling or {}
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings

    def dimension(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension(scaling.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension(scaling.get("beta_slow") or 1)), width - 1)
    return 1 - np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0, 1)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    import numpy as np

    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """`x [tokens, heads, head_dim]`, halves."""
    import numpy as np

    left, right = np.split(x, 2, axis=-1)
    return np.concatenate((left * cos - right * sin, right * cos + left * sin), axis=-1)


def silu(x: np.ndarray) -> np.ndarray:
    import numpy as np

    return x / (1 + np.exp(-np.clip(x, -80, 80)))


def softmax(x: np.ndarray) -> np.ndarray:
    import numpy as np

    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
