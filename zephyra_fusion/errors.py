"""The one exception that users see."""

from __future__ import annotations

from collections.abc import Iterable


class ZephyraError(Exception):
    """Something the user can understand and act upon.

    `message` names the value, the limit and the cause; `hint` says what to do about it. The command line prints
    both (`error: …`, `hint: …`) and exits with status 1. Programming errors stay `ValueError` and `assert`.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not among `known`: the nearest one, and the list where it is short."""
    import difflib  # 2 ms that only a mistake should cost

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    listed = f"known: {', '.join(names)}" if 0 < len(names) <= 24 else ""
    if near:
        return f"did you mean '{near[0]}'?" + (f" ({listed})" if listed else "")
    return listed or "nothing is known here yet"
