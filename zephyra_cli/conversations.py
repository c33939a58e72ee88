"""Conversations that outlive their chat: each question is on disk before its answer begins, each answer as it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.database import Database
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.values import dataclass, field

if TYPE_CHECKING:
    import sqlite3

UNFINISHED = "unfinished"
"""`finish_reason` of an answer that is being written, or whose program was killed."""
TRIGRAM = 3  # characters: a shorter word is none that the index of the texts knows


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answer; `finish_reason` `interrupted` marks one that Ctrl-C ended.

    `summary`: it stands for all turns before it. `id`: its row, 0 where it is kept nowhere.
    """

    question: str
    answer: str
    finish_reason: str
    weights: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    summary: bool = False
    id: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A turn as the file has it. `number`: its place in its conversation, counted with those that were taken back."""

    conversation: int
    number: int
    at: str
    turn: Turn
    replay: Mapping[str, Any]
    result: Mapping[str, Any]
    undone: bool

    @property
    def name(self) -> str:
        """As the commands take it: CONVERSATION.NUMBER."""
        return f"{self.conversation}.{self.number}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One line of the list. Times are UTC, ISO 8601. `source`: chat or generate."""

    id: int
    last: str
    turns: int
    title: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """A turn that a search found: its name and the words around the first place."""

    name: str
    at: str
    snippet: str


_KEPT = "id, conversation, number, at, question, answer, finish_reason, weights, model, summary, replay, result, undone"
_NUMBERED = "(SELECT *, row_number() OVER (ORDER BY id) AS number FROM turns WHERE conversation = ?)"


class Conversations:
    """The file of all conversations. Several programs may write at once."""

    def __init__(
        self, path: Path, note: Callable[[str], None], *, wait_s: float | None = None, readable: bool = False
    ) -> None:
        """As `Database`, which says what is raised."""
        self._database = Database(path, note, wait_s=wait_s, readable=readable)

    def begin(
        self,
        conversation: int | None,
        question: str,
        system: str | None,
        *,
        source: str = "chat",
        summary: bool = False,
    ) -> tuple[int, int]:
        """Keep a question; None begins a conversation. The numbers of the conversation and of the turn."""

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            sql = (
                "INSERT INTO conversations (id, started, system, source) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET system = excluded.system, source = excluded.source"
            )
            number = int(connection.execute(sql, (conversation, _now(), system, source)).lastrowid or 0)
            number = number if conversation is None else conversation
            return number, _insert(connection, None, number, question, summary)

        return self._database.write(work, "the question")

    def progress(self, turn: int, answer: str) -> None:
        """What there is of an answer so far."""
        self._database.write(
            lambda connection: connection.execute(
                "UPDATE turns SET answer = ? WHERE id = ? AND finish_reason = ?", (answer, turn, UNFINISHED)
            ),
            "the answer",
        )

    def finish(
        self, conversation: int, row: int, turn: Turn, replay: Mapping[str, Any], result: Mapping[str, Any]
    ) -> None:
        """Keep the whole answer to the question in `row`."""

        def work(connection: sqlite3.Connection) -> None:
            if not connection.execute("SELECT 1 FROM turns WHERE id = ?", (row,)).fetchone():
                # The file was set aside or the conversation deleted meanwhile: what is said now is kept all the same.
                connection.execute(
                    "INSERT OR IGNORE INTO conversations (id, started) VALUES (?, ?)", (conversation, _now())
                )
                _insert(connection, row, conversation, turn.question, turn.summary)
            connection.execute(
                "UPDATE turns SET answer = ?, finish_reason = ?, weights = ?, model = ?, replay = ?, result = ? "
                "WHERE id = ?",
                (turn.answer, turn.finish_reason, _json(dict(turn.weights)), turn.model)
                + (_json(replay), _json(result), row),
            )

        self._database.write(work, "the answer")

    def mark(self, turn: int, *, undone: bool, interrupted: bool = False) -> None:
        """An undone turn no longer belongs to its conversation. It stays in the file."""
        reason = ", finish_reason = 'interrupted'" if interrupted else ""
        self._database.write(
            lambda connection: connection.execute(f"UPDATE turns SET undone = ?{reason} WHERE id = ?", (undone, turn)),
            "the undone turn",
        )

    def read(self, conversation: int) -> tuple[list[Turn], str | None]:
        """Turns and system prompt, as the chat goes on with them. ZephyraError: there is no such conversation."""
        turns = [kept.turn for kept in self.turns(conversation) if not kept.undone]
        return [turn for turn in turns if turn.answer or turn.finish_reason != UNFINISHED], self.system(conversation)

    def unanswered(self, conversation: int) -> str | None:
        """The last question, if not a word of an answer is kept: its program was killed, or is at it now."""
        last = [kept.turn for kept in self.turns(conversation) if not kept.undone][-1:]
        return next((turn.question for turn in last if turn.finish_reason == UNFINISHED and not turn.answer), None)

    def system(self, conversation: int) -> str | None:
        """Its system prompt. ZephyraError: there is no such conversation."""
        rows: list[tuple[str | None]] = self._database.rows(
            "SELECT system FROM conversations WHERE id = ?", conversation
        )
        if not rows:
            raise ZephyraError(f"there is no conversation {conversation}", hint="see zephyra log")
        return rows[0][0]

    def turns(self, conversation: int) -> list[Kept]:
        """All turns of a conversation, those that were taken back too. ZephyraError: there is no such conversation."""
        self.system(conversation)
        return [_kept(row) for row in self._database.rows(f"SELECT {_KEPT} FROM {_NUMBERED} ORDER BY id", conversation)]

    def turn(self, name: str) -> Kept:
        """The turn CONVERSATION.NUMBER, or the last one of CONVERSATION. ZephyraError: there is none."""
        conversation, number = parse_name(name)
        turns = [kept for kept in self.turns(conversation) if number in (None, kept.number)]
        turns = [kept for kept in turns if not kept.undone] or turns
        if not turns:
            raise ZephyraError(
                f"conversation {conversation} has no turn {number}", hint=f"zephyra log show {conversation}"
            )
        return turns[-1]

    def texts(self, rows: Sequence[int]) -> list[tuple[str, str]]:
        """Question and answer of these rows, in their order. ZephyraError: one of them is gone."""
        marks = ",".join("?" * len(rows))
        sql = f"SELECT id, question, answer FROM turns WHERE id IN ({marks})"
        found = {number: (question, answer) for number, question, answer in self._database.rows(sql, *rows)}
        if len(found) < len(set(rows)):
            raise ZephyraError("earlier turns of the conversation are no longer in the log")
        return [found[row] for row in rows]

    def last(self, source: str = "chat") -> int:
        """The conversation (of that source) that has the last turn not taken back. ZephyraError: there is none."""
        rows = self._database.rows(
            "SELECT conversation FROM turns JOIN conversations ON conversations.id = conversation "
            "WHERE source = ? AND NOT undone ORDER BY turns.id DESC LIMIT 1",
            source,
        )
        if not rows:
            raise ZephyraError("there is no conversation to continue")
        return int(rows[0][0])

    def summaries(self, *, source: str | None = None, limit: int = -1) -> list[Summary]:
        """The last `limit` conversations (all: -1), the latest last; a title is the first question that stands."""
        rows = self._database.rows(
            "SELECT * FROM (SELECT turns.conversation, groups.at, groups.count, turns.question, source, groups.last "
            "FROM (SELECT conversation, max(at) AS at, sum(NOT undone) AS count, max(id) AS last, "
            "coalesce(min(CASE WHEN NOT undone AND NOT summary THEN id END), min(id)) AS first "
            "FROM turns GROUP BY conversation) AS groups JOIN turns ON turns.id = groups.first "
            "JOIN conversations ON conversations.id = turns.conversation "
            "WHERE ? IS NULL OR source = ? ORDER BY groups.last DESC LIMIT ?) ORDER BY last",
            source,
            source,
            limit,
        )
        return [
            Summary(id=n, last=at, turns=count, title=title, source=from_) for n, at, count, title, from_, _ in rows
        ]

    def search(self, words: str, *, limit: int = 20) -> list[Found]:
        """Turns in which every word stands somewhere, in question or answer, small or capital; the latest last."""
        long = [word for word in words.split() if len(word) >= TRIGRAM]
        conditions, values = ["1"], list[object]()
        for word in words.split():
            if word not in long:
                conditions.append("(turns.question || ' ' || turns.answer) LIKE ? ESCAPE '\\'")
                values.append("%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%")
        source, snippet = "turns", "substr(turns.question || ' ' || turns.answer, 1, 120)"
        if long:
            source, snippet = "search JOIN turns ON turns.id = search.rowid", "snippet(search, -1, '', '', '…', 40)"
            conditions.append("search MATCH ?")
            values.append(" ".join('"' + word.replace('"', '""') + '"' for word in long))
        number = "(SELECT count(*) FROM turns AS t WHERE t.conversation = turns.conversation AND t.id <= turns.id)"
        rows = self._database.rows(
            f"SELECT turns.conversation, {number}, turns.at, {snippet} FROM {source} "
            f"WHERE {' AND '.join(conditions)} ORDER BY turns.id DESC LIMIT ?",
            *values,
            limit,
        )
        return [Found(name=f"{row[0]}.{row[1]}", at=row[2], snippet=row[3]) for row in reversed(rows)]

    def delete(self, conversations: Sequence[int]) -> None:
        """Delete these for good. ZephyraError: one of them is not there; nothing was deleted."""
        for conversation in conversations:
            self.system(conversation)

        def work(connection: sqlite3.Connection) -> None:
            values = [(conversation,) for conversation in conversations]
            connection.executemany("DELETE FROM turns WHERE conversation = ?", values)
            connection.executemany("DELETE FROM conversations WHERE id = ?", values)

        self._database.write(work, "the deletion")
        self._database.shrink()

    def close(self) -> None:
        self._database.close()


def parse_name(name: str) -> tuple[int, int | None]:
    """CONVERSATION or CONVERSATION.NUMBER. ZephyraError: it is neither."""
    conversation, dot, number = name.partition(".")
    if not (conversation.isdecimal() and (number.isdecimal() or not dot)) or len(name) > 18:
        raise ZephyraError(
            f"'{name}' names no turn", hint="as in 12.3, the third turn of conversation 12; see zephyra log"
        )
    return int(conversation), int(number) if dot else None


def _insert(connection: sqlite3.Connection, row: int | None, conversation: int, question: str, summary: bool) -> int:
    sql = (
        "INSERT INTO turns (id, conversation, at, question, answer, finish_reason, weights, model, replay, summary) "
        "VALUES (?, ?, ?, ?, '', ?, '{}', '', '{}', ?)"
    )
    return int(connection.execute(sql, (row, conversation, _now(), question, UNFINISHED, summary)).lastrowid or 0)


def _kept(row: Sequence[Any]) -> Kept:
    values = dict(zip(_KEPT.split(", "), row, strict=True))
    names = ("id", "question", "answer", "finish_reason", "model")
    return Kept(
        turn=Turn(
            **{name: values[name] for name in names},
            weights=json.loads(values["weights"]),
            summary=bool(values["summary"]),
        ),
        **{name: values[name] for name in ("conversation", "number", "at")},
        replay=json.loads(values["replay"] or "{}"),
        result=json.loads(values["result"]),
        undone=bool(values["undone"]),
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
