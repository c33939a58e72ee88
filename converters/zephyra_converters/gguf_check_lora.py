"""Does a LoRA adapter in GGUF belong to this base, and can llama.cpp take it?

Source: `llama_adapter_lora_init` in llama.cpp. For a matrix W of shape [in, out] the file has `<W>.lora_a` of
[in, r] and `<W>.lora_b` of [r, out]; with experts both carry the number of experts as third dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from zephyra_converters.gguf_header import GGUFHeader, read_header
from zephyra_converters.gguf_shapes import WEIGHT_TYPES
from zephyra_fusion.errors import ZephyraError

FINGERPRINT = "zephyra.base.fingerprint"  # in a base: its own; in an adapter: its base's


def check_adapter(path: Path | str, base: GGUFHeader) -> GGUFHeader:
    """The header of an adapter that fits `base`. ZephyraError: no adapter, or made for another base."""
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise ZephyraError(
            f"{path} is no LoRA adapter (general.type '{metadata.get('general.type')}')",
            hint="`zephyra convert` makes one from a PEFT folder",
        )
    if header.architecture != base.architecture:
        raise ZephyraError(
            f"the adapter {path} was made for the architecture '{header.architecture}', "
            f"the base {base.path} is '{base.architecture}'"
        )
    if faults := list(_faults(header, base)):
        shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise ZephyraError(
            f"the adapter {path} does not fit the base {base.path}: {shown}",
            hint="an adapter works with the base it was trained on, and with no other",
        )
    return header


def _faults(header: GGUFHeader, base: GGUFHeader) -> Iterator[str]:
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha) or header.types.get("adapter.lora.alpha", 6) != 6:
        yield f"adapter.lora.alpha is {alpha}, must be a finite FLOAT32"  # another type aborts
    if "adapter.alora.invocation_tokens" in header.metadata:
        yield "it is an activated LoRA (aLoRA), which is not supported"
    if (theirs := header.metadata.get(FINGERPRINT)) and theirs != base.metadata.get(FINGERPRINT, theirs):
        yield "it was trained on another base (their fingerprints differ)"
    targets = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in header.tensors}
    if not targets:
        yield "it has no tensors"
    for target in sorted(targets):
        yield from _target_faults(target, header, base)


def _target_faults(target: str, header: GGUFHeader, base: GGUFHeader) -> Iterator[str]:
    a, b, weight = (
        header.tensors.get(target + ".lora_a"),
        header.tensors.get(target + ".lora_b"),
        base.tensors.get(target),
    )
    if target in header.tensors:
        yield f"'{target}' is neither lora_a nor lora_b"
    elif a is None or b is None:
        yield f"'{target}' lacks its lora_{'b' if a else 'a'}"
    elif weight is None:
        yield f"the base has no tensor '{target}'"
    elif target == "token_embd.weight" and "output.weight" not in base.tensors:
        yield "it changes 'token_embd.weight', which this base shares with its output"  # aborts while decoding
    elif len(weight.shape) < 2:
        yield f"it changes the vector '{target}', llama.cpp adapts matrices alone"
    else:
        rows, columns, *experts = weight.shape
        rank = b.shape[0]
        expected = (rows, rank, *experts), (rank, columns, *experts)
        if target == "token_embd.weight":  # looked up, not multiplied: llama.cpp wants A transposed
            expected = (rank, columns), (rank, rows)
        if (a.shape, b.shape) != expected:
            yield f"'{target}' is {list(weight.shape)} in the base, the adapter has {list(a.shape)} and {list(b.shape)}"
        for tensor in (a, b):
            if tensor.type not in WEIGHT_TYPES:
                yield f"'{tensor.name}' is {tensor.type_name}, which llama.cpp cannot compute with"
