"""Which tensors, of which shapes and types, the GGUF architectures consist of that zephyra hands to llama.cpp.

Source: `load_arch_tensors` of each architecture in llama.cpp (src/models), checked by running them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace

from zephyra_converters.gguf_header import GGML_TYPES, TensorInfo
from zephyra_fusion.values import dataclass

# Weights that llama.cpp multiplies with or looks rows up in; the others (integers, F64, Q8_1, Q8_K) crash there.
_NO_WEIGHTS = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
WEIGHT_TYPES = frozenset(code for code, (name, _, _) in GGML_TYPES.items() if name not in _NO_WEIGHTS)
_F32 = 0

Shapes = dict[str, tuple[str, ...]]  # tensor name -> names of its dimensions, row length first

_TOP: Shapes = {"token_embd.weight": ("embd", "vocab"), "output_norm.weight": ("embd",)}
_OUTPUT: Shapes = {"output.weight": ("embd", "vocab")}
_ATTENTION: Shapes = {
    "attn_norm.weight": ("embd",),
    "attn_q.weight": ("embd", "q"),
    "attn_k.weight": ("embd", "k"),
    "attn_v.weight": ("embd", "v"),
    "attn_output.weight": ("q", "embd"),
    "ffn_norm.weight": ("embd",),
}
_QKV_BIAS: Shapes = {"attn_q.bias": ("q",), "attn_k.bias": ("k",), "attn_v.bias": ("v",)}
_QK_NORM: Shapes = {"attn_q_norm.weight": ("head",), "attn_k_norm.weight": ("head",)}
_DENSE: Shapes = {
    "ffn_gate.weight": ("embd", "ff"),
    "ffn_up.weight": ("embd", "ff"),
    "ffn_down.weight": ("ff", "embd"),
}
_BIASES: Shapes = {
    "attn_output.bias": ("embd",),
    "ffn_gate.bias": ("ff",),
    "ffn_up.bias": ("ff",),
    "ffn_down.bias": ("embd",),
}
_EXPERTS: Shapes = {
    "ffn_gate_inp.weight": ("embd", "experts"),
    "ffn_gate_exps.weight": ("embd", "expert_ff", "experts"),
    "ffn_up_exps.weight": ("embd", "expert_ff", "experts"),
    "ffn_down_exps.weight": ("expert_ff", "embd", "experts"),
}
_SHARED: Shapes = {
    "ffn_gate_shexp.weight": ("embd", "shared_ff"),
    "ffn_up_shexp.weight": ("embd", "shared_ff"),
    "ffn_down_shexp.weight": ("shared_ff", "embd"),
}
_ROPE: Shapes = {"rope_freqs.weight": ("half_rotary",)}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a GGUF architecture consists of; `layer` tensors carry the prefix `blk.N.`."""

    top: Shapes = field(default_factory=lambda: _TOP)
    top_optional: Shapes = field(default_factory=lambda: _OUTPUT)
    layer: Shapes = field(default_factory=lambda: _ATTENTION)
    layer_optional: Shapes = field(default_factory=lambda: _QKV_BIAS)
    dense: Shapes = field(default_factory=lambda: _DENSE)
    experts: Shapes | None = None  # instead of `dense` where there are experts; None: never any
    expert_ff: str = "feed_forward_length"
    eps: str = "attention.layer_norm_rms_epsilon"
    window: bool = False
    needs: tuple[str, ...] = ()  # finite numbers that llama.cpp wants beside the common ones


_LLAMA = Architecture(top_optional={**_OUTPUT, **_ROPE}, layer_optional={**_QKV_BIAS, **_BIASES}, experts=_EXPERTS)
DECODERS: dict[str, Architecture] = {
    "llama": _LLAMA,
    "qwen2": Architecture(),
    "qwen3": Architecture(layer={**_ATTENTION, **_QK_NORM}),
    "qwen3moe": Architecture(
        layer={**_ATTENTION, **_QK_NORM}, dense={}, experts=_EXPERTS, expert_ff="expert_feed_forward_length"
    ),
    "granite": replace(_LLAMA, needs=("logit_scale",)),
    "granite_swa": replace(
        _LLAMA, layer={**_ATTENTION, "attn_sinks.weight": ("heads",)}, window=True, needs=("logit_scale",)
    ),
    "step35": Architecture(
        top={**_TOP, **_OUTPUT},
        top_optional=_ROPE,
        layer_optional={**_QKV_BIAS, **_QK_NORM, "exp_probs_b.bias": ("experts",)},
        experts={**_EXPERTS, **_SHARED},  # without a shared expert llama.cpp follows a null pointer
        expert_ff="expert_feed_forward_length",
        window=True,
    ),
}
CLASSIFIERS: dict[str, Architecture] = {
    "modern-bert": Architecture(
        top={**_TOP, "token_embd_norm.weight": ("embd",), "cls.output.weight": ("embd", "labels")},
        top_optional={"cls.weight": ("embd", "embd"), "cls.norm.weight": ("embd",), "cls.output.bias": ("labels",)},
        layer={
            "attn_qkv.weight": ("embd", "qkv"),
            "attn_output.weight": ("embd", "embd"),
            "ffn_norm.weight": ("embd",),
            "ffn_up.weight": ("embd", "two_ff"),
            "ffn_down.weight": ("ff", "embd"),
        },
        layer_optional={"attn_norm.weight": ("embd",)},  # layer 0 has none
        dense={},
        eps="attention.layer_norm_epsilon",
    ),
}


def tensor_faults(tensor: TensorInfo, shape: tuple[int, ...]) -> Iterator[str]:
    if tensor.shape != shape:
        yield f"'{tensor.name}' has the shape {list(tensor.shape)}, the header asks for {list(shape)}"
    if len(shape) == 1 and tensor.type != _F32:
        yield f"'{tensor.name}' is {tensor.type_name}, vectors must be F32"
    elif tensor.type not in WEIGHT_TYPES:
        yield f"'{tensor.name}' is {tensor.type_name}, which llama.cpp cannot compute with"
