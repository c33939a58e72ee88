from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from zephyra_cli.conversations import Conversations, Turn
from zephyra_fusion.errors import ZephyraError


def turn(question: str, **values: object) -> Turn:
    return Turn(question=question, answer=f"answer to {question}", finish_reason="stop", **values)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "conversations.db"


@pytest.fixture
def notes() -> list[str]:
    return []


def test_turns_come_back_as_they_were(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    first = turn("one \x1b[31m ü \u202e", weights={"shell": 0.7, "sql": 0.3}, model="tiny", replay='{"seed":1}')
    number = kept.add(None, first, "be brief")
    kept.add(number, turn("two"), "be brief")
    assert Conversations(path, notes.append).read(number) == ([first, turn("two")], "be brief")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and notes == []


def test_what_is_not_closed_is_kept(path: Path, notes: list[str]) -> None:
    """A kill leaves the connection open: a second one must see the turn without the first one's help."""
    one, two = Conversations(path, notes.append), Conversations(path, notes.append)
    number = one.add(None, turn("from one"), None)
    other = two.add(None, turn("from two"), None)
    one.add(number, turn("again one"), None)
    assert two.last() == number != other
    assert [(line.id, line.turns, line.title) for line in two.summaries()] == [
        (other, 1, "from two"),
        (number, 2, "from one"),
    ]


def test_an_undone_turn_is_out_of_the_conversation_but_in_the_file(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    number = kept.add(None, turn("one"), None)
    kept.add(number, turn("two"), None)
    kept.undo(number)
    kept.add(number, turn("three"), None)
    assert [t.question for t in kept.read(number)[0]] == ["one", "three"]
    assert sqlite3.connect(path).execute("SELECT question FROM turns WHERE undone").fetchall() == [("two",)]


def test_unknown_and_none(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    with pytest.raises(ZephyraError, match="no conversation 7"):
        kept.read(7)
    with pytest.raises(ZephyraError, match="no conversation to continue"):
        kept.last()


def test_a_damaged_file_is_set_aside_not_deleted(path: Path, notes: list[str]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all " * 100)
    kept = Conversations(path, notes.append)
    kept.add(None, turn("one"), None)
    (aside,) = path.parent.glob("conversations.db.damaged-*")
    assert aside.read_bytes().startswith(b"no database") and str(aside) in notes[0]


def test_a_newer_file_is_refused_and_left_alone(path: Path, notes: list[str]) -> None:
    Conversations(path, notes.append).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ZephyraError, match="newer zephyra: version 99"):
        Conversations(path, notes.append)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (99,)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(ZephyraError, match="cannot use"):
        Conversations(tmp_path / "home" / "conversations.db", notes.append)
    folder = tmp_path / "folder" / "conversations.db"
    folder.mkdir(parents=True)
    with pytest.raises(ZephyraError, match="cannot use"):
        Conversations(folder, notes.append)


def test_a_locked_file_is_said(path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zephyra_cli.conversations.WAIT_S", 0.05)
    kept = Conversations(path, notes.append)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ZephyraError, match="cannot be kept: database is locked"):
        kept.add(None, turn("one"), None)
    other.execute("ROLLBACK")
    assert kept.add(None, turn("one"), None) == 1
