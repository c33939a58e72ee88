"""Looks at a GGUF file before llama.cpp does: what would abort or crash the process there is refused here, by name.

llama.cpp answers many odd files with `abort()` or a signal (block counts, duplicate tokens, odd head sizes, F64
weights, …). `gguf_shapes` says which tensors and shapes the architectures that we load have; everything else is an
error. All faults of a file come in one message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zephyra_converters.gguf_header import GGUFHeader, read_header
from zephyra_converters.gguf_shapes import CLASSIFIERS, DECODERS, Architecture, tensor_faults
from zephyra_converters.gguf_split import joined, shard_paths
from zephyra_converters.gguf_vocabulary import NO_VOCABULARY, vocabulary_faults
from zephyra_fusion.errors import ZephyraError, did_you_mean


def check_model(path: Path | str) -> GGUFHeader:
    """The header of a language model that llama.cpp can load and run; ZephyraError names everything that is wrong."""
    return check_header(_whole(read_header(path)))


def check_header(header: GGUFHeader) -> GGUFHeader:
    """As `check_model`, for a header that was read elsewhere."""
    return _check(header, DECODERS, "language model")


def check_classifier(path: Path | str) -> GGUFHeader:
    """The header of a sequence classifier (the router) that llama.cpp can load and run."""
    return _check(read_header(path), CLASSIFIERS, "classifier")


def check_gguf(path: Path | str, *, base: GGUFHeader | None = None) -> GGUFHeader:
    """The header of any GGUF file that we load: model, classifier or, given its `base`, a LoRA adapter."""
    header = read_header(path)
    if header.metadata.get("general.type") == "adapter":
        from zephyra_converters.gguf_check_lora import check_adapter

        if base is None:
            raise ZephyraError(f"{path} is an adapter and no model", hint="name the base it belongs to")
        return check_adapter(path, base)
    if header.architecture in CLASSIFIERS:
        return _check(header, CLASSIFIERS, "classifier")
    return check_header(_whole(header))


def _whole(header: GGUFHeader) -> GGUFHeader:
    """Of all files of the model, if this is the first of several."""
    shards = shard_paths(header)
    return joined([header, *map(read_header, shards[1:])]) if shards else header


def _check(header: GGUFHeader, known: Mapping[str, Architecture], wanted: str) -> GGUFHeader:
    if header.metadata.get("general.type", "model") != "model":
        raise ZephyraError(f"{header.path} is of the type '{header.metadata['general.type']}', wanted is a {wanted}")
    name = header.architecture
    if name not in known:
        other = "a classifier" if name in CLASSIFIERS else f"a model of the architecture '{name}'"
        raise ZephyraError(f"{header.path} is {other}, wanted is a {wanted}", hint=did_you_mean(name, known))
    if faults := list(_Inspection(header, known[name]).faults()):
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise ZephyraError(
            f"{header.path} cannot be loaded safely ({name}): {shown}", hint="convert it again with `zephyra convert`"
        )
    return header


class _Fault(Exception):
    """A number without which nothing else can be judged."""


class _Inspection:
    """Walks over one header; `faults` yields a line for everything that llama.cpp would choke on."""

    def __init__(self, header: GGUFHeader, architecture: Architecture) -> None:
        self.header, self.architecture = header, architecture
        self.prefix = header.architecture + "."

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.metadata.get(self.prefix + key, default)

    def whole(self, key: str, default: int | None = None, *, low: int = 1, high: int = 2**31 - 1) -> int:
        value = self.get(key, default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value) == self.get("block_count"):
            value = value[0]  # per-layer lists are fine while they do not vary
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            given = "missing" if value is None else _short(value)
            raise _Fault(f"{self.prefix}{key} is {given}, must be a whole number from {low} to {high}")
        return value

    def faults(self) -> Iterator[str]:
        try:
            yield from self.numbers()
            yield from vocabulary_faults(self.header, needed=self.header.architecture in DECODERS)
            yield from self.tensors(self.dimensions())
        except _Fault as fault:
            yield str(fault)

    def numbers(self) -> Iterator[str]:
        """Scalars that are not dimensions."""
        finite = {self.architecture.eps: None, **dict.fromkeys(self.architecture.needs), "rope.freq_base": 10000.0}
        optional = "rope.freq_base_swa rope.scaling.factor rope.scale_linear rope.scaling.attn_factor attention.scale"
        for key in [*finite, *(k for k in optional.split() if self.get(k) is not None)]:
            value = self.get(key, finite.get(key))
            zero_means_off = key in ("rope.scaling.factor", "rope.scale_linear", "attention.scale")
            if not isinstance(value, float) or not (0 < value < math.inf or value == 0 and zero_means_off):
                yield f"{self.prefix}{key} is {'missing' if value is None else value}, must be finite and above 0"
        scaling = self.get("rope.scaling.type", "none")
        if scaling not in ("none", "linear", "yarn"):
            yield f"rope scaling type '{_short(scaling)}' is unknown (none, linear, yarn)"
        if self.header.alignment % 32:
            yield f"general.alignment is {self.header.alignment}, must be a multiple of 32"
        if self.header.metadata.get("split.count", 0) not in (0, 1):
            yield "the model is split over several files; join them first"
        if self.get("nextn_predict_layers", 0) != 0:
            yield "it has multi-token-prediction layers"
        causal = self.header.architecture in DECODERS
        if self.get("attention.causal", True) is not causal:
            yield f"{self.prefix}attention.causal must be {causal}"
        if self.architecture.window:
            self.whole("attention.sliding_window")
            pattern = self.get("attention.sliding_window_pattern")
            if not isinstance(pattern, list) or len(pattern) != self.whole("block_count") or not any(pattern):
                yield "attention.sliding_window_pattern must have one flag a layer, one of them set"
        if self.get("expert_gating_func", 1) not in (1, 2, 3):  # softmax, sigmoid, softmax over the chosen
            yield f"{self.prefix}expert_gating_func is {self.get('expert_gating_func')}, must be 1, 2 or 3"
        if self.get("deepstack_mapping") is not None:
            yield "it expects images (deepstack)"
        if self.header.architecture in CLASSIFIERS:
            if self.get("pooling_type") != 4:
                yield f"{self.prefix}pooling_type is {self.get('pooling_type')}, must be 4 (rank)"
            if self.get("classifier.pooling_type", 1) not in (1, 2):
                yield f"{self.prefix}classifier.pooling_type is {self.get('classifier.pooling_type')}, must be 1 or 2"

    def dimensions(self) -> dict[str, int]:
        """The sizes that the shape tables speak of. _Fault: one is impossible."""
        whole = self.whole
        embd, heads = whole("embedding_length"), whole("attention.head_count")
        kv_heads = whole("attention.head_count_kv", heads)
        whole("context_length")
        if heads % kv_heads:
            raise _Fault(f"attention.head_count is {heads}, not a multiple of head_count_kv {kv_heads}")
        if embd % heads and self.get("attention.key_length") is None:
            raise _Fault(f"embedding_length is {embd}, not a multiple of attention.head_count {heads}")
        head = whole("attention.key_length", embd // heads)
        if (value_head := whole("attention.value_length", embd // heads)) != head:
            raise _Fault(f"attention.value_length is {value_head}, attention.key_length is {head}: they must be equal")
        if {whole("attention.key_length_swa", head), whole("attention.value_length_swa", head)} != {head}:
            raise _Fault("the heads of its window layers have a size of their own")
        if self.get("embedding_length_out", embd) != embd:
            raise _Fault(f"embedding_length_out is {self.get('embedding_length_out')}, embedding_length is {embd}")
        rotary = whole("rope.dimension_count", head)
        step35 = self.header.architecture == "step35"  # it halves the number for its full layers
        swa_rotary = whole("rope.dimension_count_swa", rotary)
        if head % 2 or rotary != (2 * head if step35 else head) or swa_rotary != head:
            raise _Fault(
                f"head size {head} with rope.dimension_count {rotary} (window layers {swa_rotary}): "
                "the head size must be even and turned as a whole"
            )
        if self.header.architecture in ("qwen2", "modern-bert") and head * heads != embd:
            raise _Fault(f"{heads} heads of {head} make {heads * head}, embedding_length is {embd}")
        sizes = {"embd": embd, "qkv": 3 * embd, "layers": whole("block_count", high=512), "half_rotary": head // 2}
        sizes |= {"heads": heads, "head": head, "q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
        sizes |= self.feed_forward_dimensions()
        labels = self.get("classifier.output_labels")
        sizes["labels"] = len(labels) if isinstance(labels, list) else 1
        without_vocabulary = self.header.metadata.get("tokenizer.ggml.model") in NO_VOCABULARY
        tokens = self.header.metadata.get("tokenizer.ggml.tokens")
        sizes["vocab"] = whole("vocab_size") if without_vocabulary or not tokens else len(tokens)
        return sizes

    def feed_forward_dimensions(self) -> dict[str, int]:
        experts = self.whole("expert_count", 0, low=0, high=1024)
        if experts and self.architecture.experts is None:
            raise _Fault(f"expert_count is {experts}, {self.header.architecture} has no experts")
        if not experts and not self.architecture.dense and self.architecture.experts:
            raise _Fault("expert_count is 0, this architecture has nothing but experts")
        self.whole("expert_used_count", 0, low=min(experts, 1), high=experts)
        groups = self.whole("expert_group_count", 0, low=0), self.whole("expert_group_used_count", 0, low=0)
        if max(groups) > 1 or groups[0] and experts < 2:
            raise _Fault("expert groups are not supported")
        ff = self.whole("feed_forward_length", None if self.architecture.dense else 1)
        expert_ff = self.whole(self.architecture.expert_ff) if experts else 1
        shared = self.whole("expert_shared_feed_forward_length", 0, low=0) if experts else 0
        return {"ff": ff, "two_ff": 2 * ff, "experts": experts, "expert_ff": expert_ff, "shared_ff": shared}

    def tensors(self, sizes: dict[str, int]) -> Iterator[str]:
        part = self.architecture
        required, optional = dict(part.top), dict(part.top_optional)
        ffn = part.experts if sizes["experts"] and part.experts else part.dense
        for layer in range(sizes["layers"]):
            for name, shape in (part.layer | ffn).items():
                required[f"blk.{layer}.{name}"] = shape
            for name, shape in part.layer_optional.items():
                optional[f"blk.{layer}.{name}"] = shape
            if layer and "attn_norm.weight" in part.layer_optional:
                required[f"blk.{layer}.attn_norm.weight"] = part.layer_optional["attn_norm.weight"]
        for name in required:
            if name not in self.header.tensors:
                yield f"the tensor '{name}' is missing"
        for name, tensor in self.header.tensors.items():
            dimensions = required.get(name) or optional.get(name)
            if dimensions is None:
                yield f"the tensor '{name}' is unknown"
            else:
                yield from tensor_faults(tensor, tuple(sizes[dimension] for dimension in dimensions))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
