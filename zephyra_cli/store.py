"""Which models are here: the embedded default, the installed ones, and how a reference finds one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_cli.manifest import leads_out
from zephyra_cli.pack import MANIFEST, Pack
from zephyra_cli.settings import DEFAULT_MODEL, home
from zephyra_cli.vouched import embedded
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.values import dataclass

if TYPE_CHECKING:
    from zephyra_cli.hub import Reference


@dataclass(frozen=True)
class Installed:
    """A pack that goes by its name."""

    name: str
    root: Path
    embedded: bool = False
    kind: str = "pack"  # or checkpoint, adapter

    @property
    def size(self) -> int:
        """Bytes on disk, all files of the folder."""
        return size_of([self.root])


def size_of(roots: Iterable[Path]) -> int:
    """Bytes on disk of all files of some folders; a file that several share (by hard links) counts once."""
    facts = (path.stat() for root in roots for path in root.rglob("*") if path.is_file())
    return sum({(fact.st_dev, fact.st_ino): fact.st_size for fact in facts}.values())


def installed() -> list[Installed]:
    """All models that go by a name, the default first. An installed one of the same name stands for the default."""
    return list(_installed())


def _installed() -> Iterator[Installed]:
    models = home() / "models"
    found = (path for mark in (MANIFEST, "config.json") for path in models.glob(f"[!.]*/{mark}"))
    names = sorted({path.parent.name for path in found}) if models.is_dir() else []
    root = embedded()
    if root is not None and DEFAULT_MODEL not in names:
        yield Installed(DEFAULT_MODEL, root, embedded=True)
    for name in names:
        yield Installed(name, models / name, kind="pack" if (models / name / MANIFEST).is_file() else "checkpoint")


def adapters() -> list[Installed]:
    """The adapters that were pulled and are in no pack yet."""
    from zephyra_cli.install import RECEIPT

    roots = sorted(path.parent for path in (home() / "adapters").glob(f"[!.]*/{RECEIPT}"))
    return [Installed(root.name, root, kind="adapter") for root in roots]


def named(name: str) -> Installed:
    """The installed model or adapter of that name. ZephyraError: there is none."""
    known = {model.name: model for model in (*adapters(), *_installed())}
    if name not in known:
        raise ZephyraError(f"'{name}' is not installed", hint=did_you_mean(name, known))
    return known[name]


def find(reference: str, *, offline: bool = False) -> Pack:
    """The model that `-m` means: a name, a pack's folder, or a bare .gguf. ZephyraError: there is none."""
    if reference.startswith("hf:"):
        return _from_hub(reference, offline=offline)
    if not reference:
        raise ZephyraError("the model's name is empty", hint=f"the default is {DEFAULT_MODEL}; see zephyra models")
    if _is_name(reference):
        if reference == DEFAULT_MODEL and not (home() / "models" / reference).exists():  # no scan on the usual way
            if (root := embedded()) is not None:
                return Pack.read(root)
            raise ZephyraError(f"this zephyra was built without its default model '{reference}'", hint="choose with -m")
        if (root := home() / "models" / reference).is_dir():
            return _folder(root)
    path = Path(reference).expanduser()
    if path.is_file() and (path.name == MANIFEST or path.suffix == ".gguf"):
        return Pack.read(path.parent) if path.name == MANIFEST else Pack.bare(path)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        raise ZephyraError(f"'{path}' is no model", hint="a model is a pack's folder or a .gguf file")
    if _is_name(reference):
        if (home() / "models" / f".{reference}.old").exists():  # an update was killed between its two renames
            from zephyra_cli.install import recover

            recover()
            return find(reference, offline=offline)
        known = [model.name for model in _installed()]
        raise ZephyraError(f"model '{reference}' is not installed", hint=did_you_mean(reference, known))
    raise ZephyraError(f"no such model: '{path}' does not exist")


def _is_name(reference: str) -> bool:
    return bool(reference) and not reference.startswith((".", "~")) and not set(reference) & set("/\\")


def _folder(path: Path) -> Pack:
    if (path / MANIFEST).is_file():
        return Pack.read(path)
    if (path / "config.json").is_file():
        return Pack.bare(path)
    raise ZephyraError(f"'{path}' is no model: it has neither {MANIFEST} nor config.json")


def _from_hub(reference: str, *, offline: bool) -> Pack:
    """The installed model that came from there; else it is pulled now, unless the network is forbidden."""
    from zephyra_cli.hub import Reference

    wanted = Reference.parse(reference)
    for model in _installed():
        if came_from(model.root, wanted):
            return _folder(model.root)
    if offline:
        raise ZephyraError(
            f"'{reference}' is not installed, and the network is forbidden (offline)", hint=f"zephyra pull {reference}"
        )
    from zephyra_cli import ui
    from zephyra_cli.progress import Progress
    from zephyra_cli.pull import pull

    with Progress(bytes=True) as progress:
        pulled = pull(reference, progress=progress, note=ui.note)
    if pulled.kind == "adapter":
        raise ZephyraError(
            f"'{reference}' is an adapter and no model", hint=f"zephyra domains add NAME --adapter {pulled.root}"
        )
    return _folder(pulled.root)


def came_from(root: Path, wanted: Reference) -> bool:
    """Whether an installed model is what a reference means: its repository, and the revision and file that it says."""
    from zephyra_cli.hub import Reference, RemoteFile
    from zephyra_cli.install import receipt_of, source_of
    from zephyra_cli.quantization import candidates, means

    source = source_of(root)
    if str(source.get("repository", "")).lower() != wanted.repository.lower():
        return False
    try:
        asked = Reference.parse(source.get("reference") or f"hf:{wanted.repository}")
    except ZephyraError:
        return False  # nobody can have pulled that
    base = receipt_of(root).get("base")
    file = str(source.get("file") or (base.get("file", "") if isinstance(base, dict) else ""))
    (model,) = candidates({file: RemoteFile(file, 0, "")}) or (None,)
    known = wanted.part in ("", asked.part) or (model is not None and means(wanted.part, model) is not None)
    return known and wanted.revision in (None, source.get("commit"), asked.revision)


def contents() -> dict[str, Path]:
    """All files of the installed models and adapters by their sha256, as their manifests say."""
    from zephyra_cli.install import receipt_of

    found: dict[str, Path] = {}
    for root in [model.root for model in (*_installed(), *adapters())]:
        with suppress(ZephyraError):  # what is damaged has nothing to share
            found |= {record["sha256"]: root / name for name, record in receipt_of(root).get("files", {}).items()}
    return found


def remove(name: str) -> tuple[Installed, int]:
    """Delete an installed model or adapter; also says how many bytes that freed: what others share stays.

    ZephyraError: unknown, or the embedded one.
    """
    model = named(name)
    if model.embedded:
        raise ZephyraError(f"'{name}' is the default model inside zephyra itself and cannot be removed")
    import shutil

    root = model.root
    facts = [] if root.is_symlink() else [path.stat() for path in root.rglob("*") if path.is_file()]
    try:
        root.unlink() if root.is_symlink() else shutil.rmtree(root)  # a link to someone's folder is only a link
    except OSError as error:
        raise ZephyraError(f"cannot remove '{root}': {error.strerror}") from None
    return model, sum(fact.st_size for fact in facts if fact.st_nlink == 1)


def verify(pack: Pack) -> list[str]:
    """What is wrong with the files of a pack, read whole: missing, changed, or unknown to the manifest."""
    wrong = [f"{name}: used, but the manifest has no hash of it" for name in pack.used if name not in pack.files]
    return changed(pack.root, {name: (file.size, file.sha256) for name, file in pack.files.items()}) + wrong


def changed(root: Path, files: Mapping[str, tuple[int, str]]) -> list[str]:
    """What is wrong with files of which size and sha256 are known, by name."""
    from zephyra_cli.disk import digest

    wrong = []
    for name, (size, sha256) in files.items():
        path = root / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif leads_out(root, path):
            wrong.append(f"{name}: a link that leads out of the model, to '{path.resolve()}'")
        elif (found := path.stat().st_size) != size:
            wrong.append(f"{name}: {found} bytes, the manifest says {size}")
        elif (read := digest(path, sha256)) != sha256:
            wrong.append(f"{name}: sha256 {read}, the manifest says {sha256}")
    return wrong
