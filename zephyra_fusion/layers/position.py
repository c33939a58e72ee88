"""How a layer knows positions, by name: rotary, xPos, sinusoidal, learned, none."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers.rope_scaling import scaled_frequencies
from zephyra_fusion.registry import Registry

Angles = tuple[Tensor, Tensor]  # cosines and sines, [B, 1, T, head_dim] each
Rotation = tuple[Angles, Angles]  # of the queries and of the keys


class Position(nn.Module):
    """Positions act on the embedding (`embed`), on queries and keys (`rotation`), or, as here, not at all."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x [B, T, hidden]` with what belongs to `positions [B, T]` (they start at 0)."""
        return x

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        """The angles of `positions [B, T]`, or None where nothing is turned."""
        return None

    def rebuild(self) -> None:
        """Compute again what is no weight, after the weights came to a model made on the meta device."""


POSITIONS: Registry[Callable[[LayerConfig], Position]] = Registry("position")


@POSITIONS.register("none")
class NoPosition(Position):
    """Attention itself is all that tells positions apart."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()


@POSITIONS.register("rope")
class RotaryEmbedding(Position):
    """Rotate-half rotary positions (Su et al., arXiv:2104.09864), as transformers' Llama stores them."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("frequencies", None, persistent=False)
        self.frequencies: Tensor
        self.rebuild()

    def rebuild(self) -> None:
        dim = self.config.head_dim or 0
        frequencies = self.config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        self.frequencies, self.attention_factor = scaled_frequencies(frequencies.float(), self.config)

    def angles(self, positions: Tensor) -> Angles:
        """In float32: positions are too large for less."""
        angles = positions[:, None, :, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        cos, sin = self.angles(positions)
        both = (cos.to(dtype), sin.to(dtype))
        return both, both


@POSITIONS.register("xpos")
class XPos(RotaryEmbedding):
    """Rotary positions whose products also fade with distance (Sun et al., arXiv:2212.10554).

    Dimension pair i of a query at position t is multiplied by s_i^(t / scale_base), of a key divided by it,
    s_i = (2i + 0.4 d) / 1.4 d: only the distance of the two counts. Causal attention alone makes sense of it.
    """

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        cos, sin = self.angles(positions)
        dim = self.config.head_dim or 0
        pairs = torch.arange(0, dim, 2, device=positions.device).float()
        # Counted from the middle of the context, so that neither factor grows large.
        power = (positions[:, None, :, None].float() - self.config.max_position_embeddings // 2) / (
            self.config.xpos_scale_base
        )
        scale = ((pairs + 0.4 * dim) / (1.4 * dim)) ** power
        scale = torch.cat((scale, scale), dim=-1)
        queries = ((cos * scale).to(dtype), (sin * scale).to(dtype))
        return queries, ((cos / scale).to(dtype), (sin / scale).to(dtype))


@POSITIONS.register("sinusoidal")
class SinusoidalPosition(Position):
    """Sines and cosines added to the embedding (Vaswani et al., arXiv:1706.03762), times `scale`."""

    def __init__(self, config: LayerConfig, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        half = torch.arange(0, x.shape[-1], 2, device=x.device).float()
        angles = positions[..., None].float() * torch.exp(half * (-math.log(10000.0) / x.shape[-1]))
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., : x.shape[-1]]
        return x + self.scale * table.to(x.dtype)


@POSITIONS.register("learned")
class LearnedPosition(Position):
    """A trained vector for every position, added to the embedding."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x `[B, H, T, head_dim]` turned by the angles of its position."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)
