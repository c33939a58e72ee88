"""`zephyra pull`: models from the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyra_cli.commands.options import Json, Offline


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
    offline: Offline = None,
    json: Json = False,
) -> None:
    """Fetch a model or an adapter from the Hugging Face Hub.

    A pack, a GGUF file (the quantization that fits this machine, where none is named), a checkpoint or an adapter. A
    broken download goes on where it stopped; every file is checked against its hash. HF_ENDPOINT, HF_TOKEN and the
    cache of huggingface-hub are honoured.
    """
    from zephyra_cli import settings, ui
    from zephyra_cli.progress import Progress
    from zephyra_cli.pull import pull as run

    settings.require_network("a pull", offline)
    with Progress(bytes=True) as progress:
        pulled = run(reference, name=name, base=base, progress=progress, note=ui.note)
    if json:
        ui.write_json(
            {
                "name": pulled.name,
                "kind": pulled.kind,
                "path": str(pulled.root),
                "commit": pulled.commit,
                "size_bytes": pulled.size,
            }
        )
    else:
        ui.write(f"{pulled.name}\n")
    if pulled.kind == "adapter":
        ui.note(f"it joins a model by: zephyra domains add NAME --adapter {pulled.root} --examples FILE")
    ui.note(f"{pulled.kind} {pulled.name}, {pulled.size / 1e6:.1f} MB, at {pulled.root}")
