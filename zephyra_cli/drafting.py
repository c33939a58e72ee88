"""Which draft guesses ahead for a model: what `--draft` says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_fusion.draft import Draft, NgramDraft
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_cli.pack import Pack

AUTO, NONE, NGRAM = "auto", "none", NgramDraft.name
WORTHWHILE = 200_000_000
"""Weights from which on guessing ahead pays on a CPU: four tokens at once cost 3 times one at 100 million weights, 1.8
times at 470 million (docs/LOG.md)."""


def draft_for(choice: str, pack: Pack, backend: LlamaBackend) -> tuple[Draft | None, str]:
    """The draft, or none and the reason. ZephyraError: no such file, or a model that cannot draft for this one."""
    if choice == NONE:
        return None, "switched off"
    if choice == NGRAM:
        return NgramDraft(), ""
    if choice == AUTO:
        if backend.parameters < WORTHWHILE:
            least, own = WORTHWHILE / 1e6, backend.parameters / 1e6
            return None, f"gains nothing below {least:.0f} M weights, this model has {own:.1f} M"
        if pack.draft is None:
            return NgramDraft(), ""
        path = pack.path(pack.draft)
    else:
        path = Path(choice)
        if not path.is_file():
            raise ZephyraError(f"there is no draft model '{choice}'", hint="--draft takes auto, none, ngram or a .gguf")
    from zephyra_cli.backends.draft_model import ModelDraft

    return ModelDraft(path, backend), ""
