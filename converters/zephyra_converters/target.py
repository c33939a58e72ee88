"""Whether a target may be written: nothing that is read is touched, nothing replaced but what a conversion made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from zephyra_converters.json_file import read_json
from zephyra_converters.safetensors_file import is_our_own
from zephyra_fusion.errors import ZephyraError

# What `--to hf` writes into a folder. The weights carry the mark: what is trained further and saved there loses it.
_WEIGHTS = {"model.safetensors", "adapter_model.safetensors"}
_BESIDE = {"config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"}


def check_target(target: Path, inputs: Iterable[Path], *, force: bool) -> None:
    """The target may be written: not there (or `force`), and neither one of the inputs, nor inside one, nor around it.

    `force` replaces a file, a link, an empty folder, and a folder that a conversion made.
    """
    there = target.resolve()
    for path in inputs:
        here = path.resolve()
        if _model(there) == _model(here) or here in there.parents or there in here.parents:
            raise ZephyraError(
                f"the target '{target}' is '{path}', lies inside it or around it, and that is read",
                hint="choose another place",
            )
    if (target.exists() or target.is_symlink()) and not force:
        raise ZephyraError(f"'{target}' exists already", hint="--force replaces it")
    if target.is_dir() and not target.is_symlink():
        _check_made(target)
    if not target.parent.is_dir():
        raise ZephyraError(f"there is no folder '{target.parent}'")


def _model(path: Path) -> str:
    """The same for all files of a split GGUF (`gguf_split`), which are read together."""
    return re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"\1", str(path))


def _check_made(folder: Path) -> None:
    """Replacing the folder loses nothing that cannot be made again."""
    files = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    made = _listed(folder) if (folder / "zephyra.json").is_file() else _marked(files)
    if strange := sorted(path.relative_to(folder).as_posix() for path in files - made):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ZephyraError(
            f"'{folder}' holds what no conversion made: '{strange[0]}'{more}", hint="remove the folder yourself"
        )


def _listed(pack: Path) -> set[Path]:
    """A pack's files, as its manifest has them."""
    manifest = read_json(pack / "zephyra.json")
    files = manifest.get("files") if manifest.get("format") == "zephyra-pack" else None
    return {pack / file for file in ("zephyra.json", *files)} if isinstance(files, dict) else set()


def _marked(files: set[Path]) -> set[Path]:
    """Those that lie in a folder with weights of our own, and are these or belong to them."""
    weights = {path for path in files if path.name in _WEIGHTS and is_our_own(path)}
    homes = {path.parent for path in weights}
    return weights | {path for path in files if path.name in _BESIDE and path.parent in homes}
