"""Pulling once more: what is here, what is newer, what changed on the way; and what a pull says where nobody looks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from tests.hub.server import Hub, files_of
from zephyra_cli import store
from zephyra_cli.pack import Pack
from zephyra_fusion.errors import ZephyraError

Pull = Callable[..., Any]
OLD, NEW = bytes(300_000), bytes(range(200)) * 1500
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": OLD, "tokenizer.json": b""}


def test_it_says_what_was_here_what_is_new_and_what_was_healed(hub: Hub, zephyra: Run, home: Path) -> None:
    repository = hub.add("ada/model", FILES)
    first = zephyra("pull", "hf:ada/model").stderr
    commit = repository.refs["main"]
    assert f"commit {commit[:8]}, at ".encode() in first
    again = zephyra("pull", "hf:ada/model")
    assert b"as before: it was here already, and is whole" in again.stderr and again.stdout == b"model\n"
    (home / "models" / "model" / "model.safetensors").write_bytes(NEW)
    assert b"as before, damage healed" in zephyra("pull", "hf:ada/model").stderr
    newer = repository.commit({"model.safetensors": NEW})
    told = json.loads(zephyra("pull", "hf:ada/model", "--json").stdout)
    assert (told["previous_commit"], told["commit"], told["fetched_bytes"]) == (commit, newer, len(NEW))
    repository.commit({"README.md": b"# newest"})
    assert f"in place of {newer[:8]}, at ".encode() in zephyra("pull", "hf:ada/model").stderr


def test_files_of_one_name_in_two_folders_are_two_models(
    hub: Hub, pulled: Pull, zephyra: Run, tiny_gguf: Path, make_gguf: Any, tmp_path: Path
) -> None:
    other = make_gguf(tmp_path / "other.gguf", {"general.name": "other"})
    hub.add("ada/dirs", {"Q4_0/model.gguf": tiny_gguf.read_bytes(), "Q8_0/model.gguf": other.read_bytes()})
    first, second = (pulled(f"hf:ada/dirs:{kind}/model.gguf") for kind in ("Q4_0", "Q8_0"))
    assert (first.name, second.name, second.before) == ("model", "Q8_0-model", None)
    for found, kind in ((first, "Q4_0"), (second, "Q8_0")):
        again = pulled(f"hf:ada/dirs:{kind}/model.gguf")
        assert (again.root, again.before, again.fetched) == (found.root, found.commit, 0)
        assert store.find(f"hf:ada/dirs:{kind}/model.gguf", offline=True).root == found.root
    with pytest.raises(ZephyraError, match="'mine' is the name of another model"):
        pulled("hf:ada/dirs:Q4_0/model.gguf", name="mine")
        pulled("hf:ada/dirs:Q8_0/model.gguf", name="mine")

    receipt = second.root / "zephyra.json"  # as an earlier zephyra wrote it
    old = json.loads(receipt.read_text())
    del old["source"]["file"]
    receipt.write_text(json.dumps(old))
    store.remove("model")
    assert pulled("hf:ada/dirs:Q8_0/model.gguf").root == second.root
    assert pulled("hf:ada/dirs:Q8_0/model.gguf", name="Q8_0-model").before == second.commit
    done = zephyra("generate", "-m", "hf:ada/dirs:Q8_0/model.gguf", "--offline", "-n", "1", "hello")
    assert done.returncode == 0, done.stderr


def test_a_pack_is_here_already(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    repository = hub.add("ada/tiny", files_of(tiny_pack) | {"README.md": b"# tiny", "LICENSE": b"as you like"})
    first, second = pulled("hf:ada/tiny"), pulled("hf:ada/tiny")
    assert (first.before, second.before, second.fetched) == (None, first.commit, 0)
    repository.commit({"README.md": b"# small"})
    assert pulled("hf:ada/tiny").fetched == len(b"# small")


def test_a_pipe_sees_plain_lines_and_quiet_is_quiet(hub: Hub, zephyra: Run) -> None:
    hub.add("ada/model", FILES)
    done = zephyra("pull", "hf:ada/model", FORCE_COLOR="1", TERM="xterm-256color")
    assert done.stdout == b"model\n" and b"\x1b" not in done.stderr and b"\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines and len(lines) == len(set(lines))
    hub.add("ada/other", FILES)
    quiet = zephyra("pull", "hf:ada/other", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (b"other\n", b"")
    failed = zephyra("pull", "hf:ada/none", "-q")
    assert failed.returncode == 1 and failed.stderr.startswith(b"error: ") and failed.stdout == b""


def test_a_file_that_changed_while_it_was_fetched(hub: Hub, pulled: Pull) -> None:
    repository = hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", cut_after=100_000)
    hub.fail("GET /cdn/", status=404, times=1)
    with pytest.raises(ZephyraError):
        pulled("hf:ada/model")
    commit = repository.commit({"model.safetensors": NEW})
    found = pulled("hf:ada/model")
    assert found.commit == commit and (found.root / "model.safetensors").read_bytes() == NEW
    before = hub.sent("/cdn/")
    old = pulled(f"hf:ada/model@{next(iter(repository.commits))}", name="old")
    assert (old.root / "model.safetensors").read_bytes() == OLD
    assert hub.sent("/cdn/") - before == len(OLD) - 100_000  # what had arrived of the old one still counts


def test_a_specialist_joins_from_the_hub(
    hub: Hub, pulled: Pull, zephyra: Run, tiny_pack: Path, tiny_adapters: dict[str, Path], home: Path
) -> None:
    from tests.cli.test_specialists import prompts
    from zephyra_converters.gguf_read import read_gguf
    from zephyra_converters.lora import read_lora_gguf
    from zephyra_converters.peft import write_peft

    hub.add("ada/tiny", files_of(tiny_pack))
    pack = pulled("hf:ada/tiny").root
    peft = home / "peft"
    peft.mkdir()
    write_peft(read_lora_gguf(tiny_adapters["c"], read_gguf(pack / "base.gguf").config), peft, base="ada/tiny")
    hub.add("eve/music", files_of(peft) | {"handler.py": b"import os"}, card={"license": "mit"})
    hub.add("eve/music-gguf", {"music.gguf": tiny_adapters["c"].read_bytes()})
    hub.add("eve/base", {"tiny.gguf": (tiny_pack / "base.gguf").read_bytes()})
    examples, others = home / "music.txt", home / "others.jsonl"
    examples.write_text("\n".join(prompts("music", 30)))
    labelled = [{"prompt": prompt, "domain": d} for d in ("shell", "sql", "none") for prompt in prompts(d, 40)]
    others.write_text("".join(json.dumps(line) + "\n" for line in labelled))
    add = ["domains", "add", "-m", "tiny", "--others", others, "--examples", examples, "--json", "--adapter"]

    offline = zephyra(*add, "hf:eve/music", "music", ZEPHYRA_OFFLINE="1")
    assert offline.returncode == 1 and b"network is forbidden" in offline.stderr
    wrong = zephyra(*add, "hf:eve/base", "music")
    assert wrong.returncode == 1 and b"is no adapter but a gguf" in wrong.stderr, wrong.stderr
    done = zephyra(*add, "hf:eve/music", "music")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["router"]["accuracy"] >= 0.9 and report["router"]["taken_from_domains"] <= 0.05
    joined = Pack.read(pack)
    record = joined.files[joined.adapters["music"].file]
    assert (record.source, record.license) == (f"hf:eve/music@{hub.repositories['eve/music'].refs['main']}", "mit")
    assert "music" in joined.routed and not list(pack.rglob("*.py"))
    assert zephyra("models", "verify", "tiny").returncode == 0
    again = zephyra(*add, "hf:eve/music-gguf", "tunes")
    assert again.returncode == 0, again.stderr
    assert set(Pack.read(pack).routed) == {"shell", "sql", "music", "tunes"}


def test_too_little_space_is_said_in_numbers_that_differ(
    hub: Hub, pulled: Pull, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("ada/model", FILES)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(ZephyraError, match=r"0.30 MB are to be fetched, .* has 0.20 MB of space left"):
        pulled("hf:ada/model")


@pytest.mark.skipif(os.name == "nt" or not os.geteuid(), reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(hub: Hub, pulled: Pull, home: Path) -> None:
    hub.add("ada/model", FILES)
    home.mkdir()
    home.chmod(0o500)
    with pytest.raises(ZephyraError, match="Permission denied"):
        pulled("hf:ada/model")
    home.chmod(0o700)
