"""Checkpoint and adapter folders in Hugging Face's and PEFT's layouts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zephyra_fusion import config_json
from zephyra_fusion.chat import ASSISTANT, END, END_OF_TEXT, PAD, SYSTEM, USER, ZEPHYRA_JINJA
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import LoraConfig, adapted_layers, add_adapter
from zephyra_fusion.model import ZephyraFusion

PEFT_PREFIX = "base_model.model."


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ZephyraError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ZephyraError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ZephyraError(f"{path} holds a {type(values).__name__}, not an object")
    return values


# Mixtral's words for what is called mlp.experts everywhere else
MIXTRAL = (("block_sparse_moe.", "mlp."), (".w1.", ".gate_proj."), (".w3.", ".up_proj."), (".w2.", ".down_proj."))


def home_name(name: str) -> str:
    """Qwen3-MoE's name, which is ours, of a tensor that may carry Mixtral's."""
    for theirs, ours in MIXTRAL if ".block_sparse_moe." in name else ():
        name = name.replace(theirs, ours)
    return name


def mixtral_name(name: str) -> str:
    for theirs, ours in MIXTRAL if ".mlp." in name else ():
        name = name.replace(ours, theirs)
    return name


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata={"format": "pt"})
    os.replace(partial, path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ZephyraError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise ZephyraError(f"{path} cannot be read: {error}") from None


def save_checkpoint(model: ZephyraFusion, folder: Path, *, tokenizer: Path | None = None) -> None:
    """`config.json`, `model.safetensors`, and the tokenizer with the chat template; adapters are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t for n, t in model.state_dict().items() if ".lora_" not in n}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    if config_json.dialect_of(model.config) == "mixtral":
        tensors = {mixtral_name(n): t for n, t in tensors.items()}
    _write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config_json.to_json(model.config))
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: Path, folder: Path) -> None:
    """`tokenizer.json` and what transformers needs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": [END_OF_TEXT, SYSTEM, USER, ASSISTANT],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": ZEPHYRA_JINJA,
        },
    )


def load_checkpoint(folder: Path, *, device: torch.device | str = "cpu") -> ZephyraFusion:
    """The model of a checkpoint folder, in evaluation mode; every mismatch of the file in one error."""
    config = config_json.from_json(read_json(folder / "config.json"))
    with torch.device("meta"):
        model = ZephyraFusion(config)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        if bad := [s for s in shards if Path(s).name != s]:
            raise ZephyraError(f"{index} names a file outside its folder: {bad[0]}")
        tensors = {n: t for shard in shards for n, t in _read_tensors(folder / shard).items()}
    else:
        tensors = _read_tensors(folder / "model.safetensors")
    load_weights(model, {home_name(n): t for n, t in tensors.items()}, str(folder))
    return model.to(device).eval()


def load_weights(model: ZephyraFusion, tensors: dict[str, Tensor], where: str) -> None:
    """Put the tensors into a model that may still be on the meta device."""
    expected = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
        tensors = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
    wrong = [f"'{n}' is missing" for n in sorted(set(expected) - set(tensors))]
    wrong += [f"'{n}' has no place" for n in sorted(set(tensors) - set(expected))]
    wrong += [
        f"'{n}' is {list(t.shape)}, must be {list(expected[n].shape)}"
        for n, t in sorted(tensors.items())
        if n in expected and t.shape != expected[n].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 8} more)" if len(wrong) > 8 else ""
        raise ZephyraError(f"{where} does not fit its config: " + "; ".join(wrong[:8]) + more)
    model.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        model.tie()
    model.rebuild_buffers()


def save_adapter(model: ZephyraFusion, name: str, config: LoraConfig, folder: Path, *, base: str = "") -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, layer in adapted_layers(model, name):
        for part, weight in zip("AB", layer.factors(name), strict=True):
            tensors[f"{PEFT_PREFIX}{module}.lora_{part}.weight"] = weight
    if not tensors:
        raise ZephyraError(f"adapter '{name}' is not loaded")
    _write_tensors(folder / "adapter_model.safetensors", tensors)
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "use_dora": False,
        "target_modules": list(config.target_modules),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "layers_to_transform": config.layers_to_transform and list(config.layers_to_transform),
        "modules_to_save": None,
        "fan_in_fan_out": False,
    }
    write_json(folder / "adapter_config.json", written)


def read_adapter_config(folder: Path) -> LoraConfig:
    """PEFT's `adapter_config.json`; what is not plain LoRA is refused by name."""
    values = read_json(folder / "adapter_config.json")
    if values.get("peft_type") != "LORA":
        raise ZephyraError(f"{folder} is a PEFT '{values.get('peft_type')}', only LORA is supported")
    for key in ("use_dora", "modules_to_save", "fan_in_fan_out", "trainable_token_indices", "lora_bias"):
        if values.get(key):
            raise ZephyraError(f"{folder} uses {key}, which plain LoRA cannot express")
    if values.get("bias", "none") != "none":
        raise ZephyraError(f"{folder} trains biases (bias = '{values['bias']}'), which plain LoRA cannot express")
    targets = values.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ZephyraError(f"{folder} has target_modules {targets!r}, must be a list of names")
    layers = values.get("layers_to_transform")
    given: dict[str, Any] = {name: values.get(name) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")}
    given |= {name: values.get(name) for name in ("rank_pattern", "alpha_pattern")}
    given["layers_to_transform"] = [layers] if isinstance(layers, int) else layers
    try:
        return LoraConfig(
            target_modules=tuple(sorted(targets)), **{name: value for name, value in given.items() if value is not None}
        )
    except ZephyraError as error:
        raise ZephyraError(f"{folder}: {error.message}") from None


def load_adapter(model: ZephyraFusion, name: str, folder: Path) -> LoraConfig:
    """Make the adapter of a PEFT folder resident under `name`; every mismatch with the base in one error."""
    config = read_adapter_config(folder)
    tensors = {n.removeprefix(PEFT_PREFIX): t for n, t in _read_tensors(folder / "adapter_model.safetensors").items()}
    shapes = {}
    for module, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and config.targets(module):
            rank = config.rank(module)
            shapes[f"{module}.lora_A.weight"] = (rank, layer.in_features)
            shapes[f"{module}.lora_B.weight"] = (layer.out_features, rank)
    wrong = [f"'{n}' is missing" for n in sorted(set(shapes) - set(tensors))]
    wrong += [f"'{n}' has no place" for n in sorted(set(tensors) - set(shapes))]
    wrong += [
        f"'{n}' is {list(t.shape)}, must be {list(shapes[n])}"
        for n, t in sorted(tensors.items())
        if n in shapes and tuple(t.shape) != shapes[n]
    ]
    if wrong or not shapes:
        raise ZephyraError(f"adapter {folder} does not fit this base: " + "; ".join(wrong[:8]))
    add_adapter(model, name, config)
    with torch.no_grad():
        for module, layer in adapted_layers(model, name):
            for part, weight in zip("AB", layer.factors(name), strict=True):
                weight.copy_(tensors[f"{module}.lora_{part}.weight"])
    return config
