"""The thinking part of zephyra: model, adapters, router, generation, training.

Names are loaded when they are first used: importing a torch-free module of the ground floor does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {  # name: module that defines it
    "AdaptiveInput": "layers.embedding",
    "BaseTransformerLayer": "layers.block",
    "ChatTemplate": "chat",
    "FusionConfig": "config",
    "Message": "types",
    "MultiHeadAttention": "layers.attention",
    "PositionwiseFeedForward": "layers.feed_forward",
    "Route": "types",
    "Router": "router",
    "SamplingParams": "types",
    "ScaledDotProductAttention": "layers.scaled_dot_product",
    "Segment": "types",
    "Token": "types",
    "TransformerBlock": "layers.parallel_block",
    "TransformerDecoder": "layers.decoder",
    "TransformerEncoder": "layers.encoder",
    "ZephyraError": "errors",
    "ZephyraFusion": "model",
    "ZephyraFusionBlock": "layers.block",
}

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
