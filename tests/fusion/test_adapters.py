"""Document 001 in torch: adapters by the row, by the router, fused, merged, pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fusion.family import EXPERTS, TINY, build, some_ids
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
    """Three adapters of different ranks and reach, all trained a little."""
    model = build({**TINY, "qk_norm": True})
    add_adapter(model, "code", LoraConfig(r=2, lora_alpha=4))
    add_adapter(model, "law", LoraConfig(r=3, lora_alpha=3, use_rslora=True, target_modules=("q_proj", "down_proj")))
    add_adapter(model, "math", LoraConfig(r=4, lora_alpha=2, layers_to_transform=(1,)))
    torch.manual_seed(7)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            for name in layer.lora_A:
                layer.factors(name)[1].normal_(std=0.3)
    return model


def alone(model: ZephyraFusion, ids: Tensor, weights: dict[str, float]) -> Tensor:
    set_adapters(model, weights)
    return model(ids)


@torch.no_grad()
def test_every_row_has_its_own_specialists(model: ZephyraFusion) -> None:
    ids = some_ids(9, batch=4)
    rows = [{"code": 1.0}, {}, {"law": 0.7, "math": 0.3}, {"code": 0.5, "law": 0.5}]
    set_adapters(model, {n: torch.tensor([row.get(n, 0.0) for row in rows]) for n in ("code", "law", "math")})
    mixed = model(ids)
    for index, weights in enumerate(rows):
        torch.testing.assert_close(mixed[index], alone(model, ids[index : index + 1], weights)[0], **CLOSE)
    assert torch.equal(mixed[1], alone(model, ids, {})[1]), "a row without specialists is the base, bit for bit"


@torch.no_grad()
def test_a_specialist_a_row_in_any_order(model: ZephyraFusion) -> None:
    ids, order = some_ids(9, batch=3), ["law", "code", "math"]
    set_adapters(model, {n: torch.eye(3)[order.index(n)] * (1 + order.index(n)) for n in ("code", "law", "math")})
    mixed = model(ids)
    for index, name in enumerate(order):
        torch.testing.assert_close(mixed[index], alone(model, ids[index : index + 1], {name: 1.0 + index})[0], **CLOSE)
    set_adapters(model, {"code": torch.tensor([1.0, 0.0])})
    with pytest.raises(ZephyraError, match="adapter weights are for 2 sequences, the batch has 3"):
        model(ids)


@torch.no_grad()
def test_what_is_kept_between_tokens_follows_the_weights(model: ZephyraFusion) -> None:
    ids = some_ids(9, batch=2)
    rows = {"code": torch.tensor([1.0, 0.0]), "law": torch.tensor([0.0, 1.0])}
    set_adapters(model, rows)
    before = model(ids)
    assert torch.equal(model(ids), before)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer._held is not None
    for _, other in adapted_layers(model, "law"):
        other.factors("law")[1].mul_(3)
    changed = model(ids)
    assert torch.equal(changed[0], before[0]) and not torch.allclose(changed[1], before[1])
    torch.testing.assert_close(changed[1], alone(model, ids[1:], {"law": 1.0})[0], **CLOSE)
    assert layer._held is None, "another mix keeps nothing of this one"


def test_rows_train_their_own_adapter_with_its_dropout() -> None:
    model = build(TINY)
    for name, dropout in (("a", 0.0), ("b", 0.9)):
        add_adapter(model, name, LoraConfig(r=2, lora_dropout=dropout))
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            for name in layer.lora_A:
                layer.factors(name)[1].normal_(std=0.3)
    ids = some_ids(9, batch=2)
    set_adapters(model, {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])})
    still = model(ids)
    model.train()
    once, twice = model(ids), model(ids)
    torch.testing.assert_close(once[0], still[0], **CLOSE)
    assert not torch.allclose(once[1], twice[1])
    once[0].sum().backward()
    layer = model.model.layers[0].self_attn.q_proj
    a, b = (layer.factors(name)[1].grad for name in "ab")
    assert a.abs().sum() > 0 and b.abs().sum() == 0


@torch.no_grad()
def test_one_batched_product_does_what_one_an_adapter_did(model: ZephyraFusion) -> None:
    """What the mixed batch costs, counted in operators: it must not grow with the number of adapters."""
    ids, names = some_ids(9, batch=3), ["code", "law", "math"]

    def operators(weights: dict[str, Tensor | float]) -> int:
        set_adapters(model, weights)
        model(ids)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(ids)
        return sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::bmm"))

    one = operators({name: 1.0 for name in names[:1]})
    mixed = operators({name: torch.eye(3)[index] for index, name in enumerate(names)})
    assert mixed <= one + 4  # `law` and `math` lie on two of the layers each, beside the others


@torch.no_grad()
def test_rows_in_one_cached_batch(model: ZephyraFusion) -> None:
    ids = some_ids(9, batch=3)
    set_adapters(model, {"code": torch.tensor([1.0, 0.0, 0.0]), "law": torch.tensor([0.0, 1.0, 0.0])})
    cache = model.new_cache()
    parts = [model(part, cache=cache) for part in ids.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), **CLOSE)


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


def test_weights_of_the_rows_that_are_none(model: ZephyraFusion) -> None:
    with pytest.raises(ZephyraError, match=r"weight of 'code' is \[1, 2\], must be \[batch\]; .*'law' is not finite"):
        set_adapters(model, {"code": torch.ones(1, 2), "law": torch.tensor([float("nan"), 1.0])})


def test_rows_cannot_reach_experts() -> None:
    model = build({**TINY, **EXPERTS})
    add_adapter(model, "a", LoraConfig(r=2))
    with pytest.raises(ZephyraError, match="is an expert: it sees tokens of all sequences"):
        set_adapters(model, {"a": torch.tensor([1.0, 0.0])})


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
