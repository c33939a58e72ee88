"""`generate --input --output`: every line answered or with its own error, in order, whatever ends the run when."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import PROGRAM, Run, start
from zephyra_cli import batch_file
from zephyra_cli.batch_file import Output, lines
from zephyra_fusion.errors import ZephyraError

PROMPTS = ["find all files", "SELECT name", "the heart of the matter", "count(*)", "naïve café"]


def write_input(path: Path, count: int, **fields: Any) -> Path:
    records = [{"prompt": f"{PROMPTS[n % 5]} {n}", "id": n, **fields} for n in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(path: Path) -> list[tuple[Any, Any, Any]]:
    return [(record["line"], record["id"], record["text"]) for record in records(path)]


def test_each_line_gets_its_answer_or_its_error(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    source = [
        {"prompt": "find all files", "id": "first", "category": "ignored"},
        {"prompt": "find all files", "domain": "sql", "max_tokens": 3},
        "no json at all",
        {"prompt": "hi", "domain": "none", "system": "Be short.", "raw": False},
        "",
        {"question": "no prompt"},
        {"prompt": "hi", "max_token": 3},
        {"prompt": "hi", "temperature": "hot", "id": [1]},
        {"prompt": "hi", "domain": "medicine"},
        {"prompt": "word " * 2000},
        {"prompt": "hi", "schema": {"enum": ["yes", "no"]}},
        {"prompt": "hi", "schema": {"enum": []}},
        {"prompt": "hi", "top_p": 2.0},
        {"prompt": "hi", "stop": ["e", 3]},
        {"prompt": "hi", "stop": [""]},
    ]
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in source)
    (tmp_path / "in.jsonl").write_bytes(text.encode() + b'{"prompt": "\xff"}\n')
    done = zephyra(
        "generate", "-m", tiny_pack, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "-n", "9"
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.splitlines()[-1] == b"4 answered, 11 with errors of their own"
    found = {record["line"]: record for record in records(tmp_path / "out")}
    assert list(found) == [1, 2, 3, 4, *range(6, 17)]
    assert found[1]["id"] == "first" and found[1]["usage"]["completion_tokens"] <= 9
    assert found[2]["decision"]["by"] == "user" and found[2]["usage"]["completion_tokens"] == 3
    assert found[11]["text"] in ('"yes"', '"no"') and found[11]["finish_reason"] == "stop"
    errors = {
        3: "no valid JSON", 6: 'no text under "prompt"', 7: "unknown field 'max_token'", 9: "unknown domain 'medicine'",
        8: 'temperature is "hot", must be a number', 10: "tokens, the context has", 12: "Unsatisfiable",
        13: "top_p is 2.0", 14: "stop must be a text or a list of texts", 15: "a stop string is empty",
        16: "no valid JSON",
    }  # fmt: skip
    for line, cause in errors.items():
        assert cause in found[line]["error"], found[line]
    assert found[8]["id"] == [1]
    assert not list(tmp_path.glob("*.journal"))


def test_the_texts_are_those_of_single_runs(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    """On both backends, all domains mixed. (The tiny model is F32: no near tie depends on the batch.)"""
    source = write_input(tmp_path / "in.jsonl", 24)
    options = ["-m", tiny_pack, "-n", "8", "--input", source]
    for backend in "llama", "torch":
        done = zephyra("generate", "--backend", backend, *options, "--output", tmp_path / backend)
        assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "torch") == answers(tmp_path / "llama")
    alone = zephyra("generate", *options, "--parallel", "1", "--output", tmp_path / "alone")
    assert alone.returncode == 0 and answers(tmp_path / "alone") == answers(tmp_path / "llama")
    found = records(tmp_path / "llama")
    assert len({json.dumps(record["route"]["weights"]) for record in found}) > 1, "the test is about mixes"
    for number in 0, 7, 23:
        single = zephyra("generate", "-m", tiny_pack, "-n", "8", "--json", f"{PROMPTS[number % 5]} {number}")
        assert json.loads(single.stdout)["text"] == found[number]["text"]


def test_without_output_the_lines_go_to_stdout_in_order(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 7)
    done = zephyra("generate", "-m", tiny_pack, "-n", "3", "--input", source)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == list(range(7))


def test_on_a_terminal_the_answers_are_what_is_shown(tiny_pack: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
    from pseudo_terminal import Terminal

    source = write_input(tmp_path / "in.jsonl", 3)
    with Terminal("generate", "-m", tiny_pack, "-n", 3, "--input", source, TERM="xterm-256color") as terminal:
        assert terminal.ends() == 0
        lines = [line for line in terminal.all.splitlines() if line.startswith("{")]
    assert [json.loads(line)["id"] for line in lines] == [0, 1, 2]


def test_a_reader_that_leaves_ends_it_quietly(tiny_pack: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 200)
    command = [*PROGRAM, "generate", "-m", str(tiny_pack), "-n", "3", "--parallel", "1", "--input", str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert b"error" not in process.stderr.read()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_ended_run_goes_on_where_it_stopped(ending: int, zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    source, target = write_input(tmp_path / "in.jsonl", 300), tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.journal"
    command = ["generate", "-m", tiny_pack, "-n", "24", "--input", source, "--output", target]
    process = start(*command)
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.stat().st_size < 3000:  # the first of three mixes is being answered
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(ending)
    _, said = process.communicate(timeout=60)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(ending)]
    assert process.returncode == expected, said
    if ending != signal.SIGKILL:
        assert b"the same command goes on from there" in said and b"Traceback" not in said
    before = target.read_bytes()
    assert (not before or before.endswith(b"\n")) and journal.exists()
    done = zephyra(*command)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes().startswith(before)
    assert [record["id"] for record in records(target)] == list(range(300))
    answered = int(done.stderr.splitlines()[-1].split()[0])
    assert 0 < answered < 300 and not journal.exists()


def test_a_full_disk_keeps_what_is_whole(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    source, target = write_input(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    arguments = ["generate", "-m", tiny_pack, "-n", "2", "--no-log", "--input", source, "--output", target]

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))

    command = [*PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, preexec_fn=little_room, stdin=subprocess.DEVNULL, timeout=60)
    said = done.stderr.decode()
    assert done.returncode == 1 and "cannot write to" in said and "File too large" in said
    assert "make room and run the same command again" in said and "Traceback" not in said
    assert 0 < len(records(target)) < 40
    assert zephyra(*arguments).returncode == 0
    assert [record["id"] for record in records(target)] == list(range(40))
    full = zephyra("generate", "-m", tiny_pack, "-n", "2", "--input", source, "--output", "/dev/full")
    assert full.returncode == 1 and b"cannot write to '/dev/full': No space left on device" in full.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--input", "missing.jsonl"], 1, "cannot read 'missing.jsonl'"),
        (["--input", "/dev/null"], 1, "'/dev/null' is neither a file nor a pipe"),
        (["--output", "x"], 2, "--output is where the answers to --input go"),
        (["--input", "x", "hi"], 2, "--input excludes a PROMPT"),
        (["--parallel", "2", "hi"], 2, "--parallel is for the prompts of --input"),
        (["--input", "x", "--parallel", "0"], 2, "0 is not in the range"),
    ],
)
def test_bad_usage(arguments: list[str], status: int, said: str, zephyra: Run, tiny_pack: Path) -> None:
    done = zephyra("generate", "-m", tiny_pack, *arguments)
    assert done.returncode == status
    assert said in " ".join(done.stderr.decode().replace("│", " ").split())


@pytest.mark.parametrize("given", ["-", "/dev/stdin", "file"])
def test_prompts_come_from_a_pipe_and_answers_go_to_one(
    given: str, zephyra: Run, tiny_pack: Path, tmp_path: Path
) -> None:
    lines = b'{"prompt": "list files"}\n{"prompt": "SELECT"}\n'
    (tmp_path / "in.jsonl").write_bytes(lines)
    source = tmp_path / "in.jsonl" if given == "file" else given
    arguments = ("generate", "-m", tiny_pack, "-n", 2, "--input", source)
    run = zephyra(*arguments, "--output", "-", stdin=lines)
    texts = [json.loads(line)["text"] for line in run.stdout.splitlines()]
    assert run.returncode == 0 and len(texts) == 2
    target = tmp_path / "out.jsonl"
    assert zephyra(*arguments, "--output", target, stdin=lines).returncode == 0
    assert [record["text"] for record in records(target)] == texts


def test_an_output_belongs_to_its_input(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    output = Output(target, {"input": "a"})
    output.write(0, {"n": 0})
    with pytest.raises(ZephyraError, match="another zephyra is writing"):
        Output(target, {"input": "a"})
    output.close()
    with pytest.raises(ZephyraError, match="begun with other prompts or options"):
        Output(target, {"input": "b"})
    output = Output(target, {"input": "a"})
    assert 0 in output and 1 not in output
    output.finish()
    with pytest.raises(ZephyraError, match="exists already"):
        Output(target, {"input": "a"})
    with pytest.raises(ZephyraError, match="cannot write .*No such file"):
        Output(tmp_path / "nowhere" / "out.jsonl", {})
    for folder in (tmp_path, Path("."), Path("/")):
        with pytest.raises(ZephyraError, match="cannot write .*directory"):
            Output(folder, {})


def test_the_journal_goes_where_open_files_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: nothing of it may be open any more when it is deleted."""
    monkeypatch.setattr(batch_file, "_DELETES_OPEN_FILES", False)
    output = Output(tmp_path / "out.jsonl", {})
    output.write(0, {"n": 0})
    kept, unlink = output._kept, Path.unlink

    def check(path: Path, missing_ok: bool = False) -> None:
        assert kept is not None and kept.closed
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", check)
    output.finish()
    assert not output.journal.exists() and records(output.path) == [{"n": 0}]


def test_cut_at_any_byte_it_comes_out_whole(tmp_path: Path) -> None:
    """Answers in random order; the run ends again and again, the end of either file torn off at a random byte."""
    dice = random.Random(5)
    for trial in range(30):
        target, count = tmp_path / f"{trial}.jsonl", dice.randrange(1, 25)
        record = {place: {"place": place, "text": "ü" * dice.randrange(20)} for place in range(count)}
        while True:
            output = Output(target, {"trial": trial})
            todo = [place for place in range(count) if place not in output]
            dice.shuffle(todo)
            for place in todo[: dice.randrange(1, 8)]:
                output.write(place, record[place])
            if all(place in output for place in range(count)):
                output.finish()
                break
            output.close()
            for path in target, output.journal:
                if dice.random() < 0.4 and path.stat().st_size:
                    with path.open("r+b") as file:
                        file.truncate(max(path.stat().st_size - dice.randrange(9), 0))
        assert records(target) == list(record.values())


@pytest.mark.parametrize(
    "damage", [b"garbage here\n", b"3 notjson\n", b"3 [1]\n", b"-1 {}\n", b"\n", b"\0" * 9 + b"\n"]
)
def test_a_damaged_journal_counts_up_to_the_damage(damage: bytes, tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", {})
    output.write(1, {"n": 1})
    whole = output.journal.read_bytes()
    output.close()
    output.journal.write_bytes(whole + damage + b'2 {"n": "after"}\n')
    output = Output(tmp_path / "out.jsonl", {})
    assert [place in output for place in range(4)] == [False, True, False, False]
    assert output.journal.read_bytes() == whole
    for place in (0, 3, 2):
        output.write(place, {"n": place})
    output.finish()
    assert records(output.path) == [{"n": place} for place in range(4)]


def test_a_line_that_is_too_long_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_file, "MOST_BYTES", 10)
    path = tmp_path / "in"
    path.write_bytes(b"short\n" + b"x" * 55 + b"\n\nnext\n" + b"last, without an end")
    with path.open("rb") as file:
        assert [(number, raw[:5], len(raw)) for number, raw in lines(file)] == [
            (1, b"short", 6), (2, b"xxxxx", 11), (4, b"next\n", 5), (5, b"last,", 11),
        ]  # fmt: skip
