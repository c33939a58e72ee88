"""A base checkpoint as GGUF: names, RoPE order, metadata and vocabulary of the architecture that computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zephyra_converters.architecture import Architecture, arch_for
from zephyra_converters.checkpoint import Checkpoint, LazyTensor
from zephyra_converters.gguf_file import Planned, stored_type, write_gguf_file
from zephyra_converters.gguf_metadata import metadata_for
from zephyra_converters.json_file import well_formed
from zephyra_converters.layout import interleaved, stacked
from zephyra_converters.names import DECODER, translate
from zephyra_converters.rope_scaling import rope_factors
from zephyra_converters.tokenizer import Vocabulary, vocabulary_of
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

NO_SINK = -1e30  # as a logit: e to this power is zero
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama_ftype


@dataclass(frozen=True)
class GGUFPlan:
    """Everything about the file that is known before a weight is read."""

    architecture: Architecture
    vocabulary: Vocabulary
    metadata: dict[str, Any]
    tensors: list[LazyTensor]  # GGUF names and order of rows, Hugging Face's order of dimensions


def plan_gguf(checkpoint: Checkpoint) -> GGUFPlan:
    """What the GGUF of this checkpoint will hold; all that cannot be expressed is refused here, by name."""
    config = checkpoint.config
    architecture = arch_for(config)
    if checkpoint.tokenizer is None:
        if (checkpoint.path / "tekken.json").is_file():
            raise ZephyraError(
                f"{checkpoint.path} has Mistral's tekken.json for a tokenizer, which llama.cpp cannot read exactly",
                hint="with a tokenizer.json beside it, --backend torch runs the folder itself",
            )
        raise ZephyraError(
            f"{checkpoint.path} has neither tokenizer.json nor tokenizer.model",
            hint="a GGUF carries its vocabulary: put the tokenizer beside it",
        )
    with well_formed(f"the tokenizer of {checkpoint.path}"):
        vocabulary = vocabulary_of(checkpoint.tokenizer, config)
    metadata: dict[str, Any] = {"general.type": "model", "general.name": checkpoint.name, **checkpoint.about}
    if checkpoint.license:
        metadata["general.license"] = checkpoint.license
    metadata |= metadata_for(config, architecture) | vocabulary.metadata()
    return GGUFPlan(architecture, vocabulary, metadata, list(_tensors(checkpoint, architecture)))


def write_gguf(
    plan: GGUFPlan,
    path: Path,
    quantization: str,
    more: Mapping[str, Any] = MappingProxyType({}),
    progress: Callable[[int], None] = lambda size: None,
) -> dict[str, int]:
    """Write `plan` to `path` as F32, F16, BF16 or Q8_0, with `more` metadata; returns the number of tensors by type."""
    metadata = {**more, **plan.metadata, "general.file_type": FILE_TYPES[quantization]}
    if quantization == "Q8_0":
        metadata["general.quantization_version"] = 2
    planned = (Planned(t, type_of(t, quantization)) for t in plan.tensors)
    return write_gguf_file(path, plan.architecture.name, metadata, planned, progress)


def type_of(tensor: LazyTensor, wanted: str) -> str:
    """The type that a tensor has in a file written as `wanted`."""
    # The gate decides between experts: its rounding would send tokens elsewhere. llama.cpp keeps it F32 as well.
    return "F32" if tensor.name.endswith("ffn_gate_inp.weight") else stored_type(tensor.shape, wanted)


def _tensors(checkpoint: Checkpoint, architecture: Architecture) -> Iterator[LazyTensor]:
    """In the order of Hugging Face's names, the experts of a matrix stacked to one tensor."""
    unknown: list[str] = []
    stacks: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        found = translate(name, DECODER)
        if found is None:
            unknown.append(name)
        elif found[1] is not None:
            stacks.setdefault(found[0], {})[found[1]] = tensor
        else:
            yield _ordered(found[0], tensor, checkpoint.config, architecture)
    if unknown:
        raise ZephyraError(f"tensors without a place in GGUF: {', '.join(unknown[:6])}", hint="nothing was written")
    for name, experts in stacks.items():
        listed = [experts[number] for number in sorted(experts)]
        yield stacked(name, listed)
    yield from _additions(checkpoint, architecture)


def _additions(checkpoint: Checkpoint, architecture: Architecture) -> Iterator[LazyTensor]:
    """What the architecture wants beside the checkpoint's own tensors."""
    config = checkpoint.config
    if factors := rope_factors(config):
        yield _constant("rope_freqs.weight", factors)
    if architecture.untied and config.tie_word_embeddings:
        table = checkpoint.tensors["model.embed_tokens.weight"]
        yield table.named("output.weight")
    for layer in range(config.num_hidden_layers) if architecture.sinks else ():
        off = [NO_SINK] * config.num_attention_heads
        yield _constant(f"blk.{layer}.attn_sinks.weight", off)


def _ordered(name: str, tensor: LazyTensor, config: FusionConfig, architecture: Architecture) -> LazyTensor:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    return interleaved(tensor.named(name), heads) if architecture.interleaved and heads else tensor.named(name)


def _constant(name: str, values: list[float]) -> LazyTensor:
    def rows(begin: int, end: int) -> Any:
        import numpy as np

        return np.array([values], np.float32)

    return LazyTensor(name, (len(values),), "F32", rows)
