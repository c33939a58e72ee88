"""`zephyra domains`: the specialists of a model, and how they come, go and become one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zephyra_cli.commands.options import Json, Model, Offline, subcommand_follows

if TYPE_CHECKING:
    from zephyra_cli.pack import Pack

domains = typer.Typer(add_completion=False, rich_markup_mode=None, help="The specialists of a model.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A domain's name.")]
Rank = Annotated[int | None, typer.Option("--rank", metavar="R", help="Highest rank of the result.")]


@domains.callback(invoke_without_command=True)
def list_domains(context: typer.Context, model: Model = None, json: Json = False, offline: Offline = None) -> None:
    """List the specialists of a model."""
    if subcommand_follows(context):
        return
    from zephyra_cli import ui

    pack = _pack(model, offline)
    routed = pack.routed
    if json:
        found = {
            name: {"description": adapter.description, "rank": adapter.rank, "routed": name in routed}
            for name, adapter in pack.adapters.items()
        }
        ui.write_json({"model": pack.name, "domains": found})
        return
    rows = [(name, "yes" if name in routed else "no", adapter.description) for name, adapter in pack.adapters.items()]
    ui.write_table([("DOMAIN", "ROUTED", "DESCRIPTION"), *rows])


@domains.command()
def add(
    name: Name,
    adapter: Annotated[
        str, typer.Option("--adapter", metavar="PATH|hf:…", help="A PEFT folder, a .gguf, or one on the hub.")
    ],
    examples: Annotated[
        Path | None,
        typer.Option("--examples", metavar="FILE", help='Prompts of this domain, one a line, or {"prompt": …} a line.'),
    ] = None,
    others: Annotated[
        Path | None,
        typer.Option(
            "--others",
            metavar="FILE.jsonl",
            help='More prompts of the other domains, {"prompt": …, "domain": …} a line.',
        ),
    ] = None,
    model: Model = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What the domain is about.")] = "",
    license: Annotated[
        str, typer.Option(metavar="SPDX", help="The adapter's licence. [default: its own, else the model's]")
    ] = "",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the converted adapter with its source.")
    ] = True,
    json: Json = False,
    offline: Offline = None,
) -> None:
    """Let a specialist join a model: its adapter, and examples from which the router learns it.

    Thirty examples are enough to start, fifty are better. The router is not trained again: what it knew stays.
    """
    from zephyra_cli import specialists
    from zephyra_cli.examples import read_examples, read_prompts
    from zephyra_cli.progress import Progress
    from zephyra_fusion.router import NONE

    pack = _pack(model, offline)
    known = {*pack.adapters, NONE}
    labelled = read_examples(others) if others else []
    if unknown := sorted({example.domain for example in labelled} - known):
        raise typer.BadParameter(f"--others names domains that the model lacks: {', '.join(unknown)}")
    prompts = read_prompts(examples) if examples else None
    path, source, its_license = _adapter(adapter, pack, offline)
    newcomer = specialists.Newcomer(
        name=name,
        adapter=path,
        prompts=prompts,
        others=labelled,
        description=description,
        license=license or its_license,
        source=source,
        verify=verify,
    )
    with Progress() as progress:
        report = specialists.add(pack, newcomer, progress)
    _show(report, json, f"{name} joined {report['model']}")
    if not json:
        _show_router(report["router"], name, len(prompts or ()))


@domains.command()
def remove(name: Name, model: Model = None, json: Json = False) -> None:
    """Take a specialist out of a model; what was its own goes to the base."""
    from zephyra_cli import specialists

    report = specialists.remove(_pack(model), name)
    _show(report, json, f"{name} left {report['model']}")


@domains.command()
def merge(
    names: Annotated[list[str], typer.Argument(metavar="A B…", help="The domains to merge.")],
    into: Annotated[str, typer.Option("--into", metavar="NAME", help="The name of the result.")],
    method: Annotated[
        Literal["cat", "svd", "ties", "dare"],
        typer.Option(help="cat is the exact sum, its rank the sum of the ranks; svd the best of its rank."),
    ] = "cat",
    weights: Annotated[
        str | None, typer.Option(metavar="W,W…", help="One for each domain. [default: equal, 1 together]")
    ] = None,
    rank: Rank = None,
    keep: Annotated[float, typer.Option(metavar="SHARE", help="Entries that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(metavar="N", help="What dare drops.")] = 0,
    model: Model = None,
    json: Json = False,
) -> None:
    """Make several specialists one; the router sends to it what was theirs."""
    from zephyra_cli import specialists

    try:
        numbers = [float(part) for part in weights.split(",")] if weights else None
    except ValueError:
        raise typer.BadParameter(f"--weights is '{weights}', wanted are numbers like 0.5,0.5") from None
    report = specialists.merge(_pack(model), names, into, method, numbers, rank=rank, keep=keep, seed=seed)
    _show(report, json, f"{' and '.join(names)} are {into} now, by {method}, rank {report['rank']}")


@domains.command()
def prune(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME…]", help="Which. [default: all]")] = None,
    rank: Rank = None,
    energy: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Keep the directions with this share of the squared norm.")
    ] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Cut adapters to their strongest directions. Without --rank and --energy: show how much each one changes."""
    from zephyra_cli import specialists, ui

    if rank is not None and energy is not None:
        raise typer.BadParameter("--rank and --energy exclude each other")
    pack = _pack(model)
    chosen = names or list(pack.adapters)
    specialists.check_known(pack, chosen)
    if rank is None and energy is None:
        report = specialists.weigh(pack, chosen)
        if json:
            ui.write_json(report)
            return
        moved = report["importance"].items()
        rows = [(name, str(pack.adapters[name].rank), f"{100 * share:.2f} %") for name, share in moved]
        ui.write_table([("DOMAIN", "RANK", "MOVES ITS WEIGHTS BY"), *rows], right=(1, 2))
        return
    report = specialists.prune(pack, chosen, rank=rank, energy=energy)
    _show(report, json, "")
    if not json:
        rows = [
            (name, str(item["rank"]), f"{100 * item['lost']:.3f} %" if item["changed"] else "unchanged")
            for name, item in report["domains"].items()
        ]
        ui.write_table([("DOMAIN", "RANK", "SQUARED NORM LOST"), *rows], right=(1, 2))


def _pack(model: str | None, offline: bool | None = None) -> Pack:
    from zephyra_cli import settings, store

    chosen = settings.load({"model": model, "offline": offline})
    return store.find(chosen.model, offline=chosen.offline)


def _adapter(reference: str, pack: Pack, offline: bool | None) -> tuple[Path, str, str]:
    """Where the adapter lies, fetched if need be; where it is from, its licence if known. ZephyraError: nowhere."""
    from zephyra_cli import settings, ui
    from zephyra_cli.install import receipt_of
    from zephyra_cli.progress import Progress
    from zephyra_fusion.errors import ZephyraError

    if not reference.startswith("hf:"):
        path = Path(reference).expanduser()
        if not path.exists():
            raise ZephyraError(f"there is no adapter '{path}'")
        receipt = receipt_of(path if path.is_dir() else path.parent)
        return path, _origin(receipt) or reference, str(receipt.get("license", ""))
    settings.require_network(f"'{reference}'", offline)
    from zephyra_cli.pull import pull

    with Progress(bytes=True) as progress:
        pulled = pull(reference, base=str(pack.root), progress=progress, note=ui.note)
    if pulled.kind != "adapter":
        raise ZephyraError(f"'{reference}' is no adapter but a {pulled.kind}")
    files, receipt = list(pulled.root.glob("*.gguf")), receipt_of(pulled.root)
    return files[0] if files else pulled.root, _origin(receipt), str(receipt.get("license", ""))


def _origin(receipt: Mapping[str, Any]) -> str:
    """Where a pulled adapter is from; nothing for others."""
    source = receipt.get("source")
    return f"hf:{source.get('repository')}@{source.get('commit')}" if isinstance(source, dict) else ""


def _show(report: dict[str, Any], json: bool, said: str) -> None:
    from zephyra_cli import ui

    if report.get("copied"):
        ui.note(f"note: the model was copied to {report['path']}, which stands for it from now on")
    if json:
        ui.write_json(report)
    elif said:
        ui.write(f"{said}\n")


def _show_router(router: dict[str, Any] | None, name: str, count: int) -> None:
    """What the newcomer took from the others, counted on examples that it was not learned from."""
    from zephyra_cli import specialists, ui

    if router is None:
        ui.note(f"note: no examples, so the router does not know {name}: choose it with -d {name}")
        return
    if count < specialists.FEW:
        ui.note(f"warning: {count} examples are few, with {specialists.FEW} to 50 the router knows the domain better")
    rows = [("its own prompts found", f"{100 * router['accuracy']:.1f} % of {router['examples']}")]
    rows += [(f"taken from {domain}", f"{loss['taken']} of {loss['of']}") for domain, loss in router["taken"].items()]
    rows += [("taken from the other domains together", f"{100 * router['taken_from_domains']:.1f} %")]
    ui.write_table(rows)
    for item in router["taken_prompts"][:5]:
        ui.note(f"  {item['domain']}: {item['prompt'][:100]}")
    ui.note("note: each example was judged by what the others taught; the pack keeps their features, not their text")
