"""What we may use of a machine, told from a file system that looks like Linux's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zephyra_cli import devices


@pytest.fixture(autouse=True)
def forget() -> None:
    devices.usable_cores.cache_clear()
    devices._first_processor.cache_clear()


def groups(monkeypatch: pytest.MonkeyPatch, root: Path, line: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(devices, "_CGROUP_ROOT", root)
    monkeypatch.setattr(devices, "_OWN_GROUPS", root / "own")
    (root / "own").write_text(line)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(devices, "_installed_memory", lambda: 64 << 30)


@pytest.mark.parametrize(
    ("line", "files", "cores", "memory"),
    [
        ("0::/\n", {}, 16, 64 << 30),
        ("0::/\n", {"cpu.max": "250000 100000\n", "memory.max": "1073741824\n"}, 3, 1 << 30),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1, 64 << 30),
        ("0::/a/b\n", {"a/memory.max": "5000\n", "a/b/memory.max": "9000\n"}, 16, 5000),
        ("0::/gone\n", {"cpu.max": "damaged\n"}, 16, 64 << 30),
        (
            "4:cpu,cpuacct:/x\n3:memory:/x\n",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                "memory/x/memory.limit_in_bytes": "7000\n",
            },
            4,
            7000,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16, 64 << 30),
    ],
)
def test_control_groups_limit_cores_and_memory(
    line: str, files: dict[str, str], cores: int, memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    groups(monkeypatch, tmp_path, line, files)
    assert devices.usable_cores() == cores
    assert devices.usable_memory() == memory


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    block = "processor\t: 0\nmodel name\t: Some CPU\nmodel\t\t: 143\ncpu family\t: 6\nflags\t\t: avx2 amx_tile\n"
    cpuinfo.write_text((block + "\n") * 300)
    monkeypatch.setattr(devices, "_CPUINFO", cpuinfo)
    assert devices.cpu_model() == "Some CPU cpu family 6 model 143"
    assert devices.cpu_flags() == {"avx2", "amx_tile"}
    monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "none")
    devices._first_processor.cache_clear()
    assert devices.cpu_flags() == frozenset() and devices.cpu_model()


def test_this_machine_is_described_without_torch() -> None:
    script = "import sys; from zephyra_cli.devices import machine; print(machine()); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Machine(cpu=")
    facts = devices.machine()
    assert 1 <= facts.usable_cores <= facts.cores
    assert facts.cpu and 0 < facts.usable_memory <= facts.memory
