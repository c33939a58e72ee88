"""How long does the user wait for `zephyra --help` and for the Tab key, whole process?

`zephyra --help`, the help of a command, and two completions (names of commands, domains of the default model), in turn
with `python -c "import typer"`, in one run; medians. Each may take 150 ms, or 2.5 times the import, whichever is more.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from report import Report
from start import program
from subject import arguments

MOST_MS, MOST_RATIO = 150.0, 2.5
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
    times: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(options.runs + 1):
        for name, (_, command, environment) in commands.items():
            taken = _milliseconds(command, environment)
            if run:  # the first one of each fetches the files from the disk
                times[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    bound = max(MOST_MS, MOST_RATIO * medians["typer"])
    report = Report("responsiveness", f"{options.runs} runs of each")
    for name, (text, _, _) in commands.items():
        at_most = None if name == "typer" else bound
        report.figure(f"{name}_ms", f"{text}: median", medians[name], unit="ms", at_most=at_most)
    report.finish(options.json)


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
