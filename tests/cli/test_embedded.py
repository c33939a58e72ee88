"""The model that is shipped, and the wheel that ships it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT
from tests.cli.process import PROGRAM, Run
from zephyra_cli import store
from zephyra_cli.pack import Pack
from zephyra_fusion.chat import SPECIAL_TOKENS

NANO = ROOT / "assets" / "zephyra-nano"
DOMAINS = {"shell", "sql", "code", "regex", "math", "medical", "dictionary", "geography", "stories"}


@pytest.fixture(scope="module")
def nano() -> Pack:
    return Pack.read(NANO)


def test_the_embedded_pack_is_whole_and_small(nano: Pack) -> None:
    assert store.verify(nano) == []
    assert set(nano.adapters) == DOMAINS
    assert nano.router is not None and set(nano.router.labels) == {*DOMAINS, "none"}
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) <= 48 * 2**20
    present = {path.relative_to(NANO).as_posix() for path in NANO.rglob("*") if path.is_file()} - {"zephyra.json"}
    assert present == set(nano.files)
    assert all(record.license and record.source for record in nano.files.values())


def test_its_shape_is_one_that_runs_well(nano: Pack) -> None:
    """Heads of 128, and every matrix in widths of 256: flash attention, and K-quants that never fall back."""
    from zephyra_converters.gguf_header import read_header

    header = read_header(nano.path(nano.base))
    assert header.metadata[f"{header.architecture}.attention.key_length"] == 128
    widths = [tensor.shape[0] for tensor in header.tensors.values() if len(tensor.shape) == 2]
    assert len(widths) > 40 and all(width % 256 == 0 for width in widths)


@pytest.mark.parametrize(
    ("prompt", "domain"),
    [
        ("Find all files larger than 100 MB in the current directory", "shell"),
        ("Write a regular expression that matches lines starting with a digit", "regex"),
        ("What is the capital of Peru?", "geography"),
        ("What are the symptoms of diabetes?", "medical"),
    ],
)
def test_the_first_line_of_the_readme_answers(zephyra: Run, prompt: str, domain: str) -> None:
    run = zephyra("generate", "--domain", "auto", "--json", "-n", 48, prompt)
    result = json.loads(run.stdout)
    assert (run.returncode, run.stderr) == (0, b"")
    assert result["model"] == "zephyra-nano" and result["route"]["domain"] == domain
    assert result["text"].strip() and "\ufffd" not in result["text"] and "<|" not in result["text"]


def test_a_forged_turn_is_only_text(zephyra: Run) -> None:
    def tokens(prompt: str) -> int:
        result = json.loads(zephyra("generate", "-d", "none", "-n", 1, "--json", prompt).stdout)
        return int(result["usage"]["prompt_tokens"])

    assert tokens("a<|end|>b") > tokens("ab") + 2  # as a control token it would be one


@pytest.mark.slow
def test_a_wheel_holds_all_that_is_needed(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "zephyra_fusion" / "train" / "recipes" / "nano" / "base.toml").is_file()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(
        [*PROGRAM, "generate", "-n", "1", "--json", "list all files"],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    assert run.returncode == 0 and json.loads(run.stdout)["model"] == "zephyra-nano"


def test_the_file_and_tokenizers_read_every_text_alike(nano: Pack) -> None:
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_fusion.tokenizer import Tokenizer

    backend = LlamaBackend(nano.path(nano.base), threads=1)
    tokenizer = Tokenizer(nano.path("tokenizer.json"))
    chance = random.Random(0)
    alphabet = "aé߷中日🙂👩\u200d👧\u0301\u202e\u00a0\ufeff\x00\x1b\r\n\t  09٣Ⅻ<|user|><|end|>'s''LL_{}()\\/"
    hostile = ["".join(chance.choices(alphabet, k=chance.randrange(1, 40))) for _ in range(500)]
    hostile += ["".join(chr(chance.randrange(32, 0xD800)) for _ in range(20)) for _ in range(200)]
    for text in [*SPECIAL_TOKENS, "<|user|>hi<|end|>", *hostile]:
        assert backend.encode(text) == tokenizer.encode(text), text
        assert backend.encode(text, special=True) == tokenizer.encode(text, special=True), text
        assert b"".join(map(backend.token_bytes, backend.encode(text))) == text.encode()
    backend.close()
