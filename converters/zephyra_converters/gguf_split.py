"""A model over several GGUF files (llama.cpp's gguf-split): which files they are, and their headers as one.

Source: llama.cpp, tools/gguf-split: `split.no`, `split.count` (UINT16) and `split.tensors.count` in each file, whose
name ends in -00001-of-0000N.gguf. llama.cpp loads all of them when it is given the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zephyra_converters.gguf_header import GGUFHeader, TensorInfo
from zephyra_fusion.errors import ZephyraError

_NAME = re.compile(r"(?P<stem>.+)-00001-of-(?P<count>\d{5})\.gguf")
_MOST = 1000


def shard_paths(first: GGUFHeader) -> list[Path]:
    """The files of a split model, given the header of the first; empty where it is not split.

    ZephyraError: it is not the first, or its name does not say what its header says.
    """
    count = first.metadata.get("split.count", 0)
    if count in (0, 1):
        return []
    match = _NAME.fullmatch(first.path.name)
    if not isinstance(count, int) or not 1 < count <= _MOST or match is None or int(match["count"]) != count:
        raise ZephyraError(
            f"{first.path} is one of {count} files of a model, but not by its name",
            hint="name the first of them: …-00001-of-0000N.gguf",
        )
    return [first.path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]


def joined(headers: Sequence[GGUFHeader]) -> GGUFHeader:
    """The header of the whole: the first one's keys, all tensors. ZephyraError: they do not belong together.

    llama.cpp reads every file by its own alignment and architecture, of which nothing after this sees but the first's.
    """
    first = headers[0]
    tensors: dict[str, TensorInfo] = {}
    for number, header in enumerate(headers):
        split = header.metadata.get("split.no"), header.metadata.get("split.count")
        if split != (number, len(headers)):
            raise ZephyraError(
                f"{header.path} is not part {number + 1} of {len(headers)}: split.no, split.count {split}"
            )
        if header.alignment % 32:
            raise ZephyraError(f"{header.path}: general.alignment is {header.alignment}, must be a multiple of 32")
        for key in ("general.architecture", "general.type"):
            if (own := header.metadata.get(key, first.metadata.get(key))) != first.metadata.get(key):
                raise ZephyraError(f"{header.path} is no part of {first.path.name}: its {key} is '{str(own)[:40]}'")
        if again := sorted(set(tensors) & set(header.tensors)):
            raise ZephyraError(f"{header.path} has '{again[0]}' again, which an earlier part has")
        tensors.update(header.tensors)
    if (told := first.metadata.get("split.tensors.count", len(tensors))) != len(tensors):
        raise ZephyraError(f"{first.path} and its parts have {len(tensors)} tensors, split.tensors.count says {told}")
    metadata = {key: value for key, value in first.metadata.items() if not key.startswith("split.")}
    parts = {name: header.path for header in headers for name in header.tensors}
    return replace(first, metadata=metadata, tensors=tensors, parts=parts)
