"""The hub of all conversions: one model in memory terms, Hugging Face's names, tensors read lazily."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.dtypes import converted, to_float32
from zephyra_fusion.config import FusionConfig

if TYPE_CHECKING:
    import numpy as np


_BLOCK = 2**19  # values of a block: small enough for a core's own cache, where conversion is fastest


@dataclass(frozen=True)
class LazyTensor:
    """A tensor known by name, shape and stored type; its values are fetched by rows and not kept.

    `rows(begin, end)` gives `[end - begin, columns]` as stored (BF16 as 16-bit words), float32 where the type is one
    of ggml's blocks. All dimensions but the last count as rows; a vector is one row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' or ggml's name: F32, BF16, Q8_0 …
    rows: Callable[[int, int], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def row_count(self) -> int:
        return math.prod(self.shape[:-1])

    def read(self) -> np.ndarray:
        """The whole tensor as float32."""
        return to_float32(self.rows(0, self.row_count), self.dtype, self.name).reshape(self.shape)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(first row, row behind the last) of blocks of at most half a million values, or of one row."""
        step = max(1, _BLOCK // max(1, self.columns))
        for begin in range(0, self.row_count, step):
            yield begin, min(begin + step, self.row_count)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows as stored), block after block."""
        for begin, end in self.spans():
            yield begin, self.rows(begin, end)

    def equals(self, other: LazyTensor) -> bool:
        """Whether `other` holds these values, rounded where its type is narrower; read up to the first difference."""
        import numpy as np

        common = other.dtype if other.dtype in ("F16", "BF16") else "F32"

        def words(tensor: LazyTensor, span: tuple[int, int]) -> np.ndarray:
            return converted(tensor.rows(*span), tensor.dtype, common, tensor.name)

        return self.shape == other.shape and all(
            np.array_equal(words(self, span), words(other, span)) for span in self.spans()
        )

    def named(self, name: str) -> LazyTensor:
        return replace(self, name=name)

    @classmethod
    def holding(cls, name: str, values: np.ndarray) -> LazyTensor:
        """A tensor of float32 values that are in memory already."""
        flat = values.reshape(-1, values.shape[-1])
        return cls(name, values.shape, "F32", lambda begin, end: flat[begin:end])


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What a checkpoint folder says about its tokenizer: parsed JSON files, `{}` where absent."""

    tokenizer: Mapping[str, Any]  # tokenizer.json
    config: Mapping[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)  # those for other ends (tool_use, rag)
    sentencepiece: bytes | None = None  # tokenizer.model

    def special_token(self, name: str) -> str | None:
        """The text of `bos_token`, `eos_token`, `pad_token` …; a plain string or an added-token object."""
        value = self.config.get(name)
        return value.get("content") if isinstance(value, Mapping) else value


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A base model. `tensors` are keyed by Hugging Face names; `path` is where it was read from."""

    config: FusionConfig
    tensors: Mapping[str, LazyTensor]
    path: Path
    name: str
    tokenizer: TokenizerFiles | None = None
    license: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)  # what else GGUF's general keys say of it (`model_card`)

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The stored type that most of the weights have."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return max(sizes, key=lambda dtype: sizes[dtype])
