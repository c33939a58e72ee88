"""The SQLite file of all that was said: made, brought up to date, shared by programs, set aside when damaged."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from zephyra_fusion.errors import ZephyraError

VERSION = 2
WAIT_S = 5.0  # for another program that is writing
LARGEST = 2**63 - 1
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started TEXT NOT NULL,
    system TEXT
);
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation INTEGER NOT NULL REFERENCES conversations (id),
    at TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    weights TEXT NOT NULL,  -- JSON: domain -> weight
    model TEXT NOT NULL,
    replay TEXT NOT NULL,  -- JSON: all that determines the answer
    undone INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS turns_of ON turns (conversation, id);
"""
# From version 1 to 2. The index of the texts holds trigrams: a part of a word, a piece of code and a language without
# spaces are found alike. It has no copy of the texts, the triggers keep it true to `turns`.
_SEARCH = """
ALTER TABLE conversations ADD COLUMN source TEXT NOT NULL DEFAULT 'chat';  -- chat or generate
ALTER TABLE turns ADD COLUMN result TEXT NOT NULL DEFAULT '{}';  -- JSON: the contract's result object but for the text
ALTER TABLE turns ADD COLUMN summary INTEGER NOT NULL DEFAULT 0;  -- of all turns before it
CREATE VIRTUAL TABLE search USING fts5(question, answer, content='turns', content_rowid='id', tokenize='trigram');
INSERT INTO search (search) VALUES ('rebuild');
CREATE TRIGGER turn_added AFTER INSERT ON turns BEGIN
    INSERT INTO search (rowid, question, answer) VALUES (new.id, new.question, new.answer);
END;
CREATE TRIGGER turn_deleted AFTER DELETE ON turns BEGIN
    INSERT INTO search (search, rowid, question, answer) VALUES ('delete', old.id, old.question, old.answer);
END;
CREATE TRIGGER turn_changed AFTER UPDATE OF question, answer ON turns BEGIN
    INSERT INTO search (search, rowid, question, answer) VALUES ('delete', old.id, old.question, old.answer);
    INSERT INTO search (rowid, question, answer) VALUES (new.id, new.question, new.answer);
END;
"""


class CannotKeep(ZephyraError):
    """The file cannot be used (read-only, full, locked, of a newer zephyra): whoever only wants an answer can do
    without it."""


class Database:
    """One connection. What `write` has returned from is on disk, as far as the operating system lives on."""

    def __init__(
        self, path: Path, note: Callable[[str], None], *, wait_s: float | None = None, readable: bool = False
    ) -> None:
        """Open or create. A damaged file is set aside and `note` hears of it.

        readable: it is only read; a file that cannot be written is opened as it stands.
        CannotKeep: nothing can be written there, or a newer zephyra made it.
        """
        self._path, self._note, self._wait_s = path, note, WAIT_S if wait_s is None else wait_s
        self._read_only = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # what people say is theirs to read
            self._connection = self._open()
        except sqlite3.Error as error:
            if not (readable and _only_readable(error)):
                raise CannotKeep(f"cannot use '{path}': {error}") from None
            self._connection, self._read_only = _open_as_it_stands(path), True
        except OSError as error:
            if not (readable and path.is_file()):
                raise CannotKeep(f"cannot use '{path}': {error.strerror}") from None
            self._connection, self._read_only = _open_as_it_stands(path), True

    def write(self, work: Callable[[sqlite3.Connection], T], what: str) -> T:
        """The result of `work`, done as one transaction. Where the file proves to be damaged, in a new one.

        CannotKeep: it cannot be written; nothing of it was. `what` names it.
        """
        try:
            try:
                return self._transaction(work)
            except sqlite3.Error as error:
                self._mend(error)
                return self._transaction(work)
        except (sqlite3.Error, OSError) as error:
            raise CannotKeep(f"{what} cannot be kept: {error}") from None

    def rows(self, sql: str, *values: object) -> list[Any]:
        """ZephyraError: it cannot be read. A damaged file is set aside and there is nothing."""
        # What is beyond SQLite's numbers: no row has the largest, and as a limit it is none.
        values = tuple(min(value, LARGEST) if isinstance(value, int) else value for value in values)
        try:
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                self._mend(error)
                return self._connection.execute(sql, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise ZephyraError(f"'{self._path}' cannot be read: {error}") from None

    def shrink(self) -> None:
        """Give freed space back, so that what was deleted is nowhere in the file. Left out while others use it."""
        try:
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            self._note(f"note: the space of what was deleted is not cleared yet ({error})")

    def close(self) -> None:
        self._connection.close()

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            return work(connection)

    def _mend(self, error: sqlite3.Error) -> None:
        """Have a file again that can be used. sqlite3.Error: `error`, where it is not about damage."""
        if self._read_only or not _damaged(error):
            raise error
        self._connection.close()
        self._connection = self._open()
        if (found := self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            self._connection.close()
            self._connection = self._begin_anew(found)
        else:
            self._connection.execute("INSERT INTO search (search) VALUES ('rebuild')")

    def _open(self) -> sqlite3.Connection:
        """The file, whole; else a new one in its place."""
        try:
            return _connect(self._path, self._wait_s)
        except sqlite3.Error as error:
            if not _damaged(error):
                raise
            return self._begin_anew(str(error))

    def _begin_anew(self, fault: str) -> sqlite3.Connection:
        aside = _set_aside(self._path)
        self._note(
            f"note: the conversations in '{self._path}' are damaged ({fault}): "
            f"the file is kept as '{aside}', a new one begins"
        )
        return _connect(self._path, self._wait_s)


def _connect(path: Path, wait_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
    try:
        version = _version(connection)
        if version > VERSION:
            raise CannotKeep(
                f"'{path}' was made by a newer zephyra: version {version}, this one reads up to {VERSION}",
                hint="update zephyra, or set ZEPHYRA_HOME to another folder",
            )
        _write_ahead(connection, wait_s)
        # Every commit reaches the operating system, so that no kill loses it; a loss of power may cost the last
        # turns, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        if version < VERSION:
            _bring_up_to_date(connection)
        connection.execute("SELECT max(id) FROM turns").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection, wait_s: float) -> None:
    """Readers and a writer side by side. SQLite does not wait for the change of mode as it waits for a writer."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Two programs may begin at once: who waits here finds the tables made."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if (version := _version(connection)) < VERSION:
            for statement in _statements(_TABLES + _SEARCH if version < 2 else ""):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """The statements of a script. (`executescript` would commit the transaction that they belong to.)"""
    found, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    return found


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _open_as_it_stands(path: Path) -> sqlite3.Connection:
    """Read-only. Where the folder cannot be written, SQLite cannot share the file and must be told not to try."""
    name = path.absolute().as_uri()
    for how in ("mode=ro", "mode=ro&immutable=1"):
        with suppress(sqlite3.Error):
            connection = sqlite3.connect(f"{name}?{how}", uri=True)
            if _version(connection) == VERSION and connection.execute("SELECT count(*) FROM turns"):
                return connection
            connection.close()
    raise CannotKeep(f"cannot read '{path}'")


def _only_readable(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


def _damaged(error: sqlite3.Error) -> bool:
    return _code(error) in DAMAGED


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; its extended ones carry it in their low byte."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _set_aside(path: Path) -> Path:
    """Rename a damaged file and what SQLite keeps beside it; the new name."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6}")
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(aside.with_name(aside.name + ending))
    return aside
