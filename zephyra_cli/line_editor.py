"""The line that a user types on a terminal: edited, completed, remembered. prompt_toolkit does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from zephyra_cli import interruption
from zephyra_cli.interruption import Terminated
from zephyra_cli.settings import home

HISTORY = "chat_history"


class LineEditor:
    """`complete` gives, for the text before the cursor, what may stand there and how much of the text it replaces."""

    def __init__(self, complete: Callable[[str], Iterable[tuple[str, int]]]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion
        from prompt_toolkit.key_binding import KeyBindings

        class Commands(Completer):
            def get_completions(self, document: Any, complete_event: Any) -> Iterable[Completion]:
                for text, length in complete(document.text_before_cursor):
                    yield Completion(text, start_position=-length)

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            completer=Commands(),
            complete_while_typing=False,
            enable_open_in_editor=True,
            enable_suspend=True,
            search_ignore_case=True,
            history=_history(),
            key_bindings=keys,
        )

    def read(self, prompt: str, draft: str = "") -> str:
        """A line, or several that were pasted. EOFError: Ctrl-D. KeyboardInterrupt: Ctrl-C, or Terminated.

        An exception from a signal handler could come anywhere in the editor's event loop, which would lose some: the
        loop itself hears of the signals while it runs.
        """
        ending: Terminated | None = None

        def end(number: int) -> None:
            nonlocal ending
            ending = Terminated(number)
            with suppress(Exception):  # it has ended already
                self._session.app.exit(exception=ending)

        def listen() -> None:
            import asyncio

            for number in interruption.terminating():
                with suppress(NotImplementedError):  # Windows
                    asyncio.get_running_loop().add_signal_handler(number, end, number)

        try:
            return self._session.prompt(prompt, default=draft, pre_run=listen)
        except OSError:  # the terminal is gone
            raise (ending or EOFError()) from None
        finally:
            interruption.install()  # the editor's event loop has put Python's own handlers in their place


def _history() -> Any:
    """What was typed, across runs; in memory alone where the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = home() / HISTORY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
