"""Document 004: the encoder of continuous sequences."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zephyra_fusion.layers.block import DecoderLayer
from zephyra_fusion.layers.sequence import SequenceTransformer, check_options, keep_mask


class TransformerEncoder(SequenceTransformer):
    """`[B, T, input_size]` to `[B, T, d_model]`; every step sees every step. Options: `SequenceTransformer`."""

    def __init__(self, input_size: int, d_model: int = 512, **options: Any) -> None:
        # Its layer is the decoder-only model's: what makes a decoder causal is the mask.
        check_options(options)
        super().__init__(DecoderLayer, input_size, d_model, **options)

    def forward(self, src: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """`src [B, T, input_size]`; `padding_mask [B, T]` True = keep."""
        mask = keep_mask(padding_mask, src, "padding_mask")
        x = self.embed(src)
        for layer in self.depth:
            x = self.run(layer, x, None, mask, False)
        return self.final_norm(x)
