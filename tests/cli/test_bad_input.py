"""Whatever is wrong: one clear error, the right status, nothing on stdout, no traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from tests.conftest import write


@pytest.mark.parametrize(
    ("arguments", "stdin", "message", "hint"),
    [
        (["-d", "shel", "hi"], b"", "unknown domain 'shel'", "did you mean 'shell'?"),
        (["-d", "SHELL", "hi"], b"", "unknown domain 'SHELL'", "did you mean 'shell'?"),
        (["-d", "", "hi"], b"", "unknown domain ''", "known: auto"),
        (["-m", "zephyra-nan", "hi"], b"", "model 'zephyra-nan' is not installed", "did you mean 'zephyra-nano'?"),
        (["-m", "", "hi"], b"", "the model's name is empty", "zephyra models"),
        (["-m", "gone.gguf", "hi"], b"", "model 'gone.gguf' is not installed", ""),
        (["-m", "./gone", "hi"], b"", "'gone' does not exist", ""),
        (["-d", "shell=nan", "hi"], b"", "weight of 'shell' is nan", "0 to 100"),
        (["-d", "shell=-1", "hi"], b"", "weight of 'shell' is -1.0", "0 to 100"),
        (["-d", "shell=much", "hi"], b"", "weight of 'shell' is 'much', not a number", ""),
        ([""], b"", "the prompt is empty", "-f FILE"),
        ([], b"", "the prompt is empty", ""),
        ([], b" \n\n", "the prompt is empty", ""),
        (["-"], b"", "the prompt is empty", ""),
        (["-f", ".", "hi"], b"", "cannot read '.': Is a directory", ""),
        ([], b"caf\xe9!", "standard input is not valid UTF-8: byte 0xe9 at offset 3", "iconv"),
        ([], b"\x7fELF\x02\x00\x01", "standard input is binary: a zero byte at offset 5", ""),
        (["-f", "gone.txt"], b"", "cannot read 'gone.txt': No such file", ""),
        ([], b"word " * 3000, "tokens, the context has 512", "--context"),
        (["--context", "100000", "hi"], b"", "the context is 100000, this model allows 1 to 512", ""),
        (["-t", "nan", "hi"], b"", "temperature is nan", ""),
        (["-n", "0", "hi"], b"", "max_tokens is 0, must be at least 1", ""),
        (["--top-p", "2", "--min-p", "-1", "hi"], b"", "top_p is 2.0", ""),
        (["--threads", "0", "hi"], b"", "threads is 0", ""),
        (["--backend", "llama", "--device", "cuda", "hi"], b"", "device 'cuda' is not available", ""),
        (["--stop", "", "hi"], b"", "a stop string is empty", ""),
        (["--stop", "caf\udce9", "hi"], b"", "a stop string is no valid Unicode: character 3", "UTF-8"),
        (["-s", "caf\udce9", "hi"], b"", "the system prompt is no valid Unicode: character 3", "UTF-8"),
        (["--schema", '{"const": "caf\udce9"}', "hi"], b"", "--schema is no valid Unicode", "UTF-8"),
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
        ["chat", "-s", "caf\udce9"],
        ["chat", "--stop", "caf\udce9"],
        ["log", "search", "\udcff"],
        ["config", "set", "system", "caf\udce9"],
        ["config", "set", "model", "caf\udce9"],
        ["templates", "new", "cafe", "--description", "caf\udce9", "hi"],
        ["generate", "-T", "translate", "-p", "language=caf\udce9", "hi"],
    ],
)
def test_an_argument_that_is_no_utf8_is_refused(zephyra: Run, tiny_pack: Path, arguments: list[str]) -> None:
    run = zephyra(*arguments, stdin=b"hi\n", ZEPHYRA_MODEL=str(tiny_pack))
    assert (run.returncode, run.stdout) == (1, b"")
    assert b"is no valid Unicode: character" in run.stderr and b"fault of zephyra" not in run.stderr


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
        "generate --schema {} --grammar x y",
        "generate two prompts",
        "generate -n 1.5 x",
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
    for backend, domain in ("llama", "sql"), ("llama", "shell=0.5,sql=0.5"), ("torch", "shell=0.5,sql=0.5"):
        run = zephyra("generate", "-m", root, "-d", domain, "--backend", backend, "hi")
        assert (run.returncode, run.stdout) == (1, b"") and b"Traceback" not in run.stderr
        assert run.stderr.startswith(b"error: the adapter ") and b"does not fit the base" in run.stderr


def test_a_pack_may_have_a_thousand_adapters_or_none(zephyra: Run, change_pack: Callable[..., Path]) -> None:
    root = change_pack()
    manifest = json.loads((root / "zephyra.json").read_text())
    one, record = manifest["adapters"]["sql"], manifest["files"]["adapters/sql.gguf"]
    for number in range(1000):
        name = f"adapters/d{number}.gguf"
        os.link(root / "adapters" / "sql.gguf", root / name)
        manifest["adapters"][f"d{number}"], manifest["files"][name] = one | {"file": name}, record
    (root / "zephyra.json").write_text(json.dumps(manifest))
    texts = {
        zephyra("generate", "-m", root, "-n", 6, "-d", domain, "hi").stdout
        for domain in ("sql", "d999", "d7=0.5,d8=0.5", ",".join(f"d{number}=0.015" for number in range(64)))
    }
    assert len(texts) <= 2 and b"" not in texts, "the same adapter under other names, but for the grid of a blend"
    many = zephyra("generate", "-m", root, "-d", ",".join(f"d{number}=0.001" for number in range(1000)), "hi")
    assert (many.returncode, many.stdout) == (1, b"")
    assert many.stderr == b"error: a blend of 1000 adapters is asked for, at most 64 can be blended\n"
    none = change_none(root, manifest)
    assert zephyra("generate", "-m", none, "-n", 6, "hi").returncode == 0
    for domain, said in ("sql", b"error: unknown domain 'sql'\n"), ("auto", b"error: model 'tiny' has no router\n"):
        run = zephyra("generate", "-m", none, "-d", domain, "hi")
        assert run.returncode == 1 and run.stderr.startswith(said)


def change_none(root: Path, manifest: dict[str, Any]) -> Path:
    """The pack without adapters, and so without a router."""
    gone = {entry["file"] for entry in manifest["adapters"].values()} | {"router.gguf"}
    files = {name: record for name, record in manifest["files"].items() if name not in gone}
    changed = {key: value for key, value in manifest.items() if key != "router"} | {"adapters": {}, "files": files}
    (root / "zephyra.json").write_text(json.dumps(changed))
    return root


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "bits"])
@pytest.mark.parametrize("name", ["zephyra.json", "base.gguf", "adapters/sql.gguf", "router.gguf"])
def test_a_damaged_file_of_a_pack_is_named(
    zephyra: Run, change_pack: Callable[..., Path], home: Path, name: str, damage: str
) -> None:
    """Each file of a pack, each kind of damage; nothing is answered and nothing kept."""
    root = change_pack()
    whole = (root / name).read_bytes()
    if damage == "gone":
        (root / name).unlink()
    else:
        damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "bits": whole[:8] + b"\xff" * 64 + whole[72:]}
        (root / name).write_bytes(damaged[damage])
    domain = "auto" if name == "router.gguf" else "sql"
    run = zephyra("generate", "-m", root, "-d", domain, "--json", "hi")
    assert (run.returncode, run.stdout) == (1, b""), run.stderr
    said = run.stderr.decode()
    assert said.startswith("error: ") and Path(name).name in said and "Traceback" not in said
    assert not (home / "conversations.db").exists()


def test_a_router_of_other_labels_is_refused(zephyra: Run, change_pack: Callable[..., Path]) -> None:
    root = change_pack(
        router={"file": "router.gguf", "labels": ["sql", "shell", "none"], "threshold": 0.0, "max_tokens": 9}
    )
    run = zephyra("route", "-m", root, "hi")
    assert run.returncode == 1 and b"was trained for the labels shell, sql, none" in run.stderr


def test_a_bare_gguf_without_a_template_wants_raw(zephyra: Run, make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    plain = make_gguf(tmp_path / "plain.gguf", metadata={"tokenizer.chat_template": None})
    refused = zephyra("generate", "-m", plain, "hi")
    assert refused.returncode == 1 and b"has no chat template" in refused.stderr and b"--raw" in refused.stderr
    assert zephyra("generate", "-m", plain, "-n", 2, "--raw", "hi").returncode == 0
