"""What this machine has, found out without importing torch: processor, usable cores and memory, accelerators."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from zephyra_fusion.values import dataclass, field

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts for `doctor`: memory in bytes, `accelerators` as name by device ("cuda:0", "mps")."""

    cpu: str
    cpu_flags: frozenset[str]
    cores: int
    usable_cores: int
    memory: int
    usable_memory: int
    accelerators: dict[str, str] = field(default_factory=dict)


def machine() -> Machine:
    return Machine(
        cpu=cpu_model(),
        cpu_flags=cpu_flags(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory=_installed_memory(),
        usable_memory=usable_memory(),
        accelerators=accelerators(),
    )


@cache
def _first_processor() -> dict[str, str]:
    """The first block of /proc/cpuinfo; the kernel writes it as it is read, so hundreds of cores cost nothing."""
    try:
        with open(_CPUINFO, "rb") as file:
            text = file.read(8192).decode("utf-8", "replace")
    except OSError:
        return {}
    block = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}


def cpu_model() -> str:
    """The processor's name, with family, model and stepping where Linux tells them."""
    facts = _first_processor()
    if name := facts.get("model name"):
        return " ".join([name, *(f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts)])
    import platform

    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them ("avx2", "amx_tile", on ARM "asimd"); empty where they are not told."""
    facts = _first_processor()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


@cache
def usable_cores() -> int:
    """Cores that this process may keep busy: its affinity, and the quota of its control groups, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups("cpu"):
        quota, period = (_words(folder / "cpu.max") + ["", ""])[:2]
        if not quota:
            quota = "".join(_words(folder / "cpu.cfs_quota_us"))
            period = "".join(_words(folder / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


def usable_memory() -> int:
    """Bytes that this process may have at most: the memory installed, or the limit of its control groups."""
    memory = _installed_memory()
    for folder in _control_groups("memory"):
        limit = "".join(_words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes"))
        if limit.isdigit():
            memory = min(memory, int(limit))
    return memory


def available_memory() -> int | None:
    """Bytes that this process can take without swapping or being killed; None where Linux does not tell."""
    found = [int(line.split()[1]) * 1024 for line in _lines(_MEMINFO) if line.startswith("MemAvailable:")]
    for folder in _control_groups("memory"):
        limit = "".join(_words(folder / "memory.max"))
        used = "".join(_words(folder / "memory.current"))
        if limit.isdigit() and used.isdigit():
            files = [
                int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith("inactive_file ")
            ]
            found.append(max(0, int(limit) - int(used) + sum(files)))  # pages of files are given back when needed
    return min(found, default=None)


def _installed_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


def accelerators() -> dict[str, str]:
    """GPUs by device name, as the driver names them; what torch can do with them is torch's to say."""
    if sys.platform == "darwin":
        import platform

        return {"mps": "Apple GPU"} if platform.machine() == "arm64" else {}
    found = []
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = card.read_text(errors="replace").splitlines()
        found.append(next((line.partition(":")[2].strip() for line in lines if line.startswith("Model")), "NVIDIA GPU"))
    return {f"cuda:{number}": name for number, name in enumerate(found or _nvidia_smi())}


def _nvidia_smi() -> list[str]:
    """Where the driver has no /proc (WSL, Windows), its tool is asked, for five seconds at most."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups from its own up to the root, version 2 and version 1."""
    for line in _lines(_OWN_GROUPS):
        _, controllers, name = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUP_ROOT / controllers if controllers else _CGROUP_ROOT
        folder = root / name.strip("/")
        yield folder
        while folder != root:
            folder = folder.parent
            yield folder


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
