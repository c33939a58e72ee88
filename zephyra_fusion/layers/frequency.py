"""Attention in the frequency domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers.scaled_dot_product import ATTENTIONS, shared_heads


@ATTENTIONS.register("frequency")
class FrequencyAttention(nn.Module):
    """Positions mixed by a filter of learned, damped frequencies instead of by a softmax over scores.

    out_t = q_t * sum over s of h(|t - s|) (k_s * v_s), products element by element, per head

        h(n) = sum over `frequency_modes` m of exp(-d_m n) (a_m cos(w_m n) + b_m sin(w_m n))

    with learned amplitudes a and b, damping d > 0 and frequencies w, which start spread evenly in the logarithm from
    one turn in two contexts to one in two positions. Over whole sequences the sum is a product of spectra (FFT,
    T log T); with a mask, or for the steps after a cache, the same filter is a matrix over positions. Causal
    attention sums over s <= t. Needs `value_head_dim == head_dim` and no rotary positions.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        heads, modes = config.num_attention_heads, config.frequency_modes
        slowest = math.log(math.pi / config.max_position_embeddings)
        start = torch.linspace(slowest, math.log(math.pi), modes) if modes > 1 else torch.tensor([slowest])
        self.log_frequency = nn.Parameter(start.repeat(heads, 1))
        self.damping = nn.Parameter(torch.full((heads, modes), -3.0))  # softplus of it: half life of 14 positions
        self.cosine = nn.Parameter(torch.randn(heads, modes) / modes)
        self.sine = nn.Parameter(torch.randn(heads, modes) / modes)
        self.dropout = nn.Dropout(config.attention_dropout)

    def filter(self, lags: Tensor) -> Tensor:
        """h at `lags [...]` (>= 0): `[heads, ...]` in float32."""
        n = lags.float()[None, ..., None]
        shape = (self.cosine.shape[0], *[1] * lags.dim(), self.cosine.shape[1])
        angle = n * self.log_frequency.float().exp().view(shape)
        fading = torch.exp(-n * functional.softplus(self.damping.float()).view(shape))
        waves = self.cosine.view(shape) * angle.cos() + self.sine.view(shape) * angle.sin()
        return (fading * waves).sum(dim=-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        signal = shared_heads(k * v, q.shape[1]).float()
        if mask is None and q.shape[2] == k.shape[2]:
            mixed = self._by_spectrum(signal, causal)
        else:
            mixed = self._by_matrix(signal, q.shape[2], mask)
        return self.dropout(q * mixed.to(q.dtype))

    def _by_spectrum(self, signal: Tensor, causal: bool) -> Tensor:
        length = signal.shape[2]
        ahead = self.filter(torch.arange(length, device=signal.device))  # [heads, T]
        # Twice the length, so that the end does not come round to the beginning.
        behind = torch.zeros_like(ahead) if causal else functional.pad(ahead[:, 1:].flip(-1), (1, 0))
        spectrum = torch.fft.rfft(torch.cat((ahead, behind), dim=-1))[..., None]
        return torch.fft.irfft(torch.fft.rfft(signal, n=2 * length, dim=2) * spectrum, n=2 * length, dim=2)[
            :, :, :length
        ]

    def _by_matrix(self, signal: Tensor, queries: int, mask: Tensor | None) -> Tensor:
        keys = signal.shape[2]
        place = torch.arange(keys, device=signal.device)
        # The last query stands at the last key.
        matrix = self.filter((place[keys - queries :, None] - place[None, :]).abs())
        return (matrix if mask is None else matrix * mask) @ signal
