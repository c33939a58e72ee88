"""How long does the user wait for `zephyra --help`, for the Tab key, and until `zephyra chat` takes the first word?

`zephyra --help`, the help of a command, and two completions (names of commands, domains of the default model), in turn
with `python -c "import typer"`, in one run; medians. Each may take 150 ms, or 2.5 times the import, whichever is more.
The chat runs on a pseudo-terminal, from the start of its process until what is typed appears behind the prompt.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from pseudo_terminal import Terminal
from report import Report
from start import program
from subject import arguments

MOST_MS, MOST_RATIO = 150.0, 2.5
MOST_CHAT_MS = 1000.0
COMPLETE = {"_ZEPHYRA_COMPLETE": "complete_bash"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=15, help="of each (default: %(default)s)")
    options = parser.parse_args()
    commands: dict[str, tuple[str, Sequence[str], Mapping[str, str]]] = {
        "typer": ('python -c "import typer"', [sys.executable, "-c", "import typer"], {}),
        "help": ("zephyra --help", [*program(), "--help"], {}),
        "generate_help": ("zephyra generate --help", [*program(), "generate", "--help"], {}),
        "tab_command": ("zephyra ge<Tab>", program(), {**COMPLETE, "COMP_WORDS": "zephyra ge", "COMP_CWORD": "1"}),
        "tab_domain": (
            "zephyra generate -d s<Tab>",
            program(),
            {**COMPLETE, "COMP_WORDS": f"zephyra generate -m {options.model} -d s", "COMP_CWORD": "5"},
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in [*commands, "chat"]}
    for run in range(options.runs + 1):
        taken = {name: _milliseconds(command, environment) for name, (_, command, environment) in commands.items()}
        taken["chat"] = _until_it_listens("chat", "-m", options.model, "--no-log")
        if run:  # the first one of each fetches the files from the disk
            for name, milliseconds in taken.items():
                times[name].append(milliseconds)
    medians = {name: statistics.median(all_taken) for name, all_taken in times.items()}
    bound = max(MOST_MS, MOST_RATIO * medians["typer"])
    report = Report("responsiveness", f"{options.runs} runs of each")
    for name, (text, _, _) in commands.items():
        at_most = None if name == "typer" else bound
        report.figure(f"{name}_ms", f"{text}: median", medians[name], unit="ms", at_most=at_most)
    text = "zephyra chat, until it takes a word: median"
    report.figure("chat_ms", text, medians["chat"], unit="ms", at_most=MOST_CHAT_MS)
    report.finish(options.json)


def _until_it_listens(*arguments: str) -> float:
    start = time.perf_counter()
    with Terminal(*arguments, size=(80, 24), TERM="xterm-256color") as chat:
        chat.sees("[>!]")
        chat.types("w")
        chat.sees("w")
        return 1000 * (time.perf_counter() - start)


def _milliseconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | environment
    )
    taken = 1000 * (time.perf_counter() - start)
    if done.returncode or (environment and not done.stdout.strip()):
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or 'nothing was offered'}")
    return taken


if __name__ == "__main__":
    main()
