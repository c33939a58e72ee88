"""Text above the tokens: rendered chats to ids, token bytes to text, stop strings, and what a terminal may see."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Segment

if TYPE_CHECKING:
    from zephyra_cli.backends.protocol import Backend

# C0 but newline and tab, DEL, C1, and the characters that reorder what stands around them.
_CODES = (*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
UNSAFE = {chr(code): f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CODES}
_SHOWN = str.maketrans(UNSAFE)


def visible(text: str) -> str:
    """The text with every character that a terminal would execute written out (`\\x1b`, `\\u202e`)."""
    return text if text.isprintable() else text.translate(_SHOWN)


def cells(text: str) -> int:
    """Columns that a terminal gives a line of `visible` text: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(0, int(wcswidth(text)))


def shorten(text: str, width: int) -> str:
    """The text on one line of at most `width` cells."""
    text = " ".join(visible(text[: 8 * width]).split())
    return text if cells(text) <= width else _head(text, width - 1).rstrip() + "…"


def wrapped(text: str, width: int, *, whole_words: bool = False) -> list[str]:
    """A text as lines of at most `width` cells, broken at spaces where there are any (`whole_words`: only there)."""
    lines, line = [], ""
    for number, word in enumerate(text.split(" ")):
        if line.strip() and cells(line) + 1 + cells(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if number else word
        while not whole_words and cells(line) > width:
            head = _head(line, width) or line[0]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line]


def _head(text: str, width: int) -> str:
    """The longest beginning of at most `width` cells."""
    return text[: bisect_right(range(1, len(text) + 1), width, key=lambda end: cells(text[:end]))]


def utf8(text: str, what: str = "the text") -> bytes:
    """ZephyraError: the text is no valid Unicode, for a lone surrogate has no bytes; `what` names it."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ZephyraError(
            f"{what} is no valid Unicode: character {error.start} is the lone surrogate {text[error.start]!r}",
            hint="input must be UTF-8",
        ) from None


def encode(segments: Iterable[Segment], backend: Backend) -> list[int]:
    """Ids of a rendered chat. Control tokens come from control segments alone: no user text can forge a turn."""
    return [token for piece in segments for token in backend.encode(piece.text, special=piece.control)]


class AnswerText:
    """Token bytes in, text out: whole characters only, and nothing that could still become a stop string.

    A stop string may begin in one token and end in another, so its possible beginning is held back. What is no
    UTF-8 becomes U+FFFD.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ZephyraError("a stop string is empty", hint="give --stop the text that shall end the answer")
        for text in stop:
            utf8(text, "a stop string")
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """The text that is certain after these bytes; nothing once a stop string was seen."""
        return "" if self.stopped else self._advance(self._decoder.decode(data), last=False)

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        return "" if self.stopped else self._advance(self._decoder.decode(b"", final=True), last=True)

    def _advance(self, text: str, *, last: bool) -> str:
        if not self._stop:
            return text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def counted(number: int, noun: str) -> str:
    """As in "1 turn", "2 turns"."""
    return f"{number} {noun}{'s' * (number != 1)}"
