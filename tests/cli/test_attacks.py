"""Files that mean harm, through every command that could touch them: one clear error, soon, and nothing runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyra_converters.gguf_header import read_header
from zephyra_converters.json_file import read_json
from zephyra_converters.safetensors_file import read_safetensors
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.tokenizer import Tokenizer

Inside = Callable[..., tuple[int, str, str]]
SECONDS = 20.0  # on a machine that is busy with other work


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors: list[tuple[str, list[int], int]], keys: bytes = b"", counts: tuple[int, int] | None = None) -> bytes:
    """A file of architecture llama; `tensors`: name, shape, offset; `counts`: what it claims of them and of keys."""
    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama") + keys
    head = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), 1 + keys.count(b"evil")))) + keys
    for name, shape, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
    return head + bytes(-len(head) % 32) + bytes(8192)


NESTED = text("evil") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000 + struct.pack("<IQ", 4, 0)
LONG = text("evil") + struct.pack("<IIQ", 9, 8, 2**61)
MODELS = {
    "overlapping tensors": gguf([("token_embd.weight", [32, 32], 0), ("output.weight", [32, 32], 64)]),
    "a huge shape": gguf([("token_embd.weight", [2**62, 4], 0)]),
    "a shape that overflows": gguf([("token_embd.weight", [2**32 + 1, 2**32], 0)]),
    "a count of tensors": gguf([], counts=(2**60, 1)),
    "a count of keys": gguf([], counts=(0, 2**60)),
    "nested arrays": gguf([], NESTED),
    "a long array": gguf([], LONG),
}


@pytest.mark.parametrize("what", MODELS)
def test_models(inside: Inside, tmp_path: Path, tiny_gguf: Path, tiny_pack: Path, what: str) -> None:
    path = tmp_path / "evil.gguf"
    path.write_bytes(MODELS[what])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"play song {number}" for number in range(30)))
    for arguments in (
        ["generate", "-m", path, "hello"],
        ["generate", "-m", tiny_pack, "--draft", path, "hello"],
        ["models", "show", path],
        ["convert", path, tmp_path / "out", "--to", "hf"],
        ["domains", "add", "evil", "-m", tiny_pack, "--adapter", path, "--examples", prompts],
    ):
        refused(inside, *arguments)
    assert not (tmp_path / "out").exists()


def refused(inside: Inside, *arguments: object) -> str:
    begun = time.monotonic()
    status, out, told = inside(*arguments)
    assert status == 1 and out == "", (arguments, out)
    assert any(line.startswith("error: ") for line in told.splitlines()), told
    assert "fault of zephyra" not in told and "not enough memory" not in told and "Traceback" not in told, told
    assert time.monotonic() - begun < SECONDS, arguments
    return told


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def header(shape: list[int], *, apart: bool = False) -> bytes:
    """Weights of one matrix; both sides at the same bytes, unless `apart`."""
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"]
    entries = {}
    for number, name in enumerate(names):
        begin = 4096 * number if apart else 0
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, begin + 4096]}
    data = json.dumps(entries).encode()
    return struct.pack("<Q", len(data)) + data + bytes(8192)


def torch_file() -> bytes:
    """A pickle that makes a folder when it is read, in the frame of torch.save."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(), protocol=2))
        archive.writestr("archive/version", "3\n")
    return data.getvalue()


CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "a/b"}
ADAPTERS: dict[str, tuple[str, bytes]] = {
    "a rank of a thousand millions": (json.dumps(CONFIG | {"r": 10**9}), header([10**9, 64])),
    "a header of 100 MB": (json.dumps(CONFIG), struct.pack("<Q", 100 * 2**20) + b'{"a":"' + b"x" * (100 * 2**20)),
    "a header longer than any file": (json.dumps(CONFIG), struct.pack("<Q", 2**63) + b"{}"),
    "a header of brackets": (json.dumps(CONFIG), struct.pack("<Q", 10**5) + b"[" * 10**5),
    "overlapping tensors": (json.dumps(CONFIG), header([16, 64])),
    "a configuration of brackets": ("[" * 10**5 + "]" * 10**5, header([16, 64])),
    "alpha without a value": (json.dumps(CONFIG | {"lora_alpha": float("nan")}), header([16, 64], apart=True)),
    "a pickle": (json.dumps(CONFIG), b""),
}


@pytest.mark.parametrize("what", ADAPTERS)
def test_adapters(inside: Inside, tmp_path: Path, tiny_pack: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "adapter"
    folder.mkdir()
    config, weights = ADAPTERS[what]
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    if what == "a pickle":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        (folder / "adapter_model.bin").write_bytes(torch_file())
    refused(inside, "domains", "add", "evil", "-m", tiny_pack, "--adapter", folder)
    refused(inside, "convert", folder, tmp_path / "out.gguf", "--base", tiny_pack / "base.gguf")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.gguf").exists()


def many(manifest: dict[str, Any]) -> None:
    manifest["files"] |= {f"f{number}": {"sha256": "0" * 64, "size": 0} for number in range(10**5)}


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a way out": lambda manifest: manifest["base"].update(file="../../etc/passwd"),
    "a name that is a path": lambda manifest: manifest["adapters"].update({"../up": manifest["adapters"]["sql"]}),
    "very many files": many,
    "a threshold without a value": lambda manifest: manifest["router"].update(threshold=float("nan")),
    "brackets": lambda manifest: manifest.update(base="BRACKETS"),
    "a million objects": lambda manifest: manifest.update(more=[{}] * 10**6),
    "more weights than there are atoms": lambda manifest: manifest["base"].update(parameters=10**400),
    "half a pair": lambda manifest: manifest.update(name="\ud800"),
    "half a pair in a path": lambda manifest: manifest["files"].update({"\ud800": manifest["files"]["base.gguf"]}),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_packs(inside: Inside, tmp_path: Path, tiny_pack: Path, what: str) -> None:
    root = tmp_path / "pack"
    shutil.copytree(tiny_pack, root)
    manifest = json.loads((root / "zephyra.json").read_text())
    MANIFESTS[what](manifest)
    written = json.dumps(manifest).replace('"BRACKETS"', "[" * 10**5 + "]" * 10**5)
    (root / "zephyra.json").write_text(written)
    for command in (["generate", "-m", root, "hi"], ["models", "show", root], ["domains", "-m", root]):
        refused(inside, *command)
    refused(inside, "models", "verify", root)
    refused(inside, "push", root, "hf:ada/evil")


def test_a_link_out_of_a_pack(inside: Inside, tmp_path: Path, tiny_pack: Path) -> None:
    secret, root = tmp_path / "secret", tmp_path / "pack"
    shutil.copytree(tiny_pack, root)
    shutil.copy(root / "base.gguf", secret)  # the very bytes that the manifest wants
    (root / "base.gguf").unlink()
    (root / "base.gguf").symlink_to(secret)
    assert "leads out of the pack" in refused(inside, "generate", "-m", root, "hi")
    assert "leads out of the model" in refused(inside, "models", "verify", root)
    assert "leads out of the model" in refused(inside, "push", root, "hf:ada/evil")


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names in folders there")
def test_a_pipe_instead_of_a_file(inside: Inside, tmp_path: Path, tiny_pack: Path, home: Path) -> None:
    root, part = Path(shutil.copytree(tiny_pack, tmp_path / "pack")), tmp_path / "m-00002-of-00002.gguf"
    (root / "base.gguf").unlink()
    os.mkfifo(root / "base.gguf")
    os.mkfifo(part)
    for command in (["generate", "-m", root, "hi"], ["models", "verify", root], ["generate", "-m", part, "hi"]):
        refused(inside, *command)
    with pytest.raises(ZephyraError, match="it is a pipe or a device"):
        read_header(part)
    with pytest.raises(ZephyraError, match="it is a pipe or a device"):
        read_safetensors(part)
    with pytest.raises(ZephyraError, match="it is a pipe or a device"):
        read_json(part)


def test_examples_that_swell(inside: Inside, tmp_path: Path, tiny_pack: Path, tiny_adapters: dict[str, Path]) -> None:
    bomb = tmp_path / "examples.jsonl.gz"
    with gzip.open(bomb, "wb", 9) as file:
        for _ in range(200):
            file.write(bytes(2**20))
    add = ["domains", "add", "evil", "-m", tiny_pack, "--adapter", tiny_adapters["c"]]
    assert "longer than 4 MiB" in refused(inside, *add, "--examples", bomb)
    assert "longer than 4 MiB" in refused(inside, *add, "--others", bomb)


@pytest.mark.parametrize("content", [b'{"tokens":[' + b"[]," * 10**6 + b"1]}", b"ab\n" * 10**6])
def test_examples_of_many_small_things(inside: Inside, tmp_path: Path, tiny_pack: Path, content: bytes) -> None:
    bomb = tmp_path / "examples.jsonl.gz"
    bomb.write_bytes(gzip.compress(content))
    told = refused(inside, "domains", "add", "evil", "-m", tiny_pack, "--adapter", tmp_path, "--others", bomb)
    assert "are read" in told


CHECKPOINTS = {
    "lists": (b'{"a":[' + b"[]," * 10**6 + b"1]}", b""),
    "digits": (b'{"max_position_embeddings":' + b"9" * 4000 + b"}", b""),
    "weights of lists": (b"{}", b'{"a":[' + b"[]," * 10**6 + b"1]}"),
    "weights of digits": (b"{}", b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b',9],"data_offsets":[0,0]}}'),
}


def test_a_damaged_model_is_no_end_of_the_list(inside: Inside, home: Path, tiny_pack: Path) -> None:
    shutil.copytree(tiny_pack, home / "models" / "whole")
    for what, (config, weights) in CHECKPOINTS.items():
        (root := home / "models" / what.replace(" ", "-")).mkdir()
        (root / "config.json").write_bytes(config)
        if weights:
            (root / "model.safetensors").write_bytes(struct.pack("<Q", len(weights)) + weights)
    (receipt := home / "models" / "receipt").mkdir()
    (receipt / "config.json").write_text("{}")
    (receipt / ".pulled.json").write_text('{"license": {"a": 1}}')
    begun = time.monotonic()
    status, out, told = inside("models")
    assert status == 0 and "whole" in out and "-0" not in told and time.monotonic() - begun < SECONDS
    for what in ("lists", "weights-of-lists", "weights-of-digits"):
        assert f"warning: {what}: " in told
    assert not re.search(r"-\d", told.splitlines()[-1]), told


def test_a_pattern_that_never_ends(tmp_path: Path) -> None:
    """The library behind tokenizer.json gives such a pattern up by a panic."""
    pieces = [{"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}]
    model = {"type": "BPE", "vocab": {"x": 0, "y": 1, "!": 2}, "merges": []}
    pattern = {"type": "Sequence", "pretokenizers": pieces}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": pattern, "model": model}))
    tokenizer = Tokenizer(path)
    assert tokenizer.encode("xxy") == [0, 0, 1]
    with pytest.raises(ZephyraError, match="the tokenizer fails on this text"):
        tokenizer.encode("x" * 40 + "!")
    with pytest.raises(ZephyraError, match="the tokenizer fails on this text"):
        tokenizer.encode_batch(["x" * 40 + "!"])
