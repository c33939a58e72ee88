"""The contract's manners, each with a real process: statuses, streams, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.process import PROGRAM, Run, start, wait_until_blocked

LONG = ("-n", 480, "-t", 1.2, "--seed", 3, "-d", "none")
HERE = "--no-isolate"  # a program that waits for its child sleeps before its own pipe is full


def held_pipe() -> tuple[int, int, int]:
    """A pipe with room for some 200 bytes: reading end, writing end, bytes in it that are not the program's."""
    import fcntl

    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    return reading, writing, os.write(writing, b"#" * (size - 200))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pipe of a set size")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("form", ["text", "stream-json"])
def test_an_interruption_keeps_the_partial_answer(
    zephyra: Run, tiny_pack: Path, number: int, status: int, form: str
) -> None:
    """A full pipe holds the program in the middle of its answer until the signal comes."""
    arguments = (
        "generate",
        "-m",
        tiny_pack,
        HERE,
        *LONG,
        *(["--stream-json"] if form == "stream-json" else []),
        "hello",
    )
    reading, writing, filled = held_pipe()
    process = start(*arguments, stdout=writing)
    os.close(writing)
    wait_until_blocked(process)
    process.send_signal(number)
    time.sleep(0.2)
    said = b""
    while chunk := os.read(reading, 1 << 16):
        said += chunk
    os.close(reading)
    error = process.communicate(timeout=60)[1]
    said = said[filled:]
    assert (process.returncode, error) == (status, b"")
    if form == "text":
        whole = zephyra(*arguments).stdout
        assert 0 < len(said) < len(whole)
        assert whole.startswith(said.removesuffix(b"\n").rstrip("\ufffd".encode()))
    else:
        *pieces, result = map(json.loads, said.split(b"\n")[:-1])
        assert result["finish_reason"] == "interrupted"
        assert "".join(piece["text"] for piece in pieces) == result["text"] != ""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_reader_that_closes_the_pipe_ends_it_quietly(tiny_pack: Path) -> None:
    process = start("generate", "-m", tiny_pack, *LONG, "hello")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) in (-signal.SIGPIPE, 0)


def test_no_argument_shows_the_help_and_nothing_blocks(zephyra: Run) -> None:
    assert b"generate" in zephyra("--help").stdout
    run = zephyra()
    assert run.returncode == 2 and b"Usage: zephyra" in run.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_an_inherited_pipe_that_stays_silent_does_not_block(tiny_pack: Path) -> None:
    process = start("generate", "-m", tiny_pack, "-n", 2, "hello", stdin=subprocess.PIPE)
    assert process.wait(60) == 0
    assert process.stderr is not None and b"nothing came from standard input" in process.stderr.read()
    process.communicate()


def test_no_standard_streams_at_all(tiny_pack: Path) -> None:
    command = " ".join([*PROGRAM, "generate", "-m", str(tiny_pack), "-n", "2", "hello"])
    closed_input = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, timeout=60)
    assert (closed_input.returncode, closed_input.stderr) == (0, b"")
    closed_output = subprocess.run(["sh", "-c", f"{command} </dev/null >&-"], capture_output=True, timeout=60)
    assert closed_output.returncode == 1 and b"standard output is closed" in closed_output.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error(tiny_pack: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("generate", "-m", tiny_pack, "-n", 2, "hello", stdout=full)
        assert process.wait(60) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b"error: cannot write to standard output: No space left on device\n"


def test_a_traceback_only_on_demand(zephyra: Run) -> None:
    assert b"Traceback" not in zephyra("generate", "-m", "./gone", "hi").stderr
    assert b"Traceback" in zephyra("generate", "-m", "./gone", "hi", ZEPHYRA_TRACEBACK="1").stderr
