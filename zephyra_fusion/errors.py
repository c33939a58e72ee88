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


_SHORT = 24  # names that may stand beside the nearest one
_LISTED = 48  # where none is near; more would bury the error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not among `known`: the nearest one, and the list if it is short or none is near."""
    import difflib  # 2 ms that only a mistake should cost

    names = sorted(known)
    folded = {other.casefold(): other for other in names}
    near = [folded[found] for found in difflib.get_close_matches(name.casefold(), folded, n=1)]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    listed = f"known: {', '.join(names[:_LISTED])}{more}"
    if near:
        return f"did you mean '{near[0]}'?" + (f" ({listed})" if len(names) <= _SHORT else "")
    return listed if names else "nothing is known here yet"
