"""The prompt: the argument, what is piped in, and files, as one text."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyra_fusion.errors import ZephyraError

STANDARD_INPUT = Path("-")  # as a file's name, or as the whole prompt
MOST_BYTES = 16 * 2**20  # of one source; an endless pipe must not fill the memory
SILENCE_S = 3.0  # how long an argument waits for the first byte of a pipe that may be inherited and never written to


def read_prompt(argument: str | None, files: Sequence[Path] = (), optional: bool = False) -> str:
    """Argument, standard input and files, joined by blank lines. ZephyraError: binary, no UTF-8, nothing there.

    "-" as the argument or among the files is standard input, read in that place and waited for.
    `optional`: nothing there is the empty text, and a silent pipe is not waited for.
    """
    among_files = STANDARD_INPUT in files
    asked = among_files or argument == str(STANDARD_INPUT)
    given = None if argument == str(STANDARD_INPUT) else argument
    parts = []
    if given is not None:
        parts.append(decode(os.fsencode(given), "the prompt"))
    data = _standard_input(may_be_silent=not asked and (optional or given is not None or bool(files)))
    if asked and data is None:
        raise ZephyraError(
            "'-' is standard input, and nothing is piped into it", hint="as in: zephyra generate - < FILE"
        )
    piped = "" if data is None else decode(data, "standard input")
    if not among_files:
        parts.append(piped)
    parts += [piped if path == STANDARD_INPUT else read_text(path) for path in files]
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt and not optional:
        raise ZephyraError("the prompt is empty", hint="give it as an argument, by a pipe, or with -f FILE")
    return prompt


def read_text(path: Path) -> str:
    """A text file, whole. ZephyraError: unreadable, too long, binary, no UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror}") from None
    return decode(data, f"'{path}'")


def decode(data: bytes, source: str) -> str:
    """UTF-8 text without the one line end that files and `echo` close with; `source` names it in errors."""
    if len(data) > MOST_BYTES:
        raise ZephyraError(f"{source} is longer than {MOST_BYTES // 2**20} MiB, the most that is read")
    if (at := data.find(b"\0")) >= 0:
        raise ZephyraError(f"{source} is binary: a zero byte at offset {at}", hint="only text can be a prompt")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ZephyraError(
            f"{source} is not valid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            hint="convert it first, for example with iconv -t UTF-8",
        ) from None
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def _standard_input(*, may_be_silent: bool) -> bytes | None:
    """All of a pipe, socket or file on standard input; None for a terminal, a device or nothing.

    With `may_be_silent`, a pipe to which nobody writes for SILENCE_S is left alone, and that is said.
    """
    try:
        fd = sys.stdin.fileno()
        mode = os.fstat(fd).st_mode
    except (AttributeError, OSError, ValueError):  # closed
        return None
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    if may_be_silent and not stat.S_ISREG(mode) and os.name != "nt" and not _readable(fd, SILENCE_S):
        print(f"note: nothing came from standard input for {SILENCE_S:g} s, going on without it", file=sys.stderr)
        return None
    chunks, size = [], 0
    while size <= MOST_BYTES:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:  # whoever shares the pipe made it non-blocking
            _readable(fd, None)
            continue
        except OSError as error:
            raise ZephyraError(f"cannot read standard input: {error.strerror}") from None
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _readable(fd: int, seconds: float | None) -> bool:
    """Whether bytes or the end are there within `seconds` (None: however long it takes)."""
    import select

    return bool(select.select([fd], [], [], seconds)[0])
