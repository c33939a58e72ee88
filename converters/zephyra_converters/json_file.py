"""JSON files of strangers: whatever is wrong with them is a ZephyraError, whatever they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zephyra_converters.regular_file import open_regular
from zephyra_fusion.errors import ZephyraError

MOST_BYTES = 16 * 2**20  # of a file: the longest index of shards has 15 MB, a configuration some KB
_LONGER = {"tokenizer.json": 64 * 2**20}  # the longest have 35 MB
_BYTES_OF_A_VALUE = 16  # on average at least, see `parse_json`


def read_json(path: Path, most: int | None = None) -> dict[str, Any]:
    """A JSON object of at most `most` bytes; every way in which a file can be none is a ZephyraError."""
    most = most or _LONGER.get(path.name, MOST_BYTES)
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror or error}") from None
    values = parse_json(data, path, most)
    if not isinstance(values, dict):
        raise ZephyraError(f"{path} holds no JSON object")
    return values


def parse_json(data: bytes, what: Path | str, most: int = MOST_BYTES, **options: Any) -> Any:
    """What a JSON text says; `options` are json.loads'. ZephyraError: it is too long, says too much, or is none.

    A list without anything in it takes three bytes here and seventy in memory, so the values are counted before they
    are made: as many as bytes of `most` / 16, which is more than any file of this field has.
    """
    if len(data) > most:
        raise ZephyraError(f"{what} is longer than {most // 2**20} MiB")
    if (values := sum(map(data.count, (b",", b"[", b"{")))) > most // _BYTES_OF_A_VALUE:
        raise ZephyraError(f"{what} holds {values} values, at most {most // _BYTES_OF_A_VALUE} are read")
    try:
        return json.loads(data.decode("utf-8"), **options)
    except (ValueError, RecursionError) as error:
        raise ZephyraError(f"{what} is not JSON: {error}") from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def well_formed(what: Path | str) -> Iterator[None]:
    """For code that takes a stranger's values apart: a list where a number belongs is the file's fault, not ours."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, re.error) as error:
        raise ZephyraError(
            f"{what} is malformed: {error}", hint="a value in it is of the wrong kind; fetch or write it again"
        ) from error
