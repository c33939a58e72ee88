"""Prompt templates: stored prompts with variables, a TOML file each, the user's before those that we ship."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any

from zephyra_cli.prompt import read_text
from zephyra_cli.settings import KINDS, checked, home
from zephyra_cli.text import utf8
from zephyra_fusion.errors import ZephyraError, did_you_mean

INPUT = "input"  # the variable that stands for argument, standard input and files
OWN = ("description", "prompt", "defaults")  # keys that are no settings
SHIPPED = Path(__file__).parent / "prompt_templates"
EXAMPLE = '''description = "What it is for"
# system = "You are brief."
# temperature = 0.2
prompt = """
$input
"""

# [defaults]
# language = "English"
'''


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """`prompt` and the setting `system` may hold `$name` or `${name}` (Python's string.Template); `$$` is a dollar."""

    name: str
    path: Path
    prompt: str = f"${INPUT}"
    description: str = ""
    defaults: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> PromptTemplate:
        """ZephyraError: it is not there, or `parse` refuses it."""
        return cls.parse(read_text(path), path)

    @classmethod
    def parse(cls, text: str, path: Path) -> PromptTemplate:
        """ZephyraError: no TOML, an unknown key, a value of the wrong kind, a `$` that begins no name."""
        import tomllib

        where = f"template '{path}'"
        utf8(text, where)
        try:
            values = tomllib.loads(text + "\n")
        except tomllib.TOMLDecodeError as error:
            raise ZephyraError(f"{where} is no valid TOML: {error}") from None
        for key in values:
            if key not in OWN and key not in KINDS:
                raise ZephyraError(f"unknown key '{key}' in {where}", hint=did_you_mean(key, {*OWN, *KINDS}))
        own = {key: values.pop(key) for key in OWN if key in values}
        texts = {"prompt": own.get("prompt", ""), "description": own.get("description", "")}
        defaults = own.get("defaults", {})
        if not isinstance(defaults, dict):
            raise ZephyraError(f"'defaults' in {where} is no table", hint='as in [defaults], then name = "value"')
        texts |= {f"defaults.{name}": value for name, value in defaults.items()}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise ZephyraError(f"'{key}' in {where} is {value!r}, must be a text")
        settings = checked(values, where)
        for key, value in (("prompt", texts["prompt"]), ("system", settings.get("system", ""))):
            if not Template(value).is_valid():
                raise ZephyraError(f"a $ in '{key}' of {where} begins no variable's name", hint="write $$ for a dollar")
        if INPUT in Template(settings.get("system", "")).get_identifiers():
            raise ZephyraError(f"$input in 'system' of {where}", hint="it has its place in the prompt")
        prompt = texts["prompt"].strip("\n") or cls.prompt
        return cls(
            name=path.stem,
            path=path,
            prompt=prompt,
            description=texts["description"],
            defaults=defaults,
            settings=settings,
        )

    @property
    def variables(self) -> list[str]:
        """All of them but the input, in the order of their use."""
        texts = (self.settings.get("system", ""), self.prompt)
        names = dict.fromkeys(name for text in texts for name in Template(text).get_identifiers())
        return [name for name in names if name != INPUT]

    @property
    def takes_input(self) -> bool:
        return INPUT in Template(self.prompt).get_identifiers()

    def over(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a run: what was given, and the template's own for all that was not."""
        return {**self.settings, **{name: value for name, value in options.items() if value is not None}}

    def bind(self, values: Mapping[str, str]) -> PromptTemplate:
        """With a value for every variable. ZephyraError: one has none, or a value has no variable."""
        for name in values:
            if name not in self.variables:
                hint = did_you_mean(name, self.variables) if self.variables else None
                raise ZephyraError(f"template '{self.name}' has no variable '{name}'", hint=hint)
        values = {**self.defaults, **values}
        if missing := [name for name in self.variables if name not in values]:
            hint = "give " + " ".join(f"-p {name}=VALUE" for name in missing)
            names = ", ".join(f"'{name}'" for name in missing)
            raise ZephyraError(f"template '{self.name}' needs a value for {names}", hint=hint)
        settings = dict(self.settings)
        if system := settings.get("system"):
            settings["system"] = Template(system).substitute(values)
        return replace(self, defaults=values, settings=settings)

    def render(self, input: str) -> str:
        """The prompt; input that has no place in it goes behind it, after a blank line. ZephyraError: none is there."""
        if self.takes_input and not input:
            raise ZephyraError(f"template '{self.name}' needs input", hint="as an argument, with -f, or piped in")
        prompt = Template(self.prompt).substitute({**self.defaults, INPUT: input})
        return prompt if self.takes_input or not input else f"{prompt}\n\n{input}"


def parse_values(given: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` each. ZephyraError: no `=`, or one name twice."""
    values: dict[str, str] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ZephyraError(f"'{entry}' is not NAME=VALUE", hint="as in -p language=German")
        if name in values:
            raise ZephyraError(f"variable '{name}' is given twice")
        utf8(value, f"variable '{name}'")
        values[name] = value
    return values


def find(reference: str) -> PromptTemplate:
    """A template by its name, or by the path of its file. ZephyraError: there is none, or it cannot be read."""
    return PromptTemplate.read(file_of(reference))


def file_of(reference: str) -> Path:
    """Its file, whatever is in it. ZephyraError: there is no template of that name."""
    if "/" in reference or "\\" in reference or reference.endswith(".toml"):
        return Path(reference).expanduser()
    paths = {path.stem: path for path in files()}
    if reference not in paths:
        raise ZephyraError(f"there is no template '{reference}'", hint=did_you_mean(reference, paths))
    return paths[reference]


def files() -> Iterator[Path]:
    """The file of every template, by name; the user's stands for one of ours that has its name."""
    paths = {path.stem: path for folder in (SHIPPED, folder_of_users()) for path in folder.glob("*.toml")}
    yield from (paths[name] for name in sorted(paths))


def folder_of_users() -> Path:
    return home() / "templates"


def path_of(name: str) -> Path:
    """Where the user's template of that name lies, or would. ZephyraError: no name that a file and `-T` can have."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ZephyraError(f"'{name}' cannot be the name of a template", hint="letters, digits, '-' and '_'")
    return folder_of_users() / f"{name}.toml"
