"""One layer: attention and feed-forward, each with its norm and residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from zephyra_fusion.config import DOCUMENTED
from zephyra_fusion.field_types import said_as
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers import moe  # noqa: F401  registers itself
from zephyra_fusion.layers.attention import Attention
from zephyra_fusion.layers.cache import LayerCache
from zephyra_fusion.layers.feed_forward import FEED_FORWARDS
from zephyra_fusion.layers.norm import NORMS
from zephyra_fusion.layers.position import Rotation


class BaseTransformerLayer(nn.Module):
    """What all layers share: self-attention, feed-forward (plain or experts), dropout, residuals and their norms.

    Pre-norm `x + f(norm(x))` or post-norm `norm(x + f(x))`, by `norm_placement`.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FEED_FORWARDS[config.feed_forward](config)
        self.input_layernorm = NORMS[config.norm](config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = NORMS[config.norm](config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.pre = config.norm_placement == "pre"

    def residual(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        """`part` around its residual, with `norm` before or after."""
        if self.pre:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))


class DecoderLayer(BaseTransformerLayer):
    """Self-attention, then feed-forward."""

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x [B, T, hidden]`; `mask` True = may look; `causal` stands for the plain triangle without a mask."""
        x = self.residual(x, self.input_layernorm, lambda y: self.self_attn(y, rotation, mask, causal, cache))
        return self.residual(x, self.post_attention_layernorm, self.mlp)


class CrossAttentionLayer(BaseTransformerLayer):
    """Self-attention, attention to a memory, feed-forward.

    A memory has no positions in common with the queries: with attention `frequency` it is met by scores (`sdpa`).
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.cross_attn = Attention(replace(config, attention="sdpa") if config.attention == "frequency" else config)
        self.cross_attention_layernorm = NORMS[config.norm](config.hidden_size, config.rms_norm_eps)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, heads, S, head_dim]` of a `memory [B, S, hidden]`."""
        return self.cross_attn.keys(memory), self.cross_attn.values(memory)

    def forward(
        self,
        x: Tensor,
        remembered: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        causal: bool = False,
        memory_mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x [B, T, hidden]`; masks True = may look; `causal` is about `x` alone."""

        def cross(y: Tensor) -> Tensor:
            return self.cross_attn.attend(self.cross_attn.queries(y), *remembered, memory_mask, causal=False)

        x = self.residual(x, self.input_layernorm, lambda y: self.self_attn(y, None, mask, causal, cache))
        x = self.residual(x, self.cross_attention_layernorm, cross)
        return self.residual(x, self.post_attention_layernorm, self.mlp)


class ZephyraFusionBlock(DecoderLayer):
    """Document 000's block: post-norm, LayerNorm, ReLU; the layer that `FusionConfig.documented` describes."""

    def __init__(self, d_model: int, d_inner: int, n_head: int, d_k: int, d_v: int, dropout: float = 0.1) -> None:
        with said_as(DOCUMENTED):
            config = LayerConfig(
                hidden_size=d_model,
                intermediate_size=d_inner,
                num_attention_heads=n_head,
                head_dim=d_k,
                value_head_dim=d_v,
                dropout=dropout,
                attention_dropout=dropout,
                position="none",
                norm="layer",
                norm_placement="post",
                rms_norm_eps=1e-5,
                feed_forward="mlp",
                hidden_act="relu",
                mlp_bias=True,
            )
        super().__init__(config)
