"""What `--draft` says, from the option to the statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from zephyra_cli import loading
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.loading import draft_for
from zephyra_cli.pack import Pack
from zephyra_fusion.errors import ZephyraError


def test_a_small_model_gets_no_draft_and_says_why(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, pack = LlamaBackend(tiny_gguf), Pack.bare(tiny_gguf)
    draft, note = draft_for("auto", pack, backend)
    assert draft is None and note == "gains nothing below 200 M weights, this model has 0.1 M"
    assert draft_for("none", pack, backend) == (None, "switched off")
    asked, note = draft_for("ngram", pack, backend)
    assert asked is not None and (asked.name, note) == ("ngram", "")
    monkeypatch.setattr(loading, "WORTHWHILE", 1)
    large, _ = draft_for("auto", pack, backend)
    assert large is not None and large.name == "ngram"
    own, _ = draft_for("auto", Pack(root=pack.root, name="own", base=pack.base, draft=pack.base), backend)
    assert own is not None and own.name == str(tiny_gguf)
    own.close()
    with pytest.raises(ZephyraError, match="there is no draft model 'nothing.gguf'"):
        draft_for("nothing.gguf", pack, backend)
    backend.close()


def test_the_draft_is_in_the_result(zephyra: Run, tiny_gguf: Path) -> None:
    def generate(*options: str) -> tuple[dict[str, Any], str]:
        done = zephyra("generate", "-m", tiny_gguf, "--raw", "-n", "60", "--json", *options, "find all the files")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr.decode()

    plain, _ = generate()
    assert plain["speculation"]["draft"] == "none" and "gains nothing below" in plain["speculation"]["note"]
    for choice in "ngram", str(tiny_gguf):
        told, stats = generate("--draft", choice, "--stats", "--kv-type", "f32")
        assert told["speculation"]["draft"] == choice
        assert 0 <= told["speculation"]["accepted"] <= told["speculation"]["drafted"]
        assert "drafted tokens accepted" in stats or "no draft" in stats


def test_a_draft_that_is_no_model_is_refused(zephyra: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "draft.gguf").write_bytes(b"GGUF" + bytes(100))
    done = zephyra("generate", "-m", tiny_gguf, "--draft", tmp_path / "draft.gguf", "hello")
    assert done.returncode == 1 and done.stdout == b"" and b"draft.gguf" in done.stderr
