"""The tree of commands. A command's module is imported when it is called or listed, never before."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from inspect import get_annotations
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zephyra_cli.ending import end_as_cat, leave
from zephyra_cli.interruption import Terminated
from zephyra_fusion import __version__
from zephyra_fusion.errors import did_you_mean

COMMANDS = tuple(
    """
    generate chat shell log replay
    route pull push models domains
    convert train eval bench
    serve
    templates config completion doctor
    """.split()
)
"""Each is zephyra_cli/commands/NAME.py with a function (or, for a group, a Typer) of that name in it."""


class Commands(TyperGroup):
    """The commands by name, and the endings that Typer would swallow."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:  # the Tab key asks
                return None
            ctx.fail(f"No such command '{cmd_name}'; {did_you_mean(cmd_name, COMMANDS)}")
        command = getattr(import_module(f"zephyra_cli.commands.{cmd_name}"), cmd_name)
        if not isinstance(command, typer.Typer):
            function, command = command, typer.Typer(add_completion=False, rich_markup_mode=None)
            function.__annotations__ = get_annotations(function, eval_str=True)  # once; Typer would do it four times
            command.command(cmd_name)(function)
        return typer.main.get_command(command)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            end_as_cat()
        except Terminated as ending:
            leave(ending.status)


def command_line() -> Any:
    """The root command, ready for `main`."""
    if "_ZEPHYRA_COMPLETE" in os.environ:
        from typer.completion import completion_init

        loaded: dict[str, Any] = sys.modules
        loaded.setdefault("rich", None)  # Typer would load it to strip markup: 0.1 s a Tab
        completion_init()
    app = typer.Typer(
        cls=Commands,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={"help_option_names": ["--help", "-h"]},
    )

    @app.callback()
    def zephyra(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
        ] = False,
    ) -> None:
        """One local model, many specialists: a tiny router picks the domain, the answer streams."""

    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"zephyra {__version__}")
        raise typer.Exit
