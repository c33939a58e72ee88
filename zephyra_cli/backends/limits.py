"""What a model allows of what its user asks for, known before its weights are read."""

from __future__ import annotations

from zephyra_fusion.errors import ZephyraError


def check_limits(trained: int, context: int | None, threads: int | None) -> None:
    """`trained`: tokens of context that the model was made for. ZephyraError: one of the others is out of range."""
    if context is not None and not 1 <= context <= trained:
        raise ZephyraError(f"the context is {context}, this model allows 1 to {trained} tokens")
    if threads is not None and threads < 1:
        raise ZephyraError(f"threads is {threads}, must be at least 1")
