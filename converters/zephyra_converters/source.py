"""What a path given as a source is, what it is called, and the base or the adapter in it, whatever its form."""

from __future__ import annotations

import os
from pathlib import Path

from zephyra_converters.adapter import Adapter
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import read_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.json_file import read_json
from zephyra_converters.lora import read_lora_gguf
from zephyra_converters.peft import read_peft
from zephyra_converters.router import MODEL_TYPE
from zephyra_fusion.errors import ZephyraError


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
        raise ZephyraError(f"'{source}' does not exist")
    raise ZephyraError(
        f"'{source}' is nothing that converts",
        hint="expected a folder with config.json, adapter_config.json or zephyra.json, or a .gguf file",
    )


def read_base(source: Path) -> Checkpoint:
    """A base from any form: a checkpoint folder, a .gguf, or a pack's own base."""
    if source.is_file():
        return read_gguf(source)
    if (source / "zephyra.json").is_file():
        return read_gguf(source / _base_file(source))
    return read_hf(source)


def read_adapter(source: Path, base: Checkpoint) -> Adapter:
    """An adapter for this base: a PEFT folder, or a .gguf."""
    return read_lora_gguf(source, base.config) if source.is_file() else read_peft(source)


def _base_file(pack: Path) -> str:
    entry = read_json(pack / "zephyra.json").get("base")
    file = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
        raise ZephyraError(f"{pack / 'zephyra.json'} names no base inside the pack")
    return file


def called(source: Path, name: str | None) -> str:
    """What the result is called: `name`, or as the source's file or folder is.

    Never as the source calls itself inside (`general.name`): that would let a stranger's file say where things are
    written. ZephyraError: `name` leads to another folder.
    """
    if not name:
        path = Path(os.path.abspath(source))  # not resolved: a link has a better name than what a cache keeps behind it
        return path.stem if path.is_file() else path.name
    if Path(name).name != name or name == ".." or "\\" in name or not name.isprintable():
        raise ZephyraError(f"'{name}' cannot be a name", hint="a name has no slashes; TARGET says where it is written")
    return name
