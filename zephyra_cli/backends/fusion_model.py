"""What a pack's files are in torch: the base, its adapters and its tokenizer, read through the converters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import torch

    from zephyra_converters.checkpoint import Checkpoint
    from zephyra_fusion.model import ZephyraFusion
    from zephyra_fusion.tokenizer import Tokenizer

INSTALL_HINT = "pip install 'zephyra[torch]'"


def require_torch() -> Any:
    """The module torch. ZephyraError: it is not installed."""
    try:
        import torch
    except ImportError:
        raise ZephyraError("the torch backend needs PyTorch, which is not installed", hint=INSTALL_HINT) from None
    return torch


def choose_device(wanted: str) -> str:
    """`cuda`, `mps` or `cpu`; `auto` takes the first that is there. ZephyraError: torch does not see the device."""
    torch = require_torch()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, found in there.items() if found)
    if not there[wanted]:
        raise ZephyraError(
            f"PyTorch {torch.__version__} sees no device '{wanted}'",
            hint=f"it sees {', '.join(device for device, found in there.items() if found)}; zephyra doctor says more",
        )
    return wanted


def read_checkpoint(path: Path) -> Checkpoint:
    """A GGUF, or a checkpoint folder of Hugging Face or ours."""
    if path.is_dir():
        from zephyra_converters.hf import read_hf

        return read_hf(path)
    from zephyra_converters.gguf_read import read_gguf

    return read_gguf(path)


def load_model(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> ZephyraFusion:
    """The model with its weights there, in evaluation mode. ZephyraError: it does not fit the memory."""
    torch = require_torch()
    from zephyra_fusion.checkpoint import load_weights
    from zephyra_fusion.model import ZephyraFusion

    with torch.device("meta"):
        model = ZephyraFusion(checkpoint.config)
    try:
        tensors = {name: torch.from_numpy(tensor.read()) for name, tensor in checkpoint.tensors.items()}
        load_weights(model, tensors, str(checkpoint.path))
        return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    except (MemoryError, torch.OutOfMemoryError):
        size = checkpoint.parameters * torch.empty((), dtype=dtype).element_size()
        raise ZephyraError(
            f"'{checkpoint.path}' has {checkpoint.parameters / 1e6:.0f} M parameters, {size / 2**20:.0f} MB: "
            f"{device} has no memory for them",
            hint="a smaller model" + ("" if device == "cpu" else ", or --device cpu"),
        ) from None


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """ZephyraError: there is none, or its tokens are not made of bytes."""
    from zephyra_fusion.tokenizer import Tokenizer

    files = checkpoint.tokenizer
    if files is None:
        raise ZephyraError(f"'{checkpoint.path}' has no tokenizer", hint="put its tokenizer.json beside config.json")
    if "ByteLevel" not in json.dumps(files.tokenizer.get("decoder") or files.tokenizer.get("pre_tokenizer") or ""):
        raise ZephyraError(
            f"the tokenizer of '{checkpoint.path}' is not byte-level BPE, the only kind that is supported"
        )
    return Tokenizer(checkpoint.path, text=json.dumps(files.tokenizer))


def load_adapter(model: ZephyraFusion, checkpoint: Checkpoint, name: str, path: Path) -> None:
    """Make a GGUF adapter or a PEFT folder resident. ZephyraError: damaged, or made for another base."""
    torch = require_torch()
    from zephyra_converters.adapter import check_belongs
    from zephyra_converters.lora import read_lora_gguf
    from zephyra_converters.peft import read_peft
    from zephyra_fusion import lora

    if path.is_dir():
        adapter = read_peft(path)
        check_belongs(adapter, checkpoint.config)
    else:
        adapter = read_lora_gguf(path, checkpoint.config)
    pairs = adapter.pairs
    config = lora.LoraConfig(
        target_modules=tuple(pairs),
        rank_pattern={re.escape(module): pair.rank for module, pair in pairs.items()},
        alpha_pattern={re.escape(module): pair.scale * pair.rank for module, pair in pairs.items()},
    )
    lora.add_adapter(model, name, config)
    with torch.no_grad():
        for module, layer in lora.adapted_layers(model, name):
            for weight, tensor in zip(layer.factors(name), (pairs[module].a, pairs[module].b), strict=True):
                weight.copy_(torch.from_numpy(tensor.read()))
                weight.requires_grad_(False)
