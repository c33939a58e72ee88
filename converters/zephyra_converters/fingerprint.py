"""Which base a file belongs to: a hash of what every form of a model keeps bit for bit.

Norm vectors are F32 in every GGUF, however the matrices are quantized, and training never leaves them alone: they
tell two bases apart, and a base from a copy whose weights were all trained on (not from one that an adapter was merged
into).
"""

from __future__ import annotations

import hashlib

from zephyra_converters.checkpoint import Checkpoint
from zephyra_fusion.errors import ZephyraError


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 (hex) over names, shapes and float32 values of the norms, and over the shapes of everything else."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        if name.endswith("norm.weight"):
            digest.update(tensor.read().astype("<f4").tobytes())
    return digest.hexdigest()


def check_base(adapter_says: object, checkpoint: Checkpoint, what: str) -> None:
    """ZephyraError: the adapter names the fingerprint of another base."""
    if isinstance(adapter_says, str) and adapter_says and adapter_says != fingerprint(checkpoint):
        raise ZephyraError(
            f"{what} was made for another base than {checkpoint.path}: the fingerprints differ",
            hint="an adapter works with the base it was trained on, and with no other",
        )
