"""The files of a batch: prompts by the line, and answers in the order of their prompts, never half a line.

What is answered out of its order waits in a journal beside the output. So whatever ends a run (SIGKILL, a full disk, a
power cut but for the last seconds), the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from zephyra_cli.interruption import deferred
from zephyra_cli.prompt import STANDARD_INPUT
from zephyra_fusion.errors import ZephyraError

MOST_BYTES = 16 * 2**20  # of a line
SUFFIX = ".journal"
_DELETES_OPEN_FILES = os.name != "nt"


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of every line that is not blank; at most one byte more than MOST_BYTES of each."""
    number = 0
    while raw := file.readline(MOST_BYTES + 1):
        number += 1
        rest = raw
        while not rest.endswith(b"\n") and (rest := file.readline(MOST_BYTES)):
            pass
        if raw.strip():
            yield number, raw


def stream(path: Path) -> BinaryIO:
    """A file of lines, or with "-" standard input. OSError; ZephyraError: nothing is piped in."""
    if path != STANDARD_INPUT:
        return path.open("rb")
    if sys.stdin is None or sys.stdin.isatty():
        raise ZephyraError("'-' is standard input, and nothing is piped into it", hint="name a file, or pipe one in")
    return sys.stdin.buffer


def readable_twice(path: Path) -> BinaryIO:
    """As `stream`; of a pipe, its content in a file that nobody else sees. ZephyraError: it is a device."""
    file = stream(path)
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise ZephyraError(f"'{path}' is neither a file nor a pipe")
    import shutil
    import tempfile

    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  closed by whoever reads
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


class Output:
    """Records by the number of their place, written in order. `done`: places that need no work any more.

    identity: what the answers depend on; a run that goes on must have the same.
    ZephyraError: there is a file of that name, begun by something else, or in use, or nothing can be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._waiting: dict[int, bytes] = {}
        self._next = 0
        self._kept: BinaryIO | None = None
        if path.is_dir():
            raise ZephyraError(f"cannot write '{path}': it is a directory")
        self.path, self.journal = path, path.with_name(path.name + SUFFIX)
        plain = not path.exists() or path.is_file()
        try:
            if plain:
                self._kept = self._open_journal(dict(identity))
            self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise ZephyraError(f"cannot write '{error.filename or path}': {error.strerror}") from None
        if self._kept is not None:
            self._next = self._whole_lines(path)
            self._waiting = {place: line for place, line in self._waiting.items() if place >= self._next}
            self._catch_up()

    def __contains__(self, place: int) -> bool:
        return place < self._next or place in self._waiting

    def __len__(self) -> int:
        return self._next + len(self._waiting)

    def write(self, place: int, record: Mapping[str, Any]) -> None:
        """ZephyraError: the disk is full; what was written before stays whole."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with deferred():
            if place != self._next and self._kept is not None:
                self._append(self._kept, self.journal, b"%d %s" % (place, line))
            self._waiting[place] = line
            self._catch_up()

    def finish(self) -> None:
        """All is answered: the journal goes."""
        if self._kept is not None:
            os.fsync(self._file.fileno())
            if _DELETES_OPEN_FILES:  # while its lock is ours
                self.journal.unlink(missing_ok=True)
        self.close()
        if not _DELETES_OPEN_FILES and self._kept is not None:
            self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what there is for a run that goes on."""
        self._file.close()
        if self._kept is not None:
            self._kept.close()

    def _catch_up(self) -> None:
        while (line := self._waiting.get(self._next)) is not None:
            self._append(self._file, self.path, line)
            del self._waiting[self._next]
            self._next += 1

    def _append(self, file: BinaryIO, path: Path, line: bytes) -> None:
        before = None
        try:
            if self._kept is not None:
                before = os.fstat(file.fileno()).st_size
            while line:
                line = line[file.write(line) or 0 :]
        except OSError as error:
            if before is not None:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), before)
            hint = "make room and run the same command again: it goes on from there" if self._kept else None
            raise ZephyraError(f"cannot write to '{path}': {error.strerror}", hint=hint) from None

    def _open_journal(self, identity: dict[str, Any]) -> BinaryIO:
        known = self.journal.is_file()
        if not known and self.path.exists() and self.path.stat().st_size:
            raise ZephyraError(f"'{self.path}' exists already", hint="remove it, or choose another --output")
        file: BinaryIO = open(self.journal, "ab", buffering=0)  # noqa: SIM115  closed by `close`
        try:
            self._go_on(file, identity)
        except BaseException:
            file.close()  # and with it the lock
            raise
        return file

    def _go_on(self, file: BinaryIO, identity: dict[str, Any]) -> None:
        """With the journal of a run that was begun, or a new one: what it has waits to be written in its place."""
        _lock(file, self.path)
        head = json.dumps(identity, ensure_ascii=False, sort_keys=True).encode() + b"\n"
        found = _whole(self.journal).splitlines(keepends=True)
        if not found:
            if self.path.exists() and self.path.stat().st_size:
                raise ZephyraError(f"'{self.path}' exists already", hint="remove it, or choose another --output")
            os.truncate(self.journal, 0)
            self._append(file, self.journal, head)
        elif found[0] != head:
            raise ZephyraError(
                f"'{self.path}' was begun with other prompts or options",
                hint=f"run it as before, or remove '{self.path}' and '{self.journal}'",
            )
        kept = len(head)
        for entry in found[1:]:
            place, _, line = entry.partition(b" ")
            if not _is_entry(place, line):  # damaged: neither it nor what follows can be trusted, both are asked again
                break
            self._waiting[int(place)] = line
            kept += len(entry)
        os.truncate(self.journal, kept)

    def _whole_lines(self, path: Path) -> int:
        whole = _whole(path)
        os.truncate(path, len(whole))
        return whole.count(b"\n")


class InOrder:
    """As `Output`, for standard output: nothing is kept, so a run begins anew."""

    def __init__(self) -> None:
        self._waiting: dict[int, Mapping[str, Any]] = {}
        self._next = 0

    def __contains__(self, place: int) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def write(self, place: int, record: Mapping[str, Any]) -> None:
        from zephyra_cli import ui

        self._waiting[place] = record
        while (found := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            ui.write_json(found)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def _whole(path: Path) -> bytes:
    """A file up to its last line end: what follows was being written when something ended the run."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def _is_entry(place: bytes, line: bytes) -> bool:
    try:
        return int(place) >= 0 and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ZephyraError(
            f"another zephyra is writing '{path}'", hint="wait for it, or choose another --output"
        ) from None
