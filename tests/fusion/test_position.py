"""What positions promise: only distances count in rotary ones, tables are their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from tests.fusion.family import TINY
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers.position import POSITIONS, Position, rotate


def position(name: str) -> Position:
    shape = {k: v for k, v in TINY.items() if k not in ("vocab_size", "num_hidden_layers")}
    return POSITIONS[name](LayerConfig(**shape, position=name))


@pytest.mark.parametrize("name", ["rope", "xpos"])
def test_only_the_distance_counts(name: str) -> None:
    q, k = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8)
    products = []
    for start in (0, 90):
        rotation = position(name).rotation(torch.arange(start, start + 6)[None], torch.float32)
        assert rotation is not None
        products.append(rotate(q, *rotation[0]) @ rotate(k, *rotation[1]).transpose(2, 3))
    torch.testing.assert_close(products[0], products[1], atol=1e-4, rtol=1e-4)


def test_xpos_fades_with_distance() -> None:
    one = torch.ones(1, 1, 200, 8)
    rotation = position("xpos").rotation(torch.arange(200)[None], torch.float32)
    assert rotation is not None
    (cos_q, sin_q), (cos_k, sin_k) = rotation
    lengths = rotate(one, cos_q, sin_q).norm(dim=-1)[0, 0, -1] * rotate(one, cos_k, sin_k).norm(dim=-1)[0, 0]
    assert (lengths.diff() > 0).all(), "nearer keys weigh more"


def test_sinusoids_are_their_formula() -> None:
    table = position("sinusoidal").embed(torch.zeros(1, 5, 32), torch.arange(5)[None])[0]
    for t in range(5):
        for i in range(16):
            angle = t / 10000 ** (2 * i / 32)
            assert table[t, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[t, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)
