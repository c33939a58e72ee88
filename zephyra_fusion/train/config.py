"""Recipes: frozen dataclasses read from TOML, unknown keys refused, `--set key=value` on top."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from zephyra_fusion.errors import ZephyraError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon for the hidden matrices, AdamW for the rest (embeddings, norms, LoRA where asked)."""

    matrix_optimizer: str = "muon"  # muon | adamw
    matrix_lr: float = 0.02
    lr: float = 0.003
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A stretch of training with one mixture of sources and one shape of batch.

    The learning rate is a WSD schedule over the run: warm-up in the first phase, constant, and a linear or cosine
    fall to `final_lr` x peak inside each phase that has `decay`.
    """

    steps: int
    mixture: Mapping[str, float]  # source name -> share of the rows
    sequence_length: int = 256
    batch_size: int = 32  # rows a micro-batch
    accumulation: int = 1  # micro-batches a step
    warmup_steps: int = 0
    decay: str = "none"  # none | linear | cosine
    final_lr: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """`zephyra train tokenizer`"""

    data: str
    output: str
    vocab_size: int = 8192
    sources: Mapping[str, float]  # source name -> megabytes of its text
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """`zephyra train base`"""

    data: str
    output: str
    tokenizer: str
    model: Mapping[str, Any]
    phases: tuple[PhaseConfig, ...]
    initial: str = ""  # a checkpoint folder whose weights training goes on from; "" begins from nothing
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: tuple[str, ...] = ()
    eval_every: int = 200
    checkpoint_every: int = 200
    precision: str = "auto"  # auto | fp32 | bf16
    device: str = "auto"  # auto | cpu | cuda | mps
    compile: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    r: int = 32
    lora_alpha: float = 32.0
    use_rslora: bool = False
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    """`zephyra train adapter`: one adapter for every entry of `domains`, in their order."""

    data: str
    output: str
    base: str
    domains: Mapping[str, int]  # domain -> steps
    initial: str = ""  # a folder of PEFT folders, by domain, that training goes on from; "" begins from nothing
    exercises: Mapping[str, float] = field(default_factory=dict)  # domain -> share of its rows that are generated
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sequence_length: int = 256
    batch_size: int = 16
    accumulation: int = 1
    warmup_steps: int = 20
    final_lr: float = 0.05
    loss_on: str = "response"  # response | all
    eval_every: int = 100
    checkpoint_every: int = 200
    precision: str = "auto"
    device: str = "auto"
    compile: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RouterRecipe:
    """`zephyra train router`"""

    data: str
    output: str
    tokenizer: str
    labels: tuple[str, ...]
    none_sources: Mapping[str, int]  # source -> prompts a label `none` is learned from
    model: Mapping[str, Any]
    threshold_set: str
    frames: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # label -> openings that decide it by themselves
    framed: float = 0.12  # share of a label's rows that are one of its frames before words from anywhere
    steps: int = 2000
    batch_size: int = 64
    max_tokens: int = 128
    lr: float = 0.002
    weight_decay: float = 0.01
    warmup_steps: int = 100
    dropout: float = 0.1
    keep_in_domain: float = 0.96
    eval_every: int = 200
    checkpoint_every: int = 500
    precision: str = "fp32"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class JointRecipe:
    """`zephyra train joint`: on from trained adapters and a trained router, one adapter for each of its labels."""

    data: str
    output: str
    base: str
    adapters: str  # folder of PEFT folders, by domain
    router: str
    threshold_set: str
    steps: int = 200
    routing: float = 1.0  # weight of the router's own loss beside that of the answers
    chat: bool = True  # the source `chat` is what the label `none` is learned from
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(matrix_optimizer="adamw", lr=0.0003))
    router_lr: float = 0.0003
    sequence_length: int = 256
    batch_size: int = 16
    accumulation: int = 1
    warmup_steps: int = 20
    final_lr: float = 0.05
    keep_in_domain: float = 0.96
    eval_every: int = 50
    checkpoint_every: int = 200
    precision: str = "fp32"
    device: str = "auto"
    seed: int = 0


RECIPES: Mapping[str, type[Any]] = {
    "tokenizer": TokenizerRecipe,
    "base": BaseRecipe,
    "adapter": AdapterRecipe,
    "router": RouterRecipe,
    "joint": JointRecipe,
}


def read_recipe(stage: str, path: Path, overrides: Sequence[str] = ()) -> Any:
    """The recipe of `stage` in the TOML file; `overrides` are `dotted.key=value`, value in TOML or a bare word."""
    if stage not in RECIPES:
        raise ZephyraError(f"unknown training stage '{stage}'", hint=did_you_mean(stage, RECIPES))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ZephyraError(f"recipe '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ZephyraError(f"recipe '{path}' cannot be read: {error}") from None
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ZephyraError(f"'{override}' is not key=value", hint="for example --set optimizer.lr=0.001")
        _put(values, key.split("."), _value(text))
    return _build(RECIPES[stage], values, str(path))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    inside: Any = values
    for at, key in enumerate(keys):
        if isinstance(inside, list):  # of tables, as in phases.0.steps
            if not (key.isascii() and key.isdecimal() and int(key) < len(inside)):
                raise ZephyraError(f"'{keys[at - 1]}' has the entries 0 to {len(inside) - 1}, not '{key}'")
            place: Any = int(key)
        elif isinstance(inside, dict):
            place = key
        else:
            raise ZephyraError(f"'{keys[at - 1]}' is a value, it has nothing below it")
        if at == len(keys) - 1:
            inside[place] = value
        else:
            inside = inside.setdefault(place, {}) if isinstance(inside, dict) else inside[place]


def _build(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ZephyraError(f"{where}: unknown key '{unknown[0]}'", hint=did_you_mean(unknown[0], known))
    built: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if is_dataclass(hint) and isinstance(hint, type):
            value = _build(hint, value, f"{where}: {name}")
        elif name == "phases":
            value = tuple(_build(PhaseConfig, phase, f"{where}: phases") for phase in value)
        elif isinstance(value, list):
            value = tuple(value)
        elif hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif hint in (int, float, str, bool) and type(value) is not hint:
            raise ZephyraError(f"{where}: {name} is {value!r}, must be {hint.__name__}")
        built[name] = value
    try:
        recipe = kind(**built)
    except TypeError as error:
        raise ZephyraError(f"{where}: {str(error).partition('() ')[2]}") from None
    _check(recipe, where)
    return recipe


_POSITIVE = {
    *("steps", "sequence_length", "batch_size", "accumulation", "eval_every", "checkpoint_every", "max_tokens"),
    *("max_grad_norm", "r", "lora_alpha", "vocab_size"),
}
_NOT_NEGATIVE = {"seed", "warmup_steps", "lr", "matrix_lr", "router_lr", "weight_decay", "final_lr", "routing"}
_SHARES = {"dropout", "framed", "keep_in_domain", "exercises"}
_FILLED = {"phases", "domains", "labels", "mixture", "sources"}


def _check(recipe: Any, where: str) -> None:
    """ZephyraError: a number that no training can be made with, or nothing where something must be."""
    for name in (f.name for f in fields(recipe)):
        value = getattr(recipe, name)
        if name in _FILLED and not value:
            raise ZephyraError(f"{where}: {name} is empty")
        entries = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
        for key, number in entries.items():
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            least = "above 0" if name in _POSITIVE or name == "domains" else "at least 0"
            wrong = not math.isfinite(number) or (number <= 0 if least == "above 0" else number < 0)
            if (name in _POSITIVE | _NOT_NEGATIVE | _FILLED and wrong) or (name in _SHARES and not 0 <= number <= 1):
                limit = "between 0 and 1" if name in _SHARES else least
                raise ZephyraError(f"{where}: {key} is {number}, must be {limit}")
