"""Bad input to the readers: a clear ZephyraError, never a crash, a hang or memory by a stranger's number."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.hf import read_hf
from zephyra_converters.safetensors_file import read_safetensors, write_safetensors
from zephyra_converters.torch_file import read_torch
from zephyra_fusion.errors import ZephyraError


def test_safetensors_reads_what_others_write_and_the_other_way(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    values = {
        n: torch.randn(3, 5).to(t) for n, t in (("a", torch.float32), ("b", torch.float16), ("c", torch.bfloat16))
    }
    save_file(values, tmp_path / "theirs.safetensors")
    ours = read_safetensors(tmp_path / "theirs.safetensors")
    for name, value in values.items():
        assert np.array_equal(ours[name].read(), value.float().numpy())
    write_safetensors(tmp_path / "ours.safetensors", ours.values())
    back = load_file(tmp_path / "ours.safetensors")
    for name, value in values.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value)


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "header length"),
        (b"\xff" * 16, "header length"),
        (struct.pack("<Q", 2**40) + b"{}", "header length"),
        (safetensors(b"{nonsense"), "not JSON"),
        (safetensors(b"[" * 200_000), "not JSON"),
        (safetensors([1, 2]), "no JSON object"),
        (safetensors(b'{"a":1,"a":2}'), "duplicate entries.*: a"),
        (safetensors({"a": ENTRY}), "lies at bytes 0..8, the file has 0"),
        (safetensors({"a": ENTRY | {"shape": [3]}}, bytes(8)), "needs others"),
        (safetensors({"a": ENTRY | {"shape": [2**47, 2**47]}}, bytes(8)), "needs others"),
        (safetensors({"a": ENTRY | {"shape": [2**62, 2**62]}}, bytes(8)), "malformed"),
        (safetensors({"a": ENTRY | {"shape": [1] * 9}}, bytes(8)), "malformed"),
        (safetensors({"a": ENTRY | {"shape": [10**4000] * 1000}}, bytes(8)), "malformed"),
        (safetensors({"a": ENTRY | {"data_offsets": [0, 10**4000]}}, bytes(8)), "malformed"),
        (struct.pack("<Q", 5006) + b'{"a":' + b"1" * 5000 + b"}", "is not JSON"),
        (safetensors({"a": [[]] * 10**6}), "holds .* values, at most"),
        (safetensors({"a": ENTRY | {"shape": [-2]}}, bytes(8)), "malformed"),
        (safetensors({"a": ENTRY | {"shape": "x"}}, bytes(8)), "malformed"),
        (safetensors({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)), "lies at bytes"),
        (safetensors({"a": ENTRY | {"dtype": "F8"}}, bytes(8)), "'F8'"),
        (safetensors({"a": ENTRY, "b": ENTRY}, bytes(8)), "overlap"),
    ],
)
def test_damaged_safetensors(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ZephyraError, match=said):
        read_safetensors(tmp_path / "a.safetensors")


def test_fuzzed_safetensors_headers_never_crash(tmp_path: Path) -> None:
    names = [f"layer.{n}" for n in range(4)]
    write_safetensors(tmp_path / "good", [LazyTensor.holding(n, np.zeros((2, 3), "f4")) for n in names])
    good, draw, refused = (tmp_path / "good").read_bytes(), random.Random(1), 0
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(min(len(data), 320))] = draw.choice((0, 0xFF, 0x22, 0x7B, 0x39, draw.randrange(256)))
        del data[draw.choice((len(data), draw.randrange(len(data)))) :]
        (tmp_path / "bad").write_bytes(data)
        try:
            for tensor in read_safetensors(tmp_path / "bad").values():
                tensor.read()
        except ZephyraError:
            refused += 1
    assert refused > 1000


def shard(folder: Path, target: Path, weight_map: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """The checkpoint in two shards, its index changed by `weight_map`."""
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    tensors = list(read_safetensors(folder / "model.safetensors").values())
    halves = {"one.safetensors": tensors[::2], "two.safetensors": tensors[1::2]}
    for name, half in halves.items():
        write_safetensors(target / name, half)
    index = {tensor.name: name for name, half in halves.items() for tensor in half}
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map(index)}))
    return target


def test_shards_are_read(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    whole = read_hf(checkpoint_folder("qwen3"))
    parts = read_hf(shard(checkpoint_folder("qwen3"), tmp_path / "shards", lambda index: index))
    assert set(parts.tensors) == set(whole.tensors)
    assert all(np.array_equal(parts.tensors[n].read(), t.read()) for n, t in whole.tensors.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index | {"model.norm.weight": "../outside.safetensors"}, "only files beside it"),
        (lambda index: index | {"model.norm.weight": "/etc/passwd"}, "only files beside it"),
        (lambda index: index | {"model.norm.weight": "three.safetensors"}, "'three.safetensors', which is missing"),
        (lambda index: index | {"model.extra.weight": "one.safetensors"}, "promises tensors that no shard has"),
        (lambda index: {"model.norm.weight": 7}, "no weight_map"),
    ],
)
def test_bad_indexes(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    said: str,
    checkpoint_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = shard(checkpoint_folder("qwen3"), tmp_path / "shards", change)
    with pytest.raises(ZephyraError, match=said):
        read_hf(folder)


def test_a_tensor_in_two_shards_is_named(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shard(checkpoint_folder("qwen3"), tmp_path / "shards", lambda index: index)
    tensors = {**read_safetensors(folder / "one.safetensors"), **read_safetensors(folder / "two.safetensors")}
    held = [LazyTensor.holding(name, tensor.read()) for name, tensor in tensors.items()]
    write_safetensors(folder / "two.safetensors", held)
    with pytest.raises(ZephyraError, match="stands in two shards"):
        read_hf(folder)


def test_a_truncated_shard_is_named(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shard(checkpoint_folder("qwen3"), tmp_path / "shards", lambda index: index)
    data = (folder / "two.safetensors").read_bytes()
    (folder / "two.safetensors").write_bytes(data[:-100])
    with pytest.raises(ZephyraError, match="two.safetensors: tensor '.*' lies at"):
        read_hf(folder)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a weight file runs",))


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": _Evil()}, tmp_path / "evil.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"a": _Evil()}))
    for name in ("evil.bin", "old.bin"):
        with pytest.raises(ZephyraError):
            read_torch(tmp_path / name)
    assert "runs" not in capsys.readouterr().out


def test_bin_checkpoints_are_read(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = checkpoint_folder("qwen3")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    whole = read_hf(source)
    torch.save({n: torch.from_numpy(t.read()) for n, t in whole.tensors.items()}, tmp_path / "pytorch_model.bin")
    parts = read_hf(tmp_path)
    assert all(np.array_equal(parts.tensors[n].read(), t.read()) for n, t in whole.tensors.items())


def test_parameters_and_the_oldest_format_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.randn(3, 4).to(getattr(torch, name)) for name in ("float32", "float16", "bfloat16")}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    torch.save(parameters, tmp_path / "new.bin")
    torch.save(parameters, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for file in ("new.bin", "old.bin"):
        read = read_torch(tmp_path / file)
        assert all(np.array_equal(read[name].read(), tensor.float().numpy()) for name, tensor in state.items())


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_the_oldest_format_are_refused(tmp_path: Path) -> None:
    torch, draw = pytest.importorskip("torch"), random.Random(1)
    torch.save({"a": torch.randn(3, 4)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.bin").read_bytes()
    for _ in range(200):
        data = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.2 else whole)
        for _ in range(min(2, len(data))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "a.bin").write_bytes(data)
        with contextlib.suppress(ZephyraError):
            read_torch(tmp_path / "a.bin")


def test_tensors_that_are_no_plain_array_are_refused_by_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    plain = torch.ones(4, 4)
    strange = {
        "w.float8": (plain.to(torch.float8_e4m3fn), "'w.float8' is float8_e4m3fn"),
        "w.complex": (plain.to(torch.complex64), "'w.complex' is complex64"),
        "w.sparse": (plain.to_sparse(), "'w.sparse' is nested or sparse"),
        "w.quantized": (torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8), "'w.quantized' is quantized"),
        "w.meta": (plain.to("meta"), "'w.meta' is without data"),
        5: (plain, "names are no text: 5"),
    }
    for name, (tensor, said) in strange.items():
        torch.save({"good": plain, name: tensor}, tmp_path / "a.bin")
        with pytest.raises(ZephyraError, match=said):
            read_torch(tmp_path / "a.bin")


def test_sharded_bin_checkpoints_are_read(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    torch, source = pytest.importorskip("torch"), checkpoint_folder("qwen3")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    tensors, index = read_safetensors(source / "model.safetensors"), {}
    for number, names in enumerate((list(tensors)[:7], list(tensors)[7:])):
        file = f"pytorch_model-{number + 1:05d}-of-00002.bin"
        torch.save({name: torch.from_numpy(tensors[name].read()) for name in names}, tmp_path / file)
        index |= dict.fromkeys(names, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    found, expected = read_hf(tmp_path).tensors, read_hf(source).tensors
    assert all(np.array_equal(found[name].read(), tensor.read()) for name, tensor in expected.items())


def test_a_folder_without_weights_or_config(tmp_path: Path, checkpoint_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ZephyraError, match="cannot read"):
        read_hf(tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint_folder("qwen3") / "config.json").read_bytes())
    with pytest.raises(ZephyraError, match="no weights"):
        read_hf(tmp_path)
