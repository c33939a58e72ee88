"""`zephyra config`: what is set, where it came from, and how to change it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zephyra_cli.commands.options import Json, Profile, subcommand_follows
from zephyra_cli.complete import setting_names, setting_values

config = typer.Typer(add_completion=False, rich_markup_mode=None, help="The settings and where each comes from.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A setting's name.", autocompletion=setting_names)]
InProfile = Annotated[str | None, typer.Option("--profile", metavar="NAME", help="In this profile, not for every run.")]


@config.callback(invoke_without_command=True)
def show(context: typer.Context, profile: Profile = None, json: Json = False) -> None:
    """The settings and where each comes from: default < config.toml < profile < ZEPHYRA_* < options."""
    if subcommand_follows(context):
        return
    from zephyra_cli import settings, ui

    found = _origins(profile)
    path = settings.config_file()
    profiles = sorted(settings.read_file(path).get(settings.PROFILE, {}))
    if json:
        values = {name: {"value": value, "source": source} for name, (value, source) in found.items()}
        ui.write_json({"settings": values, "file": str(path), "profiles": profiles})
        return
    rows = [(name, _shown(value), source) for name, (value, source) in found.items()]
    ui.write_table([("SETTING", "VALUE", "FROM"), *rows])
    if profiles:
        ui.note(f"profiles: {', '.join(profiles)}")


@config.command()
def get(name: Name, profile: Profile = None) -> None:
    """Print the value of one setting."""
    from zephyra_cli import settings, ui
    from zephyra_fusion.errors import ZephyraError

    value, _ = _origins(profile)[settings.known(name)]
    if value is None:
        raise ZephyraError(f"setting '{name}' is not set, the model decides")
    ui.write(_shown(value) + "\n")


@config.command("set")
def set_(
    name: Name,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its value.", autocompletion=setting_values)],
    profile: InProfile = None,
) -> None:
    """Write a setting to config.toml."""
    from zephyra_cli import config_file

    config_file.set_value(name, value, profile)


@config.command()
def unset(name: Name, profile: InProfile = None) -> None:
    """Take a setting out of config.toml."""
    from zephyra_cli import config_file

    config_file.unset(name, profile)


@config.command()
def path() -> None:
    """Print where config.toml lies, or would lie."""
    from zephyra_cli import settings, ui

    ui.write(f"{settings.config_file()}\n")


@config.command()
def edit() -> None:
    """Open config.toml in $VISUAL or $EDITOR, and check it afterwards."""
    from zephyra_cli import config_file, home_file, settings

    home_file.edit(settings.config_file(), beginning=config_file.EXAMPLE)
    values = settings.read_file(settings.config_file())
    for profile in (None, *values.get(settings.PROFILE, {})):
        settings.load({settings.PROFILE: profile})


def _origins(profile: str | None) -> dict[str, tuple[Any, str]]:
    """Each setting: its value, None where the model decides, and where that comes from."""
    from dataclasses import asdict

    from zephyra_cli import settings

    found = {name: (value, "default") for name, value in asdict(settings.Settings()).items()}
    for source in settings.sources({settings.PROFILE: profile}):
        found |= {name: (value, source.name) for name, value in source.values.items()}
    settings.load({settings.PROFILE: profile})
    return found


def _shown(value: Any) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
