"""Tiny ada as GGUF: its logits are those of the torch model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.router import read_router, write_router_gguf
from zephyra_converters.router_reference import router_logits
from zephyra_fusion.errors import ZephyraError

LABELS = ["shell", "sql", "code", "none"]


@pytest.fixture(scope="module")
def router_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from zephyra_fusion.router_model import RouterConfig, RouterModel, save_router

    config = RouterConfig(vocab_size=320, labels=tuple(LABELS), hidden_size=64, intermediate_size=96, threshold=0.5)
    torch.manual_seed(11)
    model = RouterModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn_like(parameter) * (0.2 if parameter.ndim < 2 else 1 / parameter.shape[-1] ** 0.5)
            )
    folder = tmp_path_factory.mktemp("router")
    save_router(model, config, folder)
    return folder


@pytest.mark.parametrize(("kind", "limit"), [("F32", 5e-3), ("F16", 2e-2), ("Q8_0", 0.3)])
def test_classifier_has_the_routers_logits(
    router_folder: Path, token_ids: list[list[int]], tmp_path: Path, kind: str, limit: float
) -> None:
    import torch

    from zephyra_fusion.router_model import load_router

    router, model = read_router(router_folder), load_router(router_folder)
    write_router_gguf(router, tmp_path / "router.gguf", kind)
    with LoadedGGUF(tmp_path / "router.gguf", 64, classifier=True) as gguf:
        for ids, reference in zip(token_ids, router_logits(router, token_ids), strict=True):
            with torch.no_grad():
                theirs = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0].numpy()
            assert np.abs(reference - theirs).max() <= 1e-4
            assert np.abs(gguf.class_logits(ids, len(LABELS)) - theirs).max() <= limit
            assert theirs.std() > 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_activation": "gelu"}, "only 'silu'"),
        ({"windows": 3}, "unknown key 'windows'"),
        ({"labels": ["a", "a"]}, "stands twice"),
        ({"num_hidden_layers": 4}, "lacks"),
        ({"num_hidden_layers": 2}, "does not know"),
        ({"intermediate_size": 32}, "must be"),
        ({"model_type": "modernbert"}, "is no router"),
    ],
)
def test_what_does_not_fit_is_refused(router_folder: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    values = json.loads((router_folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").symlink_to(router_folder / "model.safetensors")
    with pytest.raises(ZephyraError, match=said):
        read_router(tmp_path)
