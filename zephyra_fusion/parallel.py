"""Tensor parallelism: one model over several devices, by torch.distributed's own DTensor plans.

Shoeybi et al., arXiv:1909.08053: q, k, v, gate and up are cut by rows, o and down by columns; heads and feed-forward
neurons live on one device each, and every layer adds up twice. Embedding, norms, gates and head are whole everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.attention import Attention
from zephyra_fusion.layers.lora import LoRALinear
from zephyra_fusion.model import ZephyraFusion


class _WholeBefore(torch.autograd.Function):
    """Identity; backward, the sum of the devices' gradients: before it all is whole, after it each has its heads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


def parallelize(model: ZephyraFusion, mesh: DeviceMesh) -> ZephyraFusion:
    """Cut the model in place for a one-dimensional mesh; every process must hold the same weights before.

    The loss and the gradients are those of one device (cut parameters hold their rows of it). One K/V head stays
    whole on all devices. ZephyraError: heads, K/V heads or widths that the devices do not divide, attention
    `frequency` (its filters belong to heads), adapters.
    """
    devices = mesh.size()
    if wrong := list(_impossible(model, devices)):
        raise ZephyraError(f"cannot be cut for {devices} devices: " + "; ".join(wrong))
    rows, columns = ColwiseParallel(), RowwiseParallel()
    one_key = model.config.num_key_value_heads == 1
    for layer in model.model.layers:
        attention = cast(Attention, layer.self_attn)
        plan: dict[str, ParallelStyle] = {"self_attn.q_proj": rows, "self_attn.o_proj": columns}
        if not one_key:
            plan |= {"self_attn.k_proj": rows, "self_attn.v_proj": rows}
        for name, _ in layer.named_modules():
            leaf = name.rpartition(".")[2]
            if leaf in ("gate_proj", "up_proj", "down_proj"):
                plan[name] = columns if leaf == "down_proj" else rows
        parallelize_module(layer, mesh, plan)
        _sum_gradients(attention, mesh.get_group(), one_key)
    return model


def _sum_gradients(attention: Attention, group: dist.ProcessGroup, one_key: bool) -> None:
    """What stays whole in the attention meets the heads of its own device alone: its gradient is summed up."""

    def whole_before(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return _WholeBefore.apply(out, group)

    def summed(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=group)
        return gradient

    if one_key:
        (attention.k_norm if attention.qk_norm else attention.k_proj).register_forward_hook(whole_before)
        attention.v_proj.register_forward_hook(whole_before)
    elif attention.qk_norm:
        cast(Tensor, attention.k_norm.weight).register_hook(summed)
    if attention.qk_norm:
        cast(Tensor, attention.q_norm.weight).register_hook(summed)


def _impossible(model: ZephyraFusion, devices: int) -> Iterator[str]:
    config = model.config
    divided = {"num_attention_heads": config.num_attention_heads}
    if config.num_key_value_heads != 1:
        divided["num_key_value_heads"] = config.num_key_value_heads or 1
    if config.num_experts:
        divided["moe_intermediate_size"] = config.moe_intermediate_size or 1
        divided["shared_expert_intermediate_size"] = config.shared_expert_intermediate_size
    else:
        divided["intermediate_size"] = config.intermediate_size
    for name, value in divided.items():
        if value % devices:
            yield f"{name} is {value}, not a multiple of {devices}"
    if config.attention == "frequency":
        yield "attention 'frequency' keeps its filters whole"
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        yield "adapters are on it (merge them first, or cut before adding them)"
