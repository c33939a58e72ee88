"""`zephyra push`: a pack to the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyra_cli.commands.options import Json


def push(
    pack: Annotated[str, typer.Argument(metavar="PACK", help="A pack's name or folder.")],
    to: Annotated[str, typer.Argument(metavar="REPOSITORY", help="hf:owner/name, or hf:owner/name@BRANCH.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new, only you may see it.")] = False,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="The commit's message.")] = "",
    json: Json = False,
) -> None:
    """Put a pack on the Hugging Face Hub, with a model card.

    Every file is checked against the manifest first; all goes in one commit. The card names parts, measured figures,
    licences and sources; a README.md of your own is left as it is. The token is huggingface-hub's (`hf auth login`).
    """
    from zephyra_cli import settings, ui
    from zephyra_cli.push import push as run

    settings.require_network("a push")
    pushed = run(pack, to, private=private, message=message, note=ui.note)
    if json:
        ui.write_json(
            {"url": pushed.url, "commit": pushed.commit, "files": list(pushed.files), "removed": list(pushed.removed)}
        )
    else:
        ui.write(f"{pushed.url}\n")
