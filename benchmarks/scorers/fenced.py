"""Foreign code and foreign patterns run in a process of their own, with little time, little memory and no files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 5, 1 << 30


def run_fenced(module: str, task: dict[str, Any], seconds: int = SECONDS) -> dict[str, Any] | None:
    """`module.main(task)` of this package in a child; None where it died or took longer than `seconds`."""
    import subprocess  # here, for the child does without: it starts hundreds of times
    import tempfile

    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
    program += f"from scorers import fenced, {module}; fenced.child({module}.main, {seconds})"
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", program],
                input=json.dumps(task),
                capture_output=True,
                text=True,
                timeout=2 * seconds + 5,
                cwd=empty,
                env={"PYTHONHASHSEED": "0"},
            )
        except subprocess.TimeoutExpired:
            return None
    if done.returncode:
        return None
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def child(work: Any, seconds: int) -> None:
    """Inside the child: limits first, then the task from stdin, the result to the stdout that we alone hold."""
    import os
    import resource

    result = os.fdopen(os.dup(1), "w")
    task = json.load(sys.stdin)
    with open(os.devnull, "r+") as nothing:
        for stream in (0, 1, 2):
            os.dup2(nothing.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # the result is written through it, too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(work(task), result)
    result.flush()
    os._exit(0)
