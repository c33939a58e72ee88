"""Input embeddings: one table, or adaptive by how frequent a word is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.field_types import at_least_one


class AdaptiveInput(nn.Module):
    """Frequent ids get wide vectors, rare ones narrow (Baevski & Auli, arXiv:1809.10853); document 000.

    `cutoffs` are the borders of the clusters in ids sorted by frequency: cluster 0 holds ids below cutoffs[0],
    the last one all from cutoffs[-1] on. Cluster i has vectors of `embedding_dim // factor**i`, projected to
    `embedding_dim`. Ids `[...]` become `[..., embedding_dim]`. ZephyraError: cutoffs that do not rise between 0 and
    `num_embeddings`, a cluster without width; an id out of range.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, cutoffs: Sequence[int], factor: int = 4) -> None:
        super().__init__()
        borders = [0, *cutoffs, num_embeddings]
        sizes = {"num_embeddings": num_embeddings, "embedding_dim": embedding_dim, "factor": factor}
        wrong = [f"{n} is {v!r}, must be a whole number of at least 1" for n, v in sizes.items() if not at_least_one(v)]
        if not all(isinstance(cutoff, int) for cutoff in cutoffs):
            wrong.append(f"cutoffs are {list(cutoffs)}, must be whole numbers")
        elif not wrong and borders != sorted(set(borders)):
            wrong.append(
                f"cutoffs are {list(cutoffs)}, must rise and lie between 0 and num_embeddings {num_embeddings}"
            )
        if not wrong and embedding_dim < factor ** len(cutoffs):
            wrong.append(f"embedding_dim {embedding_dim} over factor {factor}, {len(cutoffs)} times, leaves no width")
        if wrong:
            raise ZephyraError("impossible adaptive input: " + "; ".join(wrong))
        self.embedding_dim = embedding_dim
        self.ranges = list(zip(borders, borders[1:], strict=False))
        widths = [embedding_dim // factor**index for index in range(len(self.ranges))]
        self.tables = nn.ModuleList(
            nn.Embedding(end - start, width) for (start, end), width in zip(self.ranges, widths, strict=True)
        )
        self.projections = nn.ModuleList(nn.Linear(width, embedding_dim, bias=False) for width in widths)

    def forward(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.ranges[-1][1])
        flat = ids.flatten()
        place = next(self.parameters())
        out = place.new_zeros(flat.numel(), self.embedding_dim)
        for (start, end), table, projection in zip(self.ranges, self.tables, self.projections, strict=True):
            rows = ((flat >= start) & (flat < end)).nonzero().squeeze(-1)
            out = out.index_add(0, rows, projection(table(flat[rows] - start)).to(out.dtype))
        return out.view(*ids.shape, self.embedding_dim)


def token_embedding(config: FusionConfig) -> nn.Module:
    """The input of the model: a table, or `AdaptiveInput` where the config has cutoffs."""
    width = config.embedding_size or config.hidden_size
    if config.cutoffs:
        return AdaptiveInput(config.vocab_size, width, config.cutoffs, config.cutoff_factor)
    return nn.Embedding(config.vocab_size, width)


def check_ids(ids: Tensor, limit: int) -> None:
    """ZephyraError: an id is below 0 or not below `limit`.

    Only on the CPU: on an accelerator the check would wait for the device at every token.
    """
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= limit:
            wrong = low if low < 0 else high
            raise ZephyraError(f"token id {wrong} is out of range, the vocabulary has {limit}")
