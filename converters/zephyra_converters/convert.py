"""`convert(source, target, options)`: sees what the source is, refuses what cannot be done, writes, proves, reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyra_converters.adapter import Adapter, check_belongs, doubts
from zephyra_converters.architecture import arch_for
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import is_config_alone, read_config_alone
from zephyra_converters.lora import LORA_TYPES
from zephyra_converters.meter import Meter, Progress, silent
from zephyra_converters.pack import PackSources, plan_pack, write_pack
from zephyra_converters.parts import (
    intermediate_bytes,
    make_adapter,
    make_base,
    make_router,
    planned_base,
)
from zephyra_converters.peft import read_peft
from zephyra_converters.quantize import Quantization
from zephyra_converters.report import Part, Report
from zephyra_converters.router import ROUTER_TYPES, read_router
from zephyra_converters.sizes import memory_needed, planned_size, sizes_by_type
from zephyra_converters.source import called, detect, read_adapter, read_base
from zephyra_converters.staging import staged
from zephyra_converters.target import check_target
from zephyra_converters.verify import Proof
from zephyra_fusion.errors import ZephyraError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; `quantization` None: Q8_0 for a base or a pack, F16 for an adapter or a router."""

    quantization: str | None = None
    tensor_types: Sequence[str] = ()  # PATTERN=TYPE
    calibration: Path | None = None  # a text, or an importance matrix
    verify_text: Path | None = None  # perplexity and KL divergence are measured on it
    to: str = "gguf"  # gguf | hf
    base: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    router: Path | None = None
    draft: Path | None = None
    name: str | None = None
    description: str = ""
    license: str = ""
    origin: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict)  # of a pack's domains
    generation: Mapping[str, Any] = field(default_factory=dict)  # SamplingParams of a pack
    verify: bool = True
    dry_run: bool = False
    force: bool = False
    progress: Progress = silent

    @property
    def packed(self) -> bool:
        """Whether a base becomes a pack."""
        return bool(self.adapters or self.router or self.draft)

    @property
    def inputs(self) -> list[Path]:
        """What is read besides the source."""
        named = (self.base, self.router, self.draft, self.calibration, self.verify_text, *self.adapters.values())
        return [path for path in named if path is not None]

    def wanted(self) -> Quantization:
        """The quantization of a base."""
        return Quantization.of(self.quantization or "Q8_0", self.tensor_types, self.calibration)


def convert(source: Path, target: Path | None = None, options: Options | None = None) -> Report:
    """Convert `source`; `target` None: a name beside the current folder's files, made from the source's.

    ZephyraError, before anything is written: what the target format cannot express, an existing target (without
    `force`), a target that would touch what is read. Nothing half-written ever stands under the final name.
    """
    options, started = options or Options(), time.perf_counter()
    kind = detect(source)
    if options.to == "hf":
        from zephyra_converters.convert_back import convert_back

        parts, warnings, target = convert_back(kind, source, target, options)
        kind = kind.removeprefix("gguf-")
    elif kind in ("base", "gguf-base") and options.packed:
        parts, warnings, target = _pack(source, target, options)
        kind = "pack"
    else:
        makers: Mapping[str, Callable[..., Any]] = {
            "base": _base, "gguf-base": _base, "adapter": _adapter, "router": _router,
        }  # fmt: skip
        if options.packed:
            raise ZephyraError(
                f"'{source}' is of the kind '{kind}': --adapter, --router and --draft make packs of bases"
            )
        if kind not in makers:
            raise ZephyraError(f"'{source}' is a {kind}, which is GGUF already", hint="--to hf converts it back")
        parts, warnings, target = makers[kind](source, target, options)
        kind = kind.removeprefix("gguf-")
    return Report(
        source=str(source),
        target=str(target),
        kind=kind,
        parts=tuple(parts),
        warnings=tuple(warnings),
        dry_run=options.dry_run,
        sizes=_sizes(source) if options.dry_run and options.to == "gguf" and kind in ("base", "pack") else {},
        elapsed_ms=(time.perf_counter() - started) * 1000,
    )


def _sizes(source: Path) -> dict[str, tuple[int, int]]:
    """Of the base in every type: bytes of the file, bytes of memory to run it."""
    checkpoint = read_base(source)
    sizes = sizes_by_type(plan_gguf(checkpoint))
    return {name: (size, memory_needed(checkpoint.config, size)) for name, size in sizes.items()}


def _base(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    if options.base is not None:
        raise ZephyraError("--base belongs to an adapter; the source is a base itself")
    wanted = options.wanted()
    target = target or Path(f"{called(source, options.name)}-{wanted.name}.gguf")
    check_target(target, [source, *options.inputs], force=options.force)
    checkpoint = read_base(source)
    part, warnings = planned_base(checkpoint, target.name, wanted)
    if not options.dry_run:
        between = intermediate_bytes(checkpoint, wanted)
        meter = Meter(options.progress, part.bytes + between)
        with staged(target, needs=part.bytes + between) as place:
            proof = Proof(checkpoint, options.verify_text) if options.verify else None
            part = make_base(checkpoint, place, target.name, wanted, proof, meter)
        meter.finish()
    return [part], warnings, target


def _pack(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    target = target or Path(called(source, options.name))
    check_target(target, [source, *options.inputs], force=options.force)
    base, wanted = read_base(source), options.wanted()
    sources = PackSources(
        base=base,
        adapters={name: read_adapter(path, base) for name, path in options.adapters.items()},
        router=read_router(options.router) if options.router else None,
        draft=read_base(options.draft) if options.draft else None,
        name=options.name or target.name,
        description=options.description,
        license=options.license or base.license or "",
        origin=options.origin,
        descriptions=options.descriptions,
        generation=options.generation,
    )
    parts, warnings = plan_pack(sources, wanted)
    if options.dry_run:
        return parts, warnings, target
    total = sum(part.bytes for part in parts) + intermediate_bytes(base, wanted)
    meter = Meter(options.progress, total)
    with staged(target, folder=True, needs=total) as folder:
        proof = Proof(base, options.verify_text) if options.verify else None
        parts = write_pack(sources, folder, wanted, proof, meter)
    meter.finish()
    return parts, warnings, target


def _adapter(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    adapter, kind = read_peft(source), (options.quantization or "F16").upper()
    if kind not in LORA_TYPES:
        raise ZephyraError(f"an adapter cannot be {kind}", hint=f"known: {', '.join(LORA_TYPES)}")
    base_path = _base_of(adapter, options)
    bare = base_path.is_dir() and is_config_alone(base_path)
    checkpoint = read_config_alone(base_path) if bare else read_base(base_path)
    check_belongs(adapter, checkpoint.config)
    warnings = doubts(adapter, checkpoint)
    if bare:
        warnings.append(f"{base_path} has no weights: nothing was compared; give the whole base for that")
    if options.base is None:
        warnings.append(f"the base was taken from the adapter's own config: {base_path} (--base names another)")
    target = target or Path(f"{called(source, options.name)}-{kind}.gguf")
    check_target(target, [source, base_path, *options.inputs], force=options.force)
    planned = _planned_adapter(adapter, checkpoint, target.name, kind)
    if options.dry_run:
        return [planned], warnings, target
    verify = options.verify and not bare
    plan = plan_gguf(checkpoint) if verify and not base_path.is_file() else None
    total = planned.bytes + (planned_size(plan, Quantization(name="F32")).bytes if plan else 0)
    meter = Meter(options.progress, total)
    with staged(target, needs=total) as place:
        proof, base, between = None, base_path, place.with_name(place.name + ".base")
        try:
            if verify:
                proof = Proof(checkpoint, options.verify_text)
            if plan is not None:
                base = between
                meter.say("the base as F32, to compare on")
                write_gguf(plan, base, "F32", progress=meter.add)
            meter.say(f"{target.name}: writing and comparing {kind}")
            part = make_adapter(adapter, checkpoint, place, target.name, kind, base, proof)
        finally:
            between.unlink(missing_ok=True)
    meter.finish()
    return [part], warnings, target


def _router(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    router, kind = read_router(source), (options.quantization or "F16").upper()
    if kind not in ROUTER_TYPES:
        raise ZephyraError(f"a router cannot be {kind}", hint=f"known: {', '.join(ROUTER_TYPES)}")
    target = target or Path(f"{called(source, options.name)}-{kind}.gguf")
    check_target(target, [source, *options.inputs], force=options.force)
    if options.dry_run:
        part = Part(
            file=target.name, kind="router", source=source.name, architecture="modern-bert",
            parameters=router.parameters, quantization=kind, bytes=router.parameters * (4 if kind == "F32" else 2),
        )  # fmt: skip
        return [part], [], target
    with staged(target) as place:
        part = make_router(router, place, target.name, kind, verify=options.verify)
    return [part], [], target


def _base_of(adapter: Adapter, options: Options) -> Path:
    if options.base is not None:
        return options.base
    named = adapter.base
    for place in (Path(named), adapter.path / named, adapter.path.parent / named):
        if named and (place / "config.json").is_file():
            return place
    said = f" (its config names '{named}', which is no folder here)" if named else ""
    raise ZephyraError(
        f"the base of the adapter {adapter.path} is not known{said}",
        hint="--base PATH: the checkpoint folder, pack or .gguf it was trained on; the order of its rows depends on it",
    )


def _planned_adapter(adapter: Adapter, checkpoint: Checkpoint, file: str, kind: str) -> Part:
    return Part(
        file=file,
        kind="adapter",
        source=adapter.path.name,
        architecture=arch_for(checkpoint.config).name,
        parameters=adapter.parameters,
        quantization=kind,
        bytes=int(adapter.parameters * {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 1.0625}[kind]),
        rank=adapter.rank,
    )
