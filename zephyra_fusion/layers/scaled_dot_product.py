"""How queries meet keys and values, by name: written out, fused, in chunks. All three give the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.registry import Registry

# Modules called as (q, k, v, mask, causal): `q [B, heads, Tq, D]`, `k [B, kv_heads, Tk, D]`, `v [B, kv_heads, Tk, Dv]`,
# `mask` True = may look, broadcast to [B, heads, Tq, Tk]; `causal` stands for the plain triangle without a mask.
ATTENTIONS: Registry[Callable[[LayerConfig], nn.Module]] = Registry("attention")


def _scale(config: LayerConfig) -> float:
    return (config.head_dim or 1) ** -0.5 if config.attention_scale is None else config.attention_scale


def shared_heads(x: Tensor, heads: int) -> Tensor:
    """`x [B, kv_heads, T, D]` with every head repeated for its group of query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


class ScaledDotProductAttention(nn.Module):
    """softmax(q k^T / temperature) v, written out (document 000; Vaswani et al., arXiv:1706.03762).

    Registered as `standard`. Memory grows with Tq x Tk; `weights` shows what the others never hold.
    """

    def __init__(self, temperature: float, attn_dropout: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ZephyraError(f"temperature is {temperature}, must be a number above 0")
        self.temperature = temperature
        self.dropout = nn.Dropout(attn_dropout)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`[..., Tq, Tk]`, every row sums to 1. `mask` True = may look."""
        scores = q @ k.transpose(-2, -1) / self.temperature
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.float().softmax(dim=-1).to(q.dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`q [..., Tq, D]`, `k [..., Tk, D]`, `v [..., Tk, Dv]` to `[..., Tq, Dv]`."""
        if q.dim() == 4:
            k, v = shared_heads(k, q.shape[1]), shared_heads(v, q.shape[1])
        return self.dropout(self.weights(q, k, mask, causal)) @ v


@ATTENTIONS.register("standard")
def standard(config: LayerConfig) -> ScaledDotProductAttention:
    return ScaledDotProductAttention(1 / _scale(config), config.attention_dropout)


@ATTENTIONS.register("flash")
@ATTENTIONS.register("sdpa")
class FusedAttention(nn.Module):
    """PyTorch's fused kernels: flash attention where the device has it (Dao et al., arXiv:2205.14135)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.scale, self.dropout = _scale(config), config.attention_dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        return nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=q.shape[1] != k.shape[1],
        )


@ATTENTIONS.register("xformer")
class ChunkedAttention(nn.Module):
    """Keys in chunks with a running softmax: memory grows with Tq, not Tq x Tk (Rabe & Staats, arXiv:2112.05682)."""

    CHUNK = 128

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.scale, self.dropout = _scale(config), nn.Dropout(config.attention_dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        k, v = shared_heads(k, q.shape[1]), shared_heads(v, q.shape[1])
        rows = torch.arange(q.shape[2], device=q.device)[:, None]
        # Finite, so that a chunk in which a row may see nothing leaves no NaN; a later chunk's peak wipes it out.
        peak = q.new_full((*q.shape[:3], 1), torch.finfo(torch.float32).min, dtype=torch.float32)
        total = torch.zeros_like(peak)
        out = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=torch.float32)
        for start in range(0, k.shape[2], self.CHUNK):
            part = slice(start, min(start + self.CHUNK, k.shape[2]))
            scores = (q @ k[:, :, part].transpose(2, 3)).float() * self.scale
            if causal:
                scores = scores.masked_fill(rows < torch.arange(part.start, part.stop, device=q.device), -1e30)
            if mask is not None:
                scores = scores.masked_fill(~mask[..., part], -1e30)
            higher = torch.maximum(peak, scores.amax(dim=-1, keepdim=True))
            weights, faded = (scores - higher).exp(), (peak - higher).exp()
            total = total * faded + weights.sum(dim=-1, keepdim=True)
            out = out * faded + self.dropout(weights).to(v.dtype) @ v[:, :, part]
            peak = higher
        return (out / total).to(q.dtype)
