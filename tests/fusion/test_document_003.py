"""Document 003, TransformerBlock: its examples word for word, and every parameter acts as documented."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion import TransformerBlock, ZephyraError
from zephyra_fusion.layers.cache import LayerCache

DIM, HEAD, HEADS = 24, 8, 3


def small(**changed: object) -> TransformerBlock:
    torch.manual_seed(0)
    block = TransformerBlock(**{"dim": DIM, "dim_head": HEAD, "heads": HEADS, **changed})
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.4)
    return block.eval()


def some_input(length: int = 11) -> Tensor:
    return torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(1))


def test_the_documented_constructor_word_for_word() -> None:
    block = TransformerBlock(
        dim=512,
        dim_head=64,
        causal=True,
        heads=8,
        qk_rmsnorm=False,
        qk_scale=8,
        ff_mult=4,
        attn_dropout=0.0,
        ff_dropout=0.0,
        use_xpos=True,
        xpos_scale_base=512,
        flash_attn=False,
    )
    attention, mlp = block.self_attn, block.mlp
    rows = [part.out_features for part in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.up_proj)]
    assert rows == [512, 64, 64, 2048]  # one K/V head
    assert not any("bias" in name for name, _ in block.named_parameters())


def test_the_documented_usage_word_for_word() -> None:
    class YourCustomModule(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(dim=-1, keepdim=True)  # fits every width

    input_data = torch.randn(1, 6, 512)

    # Create a TransformerBlock instance
    transformer_block = TransformerBlock(dim=512, heads=8)

    # Process input data
    output = transformer_block(input_data)
    assert output.shape == input_data.shape

    # Create a TransformerBlock instance with fine-tuning modules
    lora_q = YourCustomModule()
    lora_k = YourCustomModule()
    lora_v = YourCustomModule()
    lora_o = YourCustomModule()

    transformer_block = TransformerBlock(
        dim=512,
        heads=8,
        finetune_modules=(lora_q, lora_k, lora_v, lora_o)
    )  # fmt: skip

    # Process input data
    output = transformer_block(input_data)
    assert output.shape == input_data.shape


def palm(x: Tensor, fused: Tensor, attn_out: Tensor, ff_out: Tensor, gamma: Tensor, xpos: bool) -> Tensor:
    """PaLM's parallel block from the paper's formulas: rows q | k | v | value | gate, one K/V head."""
    y = functional.layer_norm(x, (DIM,)) * gamma
    inner = ff_out.shape[1]
    q, k, v, value, gate = (y @ fused.T).split((HEADS * HEAD, HEAD, HEAD, inner, inner), dim=-1)
    q = q.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
    k, v = k[:, None], v[:, None]
    place, pair = torch.arange(x.shape[1]).float(), torch.arange(0, HEAD, 2).float()
    angle = torch.outer(place, 10000 ** -(pair / HEAD)).repeat(1, 2)
    scale = ((pair + 0.4 * HEAD) / (1.4 * HEAD)) ** ((place[:, None] - x.shape[1] // 2) / 512)
    scale = scale.repeat(1, 2) if xpos else torch.ones(1, HEAD)

    def turned(z: Tensor, factor: Tensor) -> Tensor:
        left, right = z.chunk(2, dim=-1)
        return (z * angle.cos() + torch.cat((-right, left), dim=-1) * angle.sin()) * factor

    scores = turned(q, scale) @ turned(k, 1 / scale).transpose(2, 3) * HEAD**-0.5
    hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    merged = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return merged @ attn_out.T + (functional.silu(gate) * value) @ ff_out.T


@torch.no_grad()
@pytest.mark.parametrize("use_xpos", [True, False])
@pytest.mark.parametrize("flash_attn", [True, False])
def test_it_is_palms_block(use_xpos: bool, flash_attn: bool) -> None:
    block = small(use_xpos=use_xpos, flash_attn=flash_attn)
    random = torch.Generator().manual_seed(2)
    fused = torch.randn(HEADS * HEAD + 2 * HEAD + 2 * 4 * DIM, DIM, generator=random) * 0.3
    attn_out = torch.randn(DIM, HEADS * HEAD, generator=random)
    ff_out, gamma = torch.randn(DIM, 4 * DIM, generator=random), torch.rand(DIM, generator=random) + 0.5
    block.load_fused(fused, attn_out, ff_out, gamma)
    x = some_input()
    expected = palm(x, fused, attn_out, ff_out, gamma, use_xpos)
    torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ZephyraError, match="must be"):
        block.load_fused(fused[1:], attn_out, ff_out, gamma)


@torch.no_grad()
@pytest.mark.parametrize("use_xpos", [True, False])
def test_causal_and_not(use_xpos: bool) -> None:
    x = some_input()
    changed = x.clone()
    changed[:, 6:] += 1
    causal, free = small(use_xpos=use_xpos), small(use_xpos=use_xpos, causal=False)
    torch.testing.assert_close(causal(x)[:, :6], causal(changed)[:, :6])
    assert not torch.allclose(free(x)[:, :6], free(changed)[:, :6])


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 11, [3, 3, 3, 2], [8, 1, 1, 1]])
def test_cached_is_the_full_pass(chunks: list[int]) -> None:
    block, x, cache = small(), some_input(), LayerCache()
    parts = [block(part, cache=cache) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), block(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_padding_does_not_leak(causal: bool) -> None:
    block, x = small(causal=causal), some_input()
    mask = torch.tensor([True] * 8 + [False] * 3).expand(2, -1)
    padded = block(x, mask)
    torch.testing.assert_close(padded[:, :8], block(x[:, :8]), atol=1e-5, rtol=1e-4)
    assert torch.isfinite(padded).all()
    with pytest.raises(ZephyraError, match=r"mask is \[2, 10\], must be \[batch, positions\] = \[2, 11\]"):
        block(x, mask[:, :10])


@torch.no_grad()
def test_qk_scale_acts_and_is_a_factor_on_the_cosine() -> None:
    x = some_input()
    outputs = [small(qk_rmsnorm=True, qk_scale=scale)(x) for scale in (1, 8)]
    assert not torch.allclose(*outputs)
    block = small(qk_rmsnorm=True, qk_scale=5.0, use_xpos=False)
    block.self_attn.q_norm.weight.fill_(1.0)
    block.self_attn.k_norm.weight.fill_(1.0)
    y = block.norm(x)
    q, k = block.self_attn.queries(y), block.self_attn.keys(y)
    cosine = functional.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    weights = block.self_attn.kernel.weights(q, k)
    torch.testing.assert_close(weights, (5.0 * cosine).softmax(-1), atol=1e-5, rtol=1e-4)
    with pytest.raises(ZephyraError, match="qk_scale is 4, but qk_rmsnorm is off"):
        small(qk_scale=4)


@torch.no_grad()
def test_finetune_modules_in_both_places_are_lora() -> None:
    torch.manual_seed(5)
    widths = [(DIM, HEADS * HEAD), (DIM, HEAD), (DIM, HEAD), (HEADS * HEAD, DIM)]
    loras = [nn.Sequential(nn.Linear(i, 2, bias=False), nn.Linear(2, o, bias=False)) for i, o in widths]
    x, block = some_input(), small()
    given = block(x, finetune_modules=loras)
    assert not torch.allclose(given, block(x))
    built = small(finetune_modules=copy.deepcopy(loras))
    built.load_state_dict({**block.state_dict(), **nn.ModuleList(loras).state_dict(prefix="finetune_modules.")})
    torch.testing.assert_close(built(x), given)
    merged = small()
    merged.load_state_dict(block.state_dict())
    attention = merged.self_attn
    for part, lora in zip((attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj), loras, strict=True):
        part.weight += lora[1].weight @ lora[0].weight
    torch.testing.assert_close(merged(x), given, atol=1e-4, rtol=1e-3)
    assert {n for n, _ in built.named_parameters()} > {n for n, _ in block.named_parameters()}
    with pytest.raises(ZephyraError, match="has 3 modules, must have four"):
        small(finetune_modules=loras[:3])


@torch.no_grad()
def test_masks_and_tables_are_kept_between_calls_and_grow() -> None:
    block = small()
    block(some_input(11))
    triangle, tables = block.triangle, block.tables
    block(some_input(40))
    assert block.triangle is triangle and block.tables is tables
    long = torch.randn(1, 100, DIM)
    torch.testing.assert_close(block(long)[:, :11], block(long[:, :11]), atol=1e-5, rtol=1e-4)
    assert block.triangle is not triangle and block.triangle.shape[0] >= 100


@pytest.mark.parametrize("options", [{}, {"qk_rmsnorm": True, "qk_scale": 4.0, "causal": False}])
def test_trained_a_step_saved_loaded_and_run(options: dict[str, object], tmp_path: Path) -> None:
    block, x = small(**options), some_input()
    before = block(x).detach()
    block(x).square().mean().backward()
    torch.optim.SGD(block.parameters(), lr=0.1).step()
    save_model(block, str(tmp_path / "block.safetensors"))
    again = small(**options)
    load_model(again, tmp_path / "block.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), block(x)) and not torch.allclose(again(x), before)


def test_gradients_reach_every_parameter_and_dropout_acts() -> None:
    block, x = small(qk_rmsnorm=True, attn_dropout=0.2, ff_dropout=0.2).train(), some_input()
    assert not torch.equal(block(x), block(x))
    block(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
