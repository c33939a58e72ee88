"""A tiny pack, the program as a process, and a home folder that is never the real one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import PROGRAM, Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ZEPHYRA_HOME in a temporary folder, no other setting in the environment, and the packages found by processes."""
    for name in [name for name in os.environ if name.startswith("ZEPHYRA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZEPHYRA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZEPHYRA_THREADS", "1")  # the tiny model needs no second one, a busy machine pays for it
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "converters")]))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny_pack(
    tiny_gguf: Path, tiny_adapters: dict[str, Path], tiny_router: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole pack of random weights: domains shell and sql, a router, a manifest with hashes."""
    root = tmp_path_factory.mktemp("packs") / "tiny"
    (root / "adapters").mkdir(parents=True)
    sources = {
        "base.gguf": tiny_gguf,
        "router.gguf": tiny_router,
        "adapters/shell.gguf": tiny_adapters["a"],
        "adapters/sql.gguf": tiny_adapters["b"],
    }
    for name, source in sources.items():
        shutil.copy(source, root / name)
    manifest = {
        "format": "zephyra-pack",
        "version": 1,
        "name": "tiny",
        "description": "random weights",
        "license": "CC0-1.0",
        "base": {"file": "base.gguf", "architecture": "qwen3", "parameters": 123456, "context_length": 512},
        "adapters": {
            "shell": {"file": "adapters/shell.gguf", "description": "commands", "rank": 4},
            "sql": {"file": "adapters/sql.gguf", "description": "queries", "rank": 8},
        },
        "router": {"file": "router.gguf", "labels": ["shell", "sql", "none"], "threshold": 0.0, "max_tokens": 128},
        "draft": None,
        "generation": {"temperature": 0.0},
        "files": {
            name: {
                "sha256": hashlib.sha256((root / name).read_bytes()).hexdigest(),
                "size": (root / name).stat().st_size,
                "license": "CC0-1.0",
                "source": "tests",
            }
            for name in sources
        },
    }
    (root / "zephyra.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture
def change_pack(tiny_pack: Path, tmp_path: Path) -> Callable[..., Path]:
    """function(**keys) -> Path: a copy of tiny_pack with these top keys of the manifest changed."""

    def change(**keys: Any) -> Path:
        root = tmp_path / "changed"
        shutil.copytree(tiny_pack, root)
        manifest = json.loads((root / "zephyra.json").read_text()) | keys
        (root / "zephyra.json").write_text(json.dumps(manifest))
        return root

    return change


@pytest.fixture
def zephyra() -> Run:
    """function(*arguments, stdin=b"", **environment) -> the finished process, stdin a pipe that is closed."""

    def run(*arguments: object, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=os.environ | environment,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """function(*arguments) -> status, stdout, stderr of the command line, run in this process: no start to wait for."""
    from zephyra_cli.app import _run

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = _run([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return run
