"""A small text file of the user's under our home: written whole or not at all, or edited in the user's editor."""

from __future__ import annotations

import os
from pathlib import Path

from zephyra_fusion.errors import ZephyraError


def write(path: Path, text: str) -> None:
    """Put `text` there; a link stays a link, permissions stay. ZephyraError: the folder is read-only or full."""
    import shutil

    from zephyra_converters.staging import staged

    make_folder(path)
    target = path.resolve()
    with staged(target) as place:
        place.write_text(text, encoding="utf-8")
        if target.exists():
            shutil.copymode(target, place)


def edit(path: Path, *, beginning: str) -> None:
    """Open it in $VISUAL or $EDITOR and wait; one that does not exist begins with `beginning`.

    ZephyraError: no such editor, or it failed.
    """
    import shlex
    import subprocess

    if not path.exists():
        write(path, beginning)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if os.name == "nt" else "vi")
    # Windows takes a command as one text, and a backslash in it is no escape.
    command = f'{editor} "{path}"' if os.name == "nt" else [*shlex.split(editor), str(path)]
    try:
        status = subprocess.run(command).returncode
    except (OSError, ValueError) as error:
        raise ZephyraError(f"cannot run the editor '{editor}': {error}", hint="set EDITOR") from None
    if status:
        raise ZephyraError(f"the editor '{editor}' ended with status {status}", hint=f"the file is '{path}'")


def make_folder(path: Path) -> None:
    """The folder that `path` is to lie in. ZephyraError: it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "ZEPHYRA_HOME names another place for all that zephyra writes"
        raise ZephyraError(f"cannot make the folder '{path.parent}': {error.strerror}", hint=hint) from None
