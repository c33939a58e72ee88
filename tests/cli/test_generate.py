"""`generate` with real processes: what goes in, what comes out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cli.process import PROGRAM, Run


def test_stdout_carries_only_the_answer(zephyra: Run, tiny_pack: Path) -> None:
    plain = zephyra("generate", "-m", tiny_pack, "-n", 12, "--stats", "list files")
    assert plain.returncode == 0
    result = json.loads(zephyra("generate", "-m", tiny_pack, "-n", 12, "--json", "list files").stdout)
    assert plain.stdout.decode() == result["text"].removesuffix("\n") + "\n"
    (stats,) = plain.stderr.decode().splitlines()
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
    *pieces, result = map(json.loads, run.stdout.split(b"\n")[:-1])
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
    assert bare["decision"]["by"] == "model" and "no router" in bare["decision"]["reason"]
    assert zephyra("generate", "-m", tiny_gguf, "-d", "auto", "hi").returncode == 1


def test_a_first_token_that_the_file_asks_for_is_given(
    zephyra: Run, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    starts = make_gguf(tmp_path / "starts.gguf", metadata={"tokenizer.ggml.add_bos_token": True})
    run = zephyra("generate", "-m", starts, "-n", 1, "--raw", "--json", "hi")
    without = zephyra("generate", "-m", make_gguf(tmp_path / "not.gguf"), "-n", 1, "--raw", "--json", "hi")
    counts = [json.loads(done.stdout)["usage"]["prompt_tokens"] for done in (run, without)]
    assert counts[0] == counts[1] + 1
