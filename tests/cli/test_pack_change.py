"""A pack under change: by one at a time, never outside itself, and whole whatever happens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from zephyra_cli import specialists, store
from zephyra_cli.pack import Pack
from zephyra_cli.specialists import Newcomer
from zephyra_fusion.errors import ZephyraError


@pytest.fixture
def pack(tiny_pack: Path, tmp_path: Path) -> Pack:
    return Pack.read(Path(shutil.copytree(tiny_pack, tmp_path / "pack")))


@pytest.fixture
def music(tiny_adapters: dict[str, Path]) -> Newcomer:
    return Newcomer(name="music", adapter=tiny_adapters["c"])


def add(pack: Pack, newcomer: Newcomer) -> dict[str, Any]:
    return specialists.add(pack, newcomer, lambda done, total, text: None)


def test_a_change_beside_ours_is_noticed(pack: Pack, music: Newcomer) -> None:
    def meddle(done: int, total: int | None, text: str) -> None:
        if text == "manifest":
            (pack.root / "zephyra.json").write_text((pack.root / "zephyra.json").read_text() + "\n")

    with pytest.raises(ZephyraError, match="changed by somebody else"):
        specialists.add(pack, music, meddle)
    assert not (pack.root / "adapters" / "music.gguf").exists()


def test_a_linked_folder_is_neither_written_nor_emptied(pack: Pack, music: Newcomer, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    shutil.copytree(pack.root / "adapters", victim)
    shutil.rmtree(pack.root / "adapters")
    (pack.root / "adapters").symlink_to(victim)
    before = sorted(victim.iterdir())
    for change in (lambda: add(pack, music), lambda: specialists.remove(pack, "shell")):
        with pytest.raises(ZephyraError, match="leads out of the pack"):
            change()
    manifest = json.loads((pack.root / "zephyra.json").read_text())
    for name in ("shell", "sql"):  # a manifest that names nothing in the folder: only the newcomer would go there
        shutil.copy(victim / f"{name}.gguf", pack.root / f"{name}.gguf")
        manifest["adapters"][name]["file"] = f"{name}.gguf"
        manifest["files"][f"{name}.gguf"] = manifest["files"].pop(f"adapters/{name}.gguf")
    (pack.root / "zephyra.json").write_text(json.dumps(manifest))
    with pytest.raises(ZephyraError, match="leads out of the pack"):
        add(Pack.read(pack.root), music)
    assert sorted(victim.iterdir()) == before


def test_who_comes_second_is_told_and_damages_nothing(pack: Pack, music: Newcomer) -> None:
    def meddle(done: int, total: int | None, text: str) -> None:
        if text == "manifest":
            with pytest.raises(ZephyraError, match="another zephyra is changing"):
                add(pack, Newcomer(name="garden", adapter=music.adapter))

    specialists.add(pack, music, meddle)
    with pytest.raises(ZephyraError, match="changed by somebody else"):  # it read the pack before the first was done
        add(pack, music)
    changed = Pack.read(pack.root)
    assert set(changed.adapters) == {"shell", "sql", "music"} and (pack.root / "adapters" / "music.gguf").is_file()
    assert not list(pack.root.glob(".*"))


def test_a_killed_change_leaves_the_default_as_it_was(
    tiny_pack: Path, home: Path, music: Newcomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "embedded", lambda: tiny_pack)

    def die(done: int, total: int | None, text: str) -> None:
        if text == "manifest":
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", lambda *given, **options: None)  # as if it were killed: nothing is tidied
    with pytest.raises(KeyboardInterrupt):
        specialists.add(Pack.read(tiny_pack), music, die)
    monkeypatch.undo()
    monkeypatch.setenv("ZEPHYRA_HOME", str(home))
    monkeypatch.setattr(store, "embedded", lambda: tiny_pack)
    assert [path.name for path in (home / "models").iterdir()] == [".tiny.change"]
    assert [model.root for model in store.installed()] == [tiny_pack]
    add(Pack.read(tiny_pack), music)
    assert [path.name for path in (home / "models").iterdir()] == ["tiny"]
    assert store.verify(Pack.read(home / "models" / "tiny")) == []


def test_what_another_part_uses_stays(pack: Pack) -> None:
    manifest = json.loads((pack.root / "zephyra.json").read_text())
    manifest["adapters"] |= {"alias": {"file": "adapters/shell.gguf"}, "odd": {"file": "base.gguf"}}
    (pack.root / "zephyra.json").write_text(json.dumps(manifest))
    for name in ("alias", "odd"):
        specialists.remove(Pack.read(pack.root), name)
    changed = Pack.read(pack.root)
    assert (pack.root / "base.gguf").is_file() and (pack.root / "adapters" / "shell.gguf").is_file()
    assert {"base.gguf", "adapters/shell.gguf"} <= set(changed.files)
