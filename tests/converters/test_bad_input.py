"""Mutated files of every kind and a full disk: a ZephyraError each, nothing left behind."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyra_converters.convert import Options, convert
from zephyra_fusion.errors import ZephyraError

JUNK: list[Any] = [None, -1, 0, 1.5, 2**70, "x", "", [], {}, [[]], {"a": 1}, True, [1, "x"], "\u0000", 1e308]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value, at most eight of each list or object."""
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(inner)[:24]:
        found += places(child, (*path, key))
    return found


def mutated(values: Any, draw: random.Random) -> Any:
    copy = json.loads(json.dumps(values))
    *parents, last = draw.choice(places(copy))
    place = copy
    for key in parents:
        place = place[key]
    if isinstance(place, dict) and draw.random() < 0.3:
        del place[last]
    else:
        place[last] = draw.choice(JUNK)
    return copy


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_mutated_json_of_a_checkpoint(name: str, checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder, draw, refused = tmp_path / "changed", random.Random(name), 0
    shutil.copytree(checkpoint_folder("qwen3"), folder)
    values = json.loads((folder / name).read_text())
    for _ in range(250):
        (folder / name).write_text(json.dumps(mutated(values, draw)))
        try:
            convert(folder, tmp_path / "a.gguf", Options(dry_run=True))
        except ZephyraError:
            refused += 1
    assert refused >= (40 if name.startswith("conf") or name.startswith("tokenizer.") else 0)


def test_mutated_adapter_configs(
    tiny_peft: Callable[[], Path], checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, draw, refused = tmp_path / "changed", random.Random(4), 0
    shutil.copytree(tiny_peft(), folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    for _ in range(250):
        (folder / "adapter_config.json").write_text(json.dumps(mutated(values, draw)))
        try:
            convert(folder, tmp_path / "a.gguf", Options(dry_run=True, base=checkpoint_folder("qwen3")))
        except ZephyraError:
            refused += 1
    assert refused >= 20


def test_mutated_router_configs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from zephyra_fusion.router_model import RouterConfig, RouterModel, save_router

    config = RouterConfig(vocab_size=320, labels=("law", "none"))
    save_router(RouterModel(config), config, tmp_path / "router")
    file, draw, refused = tmp_path / "router" / "config.json", random.Random(5), 0
    values = json.loads(file.read_text())
    for _ in range(250):
        file.write_text(json.dumps(mutated(values, draw)))
        try:
            convert(tmp_path / "router", tmp_path / "a.gguf", Options(dry_run=True))
        except ZephyraError:
            refused += 1
    assert refused >= 100


def test_mutated_gguf_headers_read_back(tiny_gguf: Path, tmp_path: Path) -> None:
    good, draw, refused = tiny_gguf.read_bytes(), random.Random(6), 0
    end = good.index(b"output_norm.weight") + 60
    for _ in range(600):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(end)] = draw.choice((0, 0xFF, 0x80, draw.randrange(256)))
        (tmp_path / "bad.gguf").write_bytes(data)
        try:
            convert(tmp_path / "bad.gguf", tmp_path / "back", Options(to="hf", dry_run=True))
        except ZephyraError:
            refused += 1
    assert refused > 100


def test_a_truncated_gguf_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    for length in (0, 3, 20, len(data) // 2, len(data) - 1):
        (tmp_path / "bad.gguf").write_bytes(data[:length])
        with pytest.raises(ZephyraError):
            convert(tmp_path / "bad.gguf", tmp_path / "back", Options(to="hf"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_a_full_disk_leaves_nothing(
    quantization: str, checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def no_room() -> None:  # a file may not grow beyond this: the write fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    command = [sys.executable, "-m", "zephyra_cli", "convert", str(checkpoint_folder("qwen3")), "a.gguf"]
    done = subprocess.run(
        [*command, "-q", quantization, "--no-verify"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"ZEPHYRA_HOME": str(tmp_path / "home")},
        preexec_fn=no_room,
        timeout=600,
    )
    assert done.returncode == 1 and "error: " in done.stderr and "Traceback" not in done.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name != "home"]


def test_an_interruption_leaves_nothing(
    tiny_peft: Callable[[], Path], checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int | None, text: str) -> None:
        assert [path.name for path in tmp_path.iterdir()] == [f".pack.{os.getpid()}.partial"]
        if "adapters/law" in text:
            raise KeyboardInterrupt

    options = Options(adapters={"law": tiny_peft()}, verify=False, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint_folder("qwen3"), tmp_path / "pack", options)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_quantizer_is_ended(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None, text: str) -> None:
        if "quantizing" in text and any(path.suffix == ".plain" for path in tmp_path.iterdir()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf", Options(quantization="Q4_0", progress=interrupt))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Its process is gone; another's that still runs is left alone, and so is what others named alike."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".a.gguf.{ended.pid}.partial", f".a.gguf.{ended.pid}.partial.plain"):
        (tmp_path / name).write_text("half")
    kept = {f".a.gguf.{os.getppid()}.partial", ".b.gguf.1.partial", ".a.gguf.mine.partial"}
    for name in kept:
        (tmp_path / name).write_text("another's")
    convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf", Options(quantization="F16", verify=False))
    assert {path.name for path in tmp_path.iterdir()} == {"a.gguf", *kept}


def test_too_little_room_is_said_beforehand(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(ZephyraError, match="needs [0-9]+ bytes while it is made, 1000 are free"):
        convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())
