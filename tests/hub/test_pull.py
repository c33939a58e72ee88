"""`zephyra pull` from the local hub: packs, GGUF files, checkpoints; what is pinned, shared, refused."""

from __future__ import annotations

import json
import os
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


def test_a_pack_comes_whole_pinned_and_verified(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    commit = hub.add(
        "ada/tiny", files_of(tiny_pack) | {"README.md": b"# tiny", "extra.bin": b"not in the manifest"}
    ).refs["main"]
    found = pulled("hf:ada/tiny")
    pack = Pack.read(found.root)
    assert (found.name, found.kind, found.commit) == ("tiny", "pack", commit)
    assert pack.source and (pack.source.repository, pack.source.commit) == ("ada/tiny", commit)
    assert store.verify(pack) == []
    assert (found.root / "README.md").read_bytes() == b"# tiny"
    assert not (found.root / "extra.bin").exists()
    assert [path.name for path in (found.root.parents[1] / "downloads").iterdir() if path.suffix != ".lock"] == []


def test_what_is_here_is_not_fetched_again(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    files = files_of(tiny_pack)
    hub.add("ada/tiny", files)
    pulled("hf:ada/tiny")
    before = hub.sent("/cdn/")
    pulled("hf:ada/tiny")
    assert hub.sent("/cdn/") == before

    manifest = json.loads(files["zephyra.json"]) | {"name": "other", "description": "the same base"}
    hub.add("eve/other", files | {"zephyra.json": json.dumps(manifest).encode()})
    other = pulled("hf:eve/other")
    assert hub.sent("/cdn/") == before
    assert (other.root / "base.gguf").samefile(store.find("tiny").root / "base.gguf")
    assert store.size_of([model.root for model in store.installed() if not model.embedded]) < 1.1 * store.size_of(
        [other.root]
    )
    store.remove("tiny")
    assert store.verify(store.find("other")) == []


def test_a_damaged_file_is_healed_by_pulling_again(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    hub.add("ada/tiny", files_of(tiny_pack))
    root = pulled("hf:ada/tiny").root
    base = (root / "base.gguf").read_bytes()
    (root / "base.gguf").write_bytes(base[:-1] + bytes([base[-1] ^ 1]))
    assert store.verify(Pack.read(root))
    pulled("hf:ada/tiny")
    assert (root / "base.gguf").read_bytes() == base


def test_a_new_revision_replaces_the_old_and_an_old_one_can_be_named(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    files = files_of(tiny_pack)
    repository = hub.add("ada/tiny", files)
    first = pulled("hf:ada/tiny")
    manifest = json.loads(files["zephyra.json"]) | {"description": "second"}
    second = repository.commit({"zephyra.json": json.dumps(manifest).encode()})
    assert pulled("hf:ada/tiny").commit == second
    assert Pack.read(first.root).description == "second"
    assert pulled(f"hf:ada/tiny@{first.commit}", name="old").commit == first.commit
    assert Pack.read(first.root.with_name("old")).description == "random weights"


def test_a_file_in_the_cache_of_huggingface_hub_is_used(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.add("ada/tiny", files_of(tiny_pack))
    hf_hub_download("ada/tiny", "base.gguf")
    before = hub.sent("/cdn/")
    root = pulled("hf:ada/tiny").root
    assert hub.sent("/cdn/") - before == sum(p.stat().st_size for p in root.rglob("*.gguf") if p.name != "base.gguf")


def test_a_pack_that_contradicts_the_hub_is_refused_before_its_weights(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    files = files_of(tiny_pack)
    hub.add("ada/tiny", files | {"base.gguf": files["base.gguf"] + b"x"})
    with pytest.raises(ZephyraError, match="damaged on the hub: base.gguf"):
        pulled("hf:ada/tiny")
    assert hub.sent("/cdn/") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "made by a newer zephyra: pack version 2"),
        ({"base": {"file": "../../etc/passwd"}}, "not a plain relative path"),
        ({"format": "other"}, "is no manifest"),
    ],
)
def test_manifests_that_are_refused(
    hub: Hub, pulled: Pull, tiny_pack: Path, change: dict[str, Any], message: str
) -> None:
    files = files_of(tiny_pack)
    hub.add("ada/tiny", files | {"zephyra.json": json.dumps(json.loads(files["zephyra.json"]) | change).encode()})
    with pytest.raises(ZephyraError, match=message):
        pulled("hf:ada/tiny")
    assert [model.name for model in store.installed() if not model.embedded] == []


def test_two_owners_of_one_name(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    files, names = files_of(tiny_pack), []
    for name in ("ada/tiny", "eve/tiny", "bob/TINY", "eve/zephyra-nano"):
        hub.add(name, files)
        names.append(pulled(f"hf:{name}").name)
    assert names == ["tiny", "eve--tiny", "bob--TINY", "eve--zephyra-nano"]  # the default model is never displaced
    with pytest.raises(ZephyraError, match="is the name of another model"):
        pulled("hf:eve/tiny", name="tiny")
    with pytest.raises(ZephyraError, match="cannot be a model's name"):
        pulled("hf:eve/tiny", name="../tiny")


def test_generate_pulls_what_is_named_and_then_works_offline(hub: Hub, zephyra: Run, tiny_pack: Path) -> None:
    hub.add("ada/tiny", files_of(tiny_pack))
    options = ["--domain", "shell", "--max-tokens", "3", "--json", "list files"]
    refused = zephyra("generate", "-m", "hf:ada/tiny", "--offline", *options)
    assert refused.returncode == 1 and b"not installed, and the network is forbidden" in refused.stderr
    first = zephyra("generate", "-m", "hf:ada/tiny", *options)
    assert first.returncode == 0, first.stderr
    again = zephyra("generate", "-m", "hf:ada/tiny", "--offline", *options, HF_ENDPOINT="http://127.0.0.1:9")
    assert json.loads(again.stdout)["text"] == json.loads(first.stdout)["text"]


def test_gguf_the_header_is_judged_before_the_weights_come(
    hub: Hub, pulled: Pull, tiny_gguf: Path, make_gguf: Any, tmp_path: Path
) -> None:
    hub.add("ada/tiny-GGUF", {"tiny-Q8_0.gguf": tiny_gguf.read_bytes(), "README.md": b""}, card={"license": "mit"})
    found = pulled("hf:ada/tiny-GGUF")
    pack = Pack.read(found.root)
    assert (found.name, pack.chat, pack.quantization, pack.architecture) == ("tiny-Q8_0", None, "Q8_0", "qwen3")
    assert pack.context_length == 512 and pack.parameters > 10_000
    assert pack.files["tiny-Q8_0.gguf"].license == "mit"
    assert store.find("hf:ada/tiny-GGUF:Q8_0", offline=True).root == found.root

    padding = {"blk.9.padding.weight": __import__("numpy").zeros((1024, 4096), "float32")}
    odd = make_gguf(tmp_path / "odd.gguf", {"general.architecture": "mamba"}, padding)
    hub.add("ada/odd", {"odd.gguf": odd.read_bytes()})
    before = hub.sent("/cdn/")
    with pytest.raises(ZephyraError, match="'mamba'"):
        pulled("hf:ada/odd")
    assert hub.sent("/cdn/") - before < 2 * 2**20 < odd.stat().st_size


def test_checkpoints_bring_no_pickles_and_no_code(hub: Hub, pulled: Pull) -> None:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}
    hub.add("ada/model", files | {"pytorch_model.bin": b"pickle", "modeling.py": b"import os"})
    found = pulled("hf:ada/model")
    assert found.kind == "checkpoint"
    assert sorted(path.name for path in found.root.iterdir()) == [".pulled.json", *sorted(files)]
    hub.add("ada/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(ZephyraError, match="only pickled weights"):
        pulled("hf:ada/pickled")


def test_a_read_only_store_says_so(hub: Hub, pulled: Pull, tiny_pack: Path, tmp_path: Path) -> None:
    hub.add("ada/tiny", files_of(tiny_pack))
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(ZephyraError, match="cannot write to") as caught:
        pulled("hf:ada/tiny")
    assert "ZEPHYRA_HOME" in (caught.value.hint or "")


def test_a_killed_installation_is_put_right(hub: Hub, pulled: Pull, tiny_pack: Path) -> None:
    hub.add("ada/tiny", files_of(tiny_pack))
    root = pulled("hf:ada/tiny").root
    os.rename(root, root.with_name(".tiny.old"))  # killed between the two renames of an update
    root.with_name(".tiny.new").mkdir()
    assert store.find("tiny").root == root
    os.rename(root, root.with_name(".tiny.old"))
    before = hub.sent("/cdn/")
    pulled("hf:ada/tiny")
    assert [path.name for path in root.parent.iterdir()] == ["tiny"]
    assert hub.sent("/cdn/") == before and store.verify(Pack.read(root)) == []
