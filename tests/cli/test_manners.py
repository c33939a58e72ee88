"""The contract's manners, each with a real process: statuses, streams, signals, pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM
from tests.conftest import write

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def lines(data: bytes) -> list[str]:
    return data.decode().splitlines()


def test_stdout_carries_only_the_answer(zephyra: Run, tiny_pack: Path) -> None:
    plain = zephyra("generate", "-m", tiny_pack, "-n", 12, "--stats", "list files")
    assert plain.returncode == 0
    result = json.loads(zephyra("generate", "-m", tiny_pack, "-n", 12, "--json", "list files").stdout)
    assert plain.stdout.decode() == result["text"].removesuffix("\n") + "\n"
    (stats,) = lines(plain.stderr)
    assert "tokens/s" in stats and "router" in stats


def test_json_is_one_object_and_greedy_is_reproducible(zephyra: Run, tiny_pack: Path) -> None:
    runs = [zephyra("generate", "-m", tiny_pack, "-n", 16, "-t", 0, "--json", "SELECT") for _ in range(2)]
    results = [json.loads(run.stdout) for run in runs]
    assert all(run.stdout.count(b"\n") == 1 and run.stderr == b"" for run in runs)
    assert results[0]["text"] == results[1]["text"] != ""
    assert results[0]["route"]["domain"] in ("shell", "sql", "none")
    assert abs(sum(results[0]["route"]["probabilities"].values()) - 1) < 1e-5


def test_stream_json_is_one_object_a_line_and_adds_up(zephyra: Run, tiny_pack: Path) -> None:
    run = zephyra("generate", "-m", tiny_pack, "-n", 12, "--stream-json", "-d", "sql", "list")
    *pieces, result = map(json.loads, lines(run.stdout))
    assert "".join(piece["text"] for piece in pieces) == result["text"]
    assert result["type"] == "result" and result["route"] is None and result["usage"]["completion_tokens"] == 12


def test_the_same_seed_gives_the_same_answer_and_another_one_another(zephyra: Run, tiny_pack: Path) -> None:
    def text(seed: int) -> str:
        options = ("-m", tiny_pack, "-n", 24, "-t", 1.5, "--top-k", 0, "--top-p", 1, "--min-p", 0, "--json")
        result = json.loads(zephyra("generate", *options, "--seed", seed, "hello").stdout)
        assert result["seed"] == seed
        return str(result["text"])

    assert text(5) == text(5)
    assert len({text(seed) for seed in range(3)}) > 1


def test_weights_change_the_answer_and_zero_is_the_base(zephyra: Run, tiny_pack: Path) -> None:
    def text(domain: str) -> str:
        run = zephyra("generate", "-m", tiny_pack, "-n", 16, "--json", "-d", domain, "hello")
        return str(json.loads(run.stdout)["text"])

    base = text("none")
    assert text("shell=0,sql=0") == base
    assert len({base, text("shell"), text("sql"), text("shell=0.5,sql=0.5")}) > 2


def test_argument_stdin_and_file_become_one_prompt(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("third\n")
    joined = zephyra(
        "generate", "-m", tiny_pack, "-n", 1, "--json", "-f", tmp_path / "notes.txt", "first", stdin=b"second\n"
    )
    messages = json.loads(json.loads(joined.stdout)["replay"])["messages"]
    assert messages == [["user", "first\n\nsecond\n\nthird"]]


def test_a_file_on_stdin_is_read(tiny_pack: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("from a file")
    with open(tmp_path / "prompt.txt") as file:
        run = subprocess.run(
            [*PROGRAM, "generate", "-m", str(tiny_pack), "-n", "1", "--json"],
            stdin=file,
            capture_output=True,
            timeout=60,
        )
    assert json.loads(json.loads(run.stdout)["replay"])["messages"] == [["user", "from a file"]]


def test_a_system_prompt_and_stop_strings_arrive(zephyra: Run, tiny_pack: Path) -> None:
    run = zephyra(
        "generate", "-m", tiny_pack, "-n", 30, "--json", "-s", "Be brief.", "--stop", "e", "--stop", "a", "hello"
    )
    result = json.loads(run.stdout)
    assert json.loads(result["replay"])["messages"] == [["system", "Be brief."], ["user", "hello"]]
    assert not set("ea") & set(result["text"])


@pytest.mark.parametrize(
    ("arguments", "stdin", "message", "hint"),
    [
        (["-d", "shel", "hi"], b"", "unknown domain 'shel'", "did you mean 'shell'?"),
        (["-d", "shell=nan", "hi"], b"", "weight of 'shell' is nan", "0 to 100"),
        (["-d", "shell=-1", "hi"], b"", "weight of 'shell' is -1.0", "0 to 100"),
        (["-d", "shell=much", "hi"], b"", "weight of 'shell' is 'much', not a number", ""),
        ([""], b"", "the prompt is empty", "zephyra generate"),
        ([], b"", "the prompt is empty", ""),
        ([], b" \n\n", "the prompt is empty", ""),
        ([], b"caf\xe9!", "standard input is not valid UTF-8: byte 0xe9 at offset 3", "iconv"),
        ([], b"\x7fELF\x02\x00\x01", "standard input is binary: a zero byte at offset 5", ""),
        (["-f", "gone.txt"], b"", "cannot read 'gone.txt': No such file", ""),
        ([], b"word " * 3000, "tokens, the context has 512", "--context"),
        (["--context", "100000", "hi"], b"", "the context is 100000, this model allows 1 to 512", ""),
        (["-t", "nan", "hi"], b"", "temperature is nan", ""),
        (["-n", "0", "hi"], b"", "max_tokens is 0, must be at least 1", ""),
        (["--top-p", "2", "--min-p", "-1", "hi"], b"", "top_p is 2.0", ""),
        (["--threads", "0", "hi"], b"", "threads is 0", ""),
        (["--device", "cuda", "hi"], b"", "device 'cuda' is not available", ""),
        (["--stop", "", "hi"], b"", "a stop string is empty", ""),
    ],
)
def test_bad_input_is_an_error_with_status_1(
    zephyra: Run, tiny_pack: Path, arguments: list[str], stdin: bytes, message: str, hint: str
) -> None:
    run = zephyra("generate", "-m", tiny_pack, *arguments, stdin=stdin)
    assert (run.returncode, run.stdout) == (1, b"")
    said = run.stderr.decode()
    assert said.startswith("error: ") and message in said and hint in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        "generate -t hot x",
        "generate --nonsense",
        "genrate",
        "generate --json --stream-json x",
        "generate --raw -s x y",
        "route --input a b",
        "generate --backend gpt x",
    ],
)
def test_wrong_usage_is_status_2(zephyra: Run, arguments: str) -> None:
    run = zephyra(*arguments.split())
    assert (run.returncode, run.stdout) == (2, b"")
    assert "Usage: zephyra" in run.stderr.decode() and "Traceback" not in run.stderr.decode()


@pytest.mark.parametrize("kind", ["missing", "cut", "text", "bits", "types", "duplicates"])
def test_a_base_that_is_no_model_is_refused(
    zephyra: Run,
    tiny_gguf: Path,
    make_gguf: Callable[..., Path],
    tiny_metadata: dict[str, list[str]],
    tmp_path: Path,
    kind: str,
) -> None:
    import numpy as np

    file, whole = tmp_path / "model.gguf", tiny_gguf.read_bytes()
    if kind == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "bits":
        file.write_bytes(whole[:8] + b"\xff" * 64 + whole[72:])
    elif kind == "types":  # F64: llama.cpp loads it and dies at the first token
        make_gguf(file, tensors={"blk.0.attn_q.weight": np.zeros((64, 64), np.float64)})
    elif kind == "duplicates":
        tokens = tiny_metadata["tokenizer.ggml.tokens"]
        make_gguf(file, metadata={"tokenizer.ggml.tokens": [*tokens[:-1], tokens[10]]})
    run = zephyra("generate", "-m", file, "hi")
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.startswith(b"error: ") and b"Traceback" not in run.stderr


def test_an_adapter_of_another_base_is_refused(
    zephyra: Run, change_pack: Callable[..., Path], make_gguf: Callable[..., Path]
) -> None:
    import numpy as np

    root = change_pack()
    lora = {
        "blk.0.attn_q.weight.lora_a": np.zeros((4, 128), np.float32),
        "blk.0.attn_q.weight.lora_b": np.zeros((64, 4), np.float32),
    }
    keys = {
        "general.architecture": "qwen3",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }
    write(root / "adapters" / "sql.gguf", keys, lora)
    assert zephyra("generate", "-m", root, "-n", 1, "-d", "shell", "hi").returncode == 0
    run = zephyra("generate", "-m", root, "-d", "sql", "hi")
    assert run.returncode == 1 and run.stderr.startswith(b"error: ") and b"Traceback" not in run.stderr


def test_a_router_of_other_labels_is_refused(zephyra: Run, change_pack: Callable[..., Path]) -> None:
    root = change_pack(
        router={"file": "router.gguf", "labels": ["sql", "shell", "none"], "threshold": 0.0, "max_tokens": 9}
    )
    run = zephyra("route", "-m", root, "hi")
    assert run.returncode == 1 and b"was trained for the labels shell, sql, none" in run.stderr


def start(*arguments: object, **streams: object) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], **pipes)  # type: ignore[call-overload,no-any-return]


LONG = ("-n", 480, "-t", 1.2, "--seed", 3, "-d", "none")


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
    arguments = ("generate", "-m", tiny_pack, *LONG, *(["--stream-json"] if form == "stream-json" else []), "hello")
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
        *pieces, result = map(json.loads, lines(said))
        assert result["finish_reason"] == "interrupted"
        assert "".join(piece["text"] for piece in pieces) == result["text"] != ""


def wait_until_blocked(process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Until the kernel holds the program at a pipe."""
    deadline = time.monotonic() + seconds
    while not {"pipe", "poll", "select"} & set(re.split(r"[_.]", Path(f"/proc/{process.pid}/wchan").read_text())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


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


def test_settings_reach_the_program(zephyra: Run, tiny_pack: Path, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text(f'model = "{tiny_pack}"\nmax_tokens = 3\ndomain = "none"\n')
    result = json.loads(zephyra("generate", "--json", "hello", ZEPHYRA_MAX_TOKENS="2").stdout)
    assert (result["model"], result["route"], result["usage"]["completion_tokens"]) == ("tiny", None, 2)
    run = zephyra("generate", "hello", ZEPHYRA_TEMPRATURE="1")
    assert run.returncode == 1 and b"did you mean 'ZEPHYRA_TEMPERATURE'" in run.stderr


def test_nothing_is_written_outside_home(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    assert zephyra("generate", "-m", tiny_pack, "-n", 1, "hi", HOME=str(user)).returncode == 0
    assert list(user.rglob("*")) == []


def test_a_bare_gguf_uses_its_own_template(zephyra: Run, tiny_gguf: Path, tiny_pack: Path) -> None:
    bare = json.loads(zephyra("generate", "-m", tiny_gguf, "-n", 8, "--json", "hello").stdout)
    base = json.loads(zephyra("generate", "-m", tiny_pack, "-d", "none", "-n", 8, "--json", "hello").stdout)
    assert bare["text"] == base["text"] and bare["usage"] == base["usage"]
    assert (bare["model"], bare["route"]) == ("base", None)
    assert zephyra("generate", "-m", tiny_gguf, "-d", "auto", "hi").returncode == 1


def test_a_bare_gguf_without_a_template_wants_raw(zephyra: Run, make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    plain = make_gguf(tmp_path / "plain.gguf", metadata={"tokenizer.chat_template": None})
    refused = zephyra("generate", "-m", plain, "hi")
    assert refused.returncode == 1 and b"has no chat template" in refused.stderr and b"--raw" in refused.stderr
    assert zephyra("generate", "-m", plain, "-n", 2, "--raw", "hi").returncode == 0


def test_a_first_token_that_the_file_asks_for_is_given(
    zephyra: Run, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    starts = make_gguf(tmp_path / "starts.gguf", metadata={"tokenizer.ggml.add_bos_token": True})
    run = zephyra("generate", "-m", starts, "-n", 1, "--raw", "--json", "hi")
    without = zephyra("generate", "-m", make_gguf(tmp_path / "not.gguf"), "-n", 1, "--raw", "--json", "hi")
    counts = [json.loads(done.stdout)["usage"]["prompt_tokens"] for done in (run, without)]
    assert counts[0] == counts[1] + 1
