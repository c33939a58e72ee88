from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zephyra_cli import database
from zephyra_cli.conversations import UNFINISHED, Conversations, Turn
from zephyra_cli.database import CannotKeep
from zephyra_fusion.errors import ZephyraError


def turn(question: str, **values: object) -> Turn:
    return Turn(question=question, answer=f"answer to {question}", finish_reason="stop", **values)


def add(kept: Conversations, conversation: int | None, what: Turn, system: str | None = None) -> int:
    conversation, row = kept.begin(conversation, what.question, system, summary=what.summary)
    kept.finish(conversation, row, what, {"sampling": {"seed": 1}}, {"backend": "llama"})
    return conversation


def questions(kept: Conversations, conversation: int) -> list[str]:
    return [line.question for line in kept.read(conversation)[0]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "conversations.db"


@pytest.fixture
def notes() -> list[str]:
    return []


def test_turns_come_back_as_they_were(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    first = turn("one \x1b[31m ü \u202e", weights={"shell": 0.7, "sql": 0.3}, model="tiny")
    number = add(kept, None, first, "be brief")
    add(kept, number, turn("two", summary=True), "be short")
    assert Conversations(path, notes.append).read(number) == ([first, turn("two", summary=True)], "be short")
    row = kept.turn(f"{number}.1")
    assert (row.replay, row.result, row.name) == ({"sampling": {"seed": 1}}, {"backend": "llama"}, f"{number}.1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and notes == []


def test_a_question_is_kept_before_its_answer(path: Path, notes: list[str]) -> None:
    """A kill leaves the connection open: a second one must see the turn without the first one's help."""
    one, two = Conversations(path, notes.append), Conversations(path, notes.append)
    number, row = one.begin(None, "asked and killed", None)
    assert two.turn(str(number)).turn.finish_reason == UNFINISHED and questions(two, number) == []
    one.progress(row, "half an ans")
    assert [line.answer for line in two.read(number)[0]] == ["half an ans"]


def test_two_programs_and_their_order(path: Path, notes: list[str]) -> None:
    one, two = Conversations(path, notes.append), Conversations(path, notes.append)
    number = add(one, None, turn("from one"))
    other = add(two, None, turn("from two"))
    add(one, number, turn("again one"))
    assert two.last() == number != other
    assert [(line.id, line.turns, line.title) for line in two.summaries()] == [
        (other, 1, "from two"),
        (number, 2, "from one"),
    ]
    assert [line.id for line in two.summaries(limit=1)] == [number]


def test_what_generate_answered_is_no_chat_until_one_goes_on_with_it(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    number, row = kept.begin(None, "once", None, source="generate")
    kept.finish(number, row, turn("once"), {}, {})
    assert kept.summaries(source="chat") == [] and [line.id for line in kept.summaries()] == [number]
    with pytest.raises(ZephyraError, match="no conversation to continue"):
        kept.last()
    add(kept, number, turn("and then?"))
    assert kept.last() == number and questions(kept, number) == ["once", "and then?"]


def test_an_undone_turn_is_out_of_the_conversation_but_in_the_file(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    number = add(kept, None, turn("one"))
    add(kept, number, turn("two"))
    row = kept.read(number)[0][1].id
    kept.mark(row, undone=True)
    add(kept, number, turn("three"))
    assert questions(kept, number) == ["one", "three"] and kept.turn(f"{number}.2").undone
    kept.mark(row, undone=False)
    assert questions(kept, number) == ["one", "two", "three"]


def test_what_was_taken_back_is_neither_continued_nor_a_title(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    first = add(kept, None, turn("a first one"))
    second, row = kept.begin(None, "too long", None)
    kept.mark(row, undone=True, interrupted=True)
    assert kept.last() == first and kept.summaries()[-1].title == "too long"
    add(kept, second, turn("of a summary", summary=True))
    add(kept, second, turn("a second one"))
    assert kept.last() == second and kept.summaries()[-1].title == "a second one"


def test_search(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    number = add(kept, None, turn("find . -type f"))
    add(kept, number, Turn(question="Straße nach 東京タワー", answer="100% of a_b", finish_reason="stop"))
    add(kept, None, turn("SELECT name FROM people"))

    def names(words: str) -> list[str]:
        return [line.name for line in kept.search(words)]

    assert names("ANSWER find") == ["1.1"] and names("answer") == ["1.1", "2.1"] == names("wer swe")
    assert names("-type f") == ["1.1"] and names("select eop") == ["2.1"]
    assert names("京") == ["1.2"] == names("東京タ") and names("0%") == ["1.2"] and names("a_") == ["1.2"]
    assert names('"') == names("zzz") == names('find" OR "select') == []
    assert len(kept.search("answer", limit=1)) == 1 and "type" in kept.search("-type")[0].snippet
    row = kept.read(number)[0][0].id
    kept.progress(row, "finished, so this changes nothing")
    assert names("changes nothing") == []


def test_what_is_deleted_is_nowhere_in_the_file(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    number = add(kept, None, turn("a very secret thing"))
    add(kept, None, turn("another"))
    with pytest.raises(ZephyraError, match="no conversation 7"):
        kept.delete([number, 7])
    assert questions(kept, number)
    kept.delete([number])
    assert [line.title for line in kept.summaries()] == ["another"] and kept.search("secret") == []
    assert all(b"secret" not in part.read_bytes() for part in path.parent.iterdir())
    kept.delete([2])
    assert add(kept, None, turn("a third")) == 3, "a number is never given twice"


def test_unknown_and_none(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    with pytest.raises(ZephyraError, match="no conversation 7"):
        kept.read(7)
    with pytest.raises(ZephyraError, match="no conversation to continue"):
        kept.last()
    add(kept, None, turn("one"))
    for name in ("1.2", "2", "x", "1.", "-1", "9" * 30, "1.2.3"):
        with pytest.raises(ZephyraError):
            kept.turn(name)


def test_a_file_of_version_1_goes_on(path: Path, notes: list[str]) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.executescript(database._TABLES)
    old.execute("INSERT INTO conversations VALUES (4, '2026-01-01T00:00:00Z', 'be brief')")
    old.execute(
        "INSERT INTO turns VALUES (9, 4, '2026-01-01T00:00:00Z', 'an old one', 'yes', 'stop', '{}', 'm', '', 0)"
    )
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    kept = Conversations(path, notes.append)
    assert questions(kept, 4) == ["an old one"] and [line.name for line in kept.search("old")] == ["4.1"]
    assert add(kept, 4, turn("a new one")) == 4 and notes == []


def test_a_damaged_file_is_set_aside_not_deleted(path: Path, notes: list[str]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all " * 100)
    add(Conversations(path, notes.append), None, turn("one"))
    (aside,) = path.parent.glob("conversations.db.damaged-*")
    assert aside.read_bytes().startswith(b"no database") and str(aside) in notes[0]


def test_damage_that_shows_later_costs_no_new_turn(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    add(kept, None, turn("one"))
    ((page,),) = kept._database.rows("SELECT rootpage FROM sqlite_master WHERE name = 'turns_of'")
    kept.close()
    with path.open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(b"\xff" * 4096)
    kept = Conversations(path, notes.append)
    assert notes == [], "this damage must not show at once, or the test tests nothing"
    number = add(kept, 3, turn("said all the same"))
    assert questions(kept, number) == ["said all the same"]
    assert len(list(path.parent.glob("conversations.db.damaged-*"))) == 1 and "damaged" in notes[0]


def test_a_damaged_index_of_the_texts_is_made_anew(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    add(kept, None, turn("one of many"))
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM search_data WHERE id > 10")
    kept.close()
    kept = Conversations(path, notes.append)
    add(kept, 1, turn("two of many"))
    assert questions(kept, 1) == ["one of many", "two of many"]
    assert [line.name for line in kept.search("many")] == ["1.1", "1.2"]


def test_a_newer_file_is_refused_and_left_alone(path: Path, notes: list[str]) -> None:
    Conversations(path, notes.append).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(CannotKeep, match="newer zephyra: version 99"):
        Conversations(path, notes.append)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (99,)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(CannotKeep, match="cannot use"):
        Conversations(tmp_path / "home" / "conversations.db", notes.append)
    folder = tmp_path / "folder" / "conversations.db"
    folder.mkdir(parents=True)
    with pytest.raises(CannotKeep, match="cannot use"):
        Conversations(folder, notes.append)
    with pytest.raises(CannotKeep, match="cannot read"):
        Conversations(folder, notes.append, readable=True)


def test_what_cannot_be_written_can_be_read(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    number = add(kept, None, turn("one"))
    kept.close()
    opened = database._open_as_it_stands(path)
    assert opened.execute("SELECT question FROM turns").fetchall() == [("one",)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        opened.execute("DELETE FROM turns")
    assert number == 1


def test_a_locked_file_is_said(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append, wait_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CannotKeep, match="cannot be kept: database is locked"):
        kept.begin(None, "one", None)
    other.execute("ROLLBACK")
    assert add(kept, None, turn("one")) == 1


def test_a_full_disk_costs_the_turn_and_nothing_else(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    add(kept, None, turn("one"))
    kept._database._connection.execute("PRAGMA max_page_count = 1")  # as if no page could be added
    with pytest.raises(CannotKeep, match="full"):
        add(kept, 1, turn("long " * 10000))
    assert questions(Conversations(path, notes.append), 1) == ["one"]


WRITER = """
import sys
from pathlib import Path
from zephyra_cli.conversations import Conversations, Turn
kept, conversation = Conversations(Path(sys.argv[1]), print), None
print("open", flush=True)
for number in range(int(sys.argv[2])):
    conversation, row = kept.begin(conversation, f"{sys.argv[3]} {number}", None)
    kept.finish(conversation, row, Turn(question="", answer="a" * 999, finish_reason="stop"), {}, {})
    print(number, flush=True)
"""


def test_programs_that_begin_and_write_at_once_lose_nothing(path: Path) -> None:
    """On no file at all: all of them make it. One is killed in the middle: what it said was on disk is there."""
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, "12", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for name in "abc"
    ]
    victim = subprocess.Popen([*command, "100000", "victim"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert victim.stdout is not None
    said = 0
    for line in victim.stdout:
        said += line.strip().isdigit()
        if said == 20:
            victim.kill()
            break
    said += sum(line.strip().isdigit() for line in victim.stdout)
    victim.communicate()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors) == (0, b"")
    kept = Conversations(path, pytest.fail)
    found = {line.title.split()[0]: line for line in kept.summaries()}
    assert {name: found[name].turns for name in "abc"} == dict.fromkeys("abc", 12)
    assert said <= found["victim"].turns <= said + 1
    assert kept._database.rows("PRAGMA integrity_check") == [("ok",)]
    assert len(kept.search("victim", limit=-1)) == found["victim"].turns


def test_rows_are_json(path: Path, notes: list[str]) -> None:
    kept = Conversations(path, notes.append)
    add(kept, None, turn("one", weights={"sql": 0.1}))
    ((weights, replay),) = kept._database.rows("SELECT weights, replay FROM turns")
    assert (json.loads(weights), json.loads(replay)) == ({"sql": 0.1}, {"sampling": {"seed": 1}})
