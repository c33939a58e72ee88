"""The texts of a data folder, by name: `pretrain/books`, `domains/sql`, `chat`."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from zephyra_fusion.errors import ZephyraError, did_you_mean


@dataclass(frozen=True)
class Record:
    """A plain text (`prompt` is None), or a prompt with its response."""

    text: str
    prompt: str | None = None


def source_file(data: Path, name: str, split: str = "train") -> Path:
    """Where the source lies: `NAME.jsonl[.zst|.gz]`, or `NAME/SPLIT.jsonl[.zst|.gz]`."""
    for base in (data / name / split, data / name):
        for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
            path = base.with_name(base.name + suffix)
            if path.is_file():
                return path
    known = {str(p.relative_to(data)).split(".jsonl")[0] for p in data.rglob("*.jsonl*")}
    known = {k.removesuffix("/train").removesuffix("/valid") for k in known}
    raise ZephyraError(f"no source '{name}' ({split}) in {data}", hint=did_you_mean(name, known))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file."""
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ZephyraError(f"{path}, line {number}: {error}") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
        import zstandard

        stream = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(path.open("rb"), closefd=True)
        return io.TextIOWrapper(stream, encoding="utf-8")
    return path.open(encoding="utf-8")


def read_records(data: Path, name: str, split: str = "train") -> Iterator[Record]:
    """Every record of the source: `{"text"}` or `{"prompt", "response"}` a line."""
    for line in read_lines(source_file(data, name, split)):
        if "text" in line:
            yield Record(line["text"])
        else:
            yield Record(line["response"], prompt=line["prompt"])
