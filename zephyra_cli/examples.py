"""Example prompts, as users give them: of one domain, or labelled with theirs."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyra_converters.json_file import parse_json
from zephyra_fusion.errors import ZephyraError

MOST_BYTES = 4 * 2**20  # of a file, unpacked: 20,000 examples
_MOST_LINES = 100_000  # each costs fifty bytes more than it holds
LONGEST = 20_000  # characters of one prompt


@dataclass(frozen=True)
class Example:
    prompt: str
    domain: str


def read_prompts(path: Path) -> list[str]:
    """One prompt a line: `{"prompt": …}` in JSON, or the text itself. Repeated and empty ones are left out."""
    lines = _lines(path)
    prompts = [line for line in lines if line.strip()]
    if prompts and prompts[0].lstrip().startswith("{"):
        prompts = [_text(entry, "prompt", path, number) for number, entry in _objects(lines, path)]
    return list(dict.fromkeys(prompt.strip()[:LONGEST] for prompt in prompts))


def read_examples(path: Path) -> list[Example]:
    """`{"prompt": …, "domain": …}` a line; `none` is the domain of prompts that are the base's."""
    found = [
        Example(_text(entry, "prompt", path, number)[:LONGEST], _text(entry, "domain", path, number))
        for number, entry in read_objects(path)
    ]
    return list(dict.fromkeys(found))


def read_objects(path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    """(line number, JSON object) of each line that is not empty; the file may be packed by gzip."""
    return _objects(_lines(path), path)


def _lines(path: Path) -> Sequence[str]:
    """ZephyraError: it cannot be read, is too long when unpacked, or no text."""
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ZephyraError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MOST_BYTES:
        raise ZephyraError(f"'{path}' is longer than {MOST_BYTES // 2**20} MiB")
    try:
        if (lines := data.count(b"\n")) > _MOST_LINES:
            raise ZephyraError(f"'{path}' has {lines} lines, at most {_MOST_LINES} are read")
        return data.decode("utf-8-sig").split("\n")  # splitlines() would also split at U+2028
    except UnicodeDecodeError as error:
        raise ZephyraError(f"'{path}' is no UTF-8 text: {error}") from None


def _objects(lines: Sequence[str], path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = parse_json(line.encode(), f"'{path}', line {number},", MOST_BYTES)
        if not isinstance(entry, dict):
            raise ZephyraError(f"'{path}', line {number}: no JSON object")
        yield number, entry


def _text(entry: dict[str, object], key: str, path: Path, number: int) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ZephyraError(f"'{path}', line {number}: no text under \"{key}\"")
    return value
