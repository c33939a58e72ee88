"""The disk under the models: hashes, links, a lock across processes, and its refusals in words."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zephyra_fusion.errors import ZephyraError


def amount(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e6:.2f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def digest(path: Path, like: str) -> str:
    """A file's hash in the form of `like`: sha256, or git's ("git:…": sha1 over a header and the bytes)."""
    with path.open("rb") as file:
        if not like.startswith("git:"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        while data := file.read(2**20):
            sha1.update(data)
        return f"git:{sha1.hexdigest()}"


def link(source: Path, target: Path) -> None:
    """The same bytes under another name: a hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """The same bytes once more, whole under the name or not at all."""
    place = target.with_name(f"{target.name}.{os.getpid()}.copy")
    try:
        shutil.copyfile(source, place)
        os.replace(place, target)
    finally:
        place.unlink(missing_ok=True)


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path, note: Callable[[str], None] | None) -> Iterator[None]:
    """Ours alone, across processes; gone with the process. Who has to wait is told so; without `note`, Busy."""
    from filelock import FileLock, Timeout

    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if note is None:
            raise Busy from None
        note("waiting for another zephyra that fetches the same files")
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def writable(place: Path) -> Iterator[None]:
    """A full disk or a place that cannot be written, as an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ZephyraError(
                f"the disk of '{place}' is full", hint="free some space and pull again: what arrived is kept"
            ) from None
        if error.errno is None:
            raise
        raise ZephyraError(
            f"cannot write to '{error.filename or place}': {error.strerror}",
            hint="ZEPHYRA_HOME moves all that is written",
        ) from None
