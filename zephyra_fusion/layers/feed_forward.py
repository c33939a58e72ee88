"""Position-wise feed-forward layers, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.registry import Registry

FEED_FORWARDS: Registry[Callable[[FusionConfig], nn.Module]] = Registry("feed-forward layer")
ACTIVATIONS: Registry[Callable[[Tensor], Tensor]] = Registry("activation")

ACTIVATIONS.register("silu")(functional.silu)
ACTIVATIONS.register("swish")(functional.silu)
ACTIVATIONS.register("relu")(functional.relu)
ACTIVATIONS.register("gelu")(functional.gelu)


@FEED_FORWARDS.register("swiglu")
class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), SwiGLU with silu (Shazeer, arXiv:2002.05202); Llama's names."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, hidden, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:  # [B, T, hidden]
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
