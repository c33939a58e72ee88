"""A model's vocabulary in llama.cpp: text to ids, ids to bytes, and the ids that end an answer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams

if TYPE_CHECKING:
    from zephyra_fusion.constraint import Constraint, TokenTable


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
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise ZephyraError(
                f"the text is no valid Unicode: character {error.start} is the lone surrogate {text[error.start]!r}",
                hint="input must be UTF-8",
            ) from None
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
            self.check_ids((token_id,))
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

    def constraint(self, params: SamplingParams) -> Constraint | None:
        """The schema or the grammar that `params` names. ZephyraError: it cannot be used."""
        if not (params.schema or params.grammar):
            return None
        from zephyra_fusion.constraint import Constraint

        return Constraint(params, self._token_table)

    @cached_property
    def _token_table(self) -> TokenTable:
        from zephyra_fusion.constraint import TokenTable

        return TokenTable(self.size, self.token_bytes, self.stop_ids)

    def check_ids(self, ids: Sequence[int]) -> None:
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.size:
            raise ZephyraError(f"token id {low if low < 0 else high} is outside the vocabulary of {self.size}")

    def check_open(self) -> None:
        if not self._handle:
            raise RuntimeError("the backend is closed")

    def close(self) -> None:
        self._pieces.clear()
        self._handle = None
