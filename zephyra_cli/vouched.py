"""Which files somebody vouches for: those that came with zephyra, or through the store, whose hashes a pull checks."""

from __future__ import annotations

from pathlib import Path

from zephyra_cli.pack import MANIFEST, Pack
from zephyra_cli.settings import DEFAULT_MODEL, home


def embedded() -> Path | None:
    """The default pack's folder: inside the package in a wheel, in `assets/` beside it in a checkout."""
    package = Path(__file__).parent
    places = (package / "assets" / DEFAULT_MODEL, package.parent / "assets" / DEFAULT_MODEL)
    return next((place for place in places if (place / MANIFEST).is_file()), None)


def vouched(pack: Pack) -> bool:
    """The pack is the embedded one or lies in the store, not by a link, and has a hash of all that an answer may need.

    Nothing is read: hashes are checked when a pack comes into the store. One elsewhere may claim whatever it likes.
    """
    root, default = pack.root.resolve(), embedded()
    ours = root.parent == (home() / "models").resolve() or default is not None and root == default.resolve()
    return ours and set(pack.used) <= set(pack.files)
