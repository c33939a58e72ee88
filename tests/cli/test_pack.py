from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyra_cli import store
from zephyra_cli.pack import Pack, safe_path
from zephyra_fusion.chat import ZEPHYRA
from zephyra_fusion.errors import ZephyraError

ROUTER = {"file": "r", "labels": ["sql"], "threshold": 0.5, "max_tokens": 9}


def test_a_manifest_is_read_whole(tiny_pack: Path) -> None:
    pack = Pack.read(tiny_pack)
    assert (pack.name, pack.base, pack.parameters, pack.context_length) == ("tiny", "base.gguf", 123456, 512)
    assert list(pack.adapters) == ["shell", "sql"]
    assert pack.adapters["sql"].rank == 8
    assert pack.router is not None and pack.router.labels == ("shell", "sql", "none")
    assert pack.chat == ZEPHYRA
    assert pack.path("adapters/sql.gguf").is_file()
    assert store.verify(pack) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"format": "cooking"}, "is no manifest: format is 'cooking'"),
        ({"version": 2}, "made by a newer zephyra: pack version 2"),
        ({"version": "1"}, "version is '1', must be a whole number"),
        ({"base": None}, "base is missing, must be an object"),
        ({"base": {"file": 3}}, "base.file is 3, must be a text"),
        ({"base": {"file": "../base.gguf"}}, "not a plain relative path"),
        ({"base": {"file": "/etc/passwd"}}, "not a plain relative path"),
        ({"base": {"file": "base.gguf", "parameters": True}}, "base.parameters is True"),
        ({"adapters": {"auto": {"file": "a.gguf"}}}, "'auto' cannot be the name of a domain"),
        ({"adapters": {"a=b": {"file": "a.gguf"}}}, "'a=b' cannot be the name of a domain"),
        ({"adapters": {"a": "a.gguf"}}, "adapters.a is 'a.gguf', must be an object"),
        ({"router": {"file": "router.gguf"}}, "router.labels is missing, must be a list"),
        ({"router": {"file": "r", "labels": ["law"], "threshold": 0.5, "max_tokens": 9}}, "without an adapter: law"),
        ({"router": {"file": "r", "labels": ["none"], "threshold": 2, "max_tokens": 9}}, "threshold is 2.0"),
        ({"chat": {"before": {}, "after": {}, "answer": ""}}, "chat.before lacks assistant, system, user"),
        ({"generation": {"temprature": 1.0}}, "unknown key generation.temprature"),
        ({"generation": {"temperature": -1.0}}, "temperature is -1.0"),
        ({"files": {"../x": {"sha256": "", "size": 1}}}, "not a plain relative path"),
        ({"files": {"x": {"sha256": "ab"}}}, "files.x.size is missing"),
        ({"base": {"file": "x" * 300}}, "is too long: at most 200 bytes"),
        ({"base": {"file": "/".join(["xy"] * 500)}}, "is too long"),
        ({"generation": {"temperature": 10**400}}, "generation.temperature is 1000.*, must be a number"),
        (
            {"files": {n: {"sha256": "", "size": 1} for n in ("README", "Readme")}},
            "'README' and 'Readme' differ in upper",
        ),
        ({"adapters": {n: {"file": "a.gguf"} for n in ("law", "LAW")}}, "domains 'law' and 'LAW' differ in upper"),
        ({"adapters": {"-x": {"file": "a.gguf"}}}, "'-x' cannot be the name of a domain"),
        ({"adapters": {"x" * 65: {"file": "a.gguf"}}}, "cannot be the name of a domain"),
        ({"router": ROUTER | {"answers": {"sql": "law"}}}, "without an adapter: law"),
        ({"router": ROUTER | {"newcomers": {"domains": [3]}}}, "newcomers.domains is 3"),
        ({"router": ROUTER | {"newcomers": {"domains": [{"shares": [1, 2]}]}}}, "2 numbers for 1 labels"),
    ],
)
def test_a_wrong_manifest_is_refused(change_pack: Callable[..., Path], keys: dict[str, object], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        Pack.read(change_pack(**keys))


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "zephyra.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ZephyraError, match="is damaged"):
        Pack.read(tmp_path)


@pytest.mark.parametrize("file", ["", ".", "..", "a/../b", "/a", "a\\b", "C:/a", "a//b", "./a", "a/", "a\0b"])
def test_paths_stay_inside_the_pack(file: str) -> None:
    with pytest.raises(ZephyraError, match="not a plain relative path"):
        safe_path(file)


def test_verify_names_every_difference(change_pack: Callable[..., Path]) -> None:
    root = change_pack()
    (root / "router.gguf").unlink()
    (root / "base.gguf").write_bytes(b"short")
    adapter = root / "adapters" / "sql.gguf"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"!")
    wrong = store.verify(Pack.read(root))
    assert [line.split(":")[0] for line in wrong] == ["base.gguf", "router.gguf", "adapters/sql.gguf"]
    assert "5 bytes" in wrong[0] and "missing" in wrong[1] and "sha256" in wrong[2]


def test_verify_names_files_without_a_hash(change_pack: Callable[..., Path]) -> None:
    root = change_pack(files={})
    assert "base.gguf: used, but the manifest has no hash of it" in store.verify(Pack.read(root))


def install(tiny_pack: Path, home: Path, name: str) -> Path:
    (home / "models").mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(tiny_pack, home / "models" / name))


def test_a_model_is_found_by_name_and_by_path(tiny_pack: Path, home: Path) -> None:
    root = install(tiny_pack, home, "mine")
    assert store.find("mine").root == root
    assert store.find(str(tiny_pack)).root == tiny_pack
    assert store.find(str(tiny_pack / "zephyra.json")).root == tiny_pack
    assert "mine" in [model.name for model in store.installed()]


def test_a_bare_gguf_is_a_base_and_nothing_else(tiny_gguf: Path) -> None:
    pack = store.find(str(tiny_gguf))
    assert (pack.name, dict(pack.adapters), pack.router, pack.chat) == ("base", {}, None, None)
    assert pack.path(pack.base) == tiny_gguf


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mien", "model 'mien' is not installed"),
        ("./gone", "'gone' does not exist"),
        ("gone/x.gguf", "does not exist"),
        ("hf:owner", "no reference to the hub"),
        ("", "name is empty"),
    ],
)
def test_what_is_no_model(tiny_pack: Path, home: Path, reference: str, message: str) -> None:
    install(tiny_pack, home, "mine")
    with pytest.raises(ZephyraError, match=message) as error:
        store.find(reference)
    if reference == "mien":
        assert "did you mean 'mine'" in (error.value.hint or "")


def test_folders_and_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match="neither zephyra.json nor config.json"):
        store.find(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert store.find(str(tmp_path)).path(tmp_path.name) == tmp_path, "a checkpoint folder is a base and nothing else"
    (tmp_path / "text.txt").write_text("hi")
    with pytest.raises(ZephyraError, match="is no model"):
        store.find(str(tmp_path / "text.txt"))


def test_offline_forbids_the_hub() -> None:
    with pytest.raises(ZephyraError, match="network is forbidden"):
        store.find("hf:owner/name", offline=True)


def test_remove_deletes_an_installed_model_and_nothing_else(tiny_pack: Path, home: Path) -> None:
    root = install(tiny_pack, home, "mine")
    store.remove("mine")
    assert not root.exists()
    with pytest.raises(ZephyraError, match="not installed"):
        store.remove("mine")
    with pytest.raises(ZephyraError, match="not installed"):
        store.remove("../models")


def test_removing_a_link_leaves_what_it_points_to(tiny_pack: Path, home: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "linked").symlink_to(tiny_pack)
    store.remove("linked")
    assert (tiny_pack / "zephyra.json").is_file()
    assert not (home / "models" / "linked").exists()


def test_the_embedded_model_cannot_be_removed(tiny_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "embedded", lambda: tiny_pack)
    with pytest.raises(ZephyraError, match="inside zephyra itself"):
        store.remove("zephyra-nano")


def test_a_link_that_leads_out_of_the_pack_is_refused(change_pack: Callable[..., Path], tmp_path: Path) -> None:
    root = change_pack()
    outside = tmp_path / "outside.gguf"
    (root / "base.gguf").rename(outside)
    (root / "base.gguf").symlink_to(outside)
    with pytest.raises(ZephyraError, match="leads out of the pack"):
        Pack.read(root).path("base.gguf")
    (root / "base.gguf").unlink()
    (root / "real.gguf").symlink_to("adapters/sql.gguf")
    assert Pack.read(root).path("real.gguf").is_file()


def test_the_hubs_own_cache_may_link_to_its_contents(change_pack: Callable[..., Path], tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.parent.mkdir(parents=True)
    change_pack().rename(snapshot)
    (snapshot.parent.parent / "blobs").mkdir()
    (snapshot / "base.gguf").rename(snapshot.parent.parent / "blobs" / "123")
    (snapshot / "base.gguf").symlink_to("../../blobs/123")
    assert Pack.read(snapshot).path("base.gguf").is_file()
