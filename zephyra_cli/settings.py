"""Settings: defaults < config.toml < ZEPHYRA_* environment < options. And the one folder that holds all we write."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import SamplingParams

DEFAULT_MODEL = "zephyra-nano"
BACKENDS = ("auto", "llama")
DEVICES = ("auto", "cpu", "cuda", "mps")
NOT_SETTINGS = ("ZEPHYRA_HOME", "ZEPHYRA_TRACEBACK")  # these steer the program, not an answer


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run goes by. None: the model decides."""

    model: str = DEFAULT_MODEL
    domain: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    context: int | None = None
    stats: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        for name, known in (("backend", BACKENDS), ("device", DEVICES)):
            if (value := getattr(self, name)) not in known:
                raise ZephyraError(f"unknown {name} '{value}'", hint=did_you_mean(value, known))
        for name in ("threads", "context"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ZephyraError(f"{name} is {number}, must be at least 1")

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The model's own `defaults` with what was set. Without a seed, sampling takes a fresh one."""
        names = {field.name for field in fields(SamplingParams)}
        given = {f.name: v for f in fields(self) if f.name in names and (v := getattr(self, f.name)) is not None}
        params = replace(defaults, **given)
        if self.seed is None and params.temperature > 0.0:
            params = replace(params, seed=int.from_bytes(os.urandom(4)))
        return params


def home() -> Path:
    """The folder of everything we write: `ZEPHYRA_HOME`, else the platform's place for a user's data."""
    if moved := os.environ.get("ZEPHYRA_HOME"):
        return Path(moved)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "zephyra"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zephyra"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "zephyra"


def load(options: Mapping[str, Any]) -> Settings:
    """The settings of this run; options that are None were not given."""
    given = {name: value for name, value in options.items() if value is not None}
    return Settings(**{**_from_file(home() / "config.toml"), **_from_environment(os.environ), **given})


_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_KINDS = {field.name: _TYPES[str(field.type).split()[0]] for field in fields(Settings)}  # annotations are texts here


def _from_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ZephyraError(f"cannot read '{path}': {error}") from None
    import tomllib

    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ZephyraError(f"'{path}' is no valid TOML: {error}") from None
    for name, value in values.items():
        if name not in _KINDS:
            raise ZephyraError(f"unknown setting '{name}' in '{path}'", hint=did_you_mean(name, _KINDS))
        kind = _KINDS[name]
        if kind is float and type(value) is int:
            values[name] = float(value)
        elif type(value) is not kind:
            raise ZephyraError(f"setting '{name}' in '{path}' is {value!r}, must be {_WORDS[kind]}")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith("ZEPHYRA_") or variable in NOT_SETTINGS:
            continue
        name = variable.removeprefix("ZEPHYRA_").lower()
        if name not in _KINDS:
            known = [*NOT_SETTINGS, *(f"ZEPHYRA_{known.upper()}" for known in _KINDS)]
            raise ZephyraError(f"unknown setting {variable} in the environment", hint=did_you_mean(variable, known))
        kind = _KINDS[name]
        try:
            values[name] = _SWITCH[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise ZephyraError(f"{variable} is '{text}', must be {_WORDS[kind]}") from None
    return values


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
