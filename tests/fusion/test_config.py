"""Impossible configurations are refused when the config is built, all at once, with value and limit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest

from tests.fusion.family import TINY
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.config_json import DIALECTS, dialect_of, from_json, to_json
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.rope_scaling import scaled_frequencies
from zephyra_fusion.model import ZephyraFusion

IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"head_dim": None, "num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size is 32, not a multiple of"),
    ({"num_key_value_heads": 3}, "num_attention_heads is 4, not a multiple of num_key_value_heads 3"),
    ({"head_dim": 7}, "head_dim is 7, rotary positions need an even number"),
    ({"position": "xpos", "head_dim": 7}, "head_dim is 7, rotary positions need an even number"),
    ({"sliding_window": 0}, "sliding_window is 0, must be at least 1"),
    ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 2"),
    ({"layer_types": ["sliding_attention"] * 2}, "sliding_window is not given"),
    ({"layer_types": ["full_attention", "half_attention"]}, "layer_types has 'half_attention', known: full_attention"),
    ({"cutoffs": [20, 10], "tie_word_embeddings": False}, r"cutoffs are \[20, 10\], must rise and lie between 0 and"),
    ({"cutoffs": [10]}, "adaptive input .* has no table to share"),
    ({"cutoffs": [5, 10, 20], "tie_word_embeddings": False}, "embedding_size is 32, 3 cutoffs need at least 64"),
    ({"embedding_size": 8}, "embedding_size 8 is not hidden_size 32"),
    ({"feed_forward": "moe", "num_experts": 2, "num_experts_per_tok": 3}, "is 3, must be from 1 to num_experts 2"),
    ({"feed_forward": "moe"}, "num_experts is 0, but feed_forward is 'moe'"),
    ({"num_experts": 2}, "num_experts is 2, but feed_forward is 'swiglu'"),
    ({"feed_forward": "moe", "num_experts": 2, "expert_feed_forward": "moe"}, "an expert is no mixture itself"),
    ({"moe_capacity_factor": 1.0}, "but num_experts is 0"),
    ({"dropout": 1.0}, "dropout is 1.0, must be from 0 to below 1"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0, must be a number above 0"),
    ({"norm_placement": "middle"}, "norm_placement is 'middle', known: pre, post"),
    ({"attention": "frequency"}, "has no query-key product to rotate"),
    ({"position": "none", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is given, but"),
    ({"mask_padding": True}, "mask_padding is on, but pad_token_id is not given"),
    ({"vocab_size": 0}, "vocab_size is 0, must be a whole number of at least 1"),
    ({"hidden_size": "32"}, "hidden_size is '32', must be a whole number"),
    ({"intermediate_size": 1.5}, "intermediate_size is 1.5, must be a whole number"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True, must be a whole number"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, must be at most 10000"),
    ({"sliding_window": "5"}, "sliding_window is '5', must be a whole number up to .* or absent"),
    ({"cutoffs": 5}, "cutoffs is 5, must be a list of whole numbers or absent"),
    ({"layer_types": 1.5}, "layer_types is 1.5, must be a list of names or absent"),
    ({"moe_capacity_factor": "x"}, "moe_capacity_factor is 'x', must be a finite number or absent"),
    ({"attention_scale": 0.0}, "attention_scale is 0.0, must be a number above 0"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear', must be a table or absent"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', must be true or false"),
    ({"rope_theta": float("inf")}, "rope_theta is inf, must be a finite number"),
    ({"norm": 3}, "norm is 3, must be a name"),
    ({"mask_padding": True, "pad_token_id": 61}, "pad_token_id is 61, must be from 0 to below vocab_size 61"),
]


@pytest.mark.parametrize(("changed", "message"), IMPOSSIBLE, ids=[m[:40] for _, m in IMPOSSIBLE])
def test_impossible(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        FusionConfig(**{**TINY, **changed})


def test_all_at_once() -> None:
    values = {**TINY, "sliding_window": 0, "head_dim": 7, "dropout": 2, "num_key_value_heads": 3, "windows": 4}
    with pytest.raises(ZephyraError) as caught:
        FusionConfig.from_dict(values)
    message = caught.value.message
    for part in ("'windows'", "sliding_window is 0", "head_dim is 7", "dropout is 2", "num_key_value_heads 3"):
        assert part in message
    with pytest.raises(ZephyraError, match="'vocab_size' is missing"):
        FusionConfig.from_dict({k: v for k, v in TINY.items() if k != "vocab_size"})


def test_wrong_types_hide_nothing_and_invent_nothing() -> None:
    with pytest.raises(ZephyraError) as caught:
        FusionConfig(**{**TINY, "hidden_size": None, "head_dim": None, "dropout": "x", "sliding_window": 0})
    assert caught.value.message == (
        "impossible configuration: hidden_size is None, must be a whole number up to 2147483647; "
        "dropout is 'x', must be a finite number; sliding_window is 0, must be at least 1 (or absent)"
    )


@pytest.mark.parametrize("field", [field.name for field in fields(FusionConfig)])
@pytest.mark.parametrize("value", ["x", 1.5, -1, None, True, [1], {"a": 1}, float("nan"), [], ["a"], 10**30])
def test_no_value_of_any_type_ends_in_another_error(field: str, value: object) -> None:
    for values in ({**TINY, field: value}, {**TINY, "model_type": "qwen3", field: value}):
        with suppress(ZephyraError):
            from_json(values)


def test_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(ZephyraError, match="unknown configuration key 'hiden_size'") as caught:
        FusionConfig.from_dict({**TINY, "hiden_size": 3})
    assert "hidden_size" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "linear"}, "of type 'linear' lacks the key 'factor'"),
        ({"rope_type": "linear", "factor": 2.0, "fctor": 1}, "has keys that are not understood: fctor"),
        ({"rope_type": "llama3", "factor": 2.0}, "of type 'llama3' lacks the key 'low_freq_factor'"),
        ({"rope_type": "linear", "factor": "x"}, "factor is 'x', must be a number above 0"),
        ({"rope_type": "yarn", "factor": 0}, "factor is 0, must be a number above 0"),
    ],
)
def test_odd_rope_scalings(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        ZephyraFusion(FusionConfig(**TINY, rope_scaling=scaling))


def test_old_spelling_of_a_scaling_is_understood() -> None:
    import torch

    frequencies = torch.rand(4)
    old = FusionConfig(**TINY, rope_scaling={"type": "linear", "factor": 4.0})
    torch.testing.assert_close(scaled_frequencies(frequencies, old)[0], frequencies / 4)


@pytest.mark.parametrize("spelling", ["type", "rope_type"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_both_spellings_of_a_scaling_are_read_and_written_as_the_new_one(key: str, spelling: str) -> None:
    config = from_json({**TINY, "model_type": "llama", key: {spelling: "linear", "factor": 4.0}})
    assert config.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    assert to_json(config)["rope_parameters"]["rope_type"] == "linear"
    old = FusionConfig(**TINY, rope_scaling={"type": "linear", "factor": 4.0})
    assert to_json(old)["rope_parameters"]["rope_type"] == "linear"


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Qwen3Moe"])
@pytest.mark.parametrize(
    "said", [{}, {"max_window_layers": 1}, {"sliding_window": 5}, {"max_window_layers": 1, "sliding_window": None}]
)
def test_windows_of_silent_qwen_configs_are_transformers_own(kind: str, said: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    values = {**TINY, "num_hidden_layers": 30, "use_sliding_window": True, **said}
    theirs = getattr(transformers, f"{kind}Config")(**values)
    ours = from_json({**values, "model_type": theirs.model_type})
    assert ours.sliding_window == theirs.sliding_window
    if kind != "Qwen3Moe":  # its layers are all alike
        assert list(ours.layer_types or ()) == theirs.layer_types


def test_keys_that_ask_for_nothing_are_ignored() -> None:
    """Of Qwen2.5, of Unsloth's copies, and of what transformers 4 wrote down."""
    plain = {**TINY, "model_type": "qwen2"}
    more = {"use_mrope": False, "unsloth_fixed": True, "_attn_implementation_autoset": True, "max_length": 20}
    more |= {"temperature": 1.0, "top_p": 1.0, "trust_remote_code": True, "new_thing": None, "others": {}, "more": []}
    assert from_json({**plain, **more}) == from_json(plain)
    for value in (True, 0, 1.5, ["x"]):
        with pytest.raises(ZephyraError, match="not understood: new_thing"):
            from_json({**plain, "new_thing": value})


@pytest.mark.parametrize("kind", list(DIALECTS))
def test_every_dialect_goes_out_and_comes_back(kind: str) -> None:
    moe = {"feed_forward": "moe", "num_experts": 4}
    changed: dict[str, dict[str, Any]] = {
        "llama": {"attention_bias": True, "attention_out_bias": True},
        "mistral": {"sliding_window": 5},
        "qwen2": {"attention_bias": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
        "qwen3": {"qk_norm": True},
        "mixtral": moe,
        "qwen3_moe": {**moe, "qk_norm": True, "norm_topk_prob": False, "moe_intermediate_size": 16},
    }
    config = FusionConfig(**{**TINY, **changed[kind]})
    assert dialect_of(config) == kind and from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": "llama", "vocab_size": None}, "'vocab_size' is missing"),
        ({"model_type": "llama", "rope_parameters": 3}, "rope_parameters is 3, must be a table"),
        ({"model_type": "llama", "logit_softcap": 30}, "keys that are not understood: logit_softcap"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "the checkpoint is quantized"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "layers without experts are not supported"),
    ],
)
def test_foreign_configs_that_we_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        from_json({**TINY, **values})
