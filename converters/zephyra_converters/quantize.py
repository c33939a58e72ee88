"""llama.cpp's own quantizer: every type that it writes, and what it really wrote."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from zephyra_converters.gguf_header import read_header
from zephyra_converters.loaded import llama
from zephyra_fusion.errors import ZephyraError, did_you_mean

# llama_ftype
QUANTIZATIONS = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12,
    "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "Q2_K": 10, "TQ2_0": 37, "TQ1_0": 36,
}  # fmt: skip
# These need an importance matrix, which llama.cpp insists on.
NEED_CALIBRATION = ("IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S")


def check_quantization(name: str) -> str:
    """The name in upper case if llama.cpp writes it without calibration."""
    upper = name.upper()
    if upper in NEED_CALIBRATION:
        raise ZephyraError(f"{upper} needs an importance matrix, which zephyra cannot compute yet", hint="take Q3_K_S")
    if upper not in QUANTIZATIONS:
        raise ZephyraError(f"unknown quantization '{name}'", hint=did_you_mean(upper, QUANTIZATIONS))
    return upper


def quantize(source: Path, target: Path, quantization: str) -> dict[str, int]:
    """Quantize a GGUF of F32, F16 or BF16 weights; returns how many tensors ended with which type.

    Rows that a type's blocks do not divide fall back to another type: llama.cpp only logs it, so the result is read.
    """
    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[quantization]
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)) != 0:
        raise ZephyraError(
            f"llama.cpp could not quantize {source.name} to {quantization}", hint="is there room on the disk?"
        )
    return types_of(target)


def types_of(path: Path) -> dict[str, int]:
    """Number of tensors by type."""
    counts: dict[str, int] = {}
    for tensor in read_header(path).tensors.values():
        counts[tensor.type_name] = counts.get(tensor.type_name, 0) + 1
    return counts
