from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zephyra_cli import prompt
from zephyra_cli.prompt import decode, read_prompt, read_text
from zephyra_fusion.errors import ZephyraError


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pipe as standard input; its writing end."""
    reading, writing = os.pipe()
    stream = os.fdopen(reading)
    monkeypatch.setattr(sys, "stdin", stream)
    yield writing
    stream.close()


def test_argument_input_and_files_are_joined_by_blank_lines(pipe: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("file a\n")
    os.write(pipe, b"piped\n")
    os.close(pipe)
    assert read_prompt("argument", [tmp_path / "a.txt"]) == "argument\n\npiped\n\nfile a"


@pytest.mark.parametrize(
    ("argument", "files", "whole"),
    [
        ("-", [], "piped"),
        ("-", ["a.txt"], "piped\n\nfile a"),
        ("argument", ["a.txt", "-", "a.txt"], "argument\n\nfile a\n\npiped\n\nfile a"),
    ],
)
def test_a_dash_is_standard_input(
    pipe: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, files: list[str], whole: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("file a\n")
    os.write(pipe, b"piped\n")
    os.close(pipe)
    assert read_prompt(argument, [Path(file) for file in files]) == whole


def test_a_dash_with_nothing_piped_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as device:
        monkeypatch.setattr(sys, "stdin", device)
        for argument, files in (("-", []), ("argument", [Path("-")])):
            with pytest.raises(ZephyraError, match="'-' is standard input"):
                read_prompt(argument, files)


def test_the_piped_text_alone(pipe: int) -> None:
    os.write(pipe, "naïve\r\n".encode())
    os.close(pipe)
    assert read_prompt(None) == "naïve"


def test_an_argument_does_not_wait_for_a_pipe_that_nobody_writes_to(
    pipe: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prompt, "SILENCE_S", 0.05)
    assert read_prompt("argument") == "argument"
    assert "nothing came from standard input" in capsys.readouterr().err
    os.close(pipe)


def test_a_closed_or_empty_input_is_no_part(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(pipe)
    assert read_prompt("argument") == "argument"
    monkeypatch.setattr(sys, "stdin", None)
    assert read_prompt("argument") == "argument"
    with open(os.devnull) as device:
        monkeypatch.setattr(sys, "stdin", device)
        assert read_prompt("argument") == "argument"


def test_a_non_blocking_pipe_is_read_to_its_end(pipe: int) -> None:
    import threading

    os.set_blocking(sys.stdin.fileno(), False)

    def write() -> None:
        for part in (b"first ", b"second"):
            threading.Event().wait(0.05)
            os.write(pipe, part)
        os.close(pipe)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_prompt(None) == "first second"
    writer.join()


@pytest.mark.parametrize("argument", [None, "", " \n"])
def test_an_empty_prompt_is_refused(pipe: int, argument: str | None) -> None:
    os.close(pipe)
    with pytest.raises(ZephyraError, match="prompt is empty"):
        read_prompt(argument)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc\xff", "here is not valid UTF-8: byte 0xff at offset 3"),
        ("naïve".encode("latin-1"), "byte 0xef at offset 2"),
        (b"\xe2\x82", "byte 0xe2 at offset 0"),
        (b"\x7fELF\x00\x01", "here is binary: a zero byte at offset 4"),
        (b"x" * (prompt.MOST_BYTES + 1), "longer than 16 MiB"),
    ],
)
def test_what_is_no_text_is_refused_with_the_place(data: bytes, message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        decode(data, "here")


def test_one_line_end_and_a_byte_order_mark_are_not_text() -> None:
    assert decode(b"\xef\xbb\xbfa\n\n", "x") == "a\n"


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match="gone.txt': No such file"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(ZephyraError, match="directory"):
        read_text(tmp_path)


def test_an_argument_of_stray_bytes_is_refused() -> None:
    with pytest.raises(ZephyraError, match="the prompt is not valid UTF-8: byte 0xe9 at offset 3"):
        read_prompt(os.fsdecode(b"caf\xe9"))
