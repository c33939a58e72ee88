"""Nothing half-written stands under a final name: work beside it, then rename."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zephyra_fusion.errors import ZephyraError


@contextmanager
def staged(target: Path, *, folder: bool = False, needs: int = 0) -> Iterator[Path]:
    """A place beside the target (a file's name, or an empty folder) that becomes the target if all goes well.

    ZephyraError, before anything is written: fewer than `needs` bytes are free. What a killed run left is removed.
    """
    _remove_leftovers(target)
    if (free := shutil.disk_usage(target.parent).free) < needs:
        raise ZephyraError(
            f"'{target}' needs {needs} bytes while it is made, {free} are free in '{target.parent.resolve()}'",
            hint="make room, or name a target on another disk",
        )
    place = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if folder:
            place.mkdir()
        yield place
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif folder:
            target.unlink(missing_ok=True)  # no folder can be renamed over a file or a link
        os.replace(place, target)
    except OSError as error:
        where = target if error.filename in (None, str(place)) else error.filename
        raise ZephyraError(
            f"cannot write '{where}': {error.strerror or error}", hint="nothing was left behind"
        ) from None
    finally:
        _remove(place)


def _remove_leftovers(target: Path) -> None:
    """Places of runs for this target whose process is gone."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial*"):
        number = path.name.removeprefix(f".{target.name}.").partition(".")[0]
        if number.isdigit() and not _alive(int(number)):
            _remove(path)


def _alive(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C and not a question: who knows?
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return process != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # a read-only disk refuses even to delete what is not there
            path.unlink(missing_ok=True)
