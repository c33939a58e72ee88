"""`zephyra models`: what is installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zephyra_cli import complete
from zephyra_cli.commands.options import Json, subcommand_follows

if TYPE_CHECKING:
    from zephyra_cli.store import Installed

models = typer.Typer(add_completion=False, rich_markup_mode=None, help="The models that are installed.")
Name = Annotated[
    str,
    typer.Argument(help="The name of a model or an adapter, or the path of a pack.", autocompletion=complete.models),
]


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, json: Json = False) -> None:
    """The models that are installed."""
    if subcommand_follows(context):
        return
    from zephyra_cli import download, store, ui
    from zephyra_cli.text import visible

    found = (*store.installed(), *store.adapters())
    rows, cells = [], []
    for model in found:
        try:
            facts = _facts(model)
            cells.append(tuple(map(visible, _cells(facts))))
            rows.append(facts)
        except Exception as error:  # whatever a damaged model does, the others are listed
            ui.note(f"warning: {model.name}: {getattr(error, 'message', repr(error))[:500]}")
    used, unfinished = store.size_of(model.root for model in found), download.unfinished()
    shared = sum(model.size for model in found) - used
    if json:
        ui.write_json({"models": rows, "size_bytes": used, "shared_bytes": shared, "unfinished_bytes": unfinished})
        return
    head = ("NAME", "KIND", "SIZE", "TYPE", "CONTEXT", "PARAMETERS", "LICENSE", "DOMAINS")
    ui.write_table([head, *cells], right=(2, 4, 5))
    ui.note(f"{_size(used)} on disk" + (f", {_size(shared)} of it shared by several" if shared else ""))
    if unfinished:
        ui.note(f"{_size(unfinished)} of unfinished downloads: pull again to go on, zephyra models clean drops them")


def _facts(model: Installed) -> dict[str, Any]:
    from zephyra_cli import bare
    from zephyra_cli.install import receipt_of
    from zephyra_cli.pack import Pack

    facts: dict[str, Any] = {
        "name": model.name,
        "kind": model.kind,
        "embedded": model.embedded,
        "path": str(model.root),
        "size_bytes": model.size,
    }
    record = receipt_of(model.root)
    if model.kind != "pack":
        said = bare.facts(model.root) if model.kind == "checkpoint" else {}
        return facts | said | {"license": record.get("license", ""), "source": record.get("source")}
    pack = Pack.read(model.root)
    return facts | {
        "parameters": pack.parameters,
        "quantization": pack.quantization,
        "context_length": pack.context_length,
        "domains": list(pack.adapters),
        "license": pack.license,
        "description": pack.description,
        "source": record.get("source"),
    }


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        row["kind"],
        _size(row["size_bytes"]),
        row.get("quantization") or "-",
        str(row.get("context_length") or "-"),
        _count(row.get("parameters", 0)),
        row["license"] or "-",
        ", ".join(row.get("domains", ())) or "-",
    )


@models.command()
def show(name: Name, json: Json = False) -> None:
    """Show a model: domains, router, files, licences, where it came from."""
    from zephyra_cli import bare, store, ui

    if (other := _no_pack(name)) is not None:
        _show_files(other, json)
        return
    pack = store.find(name, offline=True)
    if not pack.files and not pack.architecture:
        pack = replace(pack, **bare.facts(pack.root / pack.base))
    router, source = pack.router, pack.source
    facts: dict[str, Any] = {
        "name": pack.name,
        "description": pack.description,
        "license": pack.license,
        "path": str(pack.root),
        "architecture": pack.architecture,
        "parameters": pack.parameters,
        "context_length": pack.context_length,
        "quantization": pack.quantization,
        "source": source and {"repository": source.repository, "commit": source.commit, "reference": source.reference},
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
    rows += [("source", f"{source.reference}, commit {source.commit}")] if source else []
    rows += [(f"domain {domain}", text) for domain, text in facts["domains"].items()]
    if router is not None:
        rows.append(("router", f"{len(router.labels)} labels, abstains below {100 * router.threshold:.0f} %"))
    rows += [(f"file {n}", f"{_size(file.size)}  {file.license}  {file.source}") for n, file in pack.files.items()]
    ui.write_table(rows)


def _show_files(model: Installed, json: bool) -> None:
    from zephyra_cli import ui
    from zephyra_cli.install import receipt_of

    record, facts = receipt_of(model.root), _facts(model)
    if json:
        ui.write_json(facts | {"files": record.get("files", {})})
        return
    source = record.get("source", {})
    rows = [
        ("name", model.name),
        ("kind", model.kind),
        ("path", str(model.root)),
        ("license", record.get("license", "")),
    ]
    plain = ("architecture", "parameters", "context_length", "quantization")
    rows += [(key.replace("_", " "), str(facts[key])) for key in plain if facts.get(key)]
    rows.append(("source", f"{source.get('reference')}, commit {source.get('commit')}"))
    rows += [(f"file {name}", _size(path["size"])) for name, path in record.get("files", {}).items()]
    ui.write_table(rows)


@models.command()
def remove(
    name: Annotated[
        str, typer.Argument(help="The name of an installed model or adapter.", autocompletion=complete.models)
    ],
) -> None:
    """Delete an installed model; files that another one shares stay."""
    from zephyra_cli import store, ui

    removed, freed = store.remove(name)
    ui.note(f"removed {removed.kind} {removed.name} ({removed.root}), {_size(freed)} freed")


@models.command()
def verify(name: Name, json: Json = False) -> None:
    """Check every file of a model against its hash."""
    from zephyra_cli import store, ui
    from zephyra_cli.install import receipt_of
    from zephyra_cli.progress import Waiting
    from zephyra_fusion.errors import ZephyraError

    if (other := _no_pack(name)) is not None:
        records = receipt_of(other.root).get("files", {})
        files = {file: (record["size"], record["sha256"]) for file, record in records.items()}
        called, source = other.name, receipt_of(other.root).get("source")
        with Waiting(f"reading {called}"):
            wrong = store.changed(other.root, files)
    else:
        pack = store.find(name, offline=True)
        files, called, source = dict.fromkeys(pack.files, (0, "")), pack.name, pack.source
        if not pack.files:
            raise ZephyraError(f"model '{pack.name}' has no manifest with hashes, there is nothing to verify against")
        with Waiting(f"reading {called}"):
            wrong = store.verify(pack)
    if json:
        ui.write_json({"name": called, "files": len(files), "wrong": wrong})
    if wrong:
        hint = "pull it again: what is whole is not fetched anew" if source else "install or convert it again"
        raise ZephyraError(f"'{called}' is damaged: {'; '.join(wrong)}", hint=hint)
    if not json:
        ui.write(f"{called}: {len(files)} files, all as the manifest says\n")


@models.command()
def clean() -> None:
    """Drop downloads that were broken off."""
    from zephyra_cli import download, ui

    ui.note(f"{_size(download.clean())} freed")


def _no_pack(name: str) -> Installed | None:
    """An installed checkpoint or adapter of that name."""
    from zephyra_cli import store

    known = {model.name: model for model in (*store.adapters(), *store.installed())}
    return known[name] if name in known and known[name].kind != "pack" else None


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _count(number: int) -> str:
    return "-" if not number else f"{number / 1e6:.1f} M" if number < 1e9 else f"{number / 1e9:.1f} B"
