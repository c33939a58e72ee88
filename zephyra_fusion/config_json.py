"""`config.json` in Hugging Face's dialects: which of its architectures a config is, in both directions.

A ZephyraFusion that one of them expresses is written as that one, so that other tools serve it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zephyra_fusion.config import FULL, MOST_LAYERS, SLIDING, FusionConfig
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.field_types import at_least_one

NATIVE = "zephyra_fusion"

# model_type -> (architecture class, what the dialect fixes in our config)
DIALECTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"attention_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
    "mixtral": ("MixtralForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {"qk_norm": True}),
}

# What a dialect means where its config.json is silent and we would mean something else.
SILENT: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    "qwen3_moe": {
        "num_key_value_heads": 4, "norm_topk_prob": False, "moe_intermediate_size": 768, "sliding_window": 4096,
    },
}  # fmt: skip
_MAX_WINDOW_LAYERS = 28  # of Qwen 2 and 3: layers from this one on have windows

# Keys that mean the same everywhere.
SHARED = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size num_key_value_heads head_dim "
    "max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta rope_scaling attention_bias mlp_bias "
    "attention_dropout hidden_act initializer_range bos_token_id eos_token_id pad_token_id sliding_window "
    "layer_types num_experts_per_tok moe_intermediate_size norm_topk_prob router_aux_loss_coef"
).split()

# Keys of others that say nothing about the function that the model computes.
IGNORED = frozenset(
    (
        "architectures model_type torch_dtype dtype transformers_version use_cache _name_or_path pretraining_tp "
        "output_router_logits router_jitter_noise rope_parameters max_window_layers use_sliding_window "
        "num_local_experts num_experts decoder_sparse_step mlp_only_layers auto_map unsloth_version "
        "quantization_config return_dict output_hidden_states output_attentions chunk_size_feed_forward "
        "is_encoder_decoder id2label label2id problem_type add_cross_attention cross_attention_hidden_size is_decoder "
        "tie_encoder_decoder task_specific_params finetuning_task torchscript use_bfloat16 pruned_heads "
        "tokenizer_class prefix bad_words_ids sep_token_id decoder_start_token_id is_llama_config rope_interleaved "
        "transformers.js_config layers_block_type max_sequence_length trust_remote_code gradient_checkpointing "
        "attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled unsloth_fixed "
        "keys_to_ignore_at_inference "
        # what transformers 4 put down of generation
        "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty "
        "temperature top_k top_p min_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
        "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
        "begin_suppress_tokens"
    ).split()
)


def from_json(values: Mapping[str, Any]) -> FusionConfig:
    """A config from `config.json`; foreign keys that would change the model are refused by name."""
    kind = values.get("model_type", NATIVE)
    if kind == NATIVE:
        return FusionConfig.from_dict({k: v for k, v in values.items() if k not in ("model_type", "architectures")})
    if not isinstance(kind, str) or kind not in DIALECTS:
        raise ZephyraError(f"model_type '{kind}' is not supported", hint=did_you_mean(str(kind), [*DIALECTS, NATIVE]))
    # What is off, absent or empty asks for nothing, whatever its name.
    asked = {key for key, value in values.items() if value is not False and value not in (None, "", [], {})}
    unknown = sorted(asked - set(SHARED) - IGNORED)
    if unknown:
        raise ZephyraError(f"config.json of a '{kind}' has keys that are not understood: {', '.join(unknown)}")
    if values.get("quantization_config"):
        raise ZephyraError("the checkpoint is quantized (quantization_config)", hint="take the unquantized original")
    ours = {k: v for k, v in SILENT.get(kind, {}).items() if k not in values}
    ours |= {k: values[k] for k in SHARED if k in values and values[k] is not None}
    ours |= DIALECTS[kind][1]
    rope = dict(_table(values, "rope_parameters"))
    if "rope_theta" in rope:
        ours["rope_theta"] = rope.pop("rope_theta")
    old, new = _spelled_out(_table(ours, "rope_scaling")), _spelled_out(rope)
    scaling = old if new["rope_type"] == "default" else new
    ours["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    ours["tie_word_embeddings"] = bool(values.get("tie_word_embeddings", False))
    if kind == "llama":
        ours["attention_out_bias"] = bool(values.get("attention_bias", False))
        ours.pop("sliding_window", None)
    elif kind in ("qwen2", "qwen3", "qwen3_moe"):
        _qwen_window(values, ours)
        if kind != "qwen2":
            ours["attention_out_bias"] = bool(values.get("attention_bias", False))
    if kind in ("mixtral", "qwen3_moe"):
        ours["num_experts"] = values.get("num_local_experts") or values.get("num_experts") or 8
        ours["feed_forward"] = "moe"
        if values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1:
            raise ZephyraError("mlp_only_layers and decoder_sparse_step: layers without experts are not supported")
        if kind == "mixtral":
            ours |= {"norm_topk_prob": True, "moe_intermediate_size": values.get("intermediate_size")}
    return FusionConfig.from_dict(ours)


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    given = values.get(name) or {}
    if not isinstance(given, Mapping):
        raise ZephyraError(f"{name} is {given!r}, must be a table")
    return given


def _spelled_out(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A RoPE scaling with `rope_type`, of which `type` is the older spelling; no scaling is the type `default`."""
    return {"rope_type": scaling.get("type", "default"), **{k: v for k, v in scaling.items() if k != "type"}}


def _qwen_window(values: Mapping[str, Any], ours: dict[str, Any]) -> None:
    if not values.get("use_sliding_window"):
        ours.pop("sliding_window", None)
        ours.pop("layer_types", None)
    elif values["model_type"] == "qwen3_moe":  # its layers are all alike
        ours.pop("layer_types", None)
    elif "layer_types" not in ours and "sliding_window" in ours:
        layers: Any = values.get("num_hidden_layers")
        full = values.get("max_window_layers", _MAX_WINDOW_LAYERS)
        if not isinstance(full, int):
            raise ZephyraError(f"max_window_layers is {full!r}, must be a whole number")
        if at_least_one(layers) and layers <= MOST_LAYERS:  # else the config will say what it must be
            ours["layer_types"] = [FULL if n < full else SLIDING for n in range(layers)]


def dialect_of(config: FusionConfig) -> str:
    """The `model_type` that expresses this config, or `zephyra_fusion`."""
    plain = (
        config.position == "rope"
        and config.attention == "sdpa"
        and config.norm == "rms"
        and config.norm_placement == "pre"
        and config.final_norm
        and not config.mask_padding
        and config.attention_scale is None
        and config.value_head_dim == config.head_dim
        and config.embedding_size == config.hidden_size
        and config.cutoffs is None
        and config.dropout == 0.0
        and config.expert_feed_forward == "swiglu"
        and config.moe_capacity_factor is None
        and not config.shared_expert_intermediate_size
    )
    if not plain or config.feed_forward not in ("swiglu", "moe"):
        return NATIVE
    windows, mixed = SLIDING in (config.layer_types or ()), len(set(config.layer_types or ())) > 1
    moe = config.feed_forward == "moe"
    if config.qk_norm:
        same = config.attention_bias == config.attention_out_bias and not config.mlp_bias and not (moe and mixed)
        return ("qwen3_moe" if moe else "qwen3") if same else NATIVE
    biased = config.attention_bias or config.attention_out_bias or config.mlp_bias
    if moe:
        simple = not biased and config.norm_topk_prob and config.moe_intermediate_size == config.intermediate_size
        return "mixtral" if simple and not mixed else NATIVE
    if config.attention_bias and not config.attention_out_bias and not config.mlp_bias:
        return "qwen2"
    if windows:
        return "mistral" if not biased and not mixed else NATIVE
    return "llama" if config.attention_bias == config.attention_out_bias else NATIVE


def to_json(config: FusionConfig) -> dict[str, Any]:
    """`config.json` of the dialect that expresses the config, else of our own."""
    kind = dialect_of(config)
    values = config.to_dict()
    if kind == NATIVE:
        return {"architectures": ["ZephyraFusion"], "model_type": NATIVE, **values}
    written = {k: values[k] for k in SHARED if k in values and values[k] is not None}
    if SLIDING not in (config.layer_types or ()):
        written.pop("sliding_window", None)
        written.pop("layer_types", None)
    elif kind.startswith("qwen"):
        written["use_sliding_window"] = True
    if kind == "qwen2":
        written.pop("attention_bias")
    if kind not in ("llama",):
        written.pop("mlp_bias", None)
    if kind in ("mistral", "mixtral"):
        written.pop("attention_bias", None)
    if kind in ("mistral", "mixtral", "qwen3_moe"):
        written.pop("layer_types", None)
    if kind not in ("mixtral", "qwen3_moe"):
        for key in ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef"):
            written.pop(key)
    else:
        written["num_local_experts" if kind == "mixtral" else "num_experts"] = config.num_experts
    if kind == "mixtral":
        written.pop("moe_intermediate_size")
        written.pop("norm_topk_prob")
    # transformers 4 reads the two old keys, transformers 5 the new one.
    rope = _spelled_out(config.rope_scaling or {})
    written["rope_parameters"] = {**rope, "rope_theta": config.rope_theta}
    return {"architectures": [DIALECTS[kind][0]], "model_type": kind, "torch_dtype": "float32", **written}
