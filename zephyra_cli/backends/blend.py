"""Several LoRA adapters as one: their ranks side by side, the weights of the blend in B.

    sum of w_i s_i B_i A_i  =  [w_1 s_1 B_1 … w_n s_n B_n] [A_1; …; A_n]

llama.cpp computes four small operations for each adapter at each matrix, so one of rank 64 is far faster than four of
rank 16. What comes out differs from the separate sum by rounding alone. numpy is imported here and not at start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_cli.backends.adapter_file import (
    BLOCK,
    EMBEDDING,
    F16,
    F32,
    Q4_0,
    Q8_0,
    Stored,
    fast_form,
    write_adapter,
)
from zephyra_cli.backends.nibbles import Unfit, in_nibbles
from zephyra_converters.gguf_header import GGUFHeader, TensorInfo

if TYPE_CHECKING:
    import numpy as np


def write_blend(path: Path, adapters: Sequence[tuple[GGUFHeader, float]], *, nibbles: bool = False) -> None:
    """The sum of checked adapters at these weights as one adapter of weight 1. OSError: it cannot be written.

    nibbles: B in that form (see `nibbles`), or Unfit; otherwise in a type like those that they have.
    """
    tensors = list(_tensors(adapters, Q8_0 if nibbles else None))
    if nibbles:
        tensors = [each for a, b in zip(tensors[::2], tensors[1::2], strict=True) for each in _split(a, b)]
    write_adapter(path, adapters[0][0].architecture, tensors)


def _split(a: Stored, b: Stored) -> tuple[Stored, Stored]:
    """The pair with B in nibbles, or as it is where A is the factor of an embedding. Unfit: it cannot be."""
    import numpy as np

    (name_a, (inputs, _), kind_a, data_a), (name_b, (_, outputs), kind_b, data_b) = a, b
    if name_a.startswith(EMBEDDING):
        return a, b
    if kind_a != Q8_0 or kind_b != Q8_0:  # the numbers are too large for it, or none
        raise Unfit
    blocks_a = np.frombuffer(data_a, np.int8).reshape(-1, inputs // BLOCK, 2 + BLOCK)
    made_a, made_b = in_nibbles(blocks_a, np.frombuffer(data_b, np.int8).reshape(outputs, -1, 2 + BLOCK))
    rank = len(made_a)
    return (name_a, (inputs, rank), Q8_0, made_a.data), (name_b, (rank, outputs), Q4_0, made_b.data)


def _tensors(adapters: Sequence[tuple[GGUFHeader, float]], kind: int | None) -> Iterator[Stored]:
    """A and B of each target in turn. `kind`: of all, None: as theirs are."""
    import numpy as np

    names = {name.removesuffix(".lora_b") for header, _ in adapters for name in header.tensors}
    for target in sorted(name for name in names if not name.endswith(".lora_a")):
        axis = -1 if target == EMBEDDING else -2  # of the rank in A; in B it is the last one
        infos_a, infos_b, all_a, all_b = [], [], [], []
        for header, weight in adapters:
            if target + ".lora_b" not in header.tensors:
                continue
            info_a, info_b = header.tensors[target + ".lora_a"], header.tensors[target + ".lora_b"]
            alpha = float(header.metadata.get("adapter.lora.alpha", 0.0))
            scale = weight * (alpha / info_b.shape[0] if alpha else 1.0)
            if len(adapters) == 1 and info_a.type == info_b.type == kind == Q8_0:
                yield info_a.name, info_a.shape, Q8_0, _blocks(header.path, info_a).data
                yield info_b.name, info_b.shape, Q8_0, _scaled(_blocks(header.path, info_b), scale).data
                break
            infos_a.append(info_a)
            infos_b.append(info_b)
            all_a.append(_read(header.path, info_a))
            all_b.append(_read(header.path, info_b) * np.float32(scale))
        if not all_a:
            continue
        a, b = np.concatenate(all_a, axis=axis), np.concatenate(all_b, axis=-1)
        a, b = _without_zeros(a, b, axis)
        kind_b, fill = fast_form(kind or _kind(infos_b), b.shape[-1])
        for end, values, at, stored in ((".lora_a", a, axis, kind or _kind(infos_a)), (".lora_b", b, -1, kind_b)):
            room = [(0, 0)] * values.ndim
            room[at] = (0, fill)
            yield _stored(target + end, np.pad(values, room), stored)


def _without_zeros(a: np.ndarray, b: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Without the ranks that only fill a block up: of four adapters they would be as many as the real ones."""
    import numpy as np

    in_a = np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1).any(axis=1)
    used = np.flatnonzero(in_a & b.reshape(-1, b.shape[-1]).any(axis=0))
    if len(used) == 0:  # llama.cpp wants a rank of at least 1
        used = np.arange(1)
    return a.take(used, axis), b.take(used, -1)


def _kind(tensors: Sequence[TensorInfo]) -> int:
    """The type they share; F16 for any other mixture, unless one is F32."""
    kinds = {tensor.type for tensor in tensors}
    if len(kinds) == 1 and kinds <= {F32, F16, Q8_0}:
        return kinds.pop()
    return F32 if F32 in kinds else F16


def _read(path: Path, info: TensorInfo) -> np.ndarray:
    """As float32, in numpy's order of dimensions."""

    if info.type != Q8_0:
        from zephyra_converters.gguf_read import tensor_of

        return tensor_of(path, info).read()
    return _decode(_blocks(path, info), Q8_0).reshape(info.shape[::-1])


def _blocks(path: Path, info: TensorInfo) -> np.ndarray:
    """Q8_0 as it is stored, int8 [blocks, 34]."""
    import numpy as np

    return np.fromfile(os.fspath(path), np.int8, info.size, offset=info.offset).reshape(-1, 2 + BLOCK)


def _scaled(blocks: np.ndarray, factor: float) -> np.ndarray:
    import numpy as np

    with np.errstate(over="ignore"):
        scales = (blocks[:, :2].copy().view(np.float16).astype(np.float32) * np.float32(factor)).astype(np.float16)
    return np.concatenate([scales.view(np.int8), blocks[:, 2:]], axis=-1)


def _stored(name: str, values: np.ndarray, kind: int) -> Stored:
    """Of `kind`, or F32 where that cannot hold numbers so large."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        data = _encode(values, kind)
        if kind != F32 and not np.isfinite(_decode(data, kind)).all():
            kind, data = F32, _encode(values, F32)
    return name, values.shape[::-1], kind, data.data


def _encode(values: np.ndarray, kind: int) -> np.ndarray:
    import numpy as np

    if kind != Q8_0:
        return np.ascontiguousarray(values, np.float16 if kind == F16 else np.float32)
    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)).astype(np.int8)
    return np.concatenate([scale.astype(np.float16).view(np.int8), codes], axis=-1)


def _decode(data: np.ndarray, kind: int) -> np.ndarray:
    """The inverse, as float32."""
    import numpy as np

    if kind != Q8_0:
        return data.astype(np.float32)
    scale = np.ascontiguousarray(data[..., :2]).view(np.float16).astype(np.float32)
    return np.asarray(data[..., 2:] * scale)
