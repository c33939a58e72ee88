"""The llama backend's promises: blends, stopping, limits, sampling, encoding, and errors instead of dead processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion.errors import ZephyraError

PROMPT = [50, 60, 70, 80, 90, 100, 110, 120, 130, 140]


@pytest.fixture
def backend(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> Iterator[LlamaBackend]:
    opened = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    for name, path in tiny_adapters.items():
        opened.add_adapter(name, path)
    yield opened
    opened.close()


def test_refuses_bad_options(tiny_gguf: Path, tmp_path: Path) -> None:
    for context in 0, -5, 513:
        with pytest.raises(ZephyraError, match=f"context is {context}, this model allows 1 to 512"):
            LlamaBackend(tiny_gguf, context=context)
    with pytest.raises(ZephyraError, match="unknown cache type 'f8'"):
        LlamaBackend(tiny_gguf, kv_type="f8")
    for threads in 0, -3:
        with pytest.raises(ZephyraError, match=f"threads is {threads}"):
            LlamaBackend(tiny_gguf, threads=threads)
    for option in "n_batch", "live_mixes":
        with pytest.raises(ValueError, match=f"{option} is 0"):
            LlamaBackend(tiny_gguf, **{option: 0})
    with pytest.raises(ZephyraError, match="cannot read"):
        LlamaBackend(tmp_path / "missing.gguf")


def test_never_more_threads_than_cores(tiny_gguf: Path) -> None:
    from zephyra_cli.devices import usable_cores

    for wanted, given in (None, min(8, usable_cores())), (1, 1), (1000, usable_cores()):
        backend = LlamaBackend(tiny_gguf, threads=wanted)
        assert backend.threads == given
        backend.close()


@pytest.mark.parametrize("options", [{}, {"kv_type": "q8_0"}, {"flash_attention": True}, {"extra_buffers": True}])
def test_the_options_compute_the_same_model(options: dict[str, Any], backend: LlamaBackend, tiny_gguf: Path) -> None:
    other = LlamaBackend(tiny_gguf, **options)
    exact = np.array(backend.logits(PROMPT))
    assert np.abs(np.array(other.logits(PROMPT)) - exact).max() < 0.1 * exact.std()
    other.close()
