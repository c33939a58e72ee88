"""Where training runs, in what precision, and what the memory allocator must be told."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from zephyra_fusion.errors import ZephyraError

# glibc hands every large tensor a fresh mapping and faults it in page by page: on a CPU that costs more than the
# arithmetic (measured: 45 against 170 GFLOPS for an 8192x256x768 product). These settings keep and reuse the memory.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def reuse_memory() -> None:
    """Start this process again with the allocator's settings, once, on Linux with glibc; elsewhere do nothing."""
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    os.execve(sys.executable, [os.fsdecode(a) for a in arguments], {**os.environ, **ALLOCATOR})


def pick_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise ZephyraError(f"device is '{name}', known: auto, cpu, cuda, mps")
    if name == "cuda" and not torch.cuda.is_available():
        raise ZephyraError(
            "device is 'cuda', but PyTorch sees no CUDA device", hint='device = "auto" takes what is there'
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ZephyraError("device is 'mps', but PyTorch sees no Apple GPU", hint='device = "auto" takes what is there')
    return torch.device(name)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself (measured on Zen 4: 210 against 90 GFLOPS a core)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 mixed precision (weights stay float32) where the hardware multiplies bf16 itself, or where asked for."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ZephyraError(f"precision is '{precision}', known: auto, fp32, bf16")
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(device) else "fp32"
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
