"""`convert(source, target, options)`: sees what the source is, refuses what cannot be done, writes, proves, reports."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyra_converters.adapter import Adapter, check_belongs
from zephyra_converters.architecture import arch_for
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import read_gguf
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.json_file import read_json
from zephyra_converters.lora import LORA_TYPES
from zephyra_converters.pack import PackSources, Progress, check_pack, plan_pack, write_pack
from zephyra_converters.parts import make_adapter, make_base, make_router, planned_base
from zephyra_converters.peft import read_peft
from zephyra_converters.quantize import check_quantization
from zephyra_converters.report import Part, Report
from zephyra_converters.router import MODEL_TYPE, ROUTER_TYPES, read_router
from zephyra_converters.staging import check_target, staged
from zephyra_converters.verify import Proof
from zephyra_fusion.errors import ZephyraError


def _silent(done: int, total: int | None, text: str) -> None:
    """Nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; `quantization` None: Q8_0 for a base or a pack, F16 for an adapter or a router."""

    quantization: str | None = None
    to: str = "gguf"  # gguf | hf
    base: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    router: Path | None = None
    name: str | None = None
    description: str = ""
    license: str = ""
    origin: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict)  # of a pack's domains
    generation: Mapping[str, Any] = field(default_factory=dict)  # SamplingParams of a pack
    verify: bool = True
    dry_run: bool = False
    force: bool = False
    progress: Progress = _silent


def detect(source: Path) -> str:
    """What a path is: base, adapter, router, pack, gguf-base, gguf-adapter or gguf-router."""
    if source.is_file():
        header = read_header(source)
        if header.metadata.get("general.type") == "adapter":
            return "gguf-adapter"
        return "gguf-router" if header.architecture == "modern-bert" else "gguf-base"
    if (source / "zephyra.json").is_file():
        return "pack"
    if (source / "adapter_config.json").is_file():
        return "adapter"
    if (source / "config.json").is_file():
        return "router" if read_json(source / "config.json").get("model_type") == MODEL_TYPE else "base"
    if not source.exists():
        raise ZephyraError(f"there is no {source}")
    raise ZephyraError(
        f"{source} is nothing that converts",
        hint="expected a folder with config.json, adapter_config.json or zephyra.json, or a .gguf file",
    )


def convert(source: Path, target: Path | None = None, options: Options | None = None) -> Report:
    """Convert `source`; `target` None: a name beside the current folder's files, made from the source's.

    ZephyraError, before anything is written: what the target format cannot express, an existing target (without
    `force`), a target inside the source. Nothing half-written ever stands under the final name.
    """
    options, started = options or Options(), time.perf_counter()
    kind = detect(source)
    if options.to == "hf":
        from zephyra_converters.convert_back import convert_back

        parts, warnings, target = convert_back(kind, source, target, options)
        kind = kind.removeprefix("gguf-")
    elif kind in ("base", "gguf-base") and (options.adapters or options.router):
        parts, warnings, target = _pack(source, target, options)
        kind = "pack"
    else:
        makers: Mapping[str, Callable[..., Any]] = {
            "base": _base, "gguf-base": _base, "adapter": _adapter, "router": _router,
        }  # fmt: skip
        if options.adapters or options.router:
            raise ZephyraError(f"{source} is of the kind '{kind}': --adapter and --router make packs of bases")
        if kind not in makers:
            raise ZephyraError(f"{source} is a {kind}, which is GGUF already", hint="--to hf converts it back")
        parts, warnings, target = makers[kind](source, target, options)
        kind = kind.removeprefix("gguf-")
    return Report(
        source=str(source),
        target=str(target),
        kind=kind,
        parts=tuple(parts),
        warnings=tuple(warnings),
        dry_run=options.dry_run,
        elapsed_ms=(time.perf_counter() - started) * 1000,
    )


def read_base(source: Path) -> Checkpoint:
    """A base from any form: a checkpoint folder, a .gguf, or a pack's own base."""
    if source.is_file():
        return read_gguf(source)
    if (source / "zephyra.json").is_file():
        return read_gguf(source / _base_file(source))
    return read_hf(source)


def _base_file(pack: Path) -> str:
    entry = read_json(pack / "zephyra.json").get("base")
    file = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
        raise ZephyraError(f"{pack / 'zephyra.json'} names no base inside the pack")
    return file


def _base(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    if options.base is not None:
        raise ZephyraError("--base belongs to an adapter; the source is a base itself")
    checkpoint, quantization = read_base(source), check_quantization(options.quantization or "Q8_0")
    target = target or Path(f"{options.name or checkpoint.name}-{quantization}.gguf")
    check_target(source, target, force=options.force)
    part, plan = planned_base(checkpoint, target.name, quantization)
    if not options.dry_run:
        options.progress(0, 1, f"base to {quantization}")
        with staged(target) as place:
            proof = Proof(checkpoint) if options.verify else None
            part = make_base(checkpoint, place, target.name, quantization, proof)
        options.progress(1, 1, f"base to {quantization}")
    return [part], [*plan.vocabulary.warnings, *_fell_back(part)], target


def _pack(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    base, quantization = read_base(source), check_quantization(options.quantization or "Q8_0")
    name = options.name or (target.name if target else base.name)
    sources = PackSources(
        base=base,
        adapters={name: read_peft(path) for name, path in options.adapters.items()},
        router=read_router(options.router) if options.router else None,
        name=name,
        description=options.description,
        license=options.license or base.license or "",
        origin=options.origin,
        descriptions=options.descriptions,
        generation=options.generation,
    )
    target = target or Path(name)
    check_target(source, target, force=options.force)
    check_pack(sources)
    warnings = list(plan_gguf(base).vocabulary.warnings)
    if options.dry_run:
        return plan_pack(sources, quantization), warnings, target
    with staged(target, folder=True) as folder:
        parts = write_pack(sources, folder, quantization, verify=options.verify, progress=options.progress)
    return parts, [*warnings, *_fell_back(parts[0])], target


def _adapter(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    adapter, kind = read_peft(source), (options.quantization or "F16").upper()
    if kind not in LORA_TYPES:
        raise ZephyraError(f"an adapter cannot be {kind}", hint=f"known: {', '.join(LORA_TYPES)}")
    base_path, warnings = _base_of(adapter, options), []
    checkpoint = read_base(base_path)
    check_belongs(adapter, checkpoint.config)
    if options.base is None:
        warnings.append(f"the base was taken from the adapter's own config: {base_path} (--base names another)")
    target = target or Path(f"{options.name or adapter.name}-{kind}.gguf")
    check_target(source, target, force=options.force)
    if options.dry_run:
        return [_planned_adapter(adapter, checkpoint, target.name, kind)], warnings, target
    options.progress(0, 1, f"adapter to {kind}")
    with staged(target) as place, tempfile.TemporaryDirectory() as scratch:
        proof, base = None, base_path
        if options.verify:
            proof = Proof(checkpoint)
            if not base_path.is_file():
                base = Path(scratch) / "base.gguf"
                write_gguf(plan_gguf(checkpoint), base, "F32")
        part = make_adapter(adapter, checkpoint.config, place, target.name, kind, base, proof)
    options.progress(1, 1, f"adapter to {kind}")
    return [part], warnings, target


def _router(source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    router, kind = read_router(source), (options.quantization or "F16").upper()
    if kind not in ROUTER_TYPES:
        raise ZephyraError(f"a router cannot be {kind}", hint=f"known: {', '.join(ROUTER_TYPES)}")
    target = target or Path(f"{options.name or source.resolve().name}-{kind}.gguf")
    check_target(source, target, force=options.force)
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


def _fell_back(part: Part) -> list[str]:
    """Types that llama.cpp took because a matrix has rows that the wanted type's blocks do not divide."""
    expected = {"F32", part.quantization, part.quantization.rpartition("_")[0] or part.quantization}
    k_mixture = {"Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K"} if "_K" in part.quantization else set()
    others = {kind: n for kind, n in part.tensors.items() if kind not in expected | k_mixture | {"Q6_K"}}
    if not others:
        return []
    listed = ", ".join(f"{n} as {kind}" for kind, n in sorted(others.items()))
    return [f"rows that {part.quantization}'s blocks do not divide fell back: {listed} tensors"]
