"""A short form of benchmarks/exactness.py: a long-used engine says what a cold one says, whatever happened before."""

from __future__ import annotations

from pathlib import Path

import exactness
import pytest


def test_every_turn_is_a_cold_runs(
    tiny_gguf: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactness, "FIRST_ID", 6)
    found = exactness.run(tiny_gguf, tiny_adapters, 30, seed=1, kv_type="f32", flash_attention=False)
    assert found.different == []
    assert found.turns == 30 * exactness.TURNS
    assert found.cached > 1000 and found.accepted > 20, "the test is about reuse and drafts, and there were none"
