"""llama.cpp's own quantizer: every type that it writes, and what it really wrote."""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.gguf_header import GGML_TYPES, read_header
from zephyra_converters.loaded import listening, llama
from zephyra_converters.meter import Meter
from zephyra_fusion.errors import ZephyraError, did_you_mean

if TYPE_CHECKING:
    from zephyra_converters.imatrix import ImportanceMatrix

# llama_ftype
QUANTIZATIONS = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4_MOE": 38, "Q3_K_L": 13,
    "Q3_K_M": 12, "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22, "IQ3_XXS": 23, "Q2_K": 10, "Q2_K_S": 21,
    "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37, "TQ1_0": 36,
    "Q2_0": 41, "Q1_0": 40,
}  # fmt: skip
# These need an importance matrix, which llama.cpp insists on.
NEED_CALIBRATION = ("IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S")
# Types of single tensors that the quantizer writes (`--tensor-type`).
_NO_TARGET = ("NVFP4", "Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
TENSOR_TYPES = {name: code for code, (name, _, _) in GGML_TYPES.items() if name not in _NO_TARGET}
UNQUANTIZED = ("F32", "F16", "BF16")
_UNCALIBRATED = (*UNQUANTIZED, "Q8_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "MXFP4")
_BUFFER = 2**27  # bytes of rows in memory at once: the quantizer's own default is 8 GiB


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What `-q` and its options say. `tensor_types`: (regular expression on GGUF names, type), the first match wins;
    `calibration`: a text to compute the importance matrix from, or a file that holds one."""

    name: str
    tensor_types: Sequence[tuple[str, str]] = ()
    calibration: Path | None = None

    @classmethod
    def of(cls, name: str, tensor_types: Sequence[str] = (), calibration: Path | None = None) -> Quantization:
        """ZephyraError: an unknown type or pattern, or an option that this type would not heed."""
        pairs = tensor_type_options(tensor_types)
        upper = check_quantization(name, calibrated=calibration is not None)
        if upper in UNQUANTIZED and pairs:
            raise ZephyraError(f"--tensor-type has no effect on {upper}", hint="name the mixture's own type with -q")
        if calibration is not None and not any(kind not in _UNCALIBRATED for kind in (upper, *(k for _, k in pairs))):
            raise ZephyraError(
                f"--calibration has no effect on {upper}: its rounding does not weigh columns", hint="as in -q Q4_K_M"
            )
        return cls(name=upper, tensor_types=tuple(pairs), calibration=calibration)


def check_quantization(name: str, *, calibrated: bool = False) -> str:
    """The name in upper case, if llama.cpp writes it (`calibrated`: with an importance matrix)."""
    upper = name.upper()
    if upper not in QUANTIZATIONS:
        raise ZephyraError(f"unknown quantization '{name}'", hint=did_you_mean(upper, QUANTIZATIONS))
    if upper in NEED_CALIBRATION and not calibrated:
        raise ZephyraError(
            f"{upper} needs an importance matrix",
            hint="--calibration FILE: some hundred kilobytes of text like what the model is for, or an imatrix file",
        )
    return upper


def tensor_type_options(given: Sequence[str]) -> list[tuple[str, str]]:
    """`PATTERN=TYPE` each, as llama-quantize takes them: PATTERN is a regular expression found anywhere in a name."""
    pairs = []
    for entry in given:
        pattern, equals, kind = entry.rpartition("=")
        if not (pattern and equals and kind):
            raise ZephyraError(f"--tensor-type '{entry}' is not PATTERN=TYPE", hint="as in --tensor-type ffn_down=Q6_K")
        if kind.upper() not in TENSOR_TYPES:
            raise ZephyraError(f"--tensor-type '{entry}': unknown type", hint=did_you_mean(kind.upper(), TENSOR_TYPES))
        try:
            re.compile(pattern)
        except re.error as error:
            raise ZephyraError(f"--tensor-type '{entry}': no regular expression ({error})") from None
        pairs.append((pattern, kind.upper()))
    return pairs


def check_patterns(wanted: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Every pattern matches a tensor: one that matches none would be silently ignored."""
    for pattern, kind in wanted:
        if not any(re.search(pattern, name) for name in names):
            shown = ", ".join(sorted({name.split(".")[-2] for name in names if name.count(".") > 1}))
            raise ZephyraError(f"--tensor-type '{pattern}={kind}' matches no tensor", hint=f"tensors: {shown}")


def quantize(
    source: Path, target: Path, wanted: Quantization, importance: ImportanceMatrix | None, meter: Meter
) -> dict[str, int]:
    """Quantize a GGUF of F32, F16 or BF16 weights; returns how many tensors ended with which type.

    Rows that a type's blocks do not divide fall back to another type: llama.cpp only logs it, so the result is read.
    In a process of its own: it can be interrupted, and what ends llama.cpp does not end us.
    """
    values = {} if importance is None else dict(importance.values)
    job = pickle.dumps((os.fspath(source), os.fspath(target), wanted, values, sys.path))
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdin is not None and child.stderr is not None
        with suppress(BrokenPipeError):
            child.stdin.write(job)
            child.stdin.close()
        seen = 0
        while child.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_LOOK_S)
            size = target.stat().st_size if target.exists() else 0
            meter.add(max(0, size - seen))
            seen = max(seen, size)
        said = child.stderr.read().decode(errors="replace").strip().splitlines()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for pipe in (child.stdin, child.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
    if child.returncode != 0:
        why = said[-1] if said else f"its process ended with {child.returncode}"
        raise ZephyraError(f"llama.cpp could not quantize {source.name} to {wanted.name}: {why}", hint=_room(target))
    return types_of(target)


_CHILD = """
import pickle, sys
source, target, wanted, values, path = pickle.load(sys.stdin.buffer)
sys.path[:] = path
from zephyra_converters.quantize import run
sys.exit(run(source, target, wanted, values))
"""
_LOOK_S = 0.2
_ERROR = 4  # ggml_log_level
# "[   3/  24] blk.0.attn_q.weight - [64, 64, 1, 1], type = f32, size = 0.02 MiB -> 0.01 MiB (q4_K)"
_PLANNED = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?\n")
# "warning: blk.0.ffn_down.weight                - ncols     96 not divisible by 256 (required for type    q6_K) -> …"
_FELL_BACK = re.compile(r"warning: (\S+) +- ncols +\d+ not divisible")


def run(source: str, target: str, wanted: Quantization, values: Mapping[str, Any]) -> int:
    """The child's part. llama.cpp's errors, which it only logs, go to stderr."""
    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[wanted.name]
    params.max_buf_size = _BUFFER
    kept = [_set_tensor_types(lib, params, wanted.tensor_types), _set_importance(lib, params, values)]
    with listening(_complain):
        code = int(lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))
    del kept  # C read from it until here
    return code


def _complain(level: int, text: bytes) -> None:
    if level == _ERROR:
        os.write(2, text)


def planned_types(hollow: Path, wanted: Quantization) -> tuple[dict[str, str], set[str]]:
    """Which type llama.cpp would give each tensor of a GGUF whose data need not be there, and whose rows fell back."""
    lib, said = llama(), bytearray()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.dry_run = QUANTIZATIONS[wanted.name], True
    kept = [_set_tensor_types(lib, params, wanted.tensor_types)]
    if wanted.calibration is not None or wanted.name in NEED_CALIBRATION:  # some mixtures differ where there is one
        import numpy as np

        kept.append(_set_importance(lib, params, {"any": np.ones(1, np.float32)}))
    with listening(lambda level, text: said.extend(text)):
        code = lib.llama_model_quantize(os.fsencode(hollow), b"", ctypes.byref(params))
    del kept
    if code != 0:
        raise ZephyraError(
            f"llama.cpp cannot quantize this model to {wanted.name}",
            hint="its blocks do not divide this model's rows, and that type has nothing to fall back to",
        )
    text = said.decode(errors="replace")
    types = {name: (new or old).upper() for name, old, new in _PLANNED.findall(text)}
    silent = () if wanted.name in ("Q8_0", "MXFP4_MOE") else ("output.weight", "token_embd.weight")
    # A head takes Q8_0 for no other reason, and llama.cpp does not log it.
    return types, {*_FELL_BACK.findall(text), *(name for name in silent if types.get(name) == "Q8_0")}


def _room(target: Path) -> str | None:
    free = shutil.disk_usage(target.parent).free
    return f"{free} bytes are free in {target.parent}" if free < 2**26 else None


def _set_tensor_types(lib: Any, params: Any, wanted: Sequence[tuple[str, str]]) -> Any:
    if not wanted:
        return None
    entries = (lib.llama_model_tensor_override * (len(wanted) + 1))()
    for entry, (pattern, kind) in zip(entries, wanted, strict=False):
        entry.pattern, entry.type = pattern.encode(), TENSOR_TYPES[kind]
    params.tt_overrides = entries
    return entries


def _set_importance(lib: Any, params: Any, values: Mapping[str, Any]) -> Any:
    if not values:
        return None
    entries = (lib.llama_model_imatrix_data * (len(values) + 1))()
    for entry, (name, array) in zip(entries, values.items(), strict=False):
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = entries
    return entries, values


def types_of(path: Path) -> dict[str, int]:
    """Number of tensors by type."""
    counts: dict[str, int] = {}
    for tensor in read_header(path).tensors.values():
        counts[tensor.type_name] = counts.get(tensor.type_name, 0) + 1
    return counts
