"""What every part of the family promises: a new name in a registry is tested by existing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.fusion.family import CONTEXT, FAMILY, TINY, VOCABULARY, build, some_ids
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.moe import load_balancing_loss
from zephyra_fusion.lora import LoraConfig, adapted_layers, add_adapter, merge_adapters, set_adapters
from zephyra_fusion.model import ZephyraFusion

LENGTH = 14
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", params=FAMILY.values(), ids=list(FAMILY))
def model(request: pytest.FixtureRequest) -> ZephyraFusion:
    return build(request.param)


def with_adapters(model: ZephyraFusion) -> ZephyraFusion:
    """A copy with adapters `a` and `b` on every linear layer of its blocks, trained (their B is not zero)."""
    model = copy.deepcopy(model)
    targets = {n.rpartition(".")[2] for n, m in model.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, rank in (("a", 2), ("b", 3)):
        add_adapter(model, name, LoraConfig(r=rank, lora_alpha=4, target_modules=tuple(sorted(targets - {"gate"}))))
    return model


def trained(model: ZephyraFusion) -> ZephyraFusion:
    torch.manual_seed(3)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            for name in layer.lora_A:
                layer.factors(name)[1].normal_(std=0.2)
    return model


@torch.no_grad()
def test_causal(model: ZephyraFusion) -> None:
    ids = some_ids(LENGTH)
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 7) % VOCABULARY
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8], **CLOSE)
    assert (before[:, 8:] - after[:, 8:]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * LENGTH, [3, 3, 3, 3, 2], [9, 1, 1, 3]], ids=["ones", "threes", "prompt"])
def test_cached_is_the_full_pass(model: ZephyraFusion, chunks: list[int]) -> None:
    ids = some_ids(LENGTH)
    cache = model.new_cache()
    parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), **CLOSE)


@torch.no_grad()
def test_trim_rewinds(model: ZephyraFusion) -> None:
    ids = some_ids(LENGTH)
    full, cache = model(ids), model.new_cache()
    model(ids[:, :12], cache=cache)
    cache.trim(6)
    assert cache.offset == 6
    torch.testing.assert_close(model(ids[:, 6:], cache=cache), full[:, 6:], **CLOSE)
    cache.trim(0)
    torch.testing.assert_close(model(ids, cache=cache), full, **CLOSE)
    with pytest.raises(ZephyraError, match="cannot rewind the cache to 15, it holds 14"):
        cache.trim(15)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_leak(model: ZephyraFusion, side: str) -> None:
    ids, padding = some_ids(9), some_ids(4, seed=5)
    keep = torch.tensor([False] * 4 + [True] * 9)
    rows, mask = torch.cat((padding, ids), dim=1), keep.expand(2, -1)
    positions = torch.tensor([0] * 4 + list(range(9))).expand(2, -1)
    if side == "right":
        rows, mask, positions = torch.cat((ids, padding), dim=1), keep.flip(0).expand(2, -1), None
    padded = model(rows, positions, attention_mask=mask)
    torch.testing.assert_close(padded[mask].view(2, 9, -1), model(ids), **CLOSE)
    assert torch.isfinite(padded).all()


def test_gradients_reach_every_parameter(model: ZephyraFusion) -> None:
    model = copy.deepcopy(model).train()
    ids = some_ids(20, batch=8)
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten())
    if model.config.num_experts:
        loss = loss + load_balancing_loss(model)
    loss.backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A window of 1 is a softmax over one score, whose gradient is zero by nature.
    if model.config.sliding_window == 1:
        untouched = [n for n in untouched if "q_proj" not in n and "k_proj" not in n]
    assert untouched == []


def test_checkpointing_changes_no_gradient(model: ZephyraFusion) -> None:
    model = copy.deepcopy(model).train()
    ids = some_ids(LENGTH)
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(ids).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@torch.no_grad()
def test_bfloat16_is_close(model: ZephyraFusion) -> None:
    ids = some_ids(LENGTH)
    wide = model(ids)
    narrow = copy.deepcopy(model).to(torch.bfloat16)(ids).float()
    assert torch.isfinite(narrow).all()
    # Eight bits of mantissa; an expert or two may be chosen otherwise.
    error = (narrow - wide).norm() / wide.norm()
    assert error < (0.25 if model.config.num_experts else 0.08)


def test_config_round_trip(model: ZephyraFusion) -> None:
    values = model.config.to_dict()
    assert FusionConfig.from_dict(values) == model.config


@torch.no_grad()
def test_fresh_adapter_changes_no_bit(model: ZephyraFusion) -> None:
    adapted, ids = with_adapters(model), some_ids(LENGTH)
    base = model(ids)
    assert torch.equal(adapted(ids), base)
    set_adapters(adapted, {"a": 1.0, "b": 0.5})
    assert torch.equal(adapted(ids), base)


@torch.no_grad()
def test_zero_weight_is_the_base_and_fused_is_unfused(model: ZephyraFusion) -> None:
    adapted, ids = trained(with_adapters(model)), some_ids(LENGTH)
    base = model(ids)
    set_adapters(adapted, {"a": 0.0, "b": 0.0})
    assert torch.equal(adapted(ids), base)
    set_adapters(adapted, {"a": 0.7, "b": 0.4})
    blended = adapted(ids)
    assert (blended - base).abs().max() > 1e-2
    set_adapters(adapted, {})
    assert torch.equal(adapted(ids), base)
    merge_adapters(adapted, {"a": 0.7, "b": 0.4})
    torch.testing.assert_close(adapted(ids), blended, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_cached_is_the_full_pass_with_an_adapter_on(model: ZephyraFusion) -> None:
    adapted, ids = trained(with_adapters(model)), some_ids(LENGTH)
    set_adapters(adapted, {"b": 0.8})
    cache = adapted.new_cache()
    parts = [adapted(part, cache=cache) for part in ids.split([5, 1, 1, 3, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), adapted(ids), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in FAMILY if not n.startswith(("hidden_act", "rope "))])
def test_traced_for_compilation_gives_the_same_numbers(name: str) -> None:
    model, ids = build(FAMILY[name]), some_ids(LENGTH)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(ids), model(ids), **CLOSE)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["attention sdpa", "window pattern"])
def test_compiled_gives_the_same_numbers(name: str) -> None:
    model, ids = build({**FAMILY[name], "qk_norm": True}), some_ids(LENGTH)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model)(ids), model(ids), **CLOSE)


@pytest.mark.parametrize("key", ["attention", "position", "norm", "feed_forward", "hidden_act"])
def test_unknown_names_raise_and_list_the_known_ones(key: str) -> None:
    with pytest.raises(ZephyraError, match="'nonsense'") as caught:
        ZephyraFusion(FusionConfig(**{**TINY, key: "nonsense"}))
    known = [name.removeprefix(key + " ") for name in FAMILY if name.startswith(key + " ")]
    assert known and all(name in str(caught.value.hint) for name in known)


def test_unknown_rope_scaling_raises_and_lists_the_known_ones() -> None:
    values: dict[str, Any] = {**TINY, "rope_scaling": {"rope_type": "nonsense"}}
    with pytest.raises(ZephyraError, match="unknown rope scaling 'nonsense'") as caught:
        ZephyraFusion(FusionConfig(**values))
    assert "yarn" in str(caught.value.hint)


def test_longer_than_the_context_is_refused(model: ZephyraFusion) -> None:
    with pytest.raises(ZephyraError, match=f"{CONTEXT + 1} tokens exceed the context of {CONTEXT}"):
        model(some_ids(CONTEXT + 1, batch=1))
    cache = model.new_cache()
    model(some_ids(10, batch=1), cache=cache)
    with pytest.raises(ZephyraError, match=f"10 cached and {CONTEXT} new tokens exceed the context of {CONTEXT}"):
        model(some_ids(CONTEXT, batch=1), cache=cache)
