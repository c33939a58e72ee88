"""A folder of files that each hold what was read of one prompt: bounded, and proof against whatever happens to it.

A file is MAGIC, the key (32 bytes), the number of tokens (32 bits), the tokens (32 bits each), the state, and the
SHA-256 of all that. It stands under its name only when it is whole; one that is not what it says is deleted. The folder
may be anybody's: what has not both a name as ours have and our beginning is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyra_cli.backends.kv import common_prefix

MAGIC = b"ZEPHKV01"
ENDING, UNFINISHED = ".prompt", ".prompt-tmp"
_NAME, _UNFINISHED_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.prompt"), re.compile(r"zephyra-\w+\.prompt-tmp")
_HEAD, _DIGEST = len(MAGIC) + 32 + 4, 32
_ABANDONED = 3600  # seconds after which an unfinished file is somebody's who was killed
_MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class Found:
    """A file, how many of its tokens a prompt begins with, and how many it has."""

    path: Path
    common: int
    count: int


class PromptFolder:
    """`limit`: bytes that all files may have together. `say` hears what goes wrong: a cache is never a reason to fail.

    What cannot be read is not there, what cannot be written is told.
    """

    def __init__(self, folder: Path, limit: int, say: Callable[[str], None]) -> None:
        self.folder, self._limit = folder, limit
        self._listener, self._said = say, set[str]()

    def _say(self, text: str) -> None:
        """Each thing once."""
        if text not in self._said:
            self._said.add(text)
            self._listener(text)

    def longest(self, key: bytes, prompt: Sequence[int], most: int) -> Found | None:
        """The file that has most of the prompt's beginning, of those with at most `most` tokens."""
        best = None
        for path in self._paths(key):
            tokens = self._tokens(path, key)
            if tokens is not None and len(tokens) <= most:
                found = Found(path, common_prefix(tokens, prompt), len(tokens))
                if best is None or found.common > best.common:
                    best = found
        return best

    def read(self, path: Path, key: bytes) -> tuple[list[int], bytes] | None:
        """Tokens and state of a file; None, and the file is deleted, if a single bit of it is wrong."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        body, digest = memoryview(content)[:-_DIGEST], content[-_DIGEST:]
        tokens = _parse(content, key)
        if tokens is None or hashlib.sha256(body).digest() != digest:
            self._say(f"the prompt cache '{path}' is damaged: it is deleted, and the prompt is read anew")
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # a folder that is read only keeps no order
            os.utime(path)
        return tokens, bytes(body[_HEAD + 4 * len(tokens) :])

    def write(self, key: bytes, tokens: Sequence[int], state: Any, replaces: Path | None = None) -> None:
        """Keep the state of `tokens`; a file that held their beginning goes."""
        words = array("i", tokens).tobytes()
        head = MAGIC + key + len(tokens).to_bytes(4, "little") + words
        size = len(head) + len(state) + _DIGEST
        if size > self._limit:
            self._say(f"a prompt of {len(tokens)} tokens takes {_mb(size)}, the prompt cache has {_mb(self._limit)}")
            return
        path = self.folder / f"{key.hex()[:16]}-{hashlib.sha256(words).hexdigest()[:32]}{ENDING}"
        digest = hashlib.sha256(head)
        digest.update(state)
        if self.store(path.name, (head, state, digest.digest()), size) and replaces is not None and replaces != path:
            replaces.unlink(missing_ok=True)

    def store(self, name: str, parts: Sequence[Any], size: int = 0) -> bool:
        """Write a file as a whole or not at all; whether it was."""
        made = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            number, made = tempfile.mkstemp(dir=self.folder, prefix="zephyra-", suffix=UNFINISHED)
            with os.fdopen(number, "wb") as file:
                file.writelines(parts)
            os.replace(made, self.folder / name)
        except OSError as error:
            self._say(f"cannot write to the prompt cache '{self.folder}': {error.strerror}")
            return False
        finally:
            if made is not None:
                Path(made).unlink(missing_ok=True)
        return True

    def _paths(self, key: bytes) -> list[Path]:
        try:
            return sorted(path for path in self.folder.glob(f"{key.hex()[:16]}-*{ENDING}") if _is_ours(path))
        except OSError:
            return []

    def _tokens(self, path: Path, key: bytes) -> list[int] | None:
        """What the file says it holds; None where it is not ours."""
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
                return _parse(head + file.read(4 * min(_count(head), _MOST_TOKENS)), key)
        except OSError:
            return None

    def _make_room(self, size: int) -> None:
        """Those used longest ago go until `size` more bytes fit."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            try:
                about = path.lstat()
                if _is_ours(path):
                    found.append((about.st_mtime, about.st_size, path))
                elif _UNFINISHED_NAME.fullmatch(path.name) and about.st_mtime < time.time() - _ABANDONED:
                    path.unlink()
            except OSError:
                continue
        total = sum(length for _, length, _ in found) + size
        for _, length, path in sorted(found):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= length


def _is_ours(path: Path) -> bool:
    """By name, kind and beginning. Nothing but a plain file is opened: a pipe would wait for who writes into it."""
    if not _NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _count(head: bytes) -> int:
    return int.from_bytes(head[_HEAD - 4 : _HEAD], "little")


def _parse(content: bytes, key: bytes) -> list[int] | None:
    words = content[_HEAD : _HEAD + 4 * _count(content)]
    if content[: _HEAD - 4] != MAGIC + key or len(words) != 4 * _count(content):
        return None
    return array("i", words).tolist()


def _mb(size: int) -> str:
    return f"{size / 2**20:.0f} MB"
