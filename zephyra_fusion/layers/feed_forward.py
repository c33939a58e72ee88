"""Position-wise feed-forward layers, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.field_types import at_least_one
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.registry import Registry

FEED_FORWARDS: Registry[Callable[[LayerConfig], nn.Module]] = Registry("feed-forward layer")
ACTIVATIONS: Registry[Callable[[Tensor], Tensor]] = Registry("activation")

ACTIVATIONS.register("silu")(functional.silu)
ACTIVATIONS.register("swish")(functional.silu)
ACTIVATIONS.register("relu")(functional.relu)
ACTIVATIONS.register("gelu")(functional.gelu)


@FEED_FORWARDS.register("swiglu")
class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), SwiGLU with silu (Shazeer, arXiv:2002.05202); Llama's names.

    Names decide, not order: zeta and PaLM store the rows of `up` before those of `gate`.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, hidden, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, hidden]
        return self.down_proj(self.dropout(self.act(self.gate_proj(x)) * self.up_proj(x)))


class PositionwiseFeedForward(nn.Module):
    """down(act(up(x))), two matrices with bias and ReLU unless told otherwise (document 000; arXiv:1706.03762).

    Registered as `mlp`. Dropout acts between the two; norm and residual belong to the block.
    """

    def __init__(
        self, d_in: int, d_hid: int, dropout: float = 0.1, *, activation: str = "relu", bias: bool = True
    ) -> None:
        super().__init__()
        widths = {"d_in": d_in, "d_hid": d_hid}
        if wrong := [
            f"{n} is {v!r}, must be a whole number of at least 1" for n, v in widths.items() if not at_least_one(v)
        ]:
            raise ZephyraError("; ".join(wrong))
        self.up_proj = nn.Linear(d_in, d_hid, bias=bias)
        self.down_proj = nn.Linear(d_hid, d_in, bias=bias)
        self.act = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, d_in]
        return self.down_proj(self.dropout(self.act(self.up_proj(x))))


@FEED_FORWARDS.register("mlp")
def mlp(config: LayerConfig) -> PositionwiseFeedForward:
    return PositionwiseFeedForward(
        config.hidden_size,
        config.intermediate_size,
        config.dropout,
        activation=config.hidden_act,
        bias=config.mlp_bias,
    )
