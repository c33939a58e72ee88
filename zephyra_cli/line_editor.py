"""The line that a user types on a terminal: edited, completed, remembered. prompt_toolkit does the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from zephyra_cli import interruption, ui
from zephyra_cli.settings import home
from zephyra_cli.text import UNSAFE, visible

HISTORY = "chat_history"


class LineEditor:
    """`complete` gives, for the text before the cursor, what may stand there and how much of the text it replaces.
    `remembers`: what is typed, for the next runs too.
    """

    def __init__(
        self, complete: Callable[[str], Iterable[tuple[str, int]]] = lambda text: (), *, remembers: bool = False
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys
        from prompt_toolkit.layout.screen import Char

        for character, shown in UNSAFE.items():  # its own list lacks what reorders the text around it
            Char.display_mappings.setdefault(character, shown)

        class Commands(Completer):
            def get_completions(self, document: Any, complete_event: Any) -> Iterable[Completion]:
                for text, length in complete(document.text_before_cursor):
                    yield Completion(text, start_position=-length, display=visible(text))

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add(Keys.Vt100MouseEvent)
        def _(event: Any) -> None:
            """A colour that was pasted, which prompt_toolkit takes for a mouse and stumbles over. We asked for none."""
            if event.data.endswith("m") and "<" not in event.data:
                event.current_buffer.insert_text(event.data)

        self._troubles: dict[str, bool] = {}  # and whether they were said
        self._session: PromptSession[str] = PromptSession(
            completer=Commands(),
            complete_while_typing=False,
            enable_open_in_editor=True,
            enable_suspend=True,
            search_ignore_case=True,
            history=_history(self._went_wrong) if remembers else None,
            key_bindings=keys,
        )

    def read(self, prompt: str, draft: str = "") -> str:
        """A line, or several that were pasted. EOFError: Ctrl-D, or the terminal is gone. KeyboardInterrupt: Ctrl-C.

        Signals only end the editor's event loop: an exception that comes anywhere in it would be lost at times, and at
        times the line with it. One that comes when the line was sent waits for the caller (`interruption.deferred`).
        """
        app = self._session.app

        def end() -> None:
            with suppress(Exception):  # the line was sent already
                app.exit(exception=KeyboardInterrupt())

        def wake() -> None:
            if app.loop is not None:
                app.loop.call_soon_threadsafe(end)

        def begin() -> None:
            if app.loop is not None:
                app.loop.set_exception_handler(lambda loop, context: self._failed(context))
            if interruption.waits():
                end()

        with interruption.deferred(wake):
            try:
                with self._session.input.raw_mode():  # beyond the editor's own
                    line = self._session.prompt(
                        prompt, default=draft, pre_run=begin, handle_sigint=False, set_exception_handler=False
                    )
                    self._hear_late_keys()
                self._complain()
                return line
            except KeyboardInterrupt:
                interruption.check()  # SIGTERM rather than Ctrl-C
                raise
            except OSError:
                interruption.check()
                raise EOFError from None

    def _failed(self, context: dict[str, Any]) -> None:
        """What a key or the drawing raises in the event loop would be a traceback; the line can be typed on without."""
        self._went_wrong(f"the line editor failed: {context.get('exception') or context['message']}")

    def _went_wrong(self, what: str) -> None:
        """To be said once, when no prompt is drawn: the line goes on its way whatever became of the rest."""
        self._troubles.setdefault(what, False)

    def _complain(self) -> None:
        for what, said in self._troubles.items():
            if not said:
                ui.note(f"note: {what}")
                self._troubles[what] = True

    def _hear_late_keys(self) -> None:
        """Ctrl-C right behind Enter is for what was sent, not for the next line; what was typed before it is dropped,
        as every terminal does. Typed so early it is a key still; from here on the terminal makes a signal of it.
        """
        if os.name == "nt":
            return
        import signal
        import termios

        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
        from prompt_toolkit.keys import Keys

        keyboard = self._session.input
        with suppress(termios.error):  # the terminal is gone
            modes = termios.tcgetattr(keyboard.fileno())
            modes[3] |= termios.ISIG
            termios.tcsetattr(keyboard.fileno(), termios.TCSANOW, modes)
        keys = [*get_typeahead(keyboard), *keyboard.read_keys()]
        interrupts = [at for at, press in enumerate(keys) if press.key == Keys.ControlC]
        if interrupts:
            signal.raise_signal(signal.SIGINT)
            del keys[: interrupts[-1] + 1]
        store_typeahead(keyboard, keys)


def _history(went_wrong: Callable[[str], None]) -> Any:
    """What was typed, across runs; in memory alone as long as the file cannot be read or written."""
    from prompt_toolkit.history import FileHistory

    path = home() / HISTORY

    class History(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return super().load_history_strings()
            except OSError as error:
                went_wrong(f"what you typed in earlier chats cannot be read: {error.strerror}")
                return ()

        def store_string(self, string: str) -> None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
                super().store_string(string)
            except OSError as error:
                went_wrong(f"what you type is not kept for later chats: {error.strerror}")

    return History(str(path))
