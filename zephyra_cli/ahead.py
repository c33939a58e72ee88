"""What a run needs later is imported while llama.cpp loads: during its calls another thread may use the interpreter."""

from __future__ import annotations

import threading
from contextlib import suppress
from importlib import import_module

_wanted: list[str] = []


def later(*modules: str) -> None:
    """These will be needed when the model is there, sooner than what was asked for before."""
    _wanted[:0] = modules


def fetch() -> None:
    """Begin to import them. Who needs one of them before that is done waits for it, as Python's imports do."""
    if _wanted:
        threading.Thread(target=_import, args=(tuple(_wanted),), daemon=True).start()
        _wanted.clear()


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        with suppress(Exception):  # who needs it meets it
            import_module(module)
