"""JSON files of strangers: whatever is wrong with them is a ZephyraError, whatever they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zephyra_fusion.errors import ZephyraError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; every way in which a file can be none is a ZephyraError."""
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ZephyraError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ZephyraError(f"{path} holds no JSON object")
    return values


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
