"""The header reader against the `gguf` package, and against everything that can be wrong with a file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from zephyra_converters.gguf_header import GGML_TYPES, read_header
from zephyra_fusion.errors import ZephyraError


def test_agrees_with_the_gguf_package(tiny_gguf: Path) -> None:
    import gguf

    theirs, ours = gguf.GGUFReader(tiny_gguf), read_header(tiny_gguf)
    assert ours.alignment == theirs.alignment
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(int(extent) for extent in tensor.shape)
        assert (mine.offset, mine.size, mine.type_name) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            value = ours.metadata[key]
            if isinstance(value, list) and isinstance(value[0], bytes):
                value = ours.strings(key)
            assert value == field.contents(), key


def test_knows_the_types_of_the_library() -> None:
    """Asked of libggml itself: the gguf package has an outdated size for Q8_1."""
    import ctypes

    from zephyra_cli.backends.library import library_path

    lib = ctypes.CDLL(str(library_path()))
    lib.ggml_type_size.restype, lib.ggml_blck_size.restype = ctypes.c_size_t, ctypes.c_int64
    lib.ggml_type_name.restype = ctypes.c_char_p
    for kind in range(43):
        known = GGML_TYPES.get(kind, ("", 0, 0))
        assert (lib.ggml_blck_size(kind), lib.ggml_type_size(kind)) == known[1:]
        if known[0]:
            assert lib.ggml_type_name(kind).decode().upper() == known[0]


def test_reads_a_header_longer_than_the_first_read(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    text = "x" * 3_000_000
    header = read_header(make_gguf(tmp_path / "long.gguf", {"general.description": text}))
    assert header.metadata["general.description"] == text
    assert len(header.tensors) > 20


def test_every_truncation_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(64), *range(64, len(data), 4001), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ZephyraError, match=r"cut short|damaged|not a GGUF"):
            read_header(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in tmp_path / "none.gguf", tmp_path:
        with pytest.raises(ZephyraError, match="cannot read"):
            read_header(path)


def _file(
    keys: bytes = b"", key_count: int = 0, tensors: bytes = b"", tensor_count: int = 0, version: int = 3
) -> bytes:
    return b"GGUF" + pack("<IQQ", version, tensor_count, key_count) + keys + tensors + bytes(64)


def _key(name: str, kind: int, value: bytes) -> bytes:
    return pack("<Q", len(name)) + name.encode() + pack("<I", kind) + value


def _tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return pack("<Q", len(name)) + name.encode() + pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"PK\x03\x04 and so on", "not a GGUF file"),
        (_file(version=1), "version 1"),
        (_file(version=0x03000000), "version 50331648"),
        (_file(tensor_count=2**63), "claims 9223372036854775808 tensors"),
        (_file(key_count=2**40), "claims 0 tensors and 1099511627776 keys"),
        (_file(_key("a", 8, pack("<Q", 2**62)), 1), "a string of 4611686018427387904 bytes"),
        (_file(_key("a", 9, pack("<IQ", 5, 2**61)), 1), "claims 2305843009213693952 elements"),
        (_file(_key("a", 9, pack("<IQ", 8, 9) + b"\xff" * 99), 1), "a string of 'a' ends at"),
        (_file(_key("a", 9, pack("<IQ", 9, 1)), 1), "array of the unknown type 9"),
        (_file(_key("a", 77, b""), 1), "unknown type 77"),
        (_file(_key("a", 0, b"1") * 2, 2), "appears twice"),
        (_file(_key("general.alignment", 4, pack("<I", 48)), 1), "power of two"),
        (_file(_key("general.alignment", 4, pack("<I", 0)), 1), "power of two"),
        (_file(tensors=_tensor("t", (4,)) * 2, tensor_count=2), "appears twice|its place is"),
        (_file(tensors=_tensor("t", (4,), 99), tensor_count=1), "unknown type 99"),
        (_file(tensors=_tensor("t", (4,), 5), tensor_count=1), "unknown type 5"),
        (_file(tensors=_tensor("t", (33,), 8), tensor_count=1), "multiple of 32"),
        (_file(tensors=_tensor("t", (2**40, 2**40)), tensor_count=1), "has the shape"),
        (_file(tensors=_tensor("t", (64, 64)), tensor_count=1), "cut short"),
        (_file(tensors=_tensor("t", (0,)), tensor_count=1), "has the shape"),
        (_file(tensors=_tensor("t", (1,) * 5), tensor_count=1), "5 dimensions"),
        (_file(tensors=_tensor("t" * 64, (4,)), tensor_count=1), "64 characters"),
        (_file(tensors=_tensor("t", (4,), 0, 32), tensor_count=1), "its place is 0"),
    ],
)
def test_names_what_is_wrong(data: bytes, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    with pytest.raises(ZephyraError, match=cause):
        read_header(path)


def test_random_damage_ends_in_an_error_or_a_header(tiny_gguf: Path, tmp_path: Path) -> None:
    data, path, dice = tiny_gguf.read_bytes(), tmp_path / "damaged.gguf", random.Random(7)
    header_end = min(tensor.offset for tensor in read_header(tiny_gguf).tensors.values())
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(dice.choice((1, 1, 3))):
            at = dice.randrange(header_end - 8)
            odd: Any = dice.choice((dice.randbytes(1), b"\xff" * 8, bytes(8), pack("<Q", 2**31), pack("<I", 2**20)))
            damaged[at : at + len(odd)] = odd
        path.write_bytes(damaged)
        start = time.perf_counter()
        try:
            read_header(path)
        except ZephyraError:
            refused += 1
        assert time.perf_counter() - start < 2
    assert refused > 50
