"""How long from Enter to the first routed token, whole process, against `import llama_cpp` alone?

`zephyra generate -n 1 -d auto "…"` and `python -c "import llama_cpp"` in turn, in one run; the ratio of the medians.
What the program imports is read from `-X importtime`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from report import Report
from subject import arguments

PROMPT = "find all files larger than 100 MB"
FORBIDDEN = ("torch", "rich", "numpy", "gguf", "tokenizers", "llama_cpp")
MUST_NOT = ("torch", "rich")  # the target's two; the others would cost time as well


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=15, help="of each of the two (default: %(default)s)")
    options = parser.parse_args()
    asked = ["generate", "-m", options.model, "-n", "1", "--domain", "auto", PROMPT]
    if options.threads:
        asked[1:1] = ["--threads", str(options.threads)]
    ours, yardstick = [*program(), *asked], [sys.executable, "-c", "import llama_cpp"]
    times: dict[str, list[float]] = {"ours": [], "yardstick": []}
    for run in range(options.runs + 1):
        for name, command in (("ours", ours), ("yardstick", yardstick)):
            taken = _seconds(command)
            if run:  # the first one of each fetches the files from the disk
                times[name].append(taken)
    mine, theirs = (1000 * statistics.median(times[name]) for name in ("ours", "yardstick"))
    report = Report("start", f"{options.model}, {options.runs} runs of each")
    report.figure("ours_ms", "zephyra generate -n 1 -d auto: median", mine, unit="ms")
    report.figure("ours_min_ms", "  the fastest", 1000 * min(times["ours"]), unit="ms")
    report.figure("import_ms", 'python -c "import llama_cpp": median', theirs, unit="ms")
    report.figure("ratio", "ratio of the medians", mine / theirs, at_most=1.5)
    found = imported([sys.executable, "-X", "importtime", "-m", "zephyra_cli", *asked])
    for name in FORBIDDEN:
        bound = 0 if name in MUST_NOT else None
        report.figure(f"imports_{name}", f"imports {name}", int(name in found), at_most=bound)
    report.finish(options.json)


def program() -> list[str]:
    """The installed console script; where there is none, the module, which takes the same path."""
    script = Path(sysconfig.get_path("scripts"), "zephyra")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "zephyra_cli"]


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return taken


def imported(command: Sequence[str]) -> set[str]:
    """The top-level packages that a `-X importtime` command loads."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


if __name__ == "__main__":
    main()
