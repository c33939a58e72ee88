"""A model's vocabulary in llama.cpp: text to ids, ids to bytes, and the ids that end an answer."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

from zephyra_cli.text import utf8
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import check_ids


class Vocabulary:
    """Ids are checked before llama.cpp sees them: it crashes on those outside, and when asked of a freed model."""

    def __init__(self, lib: Any, model: int, size: int) -> None:
        self._lib, self._handle, self.size = lib, lib.llama_model_get_vocab(model), size
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        self.check_open()
        return frozenset(i for i in range(self.size) if self._lib.llama_vocab_is_eog(self._handle, i))

    def encode(self, text: str, *, special: bool) -> list[int]:
        self.check_open()
        raw = utf8(text)
        room = len(raw) + 8  # a token stands for at least one byte
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._handle, raw, len(raw), ids, room, False, special)
        if count < 0:
            raise ZephyraError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
        return ids[:count]

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id)
        if piece is None:
            self.check_open()
            check_ids((token_id,), self.size)
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                length = self._lib.llama_token_to_piece(self._handle, token_id, buffer, size, 0, False)
                if length >= 0:
                    break
                size = -length
            self._pieces[token_id] = piece = buffer.raw[:length]
        return piece

    def ends_answer(self, token_id: int) -> bool:
        """Remembered, as a call into the library takes longer than a look into a dict."""
        ends = self._ends.get(token_id)
        if ends is None:
            self._ends[token_id] = ends = bool(self._lib.llama_vocab_is_eog(self._handle, token_id))
        return ends

    def check_open(self) -> None:
        if not self._handle:
            raise RuntimeError("the backend is closed")

    def close(self) -> None:
        self._pieces.clear()
        self._handle = None
