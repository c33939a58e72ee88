"""How fetched files become a model under its name: names that are safe everywhere, a place, one rename at the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from zephyra_cli.disk import lock, writable
from zephyra_cli.download import folder
from zephyra_cli.manifest import check, shown, take
from zephyra_cli.pack import MANIFEST, load_manifest, safe_path
from zephyra_cli.settings import DEFAULT_MODEL, home
from zephyra_fusion.errors import ZephyraError

RECEIPT = ".pulled.json"  # of a checkpoint or an adapter, what a manifest is to a pack: where it is from, and hashes
OWN = (MANIFEST, RECEIPT)
_LONGEST, _LONGEST_PATH = 200, 1000  # bytes of a name, and of a path
_DEVICES = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")


def check_names(names: Iterable[str], own: Iterable[str] = OWN) -> None:
    """Names of a repository that may become paths here, on any system, beside what is our `own`.

    ZephyraError names the first that may not.
    """
    seen = {_folded(name): f"own {name}" for name in own}
    for name in names:
        safe_path(name)
        parts = PurePosixPath(name).parts
        shown = name if len(name) <= 80 else name[:80] + "…"
        if any(len(part.encode(errors="replace")) > _LONGEST for part in parts) or len(name) > _LONGEST_PATH:
            raise ZephyraError(f"path '{shown}' is too long: at most {_LONGEST} bytes a name, {_LONGEST_PATH} in all")
        if not name.isprintable() or any(_DEVICES.fullmatch(part) or part.endswith((".", " ")) for part in parts):
            raise ZephyraError(f"path '{shown}' cannot be a file's name on every system")
        if parts[0] == ".git" or set(name) & set('<>"|?*'):
            raise ZephyraError(f"path '{shown}' cannot be a file's name on every system")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            kind = "file" if depth == len(parts) else "folder"
            other = seen.setdefault(_folded(path), f"{kind} {path}")
            if other != f"{kind} {path}":
                raise ZephyraError(
                    f"'{path}' and '{other.partition(' ')[2]}' are the same name on some file systems",
                    hint="zephyra writes that file itself" if other.startswith("own ") else None,
                )


def _folded(path: str) -> str:
    """What Windows and macOS compare."""
    return unicodedata.normalize("NFC", path).casefold()


def place(kind: str, wanted: str | None, named: str, source: Mapping[str, str]) -> Path:
    """The folder where it shall lie: under `wanted`, else under its own name, else that with more before it.

    `named`: its path in the repository, or the repository's name. `source`: repository, file in it, reference.
    ZephyraError: `wanted` cannot be a name, or is taken by something from elsewhere.
    """
    models = home() / ("adapters" if kind == "adapter" else "models")
    if wanted is not None:
        if not re.fullmatch(r"\w[\w.-]{0,95}", wanted) or _DEVICES.fullmatch(wanted) or wanted.endswith("."):
            raise ZephyraError(f"'{wanted[:100]}' cannot be a model's name", hint="letters, digits, '-', '_' and '.'")
        if not _ours(models, wanted, source):
            raise ZephyraError(f"'{wanted}' is the name of another model", hint=f"zephyra models show {wanted}")
        return models / wanted
    short = [_as_name(PurePosixPath(named).name), _as_name(named)]
    names = dict.fromkeys([*short, *(f"{source['repository'].split('/')[0]}--{name}" for name in short)])
    able = [name for name in names if name != DEFAULT_MODEL and not _DEVICES.fullmatch(name)]
    free = [models / name for name in able if _ours(models, name, source)]
    if free:
        return min(free, key=lambda path: not path.exists())  # where it lies already, if anywhere
    raise ZephyraError(
        f"{' and '.join(map(repr, names))} are names of other models",
        hint=f"zephyra pull {source['reference']} --name NAME",
    )


def _as_name(path: str) -> str:
    return re.sub(r"[^\w.-]+", "-", path).strip(".-")[:90] or "model"


def _ours(models: Path, name: str, source: Mapping[str, str]) -> bool:
    """Nothing lies under the name, in any case of its letters, or what lies there is the same file of a repository."""
    same = [path for path in models.iterdir() if _folded(path.name) == _folded(name)] if models.is_dir() else []
    ours = {"file": source["file"], **(source_of(same[0]) if same else {})}  # earlier zephyras recorded no file
    return not same or (same[0].name == name and all(ours.get(key) == source[key] for key in ("repository", "file")))


def source_of(root: Path) -> Mapping[str, Any]:
    """Where an installed folder came from: repository, commit, reference, file; empty where it was not pulled."""
    with suppress(ZephyraError):  # what is damaged came from nowhere
        return dict(receipt_of(root).get("source", {}))
    return {}


def receipt_of(root: Path) -> Mapping[str, Any]:
    """The manifest of a pack, or the receipt of a pulled checkpoint or adapter; empty where there is none.

    Licence, source and files are of the kinds that we write. ZephyraError: it is damaged.
    """
    path = next((root / name for name in OWN if (root / name).is_file()), None)
    if path is None:
        return {}
    record = load_manifest(path)
    try:
        take(record, "license", str, "", "")
        for key, value in take(record, "source", dict, "", {}).items():
            check(value, str, f"source.{key}")
        for name, entry in take(record, "files", dict, "", {}).items():
            where = f"files.{safe_path(name)}"
            take(check(entry, dict, where), "sha256", str, f"{where}.")
            if not 0 <= (size := take(entry, "size", int, f"{where}.")) < 2**63:
                raise ZephyraError(f"{where}.size is {shown(size)}, no file has that size")
    except ZephyraError as error:
        raise ZephyraError(f"'{path}': {error.message}", hint=error.hint) from None
    return record


def install(root: Path, files: Mapping[str, Path], record: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Link the files into a new folder, write the record last, and give the folder its name. What stood there goes."""
    check_names(files)
    receipt = MANIFEST if record.get("format") else RECEIPT
    new, old = root.with_name(f".{root.name}.new"), root.with_name(f".{root.name}.old")
    uses = Counter(files.values())
    with writable(root.parent), lock(folder() / "install.lock", note):
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            _drop(new)
            new.mkdir()
            for name, path in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                _settle(path, new / name, last=uses[path] == 1)
                uses[path] -= 1
            with open(new / receipt, "w", encoding="utf-8") as file:
                json.dump(record, file, indent=2, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            _drop(old)
            if root.exists() or root.is_symlink():
                os.rename(root, old)
            os.rename(new, root)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if old.exists() and not root.exists():
                os.rename(old, root)
            raise
        _drop(old)


def _settle(path: Path, target: Path, *, last: bool) -> None:
    """A hard link; where the file system has none, the file itself, or a copy if it is needed again."""
    try:
        os.link(path, target)
    except OSError:
        if last:
            os.replace(path, target)
        else:
            shutil.copyfile(path, target)


def recover() -> None:
    """Finish what a killed installation left: the old folder gets its name back if the new one has not got it."""
    if _steps():
        with writable(home()), lock(folder() / "install.lock", lambda text: None):
            for path in _steps():  # nobody is installing now: what is there was left
                root = path.with_name(path.name[1 : -len(path.suffix)])
                if path.suffix == ".old" and path.exists() and not root.exists():
                    os.rename(path, root)
                else:
                    _drop(path)


def _steps() -> list[Path]:
    """Folders of installations that are under way or were broken off."""
    folders = (path for kind in ("models", "adapters") for path in (home() / kind).glob(".*"))
    return [path for path in folders if path.suffix in (".new", ".old")]


def _drop(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
