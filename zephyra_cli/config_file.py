"""Changes to config.toml that leave the user's comments and order as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zephyra_cli import home_file
from zephyra_cli.domain import check_grammar
from zephyra_cli.settings import KINDS, PROFILE, Settings, config_file, known, parse
from zephyra_cli.text import utf8
from zephyra_fusion.errors import ZephyraError, did_you_mean

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

EXAMPLE = "# Settings of zephyra; `zephyra config` shows them all. A profile begins with [profile.NAME].\n"


def set_value(name: str, text: str, profile: str | None) -> None:
    """Write a setting. ZephyraError: unknown, of the wrong kind, out of bounds, or the file cannot be written."""
    utf8(text, f"setting '{name}'")
    value = parse(name, text, of=f"setting '{name}'")
    replace(Settings(), **{name: value})
    if name == "domain":
        check_grammar(value)
    if value == "" and name == "model":
        raise ZephyraError("the model's name is empty", hint="zephyra config unset model takes the default")
    document = _read()
    _table(document, profile)[name] = value
    _write(document)


def unset(name: str, profile: str | None) -> None:
    """Take a setting out of the file, even one that zephyra does not know. ZephyraError: it is not in it."""
    document = _read()
    table = document.get(PROFILE, {}).get(profile, {}) if profile else document
    where = f"'{config_file()}'" + (f", profile '{profile}'" if profile else "")
    if name == PROFILE or name not in table:
        if name not in KINDS:
            known(name)
        others = {*table} - {PROFILE}
        hint = did_you_mean(name, others) if others else None
        raise ZephyraError(f"setting '{name}' is not in {where}", hint=hint)
    del table[name]
    if profile and not table:
        del document[PROFILE][profile]
    _write(document)


def _read() -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = config_file()
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return tomlkit.document()
    except (OSError, UnicodeDecodeError) as error:
        raise ZephyraError(f"cannot read '{path}': {error}") from None
    except TOMLKitError as error:
        raise ZephyraError(f"'{path}' is no valid TOML: {error}", hint="zephyra config edit") from None


def _write(document: TOMLDocument) -> None:
    import tomlkit

    home_file.write(config_file(), tomlkit.dumps(document))


def _table(document: TOMLDocument, profile: str | None) -> Any:
    import tomlkit

    if profile is None:
        return document
    profiles: Any = document.setdefault(PROFILE, tomlkit.table(is_super_table=True))
    return profiles.setdefault(profile, tomlkit.table())
