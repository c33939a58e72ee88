"""PEFT adapter folders: plain LoRA read from the headers, everything else refused by its own name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zephyra_converters.adapter import EMBEDDING, Adapter, LoraPair
from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.json_file import read_json, well_formed, write_json
from zephyra_converters.names import common_name, dialect_name
from zephyra_converters.peft_experts import experts_apart, gate_shape, parameter_of
from zephyra_converters.peft_targets import targets_of
from zephyra_converters.safetensors_file import read_safetensors, write_safetensors
from zephyra_fusion.errors import ZephyraError

PREFIX = "base_model.model."
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# Embedding tables have no weight below: the factors are parameters of the layer itself.
_EMBEDDING = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.default)?")
# The base's own table, which PEFT saves along when the adapter targets it.
_COPY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.base_layer\.weight")
# Options of PEFT's LoRA that change the mathematics when they are on.
_REFUSED = {
    "use_dora": "DoRA (use_dora)",
    "modules_to_save": "modules_to_save (whole layers trained beside the adapter)",
    "fan_in_fan_out": "fan_in_fan_out",
    "trainable_token_indices": "trainable_token_indices (trained tokens)",
    "lora_bias": "lora_bias",
    "layer_replication": "layer_replication",
    "alora_invocation_tokens": "aLoRA (alora_invocation_tokens)",
    "use_qalora": "QALoRA (use_qalora)",
    "use_bdlora": "BD-LoRA (use_bdlora)",
    "megatron_config": "megatron_config",
    "arrow_config": "Arrow (arrow_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
}
# Initialisations that take their part out of the base's weights, so that the adapter belongs to a changed base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Methods that change no weight of the base, so that there is nothing to merge.
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT")
_NO_WEIGHTS = "it learned a prompt, which no weights can hold: only PEFT runs it; train a LoRA adapter instead"


def read_peft(folder: Path) -> Adapter:
    """The adapter of a PEFT folder; only JSON and tensor headers are read."""
    config = read_json(folder / "adapter_config.json")
    with well_formed(folder / "adapter_config.json"):
        return _adapter(folder, config, _read_tensors(folder))


def _adapter(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Adapter:
    if wrong := [*_refused(config), *_refused_tensors(tensors)]:
        merge = "merge it into the base with PEFT (merge_and_unload) and convert the merged checkpoint"
        raise ZephyraError(
            f"the adapter {folder} uses {'; '.join(wrong)}: a LoRA adapter in GGUF cannot express that",
            hint=_NO_WEIGHTS if config.get("peft_type") in _PROMPTS else merge,
        )
    sides: dict[str, dict[str, LazyTensor]] = {}
    tables: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if match := _KEY.fullmatch(name) or _EMBEDDING.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        elif match := _COPY.fullmatch(name):
            tables[match["module"] + ".weight"] = tensor
    if broken := sorted(module for module, pair in sides.items() if len(pair) != 2):
        raise ZephyraError(f"the adapter {folder} lacks lora_A or lora_B of: {', '.join(broken[:6])}")
    if not sides:
        raise ZephyraError(f"the adapter {folder} has no tensors")
    pairs: dict[str, LoraPair] = {}
    shapes = {name: table.shape for name, table in tables.items()}
    targets = config.get("target_parameters") or []
    for module, both in sorted(sides.items()):
        parameter = parameter_of(module, sides, targets)
        key = parameter or next((f"{module}.weight" for t in targets if f"{module}.weight".endswith(t)), module)
        wanted = int(_patterned(config.get("rank_pattern"), key, config.get("r", 8)))
        pair = LoraPair(both["A"], both["B"], _scale(config, key))
        if parameter is not None:
            pairs |= experts_apart(parameter, pair, wanted)
            shapes |= gate_shape(parameter, pair, wanted)
            continue
        if len(pair.a.shape) != 2 or len(pair.b.shape) != 2 or not pair.a.shape[0] == pair.b.shape[1] == wanted:
            raise ZephyraError(
                f"the adapter {folder}: '{module}' is {list(pair.a.shape)} and {list(pair.b.shape)}, "
                f"its config says r {wanted}"
            )
        pairs[common_name(module + ".weight").removesuffix(".weight")] = pair
    return Adapter(
        pairs=pairs,
        base_shapes=shapes,
        base_tables=tables,
        targeted=targets_of(config),
        path=folder,
        name=folder.resolve().name,
        base=str(config.get("base_model_name_or_path") or ""),
    )


def write_peft(adapter: Adapter, folder: Path, base: str = "", dialect: str = "") -> None:
    """Write an adapter as PEFT reads it, float32; its scales go into lora_alpha and alpha_pattern.

    `dialect`: whose names the base's modules have (`config_json.dialect_of`).
    """
    theirs = {module: dialect_name(module + ".weight", dialect).removesuffix(".weight") for module in adapter.pairs}
    pairs = {theirs[module]: pair for module, pair in adapter.pairs.items()}
    ranks = {module: pair.rank for module, pair in pairs.items()}
    alphas = {module: pair.scale * pair.rank for module, pair in pairs.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base or adapter.base,
            "inference_mode": True,
            "bias": "none",
            "r": rank,
            "lora_alpha": _whole(alpha),
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
            # Beside layers_to_transform, what lies in no layer counts by its whole name alone.
            "target_modules": sorted({m.rpartition(".")[2] if ".layers." in m else m for m in ranks}),
            "layers_to_transform": _layers(ranks),
            "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
            "alpha_pattern": {module: _whole(a) for module, a in alphas.items() if not math.isclose(a, alpha)},
            "modules_to_save": None,
            "fan_in_fan_out": False,
        },
    )
    tensors = {}
    for module, pair in pairs.items():
        for side, tensor in (("A", pair.a), ("B", pair.b)):
            name = f"{PREFIX}{module}.lora_{side}.weight"
            if module == EMBEDDING:
                name = f"{PREFIX}{module}.lora_embedding_{side}"
            tensors[name] = tensor.named(name)
    write_safetensors(folder / "adapter_model.safetensors", tensors.values(), "F32")


def _layers(modules: Mapping[str, int]) -> list[int] | None:
    """The layers that have adapters, where target_modules alone would also name others."""
    found = {int(match[1]) for module in modules if (match := re.search(r"\.layers\.(\d+)\.", module))}
    return sorted(found) or None


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _read_tensors(folder: Path) -> dict[str, LazyTensor]:
    if (folder / "adapter_model.safetensors").is_file():
        return read_safetensors(folder / "adapter_model.safetensors")
    if (folder / "adapter_model.bin").is_file():
        from zephyra_converters.torch_file import read_torch

        return read_torch(folder / "adapter_model.bin")
    raise ZephyraError(f"{folder} has neither adapter_model.safetensors nor adapter_model.bin")


def _refused(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("peft_type")
    wrong = [] if kind == "LORA" else [f"the PEFT method '{kind}'"]
    wrong += [text for key, text in _REFUSED.items() if config.get(key)]
    if config.get("bias", "none") not in (None, "none"):
        wrong.append(f"trained biases (bias '{config['bias']}')")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        wrong.append(f"init_lora_weights '{start}', which changed the base's own weights")
    return wrong


def _refused_tensors(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Tensors that are no plain pair: trained embeddings (a grown vocabulary), magnitudes, whole layers."""
    known = (_KEY, _EMBEDDING, _COPY)
    others = sorted(name for name in tensors if not any(pattern.fullmatch(name) for pattern in known))
    if not others:
        return []
    grown = [name for name in others if "embed_tokens" in name or "lm_head" in name]
    what = "trained or grown embeddings" if grown else "tensors that are no LoRA pair"
    return [f"{what} ({', '.join((grown or others)[:4])})"]


def _scale(config: Mapping[str, Any], module: str) -> float:
    rank = _patterned(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _patterned(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    if not math.isfinite(alpha) or rank < 1:
        raise ZephyraError(f"adapter_config.json gives '{module}' r {rank} and lora_alpha {alpha}")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _patterned(pattern: Mapping[str, Any] | None, module: str, default: Any) -> float:
    """PEFT's rule: the first pattern that ends the module's name after a dot."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return float(default)
