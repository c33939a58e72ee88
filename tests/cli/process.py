"""The program as a process that is watched while it runs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = [sys.executable, "-m", "zephyra_cli"]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


def start(*arguments: object, **streams: object) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], **pipes)


def wait_until_blocked(process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Until the kernel holds the program at a pipe."""
    deadline = time.monotonic() + seconds
    while not {"pipe", "poll", "select"} & set(re.split(r"[_.]", Path(f"/proc/{process.pid}/wchan").read_text())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
