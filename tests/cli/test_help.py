"""The help of every command, held against help.txt. `python tests/cli/test_help.py` writes that file anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # as a program, this file stands alone
    from tests.cli.process import Run

SNAPSHOT = Path(__file__).with_name("help.txt")
COMMANDS = [
    "",
    "generate",
    "chat",
    "shell",
    "log",
    "log search",
    "log show",
    "log export",
    "log delete",
    "replay",
    "route",
    "pull",
    "push",
    "models",
    "models show",
    "models remove",
    "models verify",
    "models clean",
    "domains",
    "domains add",
    "domains remove",
    "domains merge",
    "domains prune",
    "convert",
    "train",
    "eval",
    "serve",
    "bench",
    "templates",
    "templates show",
    "templates new",
    "templates edit",
    "templates remove",
    "config",
    "config get",
    "config set",
    "config unset",
    "config path",
    "config edit",
    "completion",
    "doctor",
]


def spoken() -> str:
    """`--help` of every command, 100 columns wide."""
    environment = os.environ | {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    parts = []
    for command in COMMANDS:
        run = [sys.executable, "-m", "zephyra_cli", *command.split(), "--help"]
        text = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
        parts.append(f"$ zephyra {command} --help".replace("  ", " ") + "\n" + text)
    return "\n".join(parts)


def test_the_help_fits_the_truth() -> None:
    assert spoken() == SNAPSHOT.read_text(encoding="utf-8"), "python tests/cli/test_help.py writes the new help down"


def test_every_command_is_in_the_snapshot() -> None:
    from zephyra_cli.command_line import command_line

    root = command_line()
    context = root.context_class(root)
    existing = {""}
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        existing |= {name, *(f"{name} {inner}" for inner in getattr(command, "commands", ()))}
    assert existing == set(COMMANDS)


@pytest.mark.parametrize(
    ("asked", "same"),
    [("-h", "--help"), ("help", "--help"), ("domains add -h", "domains add --help"), ("help log", "log --help")],
)
def test_help_is_asked_for_as_elsewhere(zephyra: Run, asked: str, same: str) -> None:
    run, wanted = zephyra(*asked.split()), zephyra(*same.split())
    assert (run.returncode, run.stdout, run.stderr) == (0, wanted.stdout, b"") and b"Usage: zephyra" in run.stdout


if __name__ == "__main__":
    SNAPSHOT.write_text(spoken(), encoding="utf-8")
