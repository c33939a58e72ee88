"""A short form of benchmarks/exactness.py: a long-used engine says what a cold one says, whatever happened before."""

from __future__ import annotations

import platform
from array import array
from pathlib import Path

import exactness
import pytest

from zephyra_cli import store
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion.types import SamplingParams


def test_every_turn_is_a_cold_runs(
    tiny_gguf: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactness, "FIRST_ID", 6)
    found = exactness.run(tiny_gguf, tiny_adapters, 30, seed=1, kv_type="f32", flash_attention=False)
    assert found.different == []
    assert found.turns == 30 * exactness.TURNS
    assert found.cached > 1000 and found.accepted > 20, "the test is about reuse and drafts, and there were none"


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere two rows have a kernel of their own"
)
@pytest.mark.parametrize(("flash", "most"), [(False, 120), (True, 60)])
def test_quantized_weights_give_the_same_bits_wherever_a_prompt_is_cut(flash: bool, most: int) -> None:
    """As docs/exactness.md says: but for flash attention, which has another kernel from 64 tokens on."""
    pack = store.find("zephyra-nano", offline=True)
    backend = LlamaBackend(pack.path(pack.base), threads=1, flash_attention=flash)
    after = array("f")
    for size in (20, most):
        prompt, last = [10 + 31 * i % 8000 for i in range(size)], SamplingParams(max_tokens=1)
        for cut in (size, size - 1, size - 7, size // 2):
            backend.forget()
            if cut < size:
                list(backend.generate(prompt[:cut], last))
            list(backend.generate(prompt, last))
            assert backend.usage.cached_tokens == cut % size
            logits = backend._context(size).logits(-1, backend.vocab_size)
            if cut == size:
                after = array("f", bytes(logits))
            assert array("f", bytes(logits)) == after
    backend.close()
