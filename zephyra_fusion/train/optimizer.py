"""Muon for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.train.config import OptimizerConfig
from zephyra_fusion.train.device import multiplies_bf16


def orthogonalize(gradient: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix by a quintic Newton-Schulz iteration (Jordan et al., Muon, 2024).

    In bfloat16 where the hardware multiplies it, else in the gradient's own type: emulated, it is slow.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16() if multiplies_bf16(gradient.device) else gradient
    transposed = x.shape[0] > x.shape[1]
    if transposed:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if transposed else x).to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized; the step's size is matched to the matrix's shape (torch's own forces bfloat16)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(state["momentum"], group["momentum"]))
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """One or two optimizers over the parameters that want gradients; every group keeps its peak rate as `peak_lr`."""
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if config.matrix_optimizer not in ("muon", "adamw"):
        raise ZephyraError(f"matrix_optimizer is '{config.matrix_optimizer}', known: muon, adamw")
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in trainable:
        hidden = parameter.dim() == 2 and "embed" not in name and "lm_head" not in name
        (matrices if hidden and config.matrix_optimizer == "muon" else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        decayed = [p for p in rest if p.dim() >= 2]
        plain = [p for p in rest if p.dim() < 2]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=False))
    if matrices:
        optimizers.append(Muon(matrices, config.matrix_lr, 0.95, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
