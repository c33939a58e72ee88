"""Draw README's picture from the real program: `python docs/screenshot.py` writes assets/screenshot.svg.

Every command runs on a pseudo-terminal of its own, as a user would type it; what it shows is drawn by rich.
"""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parents[1] / "assets" / "screenshot.svg"
COMMANDS = [
    'zephyra generate --domain auto --stats "Regex for strings of at least 3 letters"',
    'zephyra generate --domain auto --stats "List all files larger than 100MB in this directory"',
    'zephyra generate --stats "SQL for: how many wins when the team is chicago? Table: t(team, wins, year)"',
    "zephyra domains",
]


def on_a_terminal(command: str) -> str:
    """What the command shows on a terminal of 136 columns, both streams."""
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": "136", "TERM": "xterm-256color"}
    program = [sys.executable, "-m", "zephyra_cli", *shlex.split(command)[1:]]
    child = subprocess.Popen(program, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux: the last writer has closed the terminal
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    if child.wait():
        raise SystemExit(f"{command} ended with {child.returncode}:\n{shown.decode()}")
    return shown.decode().replace("\r\n", "\n")


def main() -> None:
    console = Console(record=True, width=136, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for command in COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), soft_wrap=True)
        console.print(Text.from_ansi(on_a_terminal(command).rstrip("\n")), soft_wrap=True)
        console.print()
    TARGET.write_text(console.export_svg(title="zephyra"), encoding="utf-8")


if __name__ == "__main__":
    main()
