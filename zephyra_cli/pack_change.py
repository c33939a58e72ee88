"""A pack that is being changed: whole as it was, or whole as it is to be, whatever happens in between.

New files go under names that nobody uses yet; the manifest, replaced in one step, is what makes them part of the pack.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from zephyra_cli.pack import MANIFEST, Pack, safe_path
from zephyra_fusion.errors import ZephyraError


class PackChange:
    """A context in which `manifest` may be edited and files be placed; `commit` ends it, leaving without is undoing.

    A pack inside the package, or one that cannot be written, is copied into the user's store first, under its name.
    """

    def __init__(self, pack: Pack) -> None:
        if not pack.files:  # a single .gguf may lie in a pack's folder
            raise ZephyraError(
                f"model '{pack.name}' is a single file, or a folder without hashes: it cannot hold domains",
                hint="zephyra convert BASE NAME --adapter DOMAIN=PATH makes a pack",
            )
        self._copied = False
        self._placed: list[Path] = []
        self.root = pack.root
        if _embedded(pack.root) or not os.access(pack.root, os.W_OK):
            self.root = _copy(pack)
            self._copied = True
        self._before = (self.root / MANIFEST).read_bytes()
        self.manifest: dict[str, Any] = json.loads(self._before)
        self.manifest.setdefault("files", {})
        self.manifest.setdefault("adapters", {})
        if "source" in self.manifest:  # it is no longer what lies there: a pull must not take it for that
            self.manifest["changed_from"] = self.manifest.pop("source")

    def __enter__(self) -> PackChange:
        return self

    def __exit__(self, *reason: object) -> None:
        for path in self._placed:
            path.unlink(missing_ok=True)
        if self._copied:
            shutil.rmtree(self.root, ignore_errors=True)

    @property
    def copied(self) -> bool:
        return self._copied

    def pack(self) -> Pack:
        """The pack as it was when the change began."""
        return Pack.read(self.root)

    def place(self, name: str, suffix: str) -> Path:
        """Where a new file may be written; `name` is a path inside the pack without its suffix."""
        used = {file.casefold() for file in self.manifest.get("files", {})}
        file, number = safe_path(name + suffix), 1
        while file.casefold() in used or (self.root / file).exists():
            number += 1
            file = f"{name}-{number}{suffix}"
        path = self.root / file
        path.parent.mkdir(exist_ok=True)
        self._placed.append(path)
        return path

    def record(self, path: Path, *, license: str, source: str) -> str:
        """Take a placed file into the manifest; returns its name there."""
        name = path.relative_to(self.root).as_posix()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        self.manifest["files"][name] = {"sha256": digest, "size": size, "license": license, "source": source}
        return name

    def drop(self, *files: str | None) -> None:
        """Files that the new manifest does not name any more."""
        for file in files:
            if file:
                self.manifest["files"].pop(file, None)

    def commit(self) -> Pack:
        """Put the new manifest in place. ZephyraError: somebody else changed the pack meanwhile, or no room."""
        place = self.root / f".{MANIFEST}.{os.getpid()}.partial"
        try:
            with place.open("w", encoding="utf-8") as file:
                file.write(json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Pack.parse(self.manifest, self.root)
            if (self.root / MANIFEST).read_bytes() != self._before:
                raise ZephyraError(f"'{self.root}' was changed by somebody else meanwhile", hint="try again")
            os.replace(place, self.root / MANIFEST)
        except OSError as error:
            raise ZephyraError(f"cannot write '{self.root}': {error.strerror}", hint="nothing was changed") from None
        finally:
            place.unlink(missing_ok=True)
        self._placed, self._copied = [], False
        for file in set(json.loads(self._before).get("files", {})) - set(self.manifest["files"]):
            with suppress(OSError):  # a file too many harms nobody
                (self.root / file).unlink()
        return Pack.read(self.root)


def _embedded(root: Path) -> bool:
    from zephyra_cli.store import embedded

    here = embedded()
    return here is not None and here.resolve() == root.resolve()


def _copy(pack: Pack) -> Path:
    """The pack in the user's store. ZephyraError: another one has its name there."""
    from zephyra_cli.settings import home
    from zephyra_converters.staging import staged

    target = home() / "models" / pack.root.name
    if target.exists():
        raise ZephyraError(
            f"'{pack.root}' cannot be written, and the store has another model '{target.name}' already",
            hint=f"name that one: -m {target.name}",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staged(target, folder=True) as place:
            for file in (*pack.files, MANIFEST):
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pack.path(file), place / file)
    except OSError as error:
        raise ZephyraError(f"cannot copy '{pack.root}' to '{target}': {error.strerror}") from None
    return target
