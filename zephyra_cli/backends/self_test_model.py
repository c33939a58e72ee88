"""The child of the self-test: a tiny quantized model, written byte by byte, and one batch through it."""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
from pathlib import Path
from struct import pack
from typing import Any

from zephyra_cli.backends.library import Batch, library, take_errors

_WIDTH, _HEAD, _VOCABULARY, _TOKENS = 256, 128, 256, 64
_F32, _Q4_0, _Q8_0, _Q4_K, _Q6_K = 0, 2, 8, 12, 14
_SCALE = pack("<e", 2.0**-10)

# The types that AMX and the repacking kernels handle, each in matrices as large as their tiles.
_MATRICES = {
    "token_embd": (_VOCABULARY, _Q8_0),
    "blk.0.attn_q": (2 * _HEAD, _Q8_0),
    "blk.0.attn_k": (_HEAD, _Q4_K),
    "blk.0.attn_v": (_HEAD, _Q4_0),
    "blk.0.attn_output": (_WIDTH, _Q4_K),
    "blk.0.ffn_gate": (_WIDTH, _Q8_0),
    "blk.0.ffn_up": (_WIDTH, _Q4_0),
    "blk.0.ffn_down": (_WIDTH, _Q6_K),
}
_NORMS = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")


def compute(*, extra_buffers: bool) -> None:
    """Read a batch and generate one token. SystemExit: no numbers came out; a broken build kills the process."""
    lib = library()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "self-test.gguf"
        path.write_bytes(model_bytes())
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = extra_buffers
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise SystemExit(f"the built-in model does not load: {take_errors()}")
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = _WIDTH
    settings.n_threads = settings.n_threads_batch = 1
    context = lib.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit(f"no context: {take_errors()}")
    for count in _TOKENS, 1:
        ids = (ctypes.c_int32 * count)(*range(count))
        status = lib.llama_decode(context, Batch(count, ctypes.addressof(ids), None, None, None, None, None))
        address = lib.llama_get_logits_ith(context, -1)
        if status or not address:
            raise SystemExit(f"a batch of {count} fails with status {status}: {take_errors()}")
        if not math.isfinite(sum((ctypes.c_float * _VOCABULARY).from_address(address))):
            raise SystemExit(f"a batch of {count} gives no numbers")


def model_bytes() -> bytes:
    """A llama model of one layer as a GGUF file; the same bytes every time."""
    keys = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "none",
        "llama.vocab_size": _VOCABULARY,
        "llama.context_length": _WIDTH,
        "llama.block_count": 1,
        "llama.embedding_length": _WIDTH,
        "llama.feed_forward_length": _WIDTH,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = [
        (name, (_WIDTH, rows), kind, _blocks(kind, rows)) for name, (rows, kind) in _MATRICES.items()
    ]
    tensors += [(name, (_WIDTH,), _F32, pack("<f", 1.0) * _WIDTH) for name in _NORMS]
    head = b"GGUF" + pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(_key(*item) for item in keys.items())
    data = b""
    for name, shape, kind, content in tensors:
        head += _string(name + ".weight") + pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += content  # every size is a multiple of 32, the alignment
    return head + bytes(-len(head) % 32) + data


def _string(text: str) -> bytes:
    return pack("<Q", len(text)) + text.encode()


def _key(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return _string(name) + pack("<I", 8) + _string(value)
    return _string(name) + (pack("<If", 6, value) if isinstance(value, float) else pack("<II", 4, value))


def _blocks(kind: int, rows: int) -> bytes:
    """Rows of `_WIDTH` weights in blocks of the given type (layouts: ggml-common.h), filled by a fixed sequence."""
    state, out = 1, []
    content = {_Q8_0: 32, _Q4_0: 16, _Q4_K: 140, _Q6_K: 208}[kind]
    block = 32 if kind in (_Q8_0, _Q4_0) else 256
    for _ in range(rows * _WIDTH // block):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        filling = (state.to_bytes(8, "little") * 26)[:content]
        if kind == _Q6_K:
            out.append(filling + _SCALE)
        else:
            out.append((_SCALE * 2 if kind == _Q4_K else _SCALE) + filling)
    return b"".join(out)
