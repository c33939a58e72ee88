"""The three kinds of files a conversion makes, each written, looked at and proven: base, adapter, router."""

from __future__ import annotations

from pathlib import Path

from zephyra_converters.activations import compute_importance
from zephyra_converters.adapter import Adapter, check_belongs, check_tables
from zephyra_converters.architecture import arch_for
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.fingerprint import check_base, fingerprint
from zephyra_converters.gguf_check import check_gguf
from zephyra_converters.gguf_check_lora import FINGERPRINT
from zephyra_converters.gguf_file import patch_numbers
from zephyra_converters.gguf_write import GGUFPlan, plan_gguf, write_gguf
from zephyra_converters.imatrix import ImportanceMatrix, read_importance
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.lora import check_effect, write_lora_gguf
from zephyra_converters.meter import Meter
from zephyra_converters.quantize import UNQUANTIZED, Quantization, check_patterns, quantize, types_of
from zephyra_converters.report import Part
from zephyra_converters.router import RouterCheckpoint, write_router_gguf
from zephyra_converters.sizes import planned_size
from zephyra_converters.tokenizer_parity import check_tokenizer
from zephyra_converters.verify import Proof, figures, verify_router
from zephyra_fusion.errors import ZephyraError


def make_base(
    checkpoint: Checkpoint, place: Path, file: str, wanted: Quantization, proof: Proof | None, meter: Meter
) -> Part:
    """Write the base to `place` (its final name being `file`); with `proof`, verify vocabulary and logits.

    Quantized types go through an unquantized file beside it, which is proven too: exactly, where it is F32.
    """
    plan, importance, name = plan_gguf(checkpoint), None, wanted.name
    check_patterns(wanted.tensor_types, [tensor.name for tensor in plan.tensors if len(tensor.shape) > 1])
    more = {FINGERPRINT: fingerprint(checkpoint)} | (proof.placeholders() if proof else {})
    if name in UNQUANTIZED:
        meter.say(f"{file}: writing {name}")
        counts = write_gguf(plan, place, name, more, meter.add)
    else:
        between, plain = place.with_name(place.name + ".plain"), plain_type(checkpoint)
        try:
            meter.say(f"{file}: writing {plain}")
            write_gguf(plan, between, plain, more, meter.add)
            if proof is not None and plain == "F32":
                meter.say(f"{file}: comparing F32")
                proof.base(between, "F32", with_text=False)
            if wanted.calibration is not None:
                importance = _importance(wanted.calibration, between, plan, meter)
            meter.say(f"{file}: quantizing to {name}")
            counts = quantize(between, place, wanted, importance, meter)
        finally:
            between.unlink(missing_ok=True)
    check_gguf(place)
    verification = None
    if proof is not None:
        meter.say(f"{file}: comparing {name}")
        _prove_vocabulary(checkpoint, place)
        verification = proof.base(place, name)
        patch_numbers(place, figures(verification))
    return Part(
        file=file,
        kind="base",
        source=checkpoint.path.name,
        architecture=plan.architecture.name,
        parameters=checkpoint.parameters,
        quantization=name,
        bytes=place.stat().st_size,
        tensors=counts,
        calibration=None if importance is None else importance.said(),
        verification=verification,
        license=checkpoint.license,
    )


def _importance(calibration: Path, gguf: Path, plan: GGUFPlan, meter: Meter) -> ImportanceMatrix:
    """From the file, or from what the model in `gguf` computes over it."""
    importance = read_importance(calibration)
    if importance is None:
        importance = compute_importance(
            gguf, calibration, lambda done, total: meter.say(f"calibrating: {done} of {total} tokens")
        )
    importance.check([tensor.name for tensor in plan.tensors], str(gguf))
    return importance


def plain_type(checkpoint: Checkpoint) -> str:
    """The unquantized type that holds the checkpoint without loss."""
    if checkpoint.dtype not in (*UNQUANTIZED, "F64"):
        raise ZephyraError(
            f"{checkpoint.path} is quantized already ({checkpoint.dtype})", hint="convert the unquantized original"
        )
    return checkpoint.dtype if checkpoint.dtype in UNQUANTIZED else "F32"


def make_adapter(
    adapter: Adapter, checkpoint: Checkpoint, place: Path, file: str, kind: str, base: Path, proof: Proof | None
) -> Part:
    """Write the adapter to `place` as `kind`; with `proof`, verify it switched on over `base`, the GGUF of its base."""
    config = checkpoint.config
    check_belongs(adapter, config)
    known = {FINGERPRINT: fingerprint(checkpoint)} if checkpoint.tensors else {}
    if known:
        check_tables(adapter, checkpoint)
        check_base(adapter.base_fingerprint, checkpoint, f"the adapter {adapter.path}")
    more = known | (proof.placeholders(adapter=True) if proof else {})
    counts = write_lora_gguf(adapter, config, place, kind, more)
    check_effect(adapter, place, kind)
    verification = None
    if proof is not None:
        exact = kind == "F32" and set(types_of(base)) == {"F32"}
        verification = proof.adapter(base, adapter, place, "F32" if exact else f"{kind} adapter")
        patch_numbers(place, figures(verification))
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


def planned_base(checkpoint: Checkpoint, file: str, wanted: Quantization) -> tuple[Part, list[str]]:
    """What `make_base` would write, from the headers alone, and what is to be said of it."""
    plan = plan_gguf(checkpoint)
    if wanted.name not in UNQUANTIZED:
        plain_type(checkpoint)
    check_patterns(wanted.tensor_types, [tensor.name for tensor in plan.tensors if len(tensor.shape) > 1])
    planned = planned_size(plan, wanted)
    part = Part(
        file=file,
        kind="base",
        source=checkpoint.path.name,
        architecture=plan.architecture.name,
        parameters=checkpoint.parameters,
        quantization=wanted.name,
        bytes=planned.bytes,
        tensors=planned.tensors,
        license=checkpoint.license,
    )
    return part, [*plan.vocabulary.warnings, *planned.warnings]


def intermediate_bytes(checkpoint: Checkpoint, wanted: Quantization) -> int:
    """What lies on the disk besides the result while a quantized base is made."""
    if wanted.name in UNQUANTIZED:
        return 0
    return planned_size(plan_gguf(checkpoint), Quantization(name=plain_type(checkpoint))).bytes


def _prove_vocabulary(checkpoint: Checkpoint, gguf: Path) -> None:
    assert checkpoint.tokenizer is not None  # plan_gguf saw to that
    with LoadedGGUF(gguf, 32) as loaded:
        check_tokenizer(checkpoint.tokenizer.tokenizer, loaded.tokenize)
