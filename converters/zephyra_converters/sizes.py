"""How large a base will be in each type, exactly, and what memory it takes to run: from the headers alone.

llama.cpp's own quantizer decides over a file of the right header and no data, so mixtures and fallbacks are its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zephyra_converters.fallback import fallbacks
from zephyra_converters.gguf_file import Planned, padded, tensor_bytes, write_header
from zephyra_converters.gguf_write import GGUFPlan, type_of
from zephyra_converters.quantize import QUANTIZATIONS, UNQUANTIZED, Quantization, planned_types
from zephyra_fusion.config import SLIDING, FusionConfig
from zephyra_fusion.errors import ZephyraError

TOKENS = 4096  # of a context that memory is estimated for
_GRAPH = 64 * 2**20  # bytes: what a context takes beside its cache, roughly


@dataclass(frozen=True, kw_only=True)
class PlannedSize:
    """Bytes of a file, how many of its tensors would have which type, and which of them not the one they should."""

    bytes: int
    tensors: Mapping[str, int]
    warnings: Sequence[str] = ()


def planned_size(plan: GGUFPlan, wanted: Quantization) -> PlannedSize:
    with _folder() as folder:
        return _size(plan, wanted, folder)


def sizes_by_type(plan: GGUFPlan) -> dict[str, int]:
    """Bytes of the file in every type that llama.cpp writes of this model."""
    sizes = {}
    with _folder() as folder:
        for name in QUANTIZATIONS:
            with suppress(ZephyraError):  # types without a fallback for rows that their blocks do not divide
                sizes[name] = _size(plan, Quantization(name=name), folder).bytes
    return sizes


def memory_needed(config: FusionConfig, file_bytes: int) -> int:
    """Bytes that running the file takes: weights, and a 16-bit cache of `TOKENS` tokens or the model's context."""
    length = min(TOKENS, config.max_position_embeddings)
    width = (config.num_key_value_heads or 0) * (config.head_dim or 0)
    cached = 0
    for kind in config.layer_types or ():
        cached += min(length, config.sliding_window or length) if kind == SLIDING else length
    return file_bytes + 2 * 2 * width * cached + _GRAPH


def _size(plan: GGUFPlan, wanted: Quantization, folder: Path) -> PlannedSize:
    if wanted.name in UNQUANTIZED:
        types, fell = {tensor.name: type_of(tensor, wanted.name) for tensor in plan.tensors}, set[str]()
    else:
        types, fell = planned_types(_hollow(plan, folder), wanted)
    counts: dict[str, int] = {}
    total = _header_bytes(plan, folder)
    for tensor in plan.tensors:
        kind = types[tensor.name]
        counts[kind] = counts.get(kind, 0) + 1
        total += padded(tensor_bytes(tensor.shape, kind))
    matrices = {tensor.name: types[tensor.name] for tensor in plan.tensors if len(tensor.shape) > 1}
    return PlannedSize(bytes=total, tensors=counts, warnings=fallbacks(matrices, fell, wanted))


def _header_bytes(plan: GGUFPlan, folder: Path) -> int:
    path = folder / "header"
    if not path.exists():
        planned = [Planned(tensor, type_of(tensor, "F16")) for tensor in plan.tensors]
        write_header(path, plan.architecture.name, plan.metadata, planned).close()
    return path.stat().st_size


def _hollow(plan: GGUFPlan, folder: Path) -> Path:
    """A GGUF of the model's shape whose data are a hole in the file: it takes no room on the disk."""
    path = folder / "hollow.gguf"
    if not path.exists():
        planned = [Planned(tensor, type_of(tensor, "F16")) for tensor in plan.tensors]
        shape = {key: value for key, value in plan.metadata.items() if not key.startswith("tokenizer.")}
        write_header(path, plan.architecture.name, shape, planned).close()
        size = sum(padded(tensor_bytes(p.tensor.shape, p.type)) for p in planned)
        os.truncate(path, path.stat().st_size + size)
    return path


@contextmanager
def _folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="zephyra-") as name:
            yield Path(name)
    except OSError as error:
        raise ZephyraError(
            f"cannot plan the sizes in '{error.filename or tempfile.gettempdir()}': {error.strerror or error}",
            hint="that takes a file with a hole as large as the model in F16: TMPDIR names another disk, and a limit "
            "on the size of files (ulimit -f) counts the hole",
        ) from None
