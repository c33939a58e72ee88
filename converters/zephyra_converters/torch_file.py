"""PyTorch's own weight files (`.bin`): the one gateway of this package to torch, and it runs no foreign code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.checkpoint import LazyTensor
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

_NAMES = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a state dict, memory-mapped (but for PyTorch's oldest format, which is no zip).

    Refused: a pickle that wants more than tensors, and tensors whose values are no plain array.
    """
    try:
        import torch
    except ImportError:
        raise ZephyraError(
            f"{path.name} is a PyTorch file and PyTorch is not installed", hint='pip install "zephyra[torch]"'
        ) from None
    import pickle

    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise ZephyraError(
            f"{path} is a pickle that wants to run code (or is damaged): refused", hint="ask for safetensors"
        ) from None
    except Exception as error:  # of whatever kind: damage makes its readers fail in a dozen ways
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ZephyraError(f"{path} is not a PyTorch weight file: {said}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ZephyraError(f"{path} holds no plain dictionary of tensors")
    if odd := [repr(name) for name in state if not isinstance(name, str)]:
        raise ZephyraError(f"{path} has tensors whose names are no text: {', '.join(odd[:6])}")
    if strange := [f"'{name}' is {kind}" for name, tensor in state.items() if (kind := _strangeness(tensor))]:
        raise ZephyraError(
            f"{path}: {'; '.join(strange[:6])}", hint=f"weights must be plain tensors of {', '.join(_NAMES.values())}"
        )
    return {
        name: LazyTensor(name, tuple(tensor.shape), _NAMES.get(str(tensor.dtype), str(tensor.dtype)), _reader(tensor))
        for name, tensor in state.items()
    }


def _strangeness(tensor: Any) -> str:
    """What keeps a tensor from being read as an array of numbers; empty for a plain one (of whole numbers, too)."""
    import torch

    if tensor.is_quantized:
        return "quantized"
    if tensor.is_meta:
        return "without data (on the device meta)"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"nested or sparse ({tensor.layout})"
    if (tensor.is_floating_point() or tensor.is_complex()) and str(tensor.dtype) not in _NAMES:
        return str(tensor.dtype).removeprefix("torch.")
    return ""


def _reader(tensor: Any) -> Any:
    def rows(begin: int, end: int) -> np.ndarray:
        import torch

        part = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)[begin:end].contiguous()
        return part.view(torch.uint16).numpy() if part.dtype == torch.bfloat16 else part.numpy()

    return rows
