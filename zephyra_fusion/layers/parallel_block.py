"""Document 003: the parallel transformer block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.field_types import at_least_one, said_as
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers.attention import Attention
from zephyra_fusion.layers.cache import LayerCache
from zephyra_fusion.layers.feed_forward import GatedFeedForward
from zephyra_fusion.layers.norm import LayerNorm
from zephyra_fusion.layers.position import POSITIONS, Rotation

QK_SCALE = 8.0


class TransformerBlock(nn.Module):
    """Attention and SwiGLU side by side behind one LayerNorm (Chowdhery et al., PaLM, arXiv:2204.02311).

    `[B, N, dim]` to `[B, N, dim]`: attention(norm(x)) + feed_forward(norm(x)), no residual inside, as its caller adds
    x. One K/V head; no biases, in the norm either. Positions are rotary, with xPos where `use_xpos` and `causal`.

    `qk_rmsnorm` normalizes queries and keys (learned gains); their product is then a cosine times `qk_scale`, whatever
    `dim_head` is. `qk_scale` without `qk_rmsnorm` would do nothing and is refused. `flash_attn` takes PyTorch's fused
    kernels, with the same numbers. `ff_mult` is the inner width of the SwiGLU over `dim`.

    `finetune_modules` are four modules (q, k, v, o), here or in `forward` (which goes first): what each gives for the
    input of its projection is added to what the projection gives. q, k and v see the normalized input `[B, N, dim]`
    and give `heads * dim_head`, `dim_head`, `dim_head`; o sees the merged heads and gives `dim`.
    """

    def __init__(
        self,
        dim: int,
        dim_head: int = 64,
        causal: bool = True,
        heads: int = 8,
        qk_rmsnorm: bool = False,
        qk_scale: float = QK_SCALE,
        ff_mult: int = 4,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        use_xpos: bool = True,
        xpos_scale_base: int = 512,
        flash_attn: bool = False,
        finetune_modules: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if qk_scale != QK_SCALE and not qk_rmsnorm:
            raise ZephyraError(f"qk_scale is {qk_scale}, but qk_rmsnorm is off", hint="give qk_rmsnorm=True with it")
        wrong = [
            f"{name} is {value!r}, must be a whole number of at least 1"
            for name, value in (("dim", dim), ("dim_head", dim_head), ("heads", heads), ("ff_mult", ff_mult))
            if not at_least_one(value)
        ]
        if not isinstance(qk_scale, int | float) or not qk_scale > 0:
            wrong.append(f"qk_scale is {qk_scale!r}, must be a number above 0")
        if wrong:
            raise ZephyraError("impossible block: " + "; ".join(wrong))
        with said_as({"head_dim": "dim_head", "dropout": "ff_dropout", "attention_dropout": "attn_dropout"}):
            config = LayerConfig(
                hidden_size=dim,
                num_attention_heads=heads,
                num_key_value_heads=1,
                head_dim=dim_head,
                intermediate_size=ff_mult * dim,
                attention="flash" if flash_attn else "standard",
                attention_dropout=attn_dropout,
                # The normalized vectors have length sqrt(dim_head).
                attention_scale=qk_scale / dim_head if qk_rmsnorm else None,
                qk_norm=qk_rmsnorm,
                position="xpos" if use_xpos and causal else "rope",
                xpos_scale_base=xpos_scale_base,
                dropout=ff_dropout,
            )
        self.causal = causal
        self.norm = LayerNorm(dim, bias=False)
        self.self_attn = Attention(config)
        self.mlp = GatedFeedForward(config)
        self.position = POSITIONS[config.position](config)
        self.finetune_modules = None if finetune_modules is None else nn.ModuleList(_four(finetune_modules))
        self.triangle: Tensor | None = None  # kept between calls and grown, like the rotary tables
        self.tables: Rotation | None = None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        finetune_modules: Sequence[nn.Module] | None = None,
        *,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x [B, N, dim]`; `mask [B, N]` True = keep, over cached and new positions where there is a `cache`."""
        width = self.self_attn.q_proj.in_features
        if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] != width:
            raise ZephyraError(f"the input is {list(x.shape)}, must be [batch, positions, {width}]")
        start = cache.offset if cache is not None else 0
        end = start + x.shape[1]
        if mask is not None and list(mask.shape) != [x.shape[0], end]:
            raise ZephyraError(f"mask is {list(mask.shape)}, must be [batch, positions] = {[x.shape[0], end]}")
        chosen = self.finetune_modules if finetune_modules is None else finetune_modules
        add_q, add_k, add_v, add_o = (None,) * 4 if chosen is None else _four(chosen)
        y = self.norm(x)
        (cos_q, sin_q), (cos_k, sin_k) = self._rotation(end, y)
        part = slice(start, end)
        q = self.self_attn.queries(y, (cos_q[:, :, part], sin_q[:, :, part]), add_q)
        k = self.self_attn.keys(y, (cos_k[:, :, part], sin_k[:, :, part]), add_k)
        v = self.self_attn.values(y, add_v)
        if cache is not None:
            k, v = cache.update(k, v)
        attended = self.self_attn.attend(q, k, v, self._allowed(start, end, mask, x.device), False, add_o)
        return attended + self.mlp(y)

    def _rotation(self, end: int, y: Tensor) -> Rotation:
        held = self.tables
        if held is None or held[0][0].shape[2] < end or held[0][0].device != y.device or held[0][0].dtype != y.dtype:
            positions = torch.arange(_grown(end), device=y.device)[None]
            held = self.position.rotation(positions, y.dtype)
            assert held is not None, "rotary positions turn something"
            self.tables = held
        return held

    def _allowed(self, start: int, end: int, mask: Tensor | None, device: torch.device) -> Tensor | None:
        """True = may look, `[N, end]` or `[B, 1, N, end]`."""
        if not self.causal:
            return None if mask is None else mask.bool()[:, None, None, :]
        if self.triangle is None or self.triangle.shape[0] < end or self.triangle.device != device:
            size = _grown(end)
            self.triangle = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        seen = self.triangle[start:end, :end]
        if mask is None:
            return seen
        # A padding row may see itself: softmax of nothing is NaN.
        itself = torch.eye(end, dtype=torch.bool, device=device)[start:end]
        return (seen & mask.bool()[:, None, None, :]) | itself

    @torch.no_grad()
    def load_fused(self, fused: Tensor, attn_out: Tensor, ff_out: Tensor, gamma: Tensor) -> None:
        """Weights as PaLM and zeta store them: `fused` has the rows q | k | v | value | gate, the last two SwiGLU's.

        ZephyraError: a shape that is not this block's.
        """
        attention, mlp = self.self_attn, self.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.up_proj, mlp.gate_proj]
        rows = [part.out_features for part in parts]
        targets = [*(part.weight for part in parts), attention.o_proj.weight, mlp.down_proj.weight, self.norm.weight]
        expected = [[sum(rows), parts[0].in_features], *(list(t.shape) for t in targets[5:])]
        given = [list(t.shape) for t in (fused, attn_out, ff_out, gamma)]
        if given != expected:
            raise ZephyraError(f"fused, attn_out, ff_out, gamma are {given}, must be {expected}")
        for target, value in zip(targets, [*fused.split(rows), attn_out, ff_out, gamma], strict=True):
            target.copy_(value)


def _grown(end: int) -> int:
    return max(64, 1 << (end - 1).bit_length())


def _four(modules: Sequence[nn.Module] | nn.ModuleList) -> list[nn.Module]:
    if not isinstance(modules, Sequence | nn.ModuleList) or not all(isinstance(m, nn.Module) for m in modules):
        raise ZephyraError(f"finetune_modules is {modules!r:.60}, must be four modules: for q, k, v and o")
    if len(modules) != 4:
        raise ZephyraError(f"finetune_modules has {len(modules)} modules, must have four: for q, k, v and o")
    return list(modules)
