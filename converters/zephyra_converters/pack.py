"""A whole pack in one go: base, adapters, router, tokenizer, template and the manifest that vouches for them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from zephyra_converters.adapter import Adapter, check_belongs, doubts
from zephyra_converters.checkpoint import Checkpoint, TokenizerFiles
from zephyra_converters.gguf_write import plan_gguf
from zephyra_converters.json_file import write_json
from zephyra_converters.meter import Meter
from zephyra_converters.parts import make_adapter, make_base, make_router, planned_base
from zephyra_converters.quantize import UNQUANTIZED, Quantization
from zephyra_converters.report import Part
from zephyra_converters.router import RouterCheckpoint
from zephyra_converters.verify import Proof
from zephyra_fusion.chat import ZEPHYRA, ZEPHYRA_JINJA
from zephyra_fusion.errors import ZephyraError

MANIFEST, DRAFT = "zephyra.json", "draft.gguf"
_DOMAIN = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class PackSources:
    """What a pack is made of, read but not yet converted, and what its manifest says in words."""

    base: Checkpoint
    adapters: Mapping[str, Adapter]
    router: RouterCheckpoint | None
    draft: Checkpoint | None = None  # a small model of the same vocabulary, which guesses ahead
    name: str
    description: str = ""
    license: str = ""
    origin: str = ""  # where the files came from; without it, the name of each one's source
    descriptions: Mapping[str, str] = field(default_factory=dict)  # of the domains
    generation: Mapping[str, Any] = field(default_factory=dict)  # SamplingParams that differ from the defaults


def check_pack(sources: PackSources) -> None:
    """Everything that can be known before a weight is read; all mismatches are named."""
    for name, adapter in sources.adapters.items():
        if name in ("auto", "none") or not _DOMAIN.fullmatch(name):
            raise ZephyraError(
                f"'{name}' cannot be the name of a domain", hint="letters, digits, '-', '_', '.'; not 'auto' or 'none'"
            )
        check_belongs(adapter, sources.base.config)
    if sources.router is not None:
        config = sources.router.config
        if homeless := sorted(set(config.labels) - set(sources.adapters) - {"none"}):
            raise ZephyraError(
                f"the router names domains without an adapter: {', '.join(homeless)}",
                hint="give each one with --adapter NAME=PATH",
            )
        if config.vocab_size != sources.base.config.vocab_size:
            raise ZephyraError(
                f"the router reads {config.vocab_size} token ids, the base has {sources.base.config.vocab_size}"
            )
    if sources.draft is not None:
        mine, bases = (plan_gguf(checkpoint).vocabulary.tokens for checkpoint in (sources.draft, sources.base))
        if list(mine) != list(bases):
            raise ZephyraError(
                f"the draft {sources.draft.path} has other tokens than the base: {len(mine)} and {len(bases)}",
                hint="a draft is trained with the base's own tokenizer",
            )


def plan_pack(sources: PackSources, wanted: Quantization) -> tuple[list[Part], list[str]]:
    """What `write_pack` would write, sizes from the headers; and what is to be said of it."""
    check_pack(sources)
    base, warnings = planned_base(sources.base, "base.gguf", wanted)
    for adapter in sources.adapters.values():
        warnings += doubts(adapter, sources.base)
    quantization = wanted.name
    bytes_each = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 1.0625}
    parts, kind = [base], adapter_type(quantization)
    for name, adapter in sources.adapters.items():
        parts.append(_planned(f"adapters/{name}.gguf", "adapter", base, adapter, kind, bytes_each[kind]))
    if sources.router is not None:
        kind = router_type(quantization)
        parts.append(_planned("router.gguf", "router", base, sources.router, kind, bytes_each[kind]))
    if sources.draft is not None:
        draft, more = planned_base(sources.draft, DRAFT, draft_type(wanted))
        parts.append(_draft(draft))
        warnings += [f"{DRAFT}: {warning}" for warning in more if warning not in warnings]
    return parts, warnings


def write_pack(
    sources: PackSources, folder: Path, wanted: Quantization, proof: Proof | None, meter: Meter
) -> list[Part]:
    """Fill an empty folder; the manifest comes last. `proof` proves every file, each adapter switched on."""
    check_pack(sources)
    base_file, quantization = folder / "base.gguf", wanted.name
    parts = [make_base(sources.base, base_file, "base.gguf", wanted, proof, meter)]
    if sources.adapters:
        (folder / "adapters").mkdir()
    for name, adapter in sources.adapters.items():
        file, kind = f"adapters/{name}.gguf", adapter_type(quantization)
        meter.say(f"{file}: writing and comparing {kind}")
        parts.append(make_adapter(adapter, sources.base, folder / file, file, kind, base_file, proof))
        meter.add(parts[-1].bytes)
    if sources.router is not None:
        kind = router_type(quantization)
        parts.append(make_router(sources.router, folder / "router.gguf", "router.gguf", kind, verify=proof is not None))
    if sources.draft is not None:
        own = Proof(sources.draft) if proof is not None else None
        parts.append(_draft(make_base(sources.draft, folder / DRAFT, DRAFT, draft_type(wanted), own, meter)))
    assert sources.base.tokenizer is not None  # make_base saw to that
    write_json(folder / "tokenizer.json", sources.base.tokenizer.tokenizer)
    write_json(folder / MANIFEST, manifest(sources, folder, parts))
    return parts


def manifest(sources: PackSources, folder: Path, parts: list[Part]) -> dict[str, Any]:
    """`zephyra.json`, with the hash and size of every other file in the folder."""
    by_file = {part.file: part for part in parts}
    base, config = by_file["base.gguf"], sources.base.config
    values: dict[str, Any] = {
        "format": "zephyra-pack",
        "version": 1,
        "name": sources.name,
        "description": sources.description,
        "license": sources.license,
        "base": {
            "file": base.file,
            "architecture": base.architecture,
            "parameters": base.parameters,
            "context_length": config.max_position_embeddings,
            "quantization": base.quantization,
            **_verification(base),
        },
        "adapters": {},
        "router": None,
        "draft": None,
        "tokenizer": {"file": "tokenizer.json"},
        "chat": asdict(ZEPHYRA) if _speaks_zephyra(sources.base.tokenizer) else None,  # None: the base's own, if any
        "generation": dict(sources.generation),
    }
    for name in sources.adapters:
        part = by_file[f"adapters/{name}.gguf"]
        description = sources.descriptions.get(name, "")
        entry = {"file": part.file, "description": description, "rank": part.rank, "quantization": part.quantization}
        values["adapters"][name] = entry | _verification(part)
    if sources.router is not None:
        router, part = sources.router.config, by_file["router.gguf"]
        values["router"] = {
            "file": part.file,
            "labels": list(router.labels),
            "temperature": router.temperature,
            "threshold": router.threshold,
            "max_tokens": router.max_tokens,
            "parameters": part.parameters,
            "quantization": part.quantization,
            **_verification(part),
        }
    if sources.draft is not None:
        part = by_file[DRAFT]
        entry = {"file": part.file, "parameters": part.parameters, "quantization": part.quantization}
        values["draft"] = entry | _verification(part)
    values["files"] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        file = path.relative_to(folder).as_posix()
        made = by_file.get(file, base)
        values["files"][file] = {
            "sha256": _sha256(path),
            "size": path.stat().st_size,
            "license": made.license or sources.license,
            "source": sources.origin or made.source,
        }
    return values


def _speaks_zephyra(tokenizer: TokenizerFiles | None) -> bool:
    """Our own template: the base says so, or it says nothing and its vocabulary has the control tokens."""
    if tokenizer is None or tokenizer.chat_template is not None:
        return tokenizer is not None and tokenizer.chat_template == ZEPHYRA_JINJA
    known = {entry["content"] for entry in tokenizer.tokenizer.get("added_tokens") or ()}
    return {*ZEPHYRA.before.values(), *ZEPHYRA.after.values(), ZEPHYRA.answer} <= known


def adapter_type(quantization: str) -> str:
    """Adapters follow the base down to Q8_0: they are small, and rank-32 rows in Q8_0 run faster than F16."""
    return quantization if quantization in UNQUANTIZED else "Q8_0"


def router_type(quantization: str) -> str:
    return "F32" if quantization == "F32" else "F16"


def draft_type(base: Quantization) -> Quantization:
    """As the base's down to Q8_0: a draft is small, and what it guesses wrong costs more than it saves."""
    return Quantization.of(base.name if base.name in UNQUANTIZED else "Q8_0")


def _draft(part: Part) -> Part:
    return replace(part, kind="draft")


def _planned(
    file: str, kind: str, base: Part, made: Adapter | RouterCheckpoint, quantization: str, bytes_each: float
) -> Part:
    return Part(
        file=file,
        kind=kind,
        source=made.path.name,
        architecture=base.architecture if kind == "adapter" else "modern-bert",
        parameters=made.parameters,
        quantization=quantization,
        bytes=int(made.parameters * bytes_each),
        rank=made.rank if isinstance(made, Adapter) else None,
    )


def _verification(part: Part) -> dict[str, Any]:
    return {} if part.verification is None else {"verification": part.verification.to_dict()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
