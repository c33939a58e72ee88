"""Every backend over the tiny model, exact: what the contract's tests run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zephyra_cli.backends.local import LocalBackend


@pytest.fixture(params=["llama", "torch"])
def open_backend(request: pytest.FixtureRequest) -> Iterator[Callable[..., LocalBackend]]:
    """open_backend(path, **options) -> a backend of the kind in turn, one thread, float32; closed afterwards."""
    opened: list[LocalBackend] = []

    def open_one(path: Path, **options: Any) -> LocalBackend:
        if request.param == "torch":
            pytest.importorskip("torch")
            from zephyra_cli.backends.fusion import FusionBackend

            backend: LocalBackend = FusionBackend(path, threads=1, device="cpu", **options)
        else:
            from zephyra_cli.backends.llama import LlamaBackend

            backend = LlamaBackend(path, threads=1, kv_type="f32", flash_attention=False, **options)
        opened.append(backend)
        return backend

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture
def backend(open_backend: Callable[..., LocalBackend], tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> LocalBackend:
    """The tiny model with its adapters a, b and c resident."""
    opened = open_backend(tiny_gguf)
    for name, path in tiny_adapters.items():
        opened.add_adapter(name, path)
    return opened
