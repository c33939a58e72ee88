"""What a run needs later is imported while llama.cpp loads: during its calls another thread may use the interpreter."""

from __future__ import annotations

import threading
from contextlib import suppress
from importlib import import_module

_wanted: list[str] = []
_failed: list[BaseException] = []
_threads: list[threading.Thread] = []
_PATIENCE_S = 1.0


def later(*modules: str) -> None:
    """These will be needed when the model is there, sooner than what was asked for before."""
    _wanted[:0] = modules


def fetch() -> None:
    """Begin to import them. Who needs one of them before that is done waits for it, as Python's imports do."""
    if _wanted:
        thread = threading.Thread(target=_import, args=(tuple(_wanted),), daemon=True)
        with suppress(RuntimeError, MemoryError):  # no thread: they are imported where they are needed
            thread.start()
            _threads.append(thread)
        _wanted.clear()


def cause(error: BaseException) -> BaseException:
    """Why an import failed: who was waiting for one that fails here is given half a module, and says that."""
    if not isinstance(error, ImportError):
        return error
    for thread in _threads:  # who waited may be told before the one who failed has come to note it
        thread.join(_PATIENCE_S)
    return _failed[0] if _failed else error


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        try:
            import_module(module)
        except BaseException as error:
            _failed.append(error)
