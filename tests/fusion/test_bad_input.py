"""Bad input, at construction and at run time: every error names the value and the limit, in the caller's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.fusion.family import TINY, build, some_ids
from zephyra_fusion import (
    AdaptiveInput,
    MultiHeadAttention,
    PositionwiseFeedForward,
    SamplingParams,
    ScaledDotProductAttention,
    TransformerBlock,
    TransformerDecoder,
    TransformerEncoder,
    ZephyraError,
    ZephyraFusion,
    ZephyraFusionBlock,
)
from zephyra_fusion.generate import generate
from zephyra_fusion.lora import LoraConfig, add_adapter, set_adapters

SMALL = {"d_word_vec": 16, "n_layers": 2, "n_head": 4, "d_k": 6, "d_v": 10, "d_model": 16, "d_inner": 24}
MODEL = build(TINY)
DECODER = TransformerDecoder(7, 7, d_model=16, nhead=4, num_layers=2, dim_feedforward=24)
X, MEMORY = torch.randn(2, 1, 7), torch.randn(2, 4, 16)


def other_batch() -> None:
    cache = MODEL.new_cache()
    MODEL(some_ids(3), cache=cache)
    MODEL(some_ids(3, batch=1), cache=cache)


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "fractional ids": (lambda: MODEL(torch.ones(1, 2)), "token ids are torch.float32, must be whole numbers"),
    "fractional positions": (lambda: MODEL(some_ids(2), torch.ones(2, 2)), "positions are torch.float32, must be"),
    "another batch": (other_batch, "the cache is of 2 sequences, the batch has 1"),
    "empty prompt": (lambda: next(generate(MODEL, [], SamplingParams())), "the prompt is empty"),
    "unknown argument": (lambda: ZephyraFusion(60, **SMALL, n_heads=3), "unexpected keyword argument 'n_heads'"),
    "missing argument": (lambda: ZephyraFusion(60), "missing a required argument: 'd_word_vec'"),
    "document 000, all at once": (
        lambda: ZephyraFusion(60, **{**SMALL, "d_k": 0, "n_layers": "2", "dropout": 1.5}, cutoffs=(9, 3)),
        "n_layers is '2', must be a whole number up to 2147483647; d_k is 0, .* dropout is 1.5, .* cutoffs are",
    ),
    "block": (lambda: ZephyraFusionBlock(16, 24, 0, 6, 10), "n_head is 0, must be a whole number of at least 1"),
    "mask of another shape": (
        lambda: MultiHeadAttention(4, 16, 4, 4)(*[torch.randn(1, 3, 16)] * 3, torch.ones(3, 4).bool()),
        r"mask is \[3, 4\], must end in \[3, 3\]",
    ),
    "keys without values": (
        lambda: MultiHeadAttention(4, 16, 4, 4)(*[torch.randn(1, n, 16) for n in (3, 5, 4)]),
        r"q, k and v are \[\[1, 3, 16\], \[1, 5, 16\], \[1, 4, 16\]\], must be \[batch, steps, 16\]",
    ),
    "temperature": (lambda: ScaledDotProductAttention(0.0), "temperature is 0.0, must be a number above 0"),
    "widths": (lambda: PositionwiseFeedForward(0, 1.5), "d_in is 0, must be .*; d_hid is 1.5, must be a whole number"),
    "cutoffs": (lambda: AdaptiveInput("9", 8, ["a"]), r"num_embeddings is '9', .*; cutoffs are \['a'\], must be whole"),
    "document 003, all at once": (
        lambda: TransformerBlock(dim="16", ff_mult=0.5, qk_rmsnorm=True, qk_scale=0),
        "dim is '16', .*; ff_mult is 0.5, must be a whole .*; qk_scale is 0, must be a number above 0",
    ),
    "dropout of a block": (lambda: TransformerBlock(dim=16, attn_dropout=2.0), "attn_dropout is 2.0, must be from 0"),
    "input of a block": (lambda: TransformerBlock(dim=16)(torch.randn(3, 16)), r"must be \[batch, positions, 16\]"),
    "no modules": (lambda: TransformerBlock(dim=16, finetune_modules=5), "finetune_modules is 5, must be four modules"),
    "document 004, all at once": (
        lambda: TransformerEncoder("7", 16, nhead=3, num_layers=0, att_type="y", norm_strategy="x", dropout=1.0),
        "d_model is 16, not a multiple of nhead 3 .*; dropout is 1.0, .*; input_size is '7', .*; num_layers is 0, .*; "
        "unknown att_type 'y', known: flash, .*; unknown norm_strategy 'x', known: post_norm, pre_norm",
    ),
    "unknown option": (lambda: TransformerEncoder(7, d_mdel=16), "unknown options d_mdel"),
    "no position": (lambda: TransformerEncoder(7, 16, nhead=4, pos_encoder="sin"), "pos_encoder is 'sin', must be a"),
    "whole numbers": (lambda: DECODER(torch.ones(2, 1, 7).long(), MEMORY), "the sequence is torch.int64, must be"),
    "state without keys": (
        lambda: DECODER.forward_one_step(X, MEMORY, {"position": 1, "layers": [{}, {}]}),
        r"incremental_state layers\[0\]\['self_attn'\]\['key'\] is missing",
    ),
    "state at another position": (
        lambda: DECODER.forward_one_step(X, MEMORY, {**DECODER.forward_one_step(X, MEMORY)[1], "position": 7}),
        r"incremental_state has position 7 and holds \[1\] steps",
    ),
    "state of another batch": (
        lambda: DECODER.forward_one_step(X[:1], MEMORY[:1], DECODER.forward_one_step(X, MEMORY)[1]),
        r"layers\[0\]\['self_attn'\]\['key'\] is \[2, 1, 16\], must be \[1, 1, 16\]",
    ),
    "rank": (lambda: LoraConfig(r="8", lora_alpha=float("nan")), "r is '8', must be .*; lora_alpha is nan, must be"),
    "pattern": (lambda: LoraConfig(rank_pattern={"(": 0}), r"rank_pattern is 0, .*; '\(' is no regular expression"),
    "layers": (
        lambda: add_adapter(build(TINY), "a", LoraConfig(target_modules=("q_proj",), layers_to_transform=(9,))),
        r"target_modules q_proj match no layer of layers_to_transform \(9,\)",
    ),
    "weight": (lambda: set_adapters(MODEL, {"a": "x"}), "weight of 'a' is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=list(CASES))
def test_it_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        call()


def test_the_nearest_option_is_named() -> None:
    with pytest.raises(ZephyraError) as caught:
        TransformerEncoder(7, dim_feedfoward=16)
    assert "did you mean 'dim_feedforward'?" in str(caught.value.hint)


def test_modules_that_are_no_list_are_taken_too() -> None:
    loras = nn.ModuleList(nn.Linear(width, out) for width, out in ((16, 32), (16, 4), (16, 4), (32, 16)))
    assert TransformerBlock(dim=16, dim_head=4, finetune_modules=loras)(torch.randn(1, 3, 16)).shape == (1, 3, 16)
