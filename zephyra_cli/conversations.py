"""Conversations that outlive their chat: one SQLite file, every turn committed as it completes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyra_fusion.errors import ZephyraError

VERSION = 1
WAIT_S = 5.0  # for another chat that is writing
_SCHEMA = """
CREATE TABLE IF NOT EXISTS conversations (id INTEGER PRIMARY KEY, started TEXT NOT NULL, system TEXT);
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY,
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


class CannotKeep(ZephyraError):
    """The place for conversations is read-only, full or missing: whoever only wants to talk can do without it."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answer; `finish_reason` `interrupted` marks one that Ctrl-C ended."""

    question: str
    answer: str
    finish_reason: str
    weights: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    replay: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One line of the list. Times are UTC, ISO 8601."""

    id: int
    last: str
    turns: int
    title: str


class Conversations:
    """The file of all conversations. Several chats may write at once; what a method has returned from is on disk."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        """Open or create. A damaged file is set aside and `note` hears of it.

        CannotKeep: nothing can be written there. ZephyraError: it was made by a newer zephyra.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # what people say is theirs to read
            self._connection = _connect(path)
        except sqlite3.OperationalError as error:
            raise CannotKeep(f"cannot use '{path}': {error}") from None
        except sqlite3.DatabaseError as error:
            aside = _set_aside(path)
            note(
                f"the conversations in '{path}' are damaged ({error}): the file is kept as '{aside}', a new one begins"
            )
            self._connection = _connect(path)
        except OSError as error:
            raise CannotKeep(f"cannot use '{path}': {error.strerror}") from None

    def add(self, conversation: int | None, turn: Turn, system: str | None) -> int:
        """Keep a turn; None begins a conversation. The conversation's number. ZephyraError: it cannot be written."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                if conversation is None:
                    sql = "INSERT INTO conversations (started, system) VALUES (?, ?)"
                    conversation = int(connection.execute(sql, (now, system)).lastrowid or 0)
                else:
                    sql = "UPDATE conversations SET system = ? WHERE id = ?"
                    connection.execute(sql, (system, conversation))
                connection.execute(
                    "INSERT INTO turns (conversation, at, question, answer, finish_reason, weights, model, replay) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (conversation, now, turn.question, turn.answer, turn.finish_reason)
                    + (json.dumps(dict(turn.weights)), turn.model, turn.replay),
                )
        except sqlite3.Error as error:
            raise ZephyraError(f"the turn cannot be kept: {error}") from None
        return conversation

    def undo(self, conversation: int) -> None:
        """The last turn no longer belongs to the conversation. It stays in the file, marked."""
        try:
            with self._connection as connection:
                connection.execute(
                    "UPDATE turns SET undone = 1 WHERE id = "
                    "(SELECT max(id) FROM turns WHERE conversation = ? AND NOT undone)",
                    (conversation,),
                )
        except sqlite3.Error as error:
            raise ZephyraError(f"the undone turn cannot be marked: {error}") from None

    def read(self, conversation: int) -> tuple[list[Turn], str | None]:
        """Turns and system prompt. ZephyraError: there is no such conversation."""
        rows = self._rows("SELECT system FROM conversations WHERE id = ?", conversation)
        if not rows:
            raise ZephyraError(f"there is no conversation {conversation}", hint="see zephyra chat --list")
        names = ("question", "answer", "finish_reason", "model", "replay")
        turns = [
            Turn(**dict(zip(names, values, strict=True)), weights=json.loads(weights))
            for weights, *values in self._rows(
                f"SELECT weights, {', '.join(names)} FROM turns WHERE conversation = ? AND NOT undone ORDER BY id",
                conversation,
            )
        ]
        return turns, rows[0][0]

    def last(self) -> int:
        """The conversation that was spoken in last. ZephyraError: there is none."""
        rows = self._rows("SELECT conversation FROM turns ORDER BY id DESC LIMIT 1")
        if not rows:
            raise ZephyraError("there is no conversation to continue")
        return int(rows[0][0])

    def summaries(self) -> list[Summary]:
        """All conversations, the latest last; a conversation's title is its first question."""
        rows = self._rows(
            "SELECT turns.conversation, groups.at, groups.count, turns.question FROM (SELECT max(at) AS at, "
            "sum(NOT undone) AS count, min(id) AS first, max(id) AS last FROM turns GROUP BY conversation) AS groups "
            "JOIN turns ON turns.id = groups.first ORDER BY groups.last"
        )
        return [Summary(id=number, last=at, turns=count, title=title) for number, at, count, title in rows]

    def close(self) -> None:
        self._connection.close()

    def _rows(self, sql: str, *values: object) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise ZephyraError(f"the conversations cannot be read: {error}") from None


def _connect(path: Path) -> sqlite3.Connection:
    """ZephyraError: a newer version. sqlite3.DatabaseError: damaged, or (OperationalError) not to be used."""
    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    try:
        if (version := connection.execute("PRAGMA user_version").fetchone()[0]) > VERSION:
            raise ZephyraError(
                f"'{path}' was made by a newer zephyra: version {version}, this one reads up to {VERSION}",
                hint="update zephyra",
            )
        connection.execute("PRAGMA journal_mode = WAL")
        if version < VERSION:
            # Two chats may begin at once: who waits here finds the tables made.
            connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA + f"PRAGMA user_version = {VERSION}; COMMIT;")
        connection.execute("SELECT count(*) FROM (SELECT 1 FROM turns LIMIT 1)").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _set_aside(path: Path) -> Path:
    """Rename a damaged file and what SQLite keeps beside it; the new name."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6}")
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(aside.with_name(aside.name + ending))
    return aside
