"""Tiny ada as GGUF: a `zephyra-router` folder to llama.cpp's `modern-bert` classifier, without a vocabulary of its own.

It reads the base's token ids, so a prompt is tokenized once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.gguf_file import Planned, stored_type, write_gguf_file
from zephyra_converters.json_file import read_json, well_formed
from zephyra_converters.names import ROUTER, check_names, translate
from zephyra_converters.safetensors_file import read_safetensors
from zephyra_fusion.errors import ZephyraError, did_you_mean

MODEL_TYPE = "zephyra-router"
ROUTER_TYPES = ("F32", "F16", "Q8_0")
_RANK, _MEAN = 4, 1  # llama_pooling_type


@dataclass(frozen=True, kw_only=True)
class RouterShape:
    """The router's config.json (zephyra_fusion.router_model.RouterConfig, which needs torch)."""

    vocab_size: int
    labels: tuple[str, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    norm_eps: float
    rope_theta: float
    max_tokens: int
    temperature: float
    threshold: float
    hidden_activation: str = "silu"

    def check(self) -> None:
        """TypeError or ValueError where a value is not what llama.cpp can take."""
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 2**24:
                raise ValueError(f"{name} is {value!r}, must be a whole number of at least 1")
        if self.num_hidden_layers > 512 or self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"{self.num_hidden_layers} layers (at most 512), {self.num_attention_heads} heads over a width "
                f"of {self.hidden_size} (an even width each)"
            )
        if type(self.max_tokens) is not int or not 1 <= self.max_tokens <= 2**20:
            raise ValueError(f"max_tokens is {self.max_tokens!r}")
        for name in ("norm_eps", "rope_theta", "temperature"):
            if not 0 < float(getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, must be finite and above 0")
        if not 0 <= float(self.threshold) <= 1:
            raise ValueError(f"threshold is {self.threshold}, must be between 0 and 1")

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "model.embeddings.tok_embeddings.weight": (self.vocab_size, hidden),
            "model.embeddings.norm.weight": (hidden,),
            "model.final_norm.weight": (hidden,),
            "head.dense.weight": (hidden, hidden),
            "head.norm.weight": (hidden,),
            "classifier.weight": (len(self.labels), hidden),
            "classifier.bias": (len(self.labels),),
        }
        for n in range(self.num_hidden_layers):
            layer: dict[str, tuple[int, ...]] = {
                "attn_norm.weight": (hidden,),
                "attn.Wqkv.weight": (3 * hidden, hidden),
                "attn.Wo.weight": (hidden, hidden),
                "mlp_norm.weight": (hidden,),
                "mlp.Wi.weight": (2 * inner, hidden),
                "mlp.Wo.weight": (hidden, inner),
            }
            if n == 0:
                del layer["attn_norm.weight"]  # the embedding's norm stands right before it
            shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
        return shapes


@dataclass(frozen=True, kw_only=True)
class RouterCheckpoint:
    """A trained router: its shape and its tensors by transformers' ModernBERT names."""

    config: RouterShape
    tensors: Mapping[str, LazyTensor]
    path: Path

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())


def read_router(folder: Path) -> RouterCheckpoint:
    """A `zephyra-router` folder; unknown keys, names and shapes are errors."""
    values = read_json(folder / "config.json")
    if (kind := values.pop("model_type", None)) != MODEL_TYPE:
        raise ZephyraError(f"{folder} is no router: its model_type is '{kind}', not '{MODEL_TYPE}'")
    known = {field.name for field in fields(RouterShape)}
    if unknown := sorted(set(values) - known):
        raise ZephyraError(f"{folder}: unknown key '{unknown[0]}'", hint=did_you_mean(unknown[0], known))
    if missing := sorted(known - set(values) - {"hidden_activation"}):
        raise ZephyraError(f"{folder}: config.json lacks {', '.join(missing)}")
    values["labels"] = tuple(_labels(folder, values["labels"]))
    config = RouterShape(**values)
    with well_formed(folder / "config.json"):
        config.check()
    if config.hidden_activation != "silu":
        raise ZephyraError(
            f"{folder}: hidden_activation '{config.hidden_activation}', only 'silu' is exact in llama.cpp"
        )
    tensors = read_safetensors(folder / "model.safetensors")
    shapes = config.expected_shapes()
    check_names(tensors, shapes, str(folder))
    if wrong := [n for n, shape in shapes.items() if tensors[n].shape != shape]:
        listed = "; ".join(f"'{n}' is {list(tensors[n].shape)}, must be {list(shapes[n])}" for n in wrong[:6])
        raise ZephyraError(f"{folder} does not fit its config: {listed}")
    return RouterCheckpoint(config=config, tensors=tensors, path=folder)


def write_router_gguf(router: RouterCheckpoint, path: Path, kind: str) -> dict[str, int]:
    """Write the router as F32, F16 or Q8_0 (embedding and matrices; norms stay F32)."""
    planned = []
    for name, tensor in router.tensors.items():
        found = translate(name, ROUTER)
        assert found is not None  # check_names saw to that
        planned.append(Planned(tensor.named(found[0]), stored_type(tensor.shape, kind)))
    return write_gguf_file(path, "modern-bert", router_metadata(router.config), planned)


def router_metadata(config: RouterShape) -> dict[str, Any]:
    keys = {
        "vocab_size": config.vocab_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_tokens,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_epsilon": float(config.norm_eps),
        "attention.causal": False,
        "rope.freq_base": float(config.rope_theta),
        "rope.scaling.type": "none",
        "hidden_activation": config.hidden_activation,
        "pooling_type": _RANK,
        "classifier.pooling_type": _MEAN,
        "classifier.output_labels": list(config.labels),
    }
    return {
        "general.type": "model",
        "general.name": "tiny ada",
        **{f"modern-bert.{key}": value for key, value in keys.items()},
        "tokenizer.ggml.model": "none",
    }


def _labels(folder: Path, labels: Any) -> list[str]:
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ZephyraError(f"{folder}: labels must be a list of names")
    if len(set(labels)) != len(labels):
        raise ZephyraError(f"{folder}: a label stands twice among {', '.join(labels)}")
    return labels
