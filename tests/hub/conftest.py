"""A local hub that the real client reaches, with a cache, a token and a home that are never the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import change_pack, home, tiny_pack, zephyra
from tests.hub.server import Hub, serve
from zephyra_cli import patience
from zephyra_cli.pull import Pulled, pull

__all__ = ["change_pack", "home", "tiny_pack", "zephyra"]  # fixtures of the command line's tests


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub without repositories; `HF_ENDPOINT` names it for this process and those that it starts.

    huggingface-hub reads its variables once, when it is imported: what runs inside this process is told by hand.
    """
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)
    with serve(Hub()) as running:
        places = {"HF_ENDPOINT": running.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        for name, value in places.items():
            monkeypatch.setenv(name, value)
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = f"{running.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield running


@pytest.fixture
def pulled() -> Callable[..., Pulled]:
    """function(reference, **options) -> Pulled: a pull inside this process; its notes are in `.notes`."""
    notes: list[str] = []

    def pulled(reference: str, **options: Any) -> Pulled:
        return pull(reference, progress=lambda done, total, text: None, note=notes.append, **options)

    pulled.notes = notes
    return pulled


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is lost between two tries."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
