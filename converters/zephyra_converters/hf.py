"""Hugging Face checkpoint folders, read lazily and written as a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zephyra_converters.checkpoint import Checkpoint, LazyTensor, TokenizerFiles
from zephyra_converters.json_file import read_json, well_formed, write_json
from zephyra_converters.model_card import card_metadata, sampling_metadata
from zephyra_converters.names import check_names, common_name, dialect_name
from zephyra_converters.safetensors_file import read_safetensors, write_safetensors
from zephyra_converters.sentencepiece_vocab import LLAMA_DEFAULTS, parse_model, tokenizer_json
from zephyra_fusion import config_json
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

MOST_PARTS = 1024  # layers, experts: lists are made of these numbers before a tensor is seen
LARGEST_VOCABULARY = 2**26  # bytes
# Buffers that old transformers saved beside the weights; they are computed from the config.
_BUFFERS = ("rotary_emb.inv_freq", "masked_bias")


def read_hf(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; only configs and headers are read, and a head that should be the embedding's.

    Every mismatch of names and shapes is an error.
    """
    if not folder.is_dir():
        raise ZephyraError(
            f"{folder} is not a folder", hint="a checkpoint folder has config.json and model.safetensors"
        )
    config = _read_config(folder)
    tensors = {name: t for name, t in _read_weights(folder).items() if not name.endswith(_BUFFERS)}
    tensors = {(new := common_name(name)): tensor.named(new) for name, tensor in tensors.items()}
    config = _with_stored_head(config, tensors)
    shapes = expected_shapes(config)
    check_names(tensors, shapes, str(folder))
    wrong = [
        f"'{name}' is {list(tensors[name].shape)}, config.json says {list(shape)}"
        for name, shape in shapes.items()
        if tensors[name].shape != shape
    ]
    if wrong:
        raise ZephyraError(f"{folder}: {'; '.join(wrong[:6])}")
    about = card_metadata(folder) | sampling_metadata(_generation(folder))
    return Checkpoint(
        config=config,
        tensors=tensors,
        path=folder,
        name=folder.resolve().name,
        tokenizer=read_tokenizer_files(folder),
        license=about.get("general.license"),
        about=about,
    )


def is_config_alone(folder: Path) -> bool:
    """A folder with a config.json and no weights: enough to know a model's shape."""
    weights = (path for pattern in ("*.safetensors*", "*.bin*") for path in folder.glob(pattern))
    return (folder / "config.json").is_file() and next(weights, None) is None


def read_config_alone(folder: Path) -> Checkpoint:
    """A checkpoint without tensors."""
    return Checkpoint(config=_read_config(folder), tensors={}, path=folder, name=folder.resolve().name)


def _read_config(folder: Path) -> FusionConfig:
    values = read_json(folder / "config.json")
    with well_formed(folder / "config.json"):
        for key in ("num_hidden_layers", "num_experts", "num_local_experts"):
            if (values.get(key) or 0) > MOST_PARTS:
                raise ZephyraError(f"{folder / 'config.json'}: {key} is {values[key]}, more than {MOST_PARTS}")
        return _with_generation_ids(config_json.from_json(values), folder)


def _with_stored_head(config: FusionConfig, tensors: dict[str, LazyTensor]) -> FusionConfig:
    """Whether a tied checkpoint means what it says: a stored head of its own counts, as it does in transformers.

    One that only repeats the embedding leaves `tensors`.
    """
    head, table = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if not config.tie_word_embeddings or head is None or table is None:
        return config
    if not table.equals(head):
        return replace(config, tie_word_embeddings=False)
    del tensors["lm_head.weight"]
    return config


def expected_shapes(config: FusionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with this config, by Hugging Face name."""
    hidden, head_dim = config.hidden_size, config.head_dim or 0
    q, kv = config.num_attention_heads * head_dim, (config.num_key_value_heads or 0) * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
    }
    if config.attention_bias:
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    if config.attention_out_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if config.qk_norm:
        layer |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    if config.num_experts:
        layer["mlp.gate.weight"] = (config.num_experts, hidden)
    inner = (config.moe_intermediate_size if config.num_experts else config.intermediate_size) or 0
    for mlp in [f"mlp.experts.{e}" for e in range(config.num_experts)] or ["mlp"]:
        for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            layer[f"{mlp}.{part}_proj.weight"] = (rows, columns)
            if config.mlp_bias:
                layer[f"{mlp}.{part}_proj.bias"] = (rows,)
    for n in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    return shapes


def write_hf(
    checkpoint: Checkpoint, folder: Path, dtype: str | None = None, progress: Callable[[int], None] = lambda size: None
) -> None:
    """Write config, weights (`dtype` F32, F16 or BF16; None: as stored) and tokenizer into an existing empty folder."""
    config = config_json.to_json(checkpoint.config)
    tensors = [t.named(dialect_name(name, config["model_type"])) for name, t in checkpoint.tensors.items()]
    types = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    write_json(folder / "config.json", {**config, "torch_dtype": types[dtype or checkpoint.dtype]})
    write_safetensors(folder / "model.safetensors", tensors, dtype, progress)
    if checkpoint.tokenizer is not None:
        write_tokenizer_files(checkpoint.tokenizer, folder)


def read_tokenizer_files(folder: Path) -> TokenizerFiles | None:
    """The tokenizer's files of a folder; None where there is neither tokenizer.json nor tokenizer.model."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        return None
    with well_formed(folder / "tokenizer_config.json"):
        return _tokenizer_files(folder)


def _tokenizer_files(folder: Path) -> TokenizerFiles:
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    templates = _chat_templates(folder, config)
    model = _sentencepiece_model(folder)
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_json(folder / "tokenizer.json")
    else:
        assert model is not None
        config = LLAMA_DEFAULTS | config
        tokenizer = tokenizer_json(parse_model(model), config)
    return TokenizerFiles(
        tokenizer=tokenizer,
        config=config,
        chat_template=templates.pop("default", None),
        named_templates=templates,
        sentencepiece=model,
    )


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """By name, the usual one being `default`: files of their own, tokenizer_config.json's, or chat_template.json's."""
    jinja, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        return {path.stem: path.read_text(encoding="utf-8") for path in others} | {
            "default": jinja.read_text(encoding="utf-8")
        }
    given = config.get("chat_template")
    if given is None and older.is_file():
        given = read_json(older).get("chat_template")
    listed = given if isinstance(given, list) else [{"name": "default", "template": given}]
    found = {template["name"]: template["template"] for template in listed}
    return {name: text for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}


def _sentencepiece_model(folder: Path) -> bytes | None:
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST_VOCABULARY:
        raise ZephyraError(f"{path} has {path.stat().st_size} bytes, no vocabulary is larger than {LARGEST_VOCABULARY}")
    return path.read_bytes()


def write_tokenizer_files(tokenizer: TokenizerFiles, folder: Path) -> None:
    write_json(folder / "tokenizer.json", tokenizer.tokenizer)
    config = dict(tokenizer.config)
    templates = dict(tokenizer.named_templates)
    if tokenizer.chat_template is not None:
        templates = {"default": tokenizer.chat_template, **templates}
    if tokenizer.named_templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    elif templates:
        config["chat_template"] = tokenizer.chat_template
    if config:
        write_json(folder / "tokenizer_config.json", config)


def _read_weights(folder: Path) -> dict[str, LazyTensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, folder / f"{name}.index.json")
        if (folder / name).is_file():
            return _read_file(folder / name)
    raise ZephyraError(
        f"{folder} has no weights", hint="expected model.safetensors, its .index.json with shards, or pytorch_model.bin"
    )


def _read_shards(folder: Path, index: Path) -> dict[str, LazyTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ZephyraError(f"{index} has no weight_map of names to files")
    tensors: dict[str, LazyTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard in (".", ".."):
            raise ZephyraError(f"{index} names '{shard}', only files beside it are allowed")
        if not (folder / shard).is_file():
            raise ZephyraError(f"{index} names '{shard}', which is missing", hint="fetch the checkpoint again")
        for name, tensor in _read_file(folder / shard).items():
            if name in tensors:
                raise ZephyraError(f"{folder}: tensor '{name}' stands in two shards")
            tensors[name] = tensor
    if missing := sorted(set(weight_map) - set(tensors)):
        raise ZephyraError(f"{index} promises tensors that no shard has: {', '.join(missing[:6])}")
    return tensors


def _read_file(path: Path) -> dict[str, LazyTensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    from zephyra_converters.torch_file import read_torch

    return read_torch(path)


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def _with_generation_ids(config: FusionConfig, folder: Path) -> FusionConfig:
    """generation_config.json's end tokens: chat models name there what ends a turn, and config.json often not."""
    ids = _generation(folder).get("eos_token_id")
    listed = [ids] if type(ids) is int else ids if isinstance(ids, list) else []
    merged = tuple(dict.fromkeys([*listed, *config.eos_token_ids]))
    if not merged or merged == config.eos_token_ids:
        return config
    return FusionConfig.from_dict({**config.to_dict(), "eos_token_id": merged})
