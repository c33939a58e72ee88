"""Prompts on disk: found again by later processes, never believed when anything about them has changed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import PROGRAM, Run
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.prompt_folder import MAGIC, PromptFolder
from zephyra_fusion.types import SamplingParams

PROMPT = [7 + i * i % 300 for i in range(150)]
LARGE = 1 << 30


class Reader:
    """A new process each time, as far as the cache can see: a backend that answers once."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], folder: Path | None, limit: int = LARGE) -> None:
        self.base, self.adapters, self.folder, self.limit = base, adapters, folder, limit
        self.said: list[str] = []

    def answer(self, prompt: list[int], weights: Mapping[str, float] | None = None, **options: Any) -> list[int]:
        folder = PromptFolder(self.folder, self.limit, self.said.append) if self.folder else None
        settings = {"kv_type": "f32", "flash_attention": False, **options}
        backend = LlamaBackend(self.base, threads=1, prompt_folder=folder, **settings)
        for name in weights or ():
            backend.add_adapter(name, self.adapters[name])
        backend.set_adapters(weights or {})
        tokens = [token.id for token in backend.generate(prompt, SamplingParams(max_tokens=8))]
        self.cached = backend.usage.cached_tokens
        backend.close()
        return tokens


@pytest.fixture
def reader(tiny_gguf: Path, tiny_adapters: dict[str, Path], tmp_path: Path) -> Reader:
    return Reader(tiny_gguf, tiny_adapters, tmp_path / "prompts")


@pytest.fixture
def cold(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> Reader:
    return Reader(tiny_gguf, tiny_adapters, None)


def files(reader: Reader) -> list[Path]:
    assert reader.folder is not None
    return sorted(reader.folder.glob("*.prompt*"))


def test_a_prompt_is_read_once_for_all_processes(reader: Reader, cold: Reader) -> None:
    expected = cold.answer(PROMPT)
    assert reader.answer(PROMPT) == expected and reader.cached == 0
    assert reader.answer(PROMPT) == expected and reader.cached == len(PROMPT) - 1
    other = [*PROMPT[:130], 9, 8, 7]
    assert reader.answer(other) == cold.answer(other) and reader.cached == 130
    assert len(files(reader)) == 1, "twenty new tokens are not worth a file"
    longer = PROMPT + PROMPT[:80]
    assert reader.answer(longer) == cold.answer(longer) and reader.cached == 150
    assert len(files(reader)) == 1, "the longer prompt holds the shorter one"
    assert reader.answer(PROMPT) == expected and reader.cached == len(PROMPT) - 1
    assert reader.said == []


def test_adapters_and_weights_are_part_of_the_key(reader: Reader, cold: Reader) -> None:
    mixes: list[dict[str, float]] = [{}, {"a": 1.0}, {"a": 0.5}, {"a": 0.5, "b": 0.5}]
    for _ in range(2):
        for weights in mixes:
            assert reader.answer(PROMPT, weights) == cold.answer(PROMPT, weights)
    assert len(files(reader)) == len(mixes)
    reader.answer(PROMPT, {"b": 1.0})
    assert reader.cached == 0
    reader.adapters = {**reader.adapters, "a": reader.adapters["c"]}
    reader.answer(PROMPT, {"a": 1.0})
    assert reader.cached == 0, "another file under the same name"


def test_another_layout_or_model_is_another_cache(
    reader: Reader, make_gguf: Callable[..., Path], tiny_weights: Any, tmp_path: Path
) -> None:
    reader.base = make_gguf(tmp_path / "base.gguf")
    reader.answer(PROMPT)
    for options in {"kv_type": "f16"}, {"flash_attention": True}:
        reader.answer(PROMPT, **options)
        assert reader.cached == 0
    make_gguf(tmp_path / "base.gguf", {}, {"output_norm.weight": 2 * tiny_weights["output_norm.weight"]})
    os.utime(reader.base, ns=(0, 12345))
    reader.answer(PROMPT)
    assert reader.cached == 0, "the file has changed under its name"


def test_no_damage_is_ever_believed(reader: Reader, cold: Reader) -> None:
    expected = cold.answer(PROMPT)
    reader.answer(PROMPT)
    (path,) = files(reader)
    whole, dice = path.read_bytes(), random.Random(4)
    damaged = [whole[:size] for size in (0, 5, 43, 200, len(whole) - 1)] + [whole + b"x", b"foreign" * 100]
    for _ in range(12):
        at = dice.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        assert reader.answer(PROMPT) == expected
        assert reader.cached == 0
        assert path.read_bytes() == whole, "and it is written anew"
    assert len(reader.said) >= 10 and all("is damaged: it is deleted" in text for text in reader.said)


def test_what_is_not_ours_is_left_alone(reader: Reader) -> None:
    """Any folder may be given, a full one too; what is in it is never deleted to make room, nor written over."""
    assert reader.folder is not None
    reader.answer(PROMPT)
    (path,) = files(reader)
    index, whole = reader.folder / "zephyra-files.json", path.read_bytes()
    foreign = {
        "notes.txt": b"mine",
        "files.json": b"[1, 2",
        "other.prompt": whole,  # not a name that we give
        f"{'0' * 16}-{'1' * 32}.prompt": b"a name that we might give",
        "draft.prompt-tmp": b"mine as well",
    }
    for name, content in foreign.items():
        (reader.folder / name).write_bytes(content)
        os.utime(reader.folder / name, (1, 1))
    for content in (b"[1, 2", b"[]", b'{"a": 1}', b'{"a": [1, 2, 3]}', b"\xff", b"[" * 100_000):
        index.write_bytes(content)
        reader.answer(PROMPT)
        assert reader.cached == 149
        assert index.read_bytes() == content
    reader.limit = len(whole)
    reader.answer([200, *PROMPT[1:]])
    assert len([path for path in files(reader) if path.name not in foreign]) == 1, "room was made of ours"
    assert {name: (reader.folder / name).read_bytes() for name in foreign} == foreign


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_under_our_names_is_not_waited_for(reader: Reader) -> None:
    assert reader.folder is not None
    reader.answer(PROMPT)
    (path,) = files(reader)
    for pipe in path, reader.folder / "zephyra-files.json":
        pipe.unlink()
        os.mkfifo(pipe)
    answering = threading.Thread(target=reader.answer, args=(PROMPT,), daemon=True)
    answering.start()
    answering.join(timeout=30)
    assert not answering.is_alive() and path.is_file(), "written over: the name is that of this prompt alone"


def test_hashes_of_all_files_are_remembered(
    reader: Reader, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def digest(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return file_digest(file, name)

    file_digest = hashlib.file_digest
    monkeypatch.setattr("zephyra_cli.backends.prompt_cache.hashlib.file_digest", digest)
    for _ in range(2):
        for weights in {}, {"a": 1.0}, {"b": 1.0}:
            reader.answer(PROMPT, weights)
    assert len(hashed) == len(set(hashed)) == 3


def test_the_folder_is_bounded(reader: Reader) -> None:
    reader.answer(PROMPT)
    size = files(reader)[0].stat().st_size
    reader.limit = 5 * size // 2
    prompts = [[200 + n, *PROMPT] for n in range(3)]
    reader.answer(prompts[0])
    for at, path in enumerate(files(reader)):
        os.utime(path, (at, at))
    reader.answer(PROMPT)  # used: it is the young one now
    reader.answer(prompts[1])
    assert len(files(reader)) == 2
    reader.answer(PROMPT)
    assert reader.cached == 149
    reader.limit = size // 2
    reader.answer(prompts[2])
    assert "a prompt of 151 tokens takes 0 MB" in reader.said[-1]
    assert len(files(reader)) == 2


def test_a_full_disk_costs_the_file_and_nothing_else(
    reader: Reader, cold: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zephyra_cli.backends.prompt_folder.os.replace", full)
    assert reader.answer(PROMPT) == cold.answer(PROMPT)
    assert files(reader) == []
    assert "cannot write to the prompt cache" in reader.said[-1] and "No space left" in reader.said[-1]


def test_an_unfinished_file_of_a_dead_process_goes(reader: Reader) -> None:
    assert reader.folder is not None
    reader.folder.mkdir()
    old, young = reader.folder / "zephyra-a.prompt-tmp", reader.folder / "zephyra-b.prompt-tmp"
    for path in old, young:
        path.write_bytes(MAGIC)
    os.utime(old, (1, 1))
    reader.answer(PROMPT)
    assert not old.exists() and young.exists()


def test_the_command_line_keeps_prompts(zephyra: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    options = ["-m", tiny_gguf, "--raw", "-n", "4", "--json", "--prompt-cache", tmp_path / "kept"]
    prompt = "find all files larger than a megabyte " * 5
    first, second = (json.loads(zephyra("generate", *options, prompt).stdout) for _ in range(2))
    assert first["text"] == second["text"]
    assert first["usage"]["cached_tokens"] == 0
    assert second["usage"]["cached_tokens"] == second["usage"]["prompt_tokens"] - 1


def test_two_at_once_do_not_disturb_each_other(tiny_gguf: Path, tmp_path: Path) -> None:
    command = [*PROGRAM, "generate", "-m", str(tiny_gguf), "--raw", "-n", "4", "--prompt-cache", str(tmp_path / "kept")]
    running = [
        subprocess.Popen([*command, "the heart of the matter " * 20], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    results = [process.communicate(timeout=60) for process in running]
    assert len(set(results)) == 1 and results[0][0]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(list((tmp_path / "kept").glob("*.prompt"))) == 1
    assert list((tmp_path / "kept").glob("*-tmp")) == []
