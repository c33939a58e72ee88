"""Several adapters made into one.

Which of these is exact: `cat` is, at the price of the ranks' sum, and `sum`, at the rank that is really there; `svd` is
the best of its rank; `ties` and `dare` change the sum on purpose. The exact sum without any adapter left is
`lora.merge_adapters`: into the base itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.lora import LoRALinear
from zephyra_fusion.lora import adapted_layers, check_names, check_new_name
from zephyra_fusion.registry import Registry
from zephyra_fusion.types import check_weights

# (layer, weights by adapter, rank, keep, generator) -> A [r, in], B [out, r] with scaling 1
Merge = Callable[[LoRALinear, Mapping[str, float], int | None, float, torch.Generator], tuple[Tensor, Tensor]]
MERGES: Registry[Merge] = Registry("merge method")


@torch.no_grad()
def merge(
    model: nn.Module,
    name: str,
    weights: Mapping[str, float],
    method: str = "cat",
    *,
    rank: int | None = None,
    keep: float = 0.5,
    seed: int = 0,
) -> None:
    """A new adapter `name` out of resident ones, by `cat`, `sum`, `svd`, `ties` or `dare`; the old ones stay.

    `rank` is the new adapter's (not for `cat` and `sum`, which need what they need; default of the others: the
    largest of the parts). `keep` is the share of entries that `ties` and `dare` keep. ZephyraError: unknown names, a
    rank below 1, `keep` outside (0, 1].
    """
    chosen = check_weights(weights)
    combine = MERGES[method]
    check_names(model, chosen)
    check_new_name(model, name)
    wrong = []
    if not chosen:
        wrong.append("no adapter has a weight above 0, there is nothing to merge")
    if rank is not None and (rank < 1 or method in ("cat", "sum")):
        wrong.append(
            f"rank is {rank}, " + (f"'{method}' takes none" if method in ("cat", "sum") else "must be at least 1")
        )
    if not 0.0 < keep <= 1.0:
        wrong.append(f"keep is {keep}, must be above 0 and at most 1")
    if wrong:
        raise ZephyraError("; ".join(wrong))
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        here = {n: w for n, w in chosen.items() if n in layer.lora_A}
        if here:
            put(layer, name, *combine(layer, here, rank, keep, generator))


def put(layer: LoRALinear, name: str, a: Tensor, b: Tensor) -> None:
    """Make (A, B), scaling 1, the layer's adapter `name`, in place of one of that name."""
    layer.remove(name)
    layer.add(name, a.shape[0], 1.0)
    for parameter, value in zip(layer.factors(name), (a, b), strict=True):
        parameter.copy_(value)


def truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest (A, B) of that rank to `delta [out, in]`, the singular values shared evenly."""
    u, s, v = torch.linalg.svd(delta.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def _summed(layer: LoRALinear, weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weight * layer.delta(name) for name, weight in weights.items()]).sum(dim=0)


def _rank(layer: LoRALinear, weights: Mapping[str, float], rank: int | None) -> int:
    return rank or max(layer.factors(name)[0].shape[0] for name in weights)


@MERGES.register("cat")
def cat(
    layer: LoRALinear, weights: Mapping[str, float], rank: int | None, keep: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The ranks side by side: exactly the weighted sum."""
    parts = [(*layer.factors(name), weight * layer.scaling[name]) for name, weight in weights.items()]
    return torch.cat([a for a, _, _ in parts]), torch.cat([b * scale for _, b, scale in parts], dim=1)


@MERGES.register("sum")
def summed(
    layer: LoRALinear, weights: Mapping[str, float], rank: int | None, keep: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The weighted sum at the rank that it has: less than `cat`'s where adapters share directions."""
    delta = _summed(layer, weights)
    return truncated(delta, max(int(torch.linalg.matrix_rank(delta.float())), 1))


@MERGES.register("svd")
def svd(
    layer: LoRALinear, weights: Mapping[str, float], rank: int | None, keep: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The weighted sum, cut to `rank`."""
    return truncated(_summed(layer, weights), _rank(layer, weights, rank))


@MERGES.register("ties")
def ties(
    layer: LoRALinear, weights: Mapping[str, float], rank: int | None, keep: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Trim, elect sign, merge (Yadav et al., arXiv:2306.01708): of every adapter the largest `keep` of its entries;
    for every entry the sign with the larger sum; the weighted mean of those that have it, times the sum of weights."""
    trimmed = []
    for name, weight in weights.items():
        delta = layer.delta(name)
        count = max(round(keep * delta.numel()), 1)
        border = delta.abs().flatten().kthvalue(delta.numel() - count + 1).values
        trimmed.append(torch.where(delta.abs() >= border, delta, 0.0) * weight)
    deltas = torch.stack(trimmed)
    share = torch.tensor(list(weights.values()), device=deltas.device, dtype=deltas.dtype).view(-1, 1, 1)
    agree = (deltas.sign() == deltas.sum(dim=0).sign()) & (deltas != 0)
    voters = (agree * share).sum(dim=0)
    merged = (deltas * agree).sum(dim=0) * share.sum() / voters.clamp(min=1e-12)
    return truncated(merged, _rank(layer, weights, rank))


@MERGES.register("dare")
def dare(
    layer: LoRALinear, weights: Mapping[str, float], rank: int | None, keep: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Drop and rescale (Yu et al., arXiv:2311.03099): a random `keep` of every adapter's entries, divided by `keep`."""
    total = torch.zeros_like(layer.weight)
    for name, weight in weights.items():
        delta = layer.delta(name)
        kept = (torch.rand(delta.shape, generator=generator) < keep).to(delta.device)
        total += weight * torch.where(kept, delta, 0.0) / keep
    return truncated(total, _rank(layer, weights, rank))
