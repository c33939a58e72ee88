"""AdapterFusion: which of several adapters to listen to, learned, token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdapterFusion(nn.Module):
    """Attention from a layer's input to what each adapter would add (Pfeiffer et al., arXiv:2005.00247).

    share_n = softmax over n of (query(x) . key(delta_n) / sqrt(size)); the layer adds the sum of share_n * delta_n.
    Against the paper, queries and keys are narrow (`size`) and the value matrix is left out: LoRA's B is one already.
    """

    def __init__(self, in_features: int, out_features: int, size: int = 16) -> None:
        super().__init__()
        self.query = nn.Linear(in_features, size, bias=False)
        self.key = nn.Linear(out_features, size, bias=False)
        self.scale = size**-0.5

    def shares(self, x: Tensor, deltas: Tensor) -> Tensor:
        """`x [..., in]`, `deltas [N, ..., out]` to `[N, ...]`, summing to 1 over the adapters."""
        return ((self.query(x) * self.key(deltas)).sum(dim=-1) * self.scale).float().softmax(dim=0)

    def forward(self, x: Tensor, deltas: list[Tensor]) -> Tensor:
        """What to add to the layer's output: `x [..., in]`, every delta `[..., out]`, to `[..., out]`."""
        stacked = torch.stack(deltas)
        return (self.shares(x, stacked)[..., None].to(stacked.dtype) * stacked).sum(dim=0)
