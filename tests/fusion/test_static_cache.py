"""The static cache: the same numbers through fixed shapes, in one graph that no token changes."""

from __future__ import annotations

import pytest
import torch

from tests.fusion.family import FAMILY, TINY, build, some_ids
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.generate import decode_one_token, generate, prefill
from zephyra_fusion.lora import LoraConfig, adapted_layers, add_adapter, fuse_adapters, remove_adapter, set_adapters
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.static_step import static_cache
from zephyra_fusion.types import SamplingParams

PROMPT = [5, 9, 2, 40, 33, 7]
HELD = [name for name in FAMILY if "frequenc" not in name]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def with_adapters(model: ZephyraFusion) -> ZephyraFusion:
    for name in ("a", "b"):
        add_adapter(model, name, LoraConfig(r=2, lora_alpha=4))
    torch.manual_seed(3)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            for name in layer.lora_A:
                layer.factors(name)[1].normal_(std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", HELD)
def test_static_is_the_full_pass(name: str) -> None:
    model, ids = build(FAMILY[name]), some_ids(14, batch=1)
    full, cache = model(ids), static_cache(model, 20)
    parts = [model(part, cache=cache) for part in ids.split([5, 1, 3, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, **CLOSE)
    cache.trim(6)
    torch.testing.assert_close(model(ids[:, 6:9], cache=cache), full[:, 6:9], **CLOSE)
    torch.testing.assert_close(decode_one_token(model, int(ids[0, 9]), cache), full[0, 9], **CLOSE)
    assert cache.offset == 10


@pytest.mark.parametrize("name", ["attention sdpa", "window of 5", "feed_forward moe"])
def test_the_answer_is_that_of_the_growing_cache(name: str) -> None:
    model = with_adapters(build(FAMILY[name]))
    cache = static_cache(model, 40)
    for weights in ({}, {"a": 1.0}, {"a": 0.5, "b": 0.7}, {}):
        set_adapters(model, weights)
        params = SamplingParams(max_tokens=12, temperature=0.9, seed=2)
        expected = [token.id for token in generate(model, PROMPT, params)]
        cache.trim(0)
        assert [token.id for token in generate(model, PROMPT, params, cache=cache)] == expected


@torch.no_grad()
@pytest.mark.parametrize("name", ["attention sdpa", "window pattern"])
def test_one_graph_takes_every_token(name: str) -> None:
    """What CUDA graphs need: captured whole, and never again for another token or position."""
    model = with_adapters(build({**FAMILY[name], "qk_norm": True}))
    set_adapters(model, {"a": 0.5})
    eager, traced = static_cache(model, 20), static_cache(model, 20)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = traced.step
    step.run = torch.compile(step.forward, backend="aot_eager", fullgraph=True, dynamic=False)
    for cache in (eager, traced):
        prefill(model, PROMPT, cache)
    for token in (3, 1, 4, 1, 5):
        torch.testing.assert_close(
            decode_one_token(model, token, traced), decode_one_token(model, token, eager), **CLOSE
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_state_that_a_graph_has_burned_in_changes_with_the_adapters() -> None:
    model = build(TINY)
    step = static_cache(model).step
    seen = [step.state()]
    model = with_adapters(model)
    for weights in ({"a": 1.0}, {"b": 1.0}, {"b": 0.5}, {}):
        set_adapters(model, weights)
        seen.append(step.state())
    set_adapters(model, {})
    assert step.state() == seen[-1], "the same mix again is no change"
    fuse_adapters(model, ["a", "b"])
    seen.append(step.state())
    set_adapters(model, {})
    seen.append(step.state())
    for weights in ({"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}, {}):
        set_adapters(model, weights)
        seen.append(step.state())
    remove_adapter(model, "b")
    seen.append(step.state())
    assert len(set(seen)) == len(seen)


def test_what_it_cannot_hold_is_refused() -> None:
    with pytest.raises(ZephyraError, match="capacity is 257, must be from 1 to the context of 256"):
        static_cache(build(TINY), 257)
    with pytest.raises(ZephyraError, match="attention 'frequency' counts positions from the last key"):
        static_cache(build(FAMILY["attention frequency"]))
    with pytest.raises(ZephyraError, match="mask_padding is on"):
        static_cache(build({**TINY, "pad_token_id": 0, "mask_padding": True}))
    with pytest.raises(ZephyraError, match="num_experts is 4: which experts run depends on the token"):
        static_cache(build(FAMILY["feed_forward moe"]), compile=True)
    model, cache = build(TINY), static_cache(build(TINY), 8)
    with pytest.raises(ZephyraError, match="takes no attention_mask"):
        model(some_ids(3, batch=1), attention_mask=torch.ones(1, 3), cache=cache)
    with pytest.raises(ZephyraError, match="0 cached and 9 new tokens exceed the context of 8"):
        model(some_ids(9, batch=1), cache=cache)
    with pytest.raises(ZephyraError, match="cannot rewind the cache to 1, it holds 0"):
        cache.trim(1)
