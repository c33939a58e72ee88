"""`zephyra pull`: models from the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zephyra_cli.commands.options import Json, Offline

if TYPE_CHECKING:
    from zephyra_cli.pull import Pulled


def pull(
    reference: Annotated[
        str,
        typer.Argument(metavar="REF", help="hf:owner/name, with @REVISION and :QUANTIZATION or :FILE where wanted."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What it is called here. [default: its own name]")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The installed base of an adapter, to check that it fits."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes: the name, or an error.")
    ] = False,
    offline: Offline = None,
    json: Json = False,
) -> None:
    """Fetch a model or an adapter from the Hugging Face Hub.

    A pack, a GGUF file (the quantization that fits this machine, where none is named), a checkpoint or an adapter. A
    broken download goes on where it stopped; every file is checked against its hash. Pulled again, a model is checked,
    healed, and brought to its newest revision. HF_ENDPOINT, HF_TOKEN and the cache of huggingface-hub are honoured.
    """
    from contextlib import nullcontext

    from zephyra_cli import settings, ui
    from zephyra_cli.progress import Progress
    from zephyra_cli.pull import pull as run

    settings.require_network("a pull", offline)
    note = (lambda text: None) if quiet else ui.note
    with nullcontext(lambda done, total, text: None) if quiet else Progress(bytes=True) as progress:
        pulled = run(reference, name=name, base=base, progress=progress, note=note)
    if json:
        ui.write_json(
            {
                "name": pulled.name,
                "kind": pulled.kind,
                "path": str(pulled.root),
                "commit": pulled.commit,
                "size_bytes": pulled.size,
                "previous_commit": pulled.before,
                "fetched_bytes": pulled.fetched,
            }
        )
    else:
        ui.write(f"{pulled.name}\n")
    if pulled.kind == "adapter":
        note(f"it joins a model by: zephyra domains add NAME --adapter {pulled.root} --examples FILE")
    note(f"{pulled.kind} {pulled.name}, {pulled.size / 1e6:.1f} MB, {_news(pulled)}, at {pulled.root}")


def _news(pulled: Pulled) -> str:
    commit = f"commit {pulled.commit[:8]}"
    if pulled.before is None:
        return commit
    if pulled.before != pulled.commit:
        return f"{commit} in place of {pulled.before[:8]}"
    return f"{commit} as before" + (", damage healed" if pulled.fetched else ": it was here already, and is whole")
