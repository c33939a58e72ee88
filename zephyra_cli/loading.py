"""A pack's base on the backend that the settings name, with the draft that guesses ahead for it."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_cli import ahead
from zephyra_cli.backends.choice import TORCH, choose
from zephyra_cli.pack import Pack
from zephyra_cli.settings import Settings
from zephyra_cli.text import visible
from zephyra_cli.vouched import vouched
from zephyra_fusion.draft import Draft, NgramDraft
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.values import dataclass

if TYPE_CHECKING:
    from zephyra_cli.backends.fusion import FusionBackend
    from zephyra_cli.backends.llama import LlamaBackend

    AnyBackend = LlamaBackend | FusionBackend
    from zephyra_cli.backends.isolated import IsolatedBackend, IsolatedClassifier

AUTO, NONE, NGRAM = "auto", "none", NgramDraft.name
WORTHWHILE = 200_000_000
"""Weights from which on guessing ahead pays on a CPU: four tokens at once cost 3 times one at 100 million weights, 1.8
times at 470 million (docs/LOG.md)."""


@dataclass(frozen=True)
class Loaded:
    """A backend, who guesses ahead (as `--draft` takes it), and why nobody does."""

    backend: AnyBackend | IsolatedBackend
    draft: str
    note: str
    classifier: IsolatedClassifier | None = None
    """The router, where it must run beside the backend."""
    milliseconds: float = 0.0
    """That loading took."""


def load(pack: Pack, settings: Settings) -> Loaded:
    """ZephyraError: a file is missing, damaged, or nothing this backend can run."""
    start = time.perf_counter()
    loaded = _load(pack, settings)
    return replace(loaded, milliseconds=1000.0 * (time.perf_counter() - start))


def _load(pack: Pack, settings: Settings) -> Loaded:
    name, _ = choose(pack.path(pack.base), settings)
    if isolated(pack, settings, name):
        return _apart(pack, settings)
    backend: AnyBackend = _torch(pack, settings) if name == TORCH else _llama(pack, settings)
    draft, note = draft_for(settings.draft, pack, backend)
    if draft is None:
        return Loaded(backend, NONE, note)
    backend.speculate(draft)
    return Loaded(backend, draft.name, note)


def isolated(pack: Pack, settings: Settings, backend: str) -> bool:
    """As the user says; else what C++ is to read and nobody vouches for: a pack by its path, a .gguf, a draft."""
    if settings.isolate is not None:
        return settings.isolate
    return backend != TORCH and not (settings.draft in (AUTO, NGRAM, NONE) and vouched(pack))


def _apart(pack: Pack, settings: Settings) -> Loaded:
    """In a process of its own, which calls `load` again."""
    from zephyra_cli.backends.isolated import IsolatedBackend

    ahead.fetch()
    files = {"root": str(pack.root.absolute()), "name": pack.name, "base": pack.base, "draft": pack.draft}
    backend = IsolatedBackend(pack.path(pack.base), {"pack": files, "settings": asdict(settings)})
    classifier = None
    if pack.router is not None:
        classifier = backend.classifier(pack.path(pack.router_file).absolute(), pack.router)
    return Loaded(backend, backend.draft, backend.draft_note, classifier)


def _llama(pack: Pack, settings: Settings) -> LlamaBackend:
    """The weights first: the backend's own modules, which take as long, are imported meanwhile."""
    from zephyra_cli.backends.library import library
    from zephyra_cli.backends.limits import check_limits
    from zephyra_cli.backends.weights import load_weights
    from zephyra_converters.gguf_check import check_model

    folder = None
    if settings.prompt_cache is not None:
        from zephyra_cli.backends.prompt_folder import PromptFolder

        folder = PromptFolder(Path(settings.prompt_cache).expanduser(), settings.prompt_cache_size * 2**20, _note)
    path = pack.path(pack.base)
    header, lib = check_model(path), library()
    check_limits(header.metadata[f"{header.architecture}.context_length"], settings.context, settings.threads)
    ahead.later("zephyra_cli.backends.llama")
    model = load_weights(lib, header, None)
    try:
        from zephyra_cli.backends.llama import LlamaBackend

        return LlamaBackend(
            path,
            context=settings.context,
            threads=settings.threads,
            kv_type=settings.kv_type,
            kv_memory=settings.kv_memory and settings.kv_memory * 2**20,
            prompt_folder=folder,
            loaded=(header, model),
        )
    except BaseException:
        lib.llama_model_free(model)
        raise


def _torch(pack: Pack, settings: Settings) -> FusionBackend:
    from zephyra_cli.backends.fusion import FusionBackend

    given = {
        "kv-type": settings.kv_type != "f16",
        "kv-memory": settings.kv_memory,
        "prompt-cache": settings.prompt_cache,
    }
    if names := ", ".join(f"--{name}" for name, value in given.items() if value):
        raise ZephyraError(f"the torch backend has no {names}", hint="--backend llama has")
    path = pack.path(pack.base)
    return FusionBackend(path, context=settings.context, threads=settings.threads, device=settings.device)


def _note(text: str) -> None:
    print(f"note: {visible(text)}", file=sys.stderr)


def draft_for(choice: str, pack: Pack, backend: AnyBackend) -> tuple[Draft | None, str]:
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
