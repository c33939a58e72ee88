"""Repositories that mean harm: refused by what their headers say, before their weights come; nothing is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.test_attacks import ADAPTERS, MANIFESTS, MODELS
from tests.hub.repositories import sha256
from tests.hub.server import Hub, files_of
from zephyra_cli import download, pull
from zephyra_cli import hub as hub_module
from zephyra_cli.pack import Pack
from zephyra_fusion.errors import ZephyraError

Pull = Callable[..., Any]


def refused(pulled: Pull, home: Path, reference: str, **options: Any) -> ZephyraError:
    with pytest.raises(ZephyraError) as caught:
        pulled(reference, **options)
    assert not (home / "models").exists() and not (home / "adapters").exists()
    assert not [path for path in download.folder().glob("*") if path.suffix in (".part", ".have")]
    return caught.value


@pytest.mark.parametrize("what", MODELS)
def test_models(hub: Hub, pulled: Pull, home: Path, what: str) -> None:
    hub.add("eve/evil", {"evil.gguf": MODELS[what] + bytes(4 * 2**20)})
    refused(pulled, home, "hf:eve/evil")
    assert hub.sent("/cdn/") <= 2**20


@pytest.mark.parametrize("what", [what for what in ADAPTERS if what != "a header of 100 MB"])
def test_adapters(hub: Hub, pulled: Pull, home: Path, tiny_gguf: Path, what: str) -> None:
    config, weights = ADAPTERS[what]
    name = "adapter_model.safetensors" if weights else "adapter_model.bin"
    hub.add("eve/evil", {"adapter_config.json": config.encode(), name: weights or b"pickle"})
    refused(pulled, home, "hf:eve/evil", base=str(tiny_gguf))


@pytest.mark.parametrize("what", MANIFESTS)
def test_packs(hub: Hub, pulled: Pull, home: Path, tiny_pack: Path, what: str) -> None:
    files = files_of(tiny_pack)
    manifest = json.loads(files["zephyra.json"])
    MANIFESTS[what](manifest)
    written = json.dumps(manifest).replace('"BRACKETS"', "[" * 10**5 + "]" * 10**5)
    hub.add("eve/evil", files | {"zephyra.json": written.encode()})
    refused(pulled, home, "hf:eve/evil")
    assert hub.sent("/cdn/") == 0


@pytest.mark.parametrize("name", ["ZEPHYRA.JSON", "zephyra.json/x", "Zephyra.json/x", ".pulled.json", ".Pulled.json"])
def test_a_file_in_the_place_of_what_zephyra_writes(
    hub: Hub, pulled: Pull, home: Path, tiny_pack: Path, name: str
) -> None:
    files = files_of(tiny_pack)
    manifest = json.loads(files["zephyra.json"])
    manifest["files"][name] = {"sha256": sha256(b"hi"), "size": 2}
    hub.add("eve/evil", files | {"zephyra.json": json.dumps(manifest).encode(), name: b"hi"})
    error = refused(pulled, home, "hf:eve/evil")
    assert "are the same name on some file systems" in error.message and "zephyra writes" in (error.hint or "")
    assert hub.sent("/cdn/") == 0


def test_large_files_under_small_names(
    hub: Hub, pulled: Pull, home: Path, tiny_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "_MOST_SMALL", 10_000)
    hub.add("eve/evil", files_of(tiny_pack) | {"zephyra.json": bytes(10_001)})
    assert "'zephyra.json' has 0 MB" in refused(pulled, home, "hf:eve/evil").message
    assert hub.sent("zephyra.json") == 0


@pytest.mark.parametrize(
    "facts",
    [
        *({"sha": sha} for sha in (None, 5, "main", "../../x", "0" * 39)),
        *({"id": name} for name in (None, 5, "gpt2", "a/b/c", "../../../etc/x", "ada/x\n")),
        *({"siblings": siblings} for siblings in (5, [5], [{"size": 1}])),
        {"cardData": [1]},
    ],
)
def test_facts_that_cannot_be_true(hub: Hub, pulled: Pull, home: Path, facts: dict[str, Any]) -> None:
    repository = hub.add("eve/evil", {"config.json": b"{}", "model.safetensors": b"weights"})
    told = repository.facts(repository.refs["main"]) | facts
    hub.fail("GET /api/models/eve/evil", status=200, body=json.dumps(told).encode())
    assert "'eve/evil' is described by cannot be read" in refused(pulled, home, "hf:eve/evil").message


@pytest.mark.parametrize("name", [5, None, "m\ud800.gguf"])
def test_names_that_are_no_text(hub: Hub, pulled: Pull, home: Path, tiny_gguf: Path, name: Any) -> None:
    repository = hub.add("eve/evil", {"m.gguf": tiny_gguf.read_bytes()})
    told = repository.facts(repository.refs["main"])
    told["siblings"][0]["rfilename"] = name
    hub.fail("GET /api/models/eve/evil", status=200, body=json.dumps(told).encode())
    assert "the hub names a file" in refused(pulled, home, "hf:eve/evil").message


def test_a_licence_that_is_no_text_is_shown_as_far_as_it_is(hub: Hub, pulled: Pull, tiny_gguf: Path) -> None:
    hub.add("eve/odd", {"m.gguf": tiny_gguf.read_bytes()}, card={"license": "mit\ud800"})
    assert Pack.read(pulled("hf:eve/odd").root).license == "mit?"


@pytest.mark.parametrize("body", [b"[" * 200_000, b"null", b'{"id":' + b"1" * 5000 + b"}", b"<html>", b""])
@pytest.mark.parametrize("status", [200, 404, 500])
def test_bodies_that_make_no_sense(hub: Hub, pulled: Pull, home: Path, status: int, body: bytes) -> None:
    hub.add("eve/evil", {"config.json": b"{}", "model.safetensors": b"weights"})
    hub.fail("GET /api/models", status=status, body=body, times=99)
    refused(pulled, home, "hf:eve/evil")
    hub.faults.clear()
    hub.fail("GET /cdn/", status=status + 1, body=body, times=99)
    with pytest.raises(ZephyraError):
        pulled("hf:eve/evil")


def test_names_that_are_near_without_sense(hub: Hub, pulled: Pull, home: Path) -> None:
    hub.fail("GET /api/models$", status=200, body=b'[{"id": null}, {"id": [1]}]', times=9)
    assert "check the name" in (refused(pulled, home, "hf:eve/absent").hint or "")


@pytest.mark.parametrize("after", ["\u00b2", "-5", "9" * 5000, "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_waits_that_are_no_numbers(hub: Hub, pulled: Pull, home: Path, after: str) -> None:
    hub.add("eve/evil", {"config.json": b"{}", "model.safetensors": b"weights"})
    hub.fail("GET /cdn/", status=429, headers={"Retry-After": after}, times=99)
    with pytest.raises(ZephyraError, match="too many requests"):
        pulled("hf:eve/evil")


@pytest.mark.parametrize("size", [None, -1, 2**62, "9", 1.5])
def test_sizes_that_no_file_has(size: Any) -> None:
    lfs = SimpleNamespace(sha256="0" * 64, size=size)
    with pytest.raises(ZephyraError, match="does not say size and hash"):
        hub_module._remote_file(SimpleNamespace(rfilename="a.gguf", lfs=lfs, size=size, blob_id="0" * 40))


@pytest.mark.parametrize(
    "name", ["../../.bashrc", "/etc/cron.d/evil", "a/../../b", "con", "x" * 300, "\x1b]0;evil\x07"]
)
def test_names_of_files(hub: Hub, pulled: Pull, home: Path, tmp_path: Path, name: str) -> None:
    before = {path for path in tmp_path.rglob("*") if home not in path.parents}
    hub.add(
        "eve/evil",
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps({"weight_map": {"a": name}}).encode(),
            name: b"weights",
            "model.safetensors": b"weights",
        },
    )
    refused(pulled, home, "hf:eve/evil")
    assert {path for path in tmp_path.rglob("*") if home not in path.parents} - before <= {tmp_path / "hf", home}
