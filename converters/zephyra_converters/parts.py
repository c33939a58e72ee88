"""The three kinds of files a conversion makes, each written, looked at and proven: base, adapter, router."""

from __future__ import annotations

from pathlib import Path

from zephyra_converters.adapter import Adapter, check_belongs
from zephyra_converters.architecture import arch_for
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.gguf_check import check_gguf
from zephyra_converters.gguf_write import GGUFPlan, plan_gguf, write_gguf
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.lora import write_lora_gguf
from zephyra_converters.quantize import quantize, types_of
from zephyra_converters.report import Part
from zephyra_converters.router import RouterCheckpoint, write_router_gguf
from zephyra_converters.tokenizer_parity import check_tokenizer
from zephyra_converters.verify import Proof, verify_router
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

_UNQUANTIZED = ("F32", "F16", "BF16")


def make_base(checkpoint: Checkpoint, place: Path, file: str, quantization: str, proof: Proof | None) -> Part:
    """Write the base to `place` (its final name being `file`); with `proof`, verify vocabulary and logits.

    Quantized types go through an unquantized file beside it, which is proven too: exactly, where it is F32.
    """
    plan = plan_gguf(checkpoint)
    if quantization in _UNQUANTIZED:
        counts = write_gguf(plan, place, quantization)
    else:
        between = place.with_name(place.name + ".plain")
        try:
            write_gguf(plan, between, plain_type(checkpoint))
            if proof is not None and plain_type(checkpoint) == "F32":
                proof.base(between, "F32")
            counts = quantize(between, place, quantization)
        finally:
            between.unlink(missing_ok=True)
    check_gguf(place)
    if proof is not None:
        _prove_vocabulary(checkpoint, place)
    return Part(
        file=file,
        kind="base",
        source=checkpoint.path.name,
        architecture=plan.architecture.name,
        parameters=checkpoint.parameters,
        quantization=quantization,
        bytes=place.stat().st_size,
        tensors=counts,
        verification=proof.base(place, quantization) if proof is not None else None,
        license=checkpoint.license,
    )


def plain_type(checkpoint: Checkpoint) -> str:
    """The unquantized type that holds the checkpoint without loss."""
    if checkpoint.dtype not in (*_UNQUANTIZED, "F64"):
        raise ZephyraError(
            f"{checkpoint.path} is quantized already ({checkpoint.dtype})", hint="convert the unquantized original"
        )
    return checkpoint.dtype if checkpoint.dtype in _UNQUANTIZED else "F32"


def make_adapter(
    adapter: Adapter, config: FusionConfig, place: Path, file: str, kind: str, base: Path | None, proof: Proof | None
) -> Part:
    """Write the adapter to `place` as `kind`; with `proof` and the GGUF of its base, verify it switched on."""
    check_belongs(adapter, config)
    counts = write_lora_gguf(adapter, config, place, kind)
    verification = None
    if proof is not None and base is not None:
        exact = kind == "F32" and set(types_of(base)) == {"F32"}
        verification = proof.adapter(base, adapter, place, "F32" if exact else f"{kind} adapter")
    return Part(
        file=file,
        kind="adapter",
        source=adapter.path.name,
        architecture=arch_for(config).name,
        parameters=adapter.parameters,
        quantization=kind,
        bytes=place.stat().st_size,
        tensors=counts,
        rank=adapter.rank,
        verification=verification,
        license=adapter.license,
    )


def make_router(router: RouterCheckpoint, place: Path, file: str, kind: str, *, verify: bool) -> Part:
    """Write the router to `place` as `kind`; with `verify`, hold its logits against the router's own."""
    counts = write_router_gguf(router, place, kind)
    check_gguf(place)
    return Part(
        file=file,
        kind="router",
        source=router.path.name,
        architecture="modern-bert",
        parameters=router.parameters,
        quantization=kind,
        bytes=place.stat().st_size,
        tensors=counts,
        verification=verify_router(router, place, kind) if verify else None,
    )


def planned_base(checkpoint: Checkpoint, file: str, quantization: str) -> tuple[Part, GGUFPlan]:
    """What `make_base` would write, from the headers alone."""
    plan = plan_gguf(checkpoint)
    if quantization not in _UNQUANTIZED:
        plain_type(checkpoint)
    part = Part(
        file=file,
        kind="base",
        source=checkpoint.path.name,
        architecture=plan.architecture.name,
        parameters=checkpoint.parameters,
        quantization=quantization,
        bytes=estimated_bytes(plan, quantization),
        license=checkpoint.license,
    )
    return part, plan


# Bits a weight takes in llama.cpp's mixtures, blocks' scales included, measured on 7B-class models.
_BITS = {
    "F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_K_S": 5.5, "Q5_1": 6.0, "Q5_0": 5.5,
    "Q4_K_M": 4.9, "Q4_K_S": 4.6, "Q4_1": 5.0, "Q4_0": 4.6, "IQ4_NL": 4.6, "IQ4_XS": 4.4, "Q3_K_L": 4.3, "Q3_K_M": 3.9,
    "Q3_K_S": 3.5, "IQ3_M": 3.8, "IQ3_S": 3.6, "Q2_K": 3.2, "TQ2_0": 2.4, "TQ1_0": 2.1,
}  # fmt: skip


def estimated_bytes(plan: GGUFPlan, quantization: str) -> int:
    """Size of the file: exact to the header for unquantized types, an estimate for the others."""
    matrices = sum(t.size for t in plan.tensors if len(t.shape) > 1)
    vectors = sum(t.size for t in plan.tensors if len(t.shape) < 2)
    vocabulary = sum(len(token.encode()) + 12 for token in plan.vocabulary.tokens)
    merges = sum(len(merge.encode()) + 8 for merge in plan.vocabulary.merges)
    return int(matrices * _BITS[quantization] / 8) + 4 * vectors + vocabulary + merges + 64 * len(plan.tensors)


def _prove_vocabulary(checkpoint: Checkpoint, gguf: Path) -> None:
    assert checkpoint.tokenizer is not None  # plan_gguf saw to that
    with LoadedGGUF(gguf, 32) as loaded:
        check_tokenizer(checkpoint.tokenizer.tokenizer, loaded.tokenize)
