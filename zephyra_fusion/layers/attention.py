"""Multi-head, grouped-query and multi-query attention."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.layers.cache import LayerCache
from zephyra_fusion.layers.norm import NORMS
from zephyra_fusion.layers.position import rotate
from zephyra_fusion.registry import Registry

Angles = tuple[Tensor, Tensor]
ATTENTIONS: Registry[Callable[[FusionConfig], nn.Module]] = Registry("attention")


@ATTENTIONS.register("sdpa")
class Attention(nn.Module):
    """Scaled dot-product attention with one K/V head per group of query heads (Ainslie et al., arXiv:2305.13245).

    Runs PyTorch's fused kernels (flash attention where the device has it). Separate widths for keys and values are allowed.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads or 1
        self.head_dim, self.value_head_dim = config.head_dim or 0, config.value_head_dim or 0
        self.heads, self.kv_heads = heads, kv_heads
        self.scale = self.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, kv_heads * self.value_head_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads * self.value_head_dim, hidden, bias=config.attention_out_bias)
        if config.qk_norm:
            self.q_norm = NORMS["rms"](self.head_dim, config.rms_norm_eps)
            self.k_norm = NORMS["rms"](self.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Tensor, angles: Angles | None, mask: Tensor | None, causal: bool, cache: LayerCache | None
    ) -> Tensor:
        """`x [B, T, hidden]`; `mask` True = may look; `causal` stands for the plain triangle without a mask."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.head_dim)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.value_head_dim).transpose(1, 2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # [B, heads, T, head_dim]
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            k, v = cache.update(k, v)
        out = nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
