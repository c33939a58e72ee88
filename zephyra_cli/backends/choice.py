"""Which backend runs a model: what `--backend` and `--device` say, and what `auto` makes of this machine.

Nothing here imports torch: that alone takes longer than many an answer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.settings import Settings

LLAMA, TORCH = "llama", "torch"
LARGE = 500 * 2**20
"""Bytes of a base from which on an accelerator earns the seconds that torch takes to start."""


def choose(path: Path, settings: Settings) -> tuple[str, str]:
    """`llama` or `torch` for the base at `path`, and why. ZephyraError: what was asked for cannot run it."""
    folder = path.is_dir()
    if settings.backend == LLAMA:
        if folder:
            raise ZephyraError(
                f"'{path}' is a checkpoint folder, which llama.cpp cannot run",
                hint=f"--backend torch, or turn it into a GGUF: zephyra convert {path}",
            )
        if settings.device not in ("auto", "cpu"):
            raise ZephyraError(
                f"the llama backend computes on the CPU, device '{settings.device}' is not available to it",
                hint="--backend torch",
            )
        return LLAMA, "it was asked for"
    if settings.backend == TORCH:
        return TORCH, "it was asked for"
    if folder:
        return TORCH, "a checkpoint folder runs in torch alone"
    if settings.device == "cpu":
        return LLAMA, "the CPU was asked for"
    if settings.device != "auto":
        return TORCH, f"{settings.device} was asked for"
    if not accelerated():
        return LLAMA, "there is no accelerator that torch could use"
    if path.stat().st_size < LARGE:
        return LLAMA, f"below {LARGE // 2**20} MB an accelerator gains less than torch takes to start"
    return TORCH, "there is an accelerator"


def accelerated() -> bool:
    """Whether there is an accelerator and a torch that was built for it, as far as files tell."""
    if sys.platform == "darwin":
        import platform

        return platform.machine() == "arm64" and _torch_build() is not None
    if not any(Path(place).exists() for place in ("/proc/driver/nvidia/gpus", "/dev/nvidia0", "/dev/dxg")):
        return False
    build = _torch_build()
    return build is not None and not build.endswith("+cpu")


def _torch_build() -> str | None:
    """The version of the installed torch ("2.13.0+cpu"); None where there is none."""
    from importlib import metadata

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
