"""Document 004, the configurable transformer: its examples word for word, its options, its incremental decoding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model

from zephyra_fusion import BaseTransformerLayer, TransformerDecoder, TransformerEncoder, ZephyraError
from zephyra_fusion.layers.moe import dropped_tokens
from zephyra_fusion.layers.position import LearnedPosition
from zephyra_fusion.layers.scaled_dot_product import ChunkedAttention

SMALL: dict[str, Any] = {"d_model": 16, "nhead": 4, "num_layers": 2, "dim_feedforward": 24, "max_seq_len": 40}
OPTIONS: dict[str, dict[str, Any]] = {
    "standard": {},
    "xformer": {"att_type": "xformer"},
    "flash": {"att_type": "flash"},
    "frequency": {"att_type": "frequency", "freq_modes": 6},
    "rms": {"use_adaptive_ln": "rms"},
    "adaptive": {"use_adaptive_ln": "adaptive"},
    "post-norm": {"norm_strategy": "post_norm", "use_final_norm": False},
    "plain relu": {"use_swiglu": False, "activation": "relu"},
    "gelu gate": {"activation": "gelu"},
    "experts": {"use_moe": True, "num_experts": 4, "top_k": 2},
    "plain experts": {"use_moe": True, "num_experts": 3, "top_k": 1, "use_swiglu": False, "moe_shared_size": 8},
    "shared layers": {"share_layers": True, "num_layers": 3},
}


def encoder(**options: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(7, **{**SMALL, **options}).eval()


def decoder(**options: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    return TransformerDecoder(**{"input_size": 7, "output_size": 7, **SMALL, **options}).eval()


def series(length: int = 9, seed: int = 1, width: int = 7) -> torch.Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(seed))


def test_high_performance_time_series_model_word_for_word() -> None:
    encoder = TransformerEncoder(
        input_size=7,                    # Number of features
        d_model=512,                    # Model dimension
        nhead=8,                        # Attention heads
        num_layers=6,                   # Encoder depth
        att_type="xformer",            # Memory-efficient attention
        use_swiglu=True,               # Gated activation
        norm_strategy="pre_norm",       # Stable training
        use_adaptive_ln="rms",         # Faster normalization
        use_gradient_checkpointing=True # Memory efficiency
    )  # fmt: skip
    assert encoder(torch.randn(1, 5, 7)).shape == (1, 5, 512)
    assert isinstance(encoder.layers[0], BaseTransformerLayer)


def test_large_scale_configuration_word_for_word() -> None:
    with torch.device("meta"):  # its 300 million weights are not needed to see that it runs
        decoder = TransformerDecoder(
            input_size=7,
            output_size=1,
            d_model=1024,
            num_layers=12,
            nhead=16,                      # More attention heads
            dim_feedforward=4096,          # Larger feedforward
            use_gradient_checkpointing=True
        )  # fmt: skip
        assert decoder(torch.randn(2, 5, 7), torch.randn(2, 8, 1024)).shape == (2, 5, 1)


@torch.no_grad()
def test_inference_optimized_setup_word_for_word() -> None:
    model = TransformerDecoder(
        input_size=10,
        output_size=5,
        share_layers=True,             # Parameter sharing
        use_final_norm=False,          # Skip final norm
        use_gradient_checkpointing=False  # Full speed inference
    )  # fmt: skip
    model.eval()
    pred_length, current_input, encoder_output = 3, torch.randn(1, 1, 10), torch.randn(1, 4, 512)
    outputs = []

    # Incremental generation
    incremental_state = {}
    for _step in range(pred_length):
        output, incremental_state = model.forward_one_step(
            tgt=current_input,
            memory=encoder_output,
            incremental_state=incremental_state
        )  # fmt: skip
        outputs.append(output)

    full = model(current_input.expand(1, 3, 10), encoder_output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), full, atol=1e-4, rtol=1e-4)
    assert len(model.layers) == 1 and len(incremental_state["layers"]) == 6
    assert incremental_state["layers"][5]["self_attn"]["key"].shape == (1, 3, 512)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("chunks", [[1] * 9, [3, 3, 3], [5, 1, 2, 1]], ids=["ones", "threes", "mixed"])
def test_steps_reproduce_the_full_causal_pass(options: dict[str, Any], chunks: list[int]) -> None:
    model, tgt = decoder(**options), series()
    memory = torch.randn(2, 6, 16)
    seen = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    state, outputs = None, []
    for part in tgt.split(chunks, dim=1):
        output, state = model.forward_one_step(part, memory, state, seen)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), model(tgt, memory, memory_mask=seen), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_state_has_the_documented_layout_and_is_not_changed() -> None:
    model, tgt, memory = decoder(), series(), torch.randn(2, 6, 16)
    _, first = model.forward_one_step(tgt[:, :1], memory, {})
    before = copy.deepcopy(first)
    _, second = model.forward_one_step(tgt[:, 1:2], memory, first)
    assert [s["position"] for s in (first, second)] == [1, 2] and len(second["layers"]) == 2
    for depth, held in enumerate(second["layers"]):
        assert {k: set(v) for k, v in held.items()} == dict.fromkeys(("self_attn", "cross_attn"), {"key", "value"})
        assert held["self_attn"]["key"].shape == (2, 2, 16) and held["cross_attn"]["value"].shape == (2, 6, 16)
        assert held["cross_attn"]["key"] is first["layers"][depth]["cross_attn"]["key"], "projected once"
        assert torch.equal(first["layers"][depth]["self_attn"]["key"], before["layers"][depth]["self_attn"]["key"])
    documented = {"layers": first["layers"]}
    torch.testing.assert_close(
        model.forward_one_step(tgt[:, 1:2], memory, documented)[1]["layers"][1]["self_attn"]["key"],
        second["layers"][1]["self_attn"]["key"],
    )
    fresh = model.forward_one_step(tgt[:, :1], memory, None)[0]
    assert torch.equal(fresh, model.forward_one_step(tgt[:, :1], memory, {})[0])
    with pytest.raises(
        ZephyraError, match=r"layers\[0\]\['cross_attn'\]\['key'\] is \[2, 6, 16\], must be \[2, 5, 16\]"
    ):
        model.forward_one_step(tgt[:, 2:3], memory[:, :5], second)
    with pytest.raises(ZephyraError, match="must hold 2 layers, or be empty"):
        model.forward_one_step(tgt[:, 2:3], memory, {"layers": []})


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "rms", "adaptive"])
def test_three_attentions_give_the_same_numbers(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChunkedAttention, "CHUNK", 4)
    x, memory = series(), torch.randn(2, 6, 16)
    keep = torch.tensor([[True] * 9, [True] * 3 + [False] * 6])
    for run in (
        lambda kind: encoder(att_type=kind, use_adaptive_ln=norm)(x, keep)[keep],
        lambda kind: decoder(att_type=kind, use_adaptive_ln=norm)(x, memory, keep)[keep],
        lambda kind: decoder(att_type=kind, informer_like=True)(x, memory),
    ):
        standard = run("standard")
        for kind in ("xformer", "flash"):
            torch.testing.assert_close(run(kind), standard, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_padding_does_not_leak_and_the_encoder_sees_both_ways(options: dict[str, Any]) -> None:
    model, x = encoder(**options), series()
    keep = torch.tensor([True] * 6 + [False] * 3).expand(2, -1)
    torch.testing.assert_close(model(x, keep)[:, :6], model(x[:, :6]), atol=1e-5, rtol=1e-4)
    changed = x.clone()
    changed[:, 8] += 1
    assert not torch.allclose(model(x)[:, 0], model(changed)[:, 0], atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_gradients_reach_every_parameter_checkpointed_or_not(options: dict[str, Any]) -> None:
    if "num_experts" in options:  # an expert that no position chose has no gradient
        options = {**options, "top_k": options["num_experts"]}
    gradients = []
    for checkpointing in (False, True):
        source = encoder(**options, dropout=0.0, use_gradient_checkpointing=checkpointing).train()
        target = decoder(**options, dropout=0.0, use_gradient_checkpointing=checkpointing).train()
        loss = target(series(40), source(series(40, seed=2))).square().mean() + 0.01 * (
            source.aux_loss + target.aux_loss
        )
        loss.backward()
        named = {**dict(source.named_parameters("source")), **dict(target.named_parameters("target"))}
        assert [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
        gradients.append([p.grad for p in named.values()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_trained_a_step_saved_loaded_and_run(options: dict[str, Any], tmp_path: Path) -> None:
    models = (encoder(**options), decoder(**options))
    x, memory = series(), torch.randn(2, 6, 16)
    for model, arguments in zip(models, ((x,), (x, memory)), strict=True):
        before = model(*arguments).detach()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()(*arguments).square().mean().backward()
        optimizer.step()
        save_model(model, str(tmp_path / "model.safetensors"))
        again = (encoder if len(arguments) == 1 else decoder)(**options)
        load_model(again, tmp_path / "model.safetensors")
        with torch.no_grad():
            assert torch.equal(again(*arguments), model.eval()(*arguments))
            assert not torch.allclose(again(*arguments), before)


def test_capacity_drops_and_says_how_many() -> None:
    source = encoder(use_moe=True, num_experts=4, top_k=2, moe_capacity_factor=0.5).train()
    source(series())
    # 18 tokens, two choices each: 36 pairs over 4 experts with room for 5 leave at least 16 out, in each of 2 layers.
    assert dropped_tokens(source) >= 2 * (36 - 4 * 5)
    assert 1.0 < float(source.aux_loss.detach()) < 4.0
    roomy = encoder(use_moe=True, num_experts=4, top_k=2, moe_capacity_factor=None).train()
    roomy(series())
    assert dropped_tokens(roomy) == 0
    assert float(encoder().aux_loss) == 0


@torch.no_grad()
def test_options_act() -> None:
    x = series()
    assert len(encoder(share_layers=True).layers) == 1
    assert sum(p.numel() for p in encoder(share_layers=True).parameters()) < sum(
        p.numel() for p in encoder().parameters()
    )
    assert not torch.allclose(encoder(pos_encoding_scale=0.1)(x), encoder()(x))
    own = LearnedPosition(encoder().config)
    assert encoder(pos_encoder=own).position is own
    memory = torch.randn(2, 6, 16)
    changed = x.clone()
    changed[:, 8] += 1
    assert not torch.allclose(
        decoder(informer_like=True)(x, memory)[:, 0], decoder(informer_like=True)(changed, memory)[:, 0]
    )
    assert isinstance(decoder(output_size=16).head, torch.nn.Identity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"att_type": "prob_sparse"},
            "unknown att_type 'prob_sparse', known: flash, frequency, sdpa, standard, xformer",
        ),
        ({"use_adaptive_ln": "batch"}, "unknown use_adaptive_ln 'batch', known: adaptive, layer, rms"),
        ({"norm_strategy": "sandwich"}, "unknown norm_strategy 'sandwich'"),
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
        ({"nhead": 3}, "d_model is 16, not a multiple of nhead 3"),
        ({"use_moe": True, "num_experts": 2, "top_k": 3}, "top_k is 3, must be from 1 to num_experts 2"),
        ({"num_layers": 0}, "num_layers is 0, must be a whole number of at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0, must be from 0 to below 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        encoder(**options)


def test_bad_input_is_refused() -> None:
    x, memory = series(), torch.randn(2, 6, 16)
    with pytest.raises(ZephyraError, match=r"must be \[batch, steps, 7\]"):
        encoder()(series(width=6))
    with pytest.raises(ZephyraError, match="41 steps exceed max_seq_len 40"):
        encoder()(series(41))
    with pytest.raises(ZephyraError, match=r"padding_mask is \[2, 8\], must be \[batch, steps\] = \[2, 9\]"):
        encoder()(x, torch.ones(2, 8).bool())
    with pytest.raises(ZephyraError, match="padding_mask keeps nothing of sequence 1"):
        encoder()(x, torch.tensor([[True] * 9, [False] * 9]))
    with pytest.raises(ZephyraError, match=r"memory is \[2, 6, 8\], must be \[2, steps, 16\]"):
        decoder()(x, memory[..., :8])
    with pytest.raises(ZephyraError, match="its output cannot be fed back"):
        decoder(output_size=5).forward_one_step(torch.randn(2, 1, 5), memory)
    with pytest.raises(ZephyraError, match="has no single steps"):
        decoder(informer_like=True).forward_one_step(x[:, :1], memory)
