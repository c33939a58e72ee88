"""The contract's manners, held by every command alike: no control sequence where none is wanted, JSON, no network."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
from pseudo_terminal import Terminal

from tests.cli.process import PROGRAM, Run
from zephyra_cli.command_line import COMMANDS
from zephyra_cli.text import cells

Inside = Callable[..., tuple[int, str, str]]

QUICK = {
    "generate": "generate -m PACK -n 4 --stats hello",
    "shell": "shell --keys bash",
    "route": "route -m PACK hello",
    "models": "models show PACK",
    "domains": "domains -m PACK",
    "config": "config",
    "templates": "templates",
    "doctor": "doctor",
    "log": "log",
    "bench": "bench -m PACK -n 4 --repeat 1 --prompt-tokens 8",
    "completion": "completion fish",
}
"""One call of each command that ends by itself and needs neither the network nor a training."""
AS_JSON = ("generate", "route", "models", "domains", "config", "templates", "doctor", "log", "bench")
NOT_QUICK = {"chat", "convert", "pull", "push", "replay", "serve", "train", "eval"}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def words(command: str, pack: Path) -> list[str]:
    return [str(pack) if word == "PACK" else word for word in QUICK[command].split()]


def test_no_command_is_forgotten() -> None:
    assert set(COMMANDS) - NOT_QUICK == set(QUICK)


@pytest.mark.parametrize(
    ("command", "environment"),
    [*((command, {"TERM": "dumb"}) for command in QUICK)]
    + [(command, {"TERM": "xterm-256color", "NO_COLOR": "1"}) for command in ("generate", "bench", "doctor")],
)
def test_no_colour_and_no_control_sequence_on_such_a_terminal(
    command: str, environment: dict[str, str], tiny_pack: Path
) -> None:
    with Terminal(*words(command, tiny_pack), **environment) as terminal:
        assert terminal.ends() == 0
    assert not CONTROL.search(terminal.all.replace("\r\n", "\n").replace("\\x1b", "")), terminal.all


@pytest.mark.parametrize("command", QUICK)
def test_a_pipe_gets_the_same_text_whatever_the_terminal_is(command: str, inside: Inside, tiny_pack: Path) -> None:
    status, out, err = inside(*words(command, tiny_pack))
    assert status == 0 and not CONTROL.search(out + err)
    assert out or command == "log"


@pytest.mark.parametrize("command", AS_JSON)
def test_json_is_one_object_with_its_units(command: str, inside: Inside, tiny_pack: Path) -> None:
    status, out, err = inside(*words(command, tiny_pack), "--json")
    assert status == 0 and out.count("\n") == 1 and out.endswith("\n")
    values = json.loads(out)
    assert isinstance(values, dict)
    for key, value in pairs(values):
        if isinstance(value, float) and re.search(r"time|duration|latency|speed|rate$|second|milli", key):
            assert key.endswith(("_ms", "_per_second")), key


def pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pairs(inner)


@pytest.mark.parametrize("command", QUICK)
def test_nothing_is_fetched(command: str, inside: Inside, tiny_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert inside(*words(command, tiny_pack))[0] == 0


@pytest.mark.parametrize("command", ["domains", "models", "models show zephyra-nano", "doctor", "config"])
def test_a_table_fits_a_narrow_terminal(command: str) -> None:
    with Terminal(*command.split(), size=(40, 24), TERM="xterm") as terminal:
        assert terminal.ends() == 0
    assert max(map(cells, terminal.plain.splitlines())) <= 40


HOSTILE = "\x1b]0;owned\x07\x9b31m\u202e"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "-f", f"{HOSTILE}.txt", "hi"],
        ["generate", "-T", f"./{HOSTILE}.toml", "hi"],
        ["generate", "-T", HOSTILE, "hi"],
        ["generate", "-d", HOSTILE, "hi"],
        ["generate", f"--{HOSTILE}"],
        [HOSTILE],
        ["config", "get", HOSTILE],
        ["config", "set", "model", HOSTILE, "--profile", HOSTILE],
        ["config", "--profile", HOSTILE],
        ["templates", "new", HOSTILE, "x"],
        ["models", "show", HOSTILE],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(HOSTILE, "x"),
)
def test_no_argument_or_file_name_is_executed(arguments: list[str], tmp_path: Path) -> None:
    with Terminal(*arguments, cwd=tmp_path, TERM="xterm") as terminal:
        terminal.ends()
    assert not CONTROL.search(terminal.all.replace("\r\n", "\n")) and "\u202e" not in terminal.all, terminal.all


def test_no_stored_text_is_executed(home: Path, inside: Inside) -> None:
    """Names, descriptions and settings in files that somebody else wrote."""
    (home / "templates").mkdir(parents=True)
    (home / "templates" / "bad.toml").write_text(f"description = {json.dumps(HOSTILE)}\nprompt = 'x'\n")
    (home / "templates" / f"{HOSTILE}.toml").write_text("promt = 1")
    (home / "config.toml").write_text(f"system = {json.dumps(HOSTILE)}\n")
    for command in ("templates", "config", "templates show bad"):
        with Terminal(*command.split(), TERM="xterm") as terminal:
            assert terminal.ends() == 0
        assert "owned" in terminal.all
        assert not CONTROL.search(terminal.all.replace("\r\n", "\n")) and "\u202e" not in terminal.all
    assert inside("config", "get", "system")[1] == HOSTILE + "\n"  # in a pipe byte for byte


def test_a_name_in_a_gguf_is_not_executed(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    hostile = make_gguf(
        tmp_path / "hostile.gguf", metadata={"general.name": HOSTILE, "general.architecture": "qwen3" + HOSTILE}
    )
    for command in (["generate", "-m", hostile, "--stats", "-n", "2", "hi"], ["models", "show", hostile]):
        with Terminal(*command, TERM="xterm") as terminal:
            terminal.ends()
        assert not CONTROL.search(terminal.all.replace("\r\n", "\n")) and "\u202e" not in terminal.all


WAIT = """
import sys, time
from zephyra_cli.progress import Waiting
with Waiting("loading \\x1b[31m", silent="plain" in sys.argv):
    time.sleep(float(sys.argv[1]))
print("answer")
"""


def test_what_takes_longer_than_a_second_is_said_and_taken_away() -> None:
    program = [sys.executable, "-c", WAIT]
    with Terminal(2.6, program=program, TERM="xterm") as terminal:
        assert terminal.ends() == 0
    assert "loading \\x1b[31m … 1 s" in terminal.all and "… 2 s" in terminal.all
    assert terminal.all.endswith("\r\x1b[Kanswer\r\n")
    with Terminal(1.1, "plain", program=program, TERM="xterm") as terminal:
        assert terminal.ends() == 0 and terminal.all == "answer\r\n"
    for seconds, environment in ((0.1, {"TERM": "xterm"}), (1.1, {"TERM": "dumb"}), (1.1, {"NO_COLOR": "1"})):
        with Terminal(seconds, program=program, **environment) as terminal:
            assert terminal.ends() == 0 and terminal.all == "answer\r\n"


def test_a_slow_writer_on_standard_input_is_waited_for_in_words(tiny_pack: Path) -> None:
    reading, writing = os.pipe()
    with Terminal("generate", "-m", tiny_pack, "-n", 2, stdin=reading, TERM="xterm") as terminal:
        os.close(reading)
        terminal.until("reading standard input … 1 s")
        os.write(writing, b"hello")
        os.close(writing)
        assert terminal.ends() == 0 and terminal.all.count("\r\x1b[K") >= 2


FOLLOW = """
import sys, time
from zephyra_cli.follow import follow
def events():
    yield "piece"
    time.sleep(1.4)
    yield object()
follow(events(), lambda event: None, stats=False, streams=sys.argv[1] == "streams")
"""


@pytest.mark.parametrize(("form", "said"), [("streams", ""), ("whole", "\r\x1b[Kanswering … 1 s\r\x1b[K")])
def test_an_answer_that_is_shown_when_it_is_whole_says_that_it_comes(form: str, said: str) -> None:
    with Terminal(form, program=[sys.executable, "-c", FOLLOW], TERM="xterm") as terminal:
        assert terminal.ends() == 0 and terminal.all == said


def test_the_figures_in_one_line(zephyra: Run, tiny_pack: Path) -> None:
    (line,) = zephyra("generate", "-m", tiny_pack, "-n", 6, "--stats", "hello").stderr.decode().splitlines()
    for part in (r"^router [\d.]+ ms", r"(shell|sql|base) \(\d+ %\)", r"load \d+ ms", r"switch [\d.]+ ms"):
        assert re.search(part, line), line
    for part in (r"(\d+) of \1 prompt tokens read", r"first token [\d.]+ ms", r"\d+ tokens, \d+ tokens/s"):
        assert re.search(part, line), line
    blend = zephyra("generate", "-m", tiny_pack, "-n", 2, "--stats", "-d", "sql=0.5,shell=1", "hi").stderr.decode()
    assert blend.startswith(("sql=0.5,shell=1 · load", "shell=1,sql=0.5 · load"))


def test_megabytes_on_standard_input_are_refused_with_both_numbers(zephyra: Run, tiny_pack: Path) -> None:
    run = zephyra("generate", "-m", tiny_pack, "Summarize", stdin=b"some words to read, and a few more\n" * 40_000)
    assert (run.returncode, run.stdout) == (1, b"")
    found = re.search(r"the prompt has (\d+) tokens, the context has (\d+)", run.stderr.decode())
    assert found and int(found[1]) > 150_000 and int(found[2]) == 512
    too_much = zephyra("generate", "-m", tiny_pack, stdin=b"x" * (17 * 2**20))
    assert too_much.returncode == 1 and b"longer than 16 MiB" in too_much.stderr


def test_it_stands_in_the_middle_of_a_pipeline(tiny_pack: Path) -> None:
    import subprocess

    program = " ".join(PROGRAM)
    line = f"printf 'list files' | {program} generate -m {tiny_pack} -n 8 -d none | head -c 3 | wc -c"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("3", "", 0)
