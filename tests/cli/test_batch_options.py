"""`generate --input`: which options a batch has, and which of them its answers depend on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from zephyra_cli.batch_file import Output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "list files", "max_tokens": 2}\n{"prompt": "SELECT", "max_tokens": 2}\n')
    return path


@pytest.mark.parametrize("option", [("--prompt-cache", "cache"), ("--draft", "ngram"), ("--draft", "draft.gguf")])
def test_what_a_batch_cannot_do_is_refused(
    option: tuple[str, str], zephyra: Run, tiny_pack: Path, source: Path
) -> None:
    done = zephyra("generate", "-m", tiny_pack, "--input", source, *option)
    assert (done.returncode, done.stdout) == (2, b"") and option[0] in done.stderr.decode()


@pytest.mark.parametrize("options", [(), ("--draft", "auto"), ("--draft", "none")])
@pytest.mark.parametrize("backend", ["llama", "torch"])
def test_a_setting_is_left_out_and_not_pretended(
    backend: str, options: tuple[str, ...], zephyra: Run, tiny_pack: Path, source: Path, tmp_path: Path
) -> None:
    settings = {"ZEPHYRA_DRAFT": "ngram", "ZEPHYRA_PROMPT_CACHE": str(tmp_path / "cache")}
    arguments = ("generate", "-m", tiny_pack, "--backend", backend, "--input", source)
    done = zephyra(*arguments, *options, **settings)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        expected: dict[str, Any] = {"drafted": 0, "accepted": 0, "draft": "none", "note": "a batch drafts nothing"}
        assert json.loads(line)["speculation"] == expected
    assert not (tmp_path / "cache").exists()


def test_another_file_under_the_same_name_is_another_model(
    inside: Callable[..., tuple[int, str, str]],
    tiny_gguf: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch that was begun goes on with the same bare file, kv-type and context only."""
    monkeypatch.setattr(Output, "finish", Output.close)  # as if something had ended it
    bases = [tmp_path / name / "model.gguf" for name in "ab"]
    for base in bases:
        base.parent.mkdir()
        shutil.copyfile(tiny_gguf, base)

    def run(base: Path, *options: object) -> str:
        arguments = ("generate", "-m", base, "--no-isolate", "--raw", "--input", source)
        return inside(*arguments, "--output", tmp_path / "out", *options)[2]

    assert "2 answered" in run(bases[0]) and "0 answered" in run(bases[0])
    begun = "begun with other prompts or options"
    assert begun in run(bases[1])
    assert begun in run(bases[0], "--kv-type", "f32") and begun in run(bases[0], "--context", 64)
    os.utime(bases[0], ns=(0, 0))
    assert begun in run(bases[0])
