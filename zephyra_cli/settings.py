"""Settings: defaults < config.toml < its profile < ZEPHYRA_* environment < options. And the folder of all we write."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from zephyra_cli.text import utf8
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import SamplingParams
from zephyra_fusion.values import dataclass

DEFAULT_MODEL = "zephyra-nano"
BACKENDS = ("auto", "llama", "torch")
KV_TYPES = ("f32", "f16", "q8_0")
DEVICES = ("auto", "cpu", "cuda", "mps")
NOT_SETTINGS = (
    "ZEPHYRA_API_KEY",
    "ZEPHYRA_HOME",
    "ZEPHYRA_PROFILE",
    "ZEPHYRA_TRACEBACK",
)  # these steer the program, not an answer
PROFILE = "profile"  # the one table of config.toml: [profile.NAME]


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
    kv_type: str = "f16"
    kv_memory: int | None = None
    draft: str = "auto"
    prompt_cache: str | None = None
    prompt_cache_size: int = 4096
    isolate: bool | None = None
    stats: bool = False
    offline: bool = False
    log: bool = True
    plain: bool = False

    def __post_init__(self) -> None:
        for name, known in (("backend", BACKENDS), ("device", DEVICES), ("kv_type", KV_TYPES)):
            if (value := getattr(self, name)) not in known:
                raise ZephyraError(f"unknown {name} '{value}'", hint=did_you_mean(value, known))
        for name in ("threads", "context", "kv_memory", "prompt_cache_size"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ZephyraError(f"{name} is {number}, must be at least 1")
        if self.prompt_cache == "":  # as a path it would be the folder one happens to be in
            raise ZephyraError("prompt_cache is empty, must be a folder")
        if self.system is not None:
            utf8(self.system, "the system prompt")
        self._over(SamplingParams())

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The model's own `defaults` with what was set. Without a seed, sampling takes a fresh one."""
        params = self._over(defaults)
        if self.seed is None and params.temperature > 0.0:
            params = replace(params, seed=fresh_seed())
        return params

    def _over(self, defaults: SamplingParams) -> SamplingParams:
        names = {field.name for field in fields(SamplingParams)}
        given = {f.name: v for f in fields(self) if f.name in names and (v := getattr(self, f.name)) is not None}
        return replace(defaults, **given)


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(4))


def home() -> Path:
    """The folder of everything we write: `ZEPHYRA_HOME`, else the platform's place for a user's data."""
    if moved := os.environ.get("ZEPHYRA_HOME"):
        return Path(moved)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "zephyra"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zephyra"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "zephyra"


def config_file() -> Path:
    return home() / "config.toml"


@dataclass(frozen=True)
class Source:
    """Where some of the values come from, and these values."""

    name: str
    values: Mapping[str, Any]


def load(options: Mapping[str, Any]) -> Settings:
    """The settings of this run; options that are None were not given. `profile` among them names a profile."""
    return Settings(**{name: value for source in sources(options) for name, value in source.values.items()})


def require_network(what: str, offline: bool | None = None) -> None:
    """ZephyraError: the settings, or the option `offline`, forbid the network that `what` needs."""
    if load({"offline": offline}).offline:
        hint = "zephyra config shows where that is set" if offline is None else "leave --offline out"
        raise ZephyraError(f"the network is forbidden (offline), and {what} needs it", hint=hint)


def sources(options: Mapping[str, Any]) -> Sequence[Source]:
    """All that speaks of settings, the weakest first. ZephyraError: an unknown name, a value of the wrong kind."""
    given = {name: value for name, value in options.items() if value is not None}
    path = config_file()
    values = read_file(path)
    profiles = values.pop(PROFILE, {})
    found = [Source(path.name, values)]
    if profile := given.pop(PROFILE, None) or os.environ.get("ZEPHYRA_PROFILE"):
        if profile not in profiles:
            hint = f"{did_you_mean(profile, profiles)}; zephyra config set NAME VALUE --profile {profile} begins it"
            raise ZephyraError(f"there is no profile '{profile}' in '{path}'", hint=hint)
        found.append(Source(f"{path.name} [profile.{profile}]", profiles[profile]))
    found += [Source(variable, {name: value}) for variable, name, value in _from_environment(os.environ)]
    return [*found, Source("option", given)]


_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
KINDS = {field.name: _TYPES[str(field.type).split()[0]] for field in fields(Settings)}  # annotations are texts here


def parse(name: str, text: str, *, of: str) -> Any:
    """The value of setting `name` that `text` spells; `of` is what errors call it."""
    kind = KINDS[known(name)]
    try:
        return _SWITCH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ZephyraError(f"{of} is '{text}', must be {WORDS[kind]}") from None


def known(name: str) -> str:
    """`name`. ZephyraError: there is no such setting."""
    if name not in KINDS:
        raise ZephyraError(f"unknown setting '{name}'", hint=did_you_mean(name, KINDS))
    return name


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file and, under `profile`, those of its profiles; nothing where it does not exist."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ZephyraError(f"cannot read '{path}': {error}") from None
    import tomllib

    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ZephyraError(f"'{path}' is no valid TOML: {error}") from None
    profiles = values.pop(PROFILE, {})
    values = checked(values, f"'{path}'")
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise ZephyraError(
            f"'profile' in '{path}' is no table of profiles", hint="a profile begins with [profile.NAME]"
        )
    found = {name: checked(table, f"'{path}', profile '{name}'") for name, table in profiles.items()}
    return {**values, PROFILE: found} if found else values


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings from a file, each of its kind. ZephyraError: an unknown name, a value of another kind."""
    found = dict(values)
    for name, value in values.items():
        if name not in KINDS:
            raise ZephyraError(f"unknown setting '{name}' in {where}", hint=did_you_mean(name, KINDS))
        kind = KINDS[name]
        if kind is float and type(value) is int:
            found[name] = float(value)
        elif type(value) is not kind:
            raise ZephyraError(f"setting '{name}' in {where} is {value!r}, must be {WORDS[kind]}")
    return found


def _from_environment(environment: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """Variable, setting and value."""
    found = []
    for variable, text in environment.items():
        if not variable.startswith("ZEPHYRA_") or variable in NOT_SETTINGS:
            continue
        name = variable.removeprefix("ZEPHYRA_").lower()
        if name not in KINDS:
            existing = [*NOT_SETTINGS, *(f"ZEPHYRA_{setting.upper()}" for setting in KINDS)]
            raise ZephyraError(f"unknown setting {variable} in the environment", hint=did_you_mean(variable, existing))
        found.append((variable, name, parse(name, text, of=variable)))
    return found


WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
