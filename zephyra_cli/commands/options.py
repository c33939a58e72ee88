"""Options that several commands take, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPT]", help="The prompt. Standard input is added where it is a pipe or a file."),
]
Files = Annotated[
    list[Path] | None, typer.Option("--file", "-f", metavar="PATH", help="Add a text file to the prompt (repeatable).")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="NAME|PATH", help="A model's name, a pack's folder or a .gguf. [default: zephyra-nano]"
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="CPU threads. [default: all cores]")]
Offline = Annotated[bool | None, typer.Option("--offline", help="Never touch the network.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
