"""`zephyra models`: what is installed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zephyra_cli.commands.options import Json

models = typer.Typer(add_completion=False, rich_markup_mode=None, help="The models that are installed.")
Name = Annotated[str, typer.Argument(help="A model's name, or the path of a pack.")]


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, json: Json = False) -> None:
    """The models that are installed."""
    if context.invoked_subcommand is not None:
        return
    from zephyra_cli import store, ui
    from zephyra_cli.pack import Pack
    from zephyra_fusion.errors import ZephyraError

    rows: list[dict[str, Any]] = []
    for model in store.installed():
        try:
            pack = Pack.read(model.root)
        except ZephyraError as error:
            ui.note(f"warning: {error.message}")
            continue
        rows.append(
            {
                "name": model.name,
                "embedded": model.embedded,
                "path": str(model.root),
                "size_bytes": model.size,
                "parameters": pack.parameters,
                "domains": list(pack.adapters),
                "description": pack.description,
            }
        )
    if json:
        ui.write_json({"models": rows})
        return
    cells = [(r["name"], _size(r["size_bytes"]), _count(r["parameters"]), ", ".join(r["domains"]) or "-") for r in rows]
    ui.write(ui.table([("NAME", "SIZE", "PARAMETERS", "DOMAINS"), *cells], right=(1, 2)))


@models.command()
def show(name: Name, json: Json = False) -> None:
    """Show a model: domains, router, files, licences."""
    from zephyra_cli import store, ui

    pack = store.find(name)
    router = pack.router
    facts: dict[str, Any] = {
        "name": pack.name,
        "description": pack.description,
        "license": pack.license,
        "path": str(pack.root),
        "architecture": pack.architecture,
        "parameters": pack.parameters,
        "context_length": pack.context_length,
        "quantization": pack.quantization,
        "router": router and {"labels": list(router.labels), "threshold": router.threshold},
        "domains": {name: adapter.description for name, adapter in pack.adapters.items()},
        "files": {
            name: {"size_bytes": file.size, "license": file.license, "source": file.source, "sha256": file.sha256}
            for name, file in pack.files.items()
        },
    }
    if json:
        ui.write_json(facts)
        return
    plain = ("name", "description", "license", "path", "architecture", "parameters", "context_length", "quantization")
    rows = [(key.replace("_", " "), str(facts[key])) for key in plain if facts[key]]
    rows += [(f"domain {domain}", text) for domain, text in facts["domains"].items()]
    if router is not None:
        rows.append(("router", f"{len(router.labels)} labels, abstains below {100 * router.threshold:.0f} %"))
    rows += [(f"file {n}", f"{_size(file.size)}  {file.license}  {file.source}") for n, file in pack.files.items()]
    ui.write(ui.table(rows))


@models.command()
def remove(name: Annotated[str, typer.Argument(help="An installed model's name.")]) -> None:
    """Delete an installed model."""
    from zephyra_cli import store, ui

    removed = store.remove(name)
    ui.note(f"removed {removed.name} ({removed.root})")


@models.command()
def verify(name: Name, json: Json = False) -> None:
    """Check every file of a model against its hash."""
    from zephyra_cli import store, ui
    from zephyra_fusion.errors import ZephyraError

    pack = store.find(name)
    if not pack.files:
        raise ZephyraError(f"model '{pack.name}' has no manifest with hashes, there is nothing to verify against")
    wrong = store.verify(pack)
    if json:
        ui.write_json({"name": pack.name, "files": len(pack.files), "wrong": wrong})
    if wrong:
        raise ZephyraError(f"model '{pack.name}' is damaged: {'; '.join(wrong)}", hint="install or convert it again")
    if not json:
        ui.write(f"{pack.name}: {len(pack.files)} files, all as the manifest says\n")


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _count(number: int) -> str:
    return "-" if not number else f"{number / 1e6:.1f} M" if number < 1e9 else f"{number / 1e9:.1f} B"
