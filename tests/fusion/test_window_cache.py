"""The rotating cache of sliding windows: constant memory, exact past the window, honest about rewinding."""

from __future__ import annotations

import pytest
import torch

from tests.fusion.family import FAMILY, TINY, build, some_ids
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.cache import SPARE, KVCache, WindowCache
from zephyra_fusion.model import ZephyraFusion


def held(cache: KVCache) -> int:
    return sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values) if x is not None)


@pytest.fixture(scope="module")
def model() -> ZephyraFusion:
    return build({**TINY, "sliding_window": 5, "max_position_embeddings": 1024})


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 400, [7] * 58, [300, *[1] * 100], [2, 200, 3, 150, 45]])
def test_far_past_the_window_cached_is_the_full_pass(model: ZephyraFusion, chunks: list[int]) -> None:
    ids = some_ids(sum(chunks), batch=1)
    cache = model.new_cache()
    parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_memory_is_constant_past_the_window(model: ZephyraFusion) -> None:
    cache, ids = model.new_cache(), some_ids(600, batch=1)
    sizes = set()
    for part in ids.split(3, dim=1):
        model(part, cache=cache)
        sizes.add(held(cache))
    assert len(sizes) == 1
    growing = build(TINY).new_cache()
    assert [type(layer) for layer in growing.layers] != [type(layer) for layer in cache.layers]


@torch.no_grad()
def test_trim_goes_back_at_least_the_spare(model: ZephyraFusion) -> None:
    cache, ids = model.new_cache(), some_ids(500, batch=1)
    full = model(ids)
    for part in ids.split(1, dim=1):
        model(part, cache=cache)
        assert cache.offset - cache.earliest >= min(SPARE, cache.offset)
    earliest = cache.earliest
    assert 0 < earliest <= 500 - SPARE
    with pytest.raises(ZephyraError, match=f"to {earliest - 1}, a sliding window forgot what lies before {earliest}"):
        cache.trim(earliest - 1)
    assert cache.offset == 500, "a refused rewind changes nothing"
    cache.trim(earliest)
    torch.testing.assert_close(model(ids[:, earliest:], cache=cache), full[:, earliest:], atol=5e-5, rtol=1e-4)
    cache.trim(0)
    torch.testing.assert_close(model(ids[:, :9], cache=cache), full[:, :9], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_pattern_of_windows_rewinds_as_far_as_its_narrowest_memory() -> None:
    model = build({**FAMILY["window pattern"], "max_position_embeddings": 1024})
    cache, ids = model.new_cache(), some_ids(300, batch=1)
    model(ids, cache=cache)
    assert isinstance(cache.layers[0], WindowCache) and not isinstance(cache.layers[2], WindowCache)
    assert cache.earliest == cache.layers[0].earliest > cache.layers[2].earliest == 0
    cache.trim(280)
    torch.testing.assert_close(model(ids[:, 280:], cache=cache), model(ids)[:, 280:], atol=5e-5, rtol=1e-4)
