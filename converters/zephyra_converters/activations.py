"""What goes into a model's matrices while llama.cpp computes: squares of it, summed up by column, over a text."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.ggml_tensor import GGMLTensor, operations
from zephyra_converters.gguf_header import read_header
from zephyra_converters.imatrix import ImportanceMatrix, importance_of
from zephyra_converters.texts import chunks, read_text
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

CHUNK = 512  # tokens read in one go from an empty cache, as llama-imatrix does
_BATCH = 128  # of them at a time: every row of logits that llama.cpp keeps costs four bytes a token of the vocabulary
_F32 = 0


class Squares:
    """The callback that llama.cpp asks at every node of its graph (`cb_eval`), and the sums by tensor name."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._error: BaseException | None = None
        self._plain, self._chosen = _operations()

    def __call__(self, address: int, ask: bool, data: Any) -> bool:
        """`ask`: is this node wanted? Afterwards it is computed, and read."""
        try:
            tensor = GGMLTensor.from_address(address)
            if tensor.op not in (self._plain, self._chosen):
                return not ask
            weight, inputs = tensor.src[0].contents, tensor.src[1].contents
            name = weight.name.decode()
            if not name.startswith("blk.") or inputs.type != _F32:
                return not ask
            if not ask:
                self._add(name, weight, inputs, tensor.src[2].contents if tensor.op == self._chosen else None)
            return True
        except BaseException as error:  # nothing may leave a callback of C
            self._error = error
            return False

    def matrix(self, source: str, tokens: int) -> ImportanceMatrix:
        """The means. ZephyraError: the model computed NaN or infinity."""
        self.check()
        return importance_of(self._sums, self._counts, source, tokens)

    def check(self) -> None:
        """Raise what went wrong in the callback."""
        if self._error is not None:
            raise self._error

    def _add(self, name: str, weight: GGMLTensor, inputs: GGMLTensor, chosen: GGMLTensor | None) -> None:
        import numpy as np

        experts, columns = (int(weight.ne[2]), int(inputs.ne[0]))
        x = _array(inputs, np.float32)  # [sequences, tokens or slots, rows, columns]
        sums = self._sums.setdefault(name, np.zeros((experts, columns)))
        counts = self._counts.setdefault(name, np.zeros(experts))
        if chosen is None:
            rows = x.reshape(-1, columns).astype(np.float64)
            sums[0] += np.einsum("nc,nc->c", rows, rows)
            counts[0] += len(rows)
            return
        ids = _array(chosen, np.int32)[0, 0]  # [tokens, slots]
        x = np.broadcast_to(x[0], (*ids.shape, columns))  # one input for all slots, or one for each
        for expert in np.unique(ids):
            rows = x[ids == expert].astype(np.float64)
            sums[expert] += np.einsum("nc,nc->c", rows, rows)
            counts[expert] += len(rows)


def compute_importance(gguf: Path, text: Path, progress: Callable[[int, int], None]) -> ImportanceMatrix:
    """Run the model in `gguf` over the text and sum up the squares of what goes into its matrices.

    `progress(tokens done, tokens in all)`. ZephyraError: the text has fewer than 32 tokens.
    """
    from zephyra_converters.loaded import LoadedGGUF

    header = read_header(gguf)
    length, squares = min(CHUNK, int(header.metadata[f"{header.architecture}.context_length"])), Squares()
    with LoadedGGUF(gguf, length, batch=min(_BATCH, length), watch=squares) as loaded:
        ids = loaded.tokenize(read_text(text), False)
        if len(ids) < 32:
            raise ZephyraError(f"{text} has {len(ids)} tokens, calibration needs 32 at least, better 50,000")
        done = 0
        for chunk in chunks(ids, length, loaded.first_token):
            try:
                loaded.read(chunk)
            except ZephyraError:
                squares.check()  # what went wrong in the callback is the cause, if anything did
                raise
            progress(done := done + len(chunk), len(ids))
    return squares.matrix(text.name, len(ids))


def _array(tensor: GGMLTensor, dtype: Any) -> np.ndarray:
    """The tensor's memory as an array, slowest dimension first, without a copy."""
    import numpy as np

    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    size = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    memory = (ctypes.c_char * size).from_address(tensor.data)
    return np.ndarray(shape, dtype, memory, strides=strides)


def _operations() -> tuple[int, int]:
    """The numbers of MUL_MAT and MUL_MAT_ID in this build. ZephyraError: it is not the build that we know."""
    from llama_cpp._ggml import libggml

    numbers = operations(libggml)
    if numbers is None:
        raise ZephyraError(
            "this llama.cpp lays out its tensors otherwise than 0.3.36 does",
            hint="compute the importance matrix with llama-imatrix and give its file to --calibration",
        )
    return numbers["MUL_MAT"], numbers["MUL_MAT_ID"]
