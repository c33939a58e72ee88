"""The header of a GGUF file, read with the standard library alone and trusted in nothing.

Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little endian. Every count and length is held
against the size of the file before it is followed, so that no number in a file decides how much memory or time is used.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Any

from zephyra_converters.regular_file import open_regular
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.values import dataclass, field

# ggml type: name, weights in a block, bytes of a block (ggml.h, ggml-common.h)
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# struct's letters by value type; in an array a truth value is a byte
_LETTERS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
_SCALARS = {code: Struct("<" + letter) for code, letter in _LETTERS.items()}
_ARRAY_CODES = {**_LETTERS, 7: "B"}
_STRING, _ARRAY = 8, 9
_U32, _U64 = Struct("<I"), Struct("<Q")

_MAX_ENTRIES = 100_000  # key-value pairs, tensors
_MAX_ITEMS = 2_000_000  # elements of all arrays: the largest vocabularies have 1.3 million with their merges
_MAX_HEADER = 1 << 28
_FIRST_READ = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` in ggml's order (row length first), `offset` from the start of the file, `size` in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int

    @property
    def type_name(self) -> str:
        return GGML_TYPES[self.type][0]


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of itself. Arrays are lists: of `bytes` for strings, of numbers otherwise."""

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Any]
    types: dict[str, int]  # GGUF value type of each key; an array's is 9
    item_types: dict[str, int]  # GGUF value type of the elements of each array
    tensors: dict[str, TensorInfo]
    parts: dict[str, Path] = field(default_factory=dict)  # of a model over several files: where each tensor lies

    def file_of(self, tensor: str) -> Path:
        """The file that the tensor's offset counts in."""
        return self.parts.get(tensor, self.path)

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def strings(self, key: str) -> list[str]:
        """An array of strings as text; bytes that are no UTF-8 are replaced."""
        return [item.decode("utf-8", "replace") for item in self.metadata.get(key, ())]


def parse_header(data: bytes, size: int, path: Path) -> GGUFHeader | None:
    """The header of a GGUF file of `size` bytes that begins with `data`; None if it goes on after them.

    ZephyraError: not GGUF, or damaged; the message names `path`.
    """
    try:
        return _Parser(path, size, data).header()
    except (_RunOut, StructError):
        if len(data) >= min(size, _MAX_HEADER):
            raise ZephyraError(
                f"{path} is damaged: its header does not end within {len(data)} bytes",
                hint="the file is cut short or corrupted; fetch or convert it again",
            ) from None
        return None


def read_header(path: Path | str) -> GGUFHeader:
    """The header of the GGUF file at `path`. ZephyraError: not there, not GGUF, cut short, or damaged."""
    try:
        with open_regular(path := Path(path)) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(_FIRST_READ)
            while (header := parse_header(data, size, path)) is None:
                more = file.read(7 * len(data))  # eightfold each time, so that re-reading stays cheap
                if not more:
                    size = len(data)  # it shrank under us
                data += more
            return header
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror or error}") from None


class _RunOut(Exception):
    """The header goes on after the bytes that were read so far."""


class _Parser:
    def __init__(self, path: Path, size: int, data: bytes) -> None:
        self.path, self.size, self.data, self.at = path, size, data, 0
        self.items = 0  # of all arrays: in Python each takes up to ten times its place in the file
        self.item_types: dict[str, int] = {}

    def damaged(self, what: str) -> ZephyraError:
        return ZephyraError(
            f"{self.path} is damaged: {what}", hint="fetch or convert the file again; this one must not be loaded"
        )

    def number(self, form: Struct) -> Any:
        value = form.unpack_from(self.data, self.at)[0]
        self.at += form.size
        return value

    def string(self) -> bytes:
        length = self.number(_U64)
        if length > self.size - self.at:
            raise self.damaged(f"a string of {length} bytes at offset {self.at}, the file has {self.size}")
        end = self.at + length
        if end > len(self.data):
            raise _RunOut
        text = self.data[self.at : end]
        self.at = end
        return text

    def name(self) -> str:
        raw = self.string()
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self.damaged(f"the name {raw[:64]!r} is no UTF-8") from None
        if not text or "\0" in text:
            raise self.damaged(f"the name {text[:64]!r} is empty or holds a zero byte")
        return text

    def header(self) -> GGUFHeader:
        if self.data[:4] != b"GGUF":
            raise ZephyraError(
                f"'{self.path}' is not a GGUF file: it starts with {self.data[:4]!r}",
                hint="`zephyra convert` makes one",
            )
        self.at = 4
        version = self.number(_U32)
        if version not in (2, 3):
            raise ZephyraError(f"{self.path} is GGUF version {version}, versions 2 and 3 can be read")
        tensor_count, key_count = self.number(_U64), self.number(_U64)
        # The shortest key-value pair has 14 bytes, the shortest tensor entry 33.
        if max(tensor_count, key_count) > _MAX_ENTRIES or tensor_count * 33 + key_count * 14 > self.size:
            raise self.damaged(f"it claims {tensor_count} tensors and {key_count} keys in {self.size} bytes")
        metadata: dict[str, Any] = {}
        types: dict[str, int] = {}
        for _ in range(key_count):
            key = self.name()
            if key in metadata:
                raise self.damaged(f"the key '{key}' appears twice")
            types[key] = kind = self.number(_U32)
            metadata[key] = self.array(key) if kind == _ARRAY else self.value(key, kind)
        alignment = metadata.get("general.alignment", 32)
        if types.get("general.alignment", 4) != 4 or alignment == 0 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {alignment}, must be a power of two (UINT32)")
        tensors = self.tensors(tensor_count, alignment)
        return GGUFHeader(self.path, version, alignment, metadata, types, self.item_types, tensors)

    def value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.string().decode("utf-8", "replace")
        form = _SCALARS.get(kind)
        if form is None:
            raise self.damaged(f"the key '{key}' has the unknown type {kind}")
        return self.number(form)

    def array(self, key: str) -> list[Any]:
        kind, count = self.number(_U32), self.number(_U64)
        code = _ARRAY_CODES.get(kind)
        if code is None and kind != _STRING:
            raise self.damaged(f"the key '{key}' is an array of the unknown type {kind}")
        width = 8 if code is None else _SCALARS[kind].size
        if count * width > self.size - self.at:
            raise self.damaged(f"the key '{key}' claims {count} elements, {self.size - self.at} bytes are left")
        self.items += count
        self.item_types[key] = kind
        if self.items > _MAX_ITEMS:
            raise self.damaged(f"its metadata has arrays of more than {_MAX_ITEMS} elements in all")
        if code is None:
            return self.string_array(key, count)
        end = self.at + count * width
        if end > len(self.data):
            raise _RunOut
        numbers = array(code, self.data[self.at : end])
        self.at = end
        return numbers.tolist()

    def string_array(self, key: str, count: int) -> list[bytes]:
        """The hot loop: a vocabulary and its merges are tens of thousands of strings."""
        data, at, length_at, items = self.data, self.at, _U64.unpack_from, []
        have = len(data)
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > have:
                if at > self.size:
                    raise self.damaged(f"a string of '{key}' ends at {at}, the file has {self.size} bytes")
                raise _RunOut
            items.append(data[start:at])
        self.at = at
        return items

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        found = list(self.entries(count))
        begin = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for name, shape, kind, offset in found:
            if name in tensors:
                raise self.damaged(f"the tensor '{name}' appears twice")
            type_name, block, width = GGML_TYPES.get(kind, ("", 0, 0))
            if not block:
                raise self.damaged(f"the tensor '{name}' has the unknown type {kind}")
            if shape[0] % block:
                raise self.damaged(
                    f"the tensor '{name}' has rows of {shape[0]}, {type_name} needs a multiple of {block}"
                )
            size = width * (shape[0] // block)
            for extent in shape[1:]:
                size *= extent
            if offset != expected:
                raise self.damaged(f"the tensor '{name}' lies at {offset} of the data, its place is {expected}")
            if begin + offset + size > self.size:
                raise ZephyraError(
                    f"{self.path} is cut short: the tensor '{name}' ends at byte {begin + offset + size}, "
                    f"the file has {self.size}",
                    hint="fetch or convert the file again",
                )
            tensors[name] = TensorInfo(name, shape, kind, begin + offset, size)
            expected += -(-size // alignment) * alignment
        return tensors

    def entries(self, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        for _ in range(count):
            name = self.name()
            if len(name.encode()) > 63:  # ggml's limit; a longer name is refused there too
                raise self.damaged(f"a tensor name has {len(name)} characters, 63 are allowed")
            dimensions = self.number(_U32)
            if not 1 <= dimensions <= 4:
                raise self.damaged(f"the tensor '{name}' has {dimensions} dimensions, 1 to 4 are allowed")
            shape = tuple(self.number(_U64) for _ in range(dimensions))
            if not all(1 <= extent <= self.size * 256 for extent in shape):
                raise self.damaged(f"the tensor '{name}' has the shape {list(shape)}")
            yield name, shape, self.number(_U32), self.number(_U64)
