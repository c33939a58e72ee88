"""Several LoRA adapters as one: their ranks side by side, the weights of the blend in B.

    sum of w_i s_i B_i A_i  =  [w_1 s_1 B_1 … w_n s_n B_n] [A_1; …; A_n]

llama.cpp computes four small operations for each adapter at each matrix, so one of rank 64 is far faster than four of
rank 16. What comes out differs from the separate sum by rounding alone. numpy is imported here and not at start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

from zephyra_converters.gguf_header import GGUFHeader, TensorInfo

if TYPE_CHECKING:
    import numpy as np

_F32, _F16, _Q8_0 = 0, 1, 8
_BLOCK = 32  # the rank is padded to it: smaller ones run no faster
_EMBEDDING = "token_embd.weight"  # is looked up, not multiplied: llama.cpp wants its A transposed


def write_blend(path: Path, adapters: Sequence[tuple[GGUFHeader, float]]) -> None:
    """The sum of checked adapters at these weights as one adapter of weight 1. OSError: it cannot be written."""
    tensors = list(_tensors(adapters))
    keys = (
        ("general.architecture", adapters[0][0].architecture),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
    )
    head = b"GGUF" + pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(_string(name) + pack("<I", 8) + _string(value) for name, value in keys)
    offset = 0
    for name, shape, kind, data in tensors:
        head += _string(name) + pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-data.nbytes // _BLOCK) * _BLOCK
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % _BLOCK))
        for *_, data in tensors:
            file.write(data.data)
            file.write(bytes(-data.nbytes % _BLOCK))


def _tensors(adapters: Sequence[tuple[GGUFHeader, float]]) -> Iterator[tuple[str, tuple[int, ...], int, np.ndarray]]:
    """Name, shape in GGUF's order, type and contents."""
    import numpy as np

    names = {name.removesuffix(".lora_b") for header, _ in adapters for name in header.tensors}
    for target in sorted(name for name in names if not name.endswith(".lora_a")):
        axis = -1 if target == _EMBEDDING else -2  # of the rank in A; in B it is the last one
        infos, all_a, all_b = [], [], []
        for header, weight in adapters:
            if target + ".lora_b" not in header.tensors:
                continue
            info_a, info_b = header.tensors[target + ".lora_a"], header.tensors[target + ".lora_b"]
            alpha = float(header.metadata.get("adapter.lora.alpha", 0.0))
            scale = weight * (alpha / info_b.shape[0] if alpha else 1.0)
            infos += [info_a, info_b]
            all_a.append(_read(header.path, info_a))
            all_b.append(_read(header.path, info_b) * np.float32(scale))
        kind = _kind(infos)
        for end, parts, at in ((".lora_a", all_a, axis), (".lora_b", all_b, -1)):
            values = np.concatenate(parts, axis=at)
            room = [(0, 0)] * values.ndim
            room[at] = (0, -values.shape[at] % _BLOCK)
            values = np.pad(values, room)
            fits = kind if kind != _F16 or np.abs(values).max() < np.finfo(np.float16).max else _F32
            yield target + end, values.shape[::-1], fits, _encode(values, fits)


def _kind(tensors: Sequence[TensorInfo]) -> int:
    """The type they share; F16 for any other mixture, unless one is F32."""
    kinds = {tensor.type for tensor in tensors}
    if len(kinds) == 1 and kinds <= {_F32, _F16, _Q8_0}:
        return kinds.pop()
    return _F32 if _F32 in kinds else _F16


def _read(path: Path, info: TensorInfo) -> np.ndarray:
    """As float32, in numpy's order of dimensions."""
    import numpy as np

    if info.type != _Q8_0:
        from zephyra_converters.gguf_read import tensor_of

        return tensor_of(path, info).read()
    blocks = np.fromfile(path, np.uint8, info.size, offset=info.offset).reshape(-1, 2 + _BLOCK)
    values = blocks[:, 2:].view(np.int8) * blocks[:, :2].view(np.float16).astype(np.float32)
    return values.reshape(info.shape[::-1])


def _encode(values: np.ndarray, kind: int) -> np.ndarray:
    import numpy as np

    if kind != _Q8_0:
        return np.ascontiguousarray(values, np.float16 if kind == _F16 else np.float32)
    blocks = values.reshape(*values.shape[:-1], -1, _BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)).astype(np.int8)
    return np.concatenate([scale.astype(np.float16).view(np.int8), codes], axis=-1)


def _string(text: str) -> bytes:
    return pack("<Q", len(text)) + text.encode()
