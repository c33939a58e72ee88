"""Multi-head, grouped-query and multi-query attention."""

from __future__ import annotations

from torch import Tensor, nn

from zephyra_fusion.config import DOCUMENTED
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.field_types import said_as
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers import frequency  # noqa: F401  registers itself
from zephyra_fusion.layers.cache import LayerCache
from zephyra_fusion.layers.norm import NORMS
from zephyra_fusion.layers.position import Angles, Rotation, rotate
from zephyra_fusion.layers.scaled_dot_product import ATTENTIONS


class Attention(nn.Module):
    """Projections around one of `ATTENTIONS`, one K/V head per group of query heads (Ainslie et al., arXiv:2305.13245).

    Separate widths for keys and values are allowed. `add` in its methods is a module beside a projection (document
    003's finetune modules): what it gives for the same input is added.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads or 1
        self.head_dim, self.value_head_dim = config.head_dim or 0, config.value_head_dim or 0
        self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, kv_heads * self.value_head_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads * self.value_head_dim, hidden, bias=config.attention_out_bias)
        self.kernel = ATTENTIONS[config.attention](config)
        if config.qk_norm:
            self.q_norm = NORMS["rms"](self.head_dim, config.rms_norm_eps)
            self.k_norm = NORMS["rms"](self.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x [B, T, hidden]`; `mask` True = may look; `causal` stands for the plain triangle without a mask."""
        q = self.queries(x, rotation and rotation[0])
        k, v = self.keys(x, rotation and rotation[1]), self.values(x)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.attend(q, k, v, mask, causal)

    def queries(self, x: Tensor, angles: Angles | None = None, add: nn.Module | None = None) -> Tensor:
        """`[B, T, hidden]` to `[B, heads, T, head_dim]`."""
        q = _with(self.q_proj(x), add, x).unflatten(-1, (-1, self.head_dim))
        q = (self.q_norm(q) if self.qk_norm else q).transpose(1, 2)
        return q if angles is None else rotate(q, *angles)

    def keys(self, x: Tensor, angles: Angles | None = None, add: nn.Module | None = None) -> Tensor:
        """`[B, T, hidden]` to `[B, kv_heads, T, head_dim]`."""
        k = _with(self.k_proj(x), add, x).unflatten(-1, (-1, self.head_dim))
        k = (self.k_norm(k) if self.qk_norm else k).transpose(1, 2)
        return k if angles is None else rotate(k, *angles)

    def values(self, x: Tensor, add: nn.Module | None = None) -> Tensor:
        """`[B, T, hidden]` to `[B, kv_heads, T, value_head_dim]`."""
        return _with(self.v_proj(x), add, x).unflatten(-1, (-1, self.value_head_dim)).transpose(1, 2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, add: nn.Module | None = None
    ) -> Tensor:
        """Heads `[B, heads, T, …]` met, merged and projected to `[B, T, hidden]`."""
        merged = self.kernel(q, k, v, mask, causal).transpose(1, 2).flatten(2)
        return _with(self.o_proj(merged), add, merged)


def _with(y: Tensor, add: nn.Module | None, x: Tensor) -> Tensor:
    return y if add is None else y + add(x)


class MultiHeadAttention(Attention):
    """Document 000's attention: separate inputs for queries, keys and values; no norm and no residual inside."""

    def __init__(self, n_head: int, d_model: int, d_k: int, d_v: int, dropout: float = 0.1) -> None:
        with said_as(DOCUMENTED):
            config = LayerConfig(
                hidden_size=d_model,
                num_attention_heads=n_head,
                head_dim=d_k,
                value_head_dim=d_v,
                intermediate_size=d_model,
                position="none",
                attention="standard",
                attention_dropout=dropout,
            )
        super().__init__(config)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]  # the document's
        """`q [B, Tq, d_model]`, `k` and `v [B, Tk, d_model]` to `[B, Tq, d_model]`; `mask [Tq, Tk]` or `[B, Tq, Tk]`,
        True = may look."""
        width = self.q_proj.in_features
        shapes = [list(x.shape) for x in (q, k, v)]
        if any(len(x) != 3 or x[0] != shapes[0][0] or x[2] != width for x in shapes) or shapes[1] != shapes[2]:
            raise ZephyraError(f"q, k and v are {shapes}, must be [batch, steps, {width}], k and v of equal steps")
        if mask is not None and list(mask.shape[-2:]) != [q.shape[1], k.shape[1]]:
            raise ZephyraError(f"mask is {list(mask.shape)}, must end in [{q.shape[1]}, {k.shape[1]}]")
        if mask is not None and mask.dim() == 3:
            mask = mask[:, None]
        return self.attend(self.queries(q), self.keys(k), self.values(v), mask, causal=False)
