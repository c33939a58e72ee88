"""The entry point: signals, errors, and how every run ends.

Until `interruption.install` Ctrl-C ends in Python's own traceback, so little is imported before it, and not `typing`.
"""

from __future__ import annotations

import gc
import sys

from zephyra_cli import interruption
from zephyra_cli.ending import end_as_cat, leave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process and leave with the contract's exit status."""
    gc.set_threshold(50_000)  # what imports make is no garbage: to look for some took 7 ms of each start
    try:
        interruption.install()
        leave(_run(sys.argv[1:]))
    except BrokenPipeError:
        end_as_cat()
    except interruption.Terminated as ending:
        leave(ending.status)
    except KeyboardInterrupt:
        leave(130)


def _run(arguments: list[str]) -> int:
    from zephyra_cli import ui

    ui.prepare()
    try:
        return _dispatch(arguments)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:
        from zephyra_cli import ahead

        said = ui.in_words(ahead.cause(error))
        ui.complain(said.message, said.hint)
        return 1


def _dispatch(arguments: list[str]) -> int:
    from typer._click.exceptions import ClickException  # Typer carries its own Click and exports no name for it

    from zephyra_cli import ui
    from zephyra_cli.command_line import command_line

    if arguments[:1] == ["help"]:  # as git, ollama and cargo take it
        arguments = [*arguments[1:], "--help"]
    try:
        return command_line().main(arguments, prog_name="zephyra", standalone_mode=False) or 0
    except ClickException as error:
        import io

        error.show(usage := io.StringIO())
        ui.note(usage.getvalue().rstrip("\n"))
        return error.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
