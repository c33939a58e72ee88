"""How long from Enter to the first routed token, whole process, against `import llama_cpp` alone?

`zephyra generate -n 1 -d auto "…"` and `python -c "import llama_cpp"` in turn, in one run; the ratio of the medians.
With `llama-completion` (on the PATH or by --llama-completion; built as llama-bench is, see speed.py), it is asked for
one token of the same file in the same libraries, as the third in each turn. --processor-time counts what the processes
compute instead of how long they take: for machines that do other work as well. What the program imports is read from
`-X importtime`.
"""

from __future__ import annotations

import compileall
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from report import Report
from speed import installed_libraries
from subject import Subject, arguments

import zephyra_cli
import zephyra_converters
import zephyra_fusion

PROMPT = "find all files larger than 100 MB"
FORBIDDEN = ("torch", "rich", "numpy", "gguf", "tokenizers", "llama_cpp")
MUST_NOT = ("torch", "rich")  # the target's two; the others would cost time as well


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=15, help="of each of the two (default: %(default)s)")
    parser.add_argument("--llama-completion", type=Path, default=shutil.which("llama-completion"))
    parser.add_argument("--processor-time", action="store_true", help="instead of the wall clock")
    options = parser.parse_args()
    from zephyra_cli.devices import usable_cores

    asked = ["generate", "-m", options.model, "-n", "1", "--domain", "auto", PROMPT]
    if options.threads:
        asked[1:1] = ["--threads", str(options.threads)]
    ours, yardstick = [*program(), *asked], [sys.executable, "-c", "import llama_cpp"]
    sides: dict[str, tuple[list[str], dict[str, str]]] = {
        "ours": (ours, {**os.environ}),
        "yardstick": (yardstick, {**os.environ}),
    }
    if options.llama_completion:
        pack = Subject.of(options).pack
        command = [str(options.llama_completion), "-m", str(pack.path(pack.base)), "-p", PROMPT, "-n", "1", "-no-cnv"]
        command += ["--no-warmup", "-t", str(options.threads or usable_cores())]
        sides["completion"] = (command, installed_libraries())
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(options.runs + 1):
        for name, (command, environment) in sides.items():
            taken = _seconds(command, environment, options.processor_time)
            if run:  # the first one of each fetches the files from the disk
                times[name].append(taken)
    medians = {name: 1000 * statistics.median(found) for name, found in times.items()}
    mine, theirs = medians["ours"], medians["yardstick"]
    report = Report("start", f"{options.model}, {options.runs} runs of each")
    report.figure("ours_ms", "zephyra generate -n 1 -d auto: median", mine, unit="ms")
    report.figure("ours_min_ms", "  the fastest", 1000 * min(times["ours"]), unit="ms")
    report.figure("import_ms", 'python -c "import llama_cpp": median', theirs, unit="ms")
    report.figure("ratio", "ratio of the medians", mine / theirs, at_most=1.5)
    if completion := medians.get("completion"):
        report.figure("completion_ms", "llama-completion -n 1: median", completion, unit="ms")
        report.figure("completion_ratio", "ratio to llama-completion", mine / completion, at_most=2.0)
    found = imported([sys.executable, "-X", "importtime", "-m", "zephyra_cli", *asked])
    for name in FORBIDDEN:
        bound = 0 if name in MUST_NOT else None
        report.figure(f"imports_{name}", f"imports {name}", int(name in found), at_most=bound)
    report.finish(options.json)


def program() -> list[str]:
    """The installed console script; where there is none, the module, which takes the same path.

    Of a checkout the bytecode is written first, as pip does when it installs: where PYTHONDONTWRITEBYTECODE is set (as
    on many build machines), each start would compile some 60 modules anew, for 40 ms.
    """
    for package in (zephyra_cli, zephyra_converters, zephyra_fusion):
        compileall.compile_dir(Path(str(package.__file__)).parent, quiet=1)
    script = Path(sysconfig.get_path("scripts"), "zephyra")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "zephyra_cli"]


def _seconds(command: Sequence[str], environment: dict[str, str], processor: bool) -> float:
    before, start = _spent(), time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    taken = _spent() - before if processor else time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return taken


def _spent() -> float:
    """Processor time of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def imported(command: Sequence[str]) -> set[str]:
    """The top-level packages that a `-X importtime` command loads."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


if __name__ == "__main__":
    main()
