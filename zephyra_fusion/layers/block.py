"""One decoder layer: attention and feed-forward, each with its norm and residual."""

from __future__ import annotations

from torch import Tensor, nn

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.layers.attention import ATTENTIONS, Angles
from zephyra_fusion.layers.cache import LayerCache
from zephyra_fusion.layers.feed_forward import FEED_FORWARDS
from zephyra_fusion.layers.norm import NORMS


class DecoderLayer(nn.Module):
    """Pre-norm `x + f(norm(x))` or post-norm `norm(x + f(x))`, by `norm_placement`."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.self_attn = ATTENTIONS[config.attention](config)
        self.mlp = FEED_FORWARDS[config.feed_forward](config)
        self.input_layernorm = NORMS[config.norm](config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = NORMS[config.norm](config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.pre = config.norm_placement == "pre"

    def forward(
        self, x: Tensor, angles: Angles | None, mask: Tensor | None, causal: bool, cache: LayerCache | None
    ) -> Tensor:
        if self.pre:
            x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, mask, causal, cache))
            return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        x = self.input_layernorm(x + self.dropout(self.self_attn(x, angles, mask, causal, cache)))
        return self.post_attention_layernorm(x + self.dropout(self.mlp(x)))
