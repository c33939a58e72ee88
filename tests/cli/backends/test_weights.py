from __future__ import annotations

from pathlib import Path

import pytest

from zephyra_cli import store
from zephyra_cli.backends import weights
from zephyra_cli.backends.library import library
from zephyra_converters.gguf_header import read_header
from zephyra_fusion.errors import ZephyraError


def test_weights_are_repacked_where_that_pays(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = store.find("zephyra-nano", offline=True)
    small, plain = read_header(pack.path(pack.base)), read_header(tiny_gguf)
    assert weights.parameters(small) == pack.parameters
    assert not weights._pays(small), "a small model starts sooner without"
    monkeypatch.setattr(weights, "LARGE", 1)
    monkeypatch.setattr(weights, "at_risk", lambda: False)
    assert not weights._pays(small), "Q8_0 has no other form without AMX"
    monkeypatch.setattr(weights, "at_risk", lambda: True)
    assert weights._pays(small) and not weights._pays(plain)


def test_what_cannot_be_loaded_is_named(tmp_path: Path, tiny_gguf: Path) -> None:
    path = tmp_path / "gone.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    header = read_header(path)
    path.unlink()
    with pytest.raises(ZephyraError, match="cannot load .*gone.gguf: .*(No such file|failed to open)"):
        weights.load_weights(library(), header, None)
