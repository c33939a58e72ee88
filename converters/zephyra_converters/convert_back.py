"""The way back: GGUF bases to Hugging Face folders, GGUF adapters to PEFT folders, packs to a folder of both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.adapter import Adapter
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.fingerprint import check_base
from zephyra_converters.gguf_read import read_gguf
from zephyra_converters.hf import read_hf, write_hf
from zephyra_converters.json_file import read_json
from zephyra_converters.lora import read_lora_gguf
from zephyra_converters.meter import Meter
from zephyra_converters.peft import write_peft
from zephyra_converters.report import Part
from zephyra_converters.source import called, read_base
from zephyra_converters.staging import staged
from zephyra_converters.target import check_target
from zephyra_fusion.config_json import NATIVE, dialect_of
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_converters.convert import Options

_STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # anything quantized comes back as F32


def convert_back(kind: str, source: Path, target: Path | None, options: Options) -> tuple[list[Part], list[str], Path]:
    """Write a folder that transformers (or PEFT) loads as it is. Quantized weights come back dequantized."""
    if options.packed:
        raise ZephyraError("--adapter, --router and --draft make packs; --to hf takes one apart")
    makers = {"gguf-base": _base, "base": _base, "gguf-adapter": _adapter, "pack": _pack}
    if kind not in makers:
        raise ZephyraError(f"'{source}' is of the kind '{kind}', which has no Hugging Face form to go back to")
    target = target or Path(f"{called(source, options.name)}-hf")
    check_target(target, [source, *options.inputs], force=options.force)
    parts, warnings = makers[kind](source, target, options)
    return parts, warnings, target


def _base(source: Path, target: Path, options: Options) -> tuple[list[Part], list[str]]:
    checkpoint = read_gguf(source) if source.is_file() else read_hf(source)
    dtype = _dtype(checkpoint, options)
    if not options.dry_run:
        meter = Meter(options.progress, _checkpoint_bytes(checkpoint, dtype))
        meter.say(f"checkpoint as {dtype}")
        with staged(target, folder=True, needs=_checkpoint_bytes(checkpoint, dtype)) as folder:
            write_hf(checkpoint, folder, dtype, meter.add)
            read_hf(folder)
        meter.finish()
    return [_checkpoint_part(checkpoint, target, dtype)], _warnings(checkpoint)


def _adapter(source: Path, target: Path, options: Options) -> tuple[list[Part], list[str]]:
    if options.base is None:
        raise ZephyraError(f"--base is needed to read '{source}' back", hint="the base knows the heads of the model")
    base = read_base(options.base)
    adapter = read_lora_gguf(source, base.config)
    check_base(adapter.base_fingerprint, base, f"the adapter {source}")
    if not options.dry_run:
        with staged(target, folder=True) as folder:
            write_peft(adapter, folder, str(options.base), dialect_of(base.config))
    return [_adapter_part(adapter, str(target), dialect_of(base.config))], []


def _pack(source: Path, target: Path, options: Options) -> tuple[list[Part], list[str]]:
    """`base/`, `draft/` and `adapters/NAME/`; the router's GGUF has no form of its own and stays behind."""
    manifest = read_json(source / "zephyra.json")
    models, adapters = {"base": read_base(source)}, manifest.get("adapters")
    if manifest.get("draft"):
        models["draft"] = read_gguf(_file(source, manifest["draft"], "the draft"))
    config = models["base"].config
    read = {
        name: read_lora_gguf(_file(source, entry, f"adapter '{name}'"), config)
        for name, entry in (adapters.items() if isinstance(adapters, dict) else ())
    }
    dtypes = {name: _dtype(checkpoint, options) for name, checkpoint in models.items()}
    if not options.dry_run:
        total = sum(_checkpoint_bytes(checkpoint, dtypes[name]) for name, checkpoint in models.items())
        total += sum(4 * adapter.parameters for adapter in read.values())
        meter = Meter(options.progress, total)
        with staged(target, folder=True, needs=total) as folder:
            for name, checkpoint in models.items():
                (folder / name).mkdir()
                meter.say(f"{name} as {dtypes[name]}")
                write_hf(checkpoint, folder / name, dtypes[name], meter.add)
            for name, adapter in read.items():
                meter.say(f"adapter {name}")
                (folder / "adapters" / name).mkdir(parents=True)
                write_peft(adapter, folder / "adapters" / name, "../../base", dialect_of(config))
        meter.finish()
    parts = [_checkpoint_part(checkpoint, target / name, dtypes[name]) for name, checkpoint in models.items()]
    parts += [_adapter_part(a, str(target / "adapters" / name), dialect_of(config)) for name, a in read.items()]
    warnings = [warning for checkpoint in models.values() for warning in _warnings(checkpoint)]
    if manifest.get("router") is not None:
        warnings.append("the router stays behind: it has no Hugging Face form")
    return parts, warnings


def _file(pack: Path, entry: Any, what: str) -> Path:
    """Where the manifest's entry says that its file is, inside the pack."""
    file = entry.get("file") if isinstance(entry, dict) else None
    inside = isinstance(file, str) and not Path(file).is_absolute() and ".." not in Path(file).parts
    if not isinstance(file, str) or not inside or "/" in what:
        raise ZephyraError(f"{pack / 'zephyra.json'}: {what} names no file inside the pack")
    return pack / file


def _dtype(checkpoint: Checkpoint, options: Options) -> str:
    wanted = (options.quantization or _STORED.get(checkpoint.dtype, "F32")).upper()
    if wanted not in _STORED:
        raise ZephyraError(f"a Hugging Face folder cannot hold {wanted}", hint=f"known: {', '.join(_STORED)}")
    return wanted


def _warnings(checkpoint: Checkpoint) -> list[str]:
    warnings = []
    if dialect_of(checkpoint.config) == NATIVE:
        warnings.append("no architecture of transformers expresses this model: only zephyra reads the folder")
    if checkpoint.dtype not in _STORED:
        warnings.append(f"the weights were {checkpoint.dtype}: what quantization took away does not come back")
    return warnings


def _checkpoint_part(checkpoint: Checkpoint, folder: Path, dtype: str) -> Part:
    written = folder / "model.safetensors"
    return Part(
        file=str(folder),
        kind="checkpoint",
        source=checkpoint.path.name,
        architecture=dialect_of(checkpoint.config),
        parameters=checkpoint.parameters,
        quantization=dtype,
        bytes=written.stat().st_size if written.is_file() else _checkpoint_bytes(checkpoint, dtype),
        tensors={dtype: len(checkpoint.tensors)},
        license=checkpoint.license,
    )


def _checkpoint_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    return checkpoint.parameters * (4 if dtype == "F32" else 2)


def _adapter_part(adapter: Adapter, file: str, architecture: str) -> Part:
    return Part(
        file=file,
        kind="adapter",
        source=adapter.path.name,
        architecture=architecture,
        parameters=adapter.parameters,
        quantization="F32",
        bytes=4 * adapter.parameters,
        rank=adapter.rank,
    )
