"""What the Tab key offers where a name is due. Whatever is wrong, it offers nothing and says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from zephyra_fusion.errors import ZephyraError


def setting_names(incomplete: str) -> list[str]:
    from zephyra_cli.settings import KINDS

    return _fitting(lambda: KINDS, incomplete)


def setting_values(ctx: typer.Context, incomplete: str) -> list[str]:
    """Those that the setting named before can have, where they can be counted."""
    from zephyra_cli.settings import BACKENDS, DEVICES, KINDS

    name = ctx.params.get("name") or ""
    if name == "model":
        return models(incomplete)
    if name == "domain":
        return domains(ctx, incomplete)
    known: dict[str, Iterable[str]] = {"backend": BACKENDS, "device": DEVICES}
    return _fitting(lambda: known.get(name, ("true", "false") if KINDS.get(name) is bool else ()), incomplete)


def profiles(incomplete: str) -> list[str]:
    from zephyra_cli.settings import PROFILE, config_file, read_file

    return _fitting(lambda: read_file(config_file()).get(PROFILE, {}), incomplete)


def template_names(incomplete: str) -> list[str]:
    from zephyra_cli import prompt_template

    return _fitting(lambda: (path.stem for path in prompt_template.files()), incomplete)


def models(incomplete: str) -> list[str]:
    from zephyra_cli import store

    return _fitting(lambda: (model.name for model in store.installed()), incomplete)


def domains(ctx: typer.Context, incomplete: str) -> list[str]:
    """Those of the model that the line names so far, or of the usual one; in a blend, of its last part."""
    from zephyra_cli import settings, store

    def names() -> Iterable[str]:
        adapters = store.find(settings.load({"model": ctx.params.get("model")}).model, offline=True).adapters
        return [*adapters] if begun else ["auto", "none", *adapters]

    begun, comma, last = incomplete.rpartition(",")
    return [begun + comma + name for name in _fitting(names, last)]


def _fitting(names: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    """Names that begin so. Those that a shell could read as more than a name are left out: a pack chose them."""
    try:
        found = list(names())
    except (ZephyraError, OSError):
        return []
    plain = (name for name in found if name.replace("-", "").replace("_", "").replace(".", "").isalnum())
    return [name for name in plain if name.startswith(incomplete)]
