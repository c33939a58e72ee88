"""Document 001 in torch: adapters by the row, by the router, fused, merged, pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fusion.family import adapted, some_ids
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import (
    LoraConfig,
    adapted_layers,
    adapter_config,
    adapter_names,
    add_adapter,
    fuse_adapters,
    remove_adapter,
    route_adapters,
    set_adapters,
)
from zephyra_fusion.merge import MERGES, merge, truncated
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.prune import importance, prune_adapters, prune_directions

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
ON = {"atol": 5e-5, "rtol": 1e-3}


@pytest.fixture
def model() -> ZephyraFusion:
    return adapted()


def alone(model: ZephyraFusion, ids: Tensor, weights: dict[str, float]) -> Tensor:
    set_adapters(model, weights)
    return model(ids)


def test_router_output_feeds_the_weights_and_learns(model: ZephyraFusion) -> None:
    ids = some_ids(9, batch=2)
    logits = torch.tensor([[2.0, 0.0, 0.0, 1.0], [0.0, 1.0, -9.0, 0.0]], requires_grad=True)
    probabilities = logits.softmax(-1)
    route_adapters(model, ["code", "law", "math"], probabilities)
    out = model(ids)
    weights = dict(zip(["code", "law", "math"], probabilities[0].tolist(), strict=False))
    out[0].square().mean().backward()
    assert logits.grad is not None and logits.grad[0].abs().min() > 0 and logits.grad[1].abs().max() == 0
    torch.testing.assert_close(out[0], alone(model, ids, weights)[0], **CLOSE)
    with pytest.raises(ZephyraError, match=r"probabilities are \[2, 2\], must be \[batch, 3 or more\]"):
        route_adapters(model, ["code", "law", "math"], probabilities[:, :2])


@torch.no_grad()
def test_adapters_come_and_go(model: ZephyraFusion) -> None:
    ids = some_ids(9)
    before = alone(model, ids, {"code": 1.0})
    set_adapters(model, {"code": 1.0, "law": 1.0})
    remove_adapter(model, "law")
    assert adapter_names(model) == ["code", "math"]
    assert torch.equal(model(ids), before)
    with pytest.raises(ZephyraError, match="adapter 'law' is not loaded"):
        set_adapters(model, {"law": 1.0})
    for name in ("type", "half", "weight", "keys"):  # a module has attributes of these names
        add_adapter(model, name, LoraConfig(r=1))
        set_adapters(model, {name: 1.0, "code": 1.0})
        assert torch.equal(model(ids), before)
        remove_adapter(model, name)
    with pytest.raises(ZephyraError, match="adapter 'code' is there already"):
        add_adapter(model, "code", LoraConfig())
    with pytest.raises(ZephyraError, match="match no layer"):
        add_adapter(model, "new", LoraConfig(target_modules=("nonsense",)))


def test_fusion_weighs_adapters_by_the_token_and_learns(model: ZephyraFusion) -> None:
    ids, names = some_ids(9), ["code", "law"]
    base = alone(model, ids, {}).detach()
    parameters = fuse_adapters(model, names, size=4)
    fused = model(ids)
    assert not torch.allclose(fused, base)
    fused.square().mean().backward()
    assert parameters and all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 5, 32)
    deltas = [x @ layer.delta(name).T for name in names]
    shares = layer.lora_fusion.shares(x, torch.stack(deltas))
    torch.testing.assert_close(shares.sum(0), torch.ones(2, 5))
    assert (shares[0] - shares[0, 0, 0]).abs().max() > 1e-4, "tokens differ"
    expected = x @ layer.weight.T + sum(s[..., None] * d for s, d in zip(shares, deltas, strict=True))
    torch.testing.assert_close(layer(x), expected, **ON)
    assert torch.equal(alone(model, ids, {}), base), "set_adapters switches fusion off"
    again = fuse_adapters(model, names)
    assert [id(p) for p in again] == [id(p) for p in parameters]


@torch.no_grad()
def test_cat_is_the_blend_exactly(model: ZephyraFusion) -> None:
    ids, weights = some_ids(9), {"code": 0.6, "law": 0.9, "math": 0.4}
    blend = alone(model, ids, weights)
    merge(model, "all", weights, "cat")
    torch.testing.assert_close(alone(model, ids, {"all": 1.0}), blend, **ON)
    config = adapter_config(model, "all")
    ranks = {path: layer.factors("all")[0].shape[0] for path, layer in adapted_layers(model, "all")}
    assert {config.rank(path) for path in ranks} == {2, 5, 6, 9} and all(config.targets(path) for path in ranks)
    assert all(config.rank(path) == rank and config.scaling(path) == 1.0 for path, rank in ranks.items())


@torch.no_grad()
def test_sum_has_the_rank_that_is_there(model: ZephyraFusion) -> None:
    ids, weights = some_ids(9), {"code": 0.6, "law": 0.9}
    blend = alone(model, ids, weights)
    merge(model, "sum", weights, "sum")
    torch.testing.assert_close(alone(model, ids, {"sum": 1.0}), blend, **ON)
    merge(model, "twice", {"code": 0.5, "sum": 1.0}, "sum")  # `code` lies in what `sum` spans already
    assert {layer.factors("twice")[0].shape[0] for _, layer in adapted_layers(model, "twice")} == {2, 5}
    with pytest.raises(ZephyraError, match="rank is 3, 'sum' takes none"):
        merge(model, "m", weights, "sum", rank=3)


@torch.no_grad()
def test_svd_of_full_rank_is_the_blend_and_of_less_the_nearest(model: ZephyraFusion) -> None:
    ids, weights = some_ids(9), {"code": 0.6, "law": 0.9}
    blend = alone(model, ids, weights)
    merge(model, "whole", weights, "svd", rank=5)
    merge(model, "half", weights, "svd", rank=2)
    torch.testing.assert_close(alone(model, ids, {"whole": 1.0}), blend, **ON)
    layer = model.model.layers[0].self_attn.q_proj
    exact = 0.6 * layer.delta("code") + 0.9 * layer.delta("law")
    values = torch.linalg.svdvals(exact)
    torch.testing.assert_close((layer.delta("half") - exact).norm(), values[2:].norm(), **ON)


@torch.no_grad()
def test_ties_trims_elects_and_merges(model: ZephyraFusion) -> None:
    layer = model.model.layers[0].self_attn.q_proj
    merge(model, "t", {"code": 1.0, "law": 1.0}, "ties", rank=32, keep=0.25)
    parts = []
    for name in ("code", "law"):
        delta = layer.delta(name)
        border = delta.abs().flatten().sort(descending=True).values[delta.numel() // 4 - 1]
        parts.append(delta * (delta.abs() >= border))
    expected = torch.zeros_like(parts[0])
    for i in range(32):
        for j in range(32):
            votes = [float(p[i, j]) for p in parts if p[i, j] != 0]
            agreed = [v for v in votes if v * sum(votes) > 0]
            expected[i, j] = 2 * sum(agreed) / len(agreed) if agreed else 0.0
    torch.testing.assert_close(layer.delta("t"), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dare_keeps_the_mean(model: ZephyraFusion) -> None:
    layer = model.model.layers[0].self_attn.q_proj
    exact, total = layer.delta("code"), torch.zeros(32, 32)
    for seed in range(60):
        merge(model, f"d{seed}", {"code": 1.0}, "dare", rank=32, keep=0.5, seed=seed)
        delta = layer.delta(f"d{seed}")
        near = torch.isclose(delta, torch.zeros(()), atol=1e-5) | torch.isclose(delta, 2 * exact, atol=1e-5)
        assert near.all()
        total += delta / 60
        remove_adapter(model, f"d{seed}")
    assert (total - exact).abs().max() < 6 * exact.abs().max() / 60**0.5
    merge(model, "same", {"code": 1.0}, "dare", rank=32, keep=1.0)
    torch.testing.assert_close(layer.delta("same"), exact, atol=1e-5, rtol=1e-4)


def test_bad_merges_are_refused(model: ZephyraFusion) -> None:
    with pytest.raises(ZephyraError, match="unknown merge method 'mean'") as caught:
        merge(model, "m", {"code": 1.0}, "mean")
    assert all(name in str(caught.value.hint) for name in MERGES)
    with pytest.raises(ZephyraError, match="nothing to merge"):
        merge(model, "m", {"code": 0.0})
    with pytest.raises(ZephyraError, match="rank is 3, 'cat' takes none; keep is 0.0"):
        merge(model, "m", {"code": 1.0}, "cat", rank=3, keep=0.0)
    with pytest.raises(ZephyraError, match="adapter 'lw' is not loaded") as caught:
        merge(model, "m", {"lw": 1.0})
    assert "law" in str(caught.value.hint)
    assert "m" not in adapter_names(model)


@torch.no_grad()
def test_pruning_directions_loses_the_least(model: ZephyraFusion) -> None:
    layers = dict(adapted_layers(model, "math"))
    before = {path: layer.delta("math") for path, layer in layers.items()}
    assert prune_directions(model, "math", energy=1.0) < 1e-6
    for path, layer in layers.items():
        torch.testing.assert_close(layer.delta("math"), before[path], **ON)
    lost = prune_directions(model, "math", rank=2)
    for path, layer in layers.items():
        a, b = truncated(before[path], 2)
        torch.testing.assert_close(layer.delta("math"), b @ a, **ON)
        assert layer.factors("math")[0].shape[0] == 2
    error = sum(float((layer.delta("math") - before[path]).square().sum()) for path, layer in layers.items())
    assert lost == pytest.approx(error / sum(float(x.square().sum()) for x in before.values()), rel=1e-3)
    for wrong in ({}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 1.5}):
        with pytest.raises(ZephyraError):
            prune_directions(model, "math", **wrong)


@torch.no_grad()
def test_the_adapter_that_matters_least_is_pruned(model: ZephyraFusion) -> None:
    for _, layer in adapted_layers(model, "law"):
        layer.factors("law")[1].mul_(1e-3)
    shares = importance(model)
    layers = [layer for _, layer in adapted_layers(model, "code")]
    moved = torch.cat([layer.delta("code").flatten() for layer in layers]).norm()
    there = torch.cat([layer.weight.flatten() for layer in layers]).norm()
    assert shares["code"] == pytest.approx(float(moved / there), rel=1e-4)
    assert prune_adapters(model, 0.01) == ["law"] and adapter_names(model) == ["code", "math"]
