"""A pack that is being changed: whole as it was, or whole as it is to be, whatever happens in between.

One process at a time changes a pack. New files lie in a hidden folder until `commit` gives them their names; the
manifest, replaced in one step, is what makes them part of the pack.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from zephyra_cli.disk import Busy, lock, writable
from zephyra_cli.download import folder
from zephyra_cli.install import check_names
from zephyra_cli.pack import MANIFEST, Pack, load_manifest
from zephyra_cli.settings import home
from zephyra_fusion.errors import ZephyraError


class PackChange:
    """A context in which `manifest` may be edited and files be placed; `commit` ends it, leaving without is undoing.

    A pack inside the package, or one that cannot be written, becomes a copy in the user's store, under its name.
    ZephyraError: it is a single file, a link in it leads out, or another process changes it.
    """

    manifest: dict[str, Any]

    def __init__(self, pack: Pack) -> None:
        if not pack.files:  # a single .gguf may lie in a pack's folder
            raise ZephyraError(
                f"model '{pack.name}' is a single file, or a folder without hashes: it cannot hold domains",
                hint="zephyra convert BASE NAME --adapter DOMAIN=PATH makes a pack",
            )
        for file in (*pack.files, *pack.used):
            if (pack.root / file).exists():
                pack.path(file)  # no link may lead out: what is changed and deleted must be the pack's own
        self.pack = pack  # as it was when the change began
        self.copied = _embedded(pack.root) or not os.access(pack.root, os.W_OK)
        self.root = home() / "models" / pack.root.name if self.copied else pack.root
        self._staging = self.root.with_name(f".{self.root.name}.change") if self.copied else self.root / ".change"
        self._recorded: list[str] = []
        self._dropped: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> PackChange:
        with ExitStack() as stack:
            with writable(self.root):
                self._lock(stack)
                if self.copied and self.root.exists():
                    raise ZephyraError(
                        f"'{self.pack.root}' cannot be written, and the store has another model '{self.root.name}'"
                        " already",
                        hint=f"name that one: -m {self.root.name}",
                    )
                stack.callback(shutil.rmtree, self._staging, ignore_errors=True)
                shutil.rmtree(self._staging, ignore_errors=True)  # nobody is at it: a run that was killed left it
                self._staging.mkdir(parents=True)
                self._before = (self.pack.root / MANIFEST).read_bytes()
            self.manifest = load_manifest(self.pack.root / MANIFEST)
            if Pack.parse(self.manifest, self.pack.root) != self.pack:
                raise self._changed()
            self.manifest.setdefault("files", {})
            self.manifest.setdefault("adapters", {})
            if "source" in self.manifest:  # it is no longer what lies there: a pull must not take it for that
                self.manifest["changed_from"] = self.manifest.pop("source")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def place(self, name: str, suffix: str) -> Path:
        """Where a new file may be written; `name` is a path inside the pack without its suffix.

        ZephyraError: a name that not every system takes, or a link leads out of the pack.
        """
        check_names([name + suffix])
        used = {file.casefold() for file in self.manifest["files"]}
        file, number = name + suffix, 1
        while file.casefold() in used or any(os.path.lexists(root / file) for root in (self.root, self._staging)):
            number += 1
            file = f"{name}-{number}{suffix}"
        self._check_inside(self.root / file)
        path = self._staging / file
        path.parent.mkdir(exist_ok=True)
        return path

    def record(self, path: Path, *, license: str, source: str) -> str:
        """Take a placed file into the manifest; returns its name there."""
        name = path.relative_to(self._staging).as_posix()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        self.manifest["files"][name] = {"sha256": digest, "size": size, "license": license, "source": source}
        self._recorded.append(name)
        return name

    def drop(self, *files: str | None) -> None:
        """Files that a part of the pack needs no more; they go with `commit`, unless another part uses them."""
        self._dropped.update(filter(None, files))

    def commit(self) -> Pack:
        """Put the new manifest in place. ZephyraError: somebody else changed the pack meanwhile, or no room."""
        used = {file.casefold() for file in (*Pack.parse(self.manifest, self.root).used, MANIFEST)}
        gone = [file for file in self._dropped & set(self.manifest["files"]) if file.casefold() not in used]
        for file in gone:
            del self.manifest["files"][file]
        try:
            with (self._staging / MANIFEST).open("w", encoding="utf-8") as written:
                written.write(json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n")
                written.flush()
                os.fsync(written.fileno())
            if self.copied:
                self._become_copy()
            else:
                self._settle()
        except OSError as error:
            raise ZephyraError(f"cannot write '{self.root}': {error.strerror}", hint="nothing was changed") from None
        for file in () if self.copied else gone:
            with suppress(OSError, ZephyraError):  # a file too many harms nobody
                self._check_inside(self.root / file)
                (self.root / file).unlink()
        return Pack.read(self.root)

    def _settle(self) -> None:
        """The recorded files under their names, then the manifest; if that fails, they are gone again."""
        try:
            for file in self._recorded:
                self._check_inside(target := self.root / file)
                target.parent.mkdir(exist_ok=True)
                if os.path.lexists(target):
                    raise self._changed()
                os.rename(self._staging / file, target)
            self._check_unchanged()
            os.replace(self._staging / MANIFEST, self.root / MANIFEST)
        finally:
            if (self._staging / MANIFEST).exists():
                for file in self._recorded:
                    if not (self._staging / file).exists():
                        (self.root / file).unlink(missing_ok=True)

    def _become_copy(self) -> None:
        for file in {*self.manifest["files"], *Pack.parse(self.manifest, self.root).used} - set(self._recorded):
            (self._staging / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.pack.path(file), self._staging / file)
        self._check_unchanged()
        os.rename(self._staging, self.root)

    def _lock(self, stack: ExitStack) -> None:
        """Ours alone until the stack ends. In our home: a pack's own folder is no place for locks."""
        folder().mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]
        try:
            stack.enter_context(lock(folder() / f"change-{key}.lock", None))
        except Busy:
            raise ZephyraError(
                f"another zephyra is changing '{self.root}'", hint="try again when that one is done"
            ) from None

    def _check_unchanged(self) -> None:
        if (self.pack.root / MANIFEST).read_bytes() != self._before:
            raise self._changed()

    def _changed(self) -> ZephyraError:
        return ZephyraError(f"'{self.pack.root}' was changed by somebody else meanwhile", hint="try again")

    def _check_inside(self, path: Path) -> None:
        if not (there := path.parent.resolve()).is_relative_to(self.root.resolve()):
            raise ZephyraError(f"'{path.parent}' is a link that leads out of the pack, to '{there}'")


def _embedded(root: Path) -> bool:
    from zephyra_cli.store import embedded

    here = embedded()
    return here is not None and here.resolve() == root.resolve()
