"""`zephyra convert` as a process: what stands on which stream, exit status, and that the result runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zephyra_cli", *map(str, arguments)]
        environment = os.environ | {"ZEPHYRA_HOME": str(tmp_path / "home")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)

    return start


def test_json_is_one_object_on_stdout(run: Run, checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    done = run("convert", checkpoint_folder("qwen3"), "a.gguf", "-q", "F32", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["parts"][0]["verification"]["max_abs_diff"] <= 1e-3
    assert report["bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert {path.name for path in tmp_path.iterdir()} <= {"a.gguf", "home"}

    answer = run("generate", "-m", "a.gguf", "--raw", "-n", "4", "--json", "find all files")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["usage"]["completion_tokens"] <= 4


def test_a_table_and_notices(run: Run, checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    done = run("convert", checkpoint_folder("llama"), "--no-verify", "-q", "f16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["llama-F16.gguf", "llama", "F16"]
    assert "not compared" in done.stdout and "wrote llama-F16.gguf" in done.stderr
    assert (tmp_path / "llama-F16.gguf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["absent"], "'absent' does not exist", ""),
        (["."], "nothing that converts", "config.json"),
        (["SOURCE", "-q", "Q4"], "unknown quantization 'Q4'", "did you mean"),
        (["SOURCE", "-q", "banana"], "unknown quantization 'banana'", "known: BF16, F16, F32"),
        (["SOURCE", "--adapter", "law"], "--adapter 'law' is not NAME=PATH", "law=./law"),
        (["SOURCE", "--adapter", "law=absent"], "cannot read", ""),
        (["SOURCE", "--base", "."], "--base belongs to an adapter", ""),
    ],
)
def test_errors(
    arguments: list[str],
    message: str,
    hint: str,
    run: Run,
    checkpoint_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = str(checkpoint_folder("qwen3"))
    done = run("convert", *[source if argument == "SOURCE" else argument for argument in arguments])
    assert done.returncode == 1 and done.stdout == ""
    assert f"error: {message}" in done.stderr or message in done.stderr.split("error: ")[1]
    assert hint in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
def test_a_limit_on_files_is_an_error_with_a_hint(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    program = f"ulimit -f 100; exec {sys.executable} -m zephyra_cli convert {checkpoint_folder('llama')} a.gguf"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert "cannot plan the sizes in" in done.stderr and "File too large" in done.stderr and "ulimit -f" in done.stderr


def test_dry_run_says_would(run: Run, checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    done = run("convert", checkpoint_folder("qwen3"), "a.gguf", "--dry-run")
    assert done.returncode == 0 and "would write a.gguf" in done.stderr and "~" in done.stdout
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_ctrl_c_on_a_terminal_leaves_nothing_and_the_next_run_finishes(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from pseudo_terminal import Terminal

    arguments = ("convert", checkpoint_folder("qwen3"), "a.gguf", "-q", "Q8_0")
    home = {"ZEPHYRA_HOME": str(tmp_path / "home")}
    with Terminal(*arguments, size=(100, 24), cwd=tmp_path, **home) as terminal:
        while not list(tmp_path.glob(".a.gguf.*.partial")):
            terminal.reads()
            assert terminal.process.poll() is None, terminal.all
        terminal.types("\x03")
        assert terminal.ends() == 130 and "Traceback" not in terminal.all
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}
    with Terminal(*arguments, size=(100, 24), cwd=tmp_path, **home) as terminal:
        assert terminal.ends() == 0
    assert re.search(r"\d[.\d]*/\d[.\d]* [kM]B .*\d:\d\d:\d\d", terminal.plain), "bytes and the time left"
    assert (tmp_path / "a.gguf").is_file()
