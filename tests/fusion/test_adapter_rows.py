"""Document 001: every sequence of one batch under its own adapters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fusion.family import EXPERTS, TINY, build, some_ids
from tests.fusion.family import adapted as make_adapted
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import LoraConfig, adapted_layers, add_adapter, set_adapters
from zephyra_fusion.model import ZephyraFusion

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def model() -> ZephyraFusion:
    return make_adapted()


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


def test_weights_of_the_rows_that_are_none(model: ZephyraFusion) -> None:
    with pytest.raises(ZephyraError, match=r"weight of 'code' is \[1, 2\], must be \[batch\]; .*'law' is not finite"):
        set_adapters(model, {"code": torch.ones(1, 2), "law": torch.tensor([float("nan"), 1.0])})


def test_rows_cannot_reach_experts() -> None:
    model = build({**TINY, **EXPERTS})
    add_adapter(model, "a", LoraConfig(r=2))
    with pytest.raises(ZephyraError, match="is an expert: it sees tokens of all sequences"):
        set_adapters(model, {"a": torch.tensor([1.0, 0.0])})
