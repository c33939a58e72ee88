"""`zephyra domains`: the specialists of a model."""

from __future__ import annotations

from zephyra_cli.commands.options import Json, Model


def domains(model: Model = None, json: Json = False) -> None:
    """List the specialists of a model."""
    from zephyra_cli import settings, store, ui

    pack = store.find(settings.load({"model": model}).model)
    routed = set(pack.router.labels) if pack.router else set()
    if json:
        found = {
            name: {"description": adapter.description, "rank": adapter.rank, "routed": name in routed}
            for name, adapter in pack.adapters.items()
        }
        ui.write_json({"model": pack.name, "domains": found})
        return
    rows = [(name, "yes" if name in routed else "no", adapter.description) for name, adapter in pack.adapters.items()]
    ui.write(ui.table([("DOMAIN", "ROUTED", "DESCRIPTION"), *rows]))
