"""`zephyra doctor`: what this machine has and what zephyra would use, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zephyra_cli.commands.options import Json

if TYPE_CHECKING:
    from zephyra_cli.settings import Settings


def doctor(json: Json = False) -> None:
    """Show what is here, what would be used, and why."""
    from zephyra_cli import ui

    facts = {
        "zephyra": _program(),
        "machine": _machine(),
        "llama_cpp": _llama(),
        "torch": _torch(),
        "models": _models(),
    }
    if json:
        ui.write_json(facts)
        return
    rows = [
        (part, name.replace("_", " "), str(value)) for part, found in facts.items() for name, value in found.items()
    ]
    ui.write_table(rows)


def _program() -> dict[str, Any]:
    import platform

    from zephyra_cli import settings
    from zephyra_fusion import __version__

    config = settings.home() / "config.toml"
    chosen = settings.load({})
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "home": str(settings.home()),
        "config": f"{config}{'' if config.exists() else ' (none)'}",
        "default_model": chosen.model,
        "default_backend": _backend(chosen),
    }


def _backend(chosen: Settings) -> str:
    from zephyra_cli import store
    from zephyra_cli.backends.choice import choose
    from zephyra_fusion.errors import ZephyraError

    try:
        pack = store.find(chosen.model, offline=True)
        name, why = choose(pack.path(pack.base), chosen)
    except ZephyraError as error:
        return f"none: {error.message}"
    return f"{name}: {why}"


def _machine() -> dict[str, Any]:
    from zephyra_cli.devices import machine

    found = machine()
    known = [flag for flag in ("avx2", "avx512f", "amx_int8", "asimd") if flag in found.cpu_flags]
    return {
        "processor": found.cpu,
        "instructions": ", ".join(known) or "not told",
        "cores": f"{found.usable_cores} usable of {found.cores}",
        "memory": f"{found.usable_memory / 2**30:.1f} GiB usable of {found.memory / 2**30:.1f} GiB",
        **found.accelerators,
    }


def _llama() -> dict[str, Any]:
    from zephyra_cli.backends import self_test
    from zephyra_cli.backends.library import VERSION, library_path
    from zephyra_cli.progress import Waiting
    from zephyra_fusion.errors import ZephyraError

    installed = _version("llama-cpp-python")
    facts = {"version": f"{installed or 'not installed'} (zephyra was verified on {VERSION})"}
    try:
        facts["library"] = str(library_path())
        if self_test.at_risk():
            verdicts = {
                self_test.EXTRA: "computes right on this processor, AMX included",
                self_test.PLAIN: f"runs without extra buffers: {self_test.ADVICE}",
                self_test.BROKEN: "dies on this processor: install it anew",
            }
            with Waiting("testing llama.cpp on this processor"):
                facts["self_test"] = verdicts[self_test.verdict()]
        else:
            facts["self_test"] = "not needed: this processor has no AMX"
    except ZephyraError as error:
        facts["problem"] = f"{error.message}; {error.hint}" if error.hint else error.message
    return facts


def _torch() -> dict[str, Any]:
    installed = _version("torch")
    missing = "not installed: training and accelerators need it (pip install 'zephyra[torch]')"
    return {"version": installed or missing}


def _models() -> dict[str, Any]:
    from zephyra_cli import store

    return {model.name: f"{model.root}{' (embedded)' if model.embedded else ''}" for model in store.installed()}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
