"""Document 000, Zephyra Fusion: its example word for word, its components, its errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zephyra_fusion import (
    AdaptiveInput,
    FusionConfig,
    MultiHeadAttention,
    PositionwiseFeedForward,
    ScaledDotProductAttention,
    ZephyraError,
    ZephyraFusionBlock,
)
from zephyra_fusion.layers.block import DecoderLayer
from zephyra_fusion.model import ZephyraFusion as Modern

SMALL = {"d_word_vec": 16, "n_layers": 2, "n_head": 4, "d_k": 6, "d_v": 10, "d_model": 16, "d_inner": 24}


def test_the_documented_example_word_for_word(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from zephyra_fusion import ZephyraFusion

    model = ZephyraFusion(
        n_src_vocab=50000,  # vocabulary size
        d_word_vec=512,     # word vector dimension
        n_layers=6,         # number of ZephyraFusionBlocks
        n_head=8,           # number of attention heads
        d_k=64,             # dimension of key
        d_v=64,             # dimension of value
        d_model=512,        # model dimension
        d_inner=2048        # inner dimension of feed-forward network
    )  # fmt: skip

    src_seq = torch.LongTensor([[1, 2, 3, 4, 5]])  # input sequence
    src_pos = torch.LongTensor([[0, 1, 2, 3, 4]])  # position encoding

    output = model(src_seq, src_pos)
    print(f"Output shape: {output.shape}")

    assert capsys.readouterr().out == "Output shape: torch.Size([1, 5, 50000])\n"
    assert ZephyraFusion is Modern


def test_positions_start_at_zero_and_the_model_is_causal() -> None:
    model = Modern(60, **SMALL).eval()
    ids = torch.arange(6)[None]
    given = model(ids, torch.arange(6)[None])
    assert torch.equal(given, model(ids))
    changed = model(torch.tensor([[0, 1, 2, 3, 9, 9]]))
    assert torch.equal(given[:, :4], changed[:, :4])
    assert not torch.allclose(given[:, 4:], changed[:, 4:])
    assert not torch.allclose(given, model(ids, torch.arange(1, 7)[None]))


def test_a_padding_id_of_the_config_hides_nothing_but_padding() -> None:
    model = Modern(60, **SMALL, pad_token_id=59).eval()
    plain = model(torch.tensor([[4, 5, 6]]))
    padded = model(torch.tensor([[59, 59, 4, 5, 6]]), torch.tensor([[0, 0, 0, 1, 2]]))
    torch.testing.assert_close(padded[:, 2:], plain, atol=1e-5, rtol=0)
    cache = model.new_cache()
    parts = [
        model(ids, positions, cache=cache)
        for ids, positions in (
            (torch.tensor([[59, 59, 4]]), torch.tensor([[0, 0, 0]])),
            (torch.tensor([[5, 6]]), torch.tensor([[1, 2]])),
        )
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1)[:, 2:], plain, atol=1e-5, rtol=0)


def test_block_is_the_layer_of_the_model() -> None:
    model = Modern(60, **SMALL).eval()
    block = ZephyraFusionBlock(d_model=16, d_inner=24, n_head=4, d_k=6, d_v=10).eval()
    assert isinstance(block, DecoderLayer)
    block.load_state_dict(model.model.layers[0].state_dict())
    x = torch.randn(2, 5, 16)
    assert torch.equal(block(x, causal=True), model.model.layers[0](x, causal=True))


def test_multi_head_attention_is_pytorchs() -> None:
    ours = MultiHeadAttention(n_head=4, d_model=16, d_k=4, d_v=4, dropout=0.0)
    theirs = nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
    q, k, v = torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = torch.rand(3, 7) > 0.3
    mask[:, 0] = True
    expected, _ = theirs(q, k, v, attn_mask=~mask)
    torch.testing.assert_close(ours(q, k, v, mask), expected)
    torch.testing.assert_close(ours(q, k, v, mask.expand(2, 3, 7)), expected)


def test_separate_widths_of_keys_and_values() -> None:
    attention = MultiHeadAttention(n_head=3, d_model=16, d_k=5, d_v=7)
    assert (attention.k_proj.out_features, attention.v_proj.out_features, attention.o_proj.in_features) == (15, 21, 21)
    assert attention(*(torch.randn(2, 4, 16) for _ in range(3))).shape == (2, 4, 16)


def test_scaled_dot_product_attention_is_its_formula() -> None:
    attention = ScaledDotProductAttention(temperature=3.0, attn_dropout=0.5)
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 5)
    assert not torch.equal(attention(q, k, v), attention(q, k, v))  # dropout
    attention.eval()
    torch.testing.assert_close(attention(q, k, v), (q @ k.transpose(1, 2) / 3.0).softmax(-1) @ v)
    weights = attention.weights(q, k, torch.tensor([True] * 5 + [False]))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    assert weights[..., 5].abs().max() == 0


def test_position_wise_feed_forward_is_its_formula() -> None:
    layer = PositionwiseFeedForward(d_in=6, d_hid=10, dropout=0.1).eval()
    x = torch.randn(2, 3, 6)
    assert torch.equal(layer(x), layer.down_proj(torch.relu(layer.up_proj(x))))


@pytest.mark.parametrize("ids", [[0, 9, 10, 19, 20, 49], [10, 10], [49]])
def test_adaptive_input_on_both_sides_of_every_border(ids: list[int]) -> None:
    layer = AdaptiveInput(num_embeddings=50, embedding_dim=32, cutoffs=[10, 20])
    assert [t.weight.shape for t in layer.tables] == [(10, 32), (10, 8), (30, 2)]
    out = layer(torch.tensor([ids]))
    for place, number in enumerate(ids):
        cluster = (number >= 10) + (number >= 20)
        vector = layer.tables[cluster].weight[number - (0, 10, 20)[cluster]]
        torch.testing.assert_close(out[0, place], layer.projections[cluster].weight @ vector)


def test_adaptive_input_is_the_input_of_the_model() -> None:
    model = Modern(60, **{**SMALL, "d_word_vec": 24}, cutoffs=(8, 30))
    assert isinstance(model.model.embed_tokens, AdaptiveInput)
    assert model.model.embed_projection.weight.shape == (16, 24)
    model(torch.tensor([[0, 7, 8, 29, 30, 59]])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("wrong", [-1, 50])
def test_ids_out_of_range_are_refused(wrong: int) -> None:
    with pytest.raises(ZephyraError, match=f"token id {wrong} is out of range, the vocabulary has 50"):
        AdaptiveInput(50, 32, [10])(torch.tensor([[1, wrong]]))
    with pytest.raises(ZephyraError, match=f"token id {wrong} is out of range, the vocabulary has 50"):
        Modern(50, **SMALL)(torch.tensor([[1, wrong]]))


@pytest.mark.parametrize("cutoffs", [[20, 10], [10, 10], [0], [50], [60]])
def test_cutoffs_out_of_order_are_refused(cutoffs: list[int]) -> None:
    with pytest.raises(ZephyraError, match="must rise and lie between 0 and num_embeddings 50"):
        AdaptiveInput(50, 32, cutoffs)
    with pytest.raises(ZephyraError, match="must rise and lie between 0 and n_src_vocab 50"):
        Modern(50, **SMALL, cutoffs=tuple(cutoffs))


def test_two_ways_of_building_do_not_mix() -> None:
    config = FusionConfig.documented(60, **SMALL)
    assert Modern(config).config is config
    with pytest.raises(TypeError, match="FusionConfig alone"):
        Modern(config, n_layers=3)


def test_longer_than_n_position_is_refused() -> None:
    model = Modern(60, **SMALL, n_position=4)
    with pytest.raises(ZephyraError, match="5 tokens exceed the context of 4"):
        model(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ZephyraError, match="position 4 is out of range, the context is 4"):
        model(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[4]]))
