"""`zephyra push`: what arrives is what was there, with a card; and it comes back by a pull."""

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
from zephyra_cli.model_card import MARK
from zephyra_cli.push import push
from zephyra_fusion.errors import ZephyraError

Pull = Callable[..., Any]


@pytest.fixture
def logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub.users |= {"hf_ada": "ada"}
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    return hub


def pushed(pack: Path, to: str, **options: Any) -> Any:
    return push(str(pack), to, note=lambda text: None, **options)


def test_there_and_back(logged_in: Hub, tiny_pack: Path, pulled: Pull, zephyra: Run) -> None:
    done = zephyra("push", tiny_pack, "hf:ada/tiny", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    tree = logged_in.repositories["ada/tiny"].commits[told["commit"]]
    assert set(tree) == {*files_of(tiny_pack), "README.md"}
    found = pulled("hf:ada/tiny")
    assert found.commit == told["commit"] and store.verify(store.find("tiny")) == []
    assert (found.root / "base.gguf").read_bytes() == (tiny_pack / "base.gguf").read_bytes()


def test_the_card_says_parts_figures_licences_and_sources(logged_in: Hub, change_pack: Callable[..., Path]) -> None:
    figures = {
        "max_abs_diff": 0.25,
        "mean_abs_diff": 0.02,
        "top1_agreement": 0.98,
        "kl_divergence": 3e-4,
        "tokens": 765,
    }
    base = {"file": "base.gguf", "architecture": "qwen3", "parameters": 123456, "quantization": "Q8_0"}
    root = change_pack(base=base | {"verification": figures}, license="My own | licence")
    done = pushed(root, "hf:ada/tiny")
    card = logged_in.repositories["ada/tiny"].commits[done.commit]["README.md"].decode()
    head = card.split("---\n")[1]
    assert 'license: other\nlicense_name: "My own | licence"\n' in head and "library_name: zephyra" in head
    assert "| base | `base.gguf` | Q8_0 |" in card and "max 2.5e-01, mean 2.0e-02, top-1 98.0%, KL 3.0e-04" in card
    assert "| domain sql: queries | `adapters/sql.gguf` |" in card and "| not measured |" in card
    assert "| `router.gguf` | CC0-1.0 | tests |" in card
    assert "zephyra pull hf:ada/tiny" in card and MARK in card


def test_a_card_of_ones_own_stays(logged_in: Hub, change_pack: Callable[..., Path]) -> None:
    root = change_pack()
    (root / "README.md").write_text("# mine")
    (root / "LICENSE").write_text("do what you like")
    done = pushed(root, "hf:ada/tiny")
    tree = logged_in.repositories["ada/tiny"].commits[done.commit]
    assert (tree["README.md"], tree["LICENSE"]) == (b"# mine", b"do what you like")


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_paper_that_leads_out_of_the_pack_is_not_published(
    logged_in: Hub, change_pack: Callable[..., Path], tmp_path: Path
) -> None:
    root, secret = change_pack(), tmp_path / "secret"
    secret.write_text("of this machine")
    for name in ("LICENSE", "README.md"):
        (root / name).symlink_to(secret)
        with pytest.raises(ZephyraError, match=f"{name}' is a link that leads out of the pack"):
            pushed(root, "hf:ada/tiny")
        (root / name).unlink()
    assert logged_in.repositories == {}
    (root / "NOTICE").write_text("inside")
    (root / "LICENSE").symlink_to("NOTICE")
    done = pushed(root, "hf:ada/tiny")
    assert logged_in.repositories["ada/tiny"].commits[done.commit]["LICENSE"] == b"inside"


def test_papers_go_as_they_are(logged_in: Hub, change_pack: Callable[..., Path]) -> None:
    root, latin = change_pack(), "gewährt wird alles".encode("latin-1")
    (root / "LICENSE").write_bytes(latin)
    done = pushed(root, "hf:ada/tiny")
    assert logged_in.repositories["ada/tiny"].commits[done.commit]["LICENSE"] == latin
    (root / "README.md").write_bytes(latin)
    with pytest.raises(ZephyraError, match="README.md is not UTF-8"):
        pushed(root, "hf:ada/other")
    assert "ada/other" not in logged_in.repositories


def test_a_second_push_sends_what_changed_and_removes_what_is_gone(
    logged_in: Hub, tiny_pack: Path, change_pack: Callable[..., Path]
) -> None:
    pushed(tiny_pack, "hf:ada/tiny")
    logged_in.repositories["ada/tiny"].commit({"notes.txt": b"of the owner"})
    sent = [seen.path for seen in logged_in.seen if seen.method == "PUT"]
    assert len(sent) == 4
    manifest = json.loads((tiny_pack / "zephyra.json").read_text())
    del manifest["adapters"]["sql"], manifest["files"]["adapters/sql.gguf"]
    root = change_pack(adapters=manifest["adapters"], files=manifest["files"], router=None)
    done = pushed(root, "hf:ada/tiny")
    assert done.removed == ("adapters/sql.gguf",)
    tree = logged_in.repositories["ada/tiny"].commits[done.commit]
    assert "adapters/sql.gguf" not in tree and tree["notes.txt"] == b"of the owner"
    assert [seen.path for seen in logged_in.seen if seen.method == "PUT"] == sent


def test_what_is_not_pushed(
    hub: Hub, tiny_pack: Path, tiny_gguf: Path, change_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZephyraError, match="nobody is logged in") as caught:
        pushed(tiny_pack, "hf:ada/tiny")
    assert "hf auth login" in (caught.value.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ZephyraError, match="does not accept the token"):
        pushed(tiny_pack, "hf:ada/tiny")
    hub.users["hf_ada"] = "ada"
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    with pytest.raises(ZephyraError, match="forbids it .*rights to create"):
        pushed(tiny_pack, "hf:eve/tiny")
    with pytest.raises(ZephyraError, match="is no pack with a manifest"):
        pushed(tiny_gguf, "hf:ada/tiny")
    with pytest.raises(ZephyraError, match="names a file"):
        pushed(tiny_pack, "hf:ada/tiny:base.gguf")
    root = change_pack()
    (root / "base.gguf").write_bytes(b"damaged")
    with pytest.raises(ZephyraError, match="is damaged and was not pushed: base.gguf"):
        pushed(root, "hf:ada/tiny")
    assert hub.repositories == {}
    hub.fail("POST .*commit", status=500, times=99)
    with pytest.raises(ZephyraError, match="answers 500"):
        pushed(tiny_pack, "hf:ada/tiny")
