"""The hub of all conversions: one model in memory terms, Hugging Face's names, tensors read lazily."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_fusion.config import FusionConfig

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class LazyTensor:
    """A tensor known by name, shape and stored type; `read` fetches it as float32 and keeps nothing."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' or ggml's name: F32, BF16, Q8_0 …
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What a checkpoint folder says about its tokenizer: parsed JSON files, `{}` where absent."""

    tokenizer: Mapping[str, Any]  # tokenizer.json
    config: Mapping[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    chat_template: str | None = None

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
