"""Choosing the next token: filters in the order that `SamplingParams` documents, then a draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zephyra_fusion.types import SamplingParams


def sample(
    logits: Tensor, params: SamplingParams, history: Sequence[int], generator: torch.Generator | None = None
) -> int:
    """One token id from `logits [vocabulary]`; `history` is prompt and answer so far."""
    logits = penalized(logits.float(), params, history)
    if params.temperature == 0.0:
        return int(logits.argmax())
    probabilities = (filtered(logits, params) / params.temperature).softmax(dim=-1)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))


def penalized(logits: Tensor, params: SamplingParams, history: Sequence[int]) -> Tensor:
    """Recent tokens made less likely, whatever the sign of their logit (Keskar et al., arXiv:1909.05858)."""
    recent = sorted(set(history[-params.repeat_last_n :])) if params.repeat_last_n > 0 else []
    if params.repeat_penalty == 1.0 or not recent:
        return logits
    logits = logits.clone()
    values = logits[recent]
    logits[recent] = torch.where(values > 0, values / params.repeat_penalty, values * params.repeat_penalty)
    return logits


def filtered(logits: Tensor, params: SamplingParams) -> Tensor:
    """Top-k, top-p, min-p: what they leave out is -inf. At least one token stays."""
    order = logits.argsort(descending=True, stable=True)
    if 0 < params.top_k < order.numel():
        order = order[: params.top_k]
    probabilities = logits[order].softmax(dim=-1)
    if params.top_p < 1.0:
        before = probabilities.cumsum(dim=-1) - probabilities
        order = order[before < params.top_p]
        probabilities = logits[order].softmax(dim=-1)
    if params.min_p > 0.0:
        order = order[probabilities >= params.min_p * probabilities[0]]
    kept = torch.full_like(logits, float("-inf"))
    kept[order] = logits[order]
    return kept
