"""`zephyra log` and `zephyra replay` as processes, and what `generate` leaves behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.process import PROGRAM, Run


def one_object(output: bytes) -> dict[str, object]:
    found = json.loads(output)
    assert isinstance(found, dict)
    return found


def test_an_answer_is_kept_found_shown_exported_and_deleted(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    answer = zephyra("generate", "-m", tiny_pack, "-n", 4, "-s", "be brief", "a \x1b[31mred question").stdout
    zephyra("chat", "-m", tiny_pack, "-n", 4, stdin=b"one\ntwo\n")
    assert re.match(rb"1  \S+Z   1 turn  a \\x1b\[31mred question\n2  \S+Z  2 turns  one\n$", zephyra("log").stdout)
    assert [line["id"] for line in one_object(zephyra("log", "--json").stdout)["conversations"]] == [1, 2]
    assert zephyra("log", "-n", 1).stdout.startswith(b"2  ")
    assert zephyra("log", "search", "RED", "quest").stdout.startswith(b"1.1  ")
    assert zephyra("log", "search", "nowhere").stdout == b""
    shown = zephyra("log", "show", 1)
    assert shown.stdout.startswith(b"## System\n\nbe brief\n\n## You\n\na \x1b[31mred question\n\n## tiny")
    assert shown.stdout.endswith(answer) or answer.strip() in shown.stdout
    (turn,) = one_object(zephyra("log", "show", "2.2", "--json").stdout)["turns"]
    assert turn["question"] == "two" and turn["replay"]["sampling"]["seed"] == 0 and turn["name"] == "2.2"
    assert set(turn["replay"]["sha256"]) >= {"base.gguf"} and turn["result"]["usage"]["completion_tokens"] == 4
    saved = tmp_path / "chat.json"
    assert zephyra("log", "export", 2, "--to", "json", "-o", saved).returncode == 0
    assert [row["question"] for row in json.loads(saved.read_text())["turns"]] == ["one", "two"]
    assert zephyra("log", "export", 2, "-o", saved).returncode == 1, "what is there is not overwritten"
    assert b"## You\n\none\n" in zephyra("log", "export", 2).stdout
    assert zephyra("log", "delete", 1, 2).returncode == 0
    assert zephyra("log").stdout == b"" and zephyra("log", "show", 1).returncode == 1


def test_all_is_deleted_on_a_yes_alone(zephyra: Run, tiny_pack: Path) -> None:
    zephyra("generate", "-m", tiny_pack, "-n", 1, "one")
    refused = zephyra("log", "delete", "--all")
    assert refused.returncode == 1 and b"--yes" in refused.stderr and zephyra("log").stdout
    assert zephyra("log", "delete").returncode == 2 == zephyra("log", "delete", 1, "--all").returncode
    assert zephyra("log", "delete", "--all", "--yes").returncode == 0 and zephyra("log").stdout == b""


def test_nothing_is_kept_where_that_is_the_wish(zephyra: Run, tiny_pack: Path, home: Path) -> None:
    zephyra("generate", "-m", tiny_pack, "-n", 1, "--no-log", "one")
    zephyra("chat", "-m", tiny_pack, "-n", 1, "--no-log", stdin=b"one\n")
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text("log = false\n")
    zephyra("generate", "-m", tiny_pack, "-n", 1, "two")
    assert not list(home.glob("conversations.db*"))
    zephyra("generate", "-m", tiny_pack, "-n", 1, "--log", "three")
    assert b"three" in zephyra("log").stdout


def _read_only(home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("no folder")


def _newer(home: Path) -> None:
    home.mkdir()
    with sqlite3.connect(home / "conversations.db") as connection:
        connection.execute("PRAGMA user_version = 99")


def _damaged(home: Path) -> None:
    home.mkdir()
    (home / "conversations.db").write_bytes(b"SQLite format 3\0" + b"\xee" * 5000)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_read_only, b"cannot use"),
        (_newer, b"newer zephyra"),
        (_damaged, b"the file is kept as"),
    ],
)
def test_a_log_that_fails_spoils_no_answer(
    zephyra: Run, tiny_pack: Path, home: Path, spoil: Callable[[Path], None], said: bytes
) -> None:
    good = zephyra("generate", "-m", tiny_pack, "-n", 4, "--no-log", "hello").stdout
    spoil(home)
    done = zephyra("generate", "-m", tiny_pack, "-n", 4, "hello")
    assert (done.returncode, done.stdout) == (0, good)
    assert said in done.stderr and done.stderr.count(b"\n") == 1


def test_a_locked_file_is_waited_for_then_said(zephyra: Run, tiny_pack: Path, home: Path) -> None:
    zephyra("generate", "-m", tiny_pack, "-n", 1, "one")
    other = sqlite3.connect(home / "conversations.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = zephyra("generate", "-m", tiny_pack, "-n", 1, "two")
    assert done.returncode == 0 and done.stdout and b"database is locked" in done.stderr
    other.execute("ROLLBACK")
    assert b"two" not in zephyra("log").stdout


def test_a_full_disk_spoils_no_answer(tiny_pack: Path, zephyra: Run) -> None:
    zephyra("generate", "-m", tiny_pack, "-n", 1, "one")

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # no file may grow beyond this

    command = [*PROGRAM, "generate", "-m", str(tiny_pack), "-n", "4", "x" * 500]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, preexec_fn=full, timeout=60)
    assert done.returncode == 0 and done.stdout and done.stderr.startswith(b"warning: ")
    assert b"xxx" not in zephyra("log").stdout and b"one" in zephyra("log").stdout


def test_what_a_reader_did_not_wait_for_is_kept(tiny_pack: Path, zephyra: Run) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "generate", "-m", str(tiny_pack), "-n", "400", "-t", "3", "--seed", "1", "-d", "none", "hello"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.wait(60) == -signal.SIGPIPE
    (turn,) = one_object(zephyra("log", "show", "1", "--json").stdout)["turns"]
    assert turn["question"] == "hello" and turn["answer"] and turn["finish_reason"] in ("interrupted", "stop", "length")


@pytest.mark.parametrize("sampled", [(), ("-t", 2, "--seed", 7)])
def test_replay_gives_the_same_answer(zephyra: Run, tiny_pack: Path, sampled: tuple[object, ...]) -> None:
    asked = ("-m", tiny_pack, "-n", 12, "-s", "be brief", *sampled)
    once = zephyra("generate", *asked, "-d", "shell=0.5,sql=0.25", "hello")
    chat = zephyra("chat", *asked, "--stats", stdin=b"one\ntwo\nthree\n")
    again = zephyra("replay", "1")
    assert (again.returncode, again.stdout) == (0, once.stdout) and b"the same answer as 1.1" in again.stderr
    for name in ("2.1", "2.2", "2"):
        replayed = one_object(zephyra("replay", name, "--json").stdout)
        assert replayed["same"] is True and replayed["changed"] == [], replayed
    assert str(replayed["text"]).encode() in chat.stdout


def test_replay_says_what_has_changed(
    zephyra: Run, change_pack: Callable[..., Path], tiny_adapters: dict[str, Path]
) -> None:
    root = change_pack()
    zephyra("generate", "-m", root, "-n", 12, "-d", "shell", "hello")
    (root / "adapters/shell.gguf").write_bytes(tiny_adapters["b"].read_bytes())
    done = zephyra("replay", "1.1")
    assert done.returncode == 1 and done.stdout
    assert b"adapters/shell.gguf" in done.stderr and b"not the answer of 1.1: from character" in done.stderr
    manifest = json.loads((root / "zephyra.json").read_text())
    manifest["files"]["adapters/shell.gguf"]["sha256"] = "0" * 64
    (root / "zephyra.json").write_text(json.dumps(manifest))
    assert b"changed: adapters/shell.gguf is another file (sha256 000000000000, it was" in zephyra("replay", "1").stderr
    (root / "zephyra.json").unlink()
    gone = zephyra("replay", "1")
    assert gone.returncode == 1 and b"the model of 1.1 is gone" in gone.stderr and gone.stdout == b""


def test_replay_of_a_bare_file_knows_it_by_its_bytes(zephyra: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    once = zephyra("generate", "-m", path, "-n", 8, "--raw", "hello").stdout
    assert zephyra("replay", "1").stdout == once
    content = bytearray(path.read_bytes())
    content[-200_000:-199_000] = bytes(1000)
    path.write_bytes(content)
    assert b"changed: bare.gguf is another file" in zephyra("replay", "1").stderr


def test_replay_of_nothing(zephyra: Run, tiny_pack: Path) -> None:
    for name in ("1", "1.1", "x", "1.x"):
        done = zephyra("replay", name)
        assert done.returncode == 1 and done.stderr.startswith(b"error: ") and b"Traceback" not in done.stderr
