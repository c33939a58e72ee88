"""Importance matrices: how strongly each column of each weight is used, and their files.

Sources: llama.cpp's tools/imatrix (both file formats, and what it sums up) and its quantizer's use of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import tensor_of, text_metadata
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, kw_only=True)
class ImportanceMatrix:
    """`values`: mean squares of each weight's inputs by GGUF name, float32 `[experts * columns]`."""

    values: Mapping[str, np.ndarray]
    source: str
    tokens: int = 0  # 0: a file that does not say
    silent_experts: int = 0  # experts that no token reached: all their columns count alike

    def said(self) -> str:
        """For the report."""
        tokens = f", {self.tokens} tokens" if self.tokens else ""
        silent = f", {self.silent_experts} experts that no token reached" if self.silent_experts else ""
        return f"{self.source}{tokens}, {len(self.values)} tensors{silent}"

    def check(self, names: Sequence[str], where: str) -> None:
        """It belongs to a model with these tensors."""
        if not set(self.values) & set(names):
            raise ZephyraError(
                f"the importance matrix {self.source} belongs to another model: none of its {len(self.values)} "
                f"entries is a tensor of {where}"
            )


def read_importance(path: Path) -> ImportanceMatrix | None:
    """The importance matrix in `path` (GGUF, or llama.cpp's older .dat); None where it is a text."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror or error}") from None
    if start[:4] == b"GGUF":
        return _read_gguf(path)
    # An old file starts with two small numbers, entries and the length of a name: zero bytes, which no text has.
    return _read_dat(path) if len(start) == 12 and b"\0" in start[:8] else None


def _read_gguf(path: Path) -> ImportanceMatrix:
    header = read_header(path)
    metadata = text_metadata(header)
    if metadata.get("general.type") != "imatrix":
        raise ZephyraError(f"{path} is a GGUF file, but no importance matrix (general.type {metadata['general.type']})")
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for name, info in header.tensors.items():
        if info.type_name != "F32" or not name.endswith((_SUMS, _COUNTS)):
            raise ZephyraError(f"{path}: '{name}' ({info.type_name}) has no place in an importance matrix")
        (sums if name.endswith(_SUMS) else counts)[name.rpartition(".")[0]] = tensor_of(path, info).read()
    if set(sums) != set(counts):
        raise ZephyraError(f"{path} lacks sums or counts of {', '.join(sorted(set(sums) ^ set(counts))[:6])}")
    chunks, size = metadata.get("imatrix.chunk_count", 0), metadata.get("imatrix.chunk_size", 0)
    return importance_of(sums, counts, path.name, int(chunks) * int(size))


def importance_of(
    sums: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray], source: str, tokens: int
) -> ImportanceMatrix:
    """Means of sums `[experts, columns]` over counts `[experts]`; an expert that was never asked gets ones."""
    import numpy as np

    values, silent = {}, 0
    for name, total in sums.items():
        rows = total.reshape(counts[name].size, -1)
        count = counts[name].reshape(-1, 1)
        silent += int((count == 0).sum())
        means = np.where(count > 0, rows / np.maximum(count, 1), 1.0)
        values[name] = np.ascontiguousarray(means, np.float32).reshape(-1)
        if not np.isfinite(values[name]).all() or (values[name] < 0).any():
            raise ZephyraError(f"the importance matrix {source} has values of '{name}' that are no mean squares")
    return ImportanceMatrix(values=values, source=source, tokens=tokens, silent_experts=silent)


def _read_dat(path: Path) -> ImportanceMatrix:
    import numpy as np

    data, values = path.read_bytes(), {}
    try:
        for name, calls, raw in _entries(data):
            values[name] = np.frombuffer(raw, "<f4") / max(calls, 1)
    except (struct.error, UnicodeDecodeError, ValueError):
        raise ZephyraError(f"{path} is neither a text nor an importance matrix, or it is cut short") from None
    ones = {name: np.ones(1) for name in values}
    return importance_of(values, ones, path.name, 0)


def _entries(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(tensor, number of calls that were summed up, float32 bytes). ValueError, struct.error: damaged."""
    view = memoryview(data)
    (count,), at = struct.unpack_from("<i", view), 4
    if not 0 < count < 100_000:
        raise ValueError
    for _ in range(count):
        (length,) = struct.unpack_from("<i", view, at)
        name, at = bytes(_taken(view, at + 4, length)).decode(), at + 4 + length
        calls, size = struct.unpack_from("<ii", view, at)
        yield name, calls, bytes(_taken(view, at + 8, 4 * size))
        at += 8 + 4 * size


def _taken(view: Any, at: int, length: int) -> Any:
    if length <= 0 or at + length > len(view):
        raise ValueError
    return view[at : at + length]
