"""Mixture of experts: a gate sends every token to the few experts that know it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers.feed_forward import FEED_FORWARDS


@FEED_FORWARDS.register("moe")
class MixtureOfExperts(nn.Module):
    """Top-k of softmax(gate(x)), the gate's weights on the experts' outputs (Mixtral, arXiv:2401.04088).

    Qwen3-MoE's names (`gate`, `experts.N.gate_proj` …). `norm_topk_prob` makes the chosen weights sum to 1.
    In training, `balance` is the load-balancing loss of the last pass (Switch, arXiv:2101.03961), and with
    `moe_capacity_factor` an expert takes at most ceil(factor * tokens * k / experts) tokens, first choices first;
    the rest go without it, and `dropped` says how many did. In evaluation no token is ever dropped: capacity
    counts over the batch, so that the same text would read differently in other company.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        expert = replace(
            config,
            feed_forward=config.expert_feed_forward,
            intermediate_size=config.moe_intermediate_size or config.intermediate_size,
            num_experts=0,
            shared_expert_intermediate_size=0,
            moe_capacity_factor=None,
        )
        build = FEED_FORWARDS[config.expert_feed_forward]
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(build(expert) for _ in range(config.num_experts))
        self.shared_expert: nn.Module | None = None
        if width := config.shared_expert_intermediate_size:
            self.shared_expert = build(replace(expert, intermediate_size=width))
        self.chosen, self.normalized = config.num_experts_per_tok, config.norm_topk_prob
        self.capacity_factor = config.moe_capacity_factor
        self.balance: Tensor | None = None
        self.dropped = 0

    def forward(self, x: Tensor) -> Tensor:  # [B, T, hidden]
        tokens = x.flatten(0, 1)
        chances = functional.softmax(self.gate(tokens).float(), dim=-1)  # [N, experts]
        weights, experts = chances.topk(self.chosen, dim=-1)  # [N, k]
        if self.normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        # One row for every (choice, token): first choices first, so that capacity cuts the later ones.
        order = experts.T.flatten()
        token = torch.arange(tokens.shape[0], device=x.device).repeat(self.chosen)
        share = weights.to(x.dtype).T.flatten()
        capacity = self._capacity(tokens.shape[0])
        if self.training:
            used = functional.one_hot(experts, chances.shape[-1]).float().sum(dim=1).mean(dim=0)
            self.balance = chances.shape[-1] * (used * chances.mean(dim=0)).sum()
            self.dropped = 0
        out = torch.zeros_like(tokens) if self.shared_expert is None else self.shared_expert(tokens)
        for index, expert in enumerate(self.experts):
            rows = (order == index).nonzero().squeeze(-1)
            if self.training:
                self.dropped += max(rows.numel() - capacity, 0)
                rows = rows[:capacity]
            if rows.numel() or self.training:  # in training every expert stays in the graph, so that it has a gradient
                there = token[rows]
                out = out.index_add(0, there, (expert(tokens[there]) * share[rows, None]).to(out.dtype))
        return out.view_as(x)

    def _capacity(self, tokens: int) -> int:
        if self.capacity_factor is None:
            return tokens * self.chosen
        return math.ceil(self.capacity_factor * tokens * self.chosen / len(self.experts))


def load_balancing_loss(model: nn.Module) -> Tensor:
    """Mean over the mixtures of their last training pass: k where every expert is used alike, more where not.

    Add `router_aux_loss_coef` times it to the training loss. ValueError: there is no mixture, or none has trained.
    """
    parts = [m.balance for m in model.modules() if isinstance(m, MixtureOfExperts) and m.balance is not None]
    if not parts:
        raise ValueError("no mixture of experts has had a training pass")
    return torch.stack(parts).mean()


def dropped_tokens(model: nn.Module) -> int:
    """How many token-expert pairs the last training pass left out because an expert was full."""
    return sum(m.dropped for m in model.modules() if isinstance(m, MixtureOfExperts))
