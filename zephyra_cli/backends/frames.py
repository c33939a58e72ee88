"""What parent and child of an isolated engine say to each other: frames of JSON or of numbers, never pickles.

A frame is a kind (`J`: a JSON value, `F`: 32-bit floats), a length (32 bits, little endian) and so many bytes.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from struct import Struct
from typing import Any

from zephyra_cli.interruption import deferred

MOST_BYTES = 1 << 30  # of one frame
_HEAD = Struct("<cI")
_CHUNK = 1 << 16


class Closed(Exception):
    """The other side is gone, or speaks nonsense."""


class Frames:
    """Both directions of one connection. An interruption never tears a frame."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = bytearray()
        self.waiting = 0
        """Frames sent, less frames received: the answers that are still to come, where each frame has one."""

    def send(self, value: Any) -> None:
        """Closed: nobody reads."""
        if isinstance(value, array):
            kind, data = b"F", value.tobytes()
        else:
            kind, data = b"J", json.dumps(value, separators=(",", ":")).encode()
        frame = memoryview(_HEAD.pack(kind, len(data)) + data)
        try:
            with deferred():  # who reads is not computing, so this does not block
                while frame:
                    frame = frame[os.write(self._write, frame) :]
                self.waiting += 1
        except OSError:
            raise Closed from None

    def receive(self) -> Any:
        """The next value. Closed: there is none, it is longer than 1 GiB, or it is damaged."""
        self._fill(_HEAD.size)
        kind, length = _HEAD.unpack_from(self._buffer)
        if kind not in (b"J", b"F") or length > MOST_BYTES or (kind == b"F" and length % 4):
            raise Closed
        self._fill(_HEAD.size + length)
        with deferred():
            data = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
            del self._buffer[: _HEAD.size + length]
            self.waiting -= 1
        try:
            return array("f", data) if kind == b"F" else json.loads(data)
        except (ValueError, RecursionError):
            raise Closed from None

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            if sys.platform != "win32":
                import select

                select.select([self._read], [], [])
            with deferred():
                data = os.read(self._read, _CHUNK)
                self._buffer += data
            if not data:
                raise Closed
