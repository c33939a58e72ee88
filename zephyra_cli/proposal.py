"""A proposed shell command: taken from an answer, shown, edited, and run only when the user says so."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from zephyra_cli import ui
from zephyra_cli.code_block import first_code_block
from zephyra_cli.text import visible
from zephyra_fusion.errors import ZephyraError

QUESTION = "run it? [y]es, [e]dit, [N]o: "


def command_in(answer: str) -> str:
    """The command alone: out of its fences, without the prompt sign of an example. ZephyraError: there is none."""
    block = first_code_block(answer)
    command = (answer if block is None else block).strip()
    if command.count("`") == 2 and command[0] == command[-1] == "`":  # inline code, no substitution
        command = command[1:-1].strip()
    command = command.removeprefix("$ ")
    if not command:
        raise ZephyraError("the model proposed no command", hint="say it in other words")
    return command


def check(command: str) -> str:
    """The command, for a pipe or a key binding to take. ZephyraError: it holds what nobody would see in a line."""
    if visible(command) != command:
        raise ZephyraError(f"the proposed command holds control characters: {visible(command)}")
    return command


def decide(command: str) -> str | None:
    """Show it and ask; the command that is to be run, None where it was dropped. Only `y` and `yes` run."""
    while True:
        ui.write(command + "\n")
        runnable = visible(command) == command
        if not runnable:
            ui.note("note: it holds control characters, written out above; it can be edited, not run")
        reply = _line(QUESTION if runnable else "[e]dit, [N]o: ").strip().lower()
        if reply in ("y", "yes") and runnable:
            return command
        if reply not in ("e", "edit"):
            return None
        command = _edited(command)
        if not command:
            return None


def run(command: str) -> NoReturn:
    """Become the user's shell with this command: its terminal, its signals and its exit status are the shell's."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        import subprocess

        sys.exit(subprocess.run(command, shell=True).returncode)
    import signal

    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both, and whom it becomes would too
        signal.signal(ignored, signal.SIG_DFL)
    shell = user_shell()
    try:
        os.execvp(shell, [shell, "-c", command])
    except OSError as error:
        raise ZephyraError(f"cannot run the shell '{shell}': {error.strerror}", hint="set SHELL") from None


def user_shell() -> str:
    return os.environ.get("SHELL") or "sh"


def _line(question: str) -> str:
    """A line typed behind the question; the end of the input is an empty one."""
    print(question, end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline()
    except KeyboardInterrupt:
        ui.note("")
        raise


def _edited(command: str) -> str:
    """The command as the user leaves it; nothing where the editing was given up."""
    if not ui.fancy(sys.stdout):
        return _line("the command: ").strip()
    from zephyra_cli.line_editor import LineEditor

    try:
        return LineEditor().read("$ ", command).strip()
    except EOFError:
        return ""
