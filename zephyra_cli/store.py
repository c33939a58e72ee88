"""Which models are here: the embedded default, the installed ones, and how a reference finds one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zephyra_cli.pack import MANIFEST, Pack
from zephyra_cli.settings import DEFAULT_MODEL, home
from zephyra_fusion.errors import ZephyraError, did_you_mean


@dataclass(frozen=True)
class Installed:
    """A pack that goes by its name."""

    name: str
    root: Path
    embedded: bool

    @property
    def size(self) -> int:
        """Bytes on disk, all files of the folder."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())


def embedded() -> Path | None:
    """The default pack's folder: inside the package in a wheel, in `assets/` beside it in a checkout."""
    package = Path(__file__).parent
    places = (package / "assets" / DEFAULT_MODEL, package.parent / "assets" / DEFAULT_MODEL)
    return next((place for place in places if (place / MANIFEST).is_file()), None)


def installed() -> list[Installed]:
    """All models that go by a name, the default first. An installed one of the same name stands for the default."""
    return list(_installed())


def _installed() -> Iterator[Installed]:
    models = home() / "models"
    names = sorted(path.parent.name for path in models.glob(f"*/{MANIFEST}")) if models.is_dir() else []
    root = embedded()
    if root is not None and DEFAULT_MODEL not in names:
        yield Installed(DEFAULT_MODEL, root, embedded=True)
    for name in names:
        yield Installed(name, models / name, embedded=False)


def find(reference: str, *, offline: bool = False) -> Pack:
    """The model that `-m` means: a name, a pack's folder, or a bare .gguf. ZephyraError: there is none."""
    if reference.startswith("hf:"):
        if offline:
            raise ZephyraError(f"'{reference}' is on the Hugging Face Hub, and the network is forbidden (offline)")
        raise ZephyraError(f"'{reference}' is on the Hugging Face Hub, and this zephyra cannot download models yet")
    if _is_name(reference):
        if reference == DEFAULT_MODEL and not (home() / "models" / reference).exists():  # no scan on the usual way
            if (root := embedded()) is not None:
                return Pack.read(root)
            raise ZephyraError(f"this zephyra was built without its default model '{reference}'", hint="choose with -m")
        if (root := home() / "models" / reference).joinpath(MANIFEST).is_file():
            return Pack.read(root)
    path = Path(reference).expanduser()
    if path.is_file() and (path.name == MANIFEST or path.suffix == ".gguf"):
        return Pack.read(path.parent) if path.name == MANIFEST else Pack.bare(path)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        raise ZephyraError(f"'{path}' is no model", hint="a model is a pack's folder or a .gguf file")
    if _is_name(reference):
        known = [model.name for model in _installed()]
        raise ZephyraError(f"model '{reference}' is not installed", hint=did_you_mean(reference, known))
    raise ZephyraError(f"no such model: '{path}' does not exist")


def _is_name(reference: str) -> bool:
    return bool(reference) and not reference.startswith((".", "~")) and not set(reference) & set("/\\")


def _folder(path: Path) -> Pack:
    if (path / MANIFEST).is_file():
        return Pack.read(path)
    if (path / "config.json").is_file():
        raise ZephyraError(
            f"'{path}' is a checkpoint folder: it needs the PyTorch backend, which this zephyra does not have yet",
            hint=f"turn it into a GGUF first: zephyra convert {path}",
        )
    raise ZephyraError(f"'{path}' is no model: it has neither {MANIFEST} nor config.json")


def remove(name: str) -> Installed:
    """Delete an installed pack. ZephyraError: unknown, or the embedded one."""
    models = {model.name: model for model in _installed()}
    if name not in models:
        raise ZephyraError(f"model '{name}' is not installed", hint=did_you_mean(name, models))
    if models[name].embedded:
        raise ZephyraError(f"'{name}' is the default model inside zephyra itself and cannot be removed")
    import shutil

    try:
        root = models[name].root
        root.unlink() if root.is_symlink() else shutil.rmtree(root)  # a link to someone's folder is only a link
    except OSError as error:
        raise ZephyraError(f"cannot remove '{models[name].root}': {error.strerror}") from None
    return models[name]


def verify(pack: Pack) -> list[str]:
    """What is wrong with the files of a pack, read whole: missing, changed, or unknown to the manifest."""
    import hashlib

    wrong = []
    for name, record in pack.files.items():
        path = pack.root / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != record.size:
            wrong.append(f"{name}: {path.stat().st_size} bytes, the manifest says {record.size}")
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != record.sha256:
                wrong.append(f"{name}: sha256 {digest}, the manifest says {record.sha256}")
    used = [pack.base, *(adapter.file for adapter in pack.adapters.values()), pack.router_file, pack.draft or ""]
    wrong += [f"{name}: used, but the manifest has no hash of it" for name in used if name and name not in pack.files]
    return wrong
