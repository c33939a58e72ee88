"""A pack's base on the backend that the settings name, with the draft that guesses ahead for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.prompt_folder import PromptFolder
from zephyra_cli.pack import Pack
from zephyra_cli.settings import Settings
from zephyra_cli.text import visible
from zephyra_fusion.draft import Draft, NgramDraft
from zephyra_fusion.errors import ZephyraError

AUTO, NONE, NGRAM = "auto", "none", NgramDraft.name
WORTHWHILE = 200_000_000
"""Weights from which on guessing ahead pays on a CPU: four tokens at once cost 3 times one at 100 million weights, 1.8
times at 470 million (docs/LOG.md)."""


@dataclass(frozen=True)
class Loaded:
    """A backend, who guesses ahead (as `--draft` takes it), and why nobody does."""

    backend: LlamaBackend
    draft: str
    note: str


def load(pack: Pack, settings: Settings) -> Loaded:
    """ZephyraError: a file is missing, damaged, or nothing this backend can run."""
    if settings.device not in ("auto", "cpu"):
        raise ZephyraError(f"the llama backend computes on the CPU, device '{settings.device}' is not available to it")
    folder = None
    if settings.prompt_cache is not None:
        folder = PromptFolder(Path(settings.prompt_cache).expanduser(), settings.prompt_cache_size * 2**20, _note)
    backend = LlamaBackend(
        pack.path(pack.base),
        context=settings.context,
        threads=settings.threads,
        kv_type=settings.kv_type,
        kv_memory=settings.kv_memory and settings.kv_memory * 2**20,
        prompt_folder=folder,
    )
    draft, note = draft_for(settings.draft, pack, backend)
    if draft is None:
        return Loaded(backend, NONE, note)
    backend.speculate(draft)
    return Loaded(backend, draft.name, note)


def _note(text: str) -> None:
    print(f"note: {visible(text)}", file=sys.stderr)


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
